"""Whether anything changed since the last build: told by stats alone, in a few milliseconds.

The proof of a target in which nothing changed has nothing to do, and neither has capture after a
Cargo that built nothing.  Both would read one record per unit to find that out.  So a build leaves
a note: when each unit was made, and the stat of every input.  As long as all of it is the same, the
proof would say what it said, for it knows files by the same stats (``contents``).
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from cargo_cow.cargo.target import Target, unit_times
from cargo_cow.filesystems import GRANULE_NS, clock
from cargo_cow.prepare import record
from cargo_cow.prepare.contents import Contents, digest_of, walk_below
from cargo_cow.prepare.place import Place, below
from cargo_cow.prepare.record import CHECKOUT, PACKAGE

NOTE = ".cargo-cow/unchanged.json"

_Stat = list[int]
"""``[inode, size, mtime, ctime]`` of a file, the same and those of all below for a directory,
``[]`` for what does not exist."""


def holds(place: Place, real: Callable[[str], str] = str) -> bool:
    """Whether the last note says what is there now.

    ``real`` gives the path at which we find what the note, and ``place``, call otherwise.
    """
    build_dir = real(place.build_dir)
    try:
        with open(f"{build_dir}/{NOTE}", "rb") as file:
            note = json.loads(file.read())
        if note["format"] != record.FORMAT or note["place"] != _place(place):
            return False
        inputs: dict[str, _Stat] = note["inputs"]
        if any(_stat(real(path)) != known for path, known in inputs.items()):
            return False
        directories: dict[str, _Stat] = note["directories"]
        if any(_stat(real(path), below=False) != known for path, known in directories.items()):
            return False
        presence: dict[str, bool] = note["presence"]
        if any(os.path.exists(real(path)) != known for path, known in presence.items()):
            return False
        variables: dict[str, str | None] = note["variables"]
        if any(_variable(name) != known for name, known in variables.items()):
            return False
        units: dict[str, int] = note["units"]
        return {real(path): known for path, known in units.items()} == unit_times(build_dir)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_of(place: Place, build_dir: str) -> bool:
    """Whether the last build that left a note in ``build_dir`` worked at ``place``."""
    try:
        with open(f"{build_dir}/{NOTE}", "rb") as file:
            note = json.loads(file.read())
        return bool(note["place"][:3] == _place(place)[:3])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def note(place: Place) -> None:
    """Leave a note of what is there now.  To be called when all of it is proven or recorded.

    Inputs changed within the clock's granule could change again unseen: then there is no note.
    """
    from cargo_cow.prepare.packages import Packages  # not for who only asks whether it holds

    target = Target(place.build_dir)
    packages = Packages(place.checkout, place.workspace, place.build_dir, Contents())
    inputs: dict[str, _Stat] = {}
    directories: dict[str, _Stat] = {}
    presence: dict[str, bool] = {}
    variables: dict[str, str | None] = {}
    for unit in target.units:
        made = record.load(unit)
        if made is None:
            continue
        root = os.path.join(place.workspace, made.package_root).rstrip("/")
        inside = below(made.package_root, made.checkout) if made.package_root[:1] == "/" else None
        if inside is not None:
            root = os.path.join(place.checkout, inside)
        bases = {PACKAGE: root, CHECKOUT: place.checkout}
        for entry in made.inputs:
            path = os.path.join(bases.get(entry.base, "/"), entry.path).rstrip("/")
            inputs.setdefault(path, _stat(path))
        for timed in made.timed or ():
            path = f"{root}/{timed.path}"
            inputs.setdefault(path, _stat(path))
        for hidden in made.hidden or ():
            if hidden.kind == "variable":
                variables[hidden.path] = hidden.digest
                continue
            path = os.path.join(bases.get(hidden.base, "/"), hidden.path).rstrip("/")
            if hidden.kind == "file":
                inputs.setdefault(path, _stat(path))
            elif hidden.kind == "names":
                directories.setdefault(path, _stat(path, below=False))
            else:
                presence[path] = hidden.kind == "existing"
        packaged = made.timed is not None or (made.macros and made.hidden is None)
        if made.settled_checkout is not None and packaged:
            # Held to all files of its package until Cargo compiles it here.
            for name in packages.digests(root, made.macros):
                _, macro, beyond = name.partition(":")
                path = os.path.normpath(
                    os.path.join(place.workspace, beyond) if macro else os.path.join(root, name)
                )
                inputs.setdefault(path, _stat(path))
                directory = os.path.dirname(path)
                while f"{directory}/".startswith(f"{root}/"):
                    directories.setdefault(directory, _stat(directory, below=False))
                    directory = os.path.dirname(directory)
    try:
        newest = clock(Path(place.build_dir)) - GRANULE_NS
        if any(_newest(known) >= newest for known in (*inputs.values(), *directories.values())):
            return
        value = {
            "format": record.FORMAT,
            "place": _place(place),
            "inputs": inputs,
            "directories": directories,
            "presence": presence,
            "variables": variables,
            "units": unit_times(place.build_dir),
        }
        path = f"{place.build_dir}/{NOTE}"
        temporary = f"{path}.{os.getpid()}.tmp"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(value, file, separators=(",", ":"))
        os.replace(temporary, path)
    except OSError:
        return


def _place(place: Place) -> list[str]:
    return [place.checkout, place.workspace, place.build_dir, str(place.head), str(place.branch)]


def _stat(path: str, *, below: bool = True) -> _Stat:
    try:
        status = os.stat(path)
    except OSError:
        return []
    found = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    for entry in walk_below(path) if below and stat.S_ISDIR(status.st_mode) else ():
        for follow in (False, True):
            with contextlib.suppress(OSError):
                status = os.stat(entry, follow_symlinks=follow)
                found += [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return found


def _variable(name: str) -> str | None:
    value = os.environ.get(name)
    return None if value is None else digest_of(os.fsencode(value))


def _newest(known: _Stat) -> int:
    return max((*known[2::4], *known[3::4]), default=0)
