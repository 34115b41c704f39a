"""A whole benchmark: scratch, project, workloads, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cargo_cow.bench import projects, report, scratch
from cargo_cow.bench.tools import Bench
from cargo_cow.bench.workloads import measure


def run(
    project: str,
    *,
    other: str | None,
    runs: int,
    workloads: Sequence[str],
    tools: Sequence[str],
    directory: Path | None,
    filesystem: str | None,
    cargo_args: Sequence[str],
    say: Callable[[str], None],
) -> report.Report:
    """``project`` is a known name or, if it has a slash or is a directory, a path."""
    path = None
    if project not in projects.NAMES and (Path(project).is_dir() or "/" in project):
        path = Path(project)
    with scratch.scratch(directory, filesystem=filesystem, say=say) as place:
        say(place.note)
        about = report.machine(place.path, place.filesystem)
        got = projects.obtain(None if path else project, path, place.path, other=other, say=say)
        with Bench(got, place.path, cargo_args) as bench:
            measured = tuple(
                measure(bench, names=workloads, wanted_tools=tools, runs=runs, say=say)
            )
        return report.Report(
            about,
            {
                "name": got.name,
                "revisions": ", ".join(got.labels),
                "arguments": " ".join(cargo_args),
                "scratch": place.kind,
            },
            measured,
        )
