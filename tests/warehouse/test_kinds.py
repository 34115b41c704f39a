"""Which kinds of calls the warehouse answers: check, clippy, shared objects without a hash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import PACKAGE, Place, user


def _since(place: Place, number: int) -> list[tuple[str, str]]:
    return sorted((str(one["what"]), str(one["crate"])) for one in place.events()[number:])


def test_what_was_checked_is_checked_for_other_projects(place: Place, dependencies: Path) -> None:
    one = place.project("one", user("one", dependencies))
    two = place.project("two", user("two", dependencies))
    place.build(one, "check")
    built = place.build(two, "check")
    # What bakes where it was made is made anew.
    assert built.rustc == ["baked", "two"]
    assert place.build(two, "check").rustc == []


# -- clippy

LINTED = {
    "Cargo.toml": PACKAGE.format("linted", ""),
    "src/lib.rs": "pub fn double(x: &Vec<u8>) -> usize { return x.len() * 2; }\n",
}
HIT = ["hit"]
MADE = ["kept", "miss"]


@pytest.fixture
def linted(place: Place) -> Path:
    project = place.project("linted", LINTED)
    assert "needless_return" in place.build(project, "clippy").output
    return project


def _relinted(
    place: Place, project: Path, *arguments: str, verb: str = "clippy", **extra: str
) -> list[str]:
    """What became of the one call of a clippy on an empty target."""
    shutil.rmtree(project / "target")
    number = len(place.events())
    place.build(project, verb, *arguments, **extra)
    return sorted(str(one["what"]) for one in place.events()[number:])


def test_clippy_says_again_what_it_said(place: Place, linted: Path) -> None:
    assert _relinted(place, linted) == HIT
    # Said once more by Cargo, from what the shim said; and again by the shim.
    for output in (place.build(linted, "clippy").output, place.build(linted, "clippy").output):
        assert output.count("unneeded `return` statement") == 1
        assert output.count("writing `&Vec` instead of `&[_]`") == 1
    # What rustc checked is something else than what clippy did.
    assert _relinted(place, linted, verb="check") == MADE


def test_what_clippy_goes_by(place: Place, linted: Path) -> None:
    # Its arguments.
    assert _relinted(place, linted, "--", "-Aclippy::needless_return") == MADE
    # A configuration that was not there, a changed one, one that is named.
    (linted.parent / "clippy.toml").write_text("too-many-lines-threshold = 9\n")
    assert _relinted(place, linted) == MADE
    assert _relinted(place, linted) == HIT
    (linted.parent / "clippy.toml").write_text("too-many-lines-threshold = 8\n")
    assert _relinted(place, linted) == MADE
    (linted.parent / "elsewhere").mkdir()
    named = str(linted.parent / "elsewhere")
    assert _relinted(place, linted, CLIPPY_CONF_DIR=named) == MADE
    # A manifest, which lints read.
    manifest = linted / "Cargo.toml"
    manifest.write_text(manifest.read_text() + "# more\n")
    assert _relinted(place, linted) == MADE


def test_lints_of_all_manifests_are_clippys_alone(place: Place, linted: Path) -> None:
    assert _relinted(place, linted, "--", "-Wclippy::cargo") == ["passed"]
    source = linted / "src/lib.rs"
    source.write_text("#![warn(clippy::wildcard_dependencies)]\n" + source.read_text())
    assert _relinted(place, linted) == ["miss", "not-kept"]


def test_another_clippy_is_another_compiler(place: Place, linted: Path) -> None:
    """By its content: the same toolchain elsewhere, then with one byte more in its driver."""
    sysroot = Path(subprocess.check_output(["rustc", "--print=sysroot"], text=True).strip())
    other = place.root / "toolchain"
    (other / "lib").mkdir(parents=True)
    (other / "bin").mkdir()
    for name in ("lib/rustlib", *(str(p.relative_to(sysroot)) for p in sysroot.glob("lib/lib*"))):
        (other / name).symlink_to(sysroot / name)
    wrapper = other / "bin/clippy-driver"
    shutil.copy2(sysroot / "bin/clippy-driver", wrapper)
    extra = {"RUSTC_WORKSPACE_WRAPPER": str(wrapper)}
    assert _relinted(place, linted, verb="check", **extra) == MADE, place.reasons("not-kept")
    with wrapper.open("ab") as file:
        file.write(b"\0")
    assert _relinted(place, linted, verb="check", **extra) == MADE
    assert _relinted(place, linted, verb="check", **extra) == HIT


def test_another_workspace_wrapper_is_left_alone(place: Place) -> None:
    wrapper = place.root / "wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o755)
    project = place.project("linted", LINTED)
    place.build(project, "check", RUSTC_WORKSPACE_WRAPPER=str(wrapper))
    assert place.reasons("passed") == ["another wrapper"]


# -- shared objects


@pytest.mark.parametrize("kinds", ['"cdylib"', '"cdylib", "staticlib"'])
def test_a_shared_object_without_a_hash(place: Place, kinds: str) -> None:
    files = {
        "Cargo.toml": PACKAGE.format("shared", f"[lib]\ncrate-type = [{kinds}]\n"),
        "src/lib.rs": '#[unsafe(no_mangle)] pub extern "C" fn answer() -> u32 { 41 }\n',
    }
    project = place.project("shared", files)
    made = project / "target/debug/libshared.so"
    place.build(project)
    (project / "src/lib.rs").write_text(files["src/lib.rs"].replace("41", "42"))
    place.build(project)
    second = made.read_bytes()
    shutil.rmtree(project / "target")
    assert place.build(project).rustc == []
    assert made.read_bytes() == second
    assert made.stat().st_mode & 0o111
    assert place.build(project).rustc == []
    # Back on what was there before.
    (project / "src/lib.rs").write_text(files["src/lib.rs"])
    assert place.build(project).rustc == []
    assert made.read_bytes() != second


def test_metadata_of_a_dylib_is_linked_by_nobody(place: Place) -> None:
    files = {
        "Cargo.toml": PACKAGE.format("both", '[lib]\ncrate-type = ["dylib", "rlib"]\n'),
        "src/lib.rs": "pub fn both() {}\n",
        "src/main.rs": "fn main() { both::both(); }\n",
    }
    project = place.project("both", files)
    place.build(project, "check")
    shutil.rmtree(project / "target")
    assert place.build(project, "check").rustc == []


def test_a_library_without_a_hash_is_the_compilers_alone(place: Place) -> None:
    """Who links it knows its file by a name that says nothing of what is below it."""
    files = {
        "Cargo.toml": PACKAGE.format("both", '[lib]\ncrate-type = ["cdylib", "rlib"]\n'),
        "src/lib.rs": "pub fn both() {}\n",
    }
    place.build(place.project("both", files))
    assert place.reasons("passed") == ["its files carry no hash"]
