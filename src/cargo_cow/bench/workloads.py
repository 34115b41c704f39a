"""The workloads: each measures one thing for each tool, several times, taking turns.

A sample is never thrown away and never corrected; medians are taken over all of them.  The
tools change places from run to run, so that a slow minute of the machine meets all of them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cargo_cow import filesystems
from cargo_cow.bench import processes, projects, sharing, steps, tools
from cargo_cow.bench.caches import KACHE, MBX, SCCACHE
from cargo_cow.bench.counting import Count
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
    Bench,
)

IN_PLACE = "in place"  # plain Cargo in the checkout that is there already


class Workload(NamedTuple):
    name: str
    what: str
    tools: tuple[str, ...]
    measure: Callable[[Bench, str, int], steps.Sample]
    repeat: int = 1  # times the asked-for number of runs: what is quick is measured more often


def cold(bench: Bench, tool: str, _run: int) -> steps.Sample:
    """A checkout without target and without a sibling to take one from; stores are empty.

    ``cpu_seconds`` is what Cargo and all below it used, with what the shim does after the build;
    ``kept_seconds`` the time until that was done.  A server's own time is not in it.
    """
    root = bench.main(tool)
    bench.forget_target(root)
    if tool in (COW, UNOBSERVED, COW_WAREHOUSE):
        bench.new_target(root)
    bench.forget_cache(tool)
    os.sync()
    before = processes.used()
    built = bench.build(tool, root)
    kept = processes.finished()
    return steps.sample(built, cpu_seconds=processes.used() - before, kept_seconds=kept)


def unchanged(bench: Bench, tool: str, _run: int) -> steps.Sample:
    return steps.sample(bench.build(tool, steps.built_main(bench, tool)))


def new_worktree(bench: Bench, tool: str, run: int) -> steps.Sample:
    return _in_new_worktree(bench, tool, run, bench.project.revisions[0])


def other_commit(bench: Bench, tool: str, run: int) -> steps.Sample:
    other = bench.project.revisions[1]
    if tool == IN_PLACE:
        with _pristine(bench) as root:
            bench.switch(root, other)
            return steps.sample(bench.build(PLAIN, root))
    return _in_new_worktree(bench, tool, run, other)


def first_edit(bench: Bench, tool: str, run: int) -> steps.Sample:
    """One new function in one file, after the first build in a new worktree."""
    revision = bench.project.revisions[0]
    if tool == IN_PLACE:
        with _pristine(bench) as root:
            bench.build(PLAIN, root)
            steps.edit(bench.workspace(root), run)
            return steps.sample(bench.build(PLAIN, root))
    steps.built_main(bench, tool)
    added = bench.add(tool, f"{tool}-{run}", revision)
    try:
        bench.build(tool, added.root)
        steps.edit(bench.workspace(added.root), run)
        return steps.sample(bench.build(tool, added.root))
    finally:
        bench.discard(tool, added.root)


def body_edit(bench: Bench, tool: str, run: int) -> steps.Sample:
    """Another body for one function, after the first build in a new worktree; then once more.

    Nothing outside of the function changes, so that all that rustc does beside it is what it lost.
    ``cpu_seconds`` is what Cargo and all below it used, ``second_seconds`` the second edit's time.
    """
    revision = bench.project.revisions[0]
    if tool == IN_PLACE:
        with _pristine(bench) as root:
            return _body_edits(bench, PLAIN, root, run)
    steps.built_main(bench, tool)
    added = bench.add(tool, f"{tool}-{run}", revision)
    try:
        return _body_edits(bench, tool, added.root, run)
    finally:
        bench.discard(tool, added.root)


def _body_edits(bench: Bench, tool: str, root: Path, run: int) -> steps.Sample:
    assert bench.project.edited is not None
    bench.build(tool, root)
    source = root / bench.project.edited
    seconds: list[float] = []
    used: list[float] = []
    ran: list[Count] = []
    for number in (2 * run + 1, 2 * run + 2):
        text = source.read_text()
        at = text.rindex("{\n") + 2
        source.write_text(f"{text[:at]}    {number}\n}}\n")
        before = processes.used()
        built = bench.build(tool, root)
        used.append(processes.used() - before)
        seconds.append(built.seconds)
        ran.append(built.ran)
    values = {"cpu_seconds": used[0], "second_seconds": seconds[1]}
    return steps.Sample(seconds[0], ran[0], values)


def there_and_back(bench: Bench, tool: str, _run: int) -> steps.Sample:
    """Back on a commit that was built here before another one was: the build after the switch."""
    here, other = bench.project.revisions[:2]
    root = _switching(bench, tool, here, other)
    bench.switch(root, here)
    built = bench.build(tool, root)
    bench.switch(root, other)
    bench.build(tool, root)
    return steps.sample(built)


def _switching(bench: Bench, tool: str, here: str, other: str) -> Path:
    """A worktree of the tool's, built at both commits, and now at the other."""
    root = steps.built_main(bench, tool).with_name("switching")
    if not root.exists():
        bench.add(tool, root.name, here)
        bench.build(tool, root)
        bench.switch(root, other)
        bench.build(tool, root)
    return root


