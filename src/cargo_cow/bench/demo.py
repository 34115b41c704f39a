"""The main job as one table: build once, add a worktree, build there, switch and come back.

Plain Cargo and Cargo-CoW do the same steps, one after the other, each in repositories of its own.
After every step the programs that were built are asked who they are, if the project's programs
can say so: a build that is fast and stale would be found out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow import filesystems
from cargo_cow.bench import processes, projects, report, scratch
from cargo_cow.bench.tools import COW, PLAIN, Bench, Built

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 1


class Did(NamedTuple):
    """One step of one tool.  ``seconds`` includes making the worktree or switching."""

    seconds: float
    rustc: int
    scripts: int
    compiled: tuple[str, ...]


class Step(NamedTuple):
    name: str
    plain: Did
    cow: Did


class Disk(NamedTuple):
    """The new worktree's target right after its first build, and the main one's."""

    worktree: filesystems.Usage
    main: filesystems.Usage


class Told(NamedTuple):
    """What the demonstration found."""

    project: projects.Project
    place: scratch.Scratch
    steps: tuple[Step, ...]
    plain_disk: Disk
    cow_disk: Disk


def tell(
    *,
    name: str | None = None,
    path: Path | None = None,
    other: str | None = None,
    directory: Path | None = None,
    filesystem: str | None = None,
    cargo_args: Sequence[str] = ("--workspace", "--all-targets"),
    say: Callable[[str], None],
) -> Told:
    """Do it all in a scratch directory that is gone afterwards, also when interrupted."""
    with scratch.scratch(directory, filesystem=filesystem, say=say) as place:
        say(place.note)
        project = projects.obtain(name, path, place.path, other=other, say=say)
        bench = Bench(project, place.path, cargo_args)
        plain, plain_disk = _walk(bench, PLAIN, say)
        cow, cow_disk = _walk(bench, COW, say)
        steps = tuple(Step(name, did, cow[name]) for name, did in plain.items())
        return Told(project, place, steps, plain_disk, cow_disk)


def _walk(bench: Bench, tool: str, say: Callable[[str], None]) -> tuple[dict[str, Did], Disk]:
    revisions = bench.project.revisions
    done: dict[str, Did] = {}

    def step(name: str, root: Path, act: Callable[[], object], revision: str) -> None:
        started = time.perf_counter()
        act()
        before = time.perf_counter() - started
        built = bench.build(tool, root)
        done[name] = _did(before, built)
        say(f"{tool}: {name}: {done[name].seconds:.2f} s, {done[name].rustc} rustc")
        verify(bench, root, revision)

    main = bench.main(tool)
    worktree = main.parent / "worktree"
    step("first build", main, lambda: None, revisions[0])
    os.sync()  # so that its extents are on the disk when they are counted
    step(
        "new worktree, built",
        worktree,
        lambda: bench.add(tool, worktree.name, revisions[0]),
        revisions[0],
    )
    os.sync()
    disk = Disk(filesystems.usage(bench.target(worktree)), filesystems.usage(bench.target(main)))
    step("nothing changed", worktree, lambda: None, revisions[0])
    for revision in revisions[1:]:
        there = partial(bench.switch, worktree, revision)
        back = partial(bench.switch, worktree, revisions[0])
        step("other commit, built", worktree, there, revision)
        step("and back, built", worktree, back, revisions[0])
    return done, disk


def _did(before: float, built: Built) -> Did:
    return Did(before + built.seconds, built.ran.rustc, len(built.ran.scripts), built.ran.compiled)


def verify(bench: Bench, root: Path, revision: str) -> None:
    """A program that tells its version must tell this release's; raises StepFailed.

    Only for published projects: their revisions are named by version.
    """
    if not revision.startswith("v") or bench.project.name not in projects.KNOWN:
        return
    debug = bench.target(root) / "debug"
    programs = [
        path
        for path in debug.iterdir()
        if path.is_file() and os.access(path, os.X_OK) and "." not in path.name
    ]
    if not programs:
        raise processes.StepFailed(f"no program was built in {debug}")
    for program in programs:
        said = processes.run([program, "--version"], cwd=root, env=processes.environment())
        if revision[1:] not in said.stdout:
            raise processes.StepFailed(
                f"{program} says `{said.stdout.strip()}`, but {revision} was built: stale"
            )


def as_json(told: Told) -> dict[str, object]:
    """Sizes in bytes, times in seconds."""
    return {
        "format": FORMAT,
        "project": told.project.name,
        "revisions": list(told.project.labels),
        "scratch": {"kind": told.place.kind, "filesystem": told.place.filesystem},
        "steps": [
            {"step": step.name, "plain": step.plain._asdict(), "cow": step.cow._asdict()}
            for step in told.steps
        ],
        "disk": {
            name: {"worktree": disk.worktree._asdict(), "main": disk.main._asdict()}
            for name, disk in ((PLAIN, told.plain_disk), (COW, told.cow_disk))
        },
    }


def render(told: Told) -> Iterator[RenderableType]:
    """The table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    kind = {"image": ", an image of our own", "copy": ": plain copies"}.get(told.place.kind, "")
    yield Text(f"{' and '.join(told.project.labels)}, on {told.place.filesystem}{kind}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for tool in ("plain Cargo", "Cargo-CoW"):
        table.add_column(f"{tool}\nseconds", justify="right", no_wrap=True)
        table.add_column("\nrustc", justify="right", no_wrap=True)
        table.add_column("\nscripts", justify="right", no_wrap=True)
    for step in told.steps:
        cells = [
            cell
            for did in (step.plain, step.cow)
            for cell in (f"{did.seconds:.2f}", str(did.rustc), str(did.scripts))
        ]
        table.add_row(step.name, *cells)
    table.add_section()
    table.add_row(
        "the worktree's disk",
        _bytes(told.plain_disk.worktree),
        "",
        "",
        _bytes(told.cow_disk.worktree),
    )
    yield table
    main = told.cow_disk.main
    yield Text(
        "rustc, scripts: processes that ran, counted where they start.  Seconds include making the "
        "worktree and switching.  Disk: bytes of its target that no other file shares, right after "
        "its first build; the main checkout's target "
        f"holds {report.size(main.exclusive_bytes + main.shared_bytes)}."
    )


def _bytes(usage: filesystems.Usage) -> str:
    return f"{'' if usage.exact else '≈ '}{report.size(usage.exclusive_bytes)}"
