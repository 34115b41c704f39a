"""Names change hands atomically: publish, which never replaces, and exchange."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from cargo_cow.durable import sync_directory
from cargo_cow.errors import FilesystemFailed
from cargo_cow.filesystems import syscalls, temporaries, zfs
from cargo_cow.filesystems.failures import UNSUPPORTED, translated


def publish(temporary: Path, dest: Path) -> None:
    """Give the directory ``temporary`` the name ``dest``, durably, and never replace anything.

    Raises ``FileExistsError`` if ``dest`` is there, even as an empty directory or a dangling
    symlink; ``NoSpace``, ``TargetUnusable`` and ``FilesystemFailed`` otherwise.  ``temporary``
    is then untouched.

    Subvolumes move within one Btrfs like directories; a ZFS dataset is mounted at ``dest`` instead.
    The content must be durable already, or not matter after a power cut.
    """
    with translated("publish", dest):
        if zfs.find(temporary) is not None:
            zfs.move(temporary, dest)
            temporaries.release(temporary)
            _sync_parents(dest, temporary)
            return
        try:
            syscalls.rename(temporary, dest, syscalls.RENAME_NOREPLACE)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            _rename_onto_own_directory(temporary, dest)
        temporaries.release(temporary)
        _sync_parents(dest, temporary)


def exchange(one: Path, other: Path, *, durable: bool = True) -> None:
    """Let two existing names change their directories in one step, durably.

    Without ``durable`` a power cut may undo it, with all that was done on the filesystem since:
    only for one that keeps the order of what it commits.

    Raises ``FilesystemFailed`` where the filesystem cannot (renameat2 without RENAME_EXCHANGE)
    or one of them is missing; nothing is changed then.
    """
    with translated(f"exchange {one} with", other):
        if _exchanged_datasets(one, other):
            return
        try:
            syscalls.rename(one, other, syscalls.RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            raise FilesystemFailed(
                f"{one} and {other} cannot be exchanged: this filesystem knows no RENAME_EXCHANGE",
                hint="remove what is there first: then the name is free, and is given in one step",
            ) from error
        for path in (one, other):
            temporaries.hold_again(path)
        if durable:
            _sync_parents(one, other)


def supersede(new: Path, old: Path) -> None:
    """Let ``new`` take the name ``old``, in one step where that can be; not durably.

    A directory that had the name is left as ``new`` (where names can be exchanged), or aside with
    ``.old`` behind it: the caller removes what it no longer needs.  Raises OSError.
    """
    try:
        is_directory = stat.S_ISDIR(os.lstat(old).st_mode)
    except FileNotFoundError:
        new.rename(old)
        return
    if not is_directory:
        new.replace(old)
        return
    try:
        syscalls.rename(new, old, syscalls.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        old.rename(new.with_name(f"{new.name}.old"))
        new.rename(old)


def _exchanged_datasets(one: Path, other: Path) -> bool:
    """Exchange two ZFS datasets by their mounts; False if neither is one."""
    datasets = [path for path in (one, other) if zfs.find(path) is not None]
    if not datasets:
        return False
    if len(datasets) == 1:
        plain = other if datasets[0] == one else one
        raise FilesystemFailed(
            f"{plain} is a plain directory, and cannot be exchanged with a ZFS dataset",
            hint="cargo cow init makes the target a dataset; or remove it",
        )
    zfs.exchange(one, other)
    for path in (one, other):
        temporaries.hold_again(path)
    return True


def _rename_onto_own_directory(temporary: Path, dest: Path) -> None:
    """Never replace without RENAME_NOREPLACE (FUSE, NFS, old ZFS): mkdir(2) claims the name,
    and rename(2) of a directory replaces nothing but an empty directory: ours."""
    dest.mkdir()
    try:
        temporary.rename(dest)
    except BaseException as error:
        with contextlib.suppress(OSError):  # not empty: no longer ours
            dest.rmdir()
        if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
            message = os.strerror(errno.EEXIST)
            raise FileExistsError(errno.EEXIST, message, str(dest)) from error
        raise


def _sync_parents(*paths: Path) -> None:
    for parent in {path.parent for path in paths}:
        sync_directory(parent)
