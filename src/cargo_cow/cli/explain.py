"""``cargo cow explain``: for each unit, proven, or the first reason why not; what the warehouse
could give for it, or why not; and for what it did not have, how its nearest entry differs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cargo_cow.cargo.workspace import load
from cargo_cow.cli import render
from cargo_cow.errors import CowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cargo_cow.cargo.workspace import Workspace
    from cargo_cow.prepare import Report
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
@click.option(
    "--asked",
    default="build",
    show_default=True,
    metavar="COMMAND",
    help="What you are about to run, for what the warehouse would give to it.",
)
@click.option("--store", "named", metavar="DIRECTORY", help="The warehouse, if not the usual one.")
@click.option(
    "--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def command(
    *,
    units: tuple[str, ...],
    everything: bool,
    donor: Path | None,
    asked: str,
    named: str | None,
    style: str,
) -> int:
    """Say for each unit whether it is proven here, or the first reason why not.

    Without UNIT only those that are not proven are listed.  UNIT is a package name or part of a
    unit's name (such as "serde" or "debug/app-1a2b").  A donor serves only the selections that
    were built in it: a unit that is not known was never built with these features, profile and
    target.

    Of units that a command will ask for (--asked), and that are not right here, it is told whether
    the warehouse has them, and if not, why: what `cargo cow graft --dry-run` finds.

    Then come the units that were compiled although there is a warehouse: what is different in its
    nearest entry of the same crate.  Those of which it has no entry at all are only counted, unless
    UNIT names them.

    \b
    Examples:
      cargo cow explain
      cargo cow explain serde            proven or not, and why it was compiled
      cargo cow explain --asked "test --workspace"
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
    grafts = None if donor is not None else _grafts(workspace, asked, report)
    if units:
        rows = [row for row in rows if any(name in row["unit"] for name in units)]
        missed = [one for one in missed if any(name in one.unit for name in units)]
        grafts = None if grafts is None else grafts.of(units)
    elif not everything:
        rows = [row for row in rows if row["status"] not in ("proven", "kept")]
    if style == "json":
        told = None if grafts is None else grafts.as_json()
        warehouse = [_value(one) for one in missed]
        print(json.dumps({**value, "units": rows, "graft": told, "warehouse": warehouse}))
        return 0
    if report.plan is None:
        print("no target here, and no built checkout of this project to clone from")
    for row in rows:
        print(f"{row['unit']}: {row['status']}")
        print(f"    {row['reason'] or _MEANING.get(row['status'], '')}")
    if grafts is not None:
        grafts.tell(all_of_them=bool(units) or everything)
    if report.plan is None:
        return 0
    if units and not rows and not missed and not (grafts is not None and grafts.units):
        print("no such unit was ever built here")
    counts = ", ".join(
        f"{report.plan.count(status)} {status}"
        for status in ("proven", "kept", "unproven", "dirty")
    )
    donor_said = "" if report.donor is None else f" in a clone of {report.donor}'s target"
    print(f"{len(report.plan.verdicts)} units{donor_said}: {counts}")
    _tell(missed, all_of_them=bool(units) or everything)
    return 0


class _Grafts(NamedTuple):
    """Units that a command asks for and that are not right here: None for what the warehouse can
    give, else why it cannot."""

    command: str
    units: dict[str, str | None]

    def of(self, names: Sequence[str]) -> _Grafts:
        """Those that are named."""
        found = {
            key: reason for key, reason in self.units.items() if any(name in key for name in names)
        }
        return self._replace(units=found)

    def as_json(self) -> dict[str, Any]:
        chosen = [key for key, reason in self.units.items() if reason is None]
        missing = {key: reason for key, reason in self.units.items() if reason is not None}
        return {"command": self.command, "chosen": chosen, "missing": missing}

    def tell(self, *, all_of_them: bool) -> None:
        from cargo_cow.warehouse.grafting import NEVER_KEPT

        new = 0
        for key, reason in self.units.items():
            if reason == NEVER_KEPT and not all_of_them:
                new += 1
            elif reason is not None:
                print(f"{key}: does not come from the warehouse")
                print(f"    {reason}")
            elif all_of_them:
                print(f"{key}: comes from the warehouse")
        if new:
            print(f"{new} more units of cargo {self.command} were never kept in the warehouse")
        given = sum(reason is None for reason in self.units.values())
        if given:
            print(f"{given} units of cargo {self.command} will come from the warehouse")


def _grafts(workspace: Workspace, asked: str, report: Report) -> _Grafts | None:
    """What a graft would do before ``cargo <asked>``; None where there is no warehouse, or Cargo
    does not say what it will ask for."""
    import shlex

    from cargo_cow.prepare.place import place_of
    from cargo_cow.warehouse import surroundings

    cwd = Path.cwd()
    if surroundings.is_on(cwd) is None:
        return None
    from cargo_cow.warehouse import building

    judged = report.plan if report.donor is None else None
    place = place_of(workspace)
    words = shlex.split(asked)
    try:
        ready = building.before(
            workspace, place, words, cwd, judged=judged, dry_run=True, say=render.say
        )
    except CowError as error:
        render.say(f"warning: the warehouse is of no use here: {error}")
        return None
    if ready is None or ready.asked is None:
        return None
    found: dict[str, str | None] = {}
    if ready.plan is not None:
        found = {entry.key: None for entry in ready.plan.chosen}
        found |= {missing.key: missing.reason for missing in ready.plan.missing}
    return _Grafts(asked, found)


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
