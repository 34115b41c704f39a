"""Proc macros that are known to be pure: what they expand to depends on their tokens alone.

A macro that reads files or variables behind rustc's back (``include_dir!``, ``sqlx::query!``,
askama, rust-embed, dotenv) makes a unit depend on more than its dep-info says. A unit that can
reach a macro which is not listed here is proven only where all files of its package agree.

The list holds published packages whose macro code reads neither files nor environment
variables (``CARGO_*`` metadata that Cargo's own hash covers excepted). Leaving a macro out costs
rebuilds; listing an impure one would make builds stale: when in doubt it stays out.
"""

from __future__ import annotations

from pathlib import Path

PURE = frozenset(Path(__file__).with_name("pure_macros.txt").read_text(encoding="utf-8").split())
"""The shim is built with the same file (``native/src/shim/warehouse/key.rs``)."""

READS_BEYOND = {
    # sqlx's offline mode: prepared queries of the whole workspace.
    "sqlx-macros": (".sqlx", "sqlx-data.json"),
}
"""What known macros read outside the package that calls them, relative to the workspace root."""

UNSTATED = "(what the script reads)"
"""Stands for a script that declares only its own sources: it says nothing of what it reads."""

INCBIN = "(incbin)"
"""Stands for the assembler's ``.incbin``, which names files that rustc never sees."""
