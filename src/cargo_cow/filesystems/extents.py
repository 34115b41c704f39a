"""Which bytes of a tree are shared with others: FIEMAP.

``include/uapi/linux/fiemap.h`` and ``Documentation/filesystems/fiemap.rst`` of the kernel.  The
figures are those of ``btrfs filesystem du -s --raw``: exclusive, and shared counted once per
place on disk.  What they cannot say:

* Extents that only files *inside* the tree share (a file reflinked to its neighbour) count as
  shared, though removing the tree would free them.
* Of compressed extents the place is told, and the length before compression.  Bytes on disk count
  once, so where such extents follow one another the sum is nearly right (but not exact).  An
  extent of which only a part is referenced counts with that part.
* XFS gives the extents of removed files back in the background, so for a moment what a removed
  clone shared still counts as shared.
* A ZFS dataset has no FIEMAP: what it uses alone is ZFS' own count, a lower bound.
* Metadata, and with it Btrfs' inline extents (files up to 2,048 bytes by default), belongs to
  neither figure.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow.filesystems.failures import UNSUPPORTED, translated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP: _IOWR('f', 11, struct fiemap)
_SYNC = 0x1
_LAST = 0x1
_UNKNOWN = 0x2
_DELALLOC = 0x4
_ENCODED = 0x8
_INLINE = 0x200
_SHARED = 0x2000
_NOWHERE = _UNKNOWN | _DELALLOC | _INLINE

# struct fiemap: __u64 start, length; __u32 flags, mapped, count, reserved
_HEADER = struct.Struct("=QQIIII")
# struct fiemap_extent: __u64 logical, physical, length, reserved[2]; __u32 flags, reserved[3]
_EXTENT = struct.Struct("=QQQ16xI12x")
_COUNT = 64
_REST = bytes(_COUNT * _EXTENT.size)
_MAX_OFFSET = (1 << 64) - 1


class Extent(NamedTuple):
    """A run of bytes of a file (``logical``) at a place of the filesystem (``physical``)."""

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def shared(self) -> bool:
        """Whether other files, or other places in this one, use it too."""
        return bool(self.flags & _SHARED)

    @property
    def inline(self) -> bool:
        """Whether the data lies in the metadata, where it is never shared by a reflink."""
        return bool(self.flags & _INLINE)

    @property
    def settled(self) -> bool:
        """Whether it is compressed already, or has no place of its own on the disk."""
        return bool(self.flags & (_NOWHERE | _ENCODED))


class Usage(NamedTuple):
    """Bytes of a tree's regular files; hard links count once.

    ``logical_bytes`` is the sum of the files' sizes, ``exclusive_bytes`` what only this tree
    uses on disk, ``shared_bytes`` what others use too (once per place on disk).  ``exact`` is
    False where the filesystem cannot tell sharing, a file could not be read, or extents are
    compressed.
    """

    logical_bytes: int
    exclusive_bytes: int
    shared_bytes: int
    exact: bool


def extents(descriptor: int) -> Iterator[Extent]:
    """The extents of an open file, written to disk first (FIEMAP_FLAG_SYNC).

    ``OSError`` EOPNOTSUPP where there is no FIEMAP (tmpfs, ZFS, most of FUSE).
    """
    start = 0
    while True:
        buffer = bytearray(_HEADER.pack(start, _MAX_OFFSET - start, _SYNC, 0, _COUNT, 0) + _REST)
        fcntl.ioctl(descriptor, _FIEMAP, buffer)
        mapped = _HEADER.unpack_from(buffer)[3]
        if not mapped:
            return
        logical = length = flags = 0
        for logical, physical, length, flags in _EXTENT.iter_unpack(
            memoryview(buffer)[_HEADER.size : _HEADER.size + mapped * _EXTENT.size]
        ):
            yield Extent(logical, physical, length, flags)
        if flags & _LAST:
            return
        start = logical + length


def usage(path: Path) -> Usage:
    """Measure every regular file below ``path``: subvolumes inside included, symlinks not
    followed, what vanishes meanwhile skipped.

    Raises ``FilesystemFailed`` if ``path`` is no directory.
    """
    counter = _Counter()
    with translated("measure", path):
        os.close(os.open(path, os.O_PATH | os.O_DIRECTORY))
        counter.tree(os.fspath(path))
        counter.exclusive += _covered(counter.packed)
        held = _of_dataset(path, counter.exclusive)
        if held is not None:
            return held._replace(logical_bytes=counter.logical)
    return Usage(counter.logical, counter.exclusive, _covered(counter.shared), counter.exact)


def _of_dataset(path: Path, on_disk: int) -> Usage | None:
    """The usage of a ZFS dataset of ours, of which ``on_disk`` bytes are counted with its files."""
    from cargo_cow.filesystems import zfs

    dataset = zfs.find(path)
    if dataset is None:
        return None
    alone = min(on_disk, zfs.exclusive(dataset))
    return Usage(0, alone, on_disk - alone, False)


class _Counter:
    def __init__(self) -> None:
        self.logical = self.exclusive = 0
        self.shared: list[tuple[int, int]] = []
        self.packed: list[tuple[int, int]] = []
        self.exact = True
        self.linked: set[tuple[int, int]] = set()

    def tree(self, path: str) -> None:
        pending = [path]
        while pending:
            try:
                with os.scandir(pending.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        elif entry.is_file(follow_symlinks=False):
                            self.file(entry.path)
            except FileNotFoundError:
                continue
            except PermissionError:
                self.exact = False

    def file(self, path: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        except OSError:
            self.unread(os.lstat(path))
            return
        try:
            self.opened(descriptor)
        finally:
            os.close(descriptor)

    def opened(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or self.seen(status):
            return
        try:
            for extent in extents(descriptor):
                if extent.flags & (_UNKNOWN | _ENCODED):
                    self.exact = False
                if extent.flags & _NOWHERE:
                    continue
                if extent.flags & _SHARED:
                    self.shared.append((extent.physical, extent.physical + extent.length))
                elif extent.flags & _ENCODED:
                    self.packed.append((extent.physical, extent.physical + extent.length))
                else:
                    self.exclusive += extent.length
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self.exact = False
            self.exclusive += status.st_blocks * 512
        self.logical += status.st_size

    def unread(self, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode) and not self.seen(status):
            self.exact = False
            self.logical += status.st_size
            self.exclusive += status.st_blocks * 512

    def seen(self, status: os.stat_result) -> bool:
        if status.st_nlink == 1:
            return False
        key = (status.st_dev, status.st_ino)
        if key in self.linked:
            return True
        self.linked.add(key)
        return False


def _covered(ranges: list[tuple[int, int]]) -> int:
    """Bytes covered by the half-open ranges, each byte once."""
    total = end = 0
    for start, stop in sorted(ranges):
        if stop > end:
            total += stop - max(start, end)
            end = stop
    return total
