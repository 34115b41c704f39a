"""What a manifest declares is in the keys of the shim, and in what a graft compares."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.projects import settle, write
from tests.support.unseen import CHANGES, FIRST, files

from .conftest import Place, told
from .test_grafting import build as build_with_graft
from .test_grafting import clean, locked

pytestmark = pytest.mark.usefixtures("x86_64")


@pytest.fixture(autouse=True)
def _no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGION", raising=False)


def _change(project: Path, changes: dict[str, str | None]) -> None:
    settle()
    for name, text in changes.items():
        if text is None:
            (project / name).unlink()
        else:
            write(project, {name: text})


def _touched(project: Path) -> None:
    """Cargo calls every unit dirty; their contents are the same."""
    settle()
    for path in project.rglob("*.rs"):
        if "target" not in path.parts:
            os.utime(path)


def test_a_call_of_the_shim(place: Place) -> None:
    project = place.project("app", files())
    place.build(project)
    assert told(project) == FIRST
    _touched(project)
    assert place.build(project).rustc == []
    for changes, extra, expected in CHANGES:
        before = {name: (project / name).read_text() for name in changes if "b.sql" not in name}
        _change(project, changes)
        _touched(project)
        assert "app" in place.build(project, **extra).rustc
        assert told(project) == expected
        _change(project, {name: before.get(name) for name in changes})
        _touched(project)
        # As it was, so that it comes back.
        assert place.build(project).rustc == []
        assert told(project) == FIRST
    _change(project, {"app/data/notes": "nor this", "app/data/new": ""})
    _touched(project)
    assert place.build(project, OTHER="x").rustc == []


def test_the_control(place: Place) -> None:
    """Without the declaration nobody would know."""
    project = place.project("app", files(""))
    place.build(project)
    _change(project, {"app/schema": "s2"})
    _touched(project)
    assert place.build(project).rustc == []
    manifest = project / "app/Cargo.toml"
    manifest.write_text(manifest.read_text() + '[package.metadata]\ncow.inputs = ["schema"]\n')
    _touched(project)
    assert place.build(project).rustc == ["app"]
    assert told(project).startswith("s2 ")


@pytest.mark.parametrize("observe", ["on", "off"])
def test_a_graft(place: Place, observe: str) -> None:
    project = locked(place.project("app", files()))
    extra = {"CARGO_COW_OBSERVE": observe}
    build_with_graft(place, project, **extra)
    assert told(project) == FIRST
    clean(project)
    assert build_with_graft(place, project, **extra).rustc == []
    for changes, also, expected in CHANGES:
        before = {name: (project / name).read_text() for name in changes if "b.sql" not in name}
        clean(project)
        _change(project, changes)
        assert "app" in build_with_graft(place, project, **also, **extra).rustc
        assert told(project) == expected
        _change(project, {name: before.get(name) for name in changes})
        clean(project)
        assert build_with_graft(place, project, **extra).rustc == []
        assert told(project) == FIRST


def test_what_was_not_noted_is_not_grafted(place: Place) -> None:
    """A unit that was built by plain Cargo, with a variable that nobody noted."""
    project = locked(place.project("app", files()))
    settle()
    subprocess.run(["cargo", "build", "-q"], cwd=project, check=True, env=os.environ | _WITH)
    assert told(project).endswith(" here")
    assert "app" in build_with_graft(place, project).rustc
    assert told(project) == FIRST


_WITH = {"REGION": "here"}
