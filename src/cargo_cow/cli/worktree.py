"""``cargo cow worktree add|list|remove``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cargo_cow.cli import render

if TYPE_CHECKING:
    from cargo_cow.worktrees import Listed, Removal


@click.group("worktree")
def command() -> None:
    """git's worktrees with a prepared target.

    \b
    Examples:
      cargo cow worktree add ../fix -b fix      a worktree whose first build is a no-op
      cargo cow worktree list                   what each one uses on disk alone
      cargo cow worktree remove ../fix
    """


@command.command("add")
@click.argument("path")
@click.argument("commit", required=False, metavar="[COMMIT-ISH]")
@click.option("-b", "new_branch", metavar="NAME", help="Create a branch and check it out.")
@click.option("-B", "reset_branch", metavar="NAME", help="Create or reset a branch.")
@click.option("-d", "--detach", is_flag=True, help="Check out without a branch.")
@click.option("--track/--no-track", default=None, help="Set the new branch's upstream, or not.")
@click.option(
    "--guess-remote/--no-guess-remote",
    default=None,
    help="Look for a remote branch of the directory's name, or not.",
)
@click.option("--no-checkout", is_flag=True, help="No files (and no target) yet.")
@click.option("--lock", is_flag=True, help="Keep the new worktree locked.")
@click.option("--reason", metavar="TEXT", help="Why it is locked.")
@click.option("-f", "--force", count=True, help="As git's: a branch that is checked out elsewhere.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors and warnings.")
@click.option(
    "--from",
    "donor",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Clone the target of this checkout (default: the one whose tree differs least).",
)
@render.format_option
def add(
    *,
    path: str,
    commit: str | None,
    new_branch: str | None,
    reset_branch: str | None,
    detach: bool,
    track: bool | None,
    guess_remote: bool | None,
    no_checkout: bool,
    lock: bool,
    reason: str | None,
    force: int,
    quiet: bool,
    donor: Path | None,
    style: str,
) -> int:
    """Add a git worktree at PATH with a prepared target.

    git makes the worktree, with exactly these options; then the target of the nearest built
    checkout is cloned into it and every unit proved against the files there, so that its first
    `cargo build` compiles only what differs.  If the target cannot be prepared, the worktree is
    there all the same and Cargo builds from scratch.

    Called from a workspace in a subdirectory of the repository, the same workspace is prepared in
    the new worktree.

    \b
    Examples:
      cargo cow worktree add ../fix -b fix        a new branch from HEAD
      cargo cow worktree add ../review topic      an existing branch
      cargo cow worktree add ../old -d v1.2.0     a tag
    """
    from cargo_cow import worktrees

    if reason is not None and not lock:
        raise click.UsageError("--reason needs --lock")
    options = worktrees.AddOptions(
        new_branch=new_branch,
        reset_branch=reset_branch,
        detach=detach,
        track=track,
        guess_remote=guess_remote,
        checkout=not no_checkout,
        lock=lock,
        reason=reason,
        force=force,
        quiet=quiet,
    )

    def say(message: str) -> None:
        if not quiet:
            render.say(message)

    added = worktrees.add(
        path,
        commit,
        options,
        cwd=Path.cwd(),
        say=say,
        donor=None if donor is None else donor.absolute(),
    )
    if added.warning is not None:
        render.say(f"warning: {added.warning}")
    if style == "json":
        render.print_json(
            {
                **render.json_path("path", added.root),
                "head": added.head,
                "branch": added.branch,
                **render.json_path("workspace", added.workspace),
                **render.json_path("target", added.target),
                "prepared": render.prepared_value(added.prepared),
                "warning": added.warning,
            }
        )
    elif not quiet and added.prepared is not None:
        import time

        line = render.prepared_line(added.prepared, time.time())
        click.echo(f"{render.shown(added.root)}: target is ready ({line})")
    elif not quiet and added.warning is None:
        click.echo(
            f"{render.shown(added.root)}: no built checkout to clone a target from; "
            "the first build is a full one"
        )
    return 0


@command.command("list")
@click.option("--no-sizes", is_flag=True, help="Do not measure: reading all extents takes time.")
@render.format_option
def listing(*, no_sizes: bool, style: str) -> int:
    """List this project's checkouts with what their targets use on disk.

    `size` is the sum of the target's files; `exclusive` is what would be freed if this target
    alone were removed, the rest is shared with other checkouts.  `~` marks a figure that the
    filesystem could only give roughly.

    \b
    Examples:
      cargo cow worktree list
      cargo cow worktree list --format json --no-sizes
    """
    from cargo_cow import worktrees

    found = worktrees.listing(Path.cwd(), sizes=not no_sizes)
    for entry in found:
        if entry.trouble is not None:
            render.say(f"warning: {render.shown(entry.checkout.root)}: {entry.trouble}")
    if style == "json":
        render.print_json([_listed_value(entry) for entry in found])
        return 0
    import time

    now = time.time()
    render.table(
        ("checkout", "branch", "size", "exclusive", "prepared"),
        [
            (
                render.shown(entry.checkout.root),
                _branch(entry),
                "" if entry.usage is None else render.human_bytes(entry.usage.logical_bytes),
                ""
                if entry.usage is None
                else ("" if entry.usage.exact else "~")
                + render.human_bytes(entry.usage.exclusive_bytes),
                render.prepared_line(entry.prepared, now),
            )
            for entry in found
        ],
        right=(2, 3),
    )
    return 0


def _branch(entry: Listed) -> str:
    checkout = entry.checkout
    if checkout.bare:
        name = "(bare)"
    elif checkout.branch is not None:
        name = render.shown(checkout.branch)
    else:
        name = f"({(checkout.head or 'nothing')[:9]})"
    marks = [
        mark for mark, holds in (("prunable", checkout.prunable), ("locked", entry.locked)) if holds
    ]
    return name + (f" [{', '.join(marks)}]" if marks else "")


def _listed_value(entry: Listed) -> dict[str, Any]:
    checkout = entry.checkout
    return {
        **render.json_path("path", checkout.root),
        "head": checkout.head,
        "branch": checkout.branch,
        "main": checkout.is_main,
        "bare": checkout.bare,
        "prunable": checkout.prunable,
        "locked": entry.locked,
        **render.json_path("workspace", entry.workspace),
        **render.json_path("target", entry.target),
        "usage": render.usage_value(entry.usage),
        "prepared": render.prepared_value(entry.prepared),
        "trouble": entry.trouble,
    }


@command.command("remove")
@click.argument("paths", nargs=-1, required=True, metavar="WORKTREE...")
@click.option(
    "-f", "--force", count=True, help="Although files are modified or untracked; twice: locked."
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed, and do nothing.")
@render.format_option
def remove(*, paths: tuple[str, ...], force: int, dry_run: bool, style: str) -> int:
    """Remove worktrees together with their targets.

    WORKTREE is a path, or the unique end of one, as for git.  What git refuses to remove (modified
    or untracked files, submodules, a lock) is refused before anything is touched; an untracked
    target does not count.  A target that lies outside the worktree is kept and named.

    \b
    Examples:
      cargo cow worktree remove ../fix
      cargo cow worktree remove --dry-run fix review
    """
    from cargo_cow import worktrees

    cwd = Path.cwd()
    plans = [worktrees.plan_removal(path, cwd=cwd, force=force) for path in paths]
    if not dry_run:
        for plan in plans:
            worktrees.remove(plan, say=render.say)
    for plan in plans:
        for kept in plan.kept:
            render.say(f"{render.shown(kept)} lies outside the worktree and is kept")
    if style == "json":
        render.print_json([_removal_value(plan, dry_run) for plan in plans])
        return 0
    for plan in plans:
        targets = ", ".join(render.shown(target) for target in plan.targets)
        click.echo(
            ("would remove " if dry_run else "removed ")
            + render.shown(plan.checkout.root)
            + (f" with its target {targets}" if targets else "")
        )
    return 0


def _removal_value(plan: Removal, dry_run: bool) -> dict[str, Any]:
    return {
        **render.json_path("path", plan.checkout.root),
        "branch": plan.checkout.branch,
        "targets": [render.json_path("path", target) for target in plan.targets],
        "kept_targets": [render.json_path("path", target) for target in plan.kept],
        "removed": not dry_run,
    }
