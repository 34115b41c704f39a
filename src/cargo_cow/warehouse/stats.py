"""Figures of the warehouse, counted from what the shim noted of each call."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Stats(NamedTuple):
    """What became of the calls.  Bytes are those of files given out (hits) or taken in (kept).

    ``seconds_saved`` is what the compiles of the hits took when they were kept, less what the
    hits took.
    """

    hits: int
    misses: int
    kept: int
    missed: dict[str, int]
    not_kept: dict[str, int]
    passed: dict[str, int]
    reflinked_bytes: int
    copied_bytes: int
    copied_reasons: dict[str, int]
    seconds_saved: float
    milliseconds_per_hit: float


def count(events: Iterable[dict[str, Any]], since: float = 0.0) -> Stats:
    """Count events that are not older than ``since`` (seconds since the epoch)."""
    what: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {
        "miss": Counter(),
        "not-kept": Counter(),
        "passed": Counter(),
        "copied": Counter(),
    }
    reflinked = copied = 0
    saved = spent = 0.0
    for event in events:
        if _number(event.get("time")) < since:
            continue
        kind = str(event["what"])
        what[kind] += 1
        if kind in reasons:
            reasons[kind][_class(str(event.get("reason", "")))] += 1
        reflinked += int(_number(event.get("reflinked")))
        copied += int(_number(event.get("copied")))
        if event.get("copied_reason"):
            reasons["copied"][str(event["copied_reason"])] += 1
        if kind == "hit":
            spent += _number(event.get("seconds"))
            saved += _number(event.get("compile_seconds"))
    hits = what["hit"]
    return Stats(
        hits=hits,
        misses=what["miss"],
        kept=what["kept"],
        missed=dict(reasons["miss"].most_common()),
        not_kept=dict(reasons["not-kept"].most_common()),
        passed=dict(reasons["passed"].most_common()),
        reflinked_bytes=reflinked,
        copied_bytes=copied,
        copied_reasons=dict(reasons["copied"].most_common()),
        seconds_saved=max(0.0, saved - spent),
        milliseconds_per_hit=spent / hits * 1000 if hits else 0.0,
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _class(reason: str) -> str:
    """Reasons that differ only in the file or variable they name count as one."""
    for start in ("file", "new file", "variable"):
        if reason.startswith(f"{start} "):
            return f"{start} differs" if start != "new file" else "a new file"
    if ": " in reason and reason.startswith("/"):
        return reason.rpartition(": ")[2]
    if reason.startswith("/") and " " in reason:
        return reason.partition(" ")[2]
    return reason or "unknown"
