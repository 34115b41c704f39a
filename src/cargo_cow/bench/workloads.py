"""The workloads: each measures one thing for each tool, several times, taking turns.

A sample is never thrown away and never corrected; medians are taken over all of them.  The
tools change places from run to run, so that a slow minute of the machine meets all of them.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cargo_cow import filesystems
from cargo_cow.bench import processes, projects, tools
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

    def most(self, name: str) -> float:
        """The worst of the samples: a count that is promised holds in every run."""
        return max((sample.values.get(name, 0.0) for sample in self.samples), default=0.0)

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
    before = _used()
    built = bench.build(tool, root)
    kept = bench.settle(tool)
    return _sample(built, cpu_seconds=_used() - before, kept_seconds=kept)


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
    """Processor time of all builds until now, in seconds, the shim's late work included."""
    return processes.used(tools.native_program().name)


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
    """Bytes in use on the filesystem, by its own account.

    What was removed is given back some time later (Btrfs removes subvolumes in the background):
    so this waits until the number stands still.
    """
    last = -1
    for _ in range(40):
        # This filesystem only: another one's writes would be waited for in vain.
        words = ["sync", "--file-system", os.fspath(directory)]
        processes.run(words, cwd=directory, env=processes.environment())
        facts = os.statvfs(directory)
        used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        if used == last:
            break
        last = used
        time.sleep(0.25)
    return last


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


def target_removed(bench: Bench, tool: str, _run: int) -> Sample:
    """The target of a checkout that was built is removed, and the checkout built again.

    ``added_bytes`` is what the filesystem then holds more, by its own account; ``still_seconds``
    the next build, in which nothing changed, ``still_rustc`` what it compiles.  ``hits`` and
    ``hit_seconds`` (each) are the shim's account: its wall time would hide what runs abreast.
    """
    root = _stocked(bench, tool)
    bench.forget_target(root)
    before = _occupied(bench.room)
    hits, spent = _hits(bench, tool)
    built = bench.build(tool, root)
    bench.settle(tool)
    _marker(bench, tool).touch()
    values = {"added_bytes": float(_occupied(bench.room) - before)}
    if tool == SHIM_WAREHOUSE:
        now, all_spent = _hits(bench, tool)
        values["hits"] = now - hits
        values["hit_seconds"] = (all_spent - spent) / max(1.0, now - hits)
    still = bench.build(tool, root)
    values |= {"still_seconds": still.seconds, "still_rustc": float(still.ran.rustc)}
    return _sample(built, **values)


def _hits(bench: Bench, tool: str) -> tuple[float, float]:
    """Units that the shim has given back until now, and the seconds that took."""
    if tool != SHIM_WAREHOUSE:
        return 0.0, 0.0
    told = bench.statistics(tool)
    return float(told["hits"]), told["hits"] * told["milliseconds_per_hit"] / 1000


def second_project(bench: Bench, tool: str, run: int) -> Sample:
    """The first build of another project that has the same dependencies and flags.

    Its own code is an empty library.  ``dependencies_seconds`` is the build without what its own
    code takes: less the build after an edit of all of it.
    """
    _stocked(bench, tool)
    name = f"second-{run}"
    root = projects.another(bench.project, bench.home(tool) / f"{tool}-{name}", name)
    try:
        built = bench.build(tool, root)
        for source in (root / "src" / "lib.rs", root / "build.rs"):
            if source.exists():
                source.write_text(f"{source.read_text()}\n// edited\npub const EDITED: u32 = 1;\n")
        own = bench.build(tool, root)
        bench.settle(tool)
        scripts = [unit for unit in built.ran.scripts if not unit.startswith(f"{name}-")]
        return _sample(
            built,
            dependencies_seconds=built.seconds - own.seconds,
            own_seconds=own.seconds,
            dependencies_rustc=float(len(built.ran.outside(bench.room))),
            dependencies_scripts=float(len(scripts)),
        )
    finally:
        bench.forget_target(root)
        shutil.rmtree(root)


def script_unchanged(bench: Bench, tool: str, _run: int) -> Sample:
    """A build script that runs on every build, because it declares a file that is not there."""
    root = _built_main(bench, tool)
    script = declare_missing(bench.workspace(root))
    try:
        # Twice: the first compiles what the edit changed.
        bench.build(tool, root)
        bench.settle(tool)
        bench.build(tool, root)
        bench.settle(tool)
        return _sample(bench.build(tool, root))
    finally:
        bench.settle(tool)
        projects.git(["clean", "-q", "-f", "--", str(script)], root)
        projects.git(["checkout", "-q", "--", "."], root)
        bench.build(tool, root)
        bench.settle(tool)


def disk_shared(bench: Bench, tool: str, run: int) -> Sample:
    """Five more worktrees of the project and two more projects with its dependencies, all built.

    Bytes are what the filesystem holds more after each, by its own account (nothing else may
    write there); a worktree's without its sources.  Seconds are those of all the builds.
    """
    revision = bench.project.revisions[0]
    target = filesystems.usage(bench.target(_built_main(bench, tool)))
    made: list[Path] = []
    seconds = 0.0
    try:
        before = _occupied(bench.room)
        sources = bench.home(tool) / f"sources-{run}"
        projects.git(["worktree", "add", "--detach", str(sources), revision], bench.main(tool))
        of_sources = _occupied(bench.room) - before
        bench.discard(tool, sources)
        worktrees = []
        for number in range(_WORKTREES):
            before = _occupied(bench.room)
            added = bench.add(tool, f"{tool}-disk-{run}-{number}", revision)
            made.append(added.root)
            seconds += added.seconds + bench.build(tool, added.root).seconds
            bench.settle(tool)
            worktrees.append(_occupied(bench.room) - before - of_sources)
        values = {
            "target_bytes": float(target.exclusive_bytes + target.shared_bytes),
            "worktree_bytes": float(max(worktrees)),
            "worktrees_bytes": float(sum(worktrees)),
        }
        if projects.of_one_package(bench.project):
            others = []
            for number in range(_PROJECTS):
                name = f"other-{run}-{number}"
                root = bench.home(tool) / f"{tool}-{name}"
                before = _occupied(bench.room)
                made.append(projects.another(bench.project, root, name))
                seconds += bench.build(tool, root).seconds
                bench.settle(tool)
                others.append((_occupied(bench.room) - before, _own_bytes(root, name)))
            values["project_bytes"] = float(max(more for more, _ in others))
            values["project_own_bytes"] = float(max(own for _, own in others))
        return Sample(seconds, None, values)
    finally:
        for root in made:
            if (root / ".git").is_file():
                bench.discard(tool, root)
            else:
                bench.forget_target(root)
                shutil.rmtree(root)


