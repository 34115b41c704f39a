"""What the samples say: medians, ratios, the figures we answer for, and every cell we lose."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow import __version__
from cargo_cow.bench import processes, tools
from cargo_cow.bench.caches import KACHE, MBX, SCCACHE
from cargo_cow.bench.steps import Measured
from cargo_cow.bench.tools import (
    COW,
    COW_WAREHOUSE,
    OWN_PLACE,
    PLAIN,
    REFLINK,
    SHIM,
    SHIM_WAREHOUSE,
    TOUCHED,
    UNOBSERVED,
)
from cargo_cow.bench.workloads import IN_PLACE, WORKLOADS

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 1
_OTHERS = (SCCACHE, KACHE, MBX)


class Figure(NamedTuple):
    """A promise, and what came of it.  ``value`` must not be greater than ``limit``."""

    name: str
    value: float
    limit: float
    unit: str
    note: str = ""

    @property
    def reached(self) -> bool:
        return self.value <= self.limit


class Loss(NamedTuple):
    """A cell in which another tool was faster than ours."""

    workload: str
    tool: str  # ours
    other: str
    seconds: float
    other_seconds: float


class Report(NamedTuple):
    machine: dict[str, str | int | float]
    project: dict[str, str]
    measured: tuple[Measured, ...]

    def cell(self, workload: str, tool: str) -> Measured | None:
        wanted = (workload, tool)
        return next((m for m in self.measured if (m.workload, m.tool) == wanted), None)


def machine(cwd: Path, filesystem: str) -> dict[str, str | int | float]:
    """Where this was measured; another load average is another measurement."""
    env = processes.environment()
    return {
        "cargo_cow": __version__,
        "cargo": processes.run(["cargo", "-V"], cwd=cwd, env=env).stdout.strip(),
        "rustc": processes.run(["rustc", "-V"], cwd=cwd, env=env).stdout.strip(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count() or 0,
        "load_average": round(os.getloadavg()[0], 2),
        "filesystem": filesystem,
    }


def figures(report: Report) -> list[Figure]:
    """The promises this run can judge."""
    return [
        *_worktree_figures(report),
        *_switch_figures(report),
        *_edit_figures(report),
        *_state_figures(report),
        *_cold_figures(report),
        *_removed_figures(report),
        *_second_figures(report),
        *_script_figures(report),
        *_disk_figures(report),
        *_small_figures(report),
    ]


def _worktree_figures(report: Report) -> Iterator[Figure]:
    still = report.cell("unchanged", PLAIN)
    # What plain Cargo compiles again in every build that changes nothing is not ours to save.
    spared = max(still.counts("rustc"), default=0) if still else 0
    spared_scripts = max(still.counts("scripts"), default=0) if still else 0
    for tool in (COW, SHIM):
        cell = report.cell("new-worktree", tool)
        if cell is None:
            continue
        built = max(cell.counts("rustc"), default=0)
        scripts = max(cell.counts("scripts"), default=0)
        crates, units = ran(cell)
        yield Figure(
            f"new worktree, {tool}: rustc calls", built, spared, "calls", ", ".join(crates)
        )
        yield Figure(
            f"new worktree, {tool}: build scripts",
            scripts,
            spared_scripts,
            "runs",
            ", ".join(units),
        )
        # Under plain Cargo the first build holds the preparing as well: shown, not promised.
        if still is not None and tool == COW:
            yield Figure(
                f"new worktree, {tool}: first build",
                cell.seconds,
                1.2 * still.seconds + 0.2,
                "seconds",
                "limit: 1.2 × plain Cargo's build of nothing + 0.2",
            )
        exclusive, donor = cell.value("exclusive_bytes"), cell.value("donor_bytes")
        if exclusive is not None and donor:
            yield Figure(
                f"new worktree, {tool}: exclusive bytes of the built target",
                exclusive,
                donor / 100,
                "bytes",
                "limit: 1 % of the donor's target",
            )


def _switch_figures(report: Report) -> Iterator[Figure]:
    in_place = report.cell("other-commit", IN_PLACE)
    if in_place is None:
        return
    for tool in (COW, SHIM):
        cell = report.cell("other-commit", tool)
        if cell is None:
            continue
        yield Figure(
            f"other commit, {tool}: rustc calls",
            max(cell.counts("rustc"), default=0),
            min(in_place.counts("rustc"), default=0),
            "calls",
            "limit: what plain Cargo compiles after the same switch in place",
        )
        _, units = ran(cell)
        yield Figure(
            f"other commit, {tool}: build scripts",
            max(cell.counts("scripts"), default=0),
            min(in_place.counts("scripts"), default=0),
            "runs",
            ", ".join(units) if len(units) <= 8 else f"{len(units)} of them",
        )


def _edit_figures(report: Report) -> Iterator[Figure]:
    in_place = report.cell("body-edit", IN_PLACE)
    without = report.cell("body-edit", OWN_PLACE)
    for tool in (COW, SHIM):
        cell = report.cell("body-edit", tool)
        if cell is None:
            continue
        if in_place is not None:
            yield Figure(
                f"first edit, {tool}",
                cell.seconds,
                1.05 * in_place.seconds,
                "seconds",
                "limit: 1.05 × the same edit in the main checkout",
            )
        if without is not None:
            yield Figure(
                f"first edit, {tool}, beside no identity",
                cell.seconds,
                without.seconds / 3,
                "seconds",
                "limit: a third of the same edit with CARGO_COW_IDENTITY=off",
            )


def _state_figures(report: Report) -> Iterator[Figure]:
    back, plain = report.cell("there-and-back", COW), report.cell("there-and-back", PLAIN)
    if back is not None:
        crates, _ = ran(back)
        still = report.cell("unchanged", PLAIN)
        spared = max(still.counts("rustc"), default=0) if still else 0
        yield Figure(
            "back on a commit: rustc calls",
            max(back.counts("rustc"), default=0),
            spared,
            "calls",
            ", ".join(crates),
        )
        if plain is not None:
            yield Figure(
                "back on a commit: the build",
                back.seconds,
                plain.seconds / 10,
                "seconds",
                "limit: a tenth of plain Cargo's",
            )
        sccache = report.cell("there-and-back", SCCACHE)
        if sccache is not None:
            yield Figure(
                "back on a commit: the build, beside sccache",
                back.seconds,
                sccache.seconds / 5,
                "seconds",
                "limit: a fifth of sccache's, its cache warm",
            )
    for name in ("create", "activate"):
        cell = report.cell(name, COW)
        start = None if cell is None else cell.value("start_seconds")
        if cell is not None and start is not None:
            yield Figure(
                f"snapshot {name}: beyond the program's start",
                cell.seconds - start,
                0.050,
                "seconds",
                "limit for Btrfs",
            )
    states = report.cell("states", COW)
    if states is not None:
        alone, target = states.value("exclusive_bytes"), states.value("target_bytes")
        if alone is not None and target:
            yield Figure(
                "twenty states: bytes that come back when they are deleted",
                alone,
                1.5 * target,
                "bytes",
                "limit: 1.5 × one target",
            )


_ANY = float("inf")  # the limit of what is shown and not promised


def _cold_figures(report: Report) -> Iterator[Figure]:
    """What is paid where nothing can be saved."""
    pairs = (
        (COW_WAREHOUSE, PLAIN, 1.02, "cold, empty warehouse", "plain Cargo"),
        (COW, UNOBSERVED, 1.01, "cold, observed", "the same with CARGO_COW_OBSERVE=off"),
    )
    for tool, other, factor, name, whom in pairs:
        ours, theirs = report.cell("cold", tool), report.cell("cold", other)
        if ours is None or theirs is None:
            continue
        note = f"limit: {factor} × {whom}"
        kept = ours.value("kept_seconds")
        if kept:
            note += f"; all was kept {seconds(kept)} s later"
        yield Figure(name, ours.seconds, factor * theirs.seconds, "seconds", note)
        used, others = ours.value("cpu_seconds"), theirs.value("cpu_seconds")
        if used is not None and others is not None:
            yield Figure(f"{name}: processor time", used, factor * others, "seconds", note)
    twice, once = report.cell("two-at-once", COW_WAREHOUSE), report.cell("cold", PLAIN)
    if twice is not None and once is not None:
        compiled = f"{max(twice.counts('rustc'), default=0)} rustc, "
        yield Figure(
            "two checkouts at once",
            twice.seconds,
            1.1 * once.seconds,
            "seconds",
            f"{compiled}one plain cold build: {max(once.counts('rustc'), default=0)}; "
            "limit: 1.1 × its time",
        )


def _removed_figures(report: Report) -> Iterator[Figure]:
    still, spared = _of_nothing(report)
    ours = report.cell("target-removed", COW_WAREHOUSE)
    if ours is not None:
        crates, _ = ran(ours)
        yield Figure(
            "target removed: rustc calls",
            max(ours.counts("rustc"), default=0),
            spared,
            "calls",
            ", ".join(crates),
        )
        if still is not None:
            yield Figure(
                "target removed: the build",
                ours.seconds,
                2 * still + 0.3,
                "seconds",
                f"limit: 2 × plain Cargo's build of nothing ({seconds(still)} s) + 0.3",
            )
        yield from _restored(report, ours)
    shim = report.cell("target-removed", SHIM_WAREHOUSE)
    if shim is not None:
        hits, each = shim.value("hits") or 0.0, shim.value("hit_seconds") or 0.0
        yield Figure(
            "target removed, through the shim: each unit",
            each if hits else shim.seconds,
            0.005,
            "seconds",
            f"{hits:.0f} given back, in a build of {seconds(shim.seconds)} s",
        )


def _of_nothing(report: Report) -> tuple[float | None, float]:
    """Plain Cargo's build in which nothing changed: its seconds, and what it compiles again."""
    removed, unchanged = report.cell("target-removed", PLAIN), report.cell("unchanged", PLAIN)
    if unchanged is not None:
        return unchanged.seconds, max(unchanged.counts("rustc"), default=0)
    if removed is not None:
        return removed.value("still_seconds"), removed.most("still_rustc")
    return None, 0.0


