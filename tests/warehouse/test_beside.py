"""Cargo is started before the warehouse has given what it has, and gets at the target then."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from cargo_cow import native
from cargo_cow.cargo.target import Target, unit_times
from cargo_cow.cargo.workspace import load
from cargo_cow.prepare import unchanged
from cargo_cow.prepare.place import place_of
from cargo_cow.warehouse import planning
from tests.support.projects import Build, cow, settle, write

from .conftest import FILES, PACKAGE, Place, told

# A macro that reads what nobody tells Cargo of, seen by the shim.
LOOKING = FILES | {
    "Cargo.toml": '[workspace]\nmembers = ["app", "util", "looking"]\nresolver = "2"\n',
    "app/Cargo.toml": PACKAGE.format(
        "app",
        '[dependencies]\nutil = { path = "../util" }\nlooking = { path = "../looking" }\n',
    ),
    "app/build.rs": 'fn main() { println!("cargo:rerun-if-changed=build.rs"); }\n',
    "app/data": "d1",
    "app/src/main.rs": 'fn main() { println!("{} {}", util::util(), looking::look!(data)); }\n'
    '#[test] fn test() { println!("{}", looking::look!(tested)); }\n',
    "app/tested": "t1",
    "looking/Cargo.toml": PACKAGE.format("looking", "[lib]\nproc-macro = true\n"),
    "looking/src/lib.rs": """
