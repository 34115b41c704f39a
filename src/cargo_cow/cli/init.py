"""``cargo cow init``: switch Cargo-CoW on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cargo_cow.cli import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cargo_cow.setup.neighbours import Choice
    from cargo_cow.setup.switching import Done, Plan


@click.command("init")
@click.option(
    "--project",
    is_flag=True,
    help="Write the workspace's own .cargo/config.toml, not the user's configuration.",
)
@click.option("--no-convert", is_flag=True, help="Leave the target an ordinary directory.")
@click.option("--hooks", is_flag=True, help="Also git's hooks here, as cargo cow hooks install.")
@click.option(
    "--linker",
    type=click.Choice(["mold", "lld", "wild", "default"]),
    help="Who links from now on; no unit is rebuilt for it. Default: as it is.",
)
@click.option(
    "--warehouse",
    is_flag=True,
    help="Also keep what is compiled, for all projects: see cargo cow stats.",
)
@click.option(
    "--wrapper-found",
    type=click.Choice(["chain", "replace", "keep"]),
    help="What becomes of another wrapper, such as sccache: ours calls it, ours takes its place, "
    "or it stays and ours is not set. Default: as chosen before; chained at first.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@render.manifest_option
@render.format_option
def command(
    *,
    project: bool,
    no_convert: bool,
    hooks: bool,
    linker: str | None,
    warehouse: bool,
    wrapper_found: Choice | None,
    dry_run: bool,
    manifest_path: str | None,
    style: str,
) -> int:
    """Switch Cargo-CoW on, so that plain `cargo build` profits too.

    Sets build.rustc-wrapper in your Cargo configuration to cargo-cow-native, which runs the real
    compiler and, in a checkout that has never been built, first clones the target of its nearest
    sibling.  On Btrfs the main checkout's target becomes a subvolume, so that it is cloned by
    snapshot in a moment, whatever its size.

    A wrapper that is set already (such as sccache) goes on working: it is then called by ours, and
    nothing of what it compiles is kept in the warehouse.  --wrapper-found replace puts ours in its
    place, --wrapper-found keep leaves it alone.

    Nothing is rebuilt for it, twice changes nothing, and `cargo cow uninstall` takes all of it
    back.  Not needed for `cargo cow build` and `cargo cow worktree add`.

    \b
    Examples:
      cargo cow init --dry-run     what would change
      cargo cow init               for all projects of this user
      cargo cow init --project     for this workspace alone
      cargo cow init --hooks       git prepares the target after a switch, too
      cargo cow init --linker mold   programs are linked by mold, where nobody chose a linker
      cargo cow init --warehouse   units come back in other projects, too
      cargo cow init --warehouse --wrapper-found replace   the same, instead of sccache
    """
    from cargo_cow import native
    from cargo_cow.setup import switching

    native.version()
    plan = switching.plan_init(
        Path.cwd(),
        native.program().absolute(),
        project=project,
        convert=not no_convert,
        hooks=hooks,
        linker=linker,
        warehouse=warehouse,
        wrapper_found=wrapper_found,
        cargo_args=render.cargo_arguments(manifest_path),
    )
    done = None if dry_run else switching.carry_out(plan)
    return report(plan, done, style, nothing="already switched on: nothing to change")


_VERBS = {
    "set-wrapper": ("set", "would set"),
    "mark-built": ("marked", "would mark"),
    "make-container": ("made a container in", "would make a container in"),
    "convert-target": ("converted", "would convert"),
    "take-back": ("restored", "would restore"),
    "take-out": ("taken out", "would take out"),
    "remove-file": ("removed", "would remove"),
    "install-hooks": ("put hooks into", "would put hooks into"),
    "remove-hooks": ("took hooks out of", "would take hooks out of"),
    "remove-records": ("removed records in", "would remove records in"),
}


def report(plan: Plan, done: Sequence[Done] | None, style: str, *, nothing: str) -> int:
    """Show a plan (``done`` None) or what came of it; 1 if a step could not be taken."""
    trouble = [None] * len(plan.steps) if done is None else [entry.trouble for entry in done]
    for remark in plan.remarks:
        render.say(f"note: {remark}")
    if style == "json":
        steps: list[dict[str, Any]] = [
            {
                "action": step.kind,
                **render.json_path("path", step.path),
                "detail": step.detail,
                "done": done is not None and why is None,
                "trouble": why,
            }
            for step, why in zip(plan.steps, trouble, strict=True)
        ]
        render.print_json({"steps": steps, "remarks": list(plan.remarks)})
    else:
        for step, why in zip(plan.steps, trouble, strict=True):
            verb = _VERBS[step.kind][1 if done is None else 0]
            if why is None:
                click.echo(f"{verb} {render.shown(step.path)}: {step.detail}")
        if not plan.steps:
            click.echo(nothing)
    for step, why in zip(plan.steps, trouble, strict=True):
        if why is not None:
            render.say(f"warning: {render.shown(step.path)}: {why}")
    return 1 if any(why is not None for why in trouble) else 0
