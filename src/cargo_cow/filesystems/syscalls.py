"""System calls that Python's ``os`` lacks: renameat2(2), syncfs(2), and those about mounts.

``ctypes`` is imported with the first call, not with this module: it costs 4 ms of start-up, and
a build with nothing to clone never needs it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

# include/uapi/linux/fs.h and include/uapi/linux/fcntl.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_AT_FDCWD = -100

# For a C library without the wrapper (glibc before 2.28, musl before 1.2.6): the numbers of
# arch/*/entry/syscalls/*.tbl; every architecture since 2011 shares 276.
_RENAMEAT2 = {"x86_64": 316, "i686": 353, "armv7l": 382, "ppc64le": 357, "s390x": 347}
_RENAMEAT2_GENERIC = 276

_library: ctypes.CDLL | None = None


def _libc() -> ctypes.CDLL:
    global _library  # noqa: PLW0603 - the import of ctypes is what we want to do once and late
    if _library is None:
        import ctypes

        _library = ctypes.CDLL(None, use_errno=True)
    return _library


def _check(result: int, *paths: Path) -> None:
    if result == 0:
        return
    import ctypes

    number = ctypes.get_errno()
    names = [str(path) for path in paths]
    raise OSError(number, os.strerror(number), names[0], None, *names[1:])


def rename(old: Path, new: Path, flags: int) -> None:
    """renameat2(2).

    ``OSError``: EEXIST (``RENAME_NOREPLACE`` and ``new`` exists), EINVAL where the filesystem
    does not know the flag, EXDEV across filesystems, and those of rename(2).
    """
    libc = _libc()
    arguments = (_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags)
    if hasattr(libc, "renameat2"):
        result = libc.renameat2(*arguments)
    elif hasattr(libc, "syscall"):
        import ctypes

        number = _RENAMEAT2.get(os.uname().machine, _RENAMEAT2_GENERIC)
        result = libc.syscall(
            ctypes.c_long(number),
            *(ctypes.c_long(word) if isinstance(word, int) else word for word in arguments),
        )
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(old), None, str(new))
    _check(result, old, new)


def sync_filesystem(path: Path) -> None:
    """syncfs(2): everything written to the filesystem of ``path`` so far is durable on return."""
    libc = _libc()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(libc.syncfs(descriptor), path)
    finally:
        os.close(descriptor)


# include/uapi/linux/ioprio.h; arch/*/entry/syscalls/*.tbl (the numbers that differ)
_IOPRIO_SET = {"x86_64": 251, "i686": 289, "armv7l": 314, "ppc64le": 273, "s390x": 282}
_IOPRIO_SET_GENERIC = 30
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_IDLE = 3 << 13


def stand_back() -> None:
    """Let this process have the processor and the disk when nobody else wants them; no error where
    that cannot be had."""
    import contextlib
    import ctypes

    with contextlib.suppress(OSError):
        os.nice(19)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = _IOPRIO_SET.get(os.uname().machine, _IOPRIO_SET_GENERIC)
    _libc().syscall(ctypes.c_long(number), _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE)


# include/uapi/linux/mount.h and include/uapi/linux/fs.h; new system calls have one number on every
# architecture since 2019 (5.1), and glibc has wrappers for these since 2.36.
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_BENEATH = 0x200
_MNT_DETACH = 0x2
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_CLONE_NEWNS = 0x20000


def open_tree(path: Path) -> int:
    """A descriptor of the mount at ``path``, which it keeps alive and which `move_mount` takes.

    Needs root (CAP_SYS_ADMIN), as those below do.
    """
    import ctypes

    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    name = os.fsencode(path)
    result = int(_libc().syscall(ctypes.c_long(_OPEN_TREE), _AT_FDCWD, name, flags))
    _check(0 if result >= 0 else result, path)
    return result


def move_mount(descriptor: int, path: Path, *, beneath: bool = False) -> None:
    """Mount at ``path`` what `open_tree` holds: on top of what is mounted there, or beneath it.

    ``OSError``: EINVAL where the kernel does not know ``beneath`` (before 6.5).
    """
    import ctypes

    flags = _MOVE_MOUNT_F_EMPTY_PATH | (_MOVE_MOUNT_BENEATH if beneath else 0)
    number = ctypes.c_long(_MOVE_MOUNT)
    result = _libc().syscall(number, descriptor, b"", _AT_FDCWD, os.fsencode(path), flags)
    _check(int(result), path)


def detach(path: Path) -> None:
    """umount2(2) with MNT_DETACH: ``path`` shows what is below at once; who has something open in
    the mount keeps it."""
    _check(_libc().umount2(os.fsencode(path), _MNT_DETACH), path)


def forget_mount(path: Path) -> None:
    """Give the calling thread, and what it starts, mounts of its own, in which ``path`` is none."""
    libc = _libc()
    _check(libc.unshare(_CLONE_NEWNS), path)
    _check(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), path)
    _check(libc.umount2(os.fsencode(path), _MNT_DETACH), path)
