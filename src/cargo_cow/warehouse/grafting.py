"""Grafting from the warehouse: before Cargo runs, the units that it will ask for are put there.

`plan` decides and touches nothing: which of the units that a command asks for (`planning`) are
missing, which entries of them are right here, and which of those fit together: each names the
digests of what it was built against.  `act` puts them into the target, under Cargo's lock, each
dropped before its first file changes and whole with its last, and proves the target again as it
does with units of other targets: what is not proven then is dropped, whatever was planned.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cargo_cow import filesystems, native, prepare
from cargo_cow.cargo.lock import build_lock
from cargo_cow.cargo.target import Layout, Target, Unit, unit_at
from cargo_cow.errors import CowError
from cargo_cow.filesystems import temporaries
from cargo_cow.filesystems.failures import translated
from cargo_cow.prepare import grafting, proof, record, stamp
from cargo_cow.prepare.contents import Contents
from cargo_cow.prepare.grafting import Build, Graft
from cargo_cow.prepare.packages import Packages
from cargo_cow.prepare.place import Place
from cargo_cow.prepare.proof import Drop, Proof
from cargo_cow.prepare.record import Hidden, Input, Record, Timed
from cargo_cow.telling import silent
from cargo_cow.warehouse import store
from cargo_cow.warehouse.planning import Asked
from cargo_cow.warehouse.surroundings import Surroundings, around
from cargo_cow.warehouse.units import FORMAT, Memo, key_of, variable_now

if TYPE_CHECKING:
    import threading

NEVER_KEPT = "it was never kept"
"""The reason for a unit of which there is no entry at all."""
_ASIDE = ".cargo-cow"
_NAME = "graft"


class Source:
    """The store, and what is around the target; the latter is looked at when it is first asked
    for, and that is where all else is right: it takes a process."""

    def __init__(self, root: Path, copies: bool, place: Place, cwd: Path, asked: Asked) -> None:
        self.root = root
        self.copies = copies
        self._place = place
        self._cwd = cwd
        self._asked = asked
        self._begun: threading.Thread | None = None
        self._found: Surroundings | CowError | None = None

    def begin(self) -> None:
        """Look around while something else is done."""
        import threading

        self._begun = threading.Thread(target=self._look, daemon=True)
        self._begun.start()

    def end(self) -> None:
        """Wait for what was begun: who forks has no other threads."""
        if self._begun is not None:
            self._begun.join()

    def _look(self) -> None:
        asked = self._asked
        profiles = {key.rpartition("/")[0] for key, _ in asked.units}
        try:
            self._found = around(
                self._place.build_dir, self._cwd, asked.rustc, asked.toolchain, profiles
            )
        except CowError as error:
            self._found = error

    def is_own(self) -> bool:
        """Whether the store is there, and this user's alone: nothing is read of another one."""
        try:
            return store.is_own(self.root.lstat())
        except OSError:
            return False

    @functools.cached_property
    def around(self) -> Surroundings | None:
        """None where the store is not to be used.  Raises CowError."""
        if self._begun is None:
            self._look()
        self.end()
        found = self._found
        if isinstance(found, CowError):
            raise found
        # Another store serves the target by now: nothing is taken from this one.
        return found if found is not None and found.root == self.root else None


class Found(NamedTuple):
    """An entry of a unit, as far as it counts here.

    ``dependencies`` are (unit key, digest of what that made); ``digest`` is its own.
    ``shares_names``: see ``Unit``.
    """

    path: Path
    key: str
    stem: str
    invoked: int
    digest: str
    dependencies: tuple[tuple[str, str], ...]
    record: Record | None
    outputs: tuple[str, ...]
    seconds: float
    shares_names: bool = False


class Missing(NamedTuple):
    """A unit that is not there and cannot be given, with the nearest reason."""

    key: str
    reason: str


class GraftPlan(NamedTuple):
    """What to put into a target, dependencies first, as plain data.

    ``fresh`` counts units that are there already.
    """

    layout: Layout
    asked: int
    fresh: int
    chosen: tuple[Found, ...]
    missing: tuple[Missing, ...]
    source: Source


