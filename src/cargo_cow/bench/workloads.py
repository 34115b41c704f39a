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
from cargo_cow.bench import processes, projects, tools
from cargo_cow.bench.counting import Count
from cargo_cow.bench.tools import (
    COW,
    OWN_PLACE,
    PLAIN,
    REFLINK,
    SCCACHE,
    SHIM,
    TOUCHED,
    Bench,
)

IN_PLACE = "in place"  # plain Cargo in the checkout that is there already


class Sample(NamedTuple):
    """One measurement.  ``values`` holds what only this workload knows, in seconds and bytes."""

    seconds: float
    ran: Count | None
    values: dict[str, float]


class Measured(NamedTuple):
    workload: str
    tool: str
    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        return statistics.median(sample.seconds for sample in self.samples)

    def value(self, name: str) -> float | None:
        found = [sample.values[name] for sample in self.samples if name in sample.values]
        return statistics.median(found) if found else None

    def counts(self, kind: str) -> tuple[int, ...]:
        """Sorted, each different number once: one number means that all runs agree."""
        taken = [sample.ran for sample in self.samples if sample.ran is not None]
        return tuple(sorted({len(c.scripts) if kind == "scripts" else c.rustc for c in taken}))


class Workload(NamedTuple):
    name: str
    what: str
    tools: tuple[str, ...]
    measure: Callable[[Bench, str, int], Sample]
    repeat: int = 1  # times the asked-for number of runs: what is quick is measured more often


def _sample(built: tools.Built, **values: float) -> Sample:
    return Sample(built.seconds, built.ran, values)


def cold(bench: Bench, tool: str, _run: int) -> Sample:
    """A checkout without target and without a sibling to take one from."""
    root = bench.main(tool)
    bench.forget_target(root)
    if tool == COW:
        bench.new_target(root)
    if tool == SCCACHE:
        bench.forget_cache()
    return _sample(bench.build(tool, root))


def unchanged(bench: Bench, tool: str, _run: int) -> Sample:
    return _sample(bench.build(tool, _built_main(bench, tool)))


def new_worktree(bench: Bench, tool: str, run: int) -> Sample:
    return _in_new_worktree(bench, tool, run, bench.project.revisions[0])


def other_commit(bench: Bench, tool: str, run: int) -> Sample:
    other = bench.project.revisions[1]
    if tool == IN_PLACE:
        with _pristine(bench) as root:
            bench.switch(root, other)
            return _sample(bench.build(PLAIN, root))
    return _in_new_worktree(bench, tool, run, other)


def first_edit(bench: Bench, tool: str, run: int) -> Sample:
    """One new function in one file, after the first build in a new worktree."""
    revision = bench.project.revisions[0]
    if tool == IN_PLACE:
        with _pristine(bench) as root:
            bench.build(PLAIN, root)
            edit(bench.workspace(root), run)
            return _sample(bench.build(PLAIN, root))
    _built_main(bench, tool)
    added = bench.add(tool, f"{tool}-{run}", revision)
    try:
        bench.build(tool, added.root)
        edit(bench.workspace(added.root), run)
        return _sample(bench.build(tool, added.root))
    finally:
        bench.discard(tool, added.root)


def body_edit(bench: Bench, tool: str, run: int) -> Sample:
    """Another body for one function, after the first build in a new worktree; then once more.

    Nothing outside of the function changes, so that all that rustc does beside it is what it lost.
    ``cpu_seconds`` is what Cargo and all below it used, ``second_seconds`` the second edit's time.
    """
    revision = bench.project.revisions[0]
    if tool == IN_PLACE:
        with _pristine(bench) as root:
            return _body_edits(bench, PLAIN, root, run)
    _built_main(bench, tool)
    added = bench.add(tool, f"{tool}-{run}", revision)
    try:
        return _body_edits(bench, tool, added.root, run)
    finally:
        bench.discard(tool, added.root)


def _body_edits(bench: Bench, tool: str, root: Path, run: int) -> Sample:
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
        before = _used()
        built = bench.build(tool, root)
        used.append(_used() - before)
        seconds.append(built.seconds)
        ran.append(built.ran)
    values = {"cpu_seconds": used[0], "second_seconds": seconds[1]}
    return Sample(seconds[0], ran[0], values)


