"""Cargo's build lock: flock on ``<profile>/.cargo-lock``, from 1.96 on ``.cargo-build-lock`` too.

Source: ``core/compiler/layout.rs`` at 1.95 (exclusive ``.cargo-lock``); ``compiler/layout.rs`` on
master (exclusive ``.cargo-build-lock`` in the build directory, shared ``.cargo-lock`` in the
artefact directory).  Taking both names exclusively therefore excludes every known Cargo.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cargo_cow.cargo.target import profile_directories
from cargo_cow.errors import Locked

LOCK_NAMES = (".cargo-lock", ".cargo-build-lock")


@contextmanager
def build_lock(
    build_dir: str | os.PathLike[str],
    *,
    wait: bool = True,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold Cargo's lock on every profile of ``build_dir`` while the body runs.

    With ``wait`` false, or when the lock is held and waiting is refused, raises Locked.
    ``waiting`` is called once with the lock's path before the call blocks.  A directory that
    cannot be written (read-only donor) needs no lock: nobody can build in it either.
    """
    descriptors: list[int] = []
    try:
        for directory in profile_directories(os.fspath(build_dir)):
            for name in LOCK_NAMES:
                path = f"{directory}/{name}"
                try:
                    if name == ".cargo-build-lock" and not os.path.exists(path):
                        continue
                    # Cargo opens it the same way; the file stays, as Cargo's own does.
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                except PermissionError:
                    continue
                except OSError as error:
                    if error.errno == 30:  # EROFS
                        continue
                    raise
                descriptors.append(descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        raise Locked(f"{path} is held: Cargo is building there") from None
                    if waiting is not None:
                        waiting(path)
                        waiting = None
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def awaited(build_dir: str | os.PathLike[str]) -> bool:
    """Whether somebody waits for a lock of ``build_dir``, which the caller holds.

    Who waits has opened the file already, and would get the lock of a directory that has another
    name by then, were the target exchanged under it.  Told by ``/proc/locks`` (proc_locks(5)), by
    inode alone, because the device there is not the one that Btrfs shows for a file: in doubt,
    yes.  False where there is no such list.  Takes some 10 ms: the kernel stops all
    locking for a moment (``locks_start``).
    """
    inodes = set()
    for directory in profile_directories(os.fspath(build_dir)):
        for name in LOCK_NAMES:
            with suppress(OSError):
                inodes.add(os.stat(f"{directory}/{name}").st_ino)
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except (OSError, ValueError):
        return False
    # 3: -> FLOCK ADVISORY WRITE 1234 00:2a:257 0 EOF
    return any(
        words[1:3] == ["->", "FLOCK"] and int(words[6].rpartition(":")[2]) in inodes
        for words in lines
        if len(words) > 6
    )
