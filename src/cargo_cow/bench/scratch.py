"""A scratch directory on a filesystem that can clone files, which vanishes at the end.

In order: a directory of the user's choice; the cache and temporary directories of this machine,
if files can be cloned there (found by trying); as root, an image of ours in a sparse file; else
any directory, where cloning is copying, said aloud.

Whatever happens, nothing stays: the image is unmounted, its loop device freed and the directory
removed on the way out, on an exception and on SIGINT, SIGTERM and SIGHUP (``processes.stoppable``
makes exceptions of them).  What a killed run left is swept by the next: a scratch
directory is locked as long as its owner lives.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from cargo_cow import filesystems
from cargo_cow.bench import processes
from cargo_cow.errors import CowError
from cargo_cow.filesystems.mounts import filesystem_name

_PREFIX = "cargo-cow-scratch-"
_LOCK = "owner.lock"
_IMAGE_BYTES = 40 << 30  # sparse: what is not written takes no room
_LEAST_BYTES = 6 << 30  # two projects, each with a few targets of some hundred MB

# Features are the programs' defaults, as a user would get them.
_MAKE = {
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "ext4": ("mkfs.ext4", "-q", "-F"),
}


class NoScratch(CowError):
    """There is no directory to work in as asked."""

    exit_code = 61
    hint = "name a directory with --scratch, best on Btrfs or XFS, with some gigabytes free"


class Scratch(NamedTuple):
    path: Path
    kind: Literal["reflink", "image", "copy"]
    filesystem: str  # what it is called in the report
    note: str  # one line for the user


@contextmanager
def scratch(
    directory: Path | None = None,
    *,
    filesystem: str | None = None,
    say: Callable[[str], None],
) -> Iterator[Scratch]:
    """A new directory to work in; ``filesystem`` demands an image of that kind (root)."""
    bases = [directory.absolute()] if directory is not None else _usual_directories()
    with processes.stoppable():
        for base in bases:
            sweep(base, say)
        base, kind = _choose(bases, named=directory is not None, filesystem=filesystem)
        root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = None
        try:
            lock = _lock(root)
            if kind == "image":
                with processes.not_now():
                    made = _image(root, filesystem or "btrfs")
                work = root / "mounted"
            else:
                made = filesystem_name(root)
                work = root / "work"
                work.mkdir()
            yield Scratch(work, kind, made, _note(kind, made, work))
        finally:
            with processes.undisturbed():
                remove(root)
                if lock is not None:
                    os.close(lock)


def sweep(base: Path, say: Callable[[str], None]) -> list[Path]:
    """Remove what runs that were killed left in ``base``: scratch directories nobody locks."""
    swept = []
    for root in sorted(base.glob(f"{_PREFIX}*")):
        with suppress(OSError):
            found = root.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            lock = _lock(root)
            if lock is None:
                continue
            say(f"removing what an interrupted run left: {root}")
            try:
                remove(root)
            finally:
                os.close(lock)
            swept.append(root)
    return swept


def remove(root: Path) -> None:
    """Unmount and delete one scratch directory, however far its making had come."""
    mounted = root / "mounted"
    for attempt in range(20):
        if not _is_mount(mounted):
            break
        # A process that is just dying can hold the mount for a moment.
        lazily = ["-l"] if attempt == 19 else []
        _quietly(["umount", *lazily, os.fspath(mounted)])
        if _is_mount(mounted):
            time.sleep(0.25)
    image = root / "image"
    if image.exists():
        # The kernel frees a loop device at umount; this is for an image that never got mounted.
        for line in _quietly(["losetup", "-j", os.fspath(image)]).splitlines():
            _quietly(["losetup", "-d", line.partition(":")[0]])
    if _is_mount(mounted):
        raise NoScratch(f"{mounted} cannot be unmounted", hint=f"umount {mounted}")
    try:
        shutil.rmtree(root, onerror=_make_removable)
    except OSError:
        # States are read-only subvolumes where there are such.
        filesystems.remove_target(root)


def _choose(
    bases: list[Path], *, named: bool, filesystem: str | None
) -> tuple[Path, Literal["reflink", "image", "copy"]]:
    usable = [base for base in bases if base.is_dir() and os.access(base, os.W_OK | os.X_OK)]
    if not usable:
        raise NoScratch(f"no directory to work in: {', '.join(map(str, bases))}")
    roomy = [base for base in usable if _free_bytes(base) >= _LEAST_BYTES]
    if not roomy and not named:
        raise NoScratch(f"less than {_LEAST_BYTES >> 30} GB free in {', '.join(map(str, usable))}")
    candidates = roomy or usable
    if filesystem is None:
        for base in candidates:
            if filesystems.probe(base).reflink:
                return base, "reflink"
    program = _MAKE[filesystem or "btrfs"][0]
    if _can_mount(program):
        # An image in memory would measure memory, and might not fit.
        on_disk = [base for base in candidates if filesystem_name(base) != "tmpfs"]
        return (on_disk or candidates)[0], "image"
    if filesystem is not None:
        raise NoScratch(
            f"an image with {filesystem} needs root and {program}",
            hint=f"run as root with {program} installed, or leave the filesystem open",
        )
    return candidates[0], "copy"


def _note(kind: str, filesystem: str, work: Path) -> str:
    if kind == "reflink":
        return f"{work} on {filesystem}, where files can be cloned"
    if kind == "image":
        return f"{work}, a {filesystem} image of our own"
    return (
        f"{work} on {filesystem}, which cannot clone files, and only root can mount an image: "
        "targets are copied, in time and in space.  Name a directory on Btrfs or XFS with "
        "--scratch, or run this as root"
    )


def _usual_directories() -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cargo-cow"
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    for candidate in (cache, Path(tempfile.gettempdir()), Path("/var/tmp")):
        if candidate.is_dir() and candidate.resolve() not in found:
            found.append(candidate.resolve())
    return found


def _image(root: Path, filesystem: str) -> str:
    image = root / "image"
    mounted = root / "mounted"
    mounted.mkdir()
    size = min(_IMAGE_BYTES, _free_bytes(root) * 9 // 10)
    with image.open("wb") as file:
        file.truncate(size)
    for command in (
        [*_MAKE[filesystem], os.fspath(image)],
        ["mount", "-o", "loop", os.fspath(image), os.fspath(mounted)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_env())
        if done.returncode != 0:
            raise NoScratch(f"`{' '.join(command)}`: {done.stderr.strip()}")
    return filesystem


def _can_mount(program: str) -> bool:
    return (
        os.geteuid() == 0
        and shutil.which(program, path=_env()["PATH"]) is not None
        and Path("/dev/loop-control").exists()
    )


def _env() -> dict[str, str]:
    """System programs lie where an ordinary PATH does not lead."""
    return {
        "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
        "LC_ALL": "C.UTF-8",
    }


def _quietly(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=_env()
        ).stdout
    except OSError:
        return ""


def _lock(root: Path) -> int | None:
    """Hold the directory's lock, or None while its owner lives."""
    file = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _is_mount(path: Path) -> bool:
    return path.is_dir() and path.is_mount()


def _free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _make_removable(function: Callable[..., object], path: str, _error: object) -> None:
    """Directories without write permission are a part of some projects' tests."""
    Path(path).parent.chmod(0o700)
    with suppress(OSError):
        Path(path).chmod(0o700)
    function(path)