_WORKTREES = 5
_PROJECTS = 2


def _own_bytes(root: Path, name: str) -> int:
    """Bytes allocated to a project's own files: its sources, and units that are called after it."""
    called = (name, name.replace("-", "_"), f"lib{name.replace('-', '_')}")
    total = 0
    for directory, _, files in os.walk(root):
        inside = Path(directory).relative_to(root).parts
        own = inside[:1] != ("target",) or any(part.startswith(called) for part in inside)
        for file in files:
            if own or file.startswith(called):
                total += (Path(directory) / file).lstat().st_blocks * 512
    return total


def two_at_once(bench: Bench, tool: str, run: int) -> Sample:
    """Two checkouts of one project, built cold at the same time; stores are empty."""
    bench.forget_cache(tool)
    home = bench.home(tool)
    roots = [home / f"{tool}-once-{run}", home / f"{tool}-at-once-{run}"]
    bench.clone(roots[0])
    words = ["worktree", "add", "--detach", str(roots[1]), bench.project.revisions[0]]
    projects.git(words, roots[0])
    try:
        built = bench.build_at_once(tool, roots)
        bench.settle(tool)
        return _sample(built)
    finally:
        for root in reversed(roots):
            bench.forget_target(root)
            shutil.rmtree(root)
        # The store knows nothing of the main checkout any more.
        bench.forget_target(bench.main(tool))
        _marker(bench, tool).unlink(missing_ok=True)


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
        target_removed,
    ),
    Workload(
        "second-project",
        "first build of another project with the same dependencies",
        (PLAIN, *_WAREHOUSE, *_CACHES),
        second_project,
    ),
    Workload(
        "script-unchanged",
        "a build in which a script runs again and changes nothing",
        (PLAIN, *_WAREHOUSE, *_CACHES),
        script_unchanged,
    ),
    Workload(
        "disk-shared",
        "five more worktrees and two more projects: all their builds",
        (COW_WAREHOUSE, *_CACHES),
        disk_shared,
    ),
    Workload(
        "two-at-once",
        "two checkouts built cold at the same time",
        (PLAIN, COW_WAREHOUSE, KACHE, MBX),
        two_at_once,
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
) -> Iterator[Measured]:
    """Measure the named workloads; each is yielded when all its tools are done."""
    processes.adopt()
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
    marker = _marker(bench, tool)
    if not marker.exists():
        owner = tools.main_of(tool)
        bench.build(owner, root)
        bench.settle(owner)
        marker.touch()
        os.sync()
    return root


def _stocked(bench: Bench, tool: str) -> Path:
    """The main checkout, and all that was built there in the tool's store."""
    # Plain Cargo has none: what it builds elsewhere does not depend on what was built here.
    return bench.main(tool) if tool == PLAIN else _built_main(bench, tool)


def _marker(bench: Bench, tool: str) -> Path:
    """Tells that the main checkout was built, and its store filled with it."""
    return bench.room / f"{tools.main_of(tool)}.built"


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


def declare_missing(workspace: Path) -> Path:
    """Have a build script declare a file that is not there, and say which script.

    It is that of the first package here that has one; else the first package gets one.
    """
    packages = [Path(package["manifest_path"]).parent for package in _packages(workspace)]
    scripts = [script for script in map(projects.script_of, packages) if script is not None]
    declaring = 'println!("cargo:rerun-if-changed=cargo-cow-has-no-such-file");'
    if scripts:
        text = scripts[0].read_text()
        body = re.sub(r"(\bfn main\(\)[^{]*\{)", rf"\1\n    {declaring}", text, count=1)
        if body == text:
            raise processes.StepFailed(f"no `fn main()` in {scripts[0]}")
        scripts[0].write_text(body)
        return scripts[0]
    manifest = packages[0] / "Cargo.toml"
    text = re.sub(r"(?m)^build = false$", 'build = "build.rs"', manifest.read_text())
    manifest.write_text(text)
    script = packages[0] / "build.rs"
    script.write_text(f"fn main() {{\n    {declaring}\n}}\n")
    return script


def _sources(workspace: Path) -> Iterator[Path]:
    for package in _packages(workspace):
        targets = package["targets"]
        targets.sort(key=lambda target: "lib" not in target["kind"])
        for target in targets:
            if {"lib", "bin"} & set(target["kind"]):
                yield Path(target["src_path"])


def _packages(workspace: Path) -> list[dict[str, Any]]:
    import json

    words = ["cargo", "metadata", "--no-deps", "--format-version", "1", "--offline"]
    metadata = json.loads(processes.run(words, cwd=workspace, env=processes.environment()).stdout)
    packages: list[dict[str, Any]] = metadata["packages"]
    return packages
