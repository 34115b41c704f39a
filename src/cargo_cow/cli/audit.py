"""``cargo cow audit``: look for units that Cargo calls fresh and that are not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from cargo_cow.cargo.workspace import load


@click.command("audit")
@click.option("--target-dir", help="The target directory, as Cargo's option of that name.")
@click.option("--all", "everything", is_flag=True, help="List sound and dirty units as well.")
@click.option(
    "--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def command(target_dir: str | None, everything: bool, style: str) -> int:
    """Find units that Cargo would call Fresh although their sources differ.

    Works on any target, also one that Cargo-CoW never touched: a target that was copied without
    times, shared between worktrees, or built from files whose old mtimes came back.  Evidence is
    taken from records, from the source hashes in crate metadata, from the path the compiler
    worked at, and from ctimes.  Nothing is changed.

    Exit status: 0 if every unit is sound, 1 if one is false-fresh or suspect.  To mend a finding:
    touch the file it names, or remove the unit with `cargo clean -p PACKAGE`.
    """
    from cargo_cow.cargo.target import Target
    from cargo_cow.prepare.audit import audit
    from cargo_cow.prepare.place import place_of

    workspace = load(Path.cwd(), ["--target-dir", target_dir] if target_dir else [])
    place = place_of(workspace)
    result = audit(Target(place.build_dir), place)
    bad = [entry for entry in result if entry.finding in ("false-fresh", "suspect")]
    if style == "json":
        print(
            json.dumps(
                {
                    "target": os.fspath(workspace.build_dir),
                    "false_fresh": sum(entry.finding == "false-fresh" for entry in result),
                    "suspect": sum(entry.finding == "suspect" for entry in result),
                    "units": [entry._asdict() for entry in (result if everything else bad)],
                }
            )
        )
    else:
        for entry in result if everything else bad:
            print(f"{entry.key}: {entry.finding}: {entry.evidence}")
        print(f"{len(result)} local units: {len(bad)} false-fresh or suspect")
    return 1 if bad else 0
