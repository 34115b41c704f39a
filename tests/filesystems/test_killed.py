"""Killed at any instant: a closed set of states, and what is left is swept.

Each round runs in a process group of its own (Python and the native program), which is killed
with SIGKILL after a random delay within the time that the whole takes.  The outcomes are
counted, so that one sees that kills landed in the middle.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from cargo_cow import native
from cargo_cow.errors import NativeMissing
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import (
    clone_target,
    convert,
    create_target,
    remove_stale,
    remove_target,
    stale_temporaries,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_ROUNDS = 12


@pytest.fixture(autouse=True, scope="module")
def _probe(missing: Callable[[str], None]) -> None:
    """PROBE: the native program is there and answers."""
    try:
        native.version()
    except NativeMissing as error:
        missing(str(error))


@pytest.fixture(autouse=True, scope="module")
def _subreaper() -> Iterator[None]:
    """A killed Python's native program becomes our child, so that we can wait for its end too."""
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    assert prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    yield
    prctl(set_child_subreaper, 0, 0, 0, 0)


@pytest.fixture
def dice() -> random.Random:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return random.Random(seed)


def _start(act: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def _time(act: Callable[[], object]) -> float:
    started = time.monotonic()
    _, status = os.waitpid(_start(act), 0)
    assert status == 0
    return time.monotonic() - started


def _kill_after(seconds: float, act: Callable[[], object]) -> bool:
    """Whether it was killed before it ended by itself."""
    child = _start(act)
    time.sleep(seconds)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # before its setsid, or ended
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-child, 0)
    return status != 0


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_clone_of_a_tree(any_filesystem: Path, trees: Any, dice: random.Random) -> None:
    source, dest = any_filesystem / "source", any_filesystem / "dest"
    source.mkdir()
    trees.plant(source, files=400)
    before = trees.facts(source)

    def act() -> None:
        clone_target(source, dest)

    whole = _time(act)
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(_ROUNDS):
        remove_target(dest)
        killed = _kill_after(dice.uniform(0, whole), act)
        left = stale_temporaries(any_filesystem, "dest")
        assert len(left) <= 1
        if dest.exists():
            assert trees.facts(dest) == before
            outcomes["complete"] += 1
        else:
            assert killed
            outcomes["nothing, and a temporary" if left else "nothing"] += 1
        assert remove_stale(any_filesystem, "dest") == left
        assert _names(any_filesystem) == ["dest"] * dest.exists() + ["source"]
    assert trees.facts(source) == before
    print(dict(outcomes))


def test_snapshot(btrfs: Path, trees: Any, dice: random.Random) -> None:
    source, dest = btrfs / "source", btrfs / "dest"
    create_target(source)
    trees.plant(source, files=100)
    before = trees.facts(source)

    def act() -> None:
        clone_target(source, dest)

    whole = _time(act)
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(_ROUNDS):
        remove_target(dest)
        # early: most of the time goes into what comes after the ioctl
        _kill_after(whole * dice.random() ** 4, act)
        if dest.exists():
            assert trees.facts(dest) == before
        outcomes["complete" if dest.exists() else "nothing"] += 1
        assert _names(btrfs) == ["dest"] * dest.exists() + ["source"]
    print(dict(outcomes))


def test_convert(btrfs: Path, trees: Any, dice: random.Random) -> None:
    target = btrfs / "target"
    target.mkdir()
    trees.plant(target, files=400)
    before = trees.facts(target)
    spare = btrfs / "spare"
    spare.mkdir()
    trees.plant(spare, files=400)
    whole = _time(lambda: convert(spare))
    remove_target(spare)
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(_ROUNDS):
        _kill_after(dice.uniform(0, whole), lambda: convert(target))
        converted = subvolumes.is_subvolume(target)
        assert trees.facts(target) == before
        left = stale_temporaries(btrfs, "target")
        assert len(left) <= 1
        kind = "subvolume" if converted else "directory"
        outcomes[f"{kind}{', and a temporary' if left else ''}"] += 1
        assert remove_stale(btrfs, "target") == left
        assert _names(btrfs) == ["target"]
        assert subvolumes.nested(btrfs) == ([target] if converted else [])
        if converted:  # begin anew
            remove_target(target)
            target.mkdir()
            trees.plant(target, files=400)
    print(dict(outcomes))


def test_removal(any_filesystem: Path, trees: Any, dice: random.Random) -> None:
    """Whole, or gone: never a target with some of its files."""
    plain = any_filesystem / "plain"
    whole = None
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(_ROUNDS // 2):
        plain.mkdir(exist_ok=True)
        if not _names(plain):
            trees.plant(plain, files=400)
            before = trees.facts(plain)
        if whole is None:
            whole = _time(lambda: remove_target(plain))
            continue
        _kill_after(dice.uniform(0, whole), lambda: remove_target(plain))
        if plain.exists():
            assert trees.facts(plain) == before
        left = stale_temporaries(any_filesystem, "plain")
        kind = "whole" if plain.exists() else "gone"
        outcomes[f"{kind}{', and a temporary' if left else ''}"] += 1
        assert remove_stale(any_filesystem, "plain") == left
        assert _names(any_filesystem) == ["plain"] * plain.exists()
    print(dict(outcomes))
