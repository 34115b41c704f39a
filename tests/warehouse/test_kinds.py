"""Which kinds of calls the warehouse answers: check, clippy, shared objects without a hash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.projects import cargo

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


# -- libraries whose files carry no hash

# A program, its tests and a library between, above a library that is a shared object as well.
BOTH = {
    "Cargo.toml": '[workspace]\nmembers = ["leaf", "both", "mid", "app"]\nresolver = "2"\n',
    "leaf/Cargo.toml": PACKAGE.format("leaf", "[features]\nmore = []\n"),
    "leaf/src/lib.rs": """
pub fn leaf() -> &'static str { if cfg!(feature = "more") { "more" } else { "l1" } }
""",
    "both/Cargo.toml": PACKAGE.format(
        "both",
        '[lib]\ncrate-type = ["cdylib", "rlib"]\n[features]\nx = []\n'
        '[dependencies]\nleaf = { path = "../leaf" }\n',
    ),
    "both/src/lib.rs": """
const X: &str = if cfg!(feature = "x") { "x" } else { "" };
pub fn both() -> String { format!("{}{X}", leaf::leaf()) }
#[unsafe(no_mangle)] pub extern "C" fn answer() -> u32 { 41 }
#[test] fn itself() { assert!(both().len() > 1) }
""",
    "both/tests/outside.rs": "#[test] fn outside() { assert!(both::both().len() > 1) }\n",
    "mid/Cargo.toml": PACKAGE.format("mid", '[dependencies]\nboth = { path = "../both" }\n'),
    "mid/src/lib.rs": 'pub fn mid() -> String { format!("<{}>", both::both()) }\n',
    "app/Cargo.toml": PACKAGE.format(
        "app",
        '[dependencies]\nmid = { path = "../mid" }\nleaf = { path = "../leaf" }\n'
        '[features]\nx = ["both/x"]\nmore = ["leaf/more"]\n'
        '[dependencies.both]\npath = "../both"\n',
    ),
    "app/src/main.rs": 'fn main() { println!("{} {}", mid::mid(), both::both()); }\n',
}
DYLIB = BOTH | {"both/Cargo.toml": BOTH["both/Cargo.toml"].replace('"cdylib", "rlib"', '"dylib"')}
DYLIB_TOO = BOTH | {"both/Cargo.toml": BOTH["both/Cargo.toml"].replace('"cdylib"', '"dylib"')}


_DYNAMIC = "-C prefer-dynamic"


def _told(project: Path) -> str:
    libraries = ":".join([f"{project}/target/debug/deps", _LIBRARIES])
    return subprocess.check_output(
        [project / "target/debug/app"], text=True, env={"LD_LIBRARY_PATH": libraries}
    ).strip()


_LIBRARIES = subprocess.check_output(["rustc", "--print=target-libdir"], text=True).strip()


@pytest.mark.parametrize(
    ("files", "flags"),
    [(BOTH, ""), (DYLIB, _DYNAMIC), (DYLIB_TOO, ""), (DYLIB_TOO, _DYNAMIC)],
    ids=["cdylib", "dylib", "dylib+rlib", "dylib+rlib-dynamic"],
)
def test_a_library_without_a_hash(
    place: Place, files: dict[str, str], flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is above it knows its file by a name that says nothing of what is below it."""
    monkeypatch.setenv("RUSTFLAGS", flags)
    project = place.project("main", files)
    place.build(project, "test", "--no-run")
    place.build(project)
    assert place.reasons("passed") == place.reasons("not-kept") == []
    first = _told(project)
    assert first == "<l1> l1"
    shutil.rmtree(project / "target")
    assert place.build(project).rustc == []
    assert place.build(project, "test", "--no-run").rustc == []
    assert _told(project) == first
    assert cargo(project, place.scratch, "test").status == 0
    # A feature more, below it and of it, and back: the same names, and each time other units.
    said: dict[str, str] = {}
    for _ in range(2):
        for features in ("", "x,more"):
            built = place.build(project, "build", "-p", "app", "--features", features)
            assert said.setdefault(features, _told(project)) == _told(project)
            assert _told(project) == _clean(place, files, features)
    assert built.rustc == []
    assert len(set(said.values())) == 2


_answers: dict[tuple[str, str], str] = {}


def _clean(place: Place, files: dict[str, str], features: str) -> str:
    """What a program says that was built without us in a target of its own."""
    name = f"clean-{len(_answers)}"
    known = (files["both/Cargo.toml"], features)  # whatever the flags
    if known not in _answers:
        other = place.project(name, files)
        arguments = ("build", "-p", "app", "--features", features)
        assert cargo(other, place.scratch, *arguments).status == 0
        _answers[known] = _told(other)
    return _answers[known]


@pytest.mark.parametrize("files", [BOTH, DYLIB_TOO], ids=["cdylib", "dylib+rlib"])
def test_what_is_below_a_library_without_a_hash(place: Place, files: dict[str, str]) -> None:
    """It changes while nobody writes down anything; then another puts a file in its place."""
    project = place.project("main", files)
    place.build(project)
    leaf = project / "leaf/src/lib.rs"
    leaf.write_text(files["leaf/src/lib.rs"].replace("l1", "l2"))
    assert "app" in place.build(project).rustc
    assert _told(project) == "<l2> l2"
    # Without us in between: the ledger says nothing of what lies there now.
    leaf.write_text(files["leaf/src/lib.rs"].replace("l1", "l3"))
    assert cargo(project, place.scratch, "build").status == 0
    number = len(place.events())
    (project / "app/src/main.rs").write_text(files["app/src/main.rs"].replace("{} {}", "{}+{}"))
    assert place.build(project).rustc == ["app"]
    assert _told(project) == "<l3>+l3"
    unknown = [event["reason"] for event in place.events()[number:]]
    assert [reason for reason in unknown if "is not known" in str(reason)], unknown
    # Back on what was there at first.
    leaf.write_text(files["leaf/src/lib.rs"])
    (project / "app/src/main.rs").write_text(files["app/src/main.rs"])
    assert place.build(project).rustc == []
    assert _told(project) == "<l1> l1"
