"""Grafting: units that another target of the project has as they would be built here.

What a branch switch lets Cargo rebuild is often still there: in a state, or in the target of
another checkout.  A *build* of a unit is named by its key and the start of its compiler
(``invoked``), wherever it lies; a record names the very builds of its dependencies.  So builds of
several targets fit together exactly where these names agree, and nothing is grafted that does not.

`plan` decides and touches nothing.  `act` clones the files of all chosen units aside, stamped, and
lets them take their places, dependencies first, each unit dropped before its first file changes
and whole with its last.  Fingerprints are those that Cargo wrote.  The caller proves the target
again afterwards: what is not proven then is dropped, whatever was planned.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cargo_cow import filesystems
from cargo_cow.cargo.lock import build_lock
from cargo_cow.cargo.target import Profile, Session, Target, Unit, crate_of, mtime, sessions
from cargo_cow.errors import CowError, Locked, UnknownFormat
from cargo_cow.prepare import identity, proof, record, stamp
from cargo_cow.prepare.contents import Contents
from cargo_cow.prepare.packages import Packages
from cargo_cow.prepare.place import Place
from cargo_cow.prepare.proof import HOPELESS, Drop, Proof, Rewrite, Verdict
from cargo_cow.prepare.record import Record
from cargo_cow.prepare.sources import Source

_ASIDE = ".cargo-cow"
_NAME = "graft"


class Build(NamedTuple):
    """One build of a unit that would be right here if its dependencies were: (key, invoked)."""

    invoked: int
    dependencies: tuple[tuple[str, int], ...]


class Graft(NamedTuple):
    """One unit to be taken: its files relative to both build directories, and what to do to them.

    ``stamp`` and ``rewrites`` are relative as well; ``settled`` is the record it gets.
    """

    key: str
    parts: tuple[str, ...]
    incremental: tuple[str, ...]
    stamp: tuple[str, ...]
    rewrites: tuple[Rewrite, ...]
    record_file: str
    settled: Record | None
    replaces: Drop | None


class Taking(NamedTuple):
    """What is taken from one source, dependencies first."""

    source: Source
    grafts: tuple[Graft, ...]


class GraftPlan(NamedTuple):
    """What to graft, as plain data.  ``lacking`` are missing units that no source has."""

    takings: tuple[Taking, ...]
    lacking: tuple[str, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(graft.key for taking in self.takings for graft in taking.grafts)


class Grafted(NamedTuple):
    """What was grafted: keys of units, files cloned, and notes about sources that could not be."""

    keys: frozenset[str]
    files: int
    notes: tuple[str, ...]


def wanted(verdicts: Iterable[Verdict], here: Proof) -> tuple[str, ...]:
    """Keys of units that Cargo will build again, and that another target might spare it.

    Left out is what Cargo builds on every build because of a script that it always reruns.
    """
    found = {verdict.key: verdict for verdict in verdicts}
    hopeless: dict[str, bool] = {}

    def is_hopeless(key: str) -> bool:
        known = hopeless.get(key)
        if known is None:
            hopeless[key] = False
            verdict = found.get(key)
            reason = verdict.reason if verdict is not None else None
            known = reason is not None and reason.code in HOPELESS
            if not known:
                made = here.record(key)
                below = made.dependencies if made is not None else ()
                known = any(is_hopeless(name) for name, _ in below)
            hopeless[key] = known
        return known

    return tuple(
        key
        for key, verdict in found.items()
        if verdict.status in ("unproven", "dirty") and not is_hopeless(key)
    )


# -- choosing


def choose(
    universe: Iterable[str], live: Mapping[str, Build], offers: Sequence[Mapping[str, Build]]
) -> dict[str, int]:
    """Which target each unit of ``universe`` is best taken from: -1 for the live one, or an index
    into ``offers``; a unit that nobody has, together with its dependencies, is not in the answer.

    All builds of the answer fit together: every dependency of each is the build that is chosen.
    What is live stays, unless more units are spared by another source's builds going first.
    """
    possible = _possible([live, *offers])
    live = {key: build for key, build in live.items() if (key, build.invoked) in possible}
    offers = [
        {key: build for key, build in offer.items() if (key, build.invoked) in possible}
        for offer in offers
    ]
    had = {key for builds in (live, *offers) for key in builds}
    names = [name for name in dict.fromkeys(universe) if name in had]
    best: dict[str, int] = {}
    score = -1
    orders = [[-1, *range(len(offers))]]
    orders += [
        [first, -1, *(index for index in range(len(offers)) if index != first)]
        for first in range(len(offers))
    ]
    for order in orders:
        found = _fill(names, order, live, offers)
        count = sum(name in found for name in names)
        if count > score:
            best, score = found, count
        if score == len(names):
            break
    return best


def _possible(targets: Sequence[Mapping[str, Build]]) -> set[tuple[str, int]]:
    """Builds all of whose dependencies some target has, and theirs in turn."""
    builds: dict[tuple[str, int], Build] = {}
    for target in targets:
        for key, build in target.items():
            builds.setdefault((key, build.invoked), build)
    known: dict[tuple[str, int], bool] = {}

    def is_possible(name: tuple[str, int]) -> bool:
        found = known.get(name)
        if found is None:
            known[name] = False  # Cargo's graph has no cycles; a damaged one may
            build = builds.get(name)
            found = build is not None and all(is_possible(other) for other in build.dependencies)
            known[name] = found
        return found

    return {name for name in builds if is_possible(name)}


def _fill(
    names: Sequence[str],
    order: Sequence[int],
    live: Mapping[str, Build],
    offers: Sequence[Mapping[str, Build]],
) -> dict[str, int]:
    """Take every build that fits, targets in ``order``: those of the first before those of the
    second."""
    chosen: dict[str, int] = {}

    def of(index: int) -> Mapping[str, Build]:
        return live if index < 0 else offers[index]

    def place(key: str, invoked: int | None, first: Sequence[int], journal: list[str]) -> bool:
        at = chosen.get(key)
        if at is not None:
            return invoked is None or of(at)[key].invoked == invoked
        for index in first:
            known = of(index).get(key)
            if known is None or (invoked is not None and known.invoked != invoked):
                continue
            mark = len(journal)
            chosen[key] = index
            journal.append(key)
            if all(place(name, when, order, journal) for name, when in known.dependencies):
                return True
            while len(journal) > mark:
                del chosen[journal.pop()]
        return False

    for index in order:
        for name in names:
            if name not in chosen:
                place(name, None, (index,), [])
    return chosen


# -- planning


class _Offering:
    """What one source has for a place, found out unit by unit."""

    def __init__(
        self,
        source: Source,
        place: Place,
        contents: Contents,
        packages: Packages,
        here: Proof,
    ) -> None:
        self.source = source
        self._here = here
        self.target = Target(str(source.target))
        self.proof = Proof(self.target, place, contents, packages, True, {})
        self.builds: dict[str, Build] = {}
        self._refused: set[str] = set()

    def build(self, key: str) -> Build | None:
        """The source's build of a unit, if it would be proven here were its dependencies."""
        if key in self._refused:
            return None
        known = self.builds.get(key)
        if known is not None:
            return known
        found = self._examine(key)
        if found is None:
            self._refused.add(key)
        else:
            self.builds[key] = found
        return found

    def _examine(self, key: str) -> Build | None:
        unit = self.proof.units.get(key)
        if unit is None or unit.is_documentation or unit.fingerprint_hash() is None:
            return None
        invoked = unit.invoked()
        if invoked is None or (unit.shares_names and self._is_shared(unit)):
            return None
        if self._torn(unit):
            return None
        made = self.proof.record(key)
        if made is None:
            # Nothing is known of what it was built against: only the very build that was here, or
            # where there is none.
            old = self._here.units.get(key)
            if old is not None and old.invoked() not in (None, invoked):
                return None
            verdict = self.proof.unrecorded(unit)
            return Build(invoked, ()) if verdict.status == "kept" else None
        try:
            reason = self.proof.own_reason(unit, made)
        except UnknownFormat:
            return None
        if reason is not None or (unit.is_script_run and self._may_write(key)):
            return None
        return Build(invoked, made.dependencies)

    def _may_write(self, key: str) -> bool:
        """Whether a script's run left something beside OUT_DIR that is not there any more.

        A switch leaves what git ignores as the last run made it.  Told by the units of the package
        that were built after it; where there is none, nothing is known.
        """
        package = self.proof.units[key].package
        known = False
        for unit in self.target.units:
            if unit.package != package or unit.is_script_run or unit.is_documentation:
                continue
            made = self.proof.record(unit.key)
            if made is not None and any(name == key for name, _ in made.dependencies):
                known = True
                if self.proof.written(made) is not None:
                    return True
        return not known

    def _torn(self, unit: Unit) -> bool:
        """Whether a state may hold only part of a unit: it was being built when it was taken."""
        if self.source.taken is None:
            return False
        since = self.source.taken - filesystems.GRANULE_NS
        return any((mtime(path) or 0) >= since for path in (unit.hash_file, unit.invoked_file))

    def _is_shared(self, unit: Unit) -> bool:
        """Whether another unit, there or here, may have written the outputs that carry no hash."""
        return any(
            other.may_write_for(unit)
            for target in (self.target, self._here.target)
            for other in target.units
        )