def _restored(report: Report, ours: Measured) -> Iterator[Figure]:
    """What a target that was given back takes on the disk."""
    added = ours.value("added_bytes")
    if added is None:
        return
    others = {
        other: cell.value("added_bytes")
        for other in (PLAIN, *_OTHERS)
        if (cell := report.cell("target-removed", other)) is not None
    }
    copied = others.get(SCCACHE)
    yield Figure(
        "target removed: bytes the filesystem holds more",
        added,
        _ANY if copied is None else copied,
        "bytes",
        ", ".join(f"{name} {size(value)}" for name, value in others.items()),
    )


def _second_figures(report: Report) -> Iterator[Figure]:
    for tool in (COW_WAREHOUSE, SHIM_WAREHOUSE):
        cell = report.cell("second-project", tool)
        if cell is None:
            continue
        yield Figure(
            f"second project, {tool}: rustc calls for dependencies",
            cell.most("dependencies_rustc"),
            0,
            "calls",
        )
        # The shim alone does not see scripts run: shown, not promised.
        yield Figure(
            f"second project, {tool}: build scripts of dependencies",
            cell.most("dependencies_scripts"),
            0 if tool == COW_WAREHOUSE else _ANY,
            "runs",
        )
    ours = report.cell("second-project", COW_WAREHOUSE)
    if ours is None:
        return
    for other, factor in ((SCCACHE, 10), (KACHE, 2), (MBX, 2)):
        theirs = report.cell("second-project", other)
        if theirs is not None:
            yield Figure(
                f"second project: its dependencies, beside {other}",
                ours.value("dependencies_seconds") or 0.0,
                (theirs.value("dependencies_seconds") or 0.0) / factor,
                "seconds",
                f"limit: {other}'s, its store warm, / {factor}",
            )


