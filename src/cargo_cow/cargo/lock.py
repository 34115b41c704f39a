"""Cargo's build lock: flock on ``<profile>/.cargo-lock``, from 1.96 on ``.cargo-build-lock`` too.

Source: ``core/compiler/layout.rs`` at 1.95 (exclusive ``.cargo-lock``); ``compiler/layout.rs`` on
master (exclusive ``.cargo-build-lock`` in the build directory, shared ``.cargo-lock`` in the
artefact directory).  Taking both names exclusively therefore excludes every known Cargo.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from cargo_cow.cargo.target import profile_directories
from cargo_cow.errors import Locked

LOCK_NAMES = (".cargo-lock", ".cargo-build-lock")


class Held:
    """Cargo's lock on a build directory, while it is held."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def awaited(self) -> bool:
        """Whether somebody else waits for the lock.

        Who waits has opened the file already, and would get the lock of a directory that has
        another name by then, were the target exchanged under it.  That nobody else has opened it
        is told by a lease (microseconds).  Where somebody has, or there are no leases, it is told
        by ``/proc/locks`` (proc_locks(5)), by inode alone, because the device there is not the one
        that Btrfs shows for a file: in doubt, yes.  That takes some 10 ms: the kernel stops all
        locking for a moment (``locks_start``).  False where there is no such list.
        """
        if all(map(_is_alone, self.descriptors)):
            return False
        inodes = {os.fstat(descriptor).st_ino for descriptor in self.descriptors}
        return not inodes.isdisjoint(inode for waits, inode in _flocks() if waits)


def _is_alone(descriptor: int) -> bool:
    """Whether nobody but us has opened this file, which we may write to.

    The kernel gives a write lease for no other file (``F_SETLEASE`` in fcntl(2)), and to its owner
    or root alone.  Who opens it meanwhile waits for us to give it back, which we do at once.
    """
    try:
        _lease(descriptor, fcntl.F_WRLCK)
    except OSError:
        return False
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


_held_back: set[tuple[int, int]] = set()
"""Device and inode of the lock files that this process holds back (`hold_back`)."""


