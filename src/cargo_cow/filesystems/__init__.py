"""Filesystems: clone, publish, exchange, remove, measure; chosen by trying on the spot.

What works is found by doing it there, never from a filesystem's name or a version.  Whatever
fails leaves everything that was there before as it was, and nothing of ours behind; whatever is
killed leaves at most a temporary sibling (:mod:`.temporaries`) that the next run can tell from a
live one.

Errors are those of :mod:`cargo_cow.errors`: ``NoSpace``, ``TargetUnusable`` (a symlink, a mount,
forbidden) and ``FilesystemFailed``; the only other one is ``FileExistsError`` of ``publish``.
"""

from __future__ import annotations

from cargo_cow.filesystems.clocks import GRANULE_NS, clock, granule
from cargo_cow.filesystems.cloning import CloneReport, clone_target, convert, create_target
from cargo_cow.filesystems.extents import Usage, usage
from cargo_cow.filesystems.probing import Capabilities, probe
from cargo_cow.filesystems.removal import remove_stale, remove_target
from cargo_cow.filesystems.renaming import exchange, publish
from cargo_cow.filesystems.temporaries import (
    is_temporary,
    stale_temporaries,
    temporary_sibling,
)

__all__ = [
    "GRANULE_NS",
    "Capabilities",
    "CloneReport",
    "Usage",
    "clock",
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
    "temporary_sibling",
    "usage",
]
