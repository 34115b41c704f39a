"""Keeping house unasked: the user's settings; a prune after a build when a mark is passed; and the
start of a compaction.

On the path of builds that compiled something, so what decides whether there is anything to do
reads a directory and a small file, asks the filesystem for its free space and git for the settings
(some 3 ms); the room that prunes is loaded after that.  Pruning works in the foreground and within
bounds: `_AT_ONCE` states go per build.  Only automatic ones go: those with a name, the baseline,
and what somebody changed are never touched unasked.  Compaction takes seconds, so it is a process
of its own that stands back for everybody, and ends when it is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow import git
from cargo_cow.errors import UsageError
from cargo_cow.snapshots import policy as policies

if TYPE_CHECKING:
    from cargo_cow.cargo.workspace import Workspace

_AT_ONCE = 4
_AGAIN = 86_400.0  # seconds after which age and deleted branches are looked at anew
_SOON = 600.0  # seconds after which the states that are known are compacted again
_MIN_FREE = "5%"


class Settings(NamedTuple):
    """``cargo-cow.*`` of git's configuration: how states are pruned, and whether unasked; and
    whether they are compacted unasked."""

    policy: policies.Policy
    automatic: bool
    compact: bool


def settings(root: Path, question: git.Asked | None = None) -> Settings:
    """The settings that hold in the repository around ``root``.

    Raises UsageError, which names the setting, for a value that means nothing.
    """
    values = git.own_settings(root, question)
    try:
        last = values.get("keeplast")
        age = values.get("keepnewerthan")
        budget = values.get("budget")
        keep_last = None if last is None else _count("keepLast", last)
        if last is None and age is None:
            keep_last = 10
        policy = policies.Policy(
            keep_last=keep_last,
            keep_newer_than=None if age is None else policies.parse_age(age),
            drop_deleted=git.own_truth("deleted", values.get("deleted", "true")),
            drop_merged=git.own_truth("merged", values.get("merged", "false")),
            drop_vanished=git.own_truth("vanished", values.get("vanished", "false")),
            budget=None if budget is None else policies.parse_size(budget),
            min_free=policies.parse_mark(values.get("minfree", _MIN_FREE)),
        )
        return Settings(
            policy,
            git.own_truth("prune", values.get("prune", "true")),
            git.own_truth("compact", values.get("compact", "true")),
        )
    except UsageError as error:
        raise UsageError(
            f"git config cargo-cow.…: {error}", hint="git config --get-regexp '^cargo-cow'"
        ) from None


def _count(name: str, value: str) -> int:
    if not value.isdecimal():
        raise UsageError(f"{name} is a number, not {value!a}")
    return int(value)


class _Room(NamedTuple):
    """Where states of a project may be, and the names of those that are there."""

    common: Path
    stores: tuple[Path, Path]
    names: list[str]


def _room(workspace: Workspace) -> _Room | None:
    """None where there is no state."""
    checkout = git.checkout_of(workspace.root)
    if checkout is None:
        return None
    common = Path(os.path.realpath(checkout.common_dir)) / "cargo-cow"
    beside = Path(os.path.realpath(workspace.build_dir)).parent / ".cargo-cow"
    stores = (common / "states", beside / "states")
    names = sorted(name for store in stores for name in _states_in(store))
    return _Room(common, stores, names) if names else None


def begin(workspace: Workspace) -> git.Asked | None:
    """Ask git what `tidy` will want to know, while something else runs; None where there is no
    state.  Raises GitFailed."""
    return None if _room(workspace) is None else git.own_asked(workspace.root)


def tidy(
    workspace: Workspace,
    *,
    say: Callable[[str], None],
    quick: bool = False,
    question: git.Asked | None = None,
) -> int:
    """Prune by the settings, if anything may have to go; returns how many states went.  Then see
    to it that those that stay are compacted.

    Nothing may, while the states and the want of space are those of the last time, for a day.
    ``quick``: what would have to be measured (all extents of all states: 5 s for 100,000 files) is
    left to the next build.  ``question`` is what `begin` asked.  Raises CowError.
    """
    room = _room(workspace)
    if room is None:
        if question is not None:
            question.forget()
        return 0
    common, stores, names = room
    chosen = settings(workspace.root, question)
    removed = 0
    if chosen.automatic:
        removed = _pruned(workspace, chosen.policy, common, stores, names, say, quick)
    if chosen.compact:
        _compact_aside(workspace, common, names)
    return removed


def _pruned(
    workspace: Workspace,
    policy: policies.Policy,
    common: Path,
    stores: tuple[Path, Path],
    names: list[str],
    say: Callable[[str], None],
    quick: bool,
) -> int:
    assert policy.min_free is not None
    low = any(
        space.free < policy.min_free.of(space.total)
        for space in policies.space_of(store for store in stores if store.is_dir()).values()
    )
    if quick and (low or policy.budget is not None):
        return 0
    note = common / "tidied.json"
    seen = [names, low, [str(value) for value in policy]]
    if _noted(note) == seen:
        return 0
    from cargo_cow.snapshots import pruning
    from cargo_cow.snapshots.state import State

    wanted = pruning.plan(workspace, policy, sizes=False)
    going = [decision for decision in wanted.going if isinstance(decision.entry, State)]
    now = tuple(going[:_AT_ONCE])
    removed: tuple[str, ...] = ()
    if now:
        removed = pruning.prune(workspace, wanted._replace(decisions=now), say=say).removed
    if len(now) == len(going):
        _leave(note, [[name for name in names if name not in removed], low, seen[2]])
    if removed:
        why = f" ({now[0].reason})" if len(now) == 1 else ""
        say(f"pruned {len(removed)} automatic state(s){why}; see git config cargo-cow.prune")
    return len(removed)


def _compact_aside(workspace: Workspace, common: Path, names: list[str]) -> None:
    """Start a compaction, unless one looked at these states a short while ago.

    A session of its own with nothing of our terminal: the build's end is not its end, and who reads
    our output is not kept waiting for it.
    """
    note = common / "compacting.json"
    if _noted(note, _SOON) == names:
        return
    _leave(note, names)
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    words = ["-P", "-m", "cargo_cow", "snapshot", "compact", "--idle", "--manifest-path"]
    manifest = os.fspath(workspace.root / "Cargo.toml")
    # Too many processes, or a C library without sessions here (glibc before 2.26): another time.
    with contextlib.suppress(OSError, NotImplementedError):
        os.posix_spawn(
            sys.executable,
            [sys.executable, *words, manifest],
            os.environ,
            file_actions=quiet,
            setsid=True,
        )


def _states_in(store: Path) -> list[str]:
    try:
        return [name for name in os.listdir(store) if name[:8].isdecimal()]  # noqa: PTH208
    except OSError:
        return []


def _noted(note: Path, seconds: float = _AGAIN) -> object:
    try:
        if time.time() - note.stat().st_mtime > seconds:
            return None
        value: object = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    return value


def _leave(note: Path, value: object) -> None:
    """Leave word of what was looked at; without it the next build looks again."""
    temporary = note.with_name(f".{note.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value))
        temporary.replace(note)
    except OSError:
        return