def _script_figures(report: Report) -> Iterator[Figure]:
    plain = report.cell("script-unchanged", PLAIN)
    takes = ""
    if plain is not None:
        takes = f"plain Cargo: {seconds(plain.seconds)} s, {_counts(plain.counts('rustc'))} rustc"
    for tool in (COW_WAREHOUSE, SHIM_WAREHOUSE):
        cell = report.cell("script-unchanged", tool)
        if cell is None:
            continue
        crates, _ = ran(cell)
        yield Figure(
            f"script unchanged, {tool}: rustc calls",
            max(cell.counts("rustc"), default=0),
            0,
            "calls",
            ", ".join(crates),
        )
        yield Figure(f"script unchanged, {tool}: the build", cell.seconds, 0.3, "seconds", takes)


def _disk_figures(report: Report) -> Iterator[Figure]:
    ours = report.cell("disk-shared", COW_WAREHOUSE)
    if ours is None:
        return
    target = ours.value("target_bytes") or 0.0
    for name, more, limit, note in (
        ("a further worktree", "worktree_bytes", 0.0, "limit: 1 % of a target"),
        (
            "a further project",
            "project_bytes",
            ours.value("project_own_bytes") or 0.0,
            "limit: its own units, and 1 % of a target",
        ),
    ):
        value = ours.value(more)
        if value is None:
            continue
        beside = [
            f"{other} {size(cell.value(more))}"
            for other in _OTHERS
            if (cell := report.cell("disk-shared", other)) is not None
        ]
        yield Figure(
            f"disk: {name}",
            value,
            limit + target / 100,
            "bytes",
            "; ".join([note, *beside]),
        )


