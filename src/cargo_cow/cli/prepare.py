"""``cargo cow prepare``: the mechanism alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from cargo_cow.cargo.workspace import Workspace, load
from cargo_cow.cli import render
from cargo_cow.errors import CowError
from cargo_cow.prepare import Report


@click.command("prepare")
@click.option("--dry-run", "-n", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--from",
    "donor",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Clone the target of this checkout, or this state's directory (default: the nearest).",
)
@click.option("--no-copy", is_flag=True, help="Do nothing where only a plain copy is possible.")
@click.option("--target-dir", help="The target directory, as Cargo's option of that name.")
@click.option("--manifest-path", help="The manifest, as Cargo's option of that name.")
@click.option("--seed", is_flag=True, hidden=True, help="Called by the shim: quiet, never fails.")
@render.format_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="")
def command(
    dry_run: bool,
    donor: Path | None,
    no_copy: bool,
    target_dir: str | None,
    manifest_path: str | None,
    seed: bool,
    style: str,
    words: tuple[str, ...],
) -> int:
    """Make this checkout's target as fresh as can be proved.

    Where there is no target, that of the nearest built checkout of the same repository, or the
    nearest state, is cloned (a snapshot on Btrfs, shared extents on XFS and the like, else a copy).
    Then every unit is compared with the files here, by content: units that match are marked so that
    Cargo calls them fresh.  What does not match is taken from a state or another checkout that has
    it, and else left for Cargo to rebuild.  After a `git switch`, what was built before is kept as
    an automatic state first.

    \b
    Examples:
      cargo cow prepare --dry-run        what would be fresh, and what not
      cargo cow prepare --from ../main   clone the target of ../main
    """
    from cargo_cow.prepare import declared
    from cargo_cow.prepare.place import place_of
    from cargo_cow.snapshots import switching

    if words and not seed:
        raise click.UsageError(f"Got unexpected extra argument ({words[0]})")
    arguments = []
    if target_dir is not None:
        arguments += ["--target-dir", target_dir]
    if manifest_path is not None:
        arguments += ["--manifest-path", manifest_path]

    def say(message: str) -> None:
        print(f"cargo-cow: {message}", file=sys.stderr)

    try:
        workspace = load(Path.cwd(), arguments)
        for problem in declared.problems(place_of(workspace)):
            say(f"warning: {problem}")
        report = switching.switched(
            workspace, donor=donor, dry_run=dry_run, say=say, allow_copy=not no_copy
        )
        if words:
            _graft(workspace, words, say)
    except CowError as error:
        if not seed:
            raise
        say(f"warning: not prepared: {error}")
        return 0
    if style == "json":
        render.print_json(as_json(report))
    elif not seed:
        _print(report, dry_run)
    elif report.donor is not None:
        say(_summary(report))
    return 0


def _graft(workspace: Workspace, words: Sequence[str], say: Callable[[str], None]) -> None:
    """Put into the target what the warehouse has of a command that is about to run."""
    from cargo_cow.prepare.place import place_of
    from cargo_cow.warehouse import building

    done = building.before(workspace, place_of(workspace), words, Path.cwd(), say=say)
    if done is not None and done.grafted is not None and done.grafted.keys:
        say(f"{len(done.grafted.keys)} units came from the warehouse")


def as_json(report: Report) -> dict[str, object]:
    """The report as plain data: sizes in bytes, times in seconds."""
    return {
        "method": report.method,
        "donor": None if report.donor is None else os.fspath(report.donor),
        "seconds": report.seconds,
        "clone": None if report.clone is None else report.clone._asdict(),
        "applied": None if report.applied is None else report.applied._asdict(),
        "refused": [{"path": os.fspath(path), "reason": why} for path, why in report.refused],
        "notes": list(report.notes),
        "identity": None if report.identity is None else report.identity.as_json(),
        "grafted": report.grafted,
        "kept": None if report.kept is None else os.fspath(report.kept),
        "units": []
        if report.plan is None
        else [
            {
                "unit": verdict.key,
                "status": verdict.status,
                "code": None if verdict.reason is None else verdict.reason.code,
                "reason": None if verdict.reason is None else str(verdict.reason),
            }
            for verdict in report.plan.verdicts
        ],
    }


def _summary(report: Report) -> str:
    plan = report.plan
    if plan is None:
        return "nothing to prepare: no target here, and no built checkout to clone from"
    where = "in place" if report.donor is None else f"cloned from {report.donor} ({report.method})"
    return (
        f"target {where}: {plan.count('proven')} units proven, {plan.count('kept')} kept, "
        f"{len(plan.drop)} dropped" + (f", {report.grafted} grafted" if report.grafted else "")
    )


def _print(report: Report, dry_run: bool) -> None:
    print(("would be: " if dry_run else "") + _summary(report))
    if report.plan is None:
        return
    for verdict in report.plan.verdicts:
        if verdict.status == "unproven":
            print(f"  {verdict.key}: {verdict.reason}")
    if report.identity is not None and report.identity.in_use:
        print(f"rustc {'would see' if dry_run else 'sees'} this checkout at {report.identity}")
