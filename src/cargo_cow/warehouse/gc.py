"""What the warehouse may let go: planned first, then carried out.

Bytes are those of the whole set that goes: data that two entries share comes back with the second,
and what a target shares with an entry does not come back at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow.filesystems.sharing import OUTSIDE, Sharing, measure
from cargo_cow.warehouse import store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cargo_cow.filesystems.space import Mark, Space
    from cargo_cow.warehouse.store import Entry

DAY = 86_400.0
RECENT = 3_600.0
"""What was used in the last hour stays: a build that runs may come back for it."""
_LONGEST_DIARY = 16 << 20
_LEAST_COST = 0.05
"""Seconds that any compile costs, at least: a process, and what waits for it."""


class Policy(NamedTuple):
    """``unused_for``: seconds without use after which an entry goes; ``budget``: bytes that all
    entries together may use by themselves; ``min_free``: so much of the filesystem stays free.

    None: no such rule.
    """

    unused_for: float | None = 30 * DAY
    budget: int | None = None
    min_free: Mark | None = None


class Going(NamedTuple):
    """An entry that goes, and why.  ``alone``: bytes that come back with it, once those before it
    in the plan are gone."""

    entry: Entry
    reason: str
    alone: int


class Plan(NamedTuple):
    """What goes and what stays.

    ``frees``: bytes that come back if all that goes is removed together; ``exclusive``: if the
    whole store were.  Roughly where not ``exact``.
    """

    going: tuple[Going, ...]
    staying: int
    frees: int
    exclusive: int
    exact: bool
    leftovers: tuple[Path, ...]

    @property
    def seconds(self) -> float:
        """What compiling again would take of all that goes."""
        return sum(one.entry.seconds for one in self.going)


def plan(
    root: Path,
    entries: Sequence[Entry],
    policy: Policy,
    now: float,
    space: Space | None = None,
) -> Plan:
    """Look at the store, and `decide`.  Touches nothing; reads the extents of all entries."""
    sharing = measure({os.fspath(entry.path): entry.path for entry in entries}, outside=True)
    decided = decide(entries, policy, sharing, now, space)
    return decided._replace(leftovers=tuple(store.leftovers(root, now)))


def decide(
    entries: Sequence[Entry],
    policy: Policy,
    sharing: Sharing,
    now: float,
    space: Space | None = None,
) -> Plan:
    """Which entries go: damaged ones and those long unused; then, over the budget or below the mark
    of free space, those that are worth least.  ``sharing`` knows entries by their path.

    An entry is worth what compiling it again takes, for each byte that comes back without it, and
    the less, the longer nobody used it.
    """
    account = _Account(sharing)
    going: list[Going] = []
    left: list[Entry] = []

    def lets_go(entry: Entry, reason: str) -> None:
        name = os.fspath(entry.path)
        going.append(Going(entry, reason, account.alone(name)))
        account.remove(name)

    for entry in sorted(entries, key=lambda one: one.used):
        idle = now - entry.used
        if entry.trouble is not None:
            lets_go(entry, entry.trouble)
        elif idle < RECENT:
            continue
        elif policy.unused_for is not None and idle > policy.unused_for:
            lets_go(entry, f"not used for {int(idle / DAY)} days")
        else:
            left.append(entry)

    def worth(entry: Entry) -> float:
        size = account.at_most(os.fspath(entry.path))
        return max(entry.seconds, _LEAST_COST) / max(size, 1) / max(now - entry.used, 1.0)

    left.sort(key=worth)
    for wanted, reason in _wanted(policy, sharing.together, space):
        while left and account.freed < wanted:
            entry = left.pop(0)
            # What only a target shares would cost a compile and bring nothing.
            if account.at_most(os.fspath(entry.path)):
                lets_go(entry, reason)
    return Plan(
        going=tuple(going),
        staying=len(entries) - len(going),
        frees=account.freed,
        exclusive=sharing.together,
        exact=sharing.exact,
        leftovers=(),
    )


def _wanted(policy: Policy, total: int, space: Space | None) -> Iterable[tuple[int, str]]:
    """Bytes that are to come back in all, and why."""
    if policy.budget is not None:
        yield total - policy.budget, "over the budget"
    if policy.min_free is not None and space is not None:
        wanted = policy.min_free.of(space.total) - space.free
        yield wanted, "the filesystem is nearly full"


class _Account:
    """What comes back as entries go one after the other."""

    def __init__(self, sharing: Sharing) -> None:
        self.freed = 0
        self._bytes: list[int] = []
        self._users: list[set[str]] = []
        self._of: dict[str, list[int]] = {}
        for users, count in sharing.used.items():
            if OUTSIDE in users:
                continue
            for name in users:
                self._of.setdefault(name, []).append(len(self._bytes))
            self._bytes.append(count)
            self._users.append(set(users))

    def alone(self, name: str) -> int:
        """What comes back if it goes now."""
        return sum(self._bytes[at] for at in self._of.get(name, ()) if len(self._users[at]) == 1)

    def at_most(self, name: str) -> int:
        """What may come back with it, once all that share it are gone."""
        return sum(self._bytes[at] for at in self._of.get(name, ()))

    def remove(self, name: str) -> None:
        for at in self._of.pop(name, ()):
            self._users[at].discard(name)
            if not self._users[at]:
                self.freed += self._bytes[at]


class Done(NamedTuple):
    """What came of a plan: entries that went, and those that somebody used meanwhile.

    ``freed``: bytes, as they were planned.
    """

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
        freed += one.alone
    for path in planned.leftovers:
        store.remove_leftover(path)
    diary = root / "events"
    if diary.exists() and diary.stat().st_size > _LONGEST_DIARY:
        diary.replace(root / "events.old")
    return Done(removed, in_use, freed)


def _used(entry: Entry) -> float:
    try:
        return (entry.path / store.META).stat().st_mtime
    except OSError:
        return 0.0
