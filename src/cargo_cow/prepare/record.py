"""Records and observations: what a unit was made from, kept beside its fingerprint.

A record names the very build it speaks of by the mtime of ``invoked.timestamp``, which Cargo sets
when a compile or run starts and which neither a clone nor a stamp changes: after any rebuild the
record is recognised as outdated, however it got there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from cargo_cow.cargo.target import Unit
from cargo_cow.filesystems import GRANULE_NS

FORMAT = 1
_PLAIN = (",", ":")

PACKAGE = 0
"""Relative to the package root."""
CHECKOUT = 1
"""Relative to the checkout's root: it lies outside the package, inside the repository."""
ABSOLUTE = 2
"""Outside the checkout."""


PRIMARY = "CARGO_PRIMARY_PACKAGE"
"""Set for packages that the command line selects: no two calls need agree on it."""


class Input(NamedTuple):
    """One input: where it lies, and the digest of what the unit was made from."""

    base: int
    path: str
    digest: str


class Timed(NamedTuple):
    """A package file as a script without declarations depends on it: mtime (ns) and contents."""

    path: str
    mtime: int
    digest: str


HiddenKind = Literal["file", "names", "missing", "existing", "variable"]


class Hidden(NamedTuple):
    """What a compile asked for behind rustc's back, as the shim observed it.

    A file and its digest, a directory and the digest of the names in it, a path that was not there
    or was, or a variable and the digest of its value (None: not set), whose ``path`` is its name.
    """

    kind: HiddenKind
    base: int
    path: str
    digest: str | None


class Record(NamedTuple):
    """What a unit was made from.

    ``package_root`` is relative to ``workspace``, or absolute where the package lies outside it.
    ``dependencies`` are (unit key, its ``invoked``).  ``env`` holds values that Cargo set and does
    not track.  ``out_dir_baked``: whether the outputs hold OUT_DIR other than in the path of an
    included file (None: OUT_DIR is not read).  ``macros``: reachable proc macros not known to be
    pure; where there are any, ``package_files`` is the digest of all files of the package (None:
    not known).  ``timed``: for a script that declares nothing, all files of its package.
    ``hidden``: what the macros of the unit really read, which then counts in place of its package's
    files (None: not observed, or not in full).
    ``seen``: what was observed where that is not all, which counts beside the package's files.
    ``linted``: clippy made it (None: not known).
    ``declared``: (name, digest) of what the package's manifest declares, see `declared`.
    ``bakes_root``: the outputs of a unit with such macros hold a path of the checkout.
    ``asks_git``: what the script's program seems to ask git (see ``outputs.asks_git``); ``head``
    and ``branch`` are what git told then, None if that is not known.

    ``checkout``, ``workspace`` and ``build_dir`` are where the compiler worked.  A clone that was
    proven elsewhere is *settled* there: its dep-info and script output name ``settled_checkout``.
    """

    invoked: int
    checkout: str
    workspace: str
    build_dir: str
    package_root: str
    inputs: tuple[Input, ...]
    dependencies: tuple[tuple[str, int], ...]
    env: tuple[tuple[str, str], ...] = ()
    out_dir_baked: bool | None = None
    macros: tuple[str, ...] = ()
    package_files: str | None = None
    timed: tuple[Timed, ...] | None = None
    bakes_root: bool = False
    asks_git: tuple[str, ...] = ()
    head: str | None = None
    branch: str | None = None
    settled_checkout: str | None = None
    settled_build_dir: str | None = None
    hidden: tuple[Hidden, ...] | None = None
    declared: tuple[tuple[str, str], ...] = ()
    seen: tuple[Hidden, ...] = ()
    linted: bool | None = None

    @property
    def observed(self) -> tuple[Hidden, ...]:
        """What the compile was seen to read behind rustc's back, in full or not."""
        return self.seen if self.hidden is None else self.hidden

    @property
    def named_checkout(self) -> str:
        """The checkout that dep-info and script output name."""
        return self.settled_checkout or self.checkout

    @property
    def named_build_dir(self) -> str:
        """The build directory the unit was last proven in."""
        return self.settled_build_dir or self.build_dir


class Observation(NamedTuple):
    """What the shim saw: digests by the path rustc named, relative to ``cwd``.

    ``hidden`` is what was read beside that, with absolute paths and ABSOLUTE as base; None where it
    is not known in full, and ``seen`` what is known then.  ``declared`` are digests of variables
    that the manifest declares (None: not set).  ``outputs`` are the unit's files where the
    warehouse gave them, by name: (digest, inode, size, mtime).
    """

    invoked: int
    cwd: str
    files: dict[str, str]
    hidden: tuple[Hidden, ...] | None = None
    declared: tuple[tuple[str, str | None], ...] = ()
    seen: tuple[Hidden, ...] = ()
    outputs: dict[str, tuple[str, int, int, int]] = {}  # noqa: RUF012  # never written to


_Stamp = tuple[int, int, int, int, int]
_read: dict[str, tuple[_Stamp, str, Record]] = {}
"""Records by path, as long as the file is the same: a switch looks at each of them four times."""