def plan(
    target: Target,
    place: Place,
    contents: Contents,
    packages: Packages,
    judged: proof.Plan,
    sources: Sequence[Source],
    *,
    cloned: bool,
) -> GraftPlan:
    """What to take from ``sources`` (nearest first) into ``target``, which ``judged`` was found of.

    ``cloned``: the target is a clone that is not published yet.  Reads files only.
    """
    here = Proof(target, place, contents, packages, cloned, {})
    missing = wanted(judged.verdicts, here)
    if not missing or not sources:
        return GraftPlan((), missing)
    live = _live(judged, here)
    offerings = _offerings(place, contents, packages, sources, missing, here)
    _examine(live, offerings, missing)
    serving = [offering for offering in offerings if offering.builds]
    if not serving:
        return GraftPlan((), missing)
    universe = [verdict.key for verdict in judged.verdicts if verdict.status != "unknown"]
    chosen = choose(universe, live, [offering.builds for offering in serving])
    takings = []
    for index, offering in enumerate(serving):
        keys = [key for key, at in chosen.items() if at == index]
        if keys:
            takings.append(Taking(offering.source, _grafts(keys, offering, here)))
    return GraftPlan(tuple(takings), tuple(key for key in missing if key not in chosen))


def _live(judged: proof.Plan, here: Proof) -> dict[str, Build]:
    """The builds of the target itself that are right here, if their dependencies are."""
    found: dict[str, Build] = {}
    for verdict in judged.verdicts:
        unit = here.units[verdict.key]
        invoked = unit.invoked()
        if verdict.status == "unknown" or invoked is None:
            continue
        made = here.record(verdict.key)
        if verdict.status in ("proven", "kept"):
            found[verdict.key] = Build(invoked, made.dependencies if made is not None else ())
        elif made is not None and verdict.reason is not None:
            code = verdict.reason.code
            if code == "dependency-unproven" or (
                code == "dependency" and here.own_reason(unit, made) is None
            ):
                found[verdict.key] = Build(invoked, made.dependencies)
    return found


