"""``cargo cow hooks run EVENT DIRECTORY``: what git's hooks call, by way of our script.

It works in the checkout that was switched, never fails, says nothing when all is well, and waits
for nobody: where a build runs in the target, that target is left to the next prepare.  A target
is never made here: a checkout without one may never be meant to be built.  No click: git waits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cargo_cow import git
from cargo_cow.errors import CowError, Locked


def run(arguments: Sequence[str]) -> int:
    """Prepare the target of the workspace in ``DIRECTORY``; always 0."""
    try:
        if len(arguments) == 2:
            _run(arguments[0], Path(arguments[1]))
    except Locked:
        _say("a build is running here: its target is left to the next cargo cow build")
    except CowError as error:
        _say(f"warning: not prepared: {error}")
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001 - git must not fail for us
        _say(f"warning: not prepared: {type(error).__name__}: {error}")
    return 0


def _run(event: str, directory: Path) -> None:
    git.forget_repository()
    # The branch may name a toolchain that is not here: a hook is no time to download one.
    os.environ["RUSTUP_AUTO_INSTALL"] = "0"
    if not (directory / "Cargo.toml").is_file():
        return
    if event == "post-checkout" and _rebasing(directory):
        return  # once, at its end: post-rewrite
    from cargo_cow.cargo.target import profile_directories
    from cargo_cow.cargo.workspace import load

    workspace = load(directory)
    if not profile_directories(os.fspath(workspace.build_dir)):
        return
    from cargo_cow.snapshots import housekeeping, switching

    switching.switched(workspace, wait=False, say=_say, eager=True)
    housekeeping.tidy(workspace, say=_say, quick=True)


def _rebasing(directory: Path) -> bool:
    """Whether a rebase has just begun and more is to come: git calls post-rewrite at its end.

    One that only moves the branch forward has nothing on its list, and no post-rewrite.
    """
    checkout = git.checkout_of(directory)
    if checkout is None:
        return False
    try:
        todo = (checkout.git_dir / "rebase-merge" / "git-rebase-todo").read_bytes()
    except OSError:
        return (checkout.git_dir / "rebase-apply").is_dir()
    return any(line and not line.startswith((b"#", b"noop")) for line in todo.splitlines())


def _say(message: str) -> None:
    print(f"cargo-cow: {message}", file=sys.stderr)
