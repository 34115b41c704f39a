"""Removing a target: subvolume or directory, with and without root, never through a symlink."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from cargo_cow.errors import CowError, TargetUnusable
from cargo_cow.filesystems import btrfs, syscalls, temporaries, zfs
from cargo_cow.filesystems.failures import NO_SPACE, translated
from cargo_cow.filesystems.mounts import mounts_below, refuse_unusable

if TYPE_CHECKING:
    from collections.abc import Callable

_NOT_BY_IOCTL = frozenset({errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOTEMPTY})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def remove_target(path: Path) -> None:
    """Remove the directory, subvolume or dataset ``path`` with everything in it; absent is fine.

    A subvolume or dataset goes at once.  What must be emptied file by file (a plain directory, a
    subvolume without root) is first renamed to a temporary sibling: nobody meets a half removed
    target, and what a kill leaves is swept up by :func:`remove_stale`.

    Raises ``TargetUnusable`` for a symlink, a file, a mount point or a mount inside (nothing is
    touched), or where permission is missing; ``FilesystemFailed`` otherwise.  What could not be
    removed is then where it was.
    """
    with translated("remove", path):
        if not os.path.lexists(path):
            temporaries.release(path)
            return
        refuse_unusable(path)
        if mounts := mounts_below(path):
            raise TargetUnusable(
                f"{path} is not removed: {mounts[0]} is mounted", hint="unmount it"
            )
        dataset = zfs.find(path)
        if dataset is not None:
            temporaries.release(path)  # an open directory would keep it busy
            zfs.remove(path, dataset)
        elif not _destroy(path):
            _remove_aside(path)
    temporaries.release(path)


def discard(path: Path) -> None:
    """Remove what we made and no longer want, while another error is under way.

    A second error must not hide the first: what cannot be removed is a stale temporary.
    """
    try:
        remove_target(path)
    except CowError:
        temporaries.release(path)


def remove_stale(
    parent: Path, name: str, remove: Callable[[Path], None] = remove_target
) -> list[Path]:
    """Remove the temporaries of ``parent / name`` that killed processes left; returns them.

    One that cannot be removed is left for the next sweep: it is waste, nothing depends on it.
    """
    removed: list[Path] = []
    for path in temporaries.abandoned(parent, name):
        try:
            remove(path)
        except CowError:
            continue
        removed.append(path)
    return removed


def _destroy(path: Path) -> bool:
    """Delete a subvolume by ioctl; False if it is none, or that way is closed to us."""
    if not btrfs.is_subvolume(path):
        return False
    try:
        btrfs.destroy(path)
    except OSError as error:
        if error.errno not in _NOT_BY_IOCTL:
            raise
        return False
    return True


def _remove_aside(path: Path) -> None:
    if temporaries.is_temporary(path):
        _remove_piecemeal(path)
        return
    doomed = temporaries.temporary_target(path)
    try:
        path.rename(doomed)
    except OSError as error:
        if error.errno not in NO_SPACE | {errno.EXDEV}:
            raise
        # A full Btrfs has no room to rename, but a reserve to unlink and rmdir (fs/btrfs/inode.c,
        # btrfs_start_transaction_fallback_global_rsv): removing must be possible then of all times.
        # EXDEV: overlayfs does not rename a directory of a lower layer (overlayfs.rst,
        # "redirect_dir"), a target in a container's image for instance.
        _remove_piecemeal(path)
        return
    try:
        _remove_piecemeal(doomed)
    except OSError:
        # Somebody else's files inside: what is left belongs where its owner looks for it.
        with contextlib.suppress(OSError):
            syscalls.rename(doomed, path, syscalls.RENAME_NOREPLACE)
        raise


def _remove_piecemeal(path: Path) -> None:
    """Empty and remove a directory or subvolume, with all subvolumes inside.

    Linux lets rmdir(2) remove an empty subvolume since 4.18 (``btrfs_rmdir``), for whoever may
    write to the parent: this is what ``rm -rf`` and ``cargo clean`` rely on as well.
    """
    try:
        if btrfs.is_subvolume(path) and btrfs.is_read_only(path):
            btrfs.set_read_only(path, False)
        for inner in btrfs.nested(path):
            if not _destroy(inner):
                _remove_piecemeal(inner)
        if _destroy(path):  # now that nothing is nested and it is writable
            return
        try:
            descriptor = os.open(path, _DIRECTORY)
        except PermissionError:
            path.chmod(0o700)
            descriptor = os.open(path, _DIRECTORY)
        try:
            empty(descriptor)
        finally:
            os.close(descriptor)
        path.rmdir()
    except FileNotFoundError:
        pass  # somebody else removes it too


def empty(directory: int) -> None:
    """Remove everything in the open directory; relative to descriptors, so that a directory
    exchanged for a symlink meanwhile leads nowhere."""
    with os.scandir(directory) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in names:
        try:
            _remove_entry(directory, name, is_directory)
        except PermissionError:
            # A build script may have left directories without write permission.
            os.fchmod(directory, 0o700)
            if is_directory:
                _open_up(directory, name)
            _remove_entry(directory, name, is_directory)


def _open_up(directory: int, name: str) -> None:
    # chmod(2) would follow a symlink put there meanwhile; a descriptor cannot be exchanged.
    inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if stat.S_ISDIR(os.fstat(inner).st_mode):
            Path(f"/proc/self/fd/{inner}").chmod(0o700)
    finally:
        os.close(inner)


def _remove_entry(directory: int, name: str, is_directory: bool) -> None:
    try:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            return
        inner = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            empty(inner)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        pass  # somebody else removes it too
