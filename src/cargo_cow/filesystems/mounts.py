"""Which mounts lie at or below a path.

``os.path.ismount`` takes every Btrfs subvolume for a mount point (its ``st_dev`` differs from
its parent's) and no bind mount of the same filesystem for one; the kernel's own list knows.
"""

from __future__ import annotations

import os
from pathlib import Path

from cargo_cow.errors import TargetUnusable

_LIST = "/proc/self/mountinfo"  # proc_pid_mountinfo(5)


def _unescape(field: bytes) -> bytes:
    """Octal escapes of space, tab, newline and backslash (``show_mountinfo`` in the kernel)."""
    if b"\\" not in field:
        return field
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def mounts_within(directory: Path) -> list[Path]:
    """Mount points at or below ``directory``, as paths that start with ``directory``.

    Empty where there is no ``/proc``: then only what the kernel refuses by itself (EBUSY)
    protects a mount.
    """
    # The directory itself may not be a symlink, but its parents may.
    physical = os.fsencode(directory.parent.resolve() / directory.name)
    try:
        lines = Path(_LIST).read_bytes().splitlines()
    except OSError:
        return []
    points = (_unescape(line.split(b" ", 5)[4]) for line in lines)
    return [
        directory / os.fsdecode(point[len(physical) + 1 :])
        for point in points
        if point == physical or point.startswith(physical + b"/")
    ]


def filesystem_name(directory: Path) -> str:
    """What the kernel calls the filesystem of ``directory``: for people, never for a decision."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes().split()
        number = facts[facts.index(b"mnt_id:") + 1]
        for line in Path(_LIST).read_bytes().splitlines():
            if line.startswith(number + b" "):
                # after the separator " - ": filesystem type, source, super options
                return os.fsdecode(line.partition(b" - ")[2].split(b" ", 1)[0])
    except (OSError, ValueError):
        pass
    finally:
        os.close(descriptor)
    return "unknown"


def refuse_unusable(path: Path) -> None:
    """Raise ``TargetUnusable`` unless ``path`` is a real directory that is no mount point.

    A symlinked or mounted target belongs to somebody's own arrangement: replacing or removing
    it would hit the place behind it.
    """
    if path.is_symlink():
        raise TargetUnusable(f"{path} is a symlink", hint="name the directory itself")
    if not path.is_dir():
        raise TargetUnusable(f"{path} is not a directory")
    if path in mounts_within(path):
        raise TargetUnusable(
            f"{path} is a mount point", hint="unmount it, or set CARGO_TARGET_DIR below it"
        )
