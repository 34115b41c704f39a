"""``cargo cow completion``: shell completion for the ``cargo-cow`` program."""

from __future__ import annotations

import os

import click

_VARIABLE = "_CARGO_COW_COMPLETE"
_CALL = "cargo-cow completion"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(*, shell: str) -> int:
    """Print a script that completes `cargo-cow` in SHELL.

    Commands and options are completed while you type; Cargo's own verbs keep Cargo's completion.

    \b
    Examples:
      cargo cow completion bash > ~/.local/share/bash-completion/completions/cargo-cow
      cargo cow completion zsh > ~/.zfunc/_cargo-cow
      cargo cow completion fish > ~/.config/fish/completions/cargo-cow.fish
    """
    from click.shell_completion import get_completion_class

    from cargo_cow.cli.group import group

    found = get_completion_class(shell)
    assert found is not None
    completion = found(group, {}, "cargo-cow", _VARIABLE)
    if os.environ.get(_VARIABLE) == f"{shell}_complete":
        click.echo(completion.complete())
        return 0
    # click's script asks the program itself; asking this command keeps the question off the path
    # of every build, where click is not even imported.
    script = completion.source_template % completion.source_vars()
    called = "$1" if shell == "bash" else "cargo-cow"
    asked = f"{_VARIABLE}={shell}_complete"
    if shell == "fish":
        before, after = f"(commandline -t) {called})", f"(commandline -t) {_CALL} {shell})"
    else:
        before, after = f"{asked} {called})", f"{asked} {_CALL} {shell})"
    assert script.count(before) == 1, "click's completion script has changed"
    click.echo(script.replace(before, after))
    return 0
