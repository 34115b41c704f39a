"""Which mounts lie at or below a path.

``os.path.ismount`` takes every Btrfs subvolume for a mount point (its ``st_dev`` differs from
its parent's) and no bind mount of the same filesystem for one; the kernel's own list knows.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from cargo_cow.errors import TargetUnusable

_LIST = "/proc/self/mountinfo"  # proc_pid_mountinfo(5)


def _unescape(field: bytes) -> bytes:
    """Octal escapes of space, tab, newline and backslash (``show_mountinfo`` in the kernel)."""
    if b"\\" not in field:
        return field
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


class Mount(NamedTuple):
    """A line of the list: what (``root`` of ``source``, of type ``kind``) is mounted where."""

    point: Path
    root: str
    kind: str
    source: str


def _parsed(line: bytes) -> Mount:
    # 36 35 98:0 /root /point rw,noatime master:1 - type source super,options
    front, _, back = line.partition(b" - ")
    root, point = (os.fsdecode(_unescape(field)) for field in front.split(b" ", 5)[3:5])
    kind, source = (os.fsdecode(_unescape(field)) for field in back.split(b" ", 2)[:2])
    return Mount(Path(point), root, kind, source)


def mount_at(path: Path) -> Mount | None:
    """What is mounted at ``path`` itself, the topmost; None if it is no mount point."""
    point = os.fsencode(path.parent.resolve() / path.name)
    try:
        lines = Path(_LIST).read_bytes().splitlines()
    except OSError:
        return None
    found = [line for line in lines if _unescape(line.split(b" ", 5)[4]) == point]
    return _parsed(found[-1]) if found else None


def mount_of(directory: Path) -> Mount | None:
    """The mount that ``directory`` lies in; None where the kernel does not tell."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes().split()
        number = facts[facts.index(b"mnt_id:") + 1]
        for line in Path(_LIST).read_bytes().splitlines():
            if line.startswith(number + b" "):
                return _parsed(line)
    except (OSError, ValueError):
        pass
    finally:
        os.close(descriptor)
    return None


def mounts_below(directory: Path) -> list[Path]:
    """As `mounts_within`, without ``directory`` itself."""
    return [point for point in mounts_within(directory) if point != directory]


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
    mount = mount_of(directory)
    return "unknown" if mount is None else mount.kind


def refuse_unusable(path: Path) -> None:
    """Raise ``TargetUnusable`` unless ``path`` is a real directory, or a ZFS dataset of ours.

    A symlinked target, or one where something else is mounted, belongs to somebody's own
    arrangement: replacing or removing it would hit the place behind it.
    """
    if path.is_symlink():
        raise TargetUnusable(f"{path} is a symlink", hint="name the directory itself")
    if not path.is_dir():
        raise TargetUnusable(f"{path} is not a directory")
    if mount_at(path) is not None:
        from cargo_cow.filesystems import zfs

        if zfs.find(path) is None:
            raise TargetUnusable(
                f"{path} is a mount point", hint="unmount it, or set CARGO_TARGET_DIR below it"
            )