def twenty_states(bench: Bench, tool: str, run: int) -> steps.Sample:
    """Twenty commits, each built and kept as a state: what the filesystem then holds more, before
    and after the compaction that else happens by itself, and what comes back when they are
    deleted.  The difference is what the live target itself has changed since.

    Seconds are the median of ``snapshot create``, Python's start included.
    """
    root = steps.built_main(bench, tool).with_name(f"states-{run}")
    bench.add(tool, root.name, bench.project.revisions[0])
    try:
        bench.build(tool, root)
        target = filesystems.usage(bench.target(root))
        before = steps.occupied(root)
        seconds = []
        for number in range(_STATES):
            steps.edit(bench.workspace(root), number)
            who = ["-c", "user.name=Cargo-CoW", "-c", "user.email=cargo-cow@localhost"]
            projects.git([*who, "commit", "-qam", f"edit {number}"], root)
            bench.build(tool, root)
            seconds.append(bench.cow(root, "snapshot", "create", f"bench-{number}").seconds)
        uncompacted = steps.occupied(root) - before
        compacted = bench.cow(root, "snapshot", "compact")
        held = steps.occupied(root)
        bench.cow(root, "snapshot", "delete", *(f"bench-{number}" for number in range(_STATES)))
        steps.removed(root)
        values = {
            "states": float(_STATES),
            "uncompacted_bytes": float(uncompacted),
            "compact_seconds": compacted.seconds,
            "added_bytes": float(held - before),
            "exclusive_bytes": float(held - steps.occupied(root)),
            "target_bytes": float(target.exclusive_bytes + target.shared_bytes),
        }
        return steps.Sample(statistics.median(seconds), None, values)
    finally:
        names = [f"bench-{number}" for number in range(_STATES)]
        with suppress(processes.StepFailed):
            bench.cow(root, "snapshot", "delete", *names)
        bench.discard(tool, root)


_STATES = 20


def state_made(bench: Bench, tool: str, run: int) -> steps.Sample:
    """``cargo cow snapshot create`` of a built target; ``start_seconds`` is the program's start."""
    root = steps.built_main(bench, tool)
    name = f"bench-{run}"
    start = bench.cow(root, "--version").seconds
    made = bench.cow(root, "snapshot", "create", name)
    bench.cow(root, "snapshot", "delete", name)
    return steps.Sample(made.seconds, None, {"start_seconds": start})


def state_activated(bench: Bench, tool: str, run: int) -> steps.Sample:
    """``cargo cow snapshot activate``; ``start_seconds`` is the program's start."""
    root = steps.built_main(bench, tool)
    name = f"bench-{run}"
    bench.cow(root, "snapshot", "create", name)
    start = bench.cow(root, "--version").seconds
    activated = bench.cow(root, "snapshot", "activate", name)
    bench.cow(root, "snapshot", "delete", name)
    return steps.Sample(activated.seconds, None, {"start_seconds": start})


