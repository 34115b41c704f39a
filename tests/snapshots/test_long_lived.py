"""What a store looks like after many cycles: no leaks, no growth, no slowing down.

``COW_CYCLES`` says how many (20 by default; 200 by hand).  Run with ``-s`` to see the figures.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.projects import cow, repository, settle, write
from tests.support.states import TINY

from cargo_cow import filesystems, snapshots

_CYCLES = int(os.environ.get("COW_CYCLES") or 20)
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _btrfs(*arguments: str) -> str:
    return subprocess.run(
        ["btrfs", *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": _PATH},
    ).stdout


class _Looks(NamedTuple):
    """What a Btrfs says of itself: names of its subvolumes, bytes used."""

    subvolumes: list[str]
    data: int
    metadata: int


def _look(mount: Path) -> _Looks:
    """After every removed subvolume has really gone (the cleaner works in the background)."""
    _btrfs("filesystem", "sync", str(mount))  # wakes the cleaner, which else sleeps for 30 s
    _btrfs("subvolume", "sync", str(mount))
    _btrfs("filesystem", "sync", str(mount))
    used = {"Data": 0, "Metadata": 0}
    for line in _btrfs("filesystem", "usage", "-b", str(mount)).splitlines():
        # Metadata,DUP: Size:53673984, Used:131072 (0.24%)
        kind, comma, rest = line.partition(",")
        if comma and kind in used and "Used:" in rest:
            used[kind] += int(rest.partition("Used:")[2].split()[0])
    listed = _btrfs("subvolume", "list", "-o", str(mount)).splitlines()
    listed += _btrfs("subvolume", "list", "-d", str(mount)).splitlines()  # removed, not cleaned up
    names = sorted({line.rpartition(" path ")[2] for line in listed})
    return _Looks(names, used["Data"], used["Metadata"])


@pytest.mark.slow
def test_many_cycles_leave_nothing_behind(
    small_filesystem: Callable[..., Path], tmp_path: Path
) -> None:
    mount = small_filesystem("btrfs", 2 << 30)
    root = repository(mount / "main", {**TINY, "src/text": "base"})
    filesystems.create_target(root / "target")

    def build(text: str) -> list[str]:
        settle()
        write(root, {"src/text": text})
        built = cow(root, tmp_path, "build")
        assert built.status == 0, built.output
        settle()
        return built.rustc

    def tells() -> str:
        return subprocess.run(
            [root / "target/debug/tiny"], check=True, capture_output=True, text=True
        ).stdout

    creating: list[float] = []
    activating: list[float] = []

    def cycle(number: int) -> None:
        assert build(f"text {number}") == ["tiny"]
        started = time.monotonic()
        snapshots.create_state("cycle", root)
        creating.append(time.monotonic() - started)
        write(root, {"src/text": "base"})
        started = time.monotonic()
        done = snapshots.activate_cache("base", root)
        activating.append(time.monotonic() - started)
        assert done.kept is None  # it is kept already
        assert tells() == "base"
        snapshots.delete_snapshots(["cycle"], root)

    build("base")
    snapshots.create_state("base", root)
    cycle(0)  # what is made once is there from here on
    creating.clear()
    activating.clear()
    before = _look(mount)
    for number in range(1, _CYCLES + 1):
        cycle(number)
    after = _look(mount)

    few = max(1, min(20, _CYCLES // 2))
    first, last = statistics.median(activating[:few]), statistics.median(activating[-few:])
    print(
        f"\n{_CYCLES} cycles; before {before}; after {after}; medians of the first and last {few}: "
        f"create {statistics.median(creating[:few]) * 1000:.1f} and "
        f"{statistics.median(creating[-few:]) * 1000:.1f} ms, "
        f"activate {first * 1000:.1f} and {last * 1000:.1f} ms"
    )
    # The live target and the state "base", as before.
    assert len(before.subvolumes) == 2
    assert len(after.subvolumes) == 2, after.subvolumes
    assert sorted(path.name for path in root.iterdir()) == sorted(
        [".cargo-cow", ".git", ".gitignore", "Cargo.lock", "Cargo.toml", "src", "target"]
    )
    assert [path.name for path in (root / ".cargo-cow").iterdir()] == [".gitignore"]
    # As many trees as before: they may be packed less tightly, never more numerous.
    assert after.metadata < before.metadata + (1 << 20)
    assert after.data < before.data * 1.2 + (1 << 20)
    assert last < first * 2 + 0.05  # a machine that others use, too
