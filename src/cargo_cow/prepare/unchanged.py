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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cargo_cow.cargo.target import Target, nested, unit_times
from cargo_cow.errors import CowError
from cargo_cow.filesystems import GRANULE_NS, clock
from cargo_cow.prepare import record
from cargo_cow.prepare.contents import Contents, digest_of, walk_below
from cargo_cow.prepare.place import Place, below
from cargo_cow.prepare.place import variables as variables_of
from cargo_cow.prepare.record import CHECKOUT, PACKAGE

if TYPE_CHECKING:
    from cargo_cow.prepare.mechanism import Look

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
        note = _read(build_dir)
        units: dict[str, int] = note["units"]
        return _is_true(note, place, real) and {
            real(path): known for path, known in units.items()
        } == unit_times(build_dir)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def still_holds(place: Place, target: str) -> bool:
    """Whether the note in ``target``, a state that `is_whole` was said of, is true of the checkout.

    A clone of it is then what the target at ``place`` would be, had nothing been built there since:
    whatever is stale in it, Cargo sees by its times.
    """
    try:
        return _is_true(_read(target), place, str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def is_whole(place: Place, built: int) -> bool:
    """Whether the last note speaks of the very units that are there, ``built`` of them finished,
    and of all that a proof elsewhere would ask of them.

    Who holds Cargo's lock can say so of what he takes.
    """
    try:
        note = _read(place.build_dir)
        return bool(
            note["place"] == _place(place)
            and note["all"] is True
            and note["built"] == built
            and note["units"] == unit_times(place.build_dir)
            and not nested(place.build_dir).units  # nothing is recorded of these
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _read(build_dir: str) -> dict[str, Any]:
    with open(f"{build_dir}/{NOTE}", "rb") as file:
        note: dict[str, Any] = json.loads(file.read())
    if note["format"] != record.FORMAT:
        raise ValueError(note["format"])
    return note


def _is_true(note: dict[str, Any], place: Place, real: Callable[[str], str]) -> bool:
    """Whether all but the units is as the note says.

    Raises KeyError, TypeError and AttributeError for a note of another shape.
    """
    if note["place"] != _place(place):
        return False
    inputs: dict[str, _Stat] = note["inputs"]
    if any(_stat(real(path)) != known for path, known in inputs.items()):
        return False
    directories: dict[str, _Stat] = note["directories"]
    if any(_stat(real(path), below=False) != known for path, known in directories.items()):
        return False
    names: dict[str, str] = note["names"]
    if any(_names(path, place, real) != known for path, known in names.items()):
        return False
    matches: dict[str, str] = note["matches"]
    if any(_matches(pattern, place, real) != known for pattern, known in matches.items()):
        return False
    presence: dict[str, bool] = note["presence"]
    if any(os.path.exists(real(path)) != known for path, known in presence.items()):
        return False
    known_values: dict[str, str | None] = note["variables"]
    if not known_values:
        return True
    values = variables_of(
        place._replace(checkout=real(place.checkout), workspace=real(place.workspace))
    )
    return all(_variable(name, values) == known for name, known in known_values.items())


def is_of(place: Place, build_dir: str) -> bool:
    """Whether the last build that left a note in ``build_dir`` worked at ``place``."""
    try:
        note = _read(build_dir)
        return bool(note["place"][:3] == _place(place)[:3])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def is_of_all(place: Place) -> bool:
    """Whether the last note speaks of the very builds that are there: all of them were proven or
    recorded, as far as they can be, before it was left."""
    try:
        return bool(_read(place.build_dir)["units"] == unit_times(place.build_dir))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def asks_git(build_dir: str) -> bool:
    """Whether the last note in ``build_dir`` speaks of all files of a package, which git lists."""
    try:
        return bool(_read(build_dir)["names"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Draft(NamedTuple):
    """What a note would say.  ``captured``: there is nothing left to record of any unit.

    ``recent`` are paths that were changed within the clock's granule, and so could change again
    unseen; of those whose content was compared, with its digest.
    """

    value: dict[str, Any]
    captured: bool
    recent: dict[str, str | None]


def awaits_what_is_missing(build_dir: str) -> bool:
    """Whether the last note in ``build_dir`` speaks of a file that is not there: a script that
    declares it runs on every build, and something is built although nothing changed."""
    try:
        return not all(_read(build_dir)["inputs"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def note(place: Place, units: dict[str, int] | None = None, target: Target | None = None) -> None:
    """Leave a note of what is there now.  To be called when all of it is proven or recorded.

    ``units`` are the `unit_times` of before ``target`` was read: a unit that came since makes the
    note untrue.
    """
    drafted = draft(place, units, target=target)
    if drafted is not None and not drafted.recent:
        leave(place, drafted)


def serves(place: Place, drafted: Draft) -> bool:
    """Whether a draft can be left: no unit was made since, and what had just been changed then is
    the same now that it is older than the clock's granule."""
    value = drafted.value
    if value["units"] != unit_times(place.build_dir):
        return False
    if not drafted.recent:
        return True
    try:
        newest = _settled_before(place)
    except CowError:
        return False
    contents = Contents()
    for path, digest in drafted.recent.items():
        known = _stat(path)
        if known != value["inputs"][path] or _newest(known) >= newest:
            return False
        # Read after the stat: whoever writes from here on changes that.
        if digest is not None and contents.file(path) != digest:
            return False
    return True


def draft(
    place: Place,
    units: dict[str, int] | None = None,
    found: Look | None = None,
    *,
    target: Target | None = None,
) -> Draft | None:
    """What `note` would leave now; None where there can be no note.

    ``units`` are the `unit_times` of a moment since which somebody may have begun to build.
    ``found`` is what was looked at before that moment, and is true of the target still.

    Inputs changed within the clock's granule could change again unseen (`serves`), and what a macro
    read, or may have read, is seen by nobody but us: where that is not as it was, the next proof
    has to say so.
    """
    # Not for who only asks whether it holds.
    from cargo_cow.prepare.capture import read_ledger
    from cargo_cow.prepare.packages import Packages

    units = unit_times(place.build_dir) if units is None else units
    if target is None:
        target = Target(place.build_dir) if found is None else found.target
    ledger = read_ledger(place.build_dir)
    contents = Contents.of(place.build_dir)
    captured = True
    packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
    adopted = found is not None and packages.adopt(found.packages)
    try:
        newest = _settled_before(place)
    except CowError:
        return None
    since = found.t0 if found is not None and adopted else newest
    held: dict[str, str] = {}
    inputs: dict[str, _Stat] = {}
    directories: dict[str, _Stat] = {}
    names: dict[str, str] = {}
    presence: dict[str, bool] = {}
    variables: dict[str, str | None] = {}
    values: Mapping[str, str] = _Variables(place)
    matches: dict[str, str] = {}
    built = 0
    # Whether a proof of a clone would find nothing that is not here.
    complete = True

    def add(path: str, root: str) -> None:
        """A file of a package, and the names in its directories up to the package's root."""
        inputs.setdefault(path, _stat(path))
        directory = os.path.dirname(path)
        while f"{directory}/".startswith(f"{root}/") and directory not in names:
            names[directory] = _names(directory, place, str)
            directory = os.path.dirname(directory)

    def is_blindly_fresh(is_built: bool, seen: list[tuple[str, str]]) -> bool:
        """Whether Cargo would not build a unit for what it sees: nor if it was dropped."""
        return is_built and all(contents.file(path) == digest for path, digest in seen)

    for unit in target.units:
        is_built = unit.fingerprint_hash() is not None
        built += is_built
        made = record.load(unit)
        if made is None:
            examined = ledger.units.get(unit.key) == unit.invoked()
            captured = captured and (examined or unit.is_documentation)
            spared = not is_built or ledger.spares(unit, place.registry)
            complete = complete and spared
            continue
        complete = complete and (
            not is_built  # Cargo will build it, there as here
            or (
                (made.named_checkout, made.named_build_dir) == (place.checkout, place.build_dir)
                and (not made.asks_git or _git_tells_the_same(made, place))
                and (made.hidden is not None or not made.macros)
            )
        )
        root = os.path.join(place.workspace, made.package_root).rstrip("/")
        inside = below(made.package_root, made.checkout) if made.package_root[:1] == "/" else None
        if inside is not None:
            root = os.path.join(place.checkout, inside)
        bases = {PACKAGE: root, CHECKOUT: place.checkout}
        # What Cargo sees by itself, and judges before anything that it does not.
        seen = [
            (os.path.join(bases.get(entry.base, "/"), entry.path).rstrip("/"), entry.digest)
            for entry in made.inputs
        ]
        for path, _ in seen:
            inputs.setdefault(path, _stat(path))
        if made.inputs or made.timed is not None or made.declared:
            declarations = packages.declarations
            # Here or in the manifests that will declare something.
            for path in declarations.manifests(root):
                inputs.setdefault(path, _stat(path))
            for one in declarations.of(root):
                if one.variable is not None:
                    variables[one.variable] = _variable(one.variable, values)
                    continue
                pattern = os.path.join(one.root, one.path)
                matches[pattern] = _matches(pattern, place, str)
                for path in declarations.files(one):
                    if not path.endswith("/"):
                        inputs.setdefault(path, _stat(path))
                        held[path] = contents.file(path)
            differs = declarations.difference(root, dict(made.declared), values)
            if differs is not None and is_blindly_fresh(is_built, seen):
                return None
        for timed in made.timed or ():
            add(f"{root}/{timed.path}", root)
        for hidden in made.observed:
            if hidden.kind == "variable":
                variables[hidden.path] = hidden.digest
                continue
            path = os.path.join(bases.get(hidden.base, "/"), hidden.path).rstrip("/")
            same = True
            if hidden.kind == "file":
                inputs.setdefault(path, _stat(path))
                held[path] = contents.file(path)
                same = held[path] == hidden.digest
            elif hidden.kind == "names":
                directories.setdefault(path, _stat(path, below=False))
                same = contents.names(path) == hidden.digest
            else:
                presence[path] = hidden.kind == "existing"
            if not same and is_blindly_fresh(is_built, seen):
                return None
        packaged = made.timed is not None or (made.macros and made.hidden is None)
        if made.settled_checkout is not None and packaged:
            # Held to all files of its package until Cargo compiles it here.
            digests = packages.digests(root, made.macros)
            if (
                made.macros
                and made.hidden is None
                and packages.digest_of(digests) != made.package_files
                and is_blindly_fresh(is_built, seen)
            ):
                return None
            for name, digest in digests.items():
                _, macro, beyond = name.partition(":")
                path = os.path.normpath(
                    os.path.join(place.workspace, beyond) if macro else os.path.join(root, name)
                )
                add(path, root)
                held[path] = digest
    # After their names were read: a file that was made beside those that git listed, before or
    # after that, is among the names, or the note is not true of them.
    if any(_newest(_stat(directory, below=False)) >= since for directory in names):
        return draft(place, units) if adopted else None
    if any(_newest(known) >= newest for known in directories.values()):
        return None
    recent = {path: held.get(path) for path, known in inputs.items() if _newest(known) >= newest}
    value = {
        "format": record.FORMAT,
        "place": _place(place),
        "inputs": inputs,
        "directories": directories,
        "names": names,
        "matches": matches,
        "presence": presence,
        "variables": variables,
        "units": units,
        "built": built,
        "all": complete,
    }
    return Draft(value, captured, recent)


class _Variables(Mapping[str, str]):
    """`variables_of` a place, found out when the first is asked for."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._known: Mapping[str, str] | None = None

    def _values(self) -> Mapping[str, str]:
        if self._known is None:
            self._known = variables_of(self._place)
        return self._known

    def __getitem__(self, name: str) -> str:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())


def _settled_before(place: Place) -> int:
    """What was changed before (ns) cannot change again under the same stat.  Raises CowError."""
    return clock(Path(place.build_dir)) - GRANULE_NS


def _git_tells_the_same(made: record.Record, place: Place) -> bool:
    """Whether git would tell a script here what it told it then.

    As `proof.Proof.git_reason`; of what was made and left in place, Cargo is the judge.
    """
    came = made.settled_checkout is not None or (
        (made.checkout, made.workspace, made.build_dir)
        != (place.checkout, place.workspace, place.build_dir)
    )
    return (
        made.head is not None
        and (made.head, made.branch) == (place.head, place.branch)
        and not (came and {"refs", "clean"}.intersection(made.asks_git))
    )


def leave(place: Place, drafted: Draft) -> None:
    """Leave the note.  Without it the next build proves everything once more."""
    path = f"{place.build_dir}/{NOTE}"
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(json.dumps(drafted.value, separators=(",", ":")))
        os.replace(temporary, path)
    except OSError:
        return


def _place(place: Place) -> list[str]:
    return [place.checkout, place.workspace, place.build_dir, str(place.head), str(place.branch)]


def _stat(path: str, *, below: bool = True) -> _Stat:
    try:
        status = os.stat(path)
    except OSError:
        try:
            status = os.lstat(path)  # a link that leads nowhere counts by where it leads
        except OSError:
            return []
    found = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    for entry in walk_below(path) if below and stat.S_ISDIR(status.st_mode) else ():
        for follow in (False, True):
            with contextlib.suppress(OSError):
                status = os.stat(entry, follow_symlinks=follow)
                found += [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return found


def _names(directory: str, place: Place, real: Callable[[str], str]) -> str:
    """Digest of the names in a directory, but for what we and Cargo make there."""
    try:
        found = sorted(os.fsencode(name) for name in os.listdir(real(directory)))
    except OSError:
        return ""
    ours = {b".cargo-cow"}
    if os.path.dirname(place.build_dir) == directory:
        ours.add(os.fsencode(os.path.basename(place.build_dir)))
    return digest_of(b"\0".join(name for name in found if name not in ours))


def _matches(pattern: str, place: Place, real: Callable[[str], str]) -> str:
    """Digest of the names that a declared path or pattern stands for."""
    from cargo_cow.prepare.declared import files_of

    root = real(pattern)
    found = [os.path.relpath(path, root) for path in files_of(root, real(place.build_dir))]
    return digest_of("\0".join(found).encode("utf-8", "surrogateescape"))


def _variable(name: str, values: Mapping[str, str]) -> str | None:
    value = values.get(name)
    return None if value is None else digest_of(os.fsencode(value))


def _newest(known: _Stat) -> int:
    return max((*known[2::4], *known[3::4]), default=0)
