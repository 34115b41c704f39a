"""``cargo cow verify``: is what the warehouse keeps what was put into it?"""

from __future__ import annotations

from pathlib import Path

import click

from cargo_cow.cli import render
from cargo_cow.cli.warehouse import found, store_option


@click.command("verify")
@click.option("--remove", is_flag=True, help="Take damaged entries out.")
@store_option
@render.manifest_option
@render.format_option
def command(*, remove: bool, named: str | None, manifest_path: str | None, style: str) -> int:
    """Read all entries of the warehouse and compare them with their digests.

    Builds do that by themselves where it is in doubt (after a boot, or when a file is not the one
    that was seen whole), and compile what is damaged; this looks at everything.

    Exit status: 0 if all entries are whole, 1 if one is damaged.

    \b
    Examples:
      cargo cow verify
      cargo cow verify --remove
    """
    from cargo_cow.warehouse import store

    root = found(Path.cwd(), named, manifest_path)
    kept = store.entries(root)
    bad = [(entry, why) for entry in kept if (why := store.damage(entry)) is not None]
    gone = {entry.path for entry, _ in bad if remove and store.remove(root, entry)}
    if style == "json":
        render.print_json(
            {
                **render.json_path("store", root),
                "entries": len(kept),
                "damaged": [
                    {
                        **render.json_path("path", entry.path),
                        "crate": entry.crate,
                        "trouble": why,
                        "removed": entry.path in gone,
                    }
                    for entry, why in bad
                ],
            }
        )
    else:
        for entry, why in bad:
            removed = " (removed)" if entry.path in gone else ""
            click.echo(f"{render.shown(entry.path)}: {entry.crate}: {why}{removed}")
        click.echo(f"{len(kept)} entries: {len(bad)} damaged")
    if bad and not remove:
        render.say("builds compile these again: cargo cow verify --remove takes them out")
    return 1 if bad else 0
