"""``init --linker``: who really links, by the mark in the program; no unit is built for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.projects import cargo, cow, repository, settle, write

from cargo_cow import native
from cargo_cow.cargo import configuration
from cargo_cow.setup import linker

FILES = {
    "Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
    "[profile.dev]\ndebug = 0\n",
    "build.rs": "fn main() {}\n",
    "src/main.rs": 'fn main() { println!("linked"); }\n',
}


@pytest.fixture
def root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: Callable[[str], NoReturn]
) -> Path:
    """A package, and a Cargo configuration of its own; mold is there."""
    if shutil.which("ld.mold") is None:
        missing("mold is not installed")
    home = tmp_path / "cargo home"
    home.mkdir()
    monkeypatch.setenv("CARGO_HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CARGO_COW_NATIVE", str(native.program()))
    return repository(tmp_path / "app", FILES)


def _linked_by(root: Path) -> str:
    program = root / "target/debug/app"
    assert subprocess.run([program], check=True, capture_output=True).stdout == b"linked\n"
    return linker.mark_of(program) or "GNU ld"


def _relink(root: Path, scratch: Path, **extra: str) -> list[str]:
    settle()
    write(root, {"src/main.rs": (root / "src/main.rs").read_text() + "\n"})
    built = cargo(root, scratch, "build", **extra)
    assert built.status == 0, built.output
    return built.rustc


def test_no_unit_is_built_for_another_linker(root: Path, tmp_path: Path) -> None:
    file = configuration.user_file()
    file.write_text("# mine\n")
    assert cargo(root, tmp_path, "build").status == 0
    usual = _linked_by(root)
    assert "mold" not in usual
    done = cow(root, tmp_path, "init", "--linker", "mold", "--no-convert")
    assert done.status == 0, done.output
    assert "links with mold" in done.output
    # What is linked stays as it is, until it is linked anew.
    assert cargo(root, tmp_path, "build").rustc == []
    assert _linked_by(root) == usual
    assert _relink(root, tmp_path) == ["app"]
    assert _linked_by(root).startswith("mold ")
    assert "links; what was linked before" in cow(root, tmp_path, "doctor").output
    status = cow(root, tmp_path, "status", "--no-sizes", "--format", "json").output
    assert json.loads(status.splitlines()[0])["linker"] == "mold"
    # Twice changes nothing, and back again.
    assert "nothing to change" in cow(root, tmp_path, "init", "--linker", "mold").output
    assert cow(root, tmp_path, "init", "--linker", "default").status == 0
    assert configuration.LINKER_VARIABLE not in file.read_text()
    assert cargo(root, tmp_path, "build").rustc == []
    assert _relink(root, tmp_path) == ["app"]
    assert _linked_by(root) == usual
    assert cow(root, tmp_path, "init", "--linker", "mold").status == 0
    assert cow(root, tmp_path, "uninstall").status == 0
    assert file.read_text() == "# mine\n"


def test_taken_out_of_a_file_that_was_edited_since(root: Path, tmp_path: Path) -> None:
    file = configuration.user_file()
    assert cow(root, tmp_path, "init", "--linker", "mold", "--no-convert").status == 0
    file.write_text(file.read_text() + 'MINE = "1"\n[net]\noffline = true\n')
    assert cow(root, tmp_path, "uninstall").status == 0
    assert configuration.parse(file.read_text(), file) == {
        "env": {"MINE": "1"},
        "net": {"offline": True},
    }


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("project", '[target.x86_64-unknown-linux-gnu]\nlinker = "cc"\n'),
        ("project", '[target."cfg(unix)"]\nlinker = "cc"\n'),
        ("project", '[build]\nrustflags = ["-C", "link-arg=-fuse-ld=bfd"]\n'),
        ("user", '[target."cfg(unix)"]\nrustflags = "-Clinker=cc"\n'),
        ("variable", "-C linker=cc"),
    ],
)
def test_who_set_a_linker_keeps_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, text: str
) -> None:
    if where == "project":
        write(root, {".cargo/config.toml": text})
    elif where == "user":
        configuration.user_file().write_text(text)
    else:
        monkeypatch.setenv("RUSTFLAGS", text)
    assert cargo(root, tmp_path, "build").status == 0
    usual = _linked_by(root)
    done = cow(root, tmp_path, "init", "--linker", "mold", "--no-convert")
    assert done.status == 0, done.output
    assert "that linker stays" in done.output
    chosen = configuration.LINKER_VARIABLE in configuration.user_file().read_text()
    assert chosen == (where == "project")  # for other projects
    # Even where the choice counts.
    _relink(root, tmp_path, **{configuration.LINKER_VARIABLE: "mold"})
    assert _linked_by(root) == usual
    if where == "project":
        assert "not used here" in cow(root, tmp_path, "doctor").output


def test_what_is_not_there_or_does_not_link(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    done = cow(root, tmp_path, "init", "--linker", "wild")
    if shutil.which("ld.wild") is None:
        assert done.status == 52
        assert "not installed" in done.output
        assert not configuration.user_file().exists()
    # Another linker under its name is found out by its mark.
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (programs / "ld.mold").symlink_to(shutil.which("ld") or "/usr/bin/ld")
    done = cow(root, tmp_path, "init", "--linker", "mold")
    assert done.status == 52, done.output
    # A linker that is gone after it was chosen is not missed.
    (programs / "ld.mold").unlink()
    assert cow(root, tmp_path, "init", "--linker", "mold", "--no-convert").status == 0
    for directory in os.get_exec_path():
        for name in ("cc", "gcc", "ld", "as", "rustc", "cargo", "git", "sh"):
            if not (programs / name).exists() and Path(directory, name).exists():
                (programs / name).symlink_to(Path(directory, name))
    monkeypatch.setenv("PATH", str(programs))
    log = tmp_path / "log"
    _relink(root, tmp_path, CARGO_COW_LOG=str(log))
    assert "mold" not in _linked_by(root)
    assert "ld.mold is not on PATH" in log.read_text()


def test_lld_where_rustc_takes_it_itself(root: Path, tmp_path: Path) -> None:
    usual, said = linker.try_out("", native.program(), root)
    assert not said
    done = cow(root, tmp_path, "init", "--linker", "lld", "--no-convert")
    if shutil.which("ld.lld") is None:
        assert done.status == 52
        return
    assert done.status == 0, done.output
    nothing = usual is not None and "LLD" in usual
    assert ("nothing to gain" in done.output) == nothing
    chosen = configuration.LINKER_VARIABLE in configuration.user_file().read_text()
    assert chosen != nothing
