"""``cargo cow stats``: what the warehouse did."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cargo_cow.cli import render
from cargo_cow.cli.warehouse import found, store_option


@click.command("stats")
@click.option("--days", type=click.IntRange(min=1), help="Count the last DAYS only.")
@click.option("--no-disk", is_flag=True, help="Do not ask the filesystem who shares what (faster).")
@store_option
@render.manifest_option
@render.format_option
def command(
    *, days: int | None, no_disk: bool, named: str | None, manifest_path: str | None, style: str
) -> int:
    """Show what the warehouse did: hits, misses by reason, what was kept, how files came.

    Counted where it happens, a line for each call of the compiler.  A miss's reason is that of the
    entry that came nearest: "new" where there was none of that key; `cargo cow explain` tells more.
    What is saved on the disk is measured by extents: what targets and the store share.

    \b
    Examples:
      cargo cow stats
      cargo cow stats --days 1 --format json
    """
    from cargo_cow.warehouse import stats, store

    root = found(Path.cwd(), named, manifest_path)
    since = time.time() - days * 86_400 if days else 0.0
    counted = stats.count(store.events(root), since)
    kept = store.entries(root)
    disk = None if no_disk else stats.measure(kept, counted.projects)
    if style == "json":
        render.print_json(
            {
                **render.json_path("store", root),
                **counted._asdict(),
                "projects": [one._asdict() for one in counted.projects],
                "missed_most": [one._asdict() for one in counted.missed_most],
                "entries": len(kept),
                "entries_bytes": sum(entry.size for entry in kept),
                "disk": None if disk is None else disk._asdict(),
            }
        )
        return 0
    calls = counted.hits + counted.misses
    share = f" ({counted.hits / calls:.0%} of {calls} calls)" if calls else ""
    rows = [
        ("store", render.shown(root)),
        ("entries", f"{len(kept)}, {render.human_bytes(sum(one.size for one in kept))}"),
    ]
    if disk is not None:
        roughly = "" if disk.exact else "about "
        alone, shared = map(render.human_bytes, (disk.exclusive_bytes, disk.shared_bytes))
        rows += [
            ("on the disk", f"{roughly}{alone} by itself, {shared} shared with targets"),
            (
                "disk saved",
                f"{roughly}{render.human_bytes(disk.saved_bytes)} in {disk.targets} target(s)",
            ),
        ]
    rows += [
        ("hits", f"{counted.hits}{share}"),
        ("grafted", f"{counted.grafted} units" if counted.grafted else ""),
        ("a hit took", f"{counted.milliseconds_per_hit:.1f} ms" if counted.hits else ""),
        ("compiling saved", f"{counted.seconds_saved:.0f} s" if counted.seconds_saved else ""),
        ("waited for", _waiting(counted.waited, counted.seconds_waited)),
        ("reflinked", render.human_bytes(counted.reflinked_bytes)),
        ("copied", _with_reasons(counted.copied_bytes, counted.copied_reasons)),
        ("misses", str(counted.misses)),
        *((f"  {reason}", str(number)) for reason, number in counted.missed.items()),
        ("kept", str(counted.kept)),
        ("not kept", str(sum(counted.not_kept.values()))),
        *((f"  {reason}", str(number)) for reason, number in counted.not_kept.items()),
        ("the compiler's alone", str(sum(counted.passed.values()))),
        *((f"  {reason}", str(number)) for reason, number in counted.passed.items()),
    ]
    if counted.let_go:
        freed = render.human_bytes(counted.let_go_bytes)
        rows.append(("let go by itself", f"{counted.let_go}, {freed}"))
    render.fields(rows)
    if len(counted.projects) > 1:
        click.echo()
        render.table(
            ["target", "hits", "misses"],
            [
                [render.shown(one.directory), str(one.hits), str(one.misses)]
                for one in counted.projects
            ],
            right=[1, 2],
        )
    # What was new once tells nothing: everything is, at first.
    telling = [one for one in counted.missed_most if one.misses > 1 or one.reason != "new"]
    if telling:
        click.echo()
        render.table(
            ["missed most", "crate", "misses", "why", "target"],
            [
                [one.package, one.crate, str(one.misses), one.reason, render.shown(one.project)]
                for one in telling
            ],
            right=[2],
        )
    return 0


def _waiting(hits: int, seconds: float) -> str:
    """Hits that another build was compiling just then."""
    return f"{hits} hits, {seconds:.1f} s in all" if hits or seconds else ""


def _with_reasons(size: int, reasons: dict[str, int]) -> str:
    if not size:
        return ""
    told = ", ".join(f"{name} {number}" for name, number in reasons.items())
    return f"{render.human_bytes(size)} ({told})"
