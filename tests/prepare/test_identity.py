"""Identity: which one a checkout takes, and that incremental state then goes on counting.

That rustc used its state is told by the objects in it: those that it takes over are hard links of
the last session's, those that it makes anew are not.  Never by time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.projects import Build, cargo, cow, git, repository, settle, write

from cargo_cow import native
from cargo_cow.cargo import workspace
from cargo_cow.prepare import identity
from cargo_cow.prepare.identity import Seen, decide, refusal
from cargo_cow.prepare.place import Place, place_of

# --- deciding --------------------------------------------------------------------------------

HERE = Seen("/w/b", "/w/b/target")


def _all_there(_: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("here", "seen", "why"),
    [
        (HERE, Seen("/w/a", "/w/a/target"), None),
        (HERE, Seen("/w/a", "/w/a/out"), "its target was"),
        (HERE, Seen("/w/a", "/cache/a"), "its target was"),
        (HERE, Seen("/w/b/c", "/w/b/c/target"), "inside this checkout"),
        (HERE, Seen("/w", "/w/target"), None),
        (Seen("/w/b", "/w/out"), Seen("/w", "/cache"), "the target /w/out lies"),
        (Seen("/w/b", "/w/a/target-b"), Seen("/w/a", "/cache/a"), "the target /w/a/target-b lies"),
        (Seen("/w/b", "/w/a/target"), Seen("/w/a", "/w/a/target"), "the target /w/a/target lies"),
        (Seen("/w/b", "/cache/b"), Seen("/w/a", "/cache/a"), None),
        (Seen("/w/b", "/cache"), Seen("/w/a", "/cache"), None),
        (Seen("/w/b", "/cache/b"), Seen("/w/a", "/cache/b/x"), "lie in each other"),
        (Seen("/w/b", "/cache/b"), Seen("/w/a", "/cache"), "lie in each other"),
        (Seen("/w/b", "/cache/b"), Seen("/w/b", "/cache/a"), None),
        (HERE, Seen("/w/b-old", "/w/b-old/target"), None),
    ],
)
def test_what_stands_against_a_place(here: Seen, seen: Seen, why: str | None) -> None:
    against = refusal(here, seen, _all_there)
    assert (against is None) == (why is None), against
    if why is not None and against is not None:
        assert why in against


def test_what_is_gone_is_refused() -> None:
    outside = Seen("/w/b", "/cache/b")
    for there in ("/w/a", "/cache/a"):
        against = refusal(outside, Seen("/w/a", "/cache/a"), there.__eq__)
        assert against is not None
        assert "gone" in against


def test_the_first_that_serves_is_taken() -> None:
    inside, good = Seen("/w/b/c", "/w/b/c/target"), Seen("/w/a", "/w/a/target")
    seen, why, refused = decide(HERE, [(inside, "one"), (good, "two")], _all_there, "none")
    assert (seen, why) == (good, "two")
    assert [path for path, _ in refused] == ["/w/b/c"]
    seen, why, refused = decide(HERE, [(inside, "one")], _all_there, "none")
    assert (seen, why) == (HERE, "none")
    assert decide(HERE, [(HERE, "mine"), (good, "two")], _all_there, "none")[:2] == (HERE, "mine")


def test_a_note_that_is_none(tmp_path: Path) -> None:
    note = tmp_path / identity.NOTE
    note.parent.mkdir()
    for text in ("", "{", "[]", '{"format":1}', '{"format":2,"checkout":"/a","build_dir":"/b"}',
                 '{"format":1,"checkout":"a","build_dir":"/b"}',
                 '{"format":1,"checkout":7,"build_dir":"/b"}'):  # fmt: skip
        note.write_text(text)
        assert identity.seen_in(tmp_path) is None, text
    identity.carry(tmp_path, HERE)
    assert identity.seen_in(tmp_path) == HERE


# --- with the real compiler ------------------------------------------------------------------

FILES = {
    "Cargo.toml": (
        '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
        "[profile.release]\nincremental = true\n"
    ),
    "src/main.rs": (
        "mod many;\n"
        "fn main() {\n"
        '    println!("{} {} {}", env!("CARGO_MANIFEST_DIR"), file!(), many::f0(1));\n'
        "}\n"
    ),
    "src/many.rs": "".join(
        f"#[inline(never)]\npub fn f{n}(x: u32) -> u32 {{\n"
        f"    if x > {n} {{ x * {n + 3} }} else {{ x + f{n + 1}(x) }}\n}}\n"
        for n in range(100)
    )
    + "pub fn f100(x: u32) -> u32 { x }\n",
}


@pytest.fixture
def _namespaces(missing: Callable[[str], NoReturn]) -> None:
    """PROBE: the act itself, by another program."""
    words = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--mount"]
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"no mount namespaces: {done.stderr.strip()}")


@pytest.fixture
def main(tmp_path: Path, _namespaces: None) -> Path:
    """A main checkout that plain Cargo built."""
    root = repository(tmp_path / "main", FILES)
    built = cargo(root, tmp_path, "build")
    assert built.status == 0, built.output
    settle()
    return root


def _objects(checkout: Path, profile: str = "debug") -> set[int]:
    """The inodes of the objects in the newest session of the crate's incremental state."""
    sessions = list(checkout.glob(f"target/{profile}/incremental/app-*/s-*-*/"))
    newest = max(sessions, key=lambda path: path.stat().st_mtime_ns)
    return {path.stat().st_ino for path in newest.glob("*.o")}


