"""``cargo cow gc``: let the warehouse shrink."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from cargo_cow.cli import render
from cargo_cow.cli.warehouse import found, store_option


@click.command("gc")
@click.option(
    "--unused-for",
    type=click.IntRange(min=0),
    metavar="DAYS",
    help="Entries that were not used for so long go (30).",
)
@click.option(
    "--budget",
    metavar="SIZE",
    help="Then those that are worth least, until the rest uses no more by itself (5GB).",
)
@click.option(
    "--min-free",
    metavar="SIZE",
    help="And until so much of the filesystem is free (10GB, or 5%, which is the default).",
)
@click.option("--yes", is_flag=True, help="Do it; without, only the plan is shown.")
@click.option("--automatic", is_flag=True, hidden=True, help="Asked by the shim: quiet, bounded.")
@store_option
@render.manifest_option
@render.format_option
def command(
    *,
    unused_for: int | None,
    budget: str | None,
    min_free: str | None,
    yes: bool,
    automatic: bool,
    named: str | None,
    manifest_path: str | None,
    style: str,
) -> int:
    """Remove entries of the warehouse: what would go, and why; with --yes it goes.

    Damaged entries go, and those that nobody used for a while. Over the budget, or where the
    filesystem is nearly full, those go that are worth least: that took few seconds to compile for
    the bytes they use, and were used long ago.  What was used in the last hour stays.

    Bytes are those that come back when all of it goes: what a target shares with an entry does not,
    and what two entries share does with the second.  No target ever needs an entry.

    The shim does this by itself, at most once an hour, by the settings of git
    cargo-cow.warehouseUnusedFor (30d), warehouseBudget and warehouseMinFree (5%), which hold here,
    too; cargo-cow.warehouseGc false switches that off.

    \b
    Examples:
      cargo cow gc                          the plan
      cargo cow gc --yes
      cargo cow gc --budget 5GB --yes
      git config --global cargo-cow.warehouseBudget 20GB
    """
    from cargo_cow.filesystems.space import parse_mark, parse_size, space_of
    from cargo_cow.warehouse import gc, housekeeping, store

    root = found(Path.cwd(), named, manifest_path)
    if automatic:
        os.nice(10)  # a build may go on beside it
        housekeeping.tidy(root)
        return 0
    policy = housekeeping.settings(root).policy
    if unused_for is not None:
        policy = policy._replace(unused_for=unused_for * gc.DAY)
    if budget is not None:
        policy = policy._replace(budget=parse_size(budget))
    if min_free is not None:
        policy = policy._replace(min_free=parse_mark(min_free))
    now = time.time()
    planned = gc.plan(root, store.entries(root), policy, now, space_of([root]).get(root))
    done = gc.carry_out(root, planned) if yes else None
    if style == "json":
        render.print_json(
            {
                **render.json_path("store", root),
                "exclusive_bytes": planned.exclusive,
                "frees_bytes": planned.frees,
                "exact": planned.exact,
                "compile_seconds": planned.seconds,
                "staying": planned.staying,
                "going": [
                    {
                        "key": one.entry.key,
                        "crate": one.entry.crate,
                        "package": one.entry.package,
                        "used": one.entry.used,
                        "reason": one.reason,
                        "exclusive_bytes": one.alone,
                        "compile_seconds": one.entry.seconds,
                    }
                    for one in planned.going
                ],
                "leftovers": len(planned.leftovers),
                "done": None if done is None else done._asdict(),
            }
        )
        return 0
    render.table(
        ["package", "crate", "used", "frees", "compiled in", "why"],
        [
            [
                one.entry.package,
                one.entry.crate,
                render.human_age(now - one.entry.used) if one.entry.used else "",
                render.human_bytes(one.alone),
                f"{one.entry.seconds:.1f} s",
                one.reason,
            ]
            for one in planned.going
        ],
        right=[3, 4],
    )
    roughly = "" if planned.exact else "about "
    if done is None:
        verb = f"{len(planned.going)} would go, {roughly}{render.human_bytes(planned.frees)}"
    else:
        verb = f"{done.removed} went, {roughly}{render.human_bytes(done.freed)}"
        if done.in_use:
            verb += f"; {done.in_use} are in use"
    click.echo(f"{verb}; {planned.staying} stay")
    if done is None and planned.going:
        render.say("this is the plan: cargo cow gc --yes carries it out")
    return 0
