"""``cargo cow gc``: let the warehouse shrink."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cargo_cow.cli import render
from cargo_cow.cli.warehouse import found, store_option


@click.command("gc")
@click.option(
    "--unused-for",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    metavar="DAYS",
    help="Entries that were not used for so long go.",
)
@click.option(
    "--budget",
    metavar="SIZE",
    help="Then the longest unused go, until the rest uses no more by itself (5GB).",
)
@click.option("--yes", is_flag=True, help="Do it; without, only the plan is shown.")
@store_option
@render.manifest_option
@render.format_option
def command(
    *,
    unused_for: int,
    budget: str | None,
    yes: bool,
    named: str | None,
    manifest_path: str | None,
    style: str,
) -> int:
    """Remove entries of the warehouse: what would go, and why; with --yes it goes.

    Damaged entries go, those that nobody used for a while, and, with --budget, those used longest
    ago.  What was used in the last hour stays.  Bytes are exclusive ones: what an entry shares with
    a target, or with another entry, comes back only with both.  No target ever needs an entry.

    \b
    Examples:
      cargo cow gc                          the plan
      cargo cow gc --yes
      cargo cow gc --budget 5GB --yes
    """
    from cargo_cow.snapshots.policy import parse_size
    from cargo_cow.warehouse import gc, store

    root = found(Path.cwd(), named, manifest_path)
    policy = gc.Policy(unused_for * gc.DAY, None if budget is None else parse_size(budget))
    planned = gc.plan(root, store.entries(root), policy, time.time())
    done = gc.carry_out(root, planned) if yes else None
    if style == "json":
        render.print_json(
            {
                **render.json_path("store", root),
                "exclusive_bytes": planned.exclusive,
                "staying": planned.staying,
                "going": [
                    {
                        "key": one.entry.key,
                        "crate": one.entry.crate,
                        "package": one.entry.package,
                        "used": one.entry.used,
                        "reason": one.reason,
                        "exclusive_bytes": one.exclusive,
                    }
                    for one in planned.going
                ],
                "leftovers": len(planned.leftovers),
                "done": None if done is None else done._asdict(),
            }
        )
        return 0
    now = time.time()
    render.table(
        ["package", "crate", "used", "alone", "why"],
        [
            [
                one.entry.package,
                one.entry.crate,
                render.human_age(now - one.entry.used) if one.entry.used else "",
                render.human_bytes(one.exclusive),
                one.reason,
            ]
            for one in planned.going
        ],
        right=[3],
    )
    if done is None:
        verb = f"{len(planned.going)} would go, at least {render.human_bytes(planned.frees)}"
    else:
        verb = f"{done.removed} went, at least {render.human_bytes(done.freed)}"
        if done.in_use:
            verb += f"; {done.in_use} are in use"
    click.echo(f"{verb}; {planned.staying} stay")
    if done is None and planned.going:
        render.say("this is the plan: cargo cow gc --yes carries it out")
    return 0
