"""``cargo cow hooks``: git runs us after a switch, a merge or a rebase."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cargo_cow.cli import render

if TYPE_CHECKING:
    from cargo_cow.setup.hooks import Plan, Step


@click.group("hooks", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Let git prepare the target after a switch, a merge or a rebase.

    With post-checkout, post-merge and post-rewrite in place, plain `cargo build` finds proven after
    `git switch` what `cargo cow build` would find proven. They work beside the hooks that are there
    (husky, pre-commit, lefthook, your own, in any language), never make git fail, wait for no
    build, and make no target where there is none.

    git has no hook for stash, reset and rebase --abort: after these, `cargo cow build` or
    `cargo cow prepare` do the same.
    """


@command.command("install")
@click.option("--tracked", is_flag=True, help="Also into a hooks directory that git tracks.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@render.format_option
def install(*, tracked: bool, dry_run: bool, style: str) -> int:
    """Put one line of ours beside the hooks of this repository, for all its worktrees.

    With git 2.54 and later it goes into the repository's configuration (hook.NAME.command), and no
    file changes. Before that it goes where git looks for hooks (core.hooksPath): as a file, or as
    the second line of a shell script; a hook in another language is kept beside, and run after.
    Where that directory is tracked by git nothing is written, but the line is shown. Twice changes
    nothing.

    \b
    Examples:
      cargo cow hooks install --dry-run
      cargo cow hooks install
    """
    from cargo_cow.setup import hooks

    plan = hooks.plan_install(Path.cwd(), tracked=tracked)
    return _carry_out(plan, dry_run, style, nothing="the hooks are in place: nothing to change")


@command.command("remove")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@render.format_option
def remove(*, dry_run: bool, style: str) -> int:
    """Take our line out again; hooks of others are as they were.

    \b
    Example:
      cargo cow hooks remove
    """
    from cargo_cow.setup import hooks

    plan = hooks.plan_remove(Path.cwd())
    return _carry_out(plan, dry_run, style, nothing="no hooks of ours here: nothing to take back")


_VERBS = {
    "script": "write",
    "configure": "set",
    "create": "create",
    "insert": "add to",
    "set-aside": "put before",
    "renew": "renew in",
    "take-out": "take out of",
    "forget": "unset in",
}


def _carry_out(plan: Plan, dry_run: bool, style: str, *, nothing: str) -> int:
    from cargo_cow.setup import hooks

    trouble = [] if dry_run else hooks.carry_out(plan)
    for remark in plan.remarks:
        render.say(f"note: {remark}")
    for why in trouble:
        render.say(f"warning: {why}")
    if style == "json":
        render.print_json(
            {
                "steps": [_value(step) for step in plan.steps],
                "remarks": list(plan.remarks),
                "trouble": trouble,
                "done": not dry_run,
            }
        )
    else:
        for step in plan.steps:
            would = "would " if dry_run else ""
            click.echo(f"{would}{_VERBS[step.kind]} {render.shown(step.path)}: {step.detail}")
        if not plan.steps:
            click.echo(nothing)
    return 1 if trouble else 0


def _value(step: Step) -> dict[str, Any]:
    return {
        "action": step.kind,
        **render.json_path("path", step.path),
        "event": step.event or None,
        "detail": step.detail,
    }