def _used() -> float:
    """Processor time of all children that have ended, in seconds."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def there_and_back(bench: Bench, tool: str, _run: int) -> Sample:
    """Back on a commit that was built here before another one was: the build after the switch."""
    here, other = bench.project.revisions[:2]
    root = _switching(bench, tool, here, other)
    bench.switch(root, here)
    built = bench.build(tool, root)
    bench.switch(root, other)
    bench.build(tool, root)
    return _sample(built)


def _switching(bench: Bench, tool: str, here: str, other: str) -> Path:
    """A worktree of the tool's, built at both commits, and now at the other."""
    root = _built_main(bench, tool).with_name("switching")
    if not root.exists():
        bench.add(tool, root.name, here)
        bench.build(tool, root)
        bench.switch(root, other)
        bench.build(tool, root)
    return root


def twenty_states(bench: Bench, tool: str, run: int) -> Sample:
    """Twenty commits, each built and kept as a state: what the filesystem then holds more.

    Seconds are the median of ``snapshot create``, Python's start included.
    """
    root = _built_main(bench, tool).with_name(f"states-{run}")
    bench.add(tool, root.name, bench.project.revisions[0])
    try:
        bench.build(tool, root)
        target = filesystems.usage(bench.target(root))
        before = _occupied(root)
        seconds = []
        for number in range(_STATES):
            edit(bench.workspace(root), number)
            who = ["-c", "user.name=Cargo-CoW", "-c", "user.email=cargo-cow@localhost"]
            projects.git([*who, "commit", "-qam", f"edit {number}"], root)
            bench.build(tool, root)
            seconds.append(bench.cow(root, "snapshot", "create", f"bench-{number}").seconds)
        values = {
            "states": float(_STATES),
            "added_bytes": float(_occupied(root) - before),
            "target_bytes": float(target.exclusive_bytes + target.shared_bytes),
        }
        return Sample(statistics.median(seconds), None, values)
    finally:
        names = [f"bench-{number}" for number in range(_STATES)]
        with suppress(processes.StepFailed):
            bench.cow(root, "snapshot", "delete", *names)
        bench.discard(tool, root)


_STATES = 20


def _occupied(directory: Path) -> int:
    """Bytes in use on the filesystem, by its own account."""
    os.sync()
    facts = os.statvfs(directory)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def state_made(bench: Bench, tool: str, run: int) -> Sample:
    """``cargo cow snapshot create`` of a built target; ``start_seconds`` is the program's start."""
    root = _built_main(bench, tool)
    name = f"bench-{run}"
    start = bench.cow(root, "--version").seconds
    made = bench.cow(root, "snapshot", "create", name)
    bench.cow(root, "snapshot", "delete", name)
    return Sample(made.seconds, None, {"start_seconds": start})


def state_activated(bench: Bench, tool: str, run: int) -> Sample:
    """``cargo cow snapshot activate``; ``start_seconds`` is the program's start."""
    root = _built_main(bench, tool)
    name = f"bench-{run}"
    bench.cow(root, "snapshot", "create", name)
    start = bench.cow(root, "--version").seconds
    activated = bench.cow(root, "snapshot", "activate", name)
    bench.cow(root, "snapshot", "delete", name)
    return Sample(activated.seconds, None, {"start_seconds": start})


def prepare_alone(bench: Bench, tool: str, run: int) -> Sample:
    """``cargo cow prepare`` in a worktree that has no target yet: clone, prove, stamp."""
    _built_main(bench, tool)
    added = bench.add(SHIM, f"prepare-{run}", bench.project.revisions[0])
    try:
        seconds, report = bench.prepare(added.root)
        values = {"units": float(len(report.get("units", ())))}
        if isinstance(report.get("seconds"), int | float):
            values["own_seconds"] = float(report["seconds"])
        clone = report.get("clone")
        if isinstance(clone, dict):
            values["clone_seconds"] = float(clone["seconds"])
        return Sample(seconds, None, values)
    finally:
        bench.discard(tool, added.root)


