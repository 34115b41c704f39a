"""What a state is, and how it is written down.

A state is the directory ``<store>/<id>/`` with ``state.json``, ``units.json`` and ``target/``.  It
is published by one rename and never changed afterwards; what changes (which state is the baseline)
is kept beside it.  So that a change by others is noticed, ``state.json`` holds a *seal* of the
target: on Btrfs the subvolume's uuid and the transaction that last changed anything in it, of a
ZFS dataset its snapshot and the bytes it refers to,
elsewhere a digest over the names, sizes, modes, mtimes and ctimes of all that is below.

Compaction (see `compaction`) moves the data of a state to another place on the disk.  That changes
no content and no time, but it is a transaction, so it leaves a note beside ``state.json``: the
digest over the stats, taken while the seal still held, and then the new transaction.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

from blake3 import blake3

from cargo_cow.durable import sync_directory
from cargo_cow.errors import StateDamaged, UsageError
from cargo_cow.filesystems import btrfs, zfs

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT = 1
STATE_FILE = "state.json"
COMPACTED_FILE = "compacted.json"
UNITS_FILE = "units.json"
TARGET = "target"

ID = re.compile(r"^[0-9]{8}-[0-9]{6}-[0-9]{6}[0-9a-f]{4}$")
_BEGINNING_OF_ID = re.compile(r"^[0-9]{8}-[0-9a-f-]*$")
_LONGEST_NAME = 100

Origin = Literal["created", "kept"]
Kind = Literal["subvolume", "dataset", "tree"]


class Seal(NamedTuple):
    """What tells that a state's target is as it was published."""

    kind: Kind
    value: str


class State(NamedTuple):
    """An immutable snapshot of a target.

    ``name`` is None for an automatic state.  ``project`` is the digest of the common git
    directory's path.  ``clean``: whether the checkout was as its commit says (None: not known).
    ``created`` is in seconds since the epoch; ``taken`` the filesystem's clock (ns) when the taking
    began.  ``parent`` is the id of the state that the target was cloned from.  ``origin``: made by
    ``create``, or what ``activate`` kept.  ``logical_bytes`` is None where nobody counted (a
    snapshot).  ``whole``: no build ran while it was taken, and the note in it speaks of all of its
    units (`prepare.unchanged.is_whole`).  ``path`` and ``baseline`` are not in ``state.json``.
    """

    id: str
    name: str | None
    project: str
    checkout: str
    workspace: str
    build_dir: str
    branch: str | None
    commit: str | None
    tree: str | None
    clean: bool | None
    compiler: str | None
    profiles: tuple[str, ...]
    created: float
    taken: int
    method: Literal["snapshot", "reflink", "copy"]
    parent: str | None
    origin: Origin
    logical_bytes: int | None
    seal: Seal
    whole: bool = False
    path: Path = Path()
    baseline: bool = False

    @property
    def target(self) -> Path:
        """The target itself: not to be written to."""
        if self.seal.kind == "dataset":
            return elsewhere(self.path) or self.path / TARGET
        return self.path / TARGET

    @property
    def title(self) -> str:
        """The name, or the id of an automatic state."""
        return self.name or self.id


class Compacted(NamedTuple):
    """What compaction leaves beside a state.

    ``stats``: digest over the stats of the target, taken while its seal held.  ``seal``: the
    value of the seal afterwards; None while it is at work, or where it was killed.  ``kept``: files
    that it has tried without gain; ``packed``: those of which all is compressed.
    """

    stats: str
    seal: str | None
    kept: tuple[str, ...]
    packed: tuple[str, ...]


class Damaged(NamedTuple):
    """A directory in the store that is no usable state, and why.

    ``foreign``: written by a later version, which is no damage.
    """

    id: str
    path: Path
    reason: str
    foreign: bool = False


class Units(NamedTuple):
    """What is built in a target: when each unit was made, by its key; and the top-level names."""

    made: dict[str, int]
    names: tuple[str, ...]

    def beyond(self, others: Iterable[Units]) -> int:
        """How many of these builds and names none of ``others`` has; no more of them are asked for
        than it takes to find all."""
        made = set(self.made.items())
        names = set(self.names)
        for other in others:
            made -= other.made.items()
            names.difference_update(other.names)
            if not made and not names:
                break
        return len(made) + len(names)


def elsewhere(path: Path) -> Path | None:
    """Where the target of the state at ``path`` is mounted, if it is a ZFS dataset: a symlink says
    so, which is made before the dataset, so that none is ever forgotten."""
    try:
        return Path(os.readlink(path / TARGET))  # noqa: PTH115 - as it is written
    except OSError:
        return None