def _edit(checkout: Path, number: int = 0) -> None:
    """Another body for the first function; the result is then ``number``."""
    text = (checkout / "src/many.rs").read_text()
    start = text.index("{") + 1
    body = f"\n    if x > 200 {{ f1(x) }} else {{ {number} }}\n"
    end = text.index("\n}\n", start) + 1
    settle()
    (checkout / "src/many.rs").write_text(text[:start] + body + text[end:])


def _first_edit_is_incremental(
    checkout: Path, build: Callable[[Path], Build], profile: str = "debug", number: int = 7
) -> bool:
    """Whether the first edit here takes over what was compiled before."""
    before = _objects(checkout, profile)
    assert len(before) > 3
    _edit(checkout, number)
    built = build(checkout)
    assert built.status == 0, built.output
    assert len(built.rustc) == 1, built.output
    shown = subprocess.run(
        [checkout / f"target/{profile}/app"], check=True, capture_output=True, text=True
    ).stdout
    assert shown == f"{checkout} src/main.rs {number}\n"
    kept = before & _objects(checkout, profile)
    if kept:
        assert len(kept) >= len(before) // 2
    return bool(kept)


def _by_cow(scratch: Path, *more: str, **extra: str) -> Callable[[Path], Build]:
    return lambda checkout: cow(checkout, scratch, "build", *more, **extra)


def _by_cargo(scratch: Path, **extra: str) -> Callable[[Path], Build]:
    """Plain Cargo with our shim installed."""
    wrapper = {"RUSTC_WRAPPER": str(native.program()), "CARGO_COW_SEEDING": "1"}
    return lambda checkout: cargo(checkout, scratch, "build", **wrapper, **extra)


def _wish(checkout: Path) -> dict[str, object] | None:
    git_dir = git(checkout, "rev-parse", "--absolute-git-dir")
    path = Path(git_dir, identity.FILE)
    return json.loads(path.read_text()) if path.exists() else None


def _identity(checkout: Path) -> object:
    wish = _wish(checkout)
    return None if wish is None else wish["identity"]


def _add(main: Path, path: Path, scratch: Path) -> Path:
    added = cow(main, scratch, "worktree", "add", "--detach", str(path))
    assert added.status == 0, added.output
    return path


@pytest.mark.parametrize("how", ["cow", "cargo"])
def test_the_first_edit_in_a_new_worktree_is_incremental(
    main: Path, tmp_path: Path, how: str
) -> None:
    there = _add(main, tmp_path / "there", tmp_path)
    assert _wish(there) == {"format": 1, "checkout": str(there), "identity": str(main)}
    assert _wish(main) is None
    build = _by_cow(tmp_path) if how == "cow" else _by_cargo(tmp_path)
    assert _first_edit_is_incremental(there, build)
    # Once more, and nothing is left to do for anybody.
    assert _first_edit_is_incremental(there, build, number=8)
    assert cargo(there, tmp_path, "build").rustc == []
    assert cow(there, tmp_path, "audit").status == 0


