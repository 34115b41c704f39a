"""What each filesystem can do, tried on it; every other suite here rests on these answers."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from cargo_cow.errors import TargetUnusable
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import probe, temporary_sibling

if TYPE_CHECKING:
    from collections.abc import Callable


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_btrfs_can_everything(btrfs: Path) -> None:
    found = probe(btrfs)
    assert found.name == "btrfs"
    assert found.reflink
    assert found.shares_extents is True
    assert found.snapshots
    assert found.subvolume_removal == "ioctl"
    assert found.exchange
    assert found.no_replace
    assert found.hard_links
    assert 0 < found.mtime_step_ns <= 20_000_000
    assert list(btrfs.iterdir()) == []


def test_xfs_reflinks_and_has_no_snapshots(xfs: Path) -> None:
    found = probe(xfs)
    assert found.name == "xfs"
    assert found.reflink
    assert found.shares_extents is True
    assert not found.snapshots
    assert found.subvolume_removal == "none"
    assert found.exchange
    assert found.no_replace
    assert found.hard_links
    assert list(xfs.iterdir()) == []


def test_ext4_can_neither(ext4: Path) -> None:
    """The negative control: a probe that cannot fail proves nothing."""
    found = probe(ext4)
    assert found.name == "ext4"
    assert not found.reflink
    assert found.shares_extents is None
    assert not found.snapshots
    assert found.subvolume_removal == "none"
    assert found.exchange
    assert found.no_replace
    assert found.hard_links
    assert list(ext4.iterdir()) == []


def test_without_root_subvolumes_are_emptied_and_removed(
    btrfs: Path, unprivileged: Callable[..., Any]
) -> None:
    os.chown(btrfs, 65_534, 65_534)
    found = unprivileged(probe, btrfs)
    assert found.snapshots
    assert found.subvolume_removal == "rmdir"
    assert list(btrfs.iterdir()) == []


def test_without_root_the_mount_option_allows_the_ioctl(
    small_filesystem: Callable[..., Path], unprivileged: Callable[..., Any]
) -> None:
    mount = small_filesystem("btrfs", 256 << 20, "user_subvol_rm_allowed")
    os.chown(mount, 65_534, 65_534)
    assert unprivileged(probe, mount).subvolume_removal == "ioctl"


def test_what_a_killed_probe_left_is_swept(btrfs: Path) -> None:
    left = temporary_sibling(btrfs / "probe")
    left.mkdir()
    subvolumes.create(left / "subvolume")
    probe(btrfs)
    assert _names(btrfs) == []


def test_a_place_that_is_closed_is_an_error_of_ours(
    btrfs: Path, unprivileged: Callable[..., Any]
) -> None:
    with pytest.raises(TargetUnusable, match="Permission denied"):
        unprivileged(probe, btrfs)


def test_a_read_only_subvolume_is_an_error_of_ours(btrfs: Path) -> None:
    place = btrfs / "read-only"
    subvolumes.create(place)
    subvolumes.set_read_only(place, True)
    with pytest.raises(TargetUnusable, match="Read-only"):
        probe(place)
    subvolumes.set_read_only(place, False)


def test_memory_filesystem_says_so(missing: Callable[[str], None], tmp_path: Path) -> None:
    """tmpfs: no reflink, no FIEMAP.  Where there is none, any answer of the probe will do."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        missing("no writable tmpfs at /dev/shm")
    with TemporaryDirectory(dir=shared) as name:
        found = probe(Path(name))
        assert not found.reflink
        assert not found.snapshots
        assert _names(Path(name)) == []