def _small_figures(report: Report) -> Iterator[Figure]:
    still = report.cell("unchanged", PLAIN)
    for tool, name in ((COW, "unchanged checkout"), (COW_WAREHOUSE, "unchanged, with a warehouse")):
        ours = report.cell("unchanged", tool)
        if still is not None and ours is not None:
            yield Figure(
                f"{name}: on top of cargo build", ours.seconds - still.seconds, 0.080, "seconds"
            )
    without, shim = report.cell("passed-call", PLAIN), report.cell("passed-call", SHIM)
    if without is not None and shim is not None:
        yield Figure("shim: per passed call", shim.seconds - without.seconds, 0.002, "seconds")
    clone = report.cell("clone", COW)
    if clone is not None:
        thousand = 1000 * (clone.value("per_thousand_files") or 0)
        note = f"{clone.value('files') or 0:.0f} files, {thousand:.2f} ms per thousand"
        if clone.value("snapshot"):
            yield Figure("snapshot of the donor's target", clone.seconds, 0.050, "seconds", note)
        else:
            # No promise is made for a tree of clones; the cost is shown.
            yield Figure("clone of the donor's target", clone.seconds, _ANY, "seconds", note)
    prepare = report.cell("prepare", COW)
    if prepare is not None:
        units = prepare.value("units") or 0
        own = prepare.value("own_seconds")
        within = "" if own is None else f", {1000 * own:.0f} ms of it without Python's start"
        yield Figure(
            "prepare",
            prepare.seconds,
            0.4,
            "seconds",
            f"limit for 600 units; here {units:.0f}{within}",
        )


def losses(report: Report) -> list[Loss]:
    """Every cell in which ours is not the fastest of the ways that are safe."""
    found = []
    for workload in WORKLOADS:
        if workload.name == "passed-call":
            continue
        for tool in (COW, SHIM, COW_WAREHOUSE, SHIM_WAREHOUSE):
            cell = report.cell(workload.name, tool)
            if cell is None:
                continue
            for other in (PLAIN, IN_PLACE, REFLINK, *_OTHERS):
                rival = report.cell(workload.name, other)
                if rival is not None and _wall(rival) < _wall(cell):
                    found.append(Loss(workload.name, tool, other, _wall(cell), _wall(rival)))
    return found


def _wall(cell: Measured) -> float:
    """Getting the checkout counts too: a tool may not hide its work there."""
    return cell.seconds + (cell.value("add_seconds") or 0.0)


def ran(cell: Measured) -> tuple[list[str], list[str]]:
    """Crates compiled and build scripts run in any of the samples."""
    crates: set[str] = set()
    scripts: set[str] = set()
    for sample in cell.samples:
        if sample.ran is not None:
            crates.update(sample.ran.compiled)
            scripts.update(sample.ran.scripts)
    return sorted(crates), sorted(scripts)