def test_it_can_be_switched_off(main: Path, tmp_path: Path) -> None:
    """Also the proof that the tests here can fail."""
    there = _add(main, tmp_path / "there", tmp_path)
    off = {identity.SWITCH: "off"}
    assert not _first_edit_is_incremental(there, _by_cow(tmp_path, **off))
    assert _wish(there) is None
    other = tmp_path / "other"
    git(main, "worktree", "add", "-q", "--detach", str(other))
    assert cow(other, tmp_path, "prepare", "--from", str(main), **off).status == 0
    assert _wish(other) is None
    # On again: what is in the target is still the main checkout's.
    assert _first_edit_is_incremental(other, _by_cow(tmp_path))


def test_another_wrapper_is_left_alone(main: Path, tmp_path: Path) -> None:
    there = _add(main, tmp_path / "there", tmp_path)
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\necho "$@" >> "$0.log"\nexec "$@"\n')
    wrapper.chmod(0o755)
    write(there, {".cargo/config.toml": f'[build]\nrustc-wrapper = "{wrapper}"\n'})
    _edit(there)
    assert cow(there, tmp_path, "build").status == 0
    assert "--crate-name app" in (tmp_path / "wrapper.log").read_text()


def test_release_with_incremental_state(main: Path, tmp_path: Path) -> None:
    assert cargo(main, tmp_path, "build", "--release").status == 0
    there = _add(main, tmp_path / "there", tmp_path)
    build = _by_cow(tmp_path, "--release")
    assert _first_edit_is_incremental(there, build, "release")


def test_a_clone_of_a_clone_keeps_the_first_identity(main: Path, tmp_path: Path) -> None:
    second = _add(main, tmp_path / "second", tmp_path)
    _edit(second, 3)
    assert cow(second, tmp_path, "build").status == 0
    git(second, "commit", "-qam", "second")
    # Nearer to the second one, and the main checkout's target is gone.
    shutil.rmtree(main / "target")
    third = tmp_path / "third"
    git(second, "worktree", "add", "-q", "--detach", str(third))
    prepared = cow(third, tmp_path, "prepare", "--from", str(second))
    assert prepared.status == 0, prepared.output
    assert _identity(third) == str(main)
    assert _first_edit_is_incremental(third, _by_cow(tmp_path))
    # And back: there no namespace is needed at all.
    git(main, "checkout", "-q", "--detach", git(second, "rev-parse", "HEAD"))
    settle()
    assert cow(main, tmp_path, "prepare", "--from", str(second)).status == 0
    assert _identity(main) is None
    assert _first_edit_is_incremental(main, lambda where: cargo(where, tmp_path, "build"))


def test_a_state_carries_the_identity(main: Path, tmp_path: Path) -> None:
    there = _add(main, tmp_path / "there", tmp_path)
    _edit(there, 3)
    assert cow(there, tmp_path, "build").status == 0
    made = cow(there, tmp_path, "snapshot", "create", "kept", "--copy")
    assert made.status == 0, made.output
    other = tmp_path / "other"
    git(main, "worktree", "add", "-q", "--detach", str(other))
    write(other, {"src/many.rs": (there / "src/many.rs").read_text()})
    activated = cow(other, tmp_path, "snapshot", "activate", "kept")
    assert activated.status == 0, activated.output
    assert _identity(other) == str(main)
    assert _first_edit_is_incremental(other, _by_cow(tmp_path))


@pytest.mark.usefixtures("_namespaces")
def test_a_worktree_without_donor_is_compiled_as_the_main_checkout(tmp_path: Path) -> None:
    main = repository(tmp_path / "main", FILES)
    first = _add(main, tmp_path / "first", tmp_path)
    assert _identity(first) == str(main)
    assert cow(first, tmp_path, "build").status == 0
    assert cow(main, tmp_path, "prepare").status == 0
    assert _identity(main) is None
    assert _first_edit_is_incremental(main, lambda where: cargo(where, tmp_path, "build"))


