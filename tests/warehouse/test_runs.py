"""Script runs of plain Cargo: kept where the shim noted with which variables they were made."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cargo_cow import native
from cargo_cow.cargo.workspace import load
from cargo_cow.prepare.capture import capture_of
from cargo_cow.prepare.place import place_of
from cargo_cow.warehouse import building
from tests.support.projects import Build, cargo, cow, git, run, settle, write

from .conftest import PACKAGE, Place, told, user
from .test_grafting import build, clean, graft, locked, names

# A script that reads a variable and does not say so.
FILES = {
    "Cargo.toml": PACKAGE.format("app", ""),
    "build.rs": """
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=MARK={}", std::env::var("MY_CFLAGS").unwrap_or("none".into()));
}
""",
    "src/main.rs": 'fn main() { println!("{}", env!("MARK")); }\n',
}
SCRIPT = ["app", "app", "app"]
"""The program, the script's program, and its run."""


NOBODY = "it was built before, with variables that nobody noted"


def _kept(place: Place, project: Path, **extra: str) -> list[str]:
    """Reasons for what is not kept now."""
    return list(graft(place, project, "--keep", **extra)["refused"].values())


def _chosen(place: Place, project: Path, **extra: str) -> list[str]:
    clean(project)
    return names(graft(place, project, "--dry-run", **extra)["chosen"])


def test_what_plain_cargo_built_is_kept_when_it_has_ended(place: Place) -> None:
    project = locked(place.project("main", FILES))
    place.build(project)
    assert _kept(place, project) == []
    assert _chosen(place, project) == SCRIPT
    done = graft(place, project)
    assert len(done["grafted"]["keys"]) == 3
    again = cargo(project, place.scratch, "build", **place.environment())
    assert (again.rustc, again.scripts, told(project)) == ([], 0, "none")


def test_a_run_under_variables_that_are_not_those_of_now(place: Place) -> None:
    project = locked(place.project("main", FILES))
    place.build(project, MY_CFLAGS="-O9")
    assert NOBODY in _kept(place, project)
    assert _chosen(place, project) == ["app"]
    # Kept by somebody who has them set, it is given to nobody else.
    place.build(project, MY_CFLAGS="-O9")
    assert _kept(place, project, MY_CFLAGS="-O9") == []
    clean(project)
    graft(place, project)
    assert cargo(project, place.scratch, "build").status == 0
    assert told(project) == "none"


@pytest.mark.parametrize("where", ["file", "argument"])
def test_a_variable_that_cargos_configuration_set(place: Place, where: str) -> None:
    project = locked(place.project("main", FILES))
    if where == "file":
        write(project, {".cargo/config.toml": '[env]\nMY_CFLAGS = "-O9"\n'})
        place.build(project)
        shutil.rmtree(project / ".cargo")
    else:
        place.build(project, "build", "--config", 'env.MY_CFLAGS="-O9"')
    assert told(project) == "-O9"
    assert NOBODY in _kept(place, project)
    assert _chosen(place, project) == ["app"]


def test_what_another_build_made_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that waits for Cargo's lock begins before the build that it waits for ends."""
    project = locked(place.project("main", FILES))
    settle()
    since = time.time_ns()
    place.build(project, MY_CFLAGS="-O9")
    workspace = load(project, [])
    here = place_of(workspace)
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    capture_of(workspace)
    kept = building.keep(workspace, here, project, ["build"], since)
    assert kept is not None
    assert NOBODY in kept.refused.values()


def test_what_was_made_elsewhere_while_somebody_built_here(place: Place) -> None:
    """Its times say nothing of who built it."""
    project = locked(place.project("main", FILES))
    other = place.root / "other"
    git(project, "worktree", "add", "-q", str(other))
    environment = {**place.environment(), "CARGO_COW_WAREHOUSE": "off", "CARGO_COW_SEEDING": "1"}
    settle()
    assert cargo(other, place.scratch, "build", **environment, MY_CFLAGS="-O9").status == 0
    place.build(project, CARGO_COW_SEEDING="1")
    # As if the one here had begun before, and ended after, the one there.
    for note in project.glob("target/debug/.cargo-cow/runs/*"):
        value = json.loads(note.read_text())
        note.write_text(json.dumps(value | {"first": 0}))
    runs = list(project.glob("target/debug/.cargo-cow/runs/*"))
    assert len(runs) == 1
    # The other one's units come here, with the times that they were made at.
    _copied(other, project)
    assert NOBODY in _kept(place, project)
    assert _chosen(place, project) == ["app"]


