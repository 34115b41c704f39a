"""The click group: commands are imported when they are chosen, and listed without import."""

from __future__ import annotations

import importlib

import click

from cargo_cow import __version__
from cargo_cow.cli.main import COMMANDS

_HELP = """Build state for Cargo that is copied, not rebuilt.

A new worktree, a branch switch or a fresh checkout builds as if it had always been there: the
target of the nearest checkout is cloned copy-on-write, every unit is proved by content, and Cargo
judges the rest.

\b
  cargo cow build ARGS…          prepare, run cargo build ARGS…, remember what was built
  cargo cow worktree add PATH    a git worktree whose first build is a no-op
  cargo cow explain              why each unit is fresh, or not

Any verb that is not listed below is Cargo's (build, check, test, run, clippy, doc, nextest, …) and
gets its arguments unchanged.
"""


class _Lazy(click.Group):
    # The signatures are click's.
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"cargo_cow.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(
    cls=_Lazy,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cargo-cow")
def group() -> None:
    """Root of our commands."""