def as_json(report: Report) -> dict[str, object]:
    """Sizes in bytes, times in seconds; every sample is in it."""
    return {
        "format": FORMAT,
        "machine": report.machine,
        "project": report.project,
        "workloads": [_cell_as_json(report, cell) for cell in report.measured],
        "figures": [
            {
                **figure._asdict(),
                "limit": None if figure.limit == _ANY else figure.limit,
                "reached": figure.reached,
            }
            for figure in figures(report)
        ],
        "losing": [loss._asdict() for loss in losses(report)],
    }


def _cell_as_json(report: Report, cell: Measured) -> dict[str, object]:
    crates, scripts = ran(cell)
    plain = report.cell(cell.workload, PLAIN)
    names = sorted({name for sample in cell.samples for name in sample.values})
    return {
        "workload": cell.workload,
        "tool": cell.tool,
        "seconds": cell.seconds,
        "ratio_to_plain": None if plain is None else cell.seconds / plain.seconds,
        "samples_seconds": [sample.seconds for sample in cell.samples],
        "rustc_calls": list(cell.counts("rustc")),
        "build_script_runs": list(cell.counts("scripts")),
        "rustc_calls_by_build_scripts": sorted(
            {sample.ran.from_scripts for sample in cell.samples if sample.ran is not None}
        ),
        "crates_compiled": crates,
        "build_scripts_run": scripts,
        "medians": {name: cell.value(name) for name in names},
    }


def render(report: Report) -> Iterator[RenderableType]:
    """Tables and lines for a terminal."""
    from rich.table import Table
    from rich.text import Text

    about = report.machine
    yield Text(
        f"{report.project['name']} ({report.project['revisions']}), {about['filesystem']}, "
        f"{about['cores']} cores, {about['rustc']}, load {about['load_average']}"
    )
    table = Table(title="medians; seconds of the build, the worktree's making apart")
    for name in ("workload", "tool"):
        table.add_column(name, no_wrap=True)
    for name in ("add", "build", "plain ×", "rustc", "scripts", "exclusive", "runs"):
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for cell in report.measured:
        if cell.workload != last and last:
            table.add_section()
        plain = report.cell(cell.workload, PLAIN)
        table.add_row(
            cell.workload if cell.workload != last else "",
            f"{cell.tool} (unsafe)" if cell.tool == TOUCHED else cell.tool,
            seconds(cell.value("add_seconds")),
            seconds(cell.seconds),
            "" if plain is None else f"{cell.seconds / plain.seconds:.3f}",
            _counts(cell.counts("rustc")),
            _counts(cell.counts("scripts")),
            size(cell.value("exclusive_bytes")),
            str(len(cell.samples)),
        )
        last = cell.workload
    yield table
    verdicts = Table(title="figures")
    verdicts.add_column("what")
    verdicts.add_column("measured", justify="right", no_wrap=True)
    verdicts.add_column("limit", justify="right", no_wrap=True)
    verdicts.add_column("", no_wrap=True)
    verdicts.add_column("note")
    for figure in figures(report):
        verdicts.add_row(
            figure.name,
            _in_unit(figure.value, figure.unit),
            "" if figure.limit == _ANY else _in_unit(figure.limit, figure.unit),
            "" if figure.limit == _ANY else "yes" if figure.reached else "NO",
            figure.note,
        )
    if verdicts.row_count:
        yield verdicts
    missed = [figure.name for figure in figures(report) if not figure.reached]
    yield Text("figures missed: " + ("; ".join(missed) or "none"))
    lost = [
        f"{loss.workload}: {loss.tool} {loss.seconds:.3f} s, "
        f"{loss.other} {loss.other_seconds:.3f} s"
        for loss in losses(report)
    ]
    yield Text("losing cells (worktree and build together): " + ("; ".join(lost) or "none"))


def legend(names: Sequence[str]) -> list[str]:
    return [f"{name}: {tools.TOOLS[name]}" for name in names if name in tools.TOOLS]


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def size(value: float | None) -> str:
    """Bytes for people, in powers of 1000."""
    if value is None:
        return ""
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def _counts(counts: tuple[int, ...]) -> str:
    return "/".join(map(str, counts))


def _in_unit(value: float, unit: str) -> str:
    if unit == "seconds":
        return f"{1000 * value:.1f} ms" if value < 0.5 else f"{value:.2f} s"
    if unit == "bytes":
        return size(value)
    return f"{value:.0f}"
