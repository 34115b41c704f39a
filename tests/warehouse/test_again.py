"""What is built again and again: less is looked at, and what is found is what a look would find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cargo_cow import prepare
from cargo_cow.cargo.workspace import load
from tests.support.projects import cow, settle, write

from .conftest import FILES, PACKAGE, Place, told

_MACRO = """
use proc_macro::TokenStream;
#[proc_macro]
pub fn look(_: TokenStream) -> TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let text = std::fs::read_to_string(format!("{root}/data")).unwrap();
    format!("{:?}", text.replace("ROOT", &root)).parse().unwrap()
}
"""

# A script that runs on every build, and may ask git; a macro that may bake where it is.
LOOKING = FILES | {
    "Cargo.toml": '[workspace]\nmembers = ["app", "util", "looking"]\nresolver = "2"\n',
    "app/Cargo.toml": PACKAGE.format(
        "app",
        '[dependencies]\nutil = { path = "../util" }\nlooking = { path = "../looking" }\n',
    ),
    "app/data": "d1",
    "app/src/main.rs": 'fn main() { println!("{} {}", util::util(), looking::look!()); }\n',
    "looking/Cargo.toml": PACKAGE.format("looking", "[lib]\nproc-macro = true\n"),
    "looking/src/lib.rs": _MACRO,
}


def _build(place: Place, project: Path, **extra: str) -> list[str]:
    """``cargo cow build`` behind the shim; which crates were compiled."""
    settle()
    environment = place.environment(CARGO_COW_KEEP="wait", **extra)
    built = cow(project, place.scratch, "build", "-v", **environment)
    assert built.status == 0, built.output
    place.wait()
    return built.rustc


def _records(project: Path) -> dict[str, dict[str, Any]]:
    """What is recorded of each unit, but for when."""
    found = {}
    for path in (project / "target/debug/.fingerprint").glob("*/cow-record.json"):
        value = json.loads(path.read_bytes())
        del value["invoked"], value["dependencies"]
        found[value["unit"]] = value
    return found


def _recorded_anew(project: Path) -> dict[str, dict[str, Any]]:
    """The same, captured without anything that is remembered."""
    for path in (project / "target/debug/.fingerprint").glob("*/cow-record.json"):
        path.unlink()
    (project / "target/.cargo-cow/contents.json").unlink()
    (project / "target/.cargo-cow/ledger.json").unlink(missing_ok=True)
    prepare.capture_of(load(project))
    return _records(project)


def _app(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The record of the program, the only unit that expands a macro."""
    (found,) = [value for value in records.values() if "looking" in value["macros"]]
    return found


def test_what_comes_back_is_recorded_as_if_it_were_looked_at(place: Place) -> None:
    project = place.project("again", LOOKING)
    for count in range(2):
        assert (_build(place, project) == []) is bool(count)
    observed = [
        json.loads(path.read_bytes())
        for path in project.glob("target/debug/.fingerprint/app-*/cow-observed.json")
    ]
    assert any(value["outputs"] for value in observed)  # or nothing is spared
    spared = _records(project)
    assert spared == _recorded_anew(project)
    assert not _app(spared)["bakes_root"]

    # The same unit, with its place in it: another entry, which comes back later.
    write(project, {"app/data": "ROOT"})
    for count in range(2):
        assert (_build(place, project) == []) is bool(count)
    assert told(project).endswith(str(project / "app"))
    spared = _records(project)
    assert _app(spared)["bakes_root"]
    assert spared == _recorded_anew(project)

    # And the one of before.
    write(project, {"app/data": "d1"})
    for _ in range(2):
        assert _build(place, project) == []
        assert told(project).endswith(" d1")
        assert not _app(_records(project))["bakes_root"]

    # A script that asks git from now on.
    asking = 'fn main() { println!("cargo:warning=git rev-parse");'
    script = LOOKING["app/build.rs"].replace("fn main() {", asking, 1)
    write(project, {"app/build.rs": script})
    for _ in range(2):
        _build(place, project)
    found = [value["asks_git"] for value in _records(project).values() if value["asks_git"]]
    assert found == [["head"]]
    assert _records(project) == _recorded_anew(project)


def test_an_output_that_was_written_to_is_searched(place: Place) -> None:
    """What an entry is known to hold says nothing of a file that is another one by now."""
    project = place.project("again", LOOKING)
    for _ in range(3):
        _build(place, project)
    # It comes back once more, and nobody has recorded it yet.
    assert place.build(project).rustc == []
    (program,) = (path for path in (project / "target/debug/deps").glob("app-*") if not path.suffix)
    assert program.stat().st_nlink == 2  # Cargo's second name changes the ctime
    with program.open("ab") as file:
        file.write(f"{project}/app/patched".encode())
    made = prepare.capture_of(load(project)).records
    (found,) = [value for value in made.values() if "looking" in value.macros]
    assert found.bakes_root
