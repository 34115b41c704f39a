"""What a proof waits for, begun before its rooms are loaded: git lists files meanwhile.

On the path of every build in which something changed: imports are counted here.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

from cargo_cow import filesystems, git
from cargo_cow.errors import CowError
from cargo_cow.prepare import unchanged
from cargo_cow.prepare.place import Place


class Begun(NamedTuple):
    """The stamp ``t0`` (ns), which was read before anything else was, and what git was asked since;
    None where a proof will most likely not want to know."""

    t0: int
    listing: git.Listing | None

    def forget(self) -> None:
        """To be called in the end, whatever came of it."""
        if self.listing is not None:
            self.listing.forget()


def begin(place: Place) -> Begun:
    """Begin a proof of the target in place."""
    t0 = stamp_time(Path(place.build_dir))
    listing = None
    if unchanged.asks_git(place.build_dir):
        with contextlib.suppress(CowError):  # it will be said when it is needed
            listing = git.Listing(Path(place.checkout))
    return Begun(t0, listing)


def stamp_time(directory: Path) -> int:
    """The stamp: the filesystem's present time less its granule (ns).

    Everything read after this moment and edited after it has a later mtime.
    """
    try:
        return filesystems.clock(directory) - filesystems.granule(directory)
    except CowError:
        return time.time_ns() - filesystems.GRANULE_NS
