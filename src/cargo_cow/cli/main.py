"""Entry point: Cargo's verbs go straight through, ours are loaded when chosen.

Cargo's verbs do not touch click: its import alone would cost a no-op build 25 ms.  This is the
only module that turns errors into messages and exit codes.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from cargo_cow.errors import CowError, UsageError

COMMANDS = {
    "audit": "find units that Cargo calls fresh although their content differs",
    "bench": "measure against plain Cargo",
    "completion": "print a shell completion script",
    "demo": "show the main job on a real project",
    "doctor": "what works here, what is lost, and the command that mends it",
    "enter": "any command in sandbox mode, at a path that all checkouts share",
    "gc": "let the warehouse shrink: the plan, and with --yes the act",
    "explain": "for each unit: proven, or the first reason why not",
    "graft": "put what the warehouse has of a build into the target",
    "hooks": "let git prepare the target after a switch, a merge or a rebase",
    "init": "switch Cargo-CoW on for plain cargo",
    "prepare": "make the target as fresh as can be proved",
    "snapshot": "keep what is built, and have it back",
    "stats": "what the warehouse did: hits, misses by reason, bytes",
    "status": "this checkout: target, donor, what would rebuild and why",
    "uninstall": "take back all that init changed",
    "verify": "compare what the warehouse keeps with its digests",
    "worktree": "git worktrees with a prepared target",
}
"""Our own commands; every other verb is Cargo's."""

_OUTSIDE = frozenset({"hooks", "init", "snapshot", "uninstall", "worktree"})


def entry() -> NoReturn:
    """The program: `main`, and its end.

    Around Cargo's verbs Python costs as little as it can: what it has loaded lives until the end,
    so that nobody has to look for garbage in it, and nobody has to take it apart (3 and 5 ms of a
    build of nothing).
    """
    quickly = _is_cargos(_arguments(None))
    if quickly:
        gc.disable()
    status = main()
    if not quickly:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        # Their reader may have gone, or somebody started us without.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def _arguments(argv: Sequence[str] | None) -> list[str]:
    arguments = list(sys.argv[1:] if argv is None else argv)
    # As a Cargo subcommand we are called `cargo-cow cow …`.
    if arguments[:1] == ["cow"]:
        del arguments[0]
    return arguments


def _is_cargos(arguments: Sequence[str]) -> bool:
    """Whether the command is one of Cargo's verbs, and none of ours."""
    return bool(arguments) and not arguments[0].startswith("-") and arguments[0] not in COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _arguments(argv)
    try:
        _refuse_inside(arguments)
        if _is_cargos(arguments):
            from cargo_cow.cli.passthrough import run

            return run(arguments)
        if arguments[:2] == ["hooks", "run"]:
            from cargo_cow.cli.hook import run as run_hook

            return run_hook(arguments[2:])
        from cargo_cow.cli.group import group

        result = group.main(args=arguments, prog_name="cargo cow", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except CowError as error:
        _report(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone: nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if type(error).__module__.startswith("click."):
            return _click_error(error)
        raise


def _refuse_inside(arguments: list[str]) -> None:
    """In sandbox mode, what would keep the fixed path for later is not done."""
    if (
        arguments
        and os.environ.get("CARGO_COW_SANDBOX")
        and arguments[0] in _OUTSIDE
        and arguments[:2] != ["hooks", "run"]
    ):
        raise UsageError(
            f"cargo cow {arguments[0]} keeps paths, and those of sandbox mode mean nothing outside",
            hint="leave the sandbox first",
        )


def _report(message: str, hint: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)


def _click_error(error: Exception) -> int:
    import click

    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    return 130 if isinstance(error, click.Abort) else 1


if __name__ == "__main__":
    entry()
