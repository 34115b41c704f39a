"""``cargo cow explain``: for each unit, proven, or the first reason why not; and for what the
warehouse did not have, how its nearest entry differs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cargo_cow.cargo.workspace import load
from cargo_cow.cli import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cargo_cow.cargo.workspace import Workspace
    from cargo_cow.warehouse.explaining import Miss

_LISTED = 12
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
@click.option("--store", "named", metavar="DIRECTORY", help="The warehouse, if not the usual one.")
@click.option(
    "--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def command(
    units: tuple[str, ...], everything: bool, donor: Path | None, named: str | None, style: str
) -> int:
    """Say for each unit whether it is proven here, or the first reason why not.

    Without UNIT only those that are not proven are listed.  UNIT is a package name or part of a
    unit's name (such as "serde" or "debug/app-1a2b").  A donor serves only the selections that
    were built in it: a unit that is not known was never built with these features, profile and
    target.

    Then come the units that were compiled although there is a warehouse: what is different in its
    nearest entry of the same crate.  Those of which it has no entry at all are only counted, unless
    UNIT names them.

    \b
    Examples:
      cargo cow explain
      cargo cow explain serde            proven or not, and why it was compiled
      cargo cow explain mycrate --format json
    """
    from cargo_cow import prepare
    from cargo_cow.cli.prepare import as_json

    workspace = load(Path.cwd())
    report = prepare.prepare(workspace, donor=donor, dry_run=True)
    value = as_json(report)
    rows = value["units"]
    assert isinstance(rows, list)
    missed = [] if donor is not None else _missed(workspace, named)
    if units:
        rows = [row for row in rows if any(name in row["unit"] for name in units)]
        missed = [one for one in missed if any(name in one.unit for name in units)]
    elif not everything:
        rows = [row for row in rows if row["status"] not in ("proven", "kept")]
    if style == "json":
        print(json.dumps({**value, "units": rows, "warehouse": [_value(one) for one in missed]}))
        return 0
    if report.plan is None:
        print("no target here, and no built checkout of this project to clone from")
        return 0
    for row in rows:
        print(f"{row['unit']}: {row['status']}")
        print(f"    {row['reason'] or _MEANING.get(row['status'], '')}")
    if units and not rows and not missed:
        print("no such unit was ever built here")
    counts = ", ".join(
        f"{report.plan.count(status)} {status}"
        for status in ("proven", "kept", "unproven", "dirty")
    )
    donor_said = "" if report.donor is None else f" in a clone of {report.donor}'s target"
    print(f"{len(report.plan.verdicts)} units{donor_said}: {counts}")
    _tell(missed, all_of_them=bool(units) or everything)
    return 0


def _missed(workspace: Workspace, named: str | None) -> list[Miss]:
    """What the warehouse did not have when this target was built."""
    from cargo_cow.cargo.target import Target
    from cargo_cow.errors import WarehouseMissing
    from cargo_cow.warehouse import explaining, store

    target = Target(os.path.realpath(workspace.build_dir))
    notes = explaining.asked(target.profiles)
    root = None
    if notes or named is not None:
        try:
            root = store.locate(workspace, Path.cwd(), named)
        except WarehouseMissing:
            if named is not None:
                raise
    return explaining.explain(root, notes)


def _value(miss: Miss) -> dict[str, Any]:
    return {
        **miss._asdict(),
        **render.json_path("nearest", miss.nearest),
        "differences": [{**one._asdict(), "text": str(one)} for one in miss.differences],
    }


def _tell(missed: Sequence[Miss], *, all_of_them: bool) -> None:
    now = time.time()
    new = 0
    for one in missed:
        if not all_of_them and one.nearest is None and one.what == "miss":
            new += 1
            continue
        print(f"{one.unit}: {one.crate} was compiled {render.human_age(now - one.time)}")
        if one.what != "miss":
            print(f"    the warehouse is not for this call: {one.reason}")
        elif one.nearest is None:
            print("    the warehouse had no entry of this crate")
        else:
            print(f"    nearest entry, kept {render.human_age(now - one.kept)}: ", end="")
            print(render.shown(one.nearest))
            told = [str(difference) for difference in one.differences] or [one.reason]
            for line in told[:_LISTED]:
                print(f"      {line}")
            if len(told) > _LISTED:
                print(f"      and {len(told) - _LISTED} more")
        if one.not_kept is not None:
            print(f"    it is not kept even now: {one.not_kept}")
    if new:
        print(f"{new} more units were compiled because the warehouse had no entry of their crates")