class Grafted(NamedTuple):
    """What was done: keys of the units that are whole and proven now, files, bytes, seconds."""

    keys: frozenset[str]
    files: int
    reflinked_bytes: int
    copied_bytes: int
    copied_reason: str | None
    seconds: float
    notes: tuple[str, ...]


def plan(place: Place, asked: Asked, source: Source, judged: proof.Plan | None = None) -> GraftPlan:
    """Which entries to put into the place's target for what is asked.  Reads files only.

    ``judged`` is what a proof said of the target as it is.  Raises CowError.
    """
    with translated("looking into the warehouse for", Path(place.build_dir)):
        return _Choice(place, asked, source, judged).plan()


class _Choice:
    """The entries of what is asked for, judged for one place."""

    def __init__(
        self, place: Place, asked: Asked, source: Source, judged: proof.Plan | None
    ) -> None:
        self._place = place
        self._asked = asked
        self._source = source
        self._target = Target(place.build_dir)
        contents = Contents.of(place.build_dir)
        packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
        # Whatever comes from the store comes from elsewhere: all of its record counts.
        self._proof = Proof(self._target, place, contents, packages, True, {})
        self._memo = Memo(place.build_dir, source.root)
        self._units = {unit.key: unit for unit in self._target.units}
        self._good = {
            verdict.key
            for verdict in (judged.verdicts if judged is not None else ())
            if verdict.status in ("proven", "kept")
        }
        self._reasons: dict[str, str] = {}
        self._entries: dict[str, list[tuple[Found, dict[str, Any]]]] = {}

    def plan(self) -> GraftPlan:
        wanted = [(key, stem) for key, stem in self._asked.units if key not in self._good]
        offers = [dict[str, Build]()]
        entries: list[dict[str, Found]] = [{}]
        for key, stem in wanted:
            for index, entry in enumerate(self._right(key, stem)):
                if index == len(offers):
                    offers.append({})
                    entries.append({})
                offers[index][key] = Build(
                    _number(entry.digest),
                    tuple((name, _number(digest)) for name, digest in entry.dependencies),
                )
                entries[index][key] = entry
        live = self._live()
        names = [key for key, _ in self._asked.units]
        chosen = grafting.choose(names, live, offers)
        ordered: list[Found] = []
        done: set[str] = set()

        def visit(key: str) -> None:
            at = chosen.get(key, -1)
            if at < 0 or key in done:
                return
            done.add(key)
            entry = entries[at][key]
            for name, _ in entry.dependencies:
                visit(name)
            ordered.append(entry)

        for key, _ in wanted:
            visit(key)
        missing = tuple(
            Missing(key, self._why(key, bool(offers[0].get(key))))
            for key, _ in wanted
            if key not in done and key not in live
        )
        fresh = len(names) - len(wanted)
        return GraftPlan(
            self._asked.layout, len(names), fresh, tuple(ordered), missing, self._source
        )

    def _live(self) -> dict[str, Build]:
        """The units of the target that are right, and known by what they made."""
        found: dict[str, Build] = {}
        for key in self._good:
            unit = self._units.get(key)
            digest = None if unit is None else self._memo.digest(unit)
            if digest is not None:
                found[key] = Build(_number(digest), ())
        return found

    def _why(self, key: str, is_right: bool) -> str:
        if is_right:
            return "it was built against other builds of what it depends on"
        return self._reasons.get(key, NEVER_KEPT)

    def _right(self, key: str, stem: str) -> list[Found]:
        """All entries of a unit that are right here if their dependencies are, newest first."""
        right = []
        for entry, value in self._kept(key):
            try:
                reason = self._differs(entry, value, stem)
            except (KeyError, TypeError, ValueError):
                continue
            if reason is None:
                right.append(entry)
            else:
                self._reasons.setdefault(key, reason)
        return right

    def _kept(self, key: str) -> list[tuple[Found, dict[str, Any]]]:
        """All entries of a unit that can be read, newest first."""
        known = self._entries.get(key)
        if known is None:
            digest = key_of(self._asked.layout, key)
            known = self._entries[key] = []
            for path in _by_use(self._source.root / "units" / digest[:2] / digest):
                # Of another shape, or damaged; its files are checked when it is given out.
                with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
                    value = store.read(path)
                    if store.is_foreign(value):
                        continue
                    known.append((_found(path, value), value))
        return known

    def _may_write(self, run: Found) -> bool:
        """Whether a script's run left something in its package that is not there as it was.

        No declared input tells.  Told by the units of the package that were built against it;
        where there is none, nothing is known.
        """
        package = _package(run.key)
        records = [
            entry.record
            for key, _ in self._asked.units
            if _package(key) == package and key != run.key
            for entry, _ in self._kept(key)
            if (run.key, run.digest) in entry.dependencies and entry.record is not None
        ]
        return not records or any(self._proof.written(made) is not None for made in records)

    def _differs(self, entry: Found, value: dict[str, Any], stem: str) -> str | None:
        """Why an entry is not right here; None if it is."""
        if value["unit_format"] != FORMAT or entry.stem != stem or entry.key != value["unit"]:
            return "its entry is of an unknown form"
        if value["bound"] and value["build_dir"] != self._place.build_dir:
            return f"its outputs hold the path {value['build_dir']}"
        for name, digest in value["variables"]:
            if variable_now(name, self._proof.variables) != digest:
                return f"the variable {name} differs"
        for path, digest in value["declared"]:
            if self._proof.contents.file(path) != digest:
                return f"{path} differs"
        unit = unit_at(self._place.build_dir, self._asked.layout, entry.key, stem)
        if _is_disputed(entry, unit, self._target.units) or self._is_asked_twice(entry):
            return "its files have names that other units have, too"
        made = entry.record
        if made is not None:
            reason = self._proof.own_reason(unit, made)
            if reason is not None:
                return str(reason)
            if unit.is_script_run and self._proof.is_local(made) and self._may_write(entry):
                return "its script may have written files that are not here"
        return self._elsewhere(entry, value)

    def _elsewhere(self, entry: Found, value: dict[str, Any]) -> str | None:
        """What around the target is not as it was for an entry; None if all is."""
        here = self._source.around
        if here is None:
            return "the store is not to be used here"
        triple = entry.key.rpartition("/")[0].rpartition("/")[0]
        now = {
            "compiler": here.compilers.get(triple),
            "linking": here.linking,
            "tools": here.tools,
            "variables": here.variables,
            "processor": here.processor,
        }
        for name, digest in value["needs"].items():
            if digest is None or now.get(name) != digest:
                return _OTHER.get(name, f"{name} differs")
        return None

    def _is_asked_twice(self, entry: Found) -> bool:
        """Whether another unit that is asked for may have files of the same names."""
        return entry.shares_names and any(
            stem == entry.stem
            and key != entry.key
            and key.rpartition("/")[0] == entry.key.rpartition("/")[0]
            for key, stem in self._asked.units
        )