def _offerings(
    place: Place,
    contents: Contents,
    packages: Packages,
    sources: Sequence[Source],
    missing: Sequence[str],
    here: Proof,
) -> list[_Offering]:
    """The sources that have another build of anything that is missing."""
    own = {
        key: unit.invoked() if unit.fingerprint_hash() is not None else None
        for key in missing
        if (unit := here.units[key])
    }
    seen: set[tuple[str, int]] = set()
    found = []
    for source in sources:
        if source.builds is not None:
            news = {
                (key, source.builds[key])
                for key in missing
                if key in source.builds and source.builds[key] != own[key]
            } - seen
            if not news:
                continue
            # A build that was looked at in one place is the same in every other.
            seen |= news
        found.append(_Offering(source, place, contents, packages, here))
    return found


def _examine(
    live: Mapping[str, Build], offerings: Sequence[_Offering], missing: Sequence[str]
) -> None:
    """Look at every build that may be needed: what is missing, and what that depends on.

    Where a source was built against another build of something that is live and right, its own
    builds of all that depends on it are looked at, too: then the whole may be taken.
    """
    above: dict[str, list[str]] = {}
    for key, build in live.items():
        for name, _ in build.dependencies:
            above.setdefault(name, []).append(key)
    for offering in offerings:
        pending = list(missing)
        done: set[str] = set()
        while pending:
            key = pending.pop()
            if key in done:
                continue
            done.add(key)
            own = live.get(key)
            offered = offering.build(key)
            if offered is None:
                continue
            if own is not None and own.invoked == offered.invoked and key not in missing:
                continue
            pending.extend(
                name
                for name, invoked in offered.dependencies
                if name not in live or live[name].invoked != invoked
            )
            if own is not None and own.invoked != offered.invoked:
                pending.extend(above.get(key, ()))