def test_a_worktree_that_was_built_where_it_is_stays_there(main: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    git(main, "worktree", "add", "-q", "--detach", str(there))
    assert cargo(there, tmp_path, "build").status == 0
    assert cow(there, tmp_path, "build").status == 0
    assert _wish(there) is None
    assert _first_edit_is_incremental(there, _by_cow(tmp_path))
    # What is cloned from it takes its place.
    shutil.rmtree(main / "target")
    other = _add(there, tmp_path / "other", tmp_path)
    assert _identity(other) == str(there)
    _edit(other, 7)
    assert not _first_edit_is_incremental(other, _by_cargo(tmp_path, CARGO_COW_IDENTITY="off"))


def test_where_plain_cargo_compiles_without_the_shim_too(main: Path, tmp_path: Path) -> None:
    """At two paths in turn, each compile would lose what the one before it made."""
    there = _add(main, tmp_path / "there", tmp_path)
    assert _first_edit_is_incremental(there, _by_cow(tmp_path))
    assert cow(there, tmp_path, "build").status == 0
    assert _identity(there) == str(main)
    plain = lambda where: cargo(where, tmp_path, "build")  # noqa: E731
    assert not _first_edit_is_incremental(there, plain, number=8)
    assert cow(there, tmp_path, "build").status == 0
    assert _first_edit_is_incremental(there, _by_cow(tmp_path), number=9)
    assert _wish(there) is None
    assert _first_edit_is_incremental(there, plain, number=10)
    assert "plain Cargo compiles here" not in cow(main, tmp_path, "status", "--no-sizes").output


def test_a_worktree_that_moves_keeps_its_state(main: Path, tmp_path: Path) -> None:
    there = _add(main, tmp_path / "there", tmp_path)
    moved = tmp_path / "moved"
    git(main, "worktree", "move", str(there), str(moved))
    wish = _wish(moved)
    assert wish is not None
    assert wish["checkout"] == str(there)
    assert cow(moved, tmp_path, "build").status == 0
    assert _wish(moved) == {"format": 1, "checkout": str(moved), "identity": str(main)}
    assert _first_edit_is_incremental(moved, _by_cow(tmp_path))


def test_the_main_checkout_has_moved(main: Path, tmp_path: Path) -> None:
    there = _add(main, tmp_path / "there", tmp_path)
    moved = tmp_path / "moved"
    main.rename(moved)
    git(moved, "worktree", "repair", str(there))
    for number in (1, 2):
        _edit(there, number)
        built = cow(there, tmp_path, "build")
        assert built.status == 0, built.output
    assert _identity(there) == str(moved)
    assert _first_edit_is_incremental(there, _by_cow(tmp_path))
    # In the moved one nothing is asked for: its own path is as good as any.
    assert cow(moved, tmp_path, "build").status == 0
    assert _wish(moved) is None


@pytest.mark.usefixtures("_namespaces")
def test_a_bare_repository(tmp_path: Path) -> None:
    """No main checkout: all worktrees are seen at one place, whichever of them goes."""
    seed = repository(tmp_path / "seed", FILES)
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "-q", "--bare", str(seed), str(bare))
    shutil.rmtree(seed)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    git(bare, "worktree", "add", "-q", "--detach", str(first))
    fixed = str(bare / identity.OWN)
    assert cow(first, tmp_path, "build").status == 0
    assert _identity(first) == fixed
    _add(first, second, tmp_path)
    assert _identity(second) == fixed
    git(bare, "worktree", "remove", "--force", str(first))
    assert _first_edit_is_incremental(second, _by_cow(tmp_path))
    git(second, "commit", "-qam", "edited")
    _add(second, third, tmp_path)
    assert _identity(third) == fixed
    assert _first_edit_is_incremental(third, _by_cow(tmp_path))
    assert not list(Path(fixed).iterdir())


