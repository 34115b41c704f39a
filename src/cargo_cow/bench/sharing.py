"""Workloads of what is shared beyond one project's history, each for one tool and one run.

A removed target, a second project, a script that changed nothing, the disk of many checkouts, and
two builds at once.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cargo_cow import filesystems
from cargo_cow.bench import processes, projects, steps
from cargo_cow.bench.tools import SHIM_WAREHOUSE, Bench


def target_removed(bench: Bench, tool: str, _run: int) -> steps.Sample:
    """The target of a checkout that was built is removed, and the checkout built again.

    ``added_bytes`` is what the filesystem then holds more, by its own account; ``still_seconds``
    the next build, in which nothing changed, ``still_rustc`` what it compiles.  ``hits`` and
    ``hit_seconds`` (each) are the shim's account: its wall time would hide what runs abreast.
    """
    root = steps.stocked(bench, tool)
    bench.forget_target(root)
    before = steps.occupied(bench.room)
    hits, spent = _hits(bench, tool)
    built = bench.build(tool, root)
    processes.finished()
    steps.marker(bench, tool).touch()
    values = {"added_bytes": float(steps.occupied(bench.room) - before)}
    if tool == SHIM_WAREHOUSE:
        now, all_spent = _hits(bench, tool)
        values["hits"] = now - hits
        values["hit_seconds"] = (all_spent - spent) / max(1.0, now - hits)
    still = bench.build(tool, root)
    values |= {"still_seconds": still.seconds, "still_rustc": float(still.ran.rustc)}
    return steps.sample(built, **values)


def _hits(bench: Bench, tool: str) -> tuple[float, float]:
    """Units that the shim has given back until now, and the seconds that took."""
    if tool != SHIM_WAREHOUSE:
        return 0.0, 0.0
    told = bench.statistics(tool)
    return float(told["hits"]), told["hits"] * told["milliseconds_per_hit"] / 1000


def second_project(bench: Bench, tool: str, run: int) -> steps.Sample:
    """The first build of another project that has the same dependencies and flags.

    Its own code is an empty library.  ``dependencies_seconds`` is the build without what its own
    code takes: less the build after an edit of all of it.
    """
    steps.stocked(bench, tool)
    name = f"second-{run}"
    root = projects.another(bench.project, bench.home(tool) / f"{tool}-{name}", name)
    try:
        built = bench.build(tool, root)
        for source in (root / "src" / "lib.rs", root / "build.rs"):
            if source.exists():
                source.write_text(f"{source.read_text()}\n// edited\npub const EDITED: u32 = 1;\n")
        own = bench.build(tool, root)
        processes.finished()
        scripts = [unit for unit in built.ran.scripts if not unit.startswith(f"{name}-")]
        return steps.sample(
            built,
            dependencies_seconds=built.seconds - own.seconds,
            own_seconds=own.seconds,
            dependencies_rustc=float(len(built.ran.outside(bench.room))),
            dependencies_scripts=float(len(scripts)),
        )
    finally:
        bench.forget_target(root)
        shutil.rmtree(root)


def script_unchanged(bench: Bench, tool: str, _run: int) -> steps.Sample:
    """A build script that runs on every build, because it declares a file that is not there."""
    root = steps.built_main(bench, tool)
    script = steps.declare_missing(bench.workspace(root))
    try:
        # Twice: the first compiles what the edit changed.
        bench.build(tool, root)
        processes.finished()
        bench.build(tool, root)
        processes.finished()
        return steps.sample(bench.build(tool, root))
    finally:
        processes.finished()
        projects.git(["clean", "-q", "-f", "--", str(script)], root)
        projects.git(["checkout", "-q", "--", "."], root)
        bench.build(tool, root)
        processes.finished()


def disk_shared(bench: Bench, tool: str, run: int) -> steps.Sample:
    """Five more worktrees of the project and two more projects with its dependencies, all built.

    Bytes are what the filesystem holds more after each, by its own account (nothing else may
    write there); a worktree's without its sources.  Seconds are those of all the builds.
    """
    revision = bench.project.revisions[0]
    target = filesystems.usage(bench.target(steps.built_main(bench, tool)))
    made: list[Path] = []
    seconds = 0.0
    try:
        before = steps.occupied(bench.room)
        sources = bench.home(tool) / f"sources-{run}"
        projects.git(["worktree", "add", "--detach", str(sources), revision], bench.main(tool))
        of_sources = steps.occupied(bench.room) - before
        bench.discard(tool, sources)
        worktrees = []
        for number in range(_WORKTREES):
            before = steps.occupied(bench.room)
            added = bench.add(tool, f"{tool}-disk-{run}-{number}", revision)
            made.append(added.root)
            seconds += added.seconds + bench.build(tool, added.root).seconds
            processes.finished()
            worktrees.append(steps.occupied(bench.room) - before - of_sources)
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
                before = steps.occupied(bench.room)
                made.append(projects.another(bench.project, root, name))
                seconds += bench.build(tool, root).seconds
                processes.finished()
                others.append((steps.occupied(bench.room) - before, _own_bytes(root, name)))
            values["project_bytes"] = float(max(more for more, _ in others))
            values["project_own_bytes"] = float(max(own for _, own in others))
        return steps.Sample(seconds, None, values)
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


def two_at_once(bench: Bench, tool: str, run: int) -> steps.Sample:
    """Two checkouts of one project, built cold at the same time; stores are empty."""
    bench.forget_cache(tool)
    home = bench.home(tool)
    roots = [home / f"{tool}-once-{run}", home / f"{tool}-at-once-{run}"]
    bench.clone(roots[0])
    words = ["worktree", "add", "--detach", str(roots[1]), bench.project.revisions[0]]
    projects.git(words, roots[0])
    try:
        built = bench.build_at_once(tool, roots)
        processes.finished()
        return steps.sample(built)
    finally:
        for root in reversed(roots):
            bench.forget_target(root)
            shutil.rmtree(root)
        # The store knows nothing of the main checkout any more.
        bench.forget_target(bench.main(tool))
        steps.marker(bench, tool).unlink(missing_ok=True)
