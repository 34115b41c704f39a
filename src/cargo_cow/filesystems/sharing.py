"""Who uses which bytes on disk: what comes back when several trees go together.

The extents of all files are laid over each other; every byte on disk then has a set of trees that
use it.  Removing some trees frees the bytes that no other tree uses, which is more than the sum of
what each uses alone: two states that share an old artefact free it only together.

What lies outside the trees looked at (a copy somewhere else on the filesystem) is known only as
far as the filesystem says of an extent that it is shared.  With ``outside`` such an extent that
only one place in the trees uses counts as used by somebody else, too; what several places use, and
somebody outside, still does not.  Without, a figure may be too high by all that the outside shares.
A compressed extent is known by its place and by its length before compression: it is taken to reach
to the next one, which is right where they follow one another, and else too much.  ZFS tells only
what each dataset uses alone: there a figure is what comes back at least.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cargo_cow.filesystems import btrfs, zfs
from cargo_cow.filesystems.extents import extents
from cargo_cow.filesystems.failures import UNSUPPORTED

OUTSIDE = ""
"""The user of what is shared with nobody that was looked at."""

_NOWHERE = 0x2 | 0x4 | 0x200  # FIEMAP_EXTENT_UNKNOWN, _DELALLOC, _DATA_INLINE
_ENCODED = 0x8
_SHARED = 0x2000  # FIEMAP_EXTENT_SHARED


class Sharing(NamedTuple):
    """Bytes by the set of trees that use them; trees are known by name."""

    used: Mapping[frozenset[str], int]
    exact: bool

    @property
    def together(self) -> int:
        """Bytes that come back if all trees that were looked at go."""
        return sum(count for users, count in self.used.items() if OUTSIDE not in users)

    def freed(self, going: Iterable[str]) -> int:
        """Bytes that only ``going`` use: what comes back if all of these are removed."""
        names = frozenset(going)
        return sum(count for users, count in self.used.items() if users <= names)


class Range(NamedTuple):
    """Bytes ``[start, stop)`` of the filesystem, used by the tree ``user``.

    ``shared``: somebody else uses them, or this tree in another place, as the filesystem says.
    """

    start: int
    stop: int
    user: str
    shared: bool = False


def overlay(ranges: Iterable[Range]) -> dict[frozenset[str], int]:
    """Bytes by the set of users.  The ranges of one user may overlap: a byte counts once.

    What is shared, and in one range only, has a further user, `OUTSIDE`.
    """
    events: list[tuple[int, int, str, bool]] = []
    for entry in ranges:
        events.append((entry.start, 1, entry.user, entry.shared))
        events.append((entry.stop, -1, entry.user, entry.shared))
    events.sort(key=lambda event: event[0])
    result: dict[frozenset[str], int] = {}
    active: dict[str, int] = {}
    users: frozenset[str] = frozenset()
    last = places = shared = 0
    for position, step, user, flagged in events:
        if position > last and users:
            whose = users | {OUTSIDE} if places == 1 and shared else users
            result[whose] = result.get(whose, 0) + position - last
        last = position
        places += step
        shared += step * flagged
        count = active.get(user, 0) + step
        if count:
            active[user] = count
        else:
            active.pop(user, None)
        if count == 0 or (count == 1 and step == 1):
            users = frozenset(active)
    return result


def clipped(ranges: Sequence[Range], starts: Iterable[int]) -> list[Range]:
    """``ranges``, but those that begin at one of ``starts`` (compressed) reach no further than to
    where the next one begins."""
    packed = set(starts)
    if not packed:
        return list(ranges)
    places = sorted({entry.start for entry in ranges})
    following = dict(itertools.pairwise(places))
    return [
        entry._replace(stop=min(entry.stop, following.get(entry.start, entry.stop)))
        if entry.start in packed
        else entry
        for entry in ranges
    ]


def measure(trees: Mapping[str, Path], *, outside: bool = False) -> Sharing:
    """Lay the files of ``trees`` over each other.  What vanishes meanwhile is skipped.

    ``outside``: what they share with others is theirs, too (see the module).
    """
    ranges: list[Range] = []
    packed: set[int] = set()
    alone: dict[frozenset[str], int] = {}
    exact = True
    filesystems: dict[str, int] = {}
    for name, root in trees.items():
        try:
            told = btrfs.filesystem_id(root)
        except OSError:
            continue
        dataset = zfs.find(root)
        if dataset is not None:
            exact = False
            with contextlib.suppress(zfs.Refused):
                users = frozenset({name})
                alone[users] = alone.get(users, 0) + zfs.exclusive(dataset)
            continue
        # Addresses are those of one filesystem: far apart for each.
        base = filesystems.setdefault(told, len(filesystems)) << 80
        linked: set[tuple[int, int]] = set()
        pending = [os.fspath(root)]
        while pending:
            try:
                with os.scandir(pending.pop()) as entries:
                    found = list(entries)
            except FileNotFoundError:
                continue
            except OSError:
                exact = False
                continue
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    mark = _SHARED if outside else 0
                    clear = _file(entry.path, name, base, linked, ranges, packed, alone, mark)
                    exact = clear and exact
    used = overlay(clipped(ranges, packed))
    for users, count in alone.items():
        used[users] = used.get(users, 0) + count
    return Sharing(used, exact)


def _file(
    path: str,
    user: str,
    base: int,
    linked: set[tuple[int, int]],
    ranges: list[Range],
    packed: set[int],
    alone: dict[frozenset[str], int],
    mark: int,
) -> bool:
    """Add one file; False where the filesystem could not tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            return True
        if facts.st_nlink > 1:
            if (facts.st_dev, facts.st_ino) in linked:
                return True
            linked.add((facts.st_dev, facts.st_ino))
        told = True
        try:
            for extent in extents(descriptor):
                if not extent.flags & _NOWHERE:
                    start = base + extent.physical
                    if extent.flags & _ENCODED:
                        told = False
                        packed.add(start)
                    shared = bool(extent.flags & mark)
                    ranges.append(Range(start, start + extent.length, user, shared))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                return False
            # No FIEMAP: nothing is known to be shared.
            users = frozenset({user})
            alone[users] = alone.get(users, 0) + facts.st_blocks * 512
            told = False
        return told
    finally:
        os.close(descriptor)
