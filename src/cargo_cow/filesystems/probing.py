"""What the filesystem of a directory can do, found by doing it there with real data."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from cargo_cow.errors import CowError
from cargo_cow.filesystems import btrfs, syscalls, temporaries, zfs
from cargo_cow.filesystems.clocks import COARSE_GRANULE_NS, granule
from cargo_cow.filesystems.extents import extents
from cargo_cow.filesystems.failures import NO_SPACE, translated
from cargo_cow.filesystems.mounts import filesystem_name
from cargo_cow.filesystems.removal import discard, remove_stale, remove_target

if TYPE_CHECKING:
    from pathlib import Path

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), include/uapi/linux/fs.h
_DATA_BYTES = 65_536
"""Well above Btrfs' inline extents (2,048 bytes by default), which a reflink copies."""


Removal = Literal["ioctl", "rmdir", "dataset", "none"]


class Capabilities(NamedTuple):
    """What was tried in one directory and worked.

    ``reflink``: FICLONE made a file of equal content.  ``shares_extents``: FIEMAP says that the
    two share; None where FIEMAP cannot say.  ``snapshots``: a subvolume (or a ZFS dataset, where
    there is a container) with a file in it was snapshotted.  ``subvolume_removal``: how this
    process gets rid of one.  ``exchange`` and ``no_replace``: renameat2's flags, for directories.
    ``mtime_step_ns``: the smallest step between two mtimes seen in a few milliseconds.  ``name`` is
    for people.
    """

    name: str
    reflink: bool
    shares_extents: bool | None
    snapshots: bool
    subvolume_removal: Removal
    exchange: bool
    no_replace: bool
    hard_links: bool
    mtime_step_ns: int


def probe(directory: Path) -> Capabilities:
    """Try everything in a temporary directory inside ``directory``, and remove that again.

    Raises ``TargetUnusable`` or ``NoSpace`` if nothing can be made there.
    """
    # A sibling, for some milliseconds: who only asks leaves nothing behind.
    room = temporaries.temporary_sibling(directory / "probe")
    with translated("probe", directory):
        remove_stale(directory, "probe")
        temporaries.make(room, room.mkdir)
        try:
            reflink, shares = _reflink(room)
            snapshots, removal = _subvolumes(room)
            return Capabilities(
                filesystem_name(room),
                reflink,
                shares,
                snapshots,
                removal,
                _rename_flag(room, syscalls.RENAME_EXCHANGE),
                _rename_flag(room, syscalls.RENAME_NOREPLACE),
                _hard_links(room),
                _mtime_step(room),
            )
        finally:
            discard(room)


def _reflink(room: Path) -> tuple[bool, bool | None]:
    data = os.urandom(_DATA_BYTES)
    (room / "source").write_bytes(data)
    with (room / "source").open("rb") as source, (room / "clone").open("xb") as clone:
        try:
            fcntl.ioctl(clone, _FICLONE, source.fileno())
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            return False, None
    with (room / "clone").open("rb") as clone:
        if clone.read() != data:
            return False, None
        try:
            found = list(extents(clone.fileno()))
        except OSError:
            return True, None
    return True, bool(found) and all(extent.shared for extent in found)


def _subvolumes(room: Path) -> tuple[bool, Removal]:
    source, copy = room / "subvolume", room / "snapshot"
    try:
        btrfs.create(source)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        return _datasets(room)
    (source / "file").write_bytes(b"here")
    try:
        btrfs.snapshot(source, copy)
        works = (copy / "file").read_bytes() == b"here"
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        works = False
    doomed = copy if works else source
    try:
        btrfs.destroy(doomed)
    except OSError:
        try:
            remove_target(doomed)
        except CowError:
            return works, "none"
        return works, "rmdir"
    return works, "ioctl"


def _datasets(room: Path) -> tuple[bool, Removal]:
    """As `_subvolumes`, for ZFS."""
    container = zfs.container_for(room)
    if container is None:
        return False, "none"
    made: list[Path] = []
    works = False
    try:
        for name in ("dataset", "dataset-clone"):
            path = room / name
            dataset = zfs.find(made[0]) if made else None
            if dataset is None:
                zfs.create(path, container)
            else:
                zfs.clone(dataset, path)
            made.append(path)
            if dataset is None:
                (path / "file").write_bytes(b"here")
        works = (made[-1] / "file").read_bytes() == b"here"
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
    finally:
        for path in reversed(made):
            discard(path)
    return works, "dataset" if works else "none"


def _rename_flag(room: Path, flag: int) -> bool:
    one, other = room / "one", room / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    try:
        syscalls.rename(one, other, flag)
    except OSError as error:
        return flag == syscalls.RENAME_NOREPLACE and error.errno == errno.EEXIST
    return (
        flag == syscalls.RENAME_EXCHANGE and one.read_bytes() == b"2" and other.read_bytes() == b"1"
    )


def _hard_links(room: Path) -> bool:
    try:
        (room / "link").hardlink_to(room / "source")
    except OSError:
        return False
    return True


def _mtime_step(room: Path) -> int:
    """Write and look until the mtime moved a few times, for 50 ms at most."""
    smallest = granule(room)
    if smallest == COARSE_GRANULE_NS:
        return smallest
    with (room / "clock").open("xb", buffering=0) as file:
        last = os.fstat(file.fileno()).st_mtime_ns
        moves = 0
        until = time.monotonic() + 0.05
        while moves < 4 and time.monotonic() < until:
            os.pwrite(file.fileno(), b".", 0)
            now = os.fstat(file.fileno()).st_mtime_ns
            if now != last:
                smallest = min(smallest, now - last)
                last = now
                moves += 1
    return smallest