def _is_disputed(entry: Found, unit: Unit, units: Iterable[Unit]) -> bool:
    """Whether an entry, as ``unit``, would take away files of a unit that is there."""
    return entry.shares_names and any(other.may_write_for(unit) for other in units)


def _package(key: str) -> str:
    return key.rpartition("/")[2].rpartition("-")[0]


_OTHER = {
    "compiler": "the compiler is another one, whatever it says",
    "linking": "the linker or a system library is another one",
    "tools": "tools, headers or variables that scripts go by are others",
    "variables": "variables that its macros may read are others",
    "processor": "the processor is another one",
}


def _number(digest: str) -> int:
    return int(digest[:24], 16)


def _by_use(directory: Path) -> Iterator[Path]:
    """Entries in a key's directory, the one used last first."""
    found = []
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                found.append(((path / "entry.json").stat().st_mtime, path))
    for _, path in sorted(found, reverse=True):
        yield path


def _found(path: Path, value: dict[str, Any]) -> Found:
    made = value["record"]
    names = [str(output[0]) for output in value["outputs"]]
    names += [str(link[0]) for link in value["links"]]
    return Found(
        path,
        str(value["unit"]),
        str(value["stem"]),
        int(value["invoked"]),
        str(value["digest"]),
        tuple((str(name), str(digest)) for name, digest in value["dependencies"]),
        None if made is None else _record(made),
        tuple(names),
        float(value["seconds"]),
        bool(value.get("shares_names", False)),
    )


