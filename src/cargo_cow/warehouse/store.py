"""The warehouse as it lies on the disk: where it is, its entries, and what was noted of calls.

The shim writes it (``native/src/shim/warehouse``); ``docs/warehouse.md`` is the contract of both.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cargo_cow.cargo import configuration
from cargo_cow.errors import WarehouseMissing, WarehouseUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cargo_cow.cargo.workspace import Workspace

ROOM = "cargo-cow/warehouse"
META = "entry.json"
FOREIGN = "foreign"
"""The kind of entries that another version of this program made."""
_FORMAT = 3
"""What the shim writes (``native/src/shim/warehouse/entry.rs``)."""
_ABANDONED = 600.0
"""Seconds after which a directory in ``making`` that nobody holds was left by one who died."""


class Entry(NamedTuple):
    """One entry.  ``trouble`` says why it cannot be used; its figures are then zero.

    ``created`` and ``used`` are seconds since the epoch, ``seconds`` what the compile took.
    ``kind``: "call" for what one call of the compiler made; others may have no crate.
    """

    path: Path
    key: str
    crate: str
    package: str
    created: float
    used: float
    seconds: float
    incremental: bool
    outputs: tuple[tuple[str, int, str], ...]
    kind: str = "call"
    trouble: str | None = None

    @property
    def size(self) -> int:
        """Bytes of its outputs, shared or not."""
        return sum(size for _, size, _ in self.outputs)


def locate(workspace: Workspace | None, cwd: Path, named: str | None = None) -> Path:
    """The store that builds of the workspace use; ``named`` is one that the user names.

    Raises WarehouseMissing where it is switched off or nothing was kept yet, and WarehouseUnusable
    where it is not this user's alone.
    """
    if named is not None:
        return _checked(Path(named).absolute())
    setting = configuration.effective_variable(cwd, configuration.WAREHOUSE_VARIABLE)
    if setting is not None and setting.startswith("/"):
        return _checked(Path(setting))
    for candidate in _candidates(workspace):
        if candidate.is_dir():
            return _checked(candidate)
    if setting in (None, "", "off", "0"):
        raise WarehouseMissing("the warehouse is switched off here, and there is none")
    raise WarehouseMissing(
        "nothing was kept yet",
        hint="build once; `cargo cow doctor` says whether data can be shared",
    )


def _candidates(workspace: Workspace | None) -> Iterator[Path]:
    if workspace is not None:
        # What the shim found for each profile.
        for pattern in ("*/.cargo-cow/warehouse", "*/*/.cargo-cow/warehouse"):
            for note in sorted(workspace.build_dir.glob(pattern)):
                with contextlib.suppress(OSError, ValueError):
                    text = note.read_text().strip()
                    if text.startswith("/"):
                        yield Path(text)
    cache = os.environ.get("XDG_CACHE_HOME") or ""
    yield (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / ROOM


def is_own(status: os.stat_result) -> bool:
    """Whether what has this (l)stat is a directory of this user's alone."""
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & 0o077
    )


