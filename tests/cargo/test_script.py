"""Build-script output: directives in both spellings, and moving declared paths."""

from __future__ import annotations

from cargo_cow.cargo.script import parse_output, relocate_rerun_lines

_OUTPUT = b"""noise
cargo:rerun-if-changed=src/a.txt
cargo::rerun-if-changed=/old/pkg/b.txt
cargo:rerun-if-env-changed=CC
cargo::rustc-env=KEY=value=more
cargo:rustc-link-search=native=/old/target/out
cargo:root=/old
"""


def test_directives_of_both_spellings() -> None:
    script = parse_output(_OUTPUT)
    assert script.rerun_if_changed == ("src/a.txt", "/old/pkg/b.txt")
    assert script.rerun_if_env_changed == ("CC",)
    assert script.env == (("KEY", "value=more"),)
    assert script.others == ("rustc-link-search=native=/old/target/out", "root=/old")


def test_only_declared_paths_below_the_root_move() -> None:
    moved = relocate_rerun_lines(_OUTPUT, b"/old/pkg", b"/new/pkg")
    assert b"cargo::rerun-if-changed=/new/pkg/b.txt\n" in moved
    assert b"native=/old/target/out" in moved
    assert b"cargo:root=/old\n" in moved


def test_a_longer_name_is_another_path() -> None:
    data = b"cargo:rerun-if-changed=/old/pkg-two/b.txt\n"
    assert relocate_rerun_lines(data, b"/old/pkg", b"/new/pkg") == data
