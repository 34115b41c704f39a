"""After a power cut: what was published is whole, for Cargo would believe what is there.

The power is cut by going on from a copy of the disk image, taken when the call had returned.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from cargo_cow import native
from cargo_cow.errors import NativeMissing
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import (
    clone_target,
    convert,
    create_target,
    exchange,
    publish,
    syscalls,
    temporary_sibling,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MIB = 1 << 20
_SIZES = {"btrfs": 256 * _MIB, "xfs": 320 * _MIB, "ext4": 64 * _MIB}


@pytest.fixture(autouse=True, scope="module")
def _probe(missing: Callable[[str], None]) -> None:
    """PROBE: the native program is there and answers."""
    try:
        native.version()
    except NativeMissing as error:
        missing(str(error))


@pytest.fixture(params=sorted(_SIZES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_power_is_really_cut(
    kind: str, small_filesystem: Callable[..., Path], cut_power: Callable[[str, Path], None]
) -> None:
    """The check can fail: what nobody synced is gone."""
    mount = small_filesystem(kind, _SIZES[kind])
    (mount / "synced").write_bytes(os.urandom(100_000))
    os.sync()
    (mount / "lost").write_bytes(os.urandom(100_000))
    cut_power(kind, mount)
    assert (mount / "synced").stat().st_size == 100_000
    assert not (mount / "lost").exists()


@pytest.mark.parametrize("donor", ["target", "plain"])
def test_a_clone_that_was_published(
    kind: str,
    donor: str,
    small_filesystem: Callable[..., Path],
    cut_power: Callable[[str, Path], None],
    trees: Any,
) -> None:
    """The donor itself was never synced: its data is only in memory when it is cloned."""
    mount = small_filesystem(kind, _SIZES[kind])
    source, dest = mount / "source", mount / "dest"
    if donor == "target":
        create_target(source)
    else:
        source.mkdir()
    trees.plant(source, files=100)
    before = trees.facts(source)
    aside = temporary_sibling(dest)
    clone_target(source, aside)
    publish(aside, dest)
    cut_power(kind, mount)
    assert trees.facts(dest) == before


def test_without_the_sync_a_copy_would_be_lost(
    small_filesystem: Callable[..., Path],
    cut_power: Callable[[str, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    trees: Any,
) -> None:
    """Why syncfs is called: ext4 would keep the name and lose the data."""

    def nothing(path: Path) -> None:
        pass

    monkeypatch.setattr(syscalls, "sync_filesystem", nothing)
    mount = small_filesystem("ext4", _SIZES["ext4"])
    source, dest = mount / "source", mount / "dest"
    source.mkdir()
    trees.plant(source)
    before = trees.facts(source)
    clone_target(source, dest)
    cut_power("ext4", mount)
    assert dest.exists()
    assert trees.facts(dest) != before


def test_a_conversion(
    small_filesystem: Callable[..., Path], cut_power: Callable[[str, Path], None], trees: Any
) -> None:
    mount = small_filesystem("btrfs", _SIZES["btrfs"])
    target = mount / "target"
    target.mkdir()
    trees.plant(target, files=100)
    before = trees.facts(target)
    assert convert(target) is not None
    cut_power("btrfs", mount)
    assert subvolumes.is_subvolume(target)
    assert trees.facts(target) == before


def test_an_exchange(
    kind: str, small_filesystem: Callable[..., Path], cut_power: Callable[[str, Path], None]
) -> None:
    mount = small_filesystem(kind, _SIZES[kind])
    for name in ("one", "other"):
        create_target(mount / name)
        (mount / name / name).touch()
    os.sync()
    exchange(mount / "one", mount / "other")
    cut_power(kind, mount)
    assert (mount / "one" / "other").exists()
    assert (mount / "other" / "one").exists()