def prepare_alone(bench: Bench, tool: str, run: int) -> steps.Sample:
    """``cargo cow prepare`` in a worktree that has no target yet: clone, prove, stamp."""
    steps.built_main(bench, tool)
    added = bench.add(SHIM, f"prepare-{run}", bench.project.revisions[0])
    try:
        seconds, report = bench.prepare(added.root)
        values = {"units": float(len(report.get("units", ())))}
        if isinstance(report.get("seconds"), int | float):
            values["own_seconds"] = float(report["seconds"])
        clone = report.get("clone")
        if isinstance(clone, dict):
            values["clone_seconds"] = float(clone["seconds"])
        return steps.Sample(seconds, None, values)
    finally:
        bench.discard(tool, added.root)


def clone_alone(bench: Bench, tool: str, run: int) -> steps.Sample:
    """The donor's target cloned, and nothing else."""
    donor = bench.target(steps.built_main(bench, tool))
    dest = bench.room / f"clone-{run}"
    report = filesystems.clone_target(donor, dest)
    try:
        files = sum(len(names) for _, _, names in os.walk(dest))
        values = {
            "files": float(files),
            "per_thousand_files": 1000 * report.seconds / max(1, files),
            "snapshot": float(report.method == "snapshot"),
        }
        return steps.Sample(report.seconds, None, values)
    finally:
        filesystems.remove_target(dest)


def passed_call(_bench: Bench, tool: str, _run: int) -> steps.Sample:
    """One call of a compiler that does nothing, with and without the shim before it."""
    nothing = shutil.which("true") or "/bin/true"
    words = [nothing, "--crate-name", "nothing", "--edition=2021", "src/lib.rs"]
    if tool == SHIM:
        words.insert(0, os.fspath(tools.native_program()))
    env = processes.environment()
    calls = []
    for _ in range(50):
        started = time.perf_counter()
        # posix_spawn: a fork of this process would cost more than what is measured.
        child = os.posix_spawn(words[0], words, env)
        os.waitpid(child, 0)
        calls.append(time.perf_counter() - started)
    return steps.Sample(statistics.median(calls), None, {})


_WAREHOUSE = (COW_WAREHOUSE, SHIM_WAREHOUSE)
_CACHES = (SCCACHE, KACHE, MBX)

WORKLOADS = (
    Workload(
        "cold",
        "first build of all, no target anywhere",
        (PLAIN, COW, UNOBSERVED, COW_WAREHOUSE, *_CACHES),
        cold,
    ),
    Workload(
        "unchanged",
        "build with nothing changed",
        (PLAIN, COW, COW_WAREHOUSE, *_CACHES),
        unchanged,
        repeat=5,
    ),
    Workload(
        "new-worktree",
        "first build in a new worktree, same commit",
        (PLAIN, COW, SHIM, REFLINK, TOUCHED, *_CACHES),
        new_worktree,
    ),
    Workload(
        "other-commit",
        "first build in a new worktree at the other commit",
        (IN_PLACE, PLAIN, COW, SHIM, REFLINK, SCCACHE),
        other_commit,
    ),
    Workload(
        "first-edit",
        "first edit in a new worktree",
        (IN_PLACE, COW, SHIM, REFLINK, SCCACHE),
        first_edit,
    ),
    Workload(
        "body-edit",
        "first edit of one function's body in a new worktree",
        (IN_PLACE, COW, SHIM, OWN_PLACE, REFLINK),
        body_edit,
    ),
    Workload(
        "there-and-back",
        "the build after a switch back to a commit that was built here before",
        (PLAIN, COW, SCCACHE),
        there_and_back,
    ),
    Workload(
        "target-removed",
        "the build after the target was removed",
        (PLAIN, *_WAREHOUSE, *_CACHES),
        sharing.target_removed,
    ),
    Workload(
        "second-project",
        "first build of another project with the same dependencies",
        (PLAIN, *_WAREHOUSE, *_CACHES),
        sharing.second_project,
    ),
    Workload(
        "script-unchanged",
        "a build in which a script runs again and changes nothing",
        (PLAIN, *_WAREHOUSE, *_CACHES),
        sharing.script_unchanged,
    ),
    Workload(
        "disk-shared",
        "five more worktrees and two more projects: all their builds",
        (COW_WAREHOUSE, *_CACHES),
        sharing.disk_shared,
    ),
    Workload(
        "two-at-once",
        "two checkouts built cold at the same time",
        (PLAIN, COW_WAREHOUSE, KACHE, MBX),
        sharing.two_at_once,
    ),
    Workload("states", "twenty states of twenty commits: one create", (COW,), twenty_states),
    Workload("create", "cargo cow snapshot create", (COW,), state_made, repeat=3),
    Workload("activate", "cargo cow snapshot activate", (COW,), state_activated, repeat=3),
    Workload(
        "prepare", "cargo cow prepare alone, in a new worktree", (COW,), prepare_alone, repeat=3
    ),
    Workload("clone", "the donor's target cloned, alone", (COW,), clone_alone, repeat=3),
    Workload(
        "passed-call", "one compiler call that does nothing", (PLAIN, SHIM), passed_call, repeat=3
    ),
)


