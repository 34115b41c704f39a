"""The ledger spares a proof the reading of units that need no record, and of no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.projects import cargo, cow, git, repository, settle

from cargo_cow.cargo.target import Target
from cargo_cow.cargo.workspace import load
from cargo_cow.prepare import proof
from cargo_cow.prepare.capture import read_ledger
from cargo_cow.prepare.contents import Contents
from cargo_cow.prepare.packages import Packages
from cargo_cow.prepare.place import Place, place_of

_PACKAGE = '[package]\nname = "{}"\nversion = "0.1.0"\nedition = "2021"\n'


@pytest.fixture
def project(btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program, built and captured, with a dependency whose sources are Cargo's own."""
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo-home"))
    dependency = repository(
        btrfs / "dep",
        {"Cargo.toml": _PACKAGE.format("dep"), "src/lib.rs": "pub fn dep() -> u32 { 1 }\n"},
    )
    root = repository(
        btrfs / "main",
        {
            "Cargo.toml": _PACKAGE.format("app")
            + f'[dependencies]\ndep = {{ git = "file://{dependency}" }}\n',
            "src/main.rs": 'fn main() { println!("{}", dep::dep()); }\n',
        },
    )
    assert cow(root, tmp_path, "build").status == 0
    return root


def _proof(root: Path, *, cloned: bool = True) -> proof.Proof:
    place = place_of(load(root))
    contents = Contents()
    packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
    return proof.Proof(Target(place.build_dir), place, contents, packages, cloned, {})


def _statuses(root: Path) -> dict[str, str]:
    plan = _proof(root).plan()
    return {verdict.key.split("/")[1].split("-")[0]: verdict.status for verdict in plan.verdicts}


def test_what_needs_no_record_is_not_read_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {"dep": "kept", "app": "proven"}
    assert _statuses(project) == expected
    asked: list[str] = []

    def needs_no_record(unit: object, *_: object, **__: object) -> bool:
        asked.append(str(unit))
        return False

    monkeypatch.setattr(proof, "needs_no_record", needs_no_record)
    assert _statuses(project) == expected
    assert not asked
    # Another build of the unit, and another place of Cargo's own sources, are looked at.
    unit = next(unit for unit in Target(str(project / "target")).units if unit.package == "dep")
    made = unit.invoked()
    assert made is not None
    os.utime(unit.invoked_file, ns=(made + 1, made + 1))
    assert _statuses(project)["dep"] == "unproven"
    os.utime(unit.invoked_file, ns=(made, made))
    assert _statuses(project) == expected
    monkeypatch.setenv("CARGO_HOME", f"{project}/elsewhere")
    assert _statuses(project)["dep"] == "unproven"
    assert len(asked) == 2


def test_what_could_not_be_recorded_is_not_spared(project: Path, tmp_path: Path) -> None:
    """A unit is in the ledger too if it has no record because none could be made."""
    source = project / "src/main.rs"
    settle()
    assert cargo(project, tmp_path, "build").status == 0
    source.write_text(source.read_text().replace("{}", "new {}"))
    settle()
    assert cargo(project, tmp_path, "build").status == 0
    # Under an older time, after the build: what was compiled is not known any more.
    old = source.stat().st_mtime_ns
    source.write_text(source.read_text().replace("new", "other"))
    os.utime(source, ns=(old, old))
    assert cow(project, tmp_path, "build").status == 0
    ledger = read_ledger(str(project / "target"))
    app = [key for key in ledger.units if "/app-" in key]
    assert app
    assert not ledger.needless.intersection(app)
    assert _statuses(project)["app"] == "unproven"


def test_a_ledger_that_cannot_be_read_spares_nothing(project: Path) -> None:
    path = project / "target/.cargo-cow/ledger.json"
    for text in ("", "[]", '{"format":1}', '{"format":2,"units":{}}', '{"format":1,"units":7}'):
        path.write_text(text)
        assert not read_ledger(str(project / "target")).needless
        assert _statuses(project) == {"dep": "kept", "app": "proven"}


def test_files_that_git_ignores_are_asked_for_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cargo_cow import git as gateway

    (project / ".gitignore").write_text("/target\n*.gen\n.env\n")
    for name in ("a.gen", ".env", "new.rs"):
        (project / name).write_text("x")
    git(project, "add", "-f", "src/main.rs")
    calls: list[list[str]] = []
    asked = gateway.ignored

    def ignored(root: Path, paths: list[str]) -> set[str]:
        calls.append(list(paths))
        return asked(root, paths)

    monkeypatch.setattr(gateway, "ignored", ignored)
    place: Place = place_of(load(project))
    packages = Packages(place.checkout, place.workspace, place.build_dir, Contents())
    packages.files(place.checkout)
    main, new, env, made, gone = (
        f"{place.checkout}/{name}" for name in ("src/main.rs", "new.rs", ".env", "a.gen", "gone.rs")
    )
    assert packages.ignored([main, new]) is None
    assert not calls  # the list of files has them
    assert packages.ignored([main, gone, env]) == env  # in the list, and ignored all the same
    assert packages.ignored([gone]) is None
    assert packages.ignored([made, env]) == made
    assert calls == [[gone, env], [made]]
