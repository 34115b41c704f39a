"""``cargo cow bench``: the benchmark and its report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click

from cargo_cow.cli import render

# Names only: the workloads themselves are loaded when they run.
_WORKLOADS = (
    "cold",
    "unchanged",
    "new-worktree",
    "other-commit",
    "first-edit",
    "body-edit",
    "there-and-back",
    "target-removed",
    "second-project",
    "script-unchanged",
    "disk-shared",
    "two-at-once",
    "states",
    "create",
    "activate",
    "prepare",
    "clone",
    "passed-call",
)
_PROJECTS = (
    "ripgrep",
    "ripgrep-workspace",
    "fd",
    "bat",
    "just",
    "hyperfine",
    "hk",
    "synthetic",
    "large",
)
_TOOLS = (
    "plain",
    "cow",
    "cow-own-place",
    "cow-unobserved",
    "cow-warehouse",
    "shim",
    "shim-warehouse",
    "reflink",
    "reflink-touched",
    "sccache",
    "kache",
    "mbx",
)


def _listed(known: tuple[str, ...]) -> Callable[..., tuple[str, ...]]:
    """A click callback: names parted by commas, each of them known."""

    def check(
        _context: click.Context, _option: click.Parameter, value: str | None
    ) -> tuple[str, ...]:
        if value is None:
            return ()
        names = tuple(value.split(","))
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
        return names

    return check


@click.command("bench")
@click.option(
    "--project",
    default="ripgrep",
    show_default=True,
    metavar="PATH|NAME",
    help=f"A directory, or one of {', '.join(_PROJECTS)}.",
)
@click.option("--other", metavar="REVISION", help="With a path: the other commit [HEAD~1].")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--workload",
    "workloads",
    callback=_listed(_WORKLOADS),
    default=",".join(_WORKLOADS),
    metavar="LIST",
    help=f"Any of {','.join(_WORKLOADS)} (default: all).",
)
@click.option(
    "--tool",
    "tools",
    callback=_listed(_TOOLS),
    metavar="LIST",
    help=f"Any of {','.join(_TOOLS)} (default: all that are installed).",
)
@render.measuring_options
@render.format_option
def command(
    project: str,
    other: str | None,
    runs: int,
    workloads: tuple[str, ...],
    tools: tuple[str, ...],
    directory: Path | None,
    filesystem: str | None,
    cargo_args: str,
    style: str,
) -> int:
    """Measure Cargo-CoW against plain Cargo and a blind copy of the target.

    Several runs, the tools taking turns; medians; compilers counted where they start.  Work is
    done in clones in a scratch directory that is removed afterwards.  At the end stand the figures
    that were missed and the cells in which another way was faster.  docs/benchmark.md says how
    each number comes about.

    \b
    Examples:
      cargo cow bench --runs 5
      cargo cow bench --project . --workload new-worktree,unchanged
      cargo cow bench --filesystem xfs --workload clone --format json
      cargo cow bench --workload target-removed --tool plain,cow-warehouse,sccache
    """
    import shlex

    from cargo_cow.bench import report, run

    def say(message: str) -> None:
        print(f"cargo-cow: {message}", file=sys.stderr)

    if not tools:
        from cargo_cow.bench import caches

        absent = [name for name in caches.NAMES if caches.program_of(name) is None]
        tools = tuple(tool for tool in _TOOLS if tool not in absent)
        if absent:
            say(f"not installed, and left out: {', '.join(absent)}")
    found = run.run(
        project,
        other=other,
        runs=runs,
        workloads=workloads,
        tools=tools,
        directory=directory,
        filesystem=filesystem,
        cargo_args=shlex.split(cargo_args),
        say=say,
    )
    if style == "json":
        print(json.dumps(report.as_json(found), indent=2))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    for part in report.render(found):
        console.print(part)
    for line in report.legend(tools):
        console.print(line)
    return 0