def clone_alone(bench: Bench, tool: str, run: int) -> Sample:
    """The donor's target cloned, and nothing else."""
    donor = bench.target(_built_main(bench, tool))
    dest = bench.room / f"clone-{run}"
    report = filesystems.clone_target(donor, dest)
    try:
        files = sum(len(names) for _, _, names in os.walk(dest))
        values = {
            "files": float(files),
            "per_thousand_files": 1000 * report.seconds / max(1, files),
            "snapshot": float(report.method == "snapshot"),
        }
        return Sample(report.seconds, None, values)
    finally:
        filesystems.remove_target(dest)


def passed_call(_bench: Bench, tool: str, _run: int) -> Sample:
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
    return Sample(statistics.median(calls), None, {})


WORKLOADS = (
    Workload("cold", "first build of all, no target anywhere", (PLAIN, COW, SCCACHE), cold),
    Workload("unchanged", "build with nothing changed", (PLAIN, COW, SCCACHE), unchanged, repeat=5),
    Workload(
        "new-worktree",
        "first build in a new worktree, same commit",
        (PLAIN, COW, SHIM, REFLINK, TOUCHED, SCCACHE),
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


def measure(
    bench: Bench,
    *,
    names: Sequence[str],
    wanted_tools: Sequence[str],
    runs: int,
    say: Callable[[str], None],
) -> Iterator[Measured]:
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
        competing = [tool for tool in workload.tools if tool == IN_PLACE or tool in wanted_tools]
        samples: dict[str, list[Sample]] = {tool: [] for tool in competing}
        for run in range(runs * workload.repeat):
            turn = run % max(1, len(competing))
            for tool in competing[turn:] + competing[:turn]:
                sample = workload.measure(bench, tool, run)
                samples[tool].append(sample)
                compiled = "" if sample.ran is None else f", {sample.ran.rustc} rustc"
                say(f"{workload.name} {tool}: {sample.seconds:.3f} s{compiled}")
        for tool in competing:
            yield Measured(workload.name, tool, tuple(samples[tool]))


# --- parts ---------------------------------------------------------------------------------------


def _built_main(bench: Bench, tool: str) -> Path:
    """The tool's main checkout, built; a donor for what follows."""
    root = bench.main(tool)
    marker = bench.room / f"{root.parent.name}.built"
    if not marker.exists():
        owner = COW if tool == SHIM else tool
        bench.build(owner if owner in (COW, SCCACHE) else PLAIN, root)
        marker.touch()
        os.sync()
    return root


def _in_new_worktree(bench: Bench, tool: str, run: int, revision: str) -> Sample:
    donor = bench.target(_built_main(bench, tool))
    added = bench.add(tool, f"{tool}-{run}", revision)
    try:
        built = bench.build(tool, added.root)
        # Delayed allocation: before a sync, what was just written is nowhere yet.
        os.sync()
        usage = filesystems.usage(bench.target(added.root))
        whole = filesystems.usage(donor)
        return _sample(
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
        self._main = _built_main(bench, PLAIN)
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


def edit(workspace: Path, number: int) -> Path:
    """Add a function to the first target of the first package here, and say to which file."""
    source = next(_sources(workspace), None)
    if source is None:
        raise processes.StepFailed(f"no source file to edit in {workspace}")
    function = f"fn cargo_cow_edit_{number}() -> u32 {{\n    {number}\n}}"
    source.write_text(f"{source.read_text()}\n#[allow(dead_code)]\n{function}\n")
    return source


def _sources(workspace: Path) -> Iterator[Path]:
    import json

    words = ["cargo", "metadata", "--no-deps", "--format-version", "1", "--offline"]
    metadata = json.loads(processes.run(words, cwd=workspace, env=processes.environment()).stdout)
    for package in metadata["packages"]:
        targets = package["targets"]
        targets.sort(key=lambda target: "lib" not in target["kind"])
        for target in targets:
            if {"lib", "bin"} & set(target["kind"]):
                yield Path(target["src_path"])
