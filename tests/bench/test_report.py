"""The report judges by the samples: medians, promises kept or missed, and every cell lost."""

from __future__ import annotations

import io
import json

from rich.console import Console

from cargo_cow.bench import report
from cargo_cow.bench.counting import Count
from cargo_cow.bench.steps import Measured, Sample


def _cell(
    workload: str,
    tool: str,
    *seconds: float,
    rustc: tuple[str, ...] = (),
    scripts: tuple[str, ...] = (),
    **values: float,
) -> Measured:
    count = Count(rustc, 0, scripts)
    return Measured(workload, tool, tuple(Sample(s, count, values) for s in seconds))


def _report(*cells: Measured) -> report.Report:
    machine: dict[str, str | int | float] = {
        "filesystem": "btrfs",
        "cores": 2,
        "rustc": "rustc 1.95.0",
        "load_average": 0.1,
    }
    return report.Report(machine, {"name": "small", "revisions": "one, two"}, cells)


_STILL = _cell("unchanged", "plain", 0.05, 0.04, 0.06)


def _figures(*cells: Measured) -> dict[str, report.Figure]:
    return {figure.name: figure for figure in report.figures(_report(*cells))}


def test_the_median_is_of_all_samples_and_counts_show_when_runs_differ() -> None:
    one = Sample(3.0, Count(("a",), 0, ()), {"exclusive_bytes": 10.0})
    two = Sample(1.0, Count((), 0, ("s-1",)), {})
    three = Sample(1.5, Count(("a",), 0, ()), {"exclusive_bytes": 30.0})
    cell = Measured("new-worktree", "cow", (one, two, three))
    assert cell.seconds == 1.5
    assert cell.counts("rustc") == (0, 1)
    assert cell.counts("scripts") == (0, 1)
    assert cell.value("exclusive_bytes") == 20.0
    assert cell.value("other") is None


def test_a_new_worktree_is_held_to_all_its_promises() -> None:
    good = _figures(
        _STILL,
        _cell("new-worktree", "cow", 0.25, exclusive_bytes=9.0, donor_bytes=1000.0),
    )
    assert all(figure.reached for figure in good.values())
    bad = _figures(
        _STILL,
        _cell(
            "new-worktree",
            "cow",
            0.27,
            rustc=("app", "util"),
            scripts=("app-00",),
            exclusive_bytes=11.0,
            donor_bytes=1000.0,
        ),
    )
    assert not any(figure.reached for figure in bad.values())
    assert bad["new worktree, cow: rustc calls"].note == "app, util"
    assert bad["new worktree, cow: build scripts"].note == "app-00"


def test_what_plain_cargo_rebuilds_every_time_is_not_held_against_us() -> None:
    still = _cell("unchanged", "plain", 3.0, rustc=("hk",), scripts=("hk-00",))
    found = _figures(still, _cell("new-worktree", "shim", 3.0, rustc=("hk",), scripts=("hk-00",)))
    assert found["new worktree, shim: rustc calls"].reached
    assert found["new worktree, shim: build scripts"].reached


def test_another_commit_must_not_compile_more_than_in_place() -> None:
    in_place = _cell("other-commit", "in place", 5.0, rustc=("a", "b"))
    same = _cell("other-commit", "cow", 5.0, rustc=("b", "a"))
    more = _cell("other-commit", "shim", 5.0, rustc=("a", "b", "c"))
    found = _figures(in_place, same, more)
    assert found["other commit, cow: rustc calls"].reached
    assert not found["other commit, shim: rustc calls"].reached


def test_small_costs_are_differences() -> None:
    found = _figures(
        _STILL,
        _cell("unchanged", "cow", 0.12),
        _cell("passed-call", "plain", 0.001),
        _cell("passed-call", "shim", 0.0035),
        _cell("clone", "cow", 0.02, files=2000.0, per_thousand_files=0.01, snapshot=1.0),
        _cell("prepare", "cow", 0.5, units=610.0, own_seconds=0.4),
    )
    assert found["unchanged checkout: on top of cargo build"].reached
    assert not found["shim: per passed call"].reached
    assert found["snapshot of the donor's target"].reached
    assert not found["prepare"].reached
    assert "610" in found["prepare"].note