def _copied(there: Path, here: Path) -> None:
    """Grafts from there, as after a branch switch."""
    command = [sys.executable, "-m", "cargo_cow", "prepare", "--from", str(there)]
    notes = here / "target/debug/.cargo-cow"
    kept = there.parent / "notes"
    shutil.move(notes, kept)
    shutil.rmtree(here / "target")
    done = run(here, command, here.parent)
    assert done.status == 0, done.output
    shutil.rmtree(notes, ignore_errors=True)
    shutil.move(kept, notes)


def test_notes_hold_no_values_and_are_few(place: Place) -> None:
    project = locked(place.project("main", FILES))
    for number in range(20):
        write(project, {"src/main.rs": f"fn main() {{ let _ = {number}; }}\n"})
        place.build(project, MY_SECRET="swordfish-9")
    notes = list(project.glob("target/debug/.cargo-cow/runs/*"))
    assert 0 < len(notes) <= 16
    assert not any("swordfish" in note.read_text() for note in notes)


def test_what_counts_as_a_variable(place: Place) -> None:
    base: dict[str, str] = {"HOME": "/h", "PATH": "/h/.cargo/bin:/bin"}

    def told_of(**more: Any) -> dict[str, str]:
        return native.environment({**base, **more})

    assert told_of() == told_of(CARGO_HOME="/h/.cargo", OUT_DIR="/x", PATH="/bin", SHLVL="3")
    for name in ("CC", "HOME", "CARGO_HOME", "PATH", "CARGO_BUILD_X"):
        assert told_of() != told_of(**{name: "/else"}), name


@pytest.mark.parametrize("words", [("env.MY_CFLAGS='-O9'",), ("\"env\".MY_CFLAGS='-O9'",), ()])
def test_a_variable_that_an_argument_sets(place: Place, words: tuple[str, ...]) -> None:
    """It counts for this command alone, whoever gives and keeps."""
    project = locked(place.project("main", FILES))
    if not words:
        write(place.root, {"more.toml": "[env]\nMY_CFLAGS = '-O9'\n"})
        words = (str(place.root / "more.toml"),)
    command = ("build", "--config", *words)
    build(place, project, *command)
    assert told(project) == "-O9"
    clean(project)
    build(place, project)
    assert told(project) == "none"
    # Kept by the second one; not given to who sets it.
    clean(project)
    assert build(place, project).scripts == 0
    clean(project)
    build(place, project, *command)
    assert told(project) == "-O9"


def test_an_argument_that_sets_no_variable(place: Place) -> None:
    project = locked(place.project("main", FILES))
    command = ("build", "--config", "profile.dev.opt-level=1")
    build(place, project, *command)
    clean(project)
    again = build(place, project, *command)
    assert (again.rustc, again.scripts) == ([], 0)


# -- without anybody asking


def _plain(place: Place, project: Path, *words: str, **extra: str) -> Build:
    """Plain Cargo behind the shim, until what it built is kept."""
    return place.build(project, *words, CARGO_COW_SEEDING="", CARGO_COW_KEEP="", **extra)


def _cloned(project: Path, name: str) -> Path:
    other = project.with_name(name)
    git(project, "clone", "-q", str(project), str(other))
    return other


def test_a_fresh_checkout_under_plain_cargo(place: Place, dependencies: Path) -> None:
    """No checkout beside it, nobody prepares: what scripts made comes back as well."""
    project = locked(place.project("one", user("one", dependencies)))
    first = _plain(place, project)
    assert (len(first.rustc), first.scripts) == (6, 2)
    again = _plain(place, _cloned(project, "two"))
    # What bakes where it is is compiled again, and what is above it.
    assert (again.rustc, again.scripts) == (["baked", "one"], 0), again.output
    # In the new place it is kept, too, but who removed his target wants to see it built.
    project = place.root / "two"
    clean(project)
    assert _plain(place, project).scripts == 2


