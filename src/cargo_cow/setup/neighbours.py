"""Other wrappers that are there already (sccache, kache, mbx, …), and what each choice means.

Cargo calls one ``rustc-wrapper``.  Where that is another one, ``init`` lets it run behind ours
(*chain*), puts ours in its place (*replace*), or leaves all as it is (*keep*).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cargo_cow.cargo import configuration

if TYPE_CHECKING:
    from pathlib import Path

Choice = Literal["chain", "replace", "keep"]

_SERVERS = {"sccache": "sccache --stop-server", "kache": "kache daemon stop"}
"""What ends them, by the tools' own documentation (sccache 0.19.0, kache 2.0)."""
_LOST = (
    "the warehouse keeps and gives nothing, what macros read is not observed (their packages "
    "count as a whole), and a new worktree's first edit does without incremental state"
)


def name(program: str) -> str:
    """How a wrapper is called: the last part of its path."""
    return program.rpartition("/")[2].removesuffix(".exe")


def chained(program: str) -> str:
    """What it means that a wrapper runs behind ours."""
    return f"through {name(program)}, {_LOST}"


def meaning(choice: Choice, program: str) -> str:
    """What a choice means for the wrapper that was found, in words for people."""
    called = name(program)
    if choice == "chain":
        return (
            f"{called} goes on working, called by ours: {chained(program)}; "
            f"cargo cow init --wrapper-found replace leaves {called} out"
        )
    if choice == "replace":
        server = f" ({_SERVERS[called]} ends its server)" if called in _SERVERS else ""
        return (
            f"{called} is not called any more{server}: what it keeps stays on the disk, settings "
            "made for it (CARGO_INCREMENTAL among them) stay as they are; cargo cow uninstall puts "
            "it back"
        )
    return (
        f"{called} stays the wrapper: plain cargo prepares no new checkout and observes nothing, "
        "and there is no warehouse; cargo cow build prepares all the same"
    )


def around_members(cwd: Path) -> str | None:
    """What wraps rustc for the workspace's own packages, and what that means; None if nothing.

    Cargo puts it behind ours by itself.  Raises ConfigurationUnusable.
    """
    found = configuration.workspace_wrapper(cwd)
    if found is None or not found.program:
        return None
    called = name(found.program)
    return (
        f"{found.source} sets {called} around the workspace's own packages; Cargo has it called "
        f"by ours, and for these {chained(found.program)}"
    )