def _grafts(keys: Sequence[str], offering: _Offering, here: Proof) -> tuple[Graft, ...]:
    """The chosen units of one source, dependencies first."""
    ordered: list[str] = []
    chosen = set(keys)

    def visit(key: str) -> None:
        if key not in chosen:
            return
        chosen.discard(key)
        for name, _ in offering.builds[key].dependencies:
            visit(name)
        ordered.append(key)

    for key in keys:
        visit(key)
    incremental = _incremental(offering, ordered, here)
    moving: set[str] = set()
    return tuple(_graft(key, offering, here, incremental.get(key, ()), moving) for key in ordered)


def _graft(
    key: str, offering: _Offering, here: Proof, incremental: tuple[str, ...], moving: set[str]
) -> Graft:
    source = offering.proof
    unit = source.units[key]
    made = source.record(key)
    root = len(source.target.build_dir) + 1
    stamped: list[str] = []
    rewrites: list[Rewrite] = []
    settled = None
    if made is not None:
        if not source.is_settled(made):
            rewrites = [
                rewrite._replace(path=rewrite.path[root:])
                for rewrite in source.relocate(unit, made)
            ]
        # Held to all its inputs until Cargo compiles it here, as every unit that came from
        # elsewhere.
        settled = made._replace(
            settled_checkout=source.place.checkout, settled_build_dir=source.place.build_dir
        )
        local = source.is_local(made)
        if local or any(name in moving for name, _ in made.dependencies):
            moving.add(key)
            stamped = [path[root:] for path in unit.compared_outputs()]
            if local:
                stamped.append(unit.reference_file[root:])
    old = here.units.get(key)
    return Graft(
        key,
        tuple(path[root:] for path in unit.parts()),
        incremental,
        tuple(dict.fromkeys(stamped)),
        tuple(rewrites),
        unit.record_file[root:],
        settled,
        None if old is None else Drop(old.hash_file, old.reference_file),
    )


def _incremental(
    offering: _Offering, keys: Sequence[str], here: Proof
) -> dict[str, tuple[str, ...]]:
    """rustc's incremental state of each unit, where rustc would use it.

    The directories' names do not tell the unit, the start of the last session does: it follows that
    of the unit.  A wrong guess costs time only, because rustc compares its state with the sources
    itself.  It gives up state that was made at another path, so only state is taken that was made
    where rustc sees this checkout.
    """
    found: dict[str, tuple[str, ...]] = {}
    there = identity.seen_in(offering.target.build_dir)
    at = identity.seen_in(here.target.build_dir)
    own = (here.place.checkout, here.place.build_dir)
    profiles: dict[str, Profile] = {}
    units: dict[tuple[str, str], list[Unit]] = {}
    for unit in offering.target.units:
        if not unit.is_script_run and not unit.is_documentation:
            profiles[unit.profile.name] = unit.profile
            units.setdefault((unit.profile.name, crate_of(unit)), []).append(unit)
    known: dict[str, dict[str, list[Session]]] = {}
    for key in keys:
        unit = offering.proof.units[key]
        made = offering.proof.record(key)
        if made is None or not (
            there == at if there and at else (made.checkout, made.build_dir) == own
        ):
            continue
        name = unit.profile.name
        if name not in known:
            known[name] = sessions(profiles[name]) if name in profiles else {}
        crate = crate_of(unit)
        matched = _matched(units.get((name, crate), []), known[name].get(crate, []))
        directory = matched.get(key)
        if directory is not None:
            inside = unit.profile.directory[len(offering.target.build_dir) + 1 :]
            found[key] = (f"{inside}/incremental/{directory}",)
    return found


