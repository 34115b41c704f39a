"""``cargo cow uninstall``: take back all that ``init`` changed."""

from __future__ import annotations

from pathlib import Path

import click

from cargo_cow.cli import render


@click.command("uninstall")
@click.option(
    "--purge",
    is_flag=True,
    help="Also remove .cargo-cow and cow-*.json from this project's targets.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@render.manifest_option
@render.format_option
def command(*, purge: bool, dry_run: bool, manifest_path: str | None, style: str) -> int:
    """Take back all that `cargo cow init` changed.

    Cargo's configuration files become what they were, byte for byte where nobody edited them
    since; a wrapper that was chained is Cargo's wrapper again.  Targets stay: they are ordinary
    targets that plain Cargo goes on using, and nothing is rebuilt.  The program itself is removed
    by whatever installed it (such as pip uninstall cargo-cow), after this.

    \b
    Examples:
      cargo cow uninstall --dry-run
      cargo cow uninstall --purge
    """
    from cargo_cow.cli.init import report
    from cargo_cow.setup import switching

    plan = switching.plan_uninstall(
        Path.cwd(), purge=purge, cargo_args=render.cargo_arguments(manifest_path)
    )
    done = None if dry_run else switching.carry_out(plan)
    return report(plan, done, style, nothing="nothing of ours is configured: nothing to take back")
