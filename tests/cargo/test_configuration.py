"""Editing Cargo's configuration: what Cargo then reads, and taking it back byte by byte."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path

import pytest

from cargo_cow.cargo import configuration
from cargo_cow.errors import ConfigurationUnusable

NATIVE = "/opt/cow bin/cargo-cow-native"

TEXTS = {
    "empty": "",
    "comment": "# mine\n",
    "no newline": "[net]\nretry = 2",
    "table": "[build]\njobs = 3 # three\n\n# the net\n[net]\nretry = 2\n",
    "only header": "[build]",
    "crlf": "[build]\r\njobs = 1\r\n\r\n# net\r\n[net]\r\nretry = 2\r\n",
    "dotted": "build.jobs = 3\n\n[net]\nretry = 2\n",
    "inline": "build = { jobs = 3 }  # inline\n",
    "subtable": "[build.env]\nx = 1\n\n[net]\nretry = 2\n",
    "out of order": "[build]\njobs = 1\n[net]\nretry = 1\n[build.more]\nx = 1\n",
    "array": "[[unstable.list]]\nx = 1\n",
    "header in string": 'note = """\n[build]\n"""\n',
    "env": "[env]\n# about A\nA = 'b' # c\n\n[build]\n  jobs = 2\n",
    "inline env": "env = { A = 'b' }\n",
    "own wrapper": "[build] # ours\nrustc-wrapper = 'sccache'  # fast\n# end\n[net]\nretry = 1\n",
    "own wrapper, env": "[build]\nrustc-wrapper = \"sccache\"\n\n# vars\n[env]\nA = '1' # one\n",
    "not ascii": "# Überschrift\n[build]\njobs = 1 # für mich\n",
}


@pytest.fixture(autouse=True)
def no_wrapper_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RUSTC_WRAPPER", "CARGO_BUILD_RUSTC_WRAPPER", "CARGO_COW_CHAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo home"))


@pytest.mark.parametrize(("name", "chain"), list(itertools.product(TEXTS, [None, "sccache"])))
def test_edit_and_take_back(name: str, chain: str | None, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    before = TEXTS[name].encode()
    file.write_bytes(before)
    variables = {} if chain is None else {configuration.CHAIN_VARIABLE: chain}
    change = configuration.plan_wrapper(file, NATIVE, variables)
    assert change is not None
    assert file.read_bytes() == before, "planning touched the file"
    configuration.apply(change)
    now = file.read_bytes().decode()
    values = tomllib.loads(now)
    assert values["build"]["rustc-wrapper"] == NATIVE
    assert values.get("env", {}).get("CARGO_COW_CHAIN") == chain
    for line in before.decode().splitlines():
        comment = line.partition("#")[2]
        assert comment in now
    assert configuration.plan_wrapper(file, NATIVE, variables) is None
    assert configuration.take_back(change)
    assert file.read_bytes() == before
    assert not configuration.take_back(change), "taken back twice"
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", TEXTS)
def test_take_back_leaves_later_edits(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(TEXTS[name])
    change = configuration.plan_wrapper(file, NATIVE, {})
    assert change is not None
    configuration.apply(change)
    later = "# added later\n" + file.read_text() + "\n[later]\nx = 1\n"
    file.write_text(later)
    assert configuration.take_back(change)
    expected = tomllib.loads(TEXTS[name]) | {"later": {"x": 1}}
    assert tomllib.loads(file.read_text()) == expected
    assert file.read_text().startswith("# added later\n")


@pytest.mark.parametrize("variable", ["CARGO_COW_CHAIN", "CARGO_COW_REPLACED"])
@pytest.mark.parametrize("name", TEXTS)
def test_take_out_without_a_note(name: str, variable: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(TEXTS[name])
    before = tomllib.loads(TEXTS[name])
    chain = before.get("build", {}).get("rustc-wrapper")
    change = configuration.plan_wrapper(file, NATIVE, {variable: chain or ""})
    assert change is not None
    configuration.apply(change)
    change = configuration.plan_without_wrapper(file)
    assert change is not None
    configuration.apply(change)
    # An empty table means nothing, and whose it was is not known here.
    expected = {key: value for key, value in before.items() if value != {}}
    assert tomllib.loads(file.read_text()) == expected
    assert configuration.plan_without_wrapper(file) is None


def test_a_foreign_wrapper_is_not_taken_out(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[build]\nrustc-wrapper = 'sccache'\n")
    assert configuration.plan_without_wrapper(file) is None


def test_comment_of_the_next_table_stays_with_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[build]\njobs = 3\n\n# the net\n[net]\nretry = 2\n")
    change = configuration.plan_wrapper(file, NATIVE, {})
    assert change is not None
    configuration.apply(change)
    assert "\n# the net\n[net]\n" in file.read_text()


def test_a_new_file_and_its_directory(tmp_path: Path) -> None:
    file = tmp_path / "no" / "such" / "config.toml"
    change = configuration.plan_wrapper(file, NATIVE, {})
    assert change is not None
    assert change.created
    assert not file.parent.exists()
    configuration.apply(change)
    assert configuration.wrapper_in(file) == configuration.Wrapper(NATIVE, str(file), file)
    assert configuration.take_back(change)
    assert not file.exists()


@pytest.mark.parametrize(
    "text", [b"[build\n", b"a = 1\na = 2\n", b"\xff\xfe", b"build = 3\n", b"[[build]]\nx = 1\n"]
)
def test_what_cannot_be_parsed_is_left_alone(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(text)
    with pytest.raises(ConfigurationUnusable) as caught:
        configuration.plan_wrapper(file, NATIVE, {})
    assert str(file) in str(caught.value)
    assert caught.value.hint
    assert file.read_bytes() == text


def test_a_file_edited_after_planning_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[net]\n")
    change = configuration.plan_wrapper(file, NATIVE, {})
    assert change is not None
    file.write_text("[net]\nretry = 4\n")
    with pytest.raises(ConfigurationUnusable, match="edited in the meantime"):
        configuration.apply(change)
    assert file.read_text() == "[net]\nretry = 4\n"


def test_a_read_only_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[net]\n")
    file.chmod(0o444)
    change = configuration.plan_wrapper(file, NATIVE, {})
    assert change is not None
    with pytest.raises(ConfigurationUnusable, match="read-only") as caught:
        configuration.apply(change)
    assert "writable" in caught.value.hint
    assert file.read_text() == "[net]\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]


def test_a_symlink_and_the_mode_stay(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "cargo.toml"
    real.parent.mkdir()
    real.write_text("[registries.mine]\ntoken = 'secret'\n")
    real.chmod(0o600)
    file = tmp_path / "config.toml"
    file.symlink_to(real)
    change = configuration.plan_wrapper(file, NATIVE, {})
    assert change is not None
    assert "secret" not in str(change)
    configuration.apply(change)
    assert file.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert NATIVE in real.read_text()


def test_which_wrapper_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "project" / "crates" / "one"
    below.mkdir(parents=True)
    assert configuration.effective_wrapper(below) is None
    user = tmp_path / "cargo home" / "config.toml"
    user.parent.mkdir()
    user.write_text("[build]\nrustc-wrapper = 'bin/mine'\n")
    found = configuration.effective_wrapper(below)
    assert found is not None
    assert found.program == str(tmp_path / "bin/mine")
    assert found.file == user
    project = tmp_path / "project" / ".cargo" / "config.toml"
    project.parent.mkdir()
    project.write_text("[build]\nrustc-wrapper = './tools/mine'\n[env]\nCARGO_COW_CHAIN = 'x'\n")
    found = configuration.effective_wrapper(below)
    assert found is not None
    assert found.program == str(tmp_path / "project" / "tools/mine")
    assert configuration.effective_chain(below) == "x"
    monkeypatch.setenv("CARGO_COW_CHAIN", "")
    assert configuration.effective_chain(below) is None
    # Cargo prefers the name without a suffix.
    (project.parent / "config").write_text("[build]\nrustc-wrapper = 'older'\n")
    found = configuration.effective_wrapper(below)
    assert found is not None
    assert found.program == "older"
    monkeypatch.setenv("CARGO_BUILD_RUSTC_WRAPPER", "by-cargo-build")
    found = configuration.effective_wrapper(below)
    assert found is not None
    assert found.program == "by-cargo-build"
    monkeypatch.setenv("RUSTC_WRAPPER", "")
    found = configuration.effective_wrapper(below)
    assert found == configuration.Wrapper("", "environment variable RUSTC_WRAPPER", None)


def test_includes_are_weaker_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("include = ['one.toml', { path = 'two.toml' }, 'missing.toml']\n")
    (tmp_path / "one.toml").write_text("include = 'config.toml'\nbuild.rustc-wrapper = 'one'\n")
    (tmp_path / "two.toml").write_text("build.rustc-wrapper = 'two'\n")
    found = configuration.wrapper_in(file)
    assert found is not None
    assert found.program == "two"
    (tmp_path / "two.toml").write_text("")
    found = configuration.wrapper_in(file)
    assert found is not None
    assert found.program == "one"


def test_home_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CARGO_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configuration.user_file() == tmp_path / ".cargo" / "config.toml"
    (tmp_path / ".cargo").mkdir()
    (tmp_path / ".cargo" / "config").write_text("")
    assert configuration.user_file() == tmp_path / ".cargo" / "config"