def _matched(units: list[Unit], found: list[Session]) -> dict[str, str]:
    """Units of one crate name and the sessions that began after them, in order of time."""
    rest = sorted(found, key=lambda session: session.began)
    matched: dict[str, str] = {}
    for unit in sorted(units, key=lambda unit: unit.invoked() or 0):
        began = unit.invoked()
        for session in rest:
            if began is not None and session.began * 1000 >= began - 1_000_000:
                matched[unit.key] = session.directory
                rest.remove(session)
                break
    return matched


# -- acting


def act(target: Path, takings: Sequence[Taking], t0: int) -> Grafted:
    """Carry out a plan's takings; ``t0`` (ns) was read before anything was compared.

    The caller holds Cargo's lock of ``target``, or it is not published yet; and it keeps states
    among the sources from being deleted.  Nothing is lost whatever happens: a unit is as it was,
    dropped, or whole; what went wrong is in the notes.
    """
    keys: set[str] = set()
    files = 0
    notes: list[str] = []
    aside = target / _ASIDE
    try:
        aside.mkdir(exist_ok=True)
    except OSError as error:
        return Grafted(frozenset(), 0, (f"nothing can be grafted into {target}: {error}",))
    filesystems.remove_stale(aside, _NAME)
    for taking in takings:
        staged = filesystems.temporary_sibling(aside / _NAME)
        try:
            with contextlib.ExitStack() as stack:
                if taking.source.taken is None:
                    stack.enter_context(build_lock(taking.source.target, wait=False))
                    taking = _still(taking)  # noqa: PLW2901
                files += _stage(taking, staged, t0)
            for graft in taking.grafts:
                if _is_whole(graft, staged):
                    install(graft, staged, target)
                    keys.add(graft.key)
        except Locked:
            notes.append(f"{taking.source.origin} is being built: nothing is taken from there")
        except (CowError, OSError) as error:
            # What was installed is whole, and what was not is as it was, or dropped.
            notes.append(f"not all could be taken from {taking.source.origin}: {error}")
        finally:
            with contextlib.suppress(CowError):  # swept up by the next one
                filesystems.remove_target(staged)
    return Grafted(frozenset(keys), files, tuple(notes))


def _still(taking: Taking) -> Taking:
    """What is still as it was planned in a live source, whose lock is held now."""
    source = Target(str(taking.source.target))
    units = {unit.key: unit for unit in source.units}
    grafts = []
    for graft in taking.grafts:
        unit = units.get(graft.key)
        wanted_time = graft.settled.invoked if graft.settled is not None else None
        if unit is None or unit.fingerprint_hash() is None:
            continue
        if wanted_time is None or unit.invoked() == wanted_time:
            grafts.append(graft)
    return taking._replace(grafts=tuple(grafts))


def _stage(taking: Taking, staged: Path, t0: int) -> int:
    """Clone everything aside, with its times, and stamp it; returns the number of files."""
    names = [name for graft in taking.grafts for name in (*graft.parts, *graft.incremental)]
    # Where it cannot share, a copy is still cheaper than a compiler.
    clone = filesystems.clone_parts(taking.source.target, staged, names)
    for graft in taking.grafts:
        if not _is_whole(graft, staged):
            continue
        for rewrite in graft.rewrites:
            path = staged / rewrite.path
            before = path.stat().st_mtime_ns
            path.unlink()  # its hard links, if any, say what they said
            path.write_bytes(rewrite.data)
            os.utime(path, ns=(before, before))
        for name in graft.stamp:
            os.utime(staged / name, ns=(t0, t0))
        if graft.settled is not None:
            record.write(str(staged / graft.record_file), graft.key, graft.settled)
    return clone.files


def _is_whole(graft: Graft, staged: Path) -> bool:
    """Whether all parts came along: in a live source some may have gone meanwhile."""
    return all(os.path.lexists(staged / name) for name in (*graft.parts, *graft.stamp))


def install(graft: Graft, staged: Path, target: Path) -> None:
    """Let one unit, whose files lie in ``staged``, take its place: dropped first, its fingerprint
    last."""
    if graft.replaces is not None:
        stamp.drop(graft.replaces)
    for name in (*graft.incremental, *graft.parts):
        new, old = staged / name, target / name
        old.parent.mkdir(parents=True, exist_ok=True)
        if name in graft.incremental and not os.path.lexists(new):
            continue
        filesystems.supersede(new, old)