@pytest.mark.parametrize("inside", [".worktrees/x", ".claude/worktrees/x"])
def test_a_worktree_inside_of_the_main_checkout(main: Path, tmp_path: Path, inside: str) -> None:
    # A name on the way there is a directory of the checkout, too.
    write(main, {".claude/settings.json": "{}", "link/of": "it"})
    (main / "to").symlink_to("link")
    git(main, "add", "-A")
    git(main, "commit", "-qm", "more")
    there = _add(main, main / inside, tmp_path)
    assert _identity(there) == str(main)
    before = sorted(path for path in there.rglob("*") if "target" not in path.parts)
    assert _first_edit_is_incremental(there, _by_cow(tmp_path))
    assert _first_edit_is_incremental(there, _by_cargo(tmp_path), number=8)
    assert before == sorted(path for path in there.rglob("*") if "target" not in path.parts)
    assert cargo(there, tmp_path, "build").rustc == []
    for path in there.glob("target/debug/**/*.d"):
        text = path.read_text()
        assert str(main) not in text.replace(str(there), ""), path
    # Beside it, and in the main checkout, everything is as it was.
    other = _add(main, main / f"{inside}2", tmp_path)
    assert _first_edit_is_incremental(other, _by_cow(tmp_path))
    assert cargo(main, tmp_path, "build").rustc == []


