"""``cargo cow explain``: for each unit, proven, or the first reason why not."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cargo_cow.cargo.workspace import load

_MEANING = {
    "proven": "all it was made from is here, with the same content",
    "kept": "nothing to prove: Cargo's own judgement holds for it",
    "dirty": "Cargo will build it",
    "unknown": "left alone (documentation, or a format we do not know)",
}


@click.command("explain")
@click.argument("units", nargs=-1, metavar="[UNIT]...")
@click.option("--all", "everything", is_flag=True, help="Proven and kept units as well.")
@click.option(
    "--from",
    "donor",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Explain a clone of this checkout's target instead.",
)
@click.option(
    "--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def command(units: tuple[str, ...], everything: bool, donor: Path | None, style: str) -> int:
    """Say for each unit whether it is proven here, or the first reason why not.

    Without UNIT only those that are not proven are listed.  UNIT is a package name or part of a
    unit's name (such as "serde" or "debug/app-1a2b").  A donor serves only the selections that
    were built in it: a unit that is not known was never built with these features, profile and
    target.

    \b
    Examples:
      cargo cow explain
      cargo cow explain mycrate --format json
    """
    from cargo_cow import prepare
    from cargo_cow.cli.prepare import as_json

    report = prepare.prepare(load(Path.cwd()), donor=donor, dry_run=True)
    value = as_json(report)
    rows = value["units"]
    assert isinstance(rows, list)
    if units:
        rows = [row for row in rows if any(name in row["unit"] for name in units)]
    elif not everything:
        rows = [row for row in rows if row["status"] not in ("proven", "kept")]
    if style == "json":
        print(json.dumps({**value, "units": rows}))
        return 0
    if report.plan is None:
        print("no target here, and no built checkout of this project to clone from")
        return 0
    for row in rows:
        print(f"{row['unit']}: {row['status']}")
        print(f"    {row['reason'] or _MEANING.get(row['status'], '')}")
    if units and not rows:
        print("no such unit was ever built here")
    counts = ", ".join(
        f"{report.plan.count(status)} {status}"
        for status in ("proven", "kept", "unproven", "dirty")
    )
    donor_said = "" if report.donor is None else f" in a clone of {report.donor}'s target"
    print(f"{len(report.plan.verdicts)} units{donor_said}: {counts}")
    return 0
