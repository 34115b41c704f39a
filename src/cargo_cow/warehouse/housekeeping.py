"""Letting the warehouse shrink unasked: the user's settings, and a `gc` within bounds.

The shim asks for it, at most once an hour, in the background of the process that keeps what was
compiled (``native/src/shim/warehouse/tidy.rs``): no build waits for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow import git
from cargo_cow.errors import UsageError
from cargo_cow.filesystems.space import parse_age, parse_mark, parse_size, space_of
from cargo_cow.warehouse import gc, store

if TYPE_CHECKING:
    from pathlib import Path

_AT_ONCE = 1_000
"""Entries that go in one run; some 0.1 s of the filesystem's time."""


class Settings(NamedTuple):
    """``cargo-cow.warehouse…`` of git's configuration: what goes, and whether unasked."""

    policy: gc.Policy
    automatic: bool


def settings(root: Path) -> Settings:
    """The settings for the store at ``root``.

    Raises UsageError, which names the setting, for a value that means nothing.
    """
    values = git.own_settings(root)
    budget = values.get("warehousebudget")
    try:
        policy = gc.Policy(
            unused_for=parse_age(values.get("warehouseunusedfor", "30d")),
            budget=None if budget is None else parse_size(budget),
            min_free=parse_mark(values.get("warehouseminfree", "5%")),
        )
        return Settings(policy, git.own_truth("warehouseGc", values.get("warehousegc", "true")))
    except UsageError as error:
        raise UsageError(
            f"git config cargo-cow.warehouse…: {error}",
            hint="git config --get-regexp '^cargo-cow'",
        ) from None


def tidy(root: Path) -> gc.Done | None:
    """Let go what the settings say, if anything; what came of it is noted beside the calls.

    None: nothing to do, or switched off.  Raises CowError.
    """
    chosen = settings(root)
    if not chosen.automatic:
        return None
    now = time.time()
    planned = gc.plan(root, store.entries(root), chosen.policy, now, space_of([root]).get(root))
    planned = planned._replace(going=planned.going[:_AT_ONCE])
    if not planned.going and not planned.leftovers:
        return None
    done = gc.carry_out(root, planned)
    event = {"time": round(now, 3), "what": "tidied", **done._asdict()}
    store.tell(root, event)
    return done