_OF_TWO_COMMITS = frozenset({"other-commit", "there-and-back"})
_OF_ONE_PACKAGE = frozenset({"second-project"})


def measure(
    bench: Bench,
    *,
    names: Sequence[str],
    wanted_tools: Sequence[str],
    runs: int,
    say: Callable[[str], None],
) -> Iterator[steps.Measured]:
    """Measure the named workloads; each is yielded when all its tools are done."""
    for workload in WORKLOADS:
        if workload.name not in names:
            continue
        if workload.name in _OF_TWO_COMMITS and len(bench.project.revisions) < 2:
            say(f"{workload.name}: there is only one commit")
            continue
        if workload.name == "body-edit" and bench.project.edited is None:
            say("body-edit: only with --project large")
            continue
        if workload.name in _OF_ONE_PACKAGE and not projects.of_one_package(bench.project):
            say(f"{workload.name}: only for one package whose dependencies are published")
            continue
        competing = [tool for tool in workload.tools if tool == IN_PLACE or tool in wanted_tools]
        samples: dict[str, list[steps.Sample]] = {tool: [] for tool in competing}
        for run in range(runs * workload.repeat):
            turn = run % max(1, len(competing))
            for tool in competing[turn:] + competing[:turn]:
                sample = workload.measure(bench, tool, run)
                samples[tool].append(sample)
                compiled = "" if sample.ran is None else f", {sample.ran.rustc} rustc"
                say(f"{workload.name} {tool}: {sample.seconds:.3f} s{compiled}")
        for tool in competing:
            yield steps.Measured(workload.name, tool, tuple(samples[tool]))


def _in_new_worktree(bench: Bench, tool: str, run: int, revision: str) -> steps.Sample:
    donor = bench.target(steps.built_main(bench, tool))
    added = bench.add(tool, f"{tool}-{run}", revision)
    try:
        built = bench.build(tool, added.root)
        # Delayed allocation: before a sync, what was just written is nowhere yet.
        os.sync()
        usage = filesystems.usage(bench.target(added.root))
        whole = filesystems.usage(donor)
        return steps.sample(
            built,
            add_seconds=added.seconds,
            exclusive_bytes=float(usage.exclusive_bytes),
            shared_bytes=float(usage.shared_bytes),
            donor_bytes=float(whole.exclusive_bytes + whole.shared_bytes),
        )
    finally:
        bench.discard(tool, added.root)


class _pristine:  # noqa: N801  used as a function
    """Plain Cargo's main checkout as its first build left it, to be changed in place.

    What an earlier run built for the other commit would still be in its target: it is put away
    whole and brought back, under the same path and with all its times.
    """

    def __init__(self, bench: Bench) -> None:
        self._main = steps.built_main(bench, PLAIN)
        self._kept = self._main.with_name("main.kept")

    def __enter__(self) -> Path:
        if not self._kept.exists():
            self._main.rename(self._kept)
        else:
            shutil.rmtree(self._main)
        env = processes.environment()
        words = ["cp", "-a", "--reflink=auto", "--", str(self._kept), str(self._main)]
        processes.run(words, cwd=self._main.parent, env=env)
        return self._main

    def __exit__(self, *_exception: object) -> None:
        shutil.rmtree(self._main)
        self._kept.rename(self._main)
