"""A record is read once as long as its file is the same, and never taken for another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.projects import cow, repository, settle

from cargo_cow.cargo.target import Target, Unit
from cargo_cow.prepare import record


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
