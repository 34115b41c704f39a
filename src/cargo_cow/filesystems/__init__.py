"""Filesystems: clone, publish, exchange, remove, measure; chosen by trying on the spot.

What works is found by doing it there, never from a filesystem's name or a version.  Whatever
fails leaves everything that was there before as it was, and nothing of ours behind; whatever is
killed leaves at most a temporary sibling (:mod:`.temporaries`) that the next run can tell from a
live one.

Errors are those of :mod:`cargo_cow.errors`: ``NoSpace``, ``TargetUnusable`` (a symlink, a mount,
forbidden) and ``FilesystemFailed``; the only other one is ``FileExistsError``, where the name
asked for is taken.

The modules below are loaded when one of their names is first asked for: a build with nothing to
do reads the clock, and pays 1 ms for that instead of 5.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cargo_cow.filesystems.clocks import GRANULE_NS, clock, clock_ahead, granule
    from cargo_cow.filesystems.cloning import (
        CloneReport,
        can_snapshot,
        clone_parts,
        clone_target,
        convert,
        create_target,
    )
    from cargo_cow.filesystems.extents import Usage, usage
    from cargo_cow.filesystems.probing import Capabilities, probe
    from cargo_cow.filesystems.removal import remove_stale, remove_target
    from cargo_cow.filesystems.renaming import exchange, publish, supersede
    from cargo_cow.filesystems.temporaries import (
        is_temporary,
        stale_temporaries,
        temporary_sibling,
        temporary_target,
    )

__all__ = [
    "GRANULE_NS",
    "Capabilities",
    "CloneReport",
    "Usage",
    "can_snapshot",
    "clock",
    "clock_ahead",
    "clone_parts",
    "clone_target",
    "convert",
    "create_target",
    "exchange",
    "granule",
    "is_temporary",
    "probe",
    "publish",
    "remove_stale",
    "remove_target",
    "stale_temporaries",
    "supersede",
    "temporary_sibling",
    "temporary_target",
    "usage",
]

_HOME = {
    "clocks": ("GRANULE_NS", "clock", "clock_ahead", "granule"),
    "cloning": (
        "CloneReport",
        "can_snapshot",
        "clone_parts",
        "clone_target",
        "convert",
        "create_target",
    ),
    "extents": ("Usage", "usage"),
    "probing": ("Capabilities", "probe"),
    "removal": ("remove_stale", "remove_target"),
    "renaming": ("exchange", "publish", "supersede"),
    "temporaries": ("is_temporary", "stale_temporaries", "temporary_sibling", "temporary_target"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
