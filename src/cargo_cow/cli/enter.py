"""``cargo cow enter``: any command in sandbox mode."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cargo_cow.cli import render


@click.command(
    "enter",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--no-network", is_flag=True, help="Leave only the loopback device.")
@click.option(
    "--read-only-home",
    is_flag=True,
    help="Nothing below $HOME can be written, but for this checkout, Cargo's home and our caches.",
)
@click.option(
    "--with",
    "method",
    type=click.Choice(["auto", "bubblewrap", "own"]),
    default="auto",
    show_default=True,
    help="Who makes the namespace; auto is bubblewrap where it is installed.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what the command would see; run nothing.")
@render.manifest_option
@render.format_option
@click.argument("words", metavar="[--] [COMMAND]...", nargs=-1, type=click.UNPROCESSED)
def command(
    *,
    no_network: bool,
    read_only_home: bool,
    method: str,
    dry_run: bool,
    manifest_path: str | None,
    style: str,
    words: tuple[str, ...],
) -> int:
    """Run COMMAND (default: your shell) where all checkouts of this project have one path.

    Inside, this checkout is seen at that path, and everything else is what it is outside.  Paths
    that crates bake (env!("CARGO_MANIFEST_DIR"), OUT_DIR, CARGO_BIN_EXE_*) are then the same in
    every checkout, so that a new one compiles nothing at all.  The target is prepared before
    COMMAND runs and recorded afterwards; the exit status is COMMAND's.

    The same for one build: cargo cow build --sandbox.

    Programs built inside hold the fixed path, which is not there outside.  After leaving, build
    with `cargo cow build`, or run `cargo cow prepare` before plain cargo.

    \b
    Examples:
      cargo cow enter -- cargo test              tests that look for files of their package
      cargo cow enter --no-network -- cargo run  with nothing but the loopback device
      cargo cow enter                            a shell, until you leave it
    """
    from cargo_cow import sandbox
    from cargo_cow.cargo.workspace import load
    from cargo_cow.cli import sandboxed
    from cargo_cow.errors import UsageError

    if sandbox.inside() is not None:
        raise UsageError(
            f"this is sandbox mode already: the checkout is {sandbox.inside()}",
            hint="run the command as it is",
        )
    arguments = render.cargo_arguments(manifest_path)
    workspace = load(Path.cwd(), arguments)
    view = sandbox.plan(
        workspace,
        os.path.realpath(Path.cwd()),
        network=not no_network,
        read_only_home=read_only_home,
    )
    if dry_run:
        _show(view, style)
        return 0
    chosen: sandbox.Method = "own" if method == "own" else "auto"
    if method == "bubblewrap":
        chosen = "bubblewrap"
    return sandboxed.run(
        workspace, view, words or (os.environ.get("SHELL") or "/bin/sh",), method=chosen
    )


def _show(view: object, style: str) -> None:
    from cargo_cow.sandbox import View

    assert isinstance(view, View)
    if style == "json":
        render.print_json(
            {
                **render.json_path("checkout", Path(view.checkout)),
                **render.json_path("fixed_path", Path(view.seen)),
                **render.json_path("directory", Path(view.directory)),
                "binds": [
                    {
                        **render.json_path("real", Path(real)),
                        **render.json_path("seen", Path(seen)),
                    }
                    for real, seen in view.binds
                ],
                "environment": {**view.common, **view.environment},
                "network": view.network,
                "read_only": list(view.read_only),
                "writable": list(view.keep),
            }
        )
        return
    for real, seen in view.binds:
        click.echo(f"{render.shown(Path(real))} is seen at {render.shown(Path(seen))}")
    for name, value in {**view.common, **view.environment}.items():
        click.echo(f"{name}={value}")
    if not view.network:
        click.echo("no network but the loopback device")
    for path in view.read_only:
        click.echo(f"{path} is read-only, but for {', '.join(view.keep)}")