def test_plain_cargo_under_other_variables(place: Place) -> None:
    project = locked(place.project("main", FILES))
    _plain(place, project, MY_CFLAGS="-O9")
    two = _cloned(project, "two")
    assert _plain(place, two).scripts == 1
    assert told(two) == "none"
    three = _cloned(project, "three")
    again = _plain(place, three, MY_CFLAGS="-O9")
    assert (again.rustc, again.scripts, told(three)) == ([], 0, "-O9"), again.output


def test_a_command_that_keeps_by_itself_is_not_followed(place: Place) -> None:
    project = locked(place.project("main", FILES))
    environment = place.environment(CARGO_COW_KEEP="wait", CARGO_COW_SEEDING="")
    assert cow(project, place.scratch, "build", **environment).status == 0
    assert not (place.store / "following").exists()
    assert _chosen(place, project) == SCRIPT


@pytest.mark.parametrize("words", [("metadata",), ("build", "--no-such-option")])
def test_who_builds_nothing_is_given_nothing(place: Place, words: tuple[str, ...]) -> None:
    project = locked(place.project("main", FILES))
    _plain(place, project)
    other = _cloned(project, "two")
    environment = place.environment(CARGO_COW_SEEDING="", CARGO_COW_KEEP="")
    plain = {"CARGO_COW_WAREHOUSE": "off"}
    with_us = cargo(other, place.scratch, *words, **environment)
    without = cargo(other, place.scratch, *words, **plain)
    assert (with_us.status, with_us.output) == (without.status, without.output)
    assert not (other / "target").exists()


def test_cargo_ends_without_its_follower(place: Place) -> None:
    """It holds nothing that somebody waits for, and ends with what it followed."""
    project = locked(place.project("main", FILES))
    slow = FILES["src/main.rs"].replace("println", "std::thread::sleep_ms(2500); println")
    write(project, {"src/main.rs": slow})
    settle()
    environment = place.environment(CARGO_COW_SEEDING="", CARGO_COW_KEEP="")
    began = time.monotonic()
    # Cargo becomes the program, under the same number.
    assert cargo(project, place.scratch, "run", **environment).status == 0
    assert time.monotonic() - began < 30
    place.wait()
    assert list(place.store.glob("following/*")) == []


@pytest.mark.parametrize("where", ["variable", "file"])
def test_an_empty_warehouse_costs_no_question(place: Place, where: str) -> None:
    """A Python start for nothing would be part of each first build."""
    project = locked(place.project("main", FILES))
    noted = place.scratch / "asked"
    asking = place.scratch / "cargo-cow"
    asking.write_text(f'#!/bin/sh\necho "$*" >> {noted}\n')
    asking.chmod(0o755)
    settle()
    environment = place.environment(
        CARGO_COW_SEEDING="", CARGO_COW_KEEP="off", CARGO_COW_PROGRAM=str(asking)
    )
    if where == "file":
        # Of other tests on this filesystem, which are over.
        shutil.rmtree(place.root.parent / ".cargo-cow", ignore_errors=True)
        del environment["CARGO_COW_WAREHOUSE"]
        environment["XDG_CACHE_HOME"] = str(place.root / "cache")
        write(place.root, {".cargo/config.toml": '[env]\nCARGO_COW_WAREHOUSE = "on"\n'})
    assert cargo(project, place.scratch, "build", **environment).status == 0
    assert not noted.exists()
    if where == "file":
        (place.root / "cache/cargo-cow/warehouse/units/00").mkdir(parents=True, exist_ok=True)
    place.wait()
    other = _cloned(project, "two")
    assert cargo(other, place.scratch, "build", **environment).status == 0
    assert noted.read_text() == "prepare --seed -- build -v\n"
