"""Putting the data of a file elsewhere on the disk, without a change of its contents or times.

Both ways end in FIDEDUPERANGE (``ioctl_fideduperange(2)``): the kernel locks two files, compares
them, and only where they are equal lets one use the extents of the other.  So no mistake of ours
can change a byte, a kill leaves a whole file, and Btrfs permits it in a read-only subvolume as well
(``fs/btrfs/reflink.c``, ``btrfs_remap_file_range_prep``: only a clone is refused there).

* `share`: with a file that has the same contents already.
* `rewritten`: with a new file, without a name, that is given the same contents and that Btrfs
  compresses (its property ``btrfs.compression``; ``fs/btrfs/props.c``).

Btrfs frees an extent when nothing uses any part of it: whoever shares a part of one has to put the
rest elsewhere, too, or nothing comes back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from cargo_cow.filesystems.failures import UNSUPPORTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

BLOCK = 4096
"""Ranges begin and end at multiples of this, or end with the file: the block size of nearly all."""

_FIDEDUPERANGE = 0xC0189436  # _IOWR(0x94, 54, struct file_dedupe_range), include/uapi/linux/fs.h
# struct file_dedupe_range: __u64 src_offset, src_length; __u16 dest_count, reserved1; __u32
# reserved2; then for each: __s64 dest_fd; __u64 dest_offset, bytes_deduped; __s32 status; __u32
_RANGE = struct.Struct("=QQHHI")
_DESTINATION = struct.Struct("=qQQiI")
# struct btrfs_ioctl_defrag_range_args: __u64 start, len, flags; __u32 extent_thresh, compress_type,
# unused[4]; include/uapi/linux/btrfs.h
_DEFRAGMENTATION = struct.Struct("=QQQII16x")
_DEFRAG_RANGE = 1 << 30 | _DEFRAGMENTATION.size << 16 | 0x94 << 8 | 16  # _IOW(0x94, 16, …)
_COMPRESS_AND_WRITE = 1 | 2  # BTRFS_DEFRAG_RANGE_COMPRESS, BTRFS_DEFRAG_RANGE_START_IO
_ZSTD = 3  # BTRFS_COMPRESS_ZSTD, fs/btrfs/compression.h
_COPIED = 1 << 20
_NOT_HERE = UNSUPPORTED | {errno.EXDEV, errno.EPERM, errno.EACCES}


def share(source: int, destination: int, start: int, stop: int) -> int:
    """Let ``destination`` use the extents of ``source`` in ``[start, stop)``, where both are equal.

    Returns how many bytes from ``start`` on are shared now: less where a difference was met.  The
    source is an open file, as is the destination, which must be the caller's own but may be open
    for reading only.  ``stop`` is a multiple of `BLOCK`, or the end of both files.

    OSError: EOPNOTSUPP, ENOTTY, EINVAL where the filesystem cannot, EXDEV across filesystems.
    """
    position = start
    while position < stop:
        argument = bytearray(
            _RANGE.pack(position, stop - position, 1, 0, 0)
            + _DESTINATION.pack(destination, position, 0, 0, 0)
        )
        fcntl.ioctl(source, _FIDEDUPERANGE, argument)
        _, _, done, status, _ = _DESTINATION.unpack_from(argument, _RANGE.size)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        if status > 0 or not done:  # FILE_DEDUPE_RANGE_DIFFERS
            break
        position += done
    return position - start


@contextlib.contextmanager
def rewritten(
    source: int, ranges: Iterable[tuple[int, int]], room: Path, *, compress: bool
) -> Iterator[int]:
    """A new file without a name, in the directory ``room``, with the contents of the open file
    ``source`` in ``ranges``, and as long; with ``compress``, Btrfs compresses it.

    Raises OSError.  It takes room on the disk until it is shared with ``source`` or closed.
    """
    descriptor = os.open(room, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        if compress:
            os.setxattr(descriptor, "btrfs.compression", b"zstd")
        os.ftruncate(descriptor, os.fstat(source).st_size)
        for start, stop in ranges:
            position = start
            while position < stop:
                # Not copy_file_range(2), which would share the extents.
                data = os.pread(source, min(_COPIED, stop - position), position)
                if not data:
                    break
                position += os.pwrite(descriptor, data, position)
        yield descriptor
    finally:
        os.close(descriptor)


def compress_all_the_same(descriptor: int) -> None:
    """Compress a file of our own that Btrfs left as it was.

    It judges by a few bytes of each page (``btrfs_compress_heuristic`` in fs/btrfs/compression.c),
    and wrongly so for rustc's dependency graphs, which halve.  When it defragments, it does as it
    is told.  Raises OSError.
    """
    os.fdatasync(descriptor)  # what is not on the disk yet is passed over
    argument = bytearray(_DEFRAGMENTATION.pack(0, (1 << 64) - 1, _COMPRESS_AND_WRITE, 0, _ZSTD))
    fcntl.ioctl(descriptor, _DEFRAG_RANGE, argument)


def can_share(room: Path) -> bool:
    """Whether files in the directory ``room`` can be let share what they hold, by doing it."""
    return _works(room, compress=False)


def can_compress(room: Path) -> bool:
    """Whether what is written in the directory ``room`` can be compressed, by asking for it."""
    return _works(room, compress=True)


def _works(room: Path, *, compress: bool) -> bool:
    try:
        first = os.open(room, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(first, os.urandom(BLOCK), 0)
            with rewritten(first, [(0, BLOCK)], room, compress=compress) as second:
                return share(second, first, 0, BLOCK) == BLOCK
        finally:
            os.close(first)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        raise
