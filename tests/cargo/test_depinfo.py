"""Dep-info in both forms: round trips, Cargo's escapes, damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cargo_cow.cargo.depinfo import (
    BUILD,
    PACKAGE,
    DepInfo,
    InputFile,
    encode,
    parse_encoded,
    parse_makefile,
)
from cargo_cow.errors import UnknownFormat

_texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
_files = st.builds(
    InputFile,
    st.sampled_from([PACKAGE, BUILD]),
    _texts,
    st.none() | st.tuples(st.integers(0, 2**64 - 1), _texts),
)
_infos = st.builds(
    DepInfo,
    st.lists(_files, max_size=5).map(tuple),
    st.lists(st.tuples(_texts, st.none() | _texts), max_size=5).map(tuple),
)


@given(_infos)
def test_encoding_is_undone_by_parsing(info: DepInfo) -> None:
    assert parse_encoded(encode(info)) == info


@given(_infos, st.data())
def test_truncated_dep_info_is_refused(info: DepInfo, data: st.DataObject) -> None:
    whole = encode(info)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(UnknownFormat):
        parse_encoded(whole[:cut])


def test_a_later_version_is_refused() -> None:
    data = bytearray(encode(DepInfo((), ())))
    data[5] = 2
    with pytest.raises(UnknownFormat, match="version 1"):
        parse_encoded(bytes(data))


def test_bytes_that_are_not_utf8_survive() -> None:
    info = DepInfo((InputFile(PACKAGE, "src/\udcff.rs", None),), ())
    assert parse_encoded(encode(info)) == info


def test_makefile_takes_the_first_rule_and_all_environment_lines() -> None:
    data = (
        b"/t/debug/deps/x.d: src/main.rs src/with\\ space.rs /t/out/gen.rs\n\n"
        b"/t/debug/deps/x: src/main.rs\n\nsrc/main.rs:\n\n"
        b"# env-dep:OUT_DIR=/t/out\n# env-dep:UNSET\n# env-dep:NL=a\\nb\\\\c\n"
    )
    info = parse_makefile(data)
    assert info.files == ("src/main.rs", "src/with space.rs", "/t/out/gen.rs")
    assert info.env == (("OUT_DIR", "/t/out"), ("UNSET", None), ("NL", "a\nb\\c"))