def _checked(root: Path) -> Path:
    try:
        status = root.lstat()
    except OSError as error:
        raise WarehouseMissing(f"{root}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise WarehouseUnusable(f"{root} is not a directory")
    if not is_own(status):
        raise WarehouseUnusable(
            f"{root} is not yours alone", hint=f"chmod 700 {root}, or name another store"
        )
    if not (root / "CACHEDIR.TAG").exists():
        raise WarehouseUnusable(f"{root} is no warehouse")
    return root


def entries(root: Path) -> list[Entry]:
    """All entries, the one used last first; damaged ones have zeroes and their trouble."""
    found = [
        _entry(path)
        for path in root.glob("units/*/*/*")
        if path.is_dir() and not path.name.startswith(".")
    ]
    return sorted(found, key=lambda entry: -entry.used)


def _entry(path: Path) -> Entry:
    nothing = Entry(path, path.parent.name, "", "", 0.0, 0.0, 0.0, incremental=False, outputs=())
    try:
        nothing = nothing._replace(used=(path / META).stat().st_mtime)
        value = read(path)
        if is_foreign(value):
            # Another version goes on using it: it stays until nobody does.
            return nothing._replace(kind=FOREIGN)
        return nothing._replace(
            crate=str(value.get("crate") or ""),
            package=package_of(value),
            created=float(value["created"]),
            seconds=float(value.get("seconds") or 0.0),
            incremental=bool(value.get("incremental")),
            kind=str(value.get("kind") or "call"),
            outputs=tuple(
                (str(one[0]), int(one[1]), str(one[2])) for one in value.get("outputs", ())
            ),
        )
    except OSError as error:
        return nothing._replace(used=0.0, trouble=f"{META}: {error.strerror}")
    except _Damaged:
        return nothing._replace(used=0.0, trouble=f"{META} is damaged")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return nothing._replace(used=0.0, trouble=f"{META} is of an unknown form")


class _Damaged(ValueError):
    pass


def read(path: Path) -> dict[str, Any]:
    """What the entry in the directory ``path`` says of itself.  Raises OSError, ValueError."""
    from blake3 import blake3

    if not stat.S_ISREG((path / META).lstat().st_mode):
        raise _Damaged  # who opens a pipe waits for ever
    line, check = (path / META).read_bytes().split(b"\n")[:2]
    if blake3(line).hexdigest() != check.decode():
        raise _Damaged
    value: dict[str, Any] = json.loads(line)
    return value


def is_foreign(value: Mapping[str, Any]) -> bool:
    """Whether an entry is another version's: what it says may mean something else."""
    return value.get("format") != _FORMAT


def package_of(value: dict[str, Any]) -> str:
    """``name version`` of an entry."""
    name, version = value.get("package"), value.get("version")
    return f"{name} {version}" if name and version else str(name or "")


def damage(entry: Entry) -> str | None:
    """What is wrong with an entry, all its outputs read and compared with their digests."""
    if entry.trouble is not None:
        return entry.trouble
    from blake3 import blake3

    for index, (name, size, digest) in enumerate(entry.outputs):
        file = entry.path / str(index)
        try:
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode):
                return f"{name} is no file"
            if status.st_size != size:
                return f"{name} has {status.st_size} bytes, not {size}"
            hasher = blake3()
            if size:
                hasher.update_mmap(file)
            if hasher.hexdigest() != digest:
                return f"{name} has another content"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def remove(root: Path, entry: Entry) -> bool:
    """Take an entry out, whole.  False: somebody is using it, or it is gone already."""
    lock: int | None = None
    try:
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(entry.path / META, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (root / "making").mkdir(mode=0o700, exist_ok=True)
        aside = root / "making" / f"{os.getpid()}-{entry.path.name}"
        entry.path.rename(aside)
    except OSError:
        return False
    finally:
        if lock is not None:
            os.close(lock)
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: other entries of the key
        entry.path.parent.rmdir()
    return True


def leftovers(root: Path, now: float) -> list[Path]:
    """What a process that was killed had begun to make or to remove, or said it would compile."""
    found = []
    for room in ("making", "building"):
        for path in sorted((root / room).glob("*")):
            with contextlib.suppress(OSError):
                if now - path.lstat().st_mtime >= _ABANDONED:
                    with _held(path):
                        found.append(path)
    return found


def remove_leftover(path: Path) -> None:
    """Remove what ``leftovers`` found, unless it is somebody's again."""
    with contextlib.suppress(OSError), _held(path):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Raises BlockingIOError where somebody else holds it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def tell(root: Path, event: Mapping[str, Any]) -> None:
    """Add an event (``what``, ``time`` in seconds since the epoch, …) to those of the shim's calls.

    In one write: lines that are noted meanwhile stay whole.  Raises OSError.
    """
    descriptor = os.open(root / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(event).encode() + b"\n")
    finally:
        os.close(descriptor)


def events(root: Path) -> Iterator[dict[str, Any]]:
    """What was noted of calls, oldest first; lines that are torn are left out."""
    for name in ("events.old", "events"):
        try:
            text = (root / name).read_bytes()
        except FileNotFoundError:
            continue
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and isinstance(value.get("what"), str):
                    yield value