use proc_macro::TokenStream;
#[proc_macro]
pub fn look(name: TokenStream) -> TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    format!("{:?}", std::fs::read_to_string(format!("{root}/{name}")).unwrap()).parse().unwrap()
}
""",
}


def _build(place: Place, project: Path, *words: str, **extra: str) -> Build:
    settle()
    environment = place.environment(CARGO_COW_KEEP="wait", **extra)
    built = cow(project, place.scratch, *(words or ("build",)), "-v", **environment)
    assert built.status == 0, built.output
    assert "Blocking" not in built.output
    place.wait()
    return built


def _slow(place: Place, verb: str, seconds: float = 0.8) -> dict[str, str]:
    """Our native program, which takes its time with a verb: longer than Cargo with all else."""
    script = place.scratch / "slow-native"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = {verb} ] && {{ : > {place.scratch}/asked; sleep {seconds}; }}\n'
        f'exec {native.program()} "$@"\n'
    )
    script.chmod(0o755)
    return {"CARGO_COW_NATIVE": str(script)}


def test_cargo_gets_at_the_target_when_all_is_there(place: Place) -> None:
    project = place.project("main", LOOKING)
    _build(place, project)
    assert _build(place, project).rustc == []
    shutil.rmtree(project / "target")
    slow = _slow(place, "--give-units")
    built = _build(place, project, **slow)
    assert (place.scratch / "asked").exists()
    assert "units came from the warehouse" in built.output
    assert (built.rustc, built.scripts) == ([], 0)
    assert told(project) == "u1 d1"

    # The same where the target is there, and what is asked for is known from before.
    (place.scratch / "asked").unlink()
    write(project, {"util/src/inner.rs": 'pub const MARK: &str = "u2";\n'})
    assert _build(place, project).rustc == ["app", "util"]
    write(project, {"util/src/inner.rs": 'pub const MARK: &str = "u1";\n'})
    built = _build(place, project, **slow)
    assert (place.scratch / "asked").exists()
    assert built.rustc == []
    assert told(project) == "u1 d1"


def test_what_came_while_cargo_waited_is_watched_as_all_else(place: Place) -> None:
    """What was looked at before the warehouse gave is no longer what is there: a note of that would
    hide an edit that nobody but us sees."""
    project = place.project("main", LOOKING)
    for text in ("d1", "d2"):
        write(project, {"app/data": text})
        assert "app" in _build(place, project).rustc
    write(project, {"app/data": "d1"})
    assert _build(place, project).rustc == []
    assert told(project) == "u1 d1"
    assert _build(place, project).rustc == []
    write(project, {"app/data": "d2"})
    _build(place, project)
    assert told(project) == "u1 d2"


def test_units_that_came_beside_what_was_looked_at(place: Place) -> None:
    """As above, where all that was there before is right, and other units come to it."""
    project = place.project("main", LOOKING)
    tests = ("test", "--no-run")
    _build(place, project)
    _build(place, project, *tests)
    shutil.rmtree(project / "target")
    assert _build(place, project).rustc == []
    source = project / "util/src/lib.rs"
    source.write_text(source.read_text())  # to be proven, and no more
    settle()
    built = _build(place, project, *tests)
    assert "units came from the warehouse" in built.output
    assert built.rustc == []
    write(project, {"app/tested": "t2"})
    assert _build(place, project, *tests).rustc == ["app"]
    assert _build(place, project, *tests).rustc == []


@pytest.mark.parametrize("gone", ["", ".fingerprint"])
def test_a_profile_that_is_not_there_yet(place: Place, gone: str) -> None:
    """Its lock is not held back from: what is known of the command is of no use then."""
    project = place.project("main", LOOKING)
    _build(place, project)
    _build(place, project, "build", "--release")
    assert _build(place, project, "build", "--release").rustc == []
    shutil.rmtree(project / "target/release" / gone)
    built = _build(place, project, "build", "--release", **_slow(place, "--give-units"))
    assert (place.scratch / "asked").exists()
    assert built.rustc == []


def test_a_manifest_that_changed_is_asked_for(place: Place) -> None:
    project = place.project("main", LOOKING)
    _build(place, project)
    assert _build(place, project).rustc == []
    manifest = LOOKING["util/Cargo.toml"] + "[features]\ndefault = ['more']\nmore = []\n"
    more = '#[cfg(feature = "more")]\npub fn util() -> &\'static str { "more" }\n'
    less = more.replace("#[cfg(", "#[cfg(not(").replace(")]", "))]").replace('more" }', 'u1" }')
    write(project, {"util/Cargo.toml": manifest, "util/src/lib.rs": more + less})
    assert _build(place, project).rustc == ["app", "util"]
    assert told(project) == "more d1"
    write(project, {"util/Cargo.toml": LOOKING["util/Cargo.toml"]})
    _build(place, project)
    assert told(project) == "u1 d1"


def test_a_store_that_others_may_write_to_is_not_read(place: Place) -> None:
    project = place.project("main", LOOKING)
    _build(place, project)
    shutil.rmtree(project / "target")
    place.store.chmod(0o777)
    # A pipe in the place of an entry: who reads it waits for ever.
    started = time.monotonic()
    built = _build(place, project)
    assert time.monotonic() - started < 60
    assert "units came" not in built.output
    assert "app" in built.rustc
    place.store.chmod(0o700)


@pytest.mark.parametrize("what", ["source", "hidden"])
def test_an_edit_while_cargo_waits(place: Place, what: str) -> None:
    """Cargo sees it, or the next build does."""
    project = place.project("main", LOOKING)
    _build(place, project)
    edited = {"source": "util/src/inner.rs", "hidden": "app/data"}[what]
    texts = {"source": 'pub const MARK: &str = "{}";\n', "hidden": "{}"}[what]
    for name in ("x1", "x2"):
        write(project, {edited: texts.format(name)})
        _build(place, project)
    slow = _slow(place, "--give-units")
    script = Path(slow["CARGO_COW_NATIVE"])
    edit = f"printf '%s' '{texts.format('x3').strip()}' > {project / edited}"
    script.write_text(script.read_text().replace("sleep 0.8", f"{edit}; sleep 0.8"))
    write(project, {edited: texts.format("x1")})
    _build(place, project, **slow)
    assert (place.scratch / "asked").exists()
    _build(place, project)
    assert "x3" in told(project)


def test_who_does_not_wait_for_cargos_answer_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = place.project("main", FILES)
    _build(place, project)
    room = place.scratch / "room"
    room.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(room))
    workspace = load(project)
    with planning.Asking(workspace, ["build"], project, None, None):
        assert list(room.iterdir())
    assert not list(room.iterdir())
    with planning.Asking(workspace, ["build"], project, place.store, None) as asking:
        answer = asking.answer()
        assert answer is not None
        assert answer == planning.remembered(workspace, ["build"], project, place.store)
        asking.end()
        assert not list(room.iterdir())


def test_a_unit_that_came_after_the_look_makes_the_note_untrue(place: Place) -> None:
    project = place.project("main", FILES)
    _build(place, project)
    there = place_of(load(project))
    units = unit_times(there.build_dir)
    settle()
    unchanged.note(there, units, Target(there.build_dir))
    assert unchanged.holds(there)
    assert unchanged.awaits_what_is_missing(there.build_dir)
    moment = next((project / "target/debug/.fingerprint").glob("app-*/invoked.timestamp"))
    moment.touch()
    unchanged.note(there, units, Target(there.build_dir))
    assert not unchanged.holds(there)


def test_cargo_is_asked_again_where_its_answer_may_be_another(place: Place) -> None:
    """What there is to build is told by names; an edit, however it is saved, leaves them."""
    project = place.project("main", FILES)
    _build(place, project)
    workspace = load(project)

    def is_known() -> bool:
        if planning.remembered(workspace, ["build"], project, place.store) is not None:
            return True
        assert planning.ask(workspace, ["build"], project, place.store) is not None
        return False

    assert not is_known()
    for source in ("util/src/lib.rs", "app/src/main.rs", "app/build.rs"):
        aside = project / f"{source}.new"
        aside.write_text((project / source).read_text() + "\n")
        aside.replace(project / source)
        assert is_known()
    write(project, {"app/tests/data/text": "", "app/src/more.rs": ""})
    for other in (
        "util/src/main.rs",
        "util/build.rs",
        "util/src/bin/one.rs",
        "util/src/bin/two/main.rs",
        "util/examples/three.rs",
        "util/benches/four/main.rs",
        "util/tests/five.rs",
        "app/tests/data/main.rs",
    ):
        assert is_known(), other
        write(project, {other: "fn main() {}\n"})
        assert not is_known(), other
        (project / other).unlink()
        assert is_known(), other  # as before
