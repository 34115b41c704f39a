"""A record is read once as long as its file is the same, and never taken for another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support.projects import cow, repository, settle

from cargo_cow.cargo.target import Target, Unit
from cargo_cow.cargo.workspace import load
from cargo_cow.prepare import record
from cargo_cow.prepare.capture import Capturer
from cargo_cow.prepare.contents import Contents
from cargo_cow.prepare.packages import Packages
from cargo_cow.prepare.place import place_of


@pytest.fixture
def unit(btrfs: Path, tmp_path: Path) -> Unit:
    """A unit with a record that was not written just now."""
    root = repository(
        btrfs / "main",
        {
            "Cargo.toml": '[package]\nname = "one"\nversion = "0.1.0"\nedition = "2021"\n',
            "src/lib.rs": "",
        },
    )
    assert cow(root, tmp_path, "build").status == 0
    settle()
    (unit,) = Target(str(root / "target")).units
    return unit


def test_it_is_read_once(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record.load(unit)
    assert made is not None
    monkeypatch.setattr(record, "_parsed", lambda _: pytest.fail("it was read again"))
    assert record.load(unit) == made
    again = Target(unit.directory.partition("/debug/")[0]).units[0]
    assert record.load(again) == made


def test_every_change_is_seen(unit: Unit) -> None:
    made = record.load(unit)
    assert made is not None
    path = Path(unit.record_file)
    for head in ("1" * 40, "2" * 40, "3" * 40):  # of one size, one after the other
        record.save(unit, made._replace(head=head))
        found = record.load(unit)
        assert found is not None
        assert found.head == head
    settle()
    assert record.load(unit) is not None
    facts = path.stat()
    path.write_bytes(path.read_bytes().replace(b"3" * 40, b"4" * 40))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    found = record.load(unit)
    assert found is not None
    assert found.head == "4" * 40
    # Another build of the unit, under the same record.
    os.utime(unit.invoked_file, ns=(made.invoked + 1, made.invoked + 1))
    assert record.load(unit) is None
    os.utime(unit.invoked_file, ns=(made.invoked, made.invoked))
    assert record.load(unit) == found
    path.write_bytes(b"{")
    assert record.load(unit) is None
    path.unlink()
    assert record.load(unit) is None


class _Rung(NamedTuple):
    key: str
    below: tuple[_Rung, ...]


class _Ladder:
    """A graph in which twice as many ways lead to each storey as to the one above."""

    def __init__(self, storeys: int) -> None:
        self.looked: list[str] = []
        self.top: tuple[_Rung, ...] = ()
        for storey in range(storeys):
            self.top = tuple(_Rung(f"{side}{storey}", self.top) for side in "ab")

    def dependencies(self, rung: _Rung) -> tuple[_Rung, ...]:
        self.looked.append(rung.key)
        return rung.below


def test_each_unit_is_judged_once_however_many_ways_lead_to_it(
    unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(load(Path(unit.directory.partition("/target/")[0])))
    contents = Contents()
    packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
    capturer = Capturer(Target(place.build_dir), place, contents, packages)
    ladder = _Ladder(40)
    monkeypatch.setattr(capturer, "_target", ladder)
    monkeypatch.setattr(capturer, "is_local", lambda _: False)
    top: Any = ladder.top
    assert not any(capturer._needs_stamp(rung) for rung in top)
    assert len(ladder.looked) == 80
