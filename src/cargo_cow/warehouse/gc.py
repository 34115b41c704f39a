"""What the warehouse may let go: planned first, then carried out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow.filesystems import usage
from cargo_cow.warehouse import store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cargo_cow.warehouse.store import Entry

DAY = 86_400.0
RECENT = 3_600.0
"""What was used in the last hour stays: a build that runs may come back for it."""
_LONGEST_DIARY = 16 << 20


class Policy(NamedTuple):
    """``unused_for``: seconds without use after which an entry goes; ``budget``: bytes on disk.

    None: no such rule.
    """

    unused_for: float | None = 30 * DAY
    budget: int | None = None


class Going(NamedTuple):
    """An entry that goes, and why.  ``exclusive``: bytes that nothing else on the disk shares."""

    entry: Entry
    reason: str
    exclusive: int


class Plan(NamedTuple):
    """What goes and what stays; ``exclusive`` is what the whole store uses by itself."""

    going: tuple[Going, ...]
    staying: int
    exclusive: int
    leftovers: tuple[Path, ...]

    @property
    def frees(self) -> int:
        """At least so many bytes: what entries share only with each other comes on top."""
        return sum(one.exclusive for one in self.going)


def plan(root: Path, entries: Sequence[Entry], policy: Policy, now: float) -> Plan:
    """Which entries go: damaged ones, long unused ones, then the longest unused over the budget."""
    sizes = {entry.path: _exclusive(entry.path) for entry in entries}
    total = sum(sizes.values())
    left = total
    going: list[Going] = []
    # The one used longest ago first.
    for entry in sorted(entries, key=lambda one: one.used):
        size = sizes[entry.path]
        reason = None
        if entry.trouble is not None:
            reason = entry.trouble
        elif now - entry.used < RECENT:
            pass
        elif policy.unused_for is not None and now - entry.used > policy.unused_for:
            reason = f"not used for {int((now - entry.used) / DAY)} days"
        elif policy.budget is not None and left > policy.budget and size:
            reason = "over the budget"
        if reason is not None:
            going.append(Going(entry, reason, size))
            left -= size
    return Plan(tuple(going), len(entries) - len(going), total, tuple(store.leftovers(root, now)))


def _exclusive(path: Path) -> int:
    try:
        return usage(path).exclusive_bytes
    except OSError:
        return 0


class Done(NamedTuple):
    """What came of a plan: entries that went, and those that somebody used meanwhile."""

    removed: int
    in_use: int
    freed: int


def carry_out(root: Path, planned: Plan) -> Done:
    """Remove what was planned, unless it was used since."""
    removed = in_use = freed = 0
    for one in planned.going:
        if _used(one.entry) > one.entry.used or not store.remove(root, one.entry):
            in_use += 1
            continue
        removed += 1
        freed += one.exclusive
    for path in planned.leftovers:
        shutil.rmtree(path, ignore_errors=True)
    diary = root / "events"
    if diary.exists() and diary.stat().st_size > _LONGEST_DIARY:
        diary.replace(root / "events.old")
    return Done(removed, in_use, freed)


def _used(entry: Entry) -> float:
    try:
        return (entry.path / store.META).stat().st_mtime
    except OSError:
        return 0.0
