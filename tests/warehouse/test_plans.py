"""What needs no filesystem: which entries go, and why; what events add up to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cargo_cow.errors import UsageError
from cargo_cow.filesystems.sharing import OUTSIDE, Range, Sharing, overlay
from cargo_cow.filesystems.space import Mark, Space
from cargo_cow.warehouse import gc, housekeeping, stats
from cargo_cow.warehouse.store import Entry

NOW = 1_000_000_000.0
DAY = gc.DAY


def entry(
    name: str, *, idle: float = DAY, seconds: float = 1.0, trouble: str | None = None
) -> Entry:
    used = NOW - idle
    return Entry(
        Path("/s") / name,
        name,
        name,
        f"{name} 1.0",
        used,
        used,
        seconds,
        incremental=False,
        outputs=(),
        trouble=trouble,
    )


def sharing(used: dict[str, int]) -> Sharing:
    """ "a b" → bytes that a and b use; "-" is somebody outside."""

    def user(word: str) -> str:
        return OUTSIDE if word == "-" else f"/s/{word}"

    return Sharing({frozenset(map(user, names.split())): n for names, n in used.items()}, True)


def going(planned: gc.Plan) -> list[str]:
    return [one.entry.crate for one in planned.going]


def test_what_is_shared_with_somebody_else_does_not_come_back() -> None:
    ranges = [
        Range(0, 10, "a"),  # a's own
        Range(10, 20, "a", True),  # a's and somebody's outside
        Range(20, 30, "a", True),  # a's and b's
        Range(20, 30, "b", True),
        Range(30, 40, "a", True),  # twice in a, and nowhere else
        Range(30, 40, "a", True),
    ]
    told = Sharing(overlay(ranges), True)
    assert told.freed(["a"]) == 20
    assert told.freed(["a", "b"]) == told.together == 30


def test_bytes_are_those_of_the_whole_set() -> None:
    two = [entry("a", idle=40 * DAY), entry("b", idle=41 * DAY)]
    told = sharing({"a": 1, "b": 2, "a b": 100, "a -": 1000})
    planned = gc.decide(two, gc.Policy(), told, NOW)
    assert [(one.entry.crate, one.alone) for one in planned.going] == [("b", 2), ("a", 101)]
    assert (planned.frees, planned.exclusive) == (103, 103)
    planned = gc.decide([two[0], entry("b")], gc.Policy(), told, NOW)
    assert (going(planned), planned.frees) == (["a"], 1)


def test_over_the_budget_what_is_worth_least_goes_first() -> None:
    dear = entry("dear", seconds=60)
    cheap = entry("cheap", seconds=0.1)
    small = entry("small", seconds=0.1)
    old = entry("old", idle=20 * DAY, seconds=1)
    told = sharing({"dear": 100, "cheap": 100, "small": 1, "old": 100})
    four = [dear, cheap, small, old]
    for budget, wanted in [
        (301, []),
        (300, ["old"]),
        (200, ["old", "cheap"]),
        (100, ["old", "cheap", "small"]),
        (0, ["old", "cheap", "small", "dear"]),
    ]:
        planned = gc.decide(four, gc.Policy(budget=budget), told, NOW)
        assert going(planned) == wanted, budget
        assert {one.reason for one in planned.going} <= {"over the budget"}


def test_the_mark_of_free_space() -> None:
    two = [entry("a", idle=2 * DAY), entry("b", idle=DAY)]
    told = sharing({"a": 100, "b": 100})
    policy = gc.Policy(min_free=Mark(percent=10))
    for free, wanted in [(100, []), (99, ["a"]), (0, ["a"]), (-50, ["a", "b"])]:
        planned = gc.decide(two, policy, told, NOW, Space(free, 1000))
        assert going(planned) == wanted, free
    assert {one.reason for one in planned.going} == {"the filesystem is nearly full"}


def test_what_brings_nothing_stays() -> None:
    told = sharing({"a -": 100, "b": 10})
    planned = gc.decide([entry("a", idle=9 * DAY), entry("b")], gc.Policy(budget=0), told, NOW)
    assert going(planned) == ["b"]
    # But not for ever.
    planned = gc.decide([entry("a", idle=31 * DAY)], gc.Policy(), told, NOW)
    assert (going(planned), planned.frees) == (["a"], 0)


def test_what_was_just_used_stays_whatever_the_rule() -> None:
    now = entry("now", idle=10)
    policy = gc.Policy(unused_for=0, budget=0, min_free=Mark(bytes=1000))
    told = sharing({"now": 100})
    assert going(gc.decide([now], policy, told, NOW, Space(0, 10))) == []
    assert going(gc.decide([now._replace(trouble="torn")], policy, told, NOW)) == ["now"]


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gitconfig"
    file.write_text("")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(file))
    assert housekeeping.settings(tmp_path) == housekeeping.Settings(
        gc.Policy(30 * DAY, None, Mark(percent=5)), automatic=True
    )
    file.write_text(
        "[cargo-cow]\nwarehouseUnusedFor = 7d\nwarehouseBudget = 20GB\n"
        "warehouseMinFree = 1GB\nwarehouseGc = no\n"
    )
    assert housekeeping.settings(tmp_path) == housekeeping.Settings(
        gc.Policy(7 * DAY, 20_000_000_000, Mark(bytes=1_000_000_000)), automatic=False
    )
    file.write_text("[cargo-cow]\nwarehouseBudget = much\n")
    with pytest.raises(UsageError, match="much"):
        housekeeping.settings(tmp_path)


def test_who_misses_most() -> None:
    def event(what: str, crate: str, reason: str, profile: str) -> dict[str, object]:
        return {"time": 5, "what": what, "crate": crate, "reason": reason, "profile": profile}

    counted = stats.count(
        [
            event("miss", "a", "file src/a.rs", "/one/debug"),
            event("miss", "a", "file src/b.rs", "/one/debug"),
            event("miss", "a", "new", "/two/debug"),
            event("miss", "b", "not restored: No space", "/two/debug"),
            event("hit", "a", "", "/two/debug"),
            {"time": 5, "what": "tidied", "removed": 3, "freed": 100},
            {"time": 5, "what": "grafted", "units": 7, "seconds": 1, "compile_seconds": 5},
            {"time": 5, "what": "something new"},
        ]
    )
    assert counted.missed_most[0] == stats.Missed("", "a", "/one/debug", 2, "file differs")
    assert set(counted.projects) == {
        stats.Project("/one/debug", 0, 2),
        stats.Project("/two/debug", 1, 2),
    }
    assert (counted.grafted, counted.seconds_saved) == (7, 4)
    assert (counted.failed, counted.let_go, counted.let_go_bytes) == (1, 3, 100)
