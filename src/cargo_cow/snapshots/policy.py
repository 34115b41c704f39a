"""What may go, as a user says it: on the command line, in git's configuration, from Python.

Plain data and its words; loaded by builds, so nothing else is.
"""

from __future__ import annotations

from typing import NamedTuple

from cargo_cow.filesystems.space import Mark, Space, parse_age, parse_mark, parse_size, space_of

__all__ = ["Mark", "Policy", "Space", "parse_age", "parse_mark", "parse_size", "space_of"]


class Policy(NamedTuple):
    """What may go.  The baseline never does.

    ``keep_last``: the newest that many automatic states stay, the newest of each branch before
    older ones; ``keep_newer_than``: those younger than so many seconds stay; where both are given,
    either is enough.  ``keep_named``: states with a name stay.  ``drop_deleted`` and
    ``drop_merged``: states of branches that are gone, or merged into ``merged_into`` (default: what
    the main checkout is at), go whatever their age, names and baseline excepted; so do, with
    ``drop_vanished``, those taken in a worktree that is gone.
    ``budget``: then the oldest go until the states use no more bytes of disk than this by
    themselves; ``min_free``: and until so much of each filesystem would be free.
    """

    keep_last: int | None = 10
    keep_newer_than: float | None = None
    keep_named: bool = True
    drop_deleted: bool = True
    drop_merged: bool = False
    merged_into: str | None = None
    budget: int | None = None
    drop_vanished: bool = False
    min_free: Mark | None = None
