"""``cargo cow graft``: units from the warehouse, before Cargo runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cargo_cow.cli import render

if TYPE_CHECKING:
    from cargo_cow.cargo.workspace import Workspace
    from cargo_cow.prepare.place import Place
    from cargo_cow.warehouse.building import Ready
    from cargo_cow.warehouse.units import Kept


@click.command("graft", context_settings={"ignore_unknown_options": True})
@click.option("--dry-run", is_flag=True, help="Only show what would be put into the target.")
@click.option("--keep", is_flag=True, help="Keep what is built here, as every build does after it.")
@render.manifest_option
@render.format_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[CARGO-COMMAND]...")
def command(
    *,
    dry_run: bool,
    keep: bool,
    manifest_path: str | None,
    style: str,
    words: tuple[str, ...],
) -> int:
    """Put the units that a Cargo command will ask for into the target, from the warehouse.

    CARGO-COMMAND is what you are about to run, without `cargo` (default: build); Cargo itself is
    asked which units that needs.  Compiled units come with what their build scripts printed and
    made; no compiler runs, and no process for each.  What Cargo then finds changed it builds.
    `cargo cow build` and the like do this by themselves.

    \b
    Examples:
      cargo cow graft                       for cargo build
      cargo cow graft --dry-run             what is there, and why the rest is not
      cargo cow graft test --workspace
      cargo cow graft --keep                keep what is built here now
    """
    from cargo_cow.cargo.workspace import load
    from cargo_cow.errors import UsageError
    from cargo_cow.prepare.place import place_of
    from cargo_cow.warehouse import building, planning, surroundings

    cwd = Path.cwd()
    arguments = list(words) or ["build"]
    chosen = render.cargo_arguments(manifest_path)
    workspace = load(cwd, [*chosen, *arguments[1:]])
    place = place_of(workspace)
    if surroundings.is_on(cwd) is None:
        raise UsageError(
            "the warehouse is switched off here",
            hint="cargo cow init --warehouse, or CARGO_COW_WAREHOUSE=on",
        )
    if not planning.is_planned(arguments):
        raise _silent(arguments)
    if keep:
        return _keep(workspace, place, cwd, [*arguments, *chosen], style)
    ready = building.before(
        workspace, place, [*arguments, *chosen], cwd, dry_run=dry_run, say=render.say
    )
    if ready is None or ready.asked is None:
        raise _silent(arguments)
    return _show(ready, style)


def _silent(arguments: list[str]) -> Exception:
    from cargo_cow.errors import UsageError

    return UsageError(
        f"cargo {' '.join(arguments)} does not say what it would build",
        hint="name a command that builds, such as build or test; a Cargo.lock is needed",
    )


_NEVER = (1 << 62) - 1  # later than anything that is built


def _keep(
    workspace: Workspace,
    place: Place,
    cwd: Path,
    arguments: list[str],
    style: str,
) -> int:
    kept = None
    if Path(place.build_dir).is_dir():
        kept = _kept(workspace, place, cwd, arguments)
    if style == "json":
        render.print_json(None if kept is None else kept._asdict())
        return 0
    if kept is None:
        render.say("nothing is built here")
        return 0
    click.echo(f"{kept.new} of {kept.looked_at} units are new in the warehouse")
    for key, reason in kept.refused.items():
        click.echo(f"  {key}: {reason}")
    return 0


def _kept(workspace: Workspace, place: Place, cwd: Path, arguments: list[str]) -> Kept | None:
    from cargo_cow import prepare
    from cargo_cow.warehouse import building

    prepare.capture_of(workspace)
    return building.keep(workspace, place, cwd, arguments, _NEVER)


def _show(ready: Ready, style: str) -> int:
    plan, done, asked = ready.plan, ready.grafted, ready.asked
    assert asked is not None
    if style == "json":
        render.print_json(
            {
                "asked": len(asked.units),
                "fresh": len(asked.units) if plan is None else plan.fresh,
                "chosen": [] if plan is None else [entry.key for entry in plan.chosen],
                "missing": {}
                if plan is None
                else {missing.key: missing.reason for missing in plan.missing},
                "grafted": None
                if done is None
                else {**done._asdict(), "keys": sorted(done.keys), "notes": list(done.notes)},
            }
        )
        return 0
    if plan is None:
        click.echo(f"all {len(asked.units)} units are there")
        return 0
    for missing in plan.missing:
        click.echo(f"  {missing.key}: {missing.reason}")
    if done is None:
        verb = f"{len(plan.chosen)} would be put there"
    else:
        verb = (
            f"{len(done.keys)} were put there ({done.files} files, "
            f"{render.human_bytes(done.reflinked_bytes)} shared, "
            f"{render.human_bytes(done.copied_bytes)} copied, {done.seconds:.2f} s)"
        )
    click.echo(f"{plan.asked} units asked for: {plan.fresh} are fresh, {verb}")
    return 0