def new_id() -> str:
    """A new id: the time (UTC, to the microsecond), so that ids sort by age, and random digits."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    told = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))
    return f"{told}-{nanoseconds // 1000:06}{os.urandom(2).hex()}"


def checked_name(name: str) -> str:
    """The name as it is kept (NFC).  Raises UsageError, in one line, for what is none.

    Names are never file names, so other alphabets and spaces are welcome; what is refused would
    be read as something else (an option, a path, an id) or could not be shown.
    """
    wanted = unicodedata.normalize("NFC", name)
    shown = ascii(name)
    if not wanted.strip():
        raise UsageError("a state needs a name that is not empty")
    if wanted != wanted.strip():
        raise UsageError(f"{shown} is no name for a state: it begins or ends with a space")
    if len(wanted) > _LONGEST_NAME:
        raise UsageError(f"that is no name for a state: longer than {_LONGEST_NAME} characters")
    if not wanted.isprintable():
        raise UsageError(f"{shown} is no name for a state: it holds control characters")
    if "/" in wanted or "\\" in wanted:
        raise UsageError(f"{shown} is no name for a state: it holds a slash")
    if wanted[0] in ".-":
        raise UsageError(f"{shown} is no name for a state: it begins with {wanted[0]!r}")
    if _BEGINNING_OF_ID.match(wanted):
        raise UsageError(f"{shown} is no name for a state: it looks like an id")
    return wanted


# -- the file


def write(directory: Path, state: State, units: Units) -> None:
    """Write the state's files into a directory that is not published yet, durably."""
    value = state._asdict()
    for key in ("path", "baseline"):
        del value[key]
    value["seal"] = state.seal._asdict()
    value = {"format": FORMAT, **value}
    value["digest"] = _digest(value)
    # Not synced: a lost note of the units costs at most an automatic state too many.
    (directory / UNITS_FILE).write_text(json.dumps({"format": FORMAT, **units._asdict()}), "ascii")
    with (directory / STATE_FILE).open("xb") as file:
        # json escapes everything that is not ASCII, lone surrogates (bytes of a path) included.
        file.write(json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n")
        file.flush()
        # Its name need not be: that is made before the rename that publishes the directory, and
        # what makes the rename durable makes durable what was done to names before.
        os.fsync(file.fileno())


def _digest(value: dict[str, object]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return str(blake3(text.encode("ascii")).hexdigest())


def read(path: Path) -> State | Damaged:
    """The state at ``path``, looked at as far as that costs next to nothing.

    A subvolume is judged in full; a tree only by `verify`.
    """
    identity = path.name
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return Damaged(identity, path, "it is no directory")
        value = json.loads((path / STATE_FILE).read_bytes())
    except FileNotFoundError:
        return Damaged(identity, path, "its state.json is gone")
    except (OSError, ValueError) as error:
        return Damaged(identity, path, f"its state.json cannot be read ({error})")
    if not isinstance(value, dict):
        return Damaged(identity, path, "its state.json is no object")
    if value.get("format") != FORMAT:
        told = value.get("format")
        return Damaged(identity, path, f"it has format {told!r}, unknown to this version", True)
    try:
        digest = value.pop("digest")
        if digest != _digest(value):
            return Damaged(identity, path, "its state.json was edited")
        del value["format"]
        state = _parsed(value, path)
    except (KeyError, TypeError, ValueError):
        return Damaged(identity, path, "its state.json is not of the known shape")
    if state.id != identity:
        return Damaged(identity, path, f"it was moved: it was published as {state.id}")
    reason = _broken_seal(state, thorough=False)
    return state if reason is None else Damaged(identity, path, reason)


def _parsed(value: dict[str, object], path: Path) -> State:
    plain = dict(value)
    seal = cast("dict[str, str]", plain.pop("seal"))
    profiles = tuple(str(name) for name in cast("list[str]", plain.pop("profiles")))
    method = plain["method"]
    if method not in ("snapshot", "reflink", "copy") or seal["kind"] not in get_args(Kind):
        raise ValueError(method)
    # Every value is as we wrote it: the digest over all of them agrees.
    return State(
        **plain,  # type: ignore[arg-type]
        profiles=profiles,
        seal=Seal(cast("Kind", seal["kind"]), str(seal["value"])),
        path=path,
    )


def read_units(state: State) -> Units | None:
    """What the state holds; None if the note of it is gone."""
    try:
        value = json.loads((state.path / UNITS_FILE).read_bytes())
        if value["format"] != FORMAT:
            return None
        return Units(
            {str(key): int(made) for key, made in value["made"].items()}, tuple(value["names"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# -- the seal


def seal(target: Path) -> Seal:
    """The seal of a target that changes no more."""
    if btrfs.is_subvolume(target) and btrfs.is_read_only(target):
        facts = btrfs.describe(target)
        return Seal("subvolume", f"{facts.uuid.hex()}:{facts.changed}")
    dataset = zfs.find(target)
    sealed = None if dataset is None else zfs.seal(dataset)
    if sealed is not None:
        return Seal("dataset", sealed)
    return Seal("tree", stats_digest(target))


def verify(state: State) -> None:
    """Raise StateDamaged unless the state's target is as it was published, to the last file."""
    reason = _broken_seal(state, thorough=True)
    if reason is not None:
        raise damaged(state.title, reason)


def damaged(title: str, reason: str) -> StateDamaged:
    """The error for a state that is not usable."""
    return StateDamaged(f"the state {title} is not usable: {reason}")


def _is_sealed(state: State, target: Path) -> bool:
    """Whether the subvolume is as it was published, but for what compaction did.

    Compaction writes its note before it begins, so the note is read after the transaction was.  An
    edit changes a ctime, and a ctime cannot be set back.
    """
    found = seal(target)
    if found == state.seal:
        return True
    note = read_compacted(state.path)
    if note is None or _uuid(found.value) != _uuid(state.seal.value):
        return False
    return found.value == note.seal or stats_digest(target) == note.stats


def _uuid(value: str) -> str:
    return value.partition(":")[0]


def read_compacted(path: Path) -> Compacted | None:
    """The note that compaction left beside the state at ``path``, if it is whole and its own."""
    try:
        value = json.loads((path / COMPACTED_FILE).read_bytes())
        digest = value.pop("digest")
        if value["format"] != FORMAT or value["id"] != path.name or digest != _digest(value):
            return None
        # Both lists only save work: a note without them is as good.
        kept, packed = (tuple(value.get(name, ())) for name in ("kept", "packed"))
        return Compacted(str(value["stats"]), value["seal"], kept, packed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_compacted(path: Path, note: Compacted) -> None:
    """Replace the note beside the state at ``path``, durably.  Raises OSError."""
    value: dict[str, object] = {"format": FORMAT, "id": path.name, **note._asdict()}
    value["digest"] = _digest(value)
    temporary = path / f".{COMPACTED_FILE}.tmp"
    with temporary.open("wb") as file:
        file.write(json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / COMPACTED_FILE)
    sync_directory(path)


def _broken_seal(state: State, *, thorough: bool) -> str | None:
    target = state.target
    try:
        if not stat.S_ISDIR(os.lstat(target).st_mode):
            return "its target is no directory"
        if state.seal.kind == "subvolume":
            if not btrfs.is_subvolume(target):
                return "its target is not the subvolume that was published"
            if not btrfs.is_read_only(target):
                return "it was made writable"
            if not _is_sealed(state, target):
                return "its target was edited or exchanged"
        elif state.seal.kind == "dataset" and zfs.find(target) is None:
            return "its dataset is not mounted: zfs mount -a"
        elif (thorough or state.seal.kind == "dataset") and seal(target) != state.seal:
            return "its target was edited or exchanged"
    except FileNotFoundError:
        return "its target is gone"
    except OSError as error:
        return f"its target cannot be read ({error.strerror})"
    return None


def stats_digest(target: Path) -> str:
    """Digest over the stats of everything in a target: `_tree_digest`."""
    return _tree_digest(os.fspath(target))


def _tree_digest(root: str) -> str:
    """Digest over the stats of everything below ``root``, and of itself.

    ctimes cannot be set back, so no edit goes unseen.  Access times do not count.
    """
    hasher = blake3()

    def note(name: str, found: os.stat_result) -> None:
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        facts = f"{found.st_mode:o} {size} {found.st_mtime_ns} {found.st_ctime_ns}"
        hasher.update(os.fsencode(name) + b"\0" + facts.encode("ascii") + b"\n")

    note("", os.lstat(root))
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(f"{root}/{inside}") as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = f"{inside}{entry.name}"
            facts = entry.stat(follow_symlinks=False)
            note(name, facts)
            if stat.S_ISDIR(facts.st_mode):
                pending.append(f"{name}/")
    return str(hasher.hexdigest())
