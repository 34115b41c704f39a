"""``cargo cow doctor``: what works here, what is lost, and the command that mends it."""

from __future__ import annotations

from pathlib import Path

import click

from cargo_cow.cli import render


@click.command("doctor")
@render.manifest_option
@render.format_option
def command(*, manifest_path: str | None, style: str) -> int:
    """Say what works here, what is lost, and the command that mends it.

    Everything is found by trying: a file is cloned in the target's filesystem, a subvolume made,
    the native program asked.  Nothing is changed.  The exit status is 0 unless something fails;
    a warning only means that plain Cargo does more of the work.

    \b
    Examples:
      cargo cow doctor
      cargo cow doctor --format json
    """
    from cargo_cow.setup import checks

    found = checks.run(Path.cwd(), render.cargo_arguments(manifest_path))
    if style == "json":
        render.print_json({"checks": [check._asdict() for check in found]})
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            first, *rest = check.found.splitlines() or [""]
            click.echo(f"{check.status:<4}  {check.name.ljust(width)}  {first}")
            margin = " " * (width + 8)
            for line in rest:
                click.echo(margin + line)
            if check.lost:
                click.echo(f"{margin}lost: {check.lost}")
            if check.mend:
                click.echo(f"{margin}mend: {check.mend}")
    return 1 if any(check.status == "fail" for check in found) else 0