def test_a_target_outside_of_the_checkout(main: Path, tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    of_main, of_there = caches / "main", caches / "there"
    assert cargo(main, tmp_path, "build", CARGO_TARGET_DIR=str(of_main)).status == 0
    there = tmp_path / "there"
    git(main, "worktree", "add", "-q", "--detach", str(there))
    write(main, {".cargo/config.toml": f'[build]\ntarget-dir = "{of_main}"\n'})
    write(there, {".cargo/config.toml": f'[build]\ntarget-dir = "{of_there}"\n'})
    assert cow(there, tmp_path, "prepare").status == 0
    assert _wish(there) == {
        "format": 1,
        "checkout": str(there),
        "identity": str(main),
        "build_dir": str(of_there),
        "build_dir_identity": str(of_main),
    }
    (there / "target").symlink_to(of_there)
    assert _first_edit_is_incremental(there, _by_cow(tmp_path))


def test_a_shared_target_in_the_main_checkout(main: Path, tmp_path: Path) -> None:
    """It would be hidden at the identity."""
    there = tmp_path / "there"
    git(main, "worktree", "add", "-q", "--detach", str(there))
    write(there, {".cargo/config.toml": f'[build]\ntarget-dir = "{main}/target"\n'})
    _edit(there, 5)
    built = cow(there, tmp_path, "build")
    assert built.status == 0, built.output
    wish = _wish(there)
    assert wish is None or wish["identity"] != str(main)


def test_nothing_can_be_written(main: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    git(main, "worktree", "add", "-q", "--detach", str(there))
    git_dir = Path(git(there, "rev-parse", "--absolute-git-dir"))
    (git_dir / "cargo-cow").write_text("in the way")
    prepared = cow(there, tmp_path, "prepare", "--format", "json")
    assert prepared.status == 0, prepared.output
    assert _first_edit_is_incremental(there, _by_cow(tmp_path)) is False


# --- what others say -------------------------------------------------------------------------


def test_uninstall_and_removal_take_it_away(main: Path, tmp_path: Path) -> None:
    there = _add(main, tmp_path / "there", tmp_path)
    other = _add(main, tmp_path / "other", tmp_path)
    git_dir = Path(git(other, "rev-parse", "--absolute-git-dir"))
    assert cow(main, tmp_path, "worktree", "remove", str(other)).status == 0
    assert not git_dir.exists()
    taken = cow(main, tmp_path, "uninstall")
    assert taken.status == 0, taken.output
    assert _wish(there) is None


def test_it_is_told(main: Path, tmp_path: Path) -> None:
    there = _add(main, tmp_path / "there", tmp_path)
    log = tmp_path / "log"
    assert cow(there, tmp_path, "prepare", CARGO_COW_LOG=str(log)).status == 0
    assert f"identity of {there}: {main} (its target was built there)" in log.read_text()
    status = cow(there, tmp_path, "status", "--no-sizes")
    assert f"{main} (its target was built there)" in status.output
    value = json.loads(cow(there, tmp_path, "prepare", "--format", "json").output)
    assert value["identity"]["in_use"]
    doctor = cow(there, tmp_path, "doctor").output
    assert "plain cargo runs rustc without our shim" in doctor
    wrapped = cow(there, tmp_path, "doctor", RUSTC_WRAPPER=str(native.program())).output
    assert f"rustc sees this checkout at {main}" in wrapped
    off = cow(there, tmp_path, "doctor", **{identity.SWITCH: "off"}).output
    assert "switched off" in off
    assert "main checkout" in cow(main, tmp_path, "status", "--no-sizes").output


def test_what_is_planned_is_not_done(main: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    git(main, "worktree", "add", "-q", "--detach", str(there))
    planned = cow(there, tmp_path, "prepare", "--dry-run", "--format", "json")
    assert planned.status == 0
    assert _wish(there) is None


def test_outside_git() -> None:
    place = Place("/nowhere", "/nowhere", "/nowhere/target", None, None, 0, {}, ())
    assert not identity.settle(place).in_use


def test_place_knows_its_git_directories(main: Path, tmp_path: Path) -> None:
    there = _add(main, tmp_path / "there", tmp_path)
    place = place_of(workspace.load(there))
    assert place.git_dir == git(there, "rev-parse", "--absolute-git-dir")
    assert place.common_dir == str(main / ".git")
    assert identity.seen_by(place) == Seen(str(main), str(main / "target"))


# --- never confused --------------------------------------------------------------------------

SUSPICIOUS = {
    "Cargo.toml": '[workspace]\nmembers = ["util", "app"]\nresolver = "2"\n',
    "util/Cargo.toml": '[package]\nname = "util"\nversion = "0.1.0"\nedition = "2021"\n',
    "util/src/lib.rs": (
        "#[track_caller]\npub fn place() -> String { std::panic::Location::caller().to_string() }\n"
        "pub fn number(x: u32) -> u32 { x + 1 }\n"
    ),
    "app/Cargo.toml": (
        '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
        '[dependencies]\nutil = { path = "../util" }\n'
    ),
    "app/build.rs": (
        'fn main() {\n    println!("cargo::rerun-if-changed=build.rs");\n'
        '    let out = std::env::var("OUT_DIR").unwrap();\n'
        '    std::fs::write(format!("{out}/gen.rs"), "pub fn made() -> u32 { 1 }").unwrap();\n'
        '    std::fs::write(format!("{out}/data.txt"), "data").unwrap();\n}\n'
    ),
    "app/src/main.rs": (
        'include!(concat!(env!("OUT_DIR"), "/gen.rs"));\n'
        'fn main() { println!("{} {}", made(), util::number(0)); }\n'
    ),
    "app/tests/files.rs": (
        "use std::path::Path;\n"
        'const ROOT: &str = env!("CARGO_MANIFEST_DIR");\n'
        "#[test]\nfn opens_its_own_files() {\n"
        '    assert!(Path::new(ROOT).join("tests/files.rs").exists());\n'
        '    let data = std::fs::read_to_string(concat!(env!("OUT_DIR"), "/data.txt"));\n'
        '    assert_eq!(data.unwrap(), "data");\n'
        "    // As snapshot tests find their files: the package's root, and where the call is.\n"
        "    let mut above = Path::new(ROOT).ancestors();\n"
        "    let workspace = above.find(|p| p.join(file!()).exists()).unwrap();\n"
        '    assert!(workspace.join("util/src/lib.rs").exists());\n'
        '    assert_eq!(util::place(), format!("{}:{}:{}", file!(), line!(), 16));\n'
        "}\n"
        "#[test]\nfn runs_its_own_program() {\n"
        '    let path = env!("CARGO_BIN_EXE_app");\n'
        "    assert!(path.starts_with(Path::new(ROOT).parent().unwrap().to_str().unwrap()));\n"
        "    let said = std::process::Command::new(path).output().unwrap().stdout;\n"
        '    assert_eq!(String::from_utf8(said).unwrap(), "1 1\\n");\n'
        "}\n"
        "#[test]\nfn panics_here() {\n"
        "    std::panic::set_hook(Box::new(|info| {\n"
        '        assert_eq!(info.location().unwrap().file(), "app/tests/files.rs");\n'
        "    }));\n"
        "    assert!(std::panic::catch_unwind(|| panic!()).is_err());\n"
        "}\n"
    ),
}


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_built_needs_nothing_of_the_main_checkout(tmp_path: Path, inside: bool) -> None:
    main = repository(tmp_path / "main", SUSPICIOUS)
    no_debug = {"CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_PROFILE_TEST_DEBUG": "0"}
    assert cargo(main, tmp_path, "test", "--no-run", **no_debug).status == 0
    settle()
    there = _add(main, main / ".trees/there" if inside else tmp_path / "there", tmp_path)
    text = (there / "util/src/lib.rs").read_text()
    (there / "util/src/lib.rs").write_text(text.replace("x + 1", "x + 2 - 1"))
    log = tmp_path / "log"
    built = cow(there, tmp_path, "test", "--no-run", CARGO_COW_LOG=str(log), **no_debug)
    assert built.status == 0, built.output
    # util and its tests, app, its tests and the integration test
    assert log.read_text().count("identity: ran") == 5
    programs = [
        path
        for path in (there / "target/debug/deps").iterdir()
        if os.access(path, os.X_OK) and path.suffix == "" and path.is_file()
    ]
    assert len(programs) == 4
    elsewhere = os.fsencode(main)
    for path in programs:
        at = -1
        data = path.read_bytes()
        while (at := data.find(elsewhere, at + 1)) >= 0:
            assert data[at:].startswith(os.fsencode(there)), (path, data[at : at + 99])
    moved = main if inside else main.rename(tmp_path / "away")
    for name in () if not inside else ("util", "app", "target", "Cargo.toml"):
        (moved / name).rename(tmp_path / name)
    for path in programs:
        done = subprocess.run(
            [path], cwd=there / "app", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


# By a path relative to its working directory.
_READS = """use proc_macro::TokenStream;
#[proc_macro]
pub fn beyond(_: TokenStream) -> TokenStream {
    let told = std::fs::read_to_string("../beyond").unwrap_or("none".into());
    format!("{told:?}").parse().unwrap()
}
"""


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("show", ['include_str!("../../beyond")', "reads::beyond!()"])
def test_what_lies_beyond_the_checkout_is_that_of_here(tmp_path: Path, show: str) -> None:
    """A relative path leads beyond the identity elsewhere than beyond the checkout."""
    package = '[package]\nname = "{}"\nversion = "0.1.0"\nedition = "2021"\n{}'
    main_rs = 'fn main() {{ println!("{{}}", {}); }}\n'.format
    files = {
        "Cargo.toml": package.format("app", '[dependencies]\nreads.path = "reads"\n'),
        "src/main.rs": main_rs(show),
        "reads/Cargo.toml": package.format("reads", "[lib]\nproc-macro = true\n"),
        "reads/src/lib.rs": _READS,
    }
    write(tmp_path, {"here/beyond": "there is none", "there/beyond": "first"})
    main = repository(tmp_path / "here/main", files)
    there = tmp_path / "there/w"
    shim = {"RUSTC_WRAPPER": str(native.program())}
    assert _by_cow(tmp_path, **shim)(main).status == 0
    _add(main, there, tmp_path)
    log = tmp_path / "log"

    def told() -> str:
        settle()
        built = _by_cow(tmp_path, CARGO_COW_LOG=str(log), **shim)(there)
        assert built.status == 0, built.output
        return subprocess.run(
            [there / "target/debug/app"], check=True, capture_output=True, text=True
        ).stdout.strip()

    # Known from the clone, then not known before the compile.
    assert told() == "first"
    for again in range(2):
        write(there, {"src/main.rs": main_rs(f'"none{again}"')})
        assert told() == f"none{again}"
    assert "identity: ran in" in log.read_text()
    write(there, {"src/main.rs": main_rs(show) + "// again\n"})
    assert told() == "first"
    assert "identity: given up" in log.read_text()
    settle()
    write(tmp_path, {"there/beyond": "second"})
    assert told() == "second"
