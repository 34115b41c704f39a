"""``cargo cow demo``: the main job on a real project, in one table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cargo_cow.cli import render


@click.command("demo")
@click.argument(
    "path", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--project", metavar="NAME", help="A published project (default: ripgrep).")
@click.option(
    "--other",
    metavar="REVISION",
    help="With PATH: the commit to switch to and back from (default: HEAD~1).",
)
@render.measuring_options
@render.format_option
def command(
    path: Path | None,
    project: str | None,
    other: str | None,
    directory: Path | None,
    filesystem: str | None,
    cargo_args: str,
    style: str,
) -> int:
    """Build once, add a worktree, build there, switch to another release and back.

    Plain Cargo and Cargo-CoW do the same, and one table shows what ran, how long it took and what
    it costs on disk.  Without PATH, two releases of ripgrep are fetched with Cargo.  With PATH it
    is the project there: it is cloned into scratch, and your checkout is only read.

    All of it happens in a scratch directory that is removed afterwards.  Where the disk cannot
    clone files, root gets a Btrfs image in a file, mounted for as long as this takes; anyone else
    is told what else is possible, and sees plain copies.

    \b
    Examples:
      cargo cow demo
      cargo cow demo ~/src/myproject --args="--all-targets"
      cargo cow demo --project fd --format json
    """
    import shlex

    from cargo_cow.bench import demo

    def say(message: str) -> None:
        print(f"cargo-cow: {message}", file=sys.stderr)

    told = demo.tell(
        name=project,
        path=path,
        other=other,
        directory=directory,
        filesystem=filesystem,
        cargo_args=shlex.split(cargo_args),
        say=say,
    )
    if style == "json":
        print(json.dumps(demo.as_json(told), indent=2))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    for part in demo.render(told):
        console.print(part)
    return 0
