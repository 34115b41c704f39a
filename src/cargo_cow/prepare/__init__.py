"""The mechanism: make a target as fresh as can be proved, then let Cargo judge.

The modules below are loaded when one of their names is first asked for: a build with nothing to
do, and a state taken of what was just built, pay for none of the proof.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cargo_cow.prepare.begun import stamp_time
    from cargo_cow.prepare.capture import capture_at, capture_of
    from cargo_cow.prepare.mechanism import (
        Fitted,
        Look,
        Report,
        begin,
        bring,
        clone_for,
        grafts_for,
        look,
        prepare,
        settle,
    )

__all__ = [
    "Fitted",
    "Look",
    "Report",
    "begin",
    "bring",
    "capture_at",
    "capture_of",
    "clone_for",
    "grafts_for",
    "look",
    "prepare",
    "settle",
    "stamp_time",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        home = "capture" if name.startswith("capture_") else "mechanism"
        home = "begun" if name == "stamp_time" else home
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