def _warehouse(slow: float, rustc: tuple[str, ...]) -> dict[str, report.Figure]:
    """All figures of the warehouse, at their limits times ``slow``."""
    ours, shim = "cow-warehouse", "shim-warehouse"
    return _figures(
        _cell("cold", "plain", 100.0, cpu_seconds=200.0, rustc=("a", "b")),
        _cell("cold", ours, 102.0 * slow, cpu_seconds=204.0 * slow),
        _cell("cold", "cow-unobserved", 100.0, cpu_seconds=200.0),
        _cell("cold", "cow", 101.0 * slow, cpu_seconds=202.0 * slow),
        _cell("two-at-once", ours, 109.9 * slow, rustc=("a", "b")),
        _cell("target-removed", "plain", 100.0, still_seconds=0.1, added_bytes=1000.0),
        _cell("target-removed", "sccache", 50.0, added_bytes=1000.0),
        _cell("target-removed", ours, 0.5 * slow, rustc=rustc, added_bytes=1000.0 * slow),
        _cell("target-removed", shim, 3.0, hits=40.0, hit_seconds=0.005 * slow),
        _cell(
            "second-project",
            ours,
            2.0,
            dependencies_seconds=1.0 * slow,
            dependencies_rustc=float(len(rustc)),
            dependencies_scripts=float(len(rustc)),
        ),
        _cell("second-project", shim, 2.0, dependencies_rustc=float(len(rustc))),
        _cell("second-project", "sccache", 11.0, dependencies_seconds=10.0),
        _cell("second-project", "kache", 3.0, dependencies_seconds=2.0),
        _cell("second-project", "mbx", 3.0, dependencies_seconds=2.0),
        _cell("script-unchanged", "plain", 3.0, rustc=("hk", "hk")),
        _cell("script-unchanged", ours, 0.3 * slow, rustc=rustc),
        _cell("script-unchanged", shim, 0.3 * slow, rustc=rustc),
        _cell(
            "disk-shared",
            ours,
            9.0,
            target_bytes=1000.0,
            worktree_bytes=10.0 * slow,
            project_bytes=60.0 * slow,
            project_own_bytes=50.0,
        ),
        _cell("disk-shared", "sccache", 9.0, worktree_bytes=900.0, project_bytes=900.0),
    )


def test_the_warehouse_is_held_to_all_its_promises() -> None:
    good = _warehouse(1.0, ())
    assert len(good) == 22, sorted(good)
    assert [name for name, figure in good.items() if not figure.reached] == []
    bad = _warehouse(1.01, ("dep",))
    # Scripts that run below the shim alone are shown, and not promised.
    assert [name for name, figure in bad.items() if figure.reached] == [
        "second project, shim-warehouse: build scripts of dependencies"
    ]
    assert "sccache 900 B" in bad["disk: a further worktree"].note
    assert "3.00 s, 2 rustc" in bad["script unchanged, cow-warehouse: the build"].note


def test_where_nothing_came_back_each_unit_took_the_whole_build() -> None:
    found = _figures(_cell("target-removed", "shim-warehouse", 30.0, hits=0.0, hit_seconds=0.0))
    assert not found["target removed, through the shim: each unit"].reached


def test_a_build_of_nothing_is_taken_from_where_it_was_measured() -> None:
    removed = _cell("target-removed", "plain", 9.0, still_seconds=0.5, still_rustc=2.0)
    ours = _cell("target-removed", "cow-warehouse", 1.2, rustc=("a", "b"))
    assert all(figure.reached for figure in _figures(removed, ours).values())
    found = _figures(removed, ours, _STILL)
    assert not found["target removed: the build"].reached
    assert not found["target removed: rustc calls"].reached


def test_every_lost_cell_is_named_with_the_worktrees_own_time() -> None:
    lost = report.losses(
        _report(
            _cell("new-worktree", "plain", 10.0, add_seconds=0.1),
            _cell("new-worktree", "cow", 0.1, add_seconds=0.5),
            _cell("new-worktree", "reflink", 0.4, add_seconds=0.1),
            _cell("new-worktree", "reflink-touched", 0.1, add_seconds=0.1),
            _cell("first-edit", "in place", 1.0),
            _cell("first-edit", "cow", 2.0),
        )
    )
    assert [(loss.workload, loss.other) for loss in lost] == [
        ("new-worktree", "reflink"),
        ("first-edit", "in place"),
    ]


def test_json_holds_every_sample_and_no_infinity() -> None:
    found = _report(
        _STILL,
        _cell("unchanged", "cow", 0.1),
        _cell("clone", "cow", 0.2, files=10.0, per_thousand_files=20.0, snapshot=0.0),
    )
    value = json.loads(json.dumps(report.as_json(found), allow_nan=False))
    assert value["format"] == 1
    assert value["workloads"][0]["samples_seconds"] == [0.05, 0.04, 0.06]
    assert value["workloads"][1]["ratio_to_plain"] == 2.0
    assert value["losing"][0]["workload"] == "unchanged"
    assert {figure["name"] for figure in value["figures"] if figure["limit"] is None} == {
        "clone of the donor's target"
    }


def test_the_terminal_ends_with_what_is_lost() -> None:
    console = Console(file=io.StringIO(), width=160)
    for part in report.render(_report(_STILL, _cell("unchanged", "cow", 0.2))):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().rstrip().splitlines()
    assert "NO" in console.file.getvalue()
    assert lines[-2] == "figures missed: unchanged checkout: on top of cargo build"
    assert lines[-1].endswith("unchanged: cow 0.200 s, plain 0.050 s")


def test_sizes_and_times_are_readable() -> None:
    assert [report.size(v) for v in (0, 999, 1500, 408_289_280, 2e9, 5e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "408.3 MB",
        "2.00 GB",
        "5000.00 GB",
    ]
    assert report.seconds(0.04171) == "0.0417"
    assert report.seconds(18.4127) == "18.41"
    assert report.seconds(None) == ""