def _record(value: dict[str, Any]) -> Record:
    made = Record(**value)
    return made._replace(
        inputs=tuple(Input(*entry) for entry in made.inputs),
        dependencies=tuple((str(key), int(at)) for key, at in made.dependencies),
        env=tuple((str(name), str(text)) for name, text in made.env),
        macros=tuple(made.macros),
        timed=None if made.timed is None else tuple(Timed(*entry) for entry in made.timed),
        asks_git=tuple(made.asks_git),
        hidden=None if made.hidden is None else tuple(Hidden(*entry) for entry in made.hidden),
        declared=tuple((str(name), str(digest)) for name, digest in made.declared),
        seen=tuple(Hidden(*entry) for entry in made.seen),
    )


# -- acting


def act(
    place: Place,
    wanted: GraftPlan,
    *,
    wait: bool = True,
    say: Callable[[str], None] = silent,
) -> Grafted:
    """Put the chosen units into the place's target, and prove it.

    Takes Cargo's lock.  Raises CowError (Locked without ``wait``); a unit is as it was, dropped, or
    whole then.
    """
    started = time.monotonic()
    target = Path(place.build_dir)
    with translated("grafting into", target):
        _mark_all(target, wanted)
        (target / _ASIDE).mkdir(exist_ok=True)
        t0 = prepare.stamp_time(target)
        with build_lock(
            place.build_dir,
            wait=wait,
            waiting=lambda path: say(f"waiting for Cargo's build lock ({path})"),
        ):
            return _act(place, wanted, t0, started)


def mark(place: Place, wanted: GraftPlan) -> None:
    """Make the directories that Cargo locks for what is to be put there.  Raises CowError."""
    with translated("grafting into", Path(place.build_dir)):
        _mark_all(Path(place.build_dir), wanted)


def _mark_all(target: Path, wanted: GraftPlan) -> None:
    for name in {entry.key.rpartition("/")[0] for entry in wanted.chosen}:
        _mark(target / name, wanted.layout)


