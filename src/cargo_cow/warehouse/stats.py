"""Figures of the warehouse, counted from what the shim noted of each call.

Nothing is counted while a build runs: a line is noted for each call, and added up here.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cargo_cow.warehouse.store import Entry

_LISTED = 10
_NOT_RESTORED = "not restored: "


class Missed(NamedTuple):
    """A crate's misses, with the most frequent reason.  ``project``: the target's directory."""

    package: str
    crate: str
    project: str
    misses: int
    reason: str


class Project(NamedTuple):
    """What became of the calls for one target (``directory``: that of a profile)."""

    directory: str
    hits: int
    misses: int


class Stats(NamedTuple):
    """What became of the calls.  Bytes are those of files given out (hits) or taken in (kept).

    ``grafted``: whole units that were put into targets before Cargo.
    ``failed``: misses where there was an entry, and its files could not be given out.
    ``seconds_saved`` is what the compiles of hits and grafted units took when they were kept, less
    what giving them out took.  ``let_go`` entries went by themselves, and gave ``let_go_bytes``
    back.  ``waited`` counts the hits that waited for another build's compile, and
    ``seconds_waited`` is all waiting, that in vain as well.
    """

    hits: int
    grafted: int
    misses: int
    failed: int
    kept: int
    missed: dict[str, int]
    not_kept: dict[str, int]
    passed: dict[str, int]
    reflinked_bytes: int
    copied_bytes: int
    copied_reasons: dict[str, int]
    seconds_saved: float
    milliseconds_per_hit: float
    let_go: int
    let_go_bytes: int
    waited: int
    seconds_waited: float
    projects: tuple[Project, ...]
    missed_most: tuple[Missed, ...]


def count(events: Iterable[dict[str, Any]], since: float = 0.0) -> Stats:
    """Count events that are not older than ``since`` (seconds since the epoch)."""
    what: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {
        "miss": Counter(),
        "not-kept": Counter(),
        "passed": Counter(),
        "copied": Counter(),
    }
    projects: dict[str, Counter[str]] = {}
    crates: dict[tuple[str, str, str], Counter[str]] = {}
    reflinked = copied = failed = grafted = let_go = let_go_bytes = 0
    grafting = 0.0
    waited = 0
    saved = spent = seconds_waited = 0.0
    for event in events:
        if _number(event.get("time")) < since:
            continue
        kind = str(event["what"])
        what[kind] += 1
        reason = str(event.get("reason") or "")
        project = str(event.get("profile") or "")
        if kind in reasons:
            reasons[kind][_class(reason)] += 1
        reflinked += int(_number(event.get("reflinked")))
        copied += int(_number(event.get("copied")))
        if event.get("copied_reason"):
            reasons["copied"][str(event["copied_reason"])] += 1
        if kind in ("hit", "miss") and project:
            projects.setdefault(project, Counter())[kind] += 1
        if kind in ("hit", "miss"):
            seconds_waited += _number(event.get("waited"))
        if kind == "hit":
            waited += _number(event.get("waited")) > 0
            spent += _number(event.get("seconds"))
            saved += _number(event.get("compile_seconds"))
        elif kind == "grafted":
            grafted += int(_number(event.get("units")))
            grafting += _number(event.get("seconds"))
            saved += _number(event.get("compile_seconds"))
        elif kind == "miss":
            failed += reason.startswith(_NOT_RESTORED)
            crate = str(event.get("package") or ""), str(event.get("crate") or ""), project
            crates.setdefault(crate, Counter())[_class(reason)] += 1
        elif kind == "tidied":
            let_go += int(_number(event.get("removed")))
            let_go_bytes += int(_number(event.get("freed")))
    hits = what["hit"]
    missed_most = sorted(crates.items(), key=lambda one: (-one[1].total(), one[0]))[:_LISTED]
    return Stats(
        hits=hits,
        grafted=grafted,
        misses=what["miss"],
        failed=failed,
        kept=what["kept"],
        missed=dict(reasons["miss"].most_common()),
        not_kept=dict(reasons["not-kept"].most_common()),
        passed=dict(reasons["passed"].most_common()),
        reflinked_bytes=reflinked,
        copied_bytes=copied,
        copied_reasons=dict(reasons["copied"].most_common()),
        seconds_saved=max(0.0, saved - spent - grafting),
        milliseconds_per_hit=spent / hits * 1000 if hits else 0.0,
        let_go=let_go,
        let_go_bytes=let_go_bytes,
        waited=waited,
        seconds_waited=seconds_waited,
        projects=tuple(
            Project(name, each["hit"], each["miss"])
            for name, each in sorted(projects.items(), key=lambda one: -one[1]["miss"])
        ),
        missed_most=tuple(
            Missed(*crate, misses=why.total(), reason=why.most_common(1)[0][0])
            for crate, why in missed_most
        ),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _class(reason: str) -> str:
    """Reasons that differ only in the file or variable they name count as one."""
    for start in ("file", "new file", "variable", "directory"):
        if reason.startswith(f"{start} "):
            return f"{start} differs" if start != "new file" else "a new file"
    if ": " in reason and reason.startswith("/"):
        return reason.rpartition(": ")[2]
    if reason.startswith("/") and " " in reason:
        return reason.partition(" ")[2]
    return reason or "unknown"


class Disk(NamedTuple):
    """Bytes on the disk, as the filesystem has them.

    ``exclusive_bytes`` come back if the whole store goes, ``shared_bytes`` of it others use, too.
    ``saved_bytes``: what the entries and the ``targets`` that were looked at would use on top if
    each had its own copy.  Roughly where not ``exact``.
    """

    exclusive_bytes: int
    shared_bytes: int
    saved_bytes: int
    targets: int
    exact: bool


def measure(entries: Sequence[Entry], projects: Iterable[Project]) -> Disk:
    """Look at the extents of all entries, and of the targets that calls were made for and that are
    still there: of what compilers made in them, which is where the store's data can be."""
    from cargo_cow.filesystems import sharing

    trees = {os.fspath(entry.path): entry.path for entry in entries}
    own = frozenset(trees)
    targets: set[str] = set()
    for project in projects:
        for room in ("deps", "examples", "build"):
            path = Path(project.directory) / room
            if path.is_dir():
                trees[os.fspath(path)] = path
                targets.add(project.directory)
    told = sharing.measure(trees, outside=True)
    exclusive = shared = saved = 0
    for users, size in told.used.items():
        known = users - {sharing.OUTSIDE}
        if not known & own:
            continue
        if users <= own:
            exclusive += size
        else:
            shared += size
        saved += size * (len(known) - 1)
    return Disk(exclusive, shared, saved, len(targets), told.exact)
