"""Carry out a plan: drop, rewrite, put back source times, stamp, note; in that order.

The order makes a kill at any instant harmless: units that must not be called Fresh are dropped
before any time is moved, and a unit's reference file is stamped after its outputs, so that a
half-stamped unit is at worst rebuilt.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from cargo_cow.prepare import record
from cargo_cow.prepare.contents import Contents
from cargo_cow.prepare.proof import Drop, Plan


class Applied(NamedTuple):
    """What was done: numbers of units dropped and of files rewritten, put back and stamped."""

    dropped: int
    rewritten: int
    source_times: int
    stamped: int


def apply(plan: Plan, t0: int, contents: Contents) -> Applied:
    """Carry out ``plan``; ``t0`` (ns) was read from the filesystem's clock before the proof began.

    The caller holds Cargo's build lock, or the target is not published yet.  Raises OSError.
    """
    for directory in plan.forget:
        # First: a unit that is dropped is compiled, and must not find it.
        import shutil

        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
    for dropped in plan.drop:
        drop(dropped)
    for rewrite in plan.rewrites:
        temporary = f"{rewrite.path}.{os.getpid()}.tmp"
        before = os.stat(rewrite.path).st_mtime_ns
        # No sync: this belongs to a target that Cargo writes without sync as well.
        with open(temporary, "wb") as file:
            file.write(rewrite.data)
        # The time it speaks of stays; where the unit is stamped, that follows below.
        os.utime(temporary, ns=(before, before))
        os.replace(temporary, rewrite.path)
    put_back = sum(
        _put_back(entry.path, entry.mtime, entry.digest, contents) for entry in plan.source_times
    )
    done: set[str] = set()
    for path in plan.stamp:
        if path not in done:
            done.add(path)
            os.utime(path, ns=(t0, t0))
    for path, key, made in plan.settled:
        record.write(path, key, made)
    return Applied(len(plan.drop), len(plan.rewrites), put_back, len(done))


def drop(dropped: Drop) -> None:
    """Make Cargo rebuild a unit, and see its dependents as stale in the same run."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(dropped.reference_file)
    # What Cargo itself does to a dirty unit while it plans (fingerprint::prepare_target).
    with open(dropped.hash_file, "wb"):
        pass


def _put_back(path: str, mtime: int, digest: str, contents: Contents) -> bool:
    """Give a source file its recorded mtime, and compare its contents again afterwards.

    An edit that slipped in between would be hidden by the old time: then the file gets the
    present time, and Cargo sees it.
    """
    try:
        os.utime(path, ns=(mtime, mtime))
    except OSError:
        return False  # not ours to touch: Cargo will run the script again
    if contents.again(path) == digest:
        return True
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    return False
