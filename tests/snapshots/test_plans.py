"""What needs no filesystem: names, plans, who shares what, what was checked out when."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from cargo_cow.errors import UsageError
from cargo_cow.filesystems.sharing import Range, Sharing, overlay
from cargo_cow.snapshots.policy import Mark, Policy, Space, parse_age, parse_mark, parse_size
from cargo_cow.snapshots.pruning import Facts, Plan, Rename, called_now, decide
from cargo_cow.snapshots.state import Damaged, Seal, State, Units, checked_name, new_id
from cargo_cow.snapshots.taking import Move, built_at


def _state(
    number: int, *, name: str | None = None, branch: str | None = "main", baseline: bool = False
) -> State:
    return State(
        id=f"20260101-0000{number:02}-0000000000",
        name=name,
        project="p",
        checkout="/c",
        workspace="/c",
        build_dir="/c/target",
        branch=branch,
        commit=None,
        tree=None,
        clean=None,
        compiler=None,
        profiles=("debug",),
        created=float(number),
        taken=0,
        method="snapshot",
        parent=None,
        origin="created",
        logical_bytes=None,
        seal=Seal("tree", ""),
        baseline=baseline,
    )


def _going(plan: Plan) -> list[int]:
    return [int(decision.entry.id[13:15]) for decision in plan.going]


@pytest.mark.parametrize(
    "name", ["green", "release-1.2", "grün", "緑", "two words", "a", "v1.2.3", "x" * 100]
)
def test_names(name: str) -> None:
    assert checked_name(name) == name


def test_one_name_has_one_form() -> None:
    assert checked_name("gru\u0308n") == "grün"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " a",
        "a ",
        ".",
        "..",
        ".hidden",
        "-n",
        "a/b",
        "../../etc",
        "a\\b",
        "a\nb",
        "a\0b",
        "a\x1b[31m",
        "\udcff",
        "x" * 101,
        "20260101-000000-00000000",
        "20260101-",
        "a\u202eb",
    ],
)
def test_what_is_no_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked_name(name)
    assert str(caught.value).isprintable()


def test_ids_are_no_names_and_sort_by_age() -> None:
    made = [new_id() for _ in range(50)]
    assert [entry[:22] for entry in made] == sorted(entry[:22] for entry in made)
    with pytest.raises(UsageError):
        checked_name(new_id())


def test_the_last_stay_and_what_is_named_or_the_baseline_does_not_count() -> None:
    entries = [
        _state(1),
        _state(2, baseline=True),
        _state(3, name="green"),
        _state(4),
        _state(5),
        _state(6),
    ]
    plan = decide(Policy(keep_last=2), entries, Facts(100.0))
    assert _going(plan) == [1, 4]
    assert [decision.reason for decision in plan.decisions] == [
        "not among the last 2",
        "the baseline",
        "it has a name",
        "not among the last 2",
        "among the last 2",
        "among the last 2",
    ]
    assert plan.freed_bytes is None
    every = decide(Policy(keep_last=0, keep_named=False), entries, Facts(100.0))
    assert _going(every) == [1, 3, 4, 5, 6]


def test_age_or_number_is_enough_to_stay() -> None:
    entries = [_state(number) for number in range(1, 8)]
    policy = Policy(keep_last=1, keep_newer_than=4.0)
    assert _going(decide(policy, entries, Facts(8.0))) == [1, 2, 3, 4]
    assert _going(decide(policy, entries, Facts(1000.0))) == [1, 2, 3, 4, 5, 6]
    assert _going(decide(Policy(keep_last=None), entries, Facts(1000.0))) == []


def test_branches_that_are_gone_or_merged() -> None:
    entries = [
        _state(1, branch="gone"),
        _state(2, branch="gone", name="green"),
        _state(3, branch="done"),
        _state(4, branch="main"),
        _state(5, branch=None),
        _state(6, branch="gone", baseline=True),
    ]
    facts = Facts(9.0, frozenset({"main", "done"}), frozenset({"done"}), "main")
    assert _going(decide(Policy(), entries, facts)) == [1]
    plan = decide(Policy(drop_merged=True), entries, facts)
    assert _going(plan) == [1, 3]
    assert plan.going[1].reason == "its branch done is merged into main"
    # Where git cannot say, no branch counts as deleted.
    assert _going(decide(Policy(), entries, Facts(9.0))) == []


def test_what_is_not_usable_goes_and_what_is_foreign_stays() -> None:
    entries: list[State | Damaged] = [
        Damaged("20260101-000001-0000000000", Path(), "it was made writable"),
        Damaged("20260101-000002-0000000000", Path(), "format 9", foreign=True),
    ]
    assert _going(decide(Policy(keep_last=0), entries, Facts(9.0))) == [1]


def test_a_budget_takes_the_oldest_and_counts_what_two_share_with_each_other() -> None:
    entries = [_state(1), _state(2), _state(3, name="green"), _state(4)]
    one, two, three, four = (entry.id for entry in entries)
    used = {
        frozenset({one, two}): 100,  # comes back only when both go
        frozenset({two}): 5,
        frozenset({three}): 7,
        frozenset({four}): 1,
        frozenset({four, "target /c/target"}): 1000,  # the live target needs it as well
    }
    sharing = Sharing(used, exact=True)

    def plan(budget: int) -> Plan:
        return decide(Policy(keep_last=None, budget=budget), entries, Facts(9.0), sharing)

    assert plan(113) == plan(113)
    assert (_going(plan(113)), plan(113).freed_bytes, plan(113).kept_bytes) == ([], 0, 113)
    assert (_going(plan(112)), plan(112).freed_bytes, plan(112).kept_bytes) == ([1, 2], 105, 8)
    assert _going(plan(7)) == [1, 2, 4]
    assert _going(plan(0)) == [1, 2, 4]  # what has a name stays, budget or not


def test_overlaid_ranges_against_single_bytes() -> None:
    random = Random(20_260_101)
    for _ in range(200):
        ranges = []
        for _ in range(random.randrange(12)):
            start = random.randrange(30)
            ranges.append(Range(start, start + random.randrange(1, 10), random.choice("abc")))
        expected: dict[frozenset[str], int] = {}
        for byte in range(50):
            users = frozenset(entry.user for entry in ranges if entry.start <= byte < entry.stop)
            if users:
                expected[users] = expected.get(users, 0) + 1
        assert overlay(ranges) == expected


def test_units_beyond_those_of_others() -> None:
    here = Units({"a": 1, "b": 2}, ("doc",))
    assert here.beyond([]) == 3
    assert here.beyond([Units({"a": 1}, ()), Units({"b": 2}, ("doc",))]) == 0
    assert here.beyond([Units({"a": 1, "b": 3}, ("doc",))]) == 1


def test_what_was_checked_out_when_a_target_was_built() -> None:
    moves = [
        Move("c3", 30, "checkout: moving from main to topic"),
        Move("c2", 20, "commit: second"),
        Move("c1", 10, "commit (initial): first"),
    ]
    assert built_at("c3", "topic", moves, 25) == ("c2", "main")
    # What was built before it was committed is a build of that commit.
    assert built_at("c2", "main", moves[1:], 15) == ("c2", "main")
    assert built_at("c2", "main", moves[1:], 20) == ("c2", "main")
    assert built_at("c3", "topic", moves, 15) == ("c2", "main")
    detached = [Move("c1", 30, "checkout: moving from " + "c2" * 20 + " to main"), *moves[1:]]
    assert built_at("c1", "main", detached, 25) == ("c2", None)
    reset = [Move("c1", 30, "reset: moving to HEAD~"), *moves[1:]]
    assert built_at("c1", "main", reset, 25) == ("c2", "main")
    same = [Move("c2", 30, "checkout: moving from main to same", "t2"), Move("c2", 20, "x", "t2")]
    assert built_at("c2", "same", same, 25) == ("c2", "same")
    # Built, a new branch, an edit, a commit of it: what is checked out was not built.
    later = [Move("c4", 40, "commit: of an edit", "t4"), *same]
    assert built_at("c4", "same", later, 25) == ("c4", "same")
    assert built_at("c4", "same", later, 25, differs=True) == ("c2", "main")
    # Built, committed, switched away: the commit is of what was built.
    away = [Move("c1", 50, "checkout: moving from same to main", "t1"), *later]
    assert built_at("c1", "main", away, 35, differs=True) == ("c4", "same")


def test_sizes_and_ages() -> None:
    assert parse_size("20GB") == parse_size("20g") == 20_000_000_000
    assert parse_size("1.5MiB") == 1_572_864
    assert parse_size("7") == parse_size("7B") == 7
    assert parse_age("2w") == 14 * parse_age("1d") == 1_209_600
    for wrong in ("", "x", "-1", "1y"):
        with pytest.raises(UsageError):
            parse_age(wrong)
        with pytest.raises(UsageError):
            parse_size(wrong)


def test_a_worktree_that_is_gone_takes_its_states_along_if_asked() -> None:
    entries = [_state(1), _state(2, name="green"), _state(3, baseline=True)]
    facts = Facts(9.0, vanished=frozenset({"/c"}))
    assert _going(decide(Policy(), entries, facts)) == []
    plan = decide(Policy(drop_vanished=True), entries, facts)
    assert [decision.reason for decision in plan.going] == ["its worktree is gone"]


def test_a_full_filesystem_takes_the_oldest_of_its_own_states() -> None:
    here, there = Path("/here"), Path("/there")
    entries = [
        _state(number)._replace(path=(here if number % 2 else there) / str(number))
        for number in range(1, 7)
    ]
    entries[0] = entries[0]._replace(name="green")
    sharing = Sharing({frozenset({entry.id}): 10 for entry in entries}, exact=True)

    def going(mark: Mark, free_here: int) -> list[int]:
        facts = Facts(9.0, space={here: Space(free_here, 1000), there: Space(500, 1000)})
        return _going(decide(Policy(keep_last=None, min_free=mark), entries, facts, sharing))

    assert going(Mark(100), 100) == []
    assert going(Mark(100), 99) == [3]
    assert going(Mark(100), 89) == [3, 5]
    assert going(Mark(100), 0) == [3, 5]  # what has a name stays
    assert going(Mark(percent=10.0), 85) == [3, 5]
    assert going(Mark(percent=51.0), 505) == [2, 3]


def test_marks() -> None:
    assert parse_mark("5%") == Mark(percent=5.0)
    assert parse_mark(" 2.5 % ").of(1000) == 25
    assert parse_mark("20GB") == Mark(20_000_000_000)
    for wrong in ("101%", "%", "-1%", ""):
        with pytest.raises(UsageError):
            parse_mark(wrong)


def test_the_newest_of_each_branch_outlasts_a_bisect() -> None:
    entries = [
        _state(1),
        _state(2, branch="topic"),
        _state(3),
        *(_state(number, branch=None) for number in range(4, 12)),
    ]
    assert _going(decide(Policy(keep_last=4), entries, Facts(99.0))) == [1, 4, 5, 6, 7, 8, 9]
    assert _going(decide(Policy(keep_last=1), entries, Facts(99.0))) == [1, 2, *range(4, 12)]


@pytest.mark.parametrize(
    ("branch", "since", "now"),
    [
        ("a", 5.0, "c"),  # a -> b -> c
        ("a", 10.9, "c"),  # in the second of the first renaming
        ("a", 15.0, "a"),  # another branch had the name by then
        ("b", 15.0, "c"),
        ("b", 5.0, "c"),
        ("x", 5.0, "x"),  # nobody knows
        ("d", 5.0, "d"),  # renamed to one that is deleted since
    ],
)
def test_what_a_branch_is_called_now(branch: str, since: float, now: str) -> None:
    renames = [Rename("a", "b", 10.0), Rename("b", "c", 20.0), Rename("d", "e", 20.0)]
    assert called_now(branch, since, frozenset({"c", "main"}), renames) == now