def _mark(directory: Path, layout: Layout) -> None:
    """Make a profile's directory one for Cargo and for us: with what is locked in it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".cargo-lock").touch()
    (directory / ("build" if layout == "new" else ".fingerprint")).mkdir(exist_ok=True)


def _act(place: Place, wanted: GraftPlan, t0: int, started: float) -> Grafted:
    target = Path(place.build_dir)
    aside = target / _ASIDE
    filesystems.remove_stale(aside, _NAME)
    staged = filesystems.temporary_sibling(aside / _NAME)
    keys: set[str] = set()
    notes: list[str] = []
    found = wanted.source
    try:
        # Held while we live: it is not what somebody who was killed left behind.
        temporaries.make(staged, staged.mkdir)
        answer = native.give_units(
            {
                "root": str(found.root),
                "copies": found.copies,
                "target": place.build_dir,
                "to": str(staged),
                "time": t0,
                "units": [
                    {
                        "directory": str(entry.path),
                        "invoked": [_invoked_name(entry), entry.invoked],
                    }
                    for entry in wanted.chosen
                ],
            }
        )
        given = {
            entry.key: entry
            for entry, reason in zip(wanted.chosen, answer["given"], strict=True)
            if reason is None
        }
        notes += sorted({str(reason) for reason in answer["given"] if reason is not None})
        units = {unit.key: unit for unit in Target(str(target)).units}
        for entry in wanted.chosen:
            if entry.key in given and _fits(entry, units, keys, wanted, str(target)):
                _install(entry, wanted.layout, given, units, staged, target)
                keys.add(entry.key)
    finally:
        with contextlib.suppress(CowError):  # swept up by the next one
            filesystems.remove_target(staged)
    contents = Contents.of(place.build_dir)
    packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
    judged = proof.prove(
        Target(place.build_dir), place, contents, packages, cloned=False, grafted=frozenset(keys)
    )
    stamp.apply(judged, t0, contents)
    contents.save()
    dropped = {
        verdict.key for verdict in judged.verdicts if verdict.status in ("unproven", "dirty")
    }
    proven = frozenset(keys - dropped)
    memo = Memo(place.build_dir, found.root)
    memo.units.update(
        (entry.key, (entry.invoked, entry.digest)) for entry in wanted.chosen if entry.key in proven
    )
    memo.save()
    seconds = time.monotonic() - started
    saved = sum(entry.seconds for entry in wanted.chosen if entry.key in proven)
    done = Grafted(
        proven,
        int(answer["files"]),
        int(answer["reflinked"]),
        int(answer["copied"]),
        answer["copied_reason"],
        seconds,
        tuple(notes),
    )
    _tell(found.root, done, saved)
    return done


def _fits(
    entry: Found,
    units: Mapping[str, Unit],
    keys: set[str],
    wanted: GraftPlan,
    target: str,
) -> bool:
    """Whether all that it was built against is there now: given with it, or there before."""
    chosen = {one.key for one in wanted.chosen}
    unit = unit_at(target, wanted.layout, entry.key, entry.stem)
    if _is_disputed(entry, unit, units.values()):
        return False  # built since that was planned
    return all(name in keys if name in chosen else name in units for name, _ in entry.dependencies)


def _invoked_name(entry: Found) -> str | None:
    return next((name for name in entry.outputs if name.endswith("/invoked.timestamp")), None)


def _install(
    entry: Found,
    layout: Layout,
    given: Mapping[str, Found],
    units: Mapping[str, Unit],
    staged: Path,
    target: Path,
) -> None:
    unit = unit_at(str(target), layout, entry.key, entry.stem)
    made = entry.record
    if made is not None:
        # Builds of another target: here they go by other times.
        times = {name: one.invoked for name, one in given.items()}
        for name, _ in made.dependencies:
            if name not in times and name in units:
                times[name] = units[name].invoked() or 0
        made = made._replace(
            dependencies=tuple((name, times.get(name, at)) for name, at in made.dependencies),
            # Held to all its inputs until Cargo compiles it here, wherever it was made.
            settled_checkout=made.named_checkout,
            settled_build_dir=made.named_build_dir,
        )
        record_file = f"{staged}/{unit.record_file[len(str(target)) + 1 :]}"
        record.write(record_file, entry.key, made)
    old = units.get(entry.key)
    grafting.install(
        Graft(
            entry.key,
            _parts(entry, unit, str(target)),
            (),
            (),
            (),
            unit.record_file[len(str(target)) + 1 :],
            made,
            None if old is None else Drop(old.hash_file, old.reference_file),
        ),
        staged,
        target,
    )


def _parts(entry: Found, unit: Unit, target: str) -> tuple[str, ...]:
    """What is renamed into place: whole directories where they are the unit's own, then files; the
    fingerprint last."""
    own = [f"{unit.run_directory}", unit.directory]
    if unit.profile.layout == "new":
        own = [os.path.dirname(unit.directory)]
    roots = [path[len(target) + 1 :] for path in own]
    loose = [
        name for name in entry.outputs if not any(name.startswith(f"{root}/") for root in roots)
    ]
    present = [root for root in roots if any(name.startswith(f"{root}/") for name in entry.outputs)]
    return (*loose, *present)


def _tell(root: Path, done: Grafted, saved: float) -> None:
    """One line to the store's diary."""
    event = {
        "time": time.time(),
        "what": "grafted",
        "units": len(done.keys),
        "seconds": done.seconds,
        "reflinked": done.reflinked_bytes,
        "copied": done.copied_bytes,
        "copied_reason": done.copied_reason,
        "compile_seconds": saved,
    }
    with contextlib.suppress(OSError):
        store.tell(root, event)