def load(unit: Unit) -> Record | None:
    """The unit's record, if there is one that speaks of the build that is on disk.

    A truncated, foreign, or later record is no record: the unit counts as not recorded.
    """
    path = unit.record_file
    try:
        status = os.stat(path)
    except OSError:
        return None
    stamp = (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    known = _read.get(path)
    if known is not None and known[:2] == (stamp, unit.key):
        made: Record | None = known[2]
    else:
        made = _parsed(unit)
        # What was written just now may be written again under the same stat.
        if made is not None and max(stamp[3:]) + GRANULE_NS < time.time_ns():
            _read[path] = (stamp, unit.key, made)
    return made if made is not None and made.invoked == unit.invoked() else None


def _parsed(unit: Unit) -> Record | None:
    try:
        with open(unit.record_file, "rb") as file:
            value = json.loads(file.read())
        if value["format"] != FORMAT or value["unit"] != unit.key:
            return None
        timed = value["timed"]
        return Record(
            int(value["invoked"]),
            str(value["checkout"]),
            str(value["workspace"]),
            str(value["build_dir"]),
            str(value["package_root"]),
            tuple(
                Input(int(base), str(path), str(digest)) for base, path, digest in value["inputs"]
            ),
            tuple((str(key), int(invoked)) for key, invoked in value["dependencies"]),
            tuple((str(key), str(text)) for key, text in value["env"]),
            value["out_dir_baked"],
            tuple(str(name) for name in value["macros"]),
            value["package_files"],
            None
            if timed is None
            else tuple(Timed(str(path), int(mtime), str(digest)) for path, mtime, digest in timed),
            bool(value["bakes_root"]),
            tuple(str(what) for what in value["asks_git"]),
            value["head"],
            value["branch"],
            value["settled_checkout"],
            value["settled_build_dir"],
            None if value.get("hidden") is None else _reads(value["hidden"]),
            tuple((str(name), str(digest)) for name, digest in value.get("declared") or ()),
            _reads(value.get("seen") or ()),
            value.get("linted"),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reads(value: Iterable[Any]) -> tuple[Hidden, ...]:
    return tuple(Hidden(kind, int(base), str(path), digest) for kind, base, path, digest in value)


def is_kept(unit: Unit, invoked: int) -> bool:
    """Whether there is a whole record of this very build, told by its beginning and its end.

    For who only wants to know whether to make one: reading all of them takes five times as long.
    """
    front = json.dumps({"format": FORMAT, "unit": unit.key, "invoked": invoked}, separators=_PLAIN)
    try:
        with open(unit.record_file, "rb") as file:
            data = file.read()
    except OSError:
        return False
    return data.startswith(front[:-1].encode("ascii") + b",") and data.endswith(b"}")


def save(unit: Unit, record: Record) -> None:
    """As `write`, for the record of ``unit``."""
    write(unit.record_file, unit.key, record)


def write(path: str, key: str, record: Record) -> None:
    """Write the record beside the fingerprint: aside, then rename.

    Not synced: a record lost or torn in a power cut is a unit that counts as not recorded.
    Raises OSError (a donor may be read-only: the caller decides).
    """
    value = {"format": FORMAT, "unit": key, **record._asdict()}
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(json.dumps(value, separators=_PLAIN))
    os.replace(temporary, path)


def load_observation(unit: Unit) -> Observation | None:
    """The shim's observation of the build that is on disk; None if there is none."""
    try:
        with open(unit.observed_file, "rb") as file:
            value = json.loads(file.read())
        if value["format"] != FORMAT or value["invoked"] != unit.invoked():
            return None
        files = {str(path): str(digest) for path, _, digest in value["files"]}
        hidden = value.get("hidden")
        reads = () if hidden is None else _hidden(hidden)
        complete = hidden is not None and hidden["complete"] is True
        declared = tuple((str(name), digest) for name, digest in value.get("declared") or ())
        outputs = {
            str(name): (str(digest), int(inode), int(size), int(time))
            for name, digest, inode, size, time in value.get("outputs") or ()
        }
        return Observation(
            int(value["invoked"]),
            str(value["cwd"]),
            files,
            reads if complete else None,
            declared,
            () if complete else reads,
            outputs,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hidden(value: dict[str, Any]) -> tuple[Hidden, ...]:
    """What the shim wrote (``native/src/shim/hidden.rs``)."""
    if value["complete"] is not True and "files" not in value:
        return ()  # an older shim
    return (
        *(Hidden("file", ABSOLUTE, str(path), str(digest)) for path, _, digest in value["files"]),
        *(
            Hidden("names", ABSOLUTE, str(path), str(digest))
            for path, digest in value["directories"]
        ),
        *(Hidden("missing", ABSOLUTE, str(path), None) for path in value["missing"]),
        *(Hidden("existing", ABSOLUTE, str(path), None) for path in value["existing"]),
        *(Hidden("variable", ABSOLUTE, str(name), digest) for name, digest in value["env"]),
    )
