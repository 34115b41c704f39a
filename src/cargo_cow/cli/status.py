"""``cargo cow status``: this checkout, its target, and what would rebuild and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cargo_cow.cli import render

if TYPE_CHECKING:
    from cargo_cow.worktrees.status import Status

_SHOWN = 10


@click.command("status")
@click.option("--all", "everything", is_flag=True, help="All units that would rebuild.")
@click.option("--no-sizes", is_flag=True, help="Do not measure: reading all extents takes time.")
@render.manifest_option
@render.format_option
def command(*, everything: bool, no_sizes: bool, manifest_path: str | None, style: str) -> int:
    """Show how this checkout stands: its target, where it came from, what would rebuild and why.

    The proof is the one that `cargo cow build` makes before it starts Cargo, without its effect:
    nothing is marked fresh and nothing is dropped.  What depends on a unit that is listed is
    rebuilt too.  `cargo cow explain UNIT` says more about one unit.

    \b
    Examples:
      cargo cow status
      cargo cow status --format json --no-sizes
    """
    from cargo_cow.cargo.workspace import load
    from cargo_cow.worktrees.status import status

    found = status(load(Path.cwd(), render.cargo_arguments(manifest_path)), sizes=not no_sizes)
    for line in found.trouble:
        render.say(f"warning: {line}")
    linker = _linker()
    if style == "json":
        render.print_json({**_value(found), "linker": linker})
        return 0
    import time

    checkout = found.checkout
    where = ""
    if checkout is not None:
        what = checkout.branch or f"detached at {(checkout.head or '')[:9]}"
        kind = "main checkout" if checkout.is_main else "worktree"
        where = f"{render.shown(checkout.root)} ({kind}, {render.shown(what)})"
    size = ""
    if found.usage is not None:
        about = "" if found.usage.exact else "about "
        size = (
            f"{render.human_bytes(found.usage.logical_bytes)} in files; on disk {about}"
            f"{render.human_bytes(found.usage.exclusive_bytes)} exclusive, "
            f"{render.human_bytes(found.usage.shared_bytes)} shared"
        )
    built = "not built yet"
    if found.exists:
        built = f"{found.units} units, {found.records} with a record"
        if found.layouts:
            built += f", layout {' and '.join(found.layouts)}"
    cloned = ""
    if found.filesystem is not None:
        cloned = f"{found.filesystem}, clones by {found.method}"
    render.fields(
        [
            ("workspace", render.shown(found.workspace)),
            ("checkout", where),
            ("target", render.shown(found.build_dir)),
            (
                "artefacts",
                "" if found.target_dir == found.build_dir else render.shown(found.target_dir),
            ),
            ("built", built),
            ("size", size),
            ("filesystem", cloned),
            (
                "identity",
                ""
                if found.identity is None or not found.identity.file
                else render.shown(str(found.identity)),
            ),
            ("linker", render.shown(linker or "")),
            ("prepared", render.prepared_line(found.prepared, time.time())),
            (
                "donor",
                "" if found.donor is None else f"{render.shown(found.donor)} would be cloned",
            ),
        ]
    )
    if found.rebuild is None:
        click.echo("nothing is built here, and no sibling checkout has a target to clone")
        return 0
    if not found.rebuild:
        click.echo("nothing that was built would be rebuilt")
        return 0
    count = len(found.rebuild)
    click.echo(
        f"{count} unit{'s' if count > 1 else ''} would be rebuilt, and what depends on "
        f"{'them' if count > 1 else 'it'}:"
    )
    listed = found.rebuild if everything else found.rebuild[:_SHOWN]
    for unit in listed:
        click.echo(f"  {unit.unit}: {unit.reason}")
    if len(listed) < len(found.rebuild):
        click.echo(f"  and {len(found.rebuild) - len(listed)} more (--all)")
    return 0


def _linker() -> str | None:
    from cargo_cow.errors import CowError
    from cargo_cow.setup import linker

    try:
        return linker.in_force(Path.cwd())
    except CowError:
        return None  # a configuration that cannot be read: Cargo's own complaint comes first


def _value(found: Status) -> dict[str, Any]:
    checkout = found.checkout
    return {
        **render.json_path("workspace", found.workspace),
        "checkout": None
        if checkout is None
        else {
            **render.json_path("path", checkout.root),
            "head": checkout.head,
            "branch": checkout.branch,
            "main": checkout.is_main,
        },
        **render.json_path("target", found.build_dir),
        **render.json_path("artefacts", found.target_dir),
        "exists": found.exists,
        "layouts": list(found.layouts),
        "units": found.units,
        "records": found.records,
        "filesystem": found.filesystem,
        "method": found.method,
        "prepared": render.prepared_value(found.prepared),
        **render.json_path("donor", found.donor),
        "rebuild": None if found.rebuild is None else [unit._asdict() for unit in found.rebuild],
        "identity": None if found.identity is None else found.identity.as_json(),
        "usage": render.usage_value(found.usage),
        "trouble": list(found.trouble),
    }
