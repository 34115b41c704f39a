"""A state in whose checkout nothing has changed is activated without a proof, and no other is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.projects import cargo, cow, git, repository, settle, write

from cargo_cow import filesystems, native, snapshots
from cargo_cow.cargo.lock import build_lock
from cargo_cow.cargo.workspace import load
from cargo_cow.prepare import unchanged
from cargo_cow.prepare.place import place_of
from cargo_cow.snapshots.state import State

_MACRO = """
use proc_macro::TokenStream;
#[proc_macro]
pub fn look(_: TokenStream) -> TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let mut told = std::fs::read_to_string(format!("{root}/data/a")).unwrap();
    told += &std::env::var("LOOKED_AT").unwrap_or_default();
    if std::path::Path::new(&format!("{root}/mark")).exists() { told += "marked"; }
    format!("{told:?}").parse().unwrap()
}
"""
# It declares nothing: Cargo runs it again when any file of the package is newer.
_SCRIPT = """
fn main() {
    let mut names: Vec<String> = std::fs::read_dir("notes").unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    println!("cargo:rustc-env=NOTES={}", names.join("+"));
}
"""


def _package(name: str, more: str = "") -> str:
    return f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n{more}'


_FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["app", "looking"]\nresolver = "2"\n',
    ".gitignore": "/target\n*.log\n",
    "app/Cargo.toml": _package("app", '[dependencies]\nlooking.path = "../looking"\n'),
    "app/build.rs": _SCRIPT,
    "app/notes/one": "",
    "app/data/a": "a",
    "app/text": "text",
    "app/src/main.rs": "fn main() {\n"
    '    println!("{} {} {}", looking::look!(), env!("NOTES"), include_str!("../text"));\n}\n',
    "looking/Cargo.toml": _package("looking", "[lib]\nproc-macro = true\n"),
    "looking/src/lib.rs": _MACRO,
}


@pytest.fixture
def root(btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Built with the shim and unchanged since, as a build says."""
    monkeypatch.delenv("LOOKED_AT", raising=False)
    made = repository(btrfs / "main", _FILES)
    subprocess.run(["cargo", "generate-lockfile", "--offline", "-q"], cwd=made, check=True)
    git(made, "add", "-A")
    git(made, "commit", "-qm", "lock")
    filesystems.create_target(made / "target")
    (made / "target/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    settle()
    assert _build(made, tmp_path) == ["app", "build_script_build", "looking"]
    settle()
    assert _build(made, tmp_path) == []
    assert _told(made) == "a one text"
    return made


def _build(root: Path, scratch: Path, **extra: str) -> list[str]:
    shim = {"RUSTC_WRAPPER": str(native.program()), "CARGO_COW_SEEDING": "1"}
    built = cow(root, scratch, "build", "-v", **shim, **extra)
    assert built.status == 0, built.output
    return built.rustc


def _told(root: Path, target: str = "target") -> str:
    program = root / target / "debug/app"
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.strip()


def _clean(root: Path, scratch: Path) -> str:
    """What a clean build here tells."""
    built = cargo(root, scratch, "build", CARGO_TARGET_DIR=str(scratch / "clean"))
    assert built.status == 0, built.output
    return _told(scratch, "clean")


def _is_proven(root: Path, name: str = "one") -> bool:
    """Activate the state; whether a proof was made."""
    return "prove" in snapshots.activate_cache(name, root).seconds


def test_nothing_has_changed(root: Path, tmp_path: Path) -> None:
    state = snapshots.create_state("one", root)
    assert state.whole
    for _ in range(2):
        done = snapshots.activate_cache("one", root)
        assert "prove" not in done.seconds
        assert (done.proven, done.held, done.dropped, done.kept) == (4, 0, 0, None)
        assert cargo(root, tmp_path, "build").rustc == []
        # The note came along: another state of the same is as good.
        again = snapshots.create_state(None, root)
        assert (again.whole, again.parent) == (True, state.id)
    assert _build(root, tmp_path) == []
    assert _told(root) == "a one text"


def test_what_was_built_meanwhile_is_kept(root: Path, tmp_path: Path) -> None:
    """Edited, built, and taken back by git: every file is as it was, under another stat."""
    snapshots.create_state("one", root)
    settle()
    write(root, {"app/text": "other"})
    assert _build(root, tmp_path) == ["app", "build_script_build"] or _told(root) == "a one other"
    settle()
    git(root, "checkout", "-q", ".")
    done = snapshots.activate_cache("one", root)
    assert "prove" in done.seconds
    assert done.kept is not None
    assert _build(root, tmp_path) == []
    assert _told(root) == "a one text"


def _same_time(path: Path, text: str) -> None:
    facts = path.stat()
    path.write_text(text)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _older(path: Path) -> None:
    path.write_text("")
    os.utime(path, ns=(10**18, 10**18))


_CHANGES: dict[str, Callable[[Path], object]] = {
    "source": lambda root: write(root, {"app/text": "edited"}),
    "source, under its old time": lambda root: _same_time(root / "app/text", "TEXT"),
    "macro's file": lambda root: write(root, {"app/data/a": "b"}),
    "macro's file, under its old time": lambda root: _same_time(root / "app/data/a", "b"),
    "path that a macro missed": lambda root: write(root, {"app/mark": ""}),
    "new file of the package": lambda root: write(root, {"app/notes/two": ""}),
    "new file of the package, under an old time": lambda root: _older(root / "app/notes/two"),
    "file that is gone": lambda root: (root / "app/notes/one").unlink(),
    "commit": lambda root: git(root, "commit", "-q", "--allow-empty", "-m", "more"),
    "branch": lambda root: git(root, "switch", "-qc", "other"),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_anything_that_has_changed_is_seen(root: Path, tmp_path: Path, change: str) -> None:
    assert snapshots.create_state("one", root).whole
    settle()
    _CHANGES[change](root)
    if change == "file that is gone":
        write(root, {"app/notes/zero": ""})
    assert _is_proven(root)
    settle()
    _build(root, tmp_path)
    assert _told(root) == _clean(root, tmp_path)


def test_a_variable_that_a_macro_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots.create_state("one", root)
    monkeypatch.setenv("LOOKED_AT", "set")
    assert _is_proven(root)
    _build(root, tmp_path)
    assert _told(root) == "aset one text"


def test_what_git_ignores_and_nobody_read_may_change(root: Path, tmp_path: Path) -> None:
    snapshots.create_state("one", root)
    write(root, {"looking/some.log": "", "some.log": ""})
    assert not _is_proven(root)
    assert _build(root, tmp_path) == []


@pytest.mark.parametrize("why", ["not observed", "unfinished", "running", "newer"])
def test_a_state_that_the_note_does_not_speak_of(root: Path, tmp_path: Path, why: str) -> None:
    target = root / "target"
    state: State
    if why == "running":
        with build_lock(target):
            state = snapshots.create_state("one", root)
    else:
        if why == "unfinished":
            (unit,) = (target / "debug/.fingerprint").glob("app-*/bin-app")
            unit.write_text("")
        else:
            settle()
            write(root, {"app/text": "edited"})
            settle()
            assert "app" in cargo(root, tmp_path, "build").rustc
            if why == "not observed":
                cow(root, tmp_path, "build")
        state = snapshots.create_state("one", root)
    assert not state.whole
    assert _is_proven(root)
    _build(root, tmp_path)
    assert _told(root) == _clean(root, tmp_path)


def test_a_target_inside_of_the_target(root: Path, tmp_path: Path) -> None:
    """Of what is built in there nothing is recorded."""
    inside = root / "target/tests/inside"
    assert cargo(root, tmp_path, "build", CARGO_TARGET_DIR=str(inside)).status == 0
    settle()
    write(root, {"app/text": "more"})
    _build(root, tmp_path)
    settle()
    _build(root, tmp_path)
    assert not snapshots.create_state("one", root).whole


def test_what_is_to_be_built_again_stays_so(root: Path, tmp_path: Path) -> None:
    """Dropped before the note was left, as the units of another commit are."""
    (unit,) = (root / "target/debug/.fingerprint").glob("app-*/bin-app")
    unit.write_text("")
    (unit.parent / "dep-bin-app").unlink()
    unchanged.note(place_of(load(root)))
    assert snapshots.create_state("one", root).whole
    assert not _is_proven(root)
    assert cargo(root, tmp_path, "build").rustc == ["app"]
    assert _told(root) == "a one text"


def test_a_state_of_another_checkout(root: Path, tmp_path: Path) -> None:
    snapshots.create_state("one", root)
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", "--detach", str(there))
    assert _is_proven(there)
    _build(there, tmp_path)
    assert _told(there) == "a one text"
