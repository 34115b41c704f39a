"""Temporary siblings: where a target is made before it gets its name.

A temporary of ``target`` is called ``.target.cow-<pid>-<random>`` and lies beside it, or in a git
checkout in the room ``.cargo-cow`` beside it, which holds a ``.gitignore`` of everything: whoever
ignores ``/target`` by exact name would else find it in `git status`, or commit it.  Whether its
maker lives is not told by the pid (reused after a reboot, and another one in a container) but by an
flock(2) on the directory itself, which the kernel drops with the process:

1. the maker makes the directory (or snapshot), opens it, locks it, and then looks whether the
   name still leads to what it locked;
2. a sweeper locks it without waiting, and removes it while it holds the lock.

Between making and locking a sweeper may win; the maker waits for its lock, sees in its second
look that the name is gone, and makes it again.  So nobody ever removes a temporary that somebody
works in, and whatever a killed process left is unlocked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from cargo_cow.errors import FilesystemFailed
from cargo_cow.filesystems.mounts import mount_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOM = ".cargo-cow"
_MARK = ".cow-"
_held: dict[Path, int] = {}
"""Temporaries of this process and the descriptor that locks each."""


def temporary_sibling(path: Path) -> Path:
    """A new name beside ``path``; nothing is made."""
    return path.with_name(f".{path.name}{_MARK}{os.getpid()}-{os.urandom(6).hex()}")


def temporary_target(path: Path) -> Path:
    """As `temporary_sibling`, where git does not see it, for what may lie in a checkout.

    The room for it is made, and stays: a directory that came and went would change the time of the
    one around it, which scripts may watch.  Where it cannot be made, or is not on the same
    filesystem, a sibling.
    """
    room = None if path.name == ROOM else _room(path.parent)
    return temporary_sibling(path if room is None else room / path.name)


def _room(parent: Path) -> Path | None:
    if not _seen_by_git(parent):
        return None
    room = parent / ROOM
    try:
        with contextlib.suppress(FileExistsError):
            room.mkdir()
        facts = os.lstat(room)
        # A mount or a subvolume has another device: nothing can be renamed out of it.
        ours = facts.st_uid == os.geteuid() and facts.st_dev == parent.stat().st_dev
        if not stat.S_ISDIR(facts.st_mode) or not ours:
            return None
        ignore = room / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
    except OSError:
        return None
    return room


def _seen_by_git(directory: Path) -> bool:
    """Whether git could list what lies in ``directory``: it is in a checkout, and neither in its
    repository, nor a room of ours, nor a target (where ``.cargo-cow`` is the target's own)."""
    if (directory / "CACHEDIR.TAG").exists():
        return False
    parts = Path(os.path.realpath(directory))
    if {".git", ROOM} & set(parts.parts):
        return False
    return any(os.path.lexists(path / ".git") for path in (parts, *parts.parents))


def is_temporary(path: Path, name: str | None = None) -> bool:
    """Whether ``path`` has the form of a temporary's name (of ``name``, if given)."""
    front, mark, back = path.name.rpartition(_MARK)
    pid, dash, random = back.partition("-")
    return (
        bool(mark and dash)
        and pid.isdecimal()
        and len(random) == 12
        and all(letter in "0123456789abcdef" for letter in random)
        and (front == f".{name}" if name is not None else front.startswith(".") and front != ".")
    )


def make(path: Path, maker: Callable[[], None]) -> None:
    """Run ``maker``, which makes ``path``, and hold ``path`` if it is a temporary.

    ``maker`` may run again if a sweeper came in between.  Errors are ``maker``'s own.
    """
    if not is_temporary(path):
        maker()
        return
    for _ in range(16):
        maker()
        if _hold(path):
            return
    raise FilesystemFailed(f"{path} is removed by somebody as often as it is made")


def _lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that locks the directory ``path``, or None: gone, or (unless we ``wait``)
    locked by another.

    Where directories cannot be locked (NFS), who waits is not kept from its work, and nothing is
    ever called stale.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        locked = True
    except OSError:
        locked = wait
    try:
        ours, named = os.fstat(descriptor), os.lstat(path)
        if locked and (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
            return descriptor
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None


def _hold(path: Path) -> bool:
    descriptor = _lock(path, wait=True)
    if descriptor is not None:
        _held[path] = descriptor
    return descriptor is not None


def release(path: Path) -> None:
    """Stop holding ``path``: it has its name, or is gone."""
    descriptor = _held.pop(path, None)
    if descriptor is not None:
        os.close(descriptor)


def hold_again(path: Path) -> None:
    """Hold whatever is called ``path`` now, if that is a temporary's name.

    After an exchange the lock has gone with the directory to its new name.
    """
    release(path)
    if is_temporary(path):
        _hold(path)


def _candidates(parent: Path, name: str) -> list[Path]:
    paths: list[Path] = []
    for directory in (parent, parent / ROOM):
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            paths += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(path for path in paths if path not in _held and is_temporary(path, name))


def abandoned(parent: Path, name: str) -> Iterator[Path]:
    """Temporaries of ``parent / name`` whose maker is gone, each locked while it is yielded (but
    for a mounted dataset).

    Those that we may not open are left out.
    """
    for path in _candidates(parent, name):
        try:
            descriptor = _lock(path, wait=False)
        except PermissionError:
            continue
        if descriptor is None:
            continue
        if mount_at(path) is not None:
            # A dataset that somebody has open cannot be destroyed.  Two sweepers may meet here:
            # one of them finds it gone.
            os.close(descriptor)
            yield path
            continue
        try:
            yield path
        finally:
            os.close(descriptor)


def stale_temporaries(parent: Path, name: str) -> list[Path]:
    """Temporaries of ``parent / name`` whose maker is gone: to show, not to remove.

    Between this answer and a removal a maker could lock one that it has just made;
    ``removal.remove_stale`` holds the lock meanwhile.
    """
    return list(abandoned(parent, name))
