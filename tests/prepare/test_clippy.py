"""Clippy looks for its configuration upwards: a clone may have another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.capabilities import missing
from tests.support.projects import Build, cow, git, repository, settle, write

from cargo_cow import native


@pytest.fixture(autouse=True)
def _clippy() -> None:
    if shutil.which("cargo-clippy") is None:
        missing("there is no clippy")


_FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["app"]\nresolver = "2"\n',
    "app/Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n',
    "app/src/lib.rs": "pub fn two(_: u8, _: u8) {}\n",
}
_STRICT = "too-many-arguments-threshold = 1\n"
_LAX = "too-many-arguments-threshold = 5\n"


def _lint(root: Path, scratch: Path, shim: str, **extra: str) -> Build:
    settle()
    if shim == "shim":
        extra |= {"RUSTC_WRAPPER": str(native.program()), "CARGO_COW_SEEDING": "1"}
    built = cow(root, scratch, "clippy", "-v", **extra)
    assert built.status == 0, built.output
    return built


def _is_strict(built: Build) -> bool:
    return "too many arguments" in built.output


@pytest.mark.parametrize("shim", ["shim", "no shim"])
def test_another_configuration_in_a_clone(btrfs: Path, tmp_path: Path, shim: str) -> None:
    main = repository(btrfs / "a/main", _FILES)
    assert not _is_strict(_lint(main, tmp_path, shim))
    for number, name in enumerate(("app/clippy.toml", ".clippy.toml", "../clippy.toml")):
        there = btrfs / str(number) / "there"
        git(main, "worktree", "add", "-q", "--detach", str(there))
        write(there, {name: _STRICT})
        assert _is_strict(_lint(there, tmp_path, shim)), name
        assert _is_strict(_lint(there, tmp_path, shim)), "said again"
        git(main, "worktree", "remove", "--force", str(there))
    there = btrfs / "there"
    git(main, "worktree", "add", "-q", "--detach", str(there))
    write(btrfs, {"elsewhere/clippy.toml": _STRICT})
    directory = {"CLIPPY_CONF_DIR": str(btrfs / "elsewhere")}
    assert _is_strict(_lint(there, tmp_path, shim, **directory))


@pytest.mark.parametrize("shim", ["shim", "no shim"])
def test_the_same_configuration_in_a_clone(btrfs: Path, tmp_path: Path, shim: str) -> None:
    main = repository(btrfs / "main", _FILES | {"clippy.toml": _STRICT})
    assert _is_strict(_lint(main, tmp_path, shim))
    there = btrfs / "there"
    git(main, "worktree", "add", "-q", str(there))
    built = _lint(there, tmp_path, shim)
    assert (built.rustc, _is_strict(built)) == ([], True), built.output
    git(main, "worktree", "remove", "--force", str(there))
    # A nearer one, and the same that is gone.
    for name, text in (("app/clippy.toml", _LAX), ("clippy.toml", None)):
        git(main, "worktree", "add", "-q", "--detach", str(there))
        if text is None:
            (there / name).unlink()
        else:
            write(there, {name: text})
        assert not _is_strict(_lint(there, tmp_path, shim)), name
        git(main, "worktree", "remove", "--force", str(there))
