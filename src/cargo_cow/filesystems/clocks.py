"""The clock that stamps files, which is not the one ``time`` reads.

The kernel stamps with the time of its last tick (1 to 10 ms; finer since Linux 6.13 where a
stamp has been looked at), a file server with its own clock, and the disk format may cut it.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from cargo_cow.errors import CowError
from cargo_cow.filesystems.failures import translated

if TYPE_CHECKING:
    from pathlib import Path

GRANULE_NS = 20_000_000
"""Two writes further apart than this (ns) have different mtimes, on filesystems that keep more
than seconds: twice the longest tick (CONFIG_HZ=100)."""

COARSE_GRANULE_NS = 2_000_000_000
"""The same where only whole seconds are kept; FAT keeps every second one."""

_NO_NAMELESS = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})


def temporary_file(directory: Path) -> int:
    """A descriptor of a new, empty file in ``directory`` that has no name any more.

    O_TMPFILE leaves the directory's own mtime alone; the fallback cannot.
    """
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
    path = directory / f".cow-clock-{os.getpid()}-{os.urandom(6).hex()}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    path.unlink()
    return descriptor


def clock(directory: Path) -> int:
    """The mtime (ns since 1970) that a file made in ``directory`` gets now.

    Raises ``TargetUnusable``, ``NoSpace`` or ``FilesystemFailed``.
    """
    with translated("read the clock of", directory):
        descriptor = temporary_file(directory)
        try:
            return os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)


def granule(directory: Path) -> int:
    """``GRANULE_NS``, or ``COARSE_GRANULE_NS`` where mtimes in ``directory`` are whole seconds.

    Found by setting one and reading it back, so a server's rounding counts.
    Raises as :func:`clock`.
    """
    with translated("read the clock of", directory):
        descriptor = temporary_file(directory)
        try:
            wanted = 1_500_000_001_123_456_789  # an odd second, and every digit of the fraction
            os.utime(descriptor, ns=(wanted, wanted))
            kept = os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
    return COARSE_GRANULE_NS if kept % 1_000_000_000 == 0 else GRANULE_NS


def clock_ahead(directory: Path) -> tuple[int, float]:
    """A stamp (ns) for what is read later, and when (by the monotonic clock) reading may begin.

    Everything edited after it was read has a later mtime than the stamp, and so has everything that
    is edited from now on; files that were written just before the call, by the `git switch` whose
    hook we are, are older.  For who has other work to do before the reading.
    """
    try:
        step = granule(directory)
        if step <= GRANULE_NS:
            return clock(directory), time.monotonic() + step / 1e9
        return clock(directory) - step, 0.0
    except CowError:
        return time.time_ns() - GRANULE_NS, 0.0