class HeldBack:
    """Cargo's lock on a build directory, held so that a Cargo that comes waits in silence."""

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors
        self._files = {_file(os.fstat(descriptor)) for descriptor in descriptors}
        _held_back.update(self._files)

    def release(self) -> None:
        """Let whoever waits go on; a second time nothing happens."""
        _held_back.difference_update(self._files)
        while self._descriptors:
            descriptor = self._descriptors.pop()
            with suppress(OSError):
                # Before the lease: who is let in must find the lock free.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def __enter__(self) -> HeldBack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def hold_back(build_dir: str | os.PathLike[str]) -> HeldBack | None:
    """Hold Cargo's lock so that a Cargo that is started now does all that needs no target, and
    then waits without a word; None where that cannot be had at once.

    Cargo says that it waits when it finds the lock taken (``flock.rs``, ``acquire``).  Here it does
    not get so far: on each lock file there is a read lease (``F_SETLEASE`` in fcntl(2)), at which
    whoever opens the file for writing waits until it is given back.  The lock is held as well, so
    that nobody gets in whose open was let through (after ``/proc/sys/fs/lease-break-time``, 45 s):
    that one is told in Cargo's own words.  Killed, we leave neither lock nor lease.

    There is none where somebody has a lock file open for writing (a build runs, or waits), where
    the files are not ours, where the filesystem knows no leases, and where Cargo has not built yet.
    `build_lock` of this process takes what is held back for granted.
    """
    descriptors: list[int] = []
    try:
        for directory in profile_directories(os.fspath(build_dir)):
            for name in LOCK_NAMES:
                path = f"{directory}/{name}"
                if name == ".cargo-build-lock" and not os.path.exists(path):
                    continue
                # A read lease is for who cannot write, and lets others read.
                descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
                _lease(descriptors[-1], fcntl.F_RDLCK)
                fcntl.flock(descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    return HeldBack(descriptors) if descriptors else None


def _file(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def is_held_back(build_dir: str | os.PathLike[str]) -> bool:
    """Whether this process holds Cargo back from every profile of ``build_dir``: as long as it
    does, nobody else builds there."""
    return bool(_held_back) and all(
        _is_held_back(f"{directory}/{LOCK_NAMES[0]}")
        for directory in profile_directories(os.fspath(build_dir))
    )


def is_profile_held_back(directory: str) -> bool:
    """Whether this process holds Cargo back from one profile, there or not."""
    return _is_held_back(f"{directory}/{LOCK_NAMES[0]}")


def _is_held_back(path: str) -> bool:
    if not _held_back:
        return False
    try:
        return _file(os.stat(path)) in _held_back
    except OSError:
        return False


def _lease(descriptor: int, kind: int) -> None:
    """Take a lease on an open file.  Raises OSError where it is not to be had.

    Who opens the file meanwhile waits for us to give it back.  We would be told by a signal; SIGURG
    is one that does nothing to who does not ask for it.
    """
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, kind)


@contextmanager
def build_lock(
    build_dir: str | os.PathLike[str],
    *,
    wait: bool = True,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[Held]:
    """Hold Cargo's lock on every profile of ``build_dir`` while the body runs.

    With ``wait`` false, or when the lock is held and waiting is refused, raises Locked.
    ``waiting`` is called once with the lock's path before the call blocks.  A directory that
    cannot be written (read-only donor) needs no lock: nobody can build in it either.
    """
    held = Held()
    try:
        for directory in profile_directories(os.fspath(build_dir)):
            for name in LOCK_NAMES:
                path = f"{directory}/{name}"
                if _is_held_back(path):
                    continue
                try:
                    if name == ".cargo-build-lock" and not os.path.exists(path):
                        continue
                    # Cargo opens it the same way; the file stays, as Cargo's own does.
                    how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                    try:
                        descriptor = os.open(path, how | os.O_NONBLOCK, 0o644)
                    except BlockingIOError:  # somebody holds Cargo back there
                        if not wait:
                            raise Locked(f"{path} is held: cargo cow is at work there") from None
                        if waiting is not None:
                            waiting(path)
                            waiting = None
                        descriptor = os.open(path, how, 0o644)
                except PermissionError:
                    continue
                except OSError as error:
                    if error.errno == 30:  # EROFS
                        continue
                    raise
                held.descriptors.append(descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        raise Locked(f"{path} is held: Cargo is building there") from None
                    if waiting is not None:
                        waiting(path)
                        waiting = None
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield held
    finally:
        for descriptor in held.descriptors:
            os.close(descriptor)


def is_held(build_dir: str | os.PathLike[str]) -> bool:
    """Whether somebody holds a lock of ``build_dir``: probably, a build runs there.

    Without touching the lock, since a Cargo that finds it taken says that it waits.  Told by
    ``/proc/locks`` (proc_locks(5)), by inode alone, because the device there is not the one that
    Btrfs shows for a file: in doubt, yes.  False where there is no such list.  Takes some 10 ms:
    the kernel stops all locking for a moment (``locks_start``).
    """
    inodes = set()
    for directory in profile_directories(os.fspath(build_dir)):
        for name in LOCK_NAMES:
            with suppress(OSError):
                inodes.add(os.stat(f"{directory}/{name}").st_ino)
    return not inodes.isdisjoint(inode for waits, inode in _flocks() if not waits)


def _flocks() -> Iterator[tuple[bool, int]]:
    """Every flock(2) of the machine: whether it is waited for, and the file's inode."""
    try:
        text = Path("/proc/locks").read_text("ascii")
    except (OSError, ValueError):
        return
    for line in text.splitlines():
        # 3: FLOCK ADVISORY WRITE 1234 00:2a:257 0 EOF; who waits has "->" before FLOCK
        words = line.split()
        waits = words[1:2] == ["->"]
        rest = words[2:] if waits else words[1:]
        if len(rest) > 4 and rest[0] == "FLOCK":
            yield waits, int(rest[4].rpartition(":")[2])
