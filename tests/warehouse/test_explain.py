"""``cargo cow explain`` for what the warehouse did not have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cargo_cow.warehouse import explaining
from cargo_cow.warehouse.explaining import Difference
from tests.support.projects import SOURCE, cow, settle, write

from .conftest import PACKAGE, Place
from .test_grafting import QUIET, graft, names
from .test_grafting import build as build_with_graft

LIBRARY = {
    "Cargo.toml": PACKAGE.format("library", "[features]\nmore = []\n"),
    "src/lib.rs": "mod inner;\n"
    "pub fn mark() -> (&'static str, Option<&'static str>) { (inner::A, option_env!(\"MARK\")) }\n",
    "src/inner.rs": 'pub const A: &str = "a";\n',
}


def explained(place: Place, project: Path, *words: str, text: bool = False) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "cargo_cow", "explain", *words, "--store", str(place.store)]
        + ([] if text else ["--format", "json"]),
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout if text else json.loads(done.stdout)["warehouse"]


def differences(missed: list[dict[str, Any]], unit: str = "debug/library-") -> list[str]:
    (one,) = [one for one in missed if one["unit"].startswith(unit) and one["nearest"]]
    return [str(difference["text"]) for difference in one["differences"]]


@pytest.fixture
def library(place: Place) -> Path:
    project = place.project("library", LIBRARY)
    place.build(project)
    return project


def test_nothing_like_it(place: Place, library: Path) -> None:
    (one,) = explained(place, library)
    assert (one["crate"], one["package"], one["reason"]) == ("library", "library 0.1.0", "new")
    assert (one["nearest"], one["differences"]) == (None, [])
    said = explained(place, library, text=True)
    assert "1 more units were compiled because the warehouse had no entry" in said
    assert "had no entry of this crate" in explained(place, library, "library", text=True)
    # What comes back is no miss.
    shutil.rmtree(library / "target")
    assert place.build(library).rustc == []
    assert explained(place, library) == []


def test_a_unit_that_came_whole_is_no_miss(place: Place, library: Path) -> None:
    shutil.rmtree(library / "target")
    environment = place.environment(CARGO_COW_KEEP="wait")
    assert cow(library, place.scratch, "build", **environment).status == 0
    (library / "src/inner.rs").write_text('pub const A: &str = "b";\n')
    settle()
    assert cow(library, place.scratch, "build", **environment).status == 0
    assert len(explained(place, library)) == 1
    shutil.rmtree(library / "target")
    assert cow(library, place.scratch, "build", **environment).status == 0
    assert explained(place, library) == []


def test_what_was_read(place: Place, library: Path) -> None:
    (library / "src/inner.rs").write_text('pub const A: &str = "b";\n')
    place.build(library, MARK="x")
    assert differences(explained(place, library)) == [
        "file src/inner.rs has another content",
        "variable MARK is 'x', was not set",
    ]
    place.build(library, MARK="y")
    assert differences(explained(place, library)) == ["variable MARK was 'x', is 'y'"]
    # A module moves; and what was to be compiled cannot be.
    (library / "src/inner").mkdir()
    (library / "src/inner.rs").rename(library / "src/inner/mod.rs")
    place.build(library, MARK="y")
    assert set(differences(explained(place, library))) == {
        "file src/inner.rs is not there any more",
        "file src/inner/mod.rs is new",
        "src/inner/mod.rs is there, which was not",
    }
    (library / "src/lib.rs").write_text("mod inner; broken!")
    with pytest.raises(AssertionError):
        place.build(library, MARK="y")
    assert differences(explained(place, library)) == ["file src/lib.rs has another content"]


def test_what_was_asked_for(place: Place, library: Path) -> None:
    place.build(library, "build", "--features", "more", CARGO_PROFILE_DEV_OPT_LEVEL="3")
    (one,) = [one for one in explained(place, library) if one["nearest"]]
    texts = {str(difference["text"]) for difference in one["differences"]}
    assert "never built with -C opt-level 3" in texts  # Cargo leaves 0 out
    assert 'never built with --cfg feature="more"' in texts
    assert not any("metadata" in text for text in texts)
    said = explained(place, library, text=True)
    assert "nearest entry, kept just now" in said
    # Another version.
    manifest = library / "Cargo.toml"
    manifest.write_text(manifest.read_text().replace("0.1.0", "0.2.0"))
    place.build(library)
    assert differences(
        [one for one in explained(place, library) if one["package"] == "library 0.2.0"]
    )[0] == ("another version: library 0.1.0 then, library 0.2.0 now")


def test_a_dependency_that_is_another_build(place: Place) -> None:
    files = {
        "Cargo.toml": '[workspace]\nmembers = ["above", "below"]\nresolver = "2"\n',
        "below/Cargo.toml": PACKAGE.format("below", ""),
        "below/src/lib.rs": "pub fn b() -> u8 { 1 }\n",
        "above/Cargo.toml": PACKAGE.format("above", '[dependencies]\nbelow.path = "../below"\n'),
        "above/src/lib.rs": "pub fn a() -> u8 { below::b() }\n",
    }
    project = place.project("two", files)
    place.build(project)
    (project / "below/src/lib.rs").write_text("pub fn b() -> u8 { 2 }\n")
    place.build(project)
    (text,) = differences(explained(place, project), "debug/above-")
    assert text.startswith("dependency libbelow-")
    assert text.endswith(" is another build")
    # Of a clone these notes are not true: there nothing was asked for.
    shutil.copytree(project, place.root / "copy")
    assert explained(place, place.root / "copy") == []


def test_what_the_warehouse_is_not_for(place: Place) -> None:
    files = {
        "Cargo.toml": PACKAGE.format("library", '[lib]\ncrate-type = ["dylib"]\n'),
        "src/lib.rs": "pub fn a() {}\n",
    }
    project = place.project("library", files)
    place.build(project, "check", RUSTFLAGS="-C save-temps")
    (said,) = explained(place, project)
    assert (said["what"], said["reason"]) == ("passed", "-C save-temps")
    said = explained(place, project, "library", text=True)
    assert "the warehouse is not for this call: -C save-temps" in said


def test_which_part_of_the_compiler_is_another(place: Place) -> None:
    sysroot = Path(subprocess.check_output(["rustc", "--print=sysroot"], text=True).strip())
    other = place.root / "toolchain"
    (other / "lib").mkdir(parents=True)
    (other / "bin").mkdir()
    for path in (sysroot / "lib/rustlib", *sysroot.glob("lib/lib*")):
        (other / "lib" / path.name).symlink_to(path)
    shutil.copy2(sysroot / "bin/rustc", other / "bin/rustc")
    project = place.project("library", LIBRARY)
    compiler = {"RUSTC": str(other / "bin/rustc")}
    place.build(project, "check", **compiler)
    with (other / "bin/rustc").open("ab") as file:
        file.write(b"\0")
    shutil.rmtree(project / "target")
    place.build(project, "check", **compiler)
    assert differences(explained(place, project)) == ["another compiler, by its content: rustc"]
    (other / "lib/libLLVM-patched.so").write_text("of another build")
    shutil.rmtree(project / "target")
    place.build(project, "check", **compiler)
    assert differences(explained(place, project)) == ["another compiler, by its content: LLVM"]


def test_parts_in_words() -> None:
    def told(kind: str, before: str | None, after: str | None) -> list[str]:
        def entry(text: str | None) -> dict[str, Any]:
            parts = [] if text is None else [[kind, text]]
            return {"parts": parts, "package": "p", "version": "1"}

        note = {**entry(after), "package": "p 1"}
        return [str(one) for one in explaining._parts(entry(before), note)]

    assert told("word", "-C opt-level=0", "-C opt-level=3") == [
        "never built with these arguments: -C opt-level 3 instead of 0"
    ]
    assert told("word", "-C metadata=1", "-C metadata=2") == [
        "never built with these arguments: -C metadata 2 instead of 1"
    ]
    assert told("word", None, "--test") == ["never built with --test"]
    assert told("word", "-C debuginfo=2", None) == [
        "it was built with -C debuginfo 2, which is not asked for now"
    ]
    assert told("variable", "A=1", "A=2") == ["variable A was '1', is '2'"]
    assert told("variable", "A_TOKEN#01", "A_TOKEN#02") == ["variable A_TOKEN has another value"]
    assert told("linker", "ld /usr/bin/ld 1 2 3", "ld /usr/bin/ld 1 2 4") == [
        "linker ld: /usr/bin/ld changed"
    ]
    assert told("extern", "serde libserde-1.rlib 0a", "serde libserde-1.rlib 0b") == [
        "dependency libserde-1.rlib is another build"
    ]
    assert told("below", "libc-1.rlib 0a", "libc-1.rlib 0b") == [
        "further below, libc-1.rlib is another build"
    ]
    assert told("compiler", "01", "02") == [str(Difference("compiler", "", "01", "02"))]
    assert told("something-later", "a 01", "a 02") == ["something-later a has another content"]
    # In another place, what is the same there is no difference.
    here = [["directory", "/a"], ["package", "/a/p"], ["manifest", "/a/p/Cargo.toml 01"]]
    there = [["directory", "/b"], ["package", "/b/p"], ["manifest", "/b/p/Cargo.toml 01"]]
    found = explaining._parts(
        {"parts": here, "package": "p", "version": "1"}, {"parts": there, "package": "p 1"}
    )
    assert [str(one) for one in found] == ["it belongs to another place: /a, not /b"]
    # Two of a kind stay two.
    two = {"parts": [["x", "a 1"], ["x", "a 2"]], "package": "p", "version": "1"}
    one = {"parts": [["x", "a 1"]], "package": "p 1"}
    assert [str(found) for found in explaining._parts(two, one)] == [
        "x a (2) is not there any more"
    ]


def _grafts(place: Place, project: Path, *words: str) -> Any:
    style = () if "--all" in words else ("--format", "json")
    done = cow(
        project, place.scratch, "explain", *words, *style, CARGO_COW_WAREHOUSE=str(place.store)
    )
    assert done.status == 0, done.output
    return done.output if "--all" in words else json.loads(done.output)["graft"]


def test_what_a_graft_would_bring_and_why_not(place: Place) -> None:
    project = place.project("main", QUIET)
    build_with_graft(place, project)
    assert _grafts(place, project) == {"command": "build", "chosen": [], "missing": {}}
    shutil.rmtree(project / "target")
    told = _grafts(place, project)
    assert names(told["chosen"]) == ["app", "app", "app", "util"]
    assert not (project / "target").exists()
    settle()
    write(project, {"util/src/inner.rs": 'pub const MARK: &str = "u2";\n'})
    (reason,) = _grafts(place, project, "util")["missing"].values()
    assert reason == f"{project}/util/src/inner.rs has other content"
    said = _grafts(place, project, "--all")
    assert f"does not come from the warehouse\n    {reason}\n" in said
    assert "it was built against other builds of what it depends on" in said
    assert "2 units of cargo build will come from the warehouse" in said
    # The same as a graft finds.
    assert _grafts(place, project)["missing"] == graft(place, project, "--dry-run")["missing"]
    # Another command asks for others.
    tests = _grafts(place, project, "--asked", "test --workspace")
    assert set(tests["missing"].values()) > {"it was never kept"}
    assert _grafts(place, project, "--asked", "tree") is None
