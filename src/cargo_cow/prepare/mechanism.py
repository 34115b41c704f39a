"""The mechanism: make a target as fresh as can be proved, then let Cargo judge.

One operation serves every case: a new worktree (the target is missing: clone the nearest donor),
a branch switch, a stash, a rebase (the target is there: prove what Cargo would call newer, and
graft what another target of the project has).  `snapshots.switching` does the same with states.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow import filesystems
from cargo_cow.cargo.lock import build_lock, is_held_back
from cargo_cow.cargo.target import CACHE_TAG, Target, nested, profile_directories
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import CowError, TargetUnusable
from cargo_cow.filesystems import CloneReport
from cargo_cow.filesystems.failures import translated
from cargo_cow.prepare import donors, identity, proof, record, stamp, unchanged
from cargo_cow.prepare.begun import Begun, stamp_time
from cargo_cow.prepare.capture import capture_of
from cargo_cow.prepare.contents import MEMO, Contents
from cargo_cow.prepare.identity import Identity, Seen
from cargo_cow.prepare.packages import Packages
from cargo_cow.prepare.place import Place, place_of
from cargo_cow.prepare.proof import Plan
from cargo_cow.prepare.record import Record
from cargo_cow.prepare.sources import Source
from cargo_cow.prepare.stamp import Applied
from cargo_cow.telling import silent

if TYPE_CHECKING:
    # Loaded where something has to be built again: a build with nothing to do pays for none of it.
    from cargo_cow.prepare.grafting import Grafted, GraftPlan, Taking

_PREPARED = identity.PREPARED


class Report(NamedTuple):
    """What prepare did, or (dry run) would do.

    ``method``: "in place", "snapshot", "reflink", "copy", or "none" (nothing to prepare and no
    donor).  ``seconds`` by part: capture, clone, prove, apply, publish.  ``identity`` is where
    rustc will see the checkout.  ``grafted`` units came from other targets than the donor, ``kept``
    is the state that was made of what was there.  ``found`` is what was looked at, where it is
    still true of the target but for times, and Cargo has been held back since.
    """

    method: str
    donor: Path | None
    plan: Plan | None
    applied: Applied | None
    clone: CloneReport | None
    refused: tuple[tuple[Path, str], ...]
    seconds: dict[str, float]
    notes: tuple[str, ...]
    identity: Identity | None = None
    grafted: int = 0
    kept: Path | None = None
    found: Look | None = None


class Look(NamedTuple):
    """A target in place as it was found, before anything is done to it.

    ``missing`` are keys of units that Cargo will build again, and that another target might spare
    it.  ``t0`` (ns) was read before anything else was.  ``alone``: Cargo was held back from before
    (`lock.hold_back`), so that nobody else has built since.
    """

    place: Place
    target: Target
    t0: int
    contents: Contents
    packages: Packages
    plan: Plan
    missing: tuple[str, ...]
    seconds: dict[str, float]
    alone: bool = False


def prepare(workspace: Workspace, *, donor: Path | None = None, dry_run: bool = False) -> Report:
    """Make the workspace's target as fresh as can be proved from what other checkouts have.

    With states, and with all that a caller may want of it, `snapshots.switching.switched`.
    ``donor`` names the checkout to clone from when the target is missing (default: the nearest).
    Raises CowError; whatever is raised, the target is the old one or the new one, whole.
    """
    place = place_of(workspace)
    found = look(workspace, place)
    if found is None:
        return bring(place, donor=donor, dry_run=dry_run)
    return settle(found, dry_run=dry_run)


def look(
    workspace: Workspace, place: Place, *, wait: bool = True, begun: Begun | None = None
) -> Look | None:
    """What there is to do to a target in place; None if nothing is built there.

    Touches nothing.  ``begun``: what of it was begun before.  Raises CowError; without ``wait``
    Locked, where a build runs in the target.
    """
    if os.path.lexists(workspace.build_dir) and not os.path.isdir(place.build_dir):
        raise TargetUnusable(
            f"{workspace.build_dir} is not a directory",
            hint="remove it: cargo, or the next prepare, makes a new one",
        )
    with translated("preparing", Path(place.build_dir)):
        alone = is_held_back(place.build_dir)
        target = Target(place.build_dir)
        if not target.profiles:
            return None
        if not wait:
            # Told now, not after the work of a proof.
            with build_lock(place.build_dir, wait=False):
                pass
        t0 = stamp_time(Path(place.build_dir)) if begun is None else begun.t0
        listing = None if begun is None else begun.listing
        contents = Contents.of(place.build_dir)
        packages = Packages(place.checkout, place.workspace, place.build_dir, contents, listing)
        started = time.monotonic()
        proven = proof.Proof(target, place, contents, packages, False, {})
        plan = proven.plan()
        missing: tuple[str, ...] = ()
        if plan.count("unproven") or plan.count("dirty"):
            from cargo_cow.prepare import grafting

            missing = grafting.wanted(plan.verdicts, proven)
        seconds = {"prove": time.monotonic() - started}
        return Look(place, target, t0, contents, packages, plan, missing, seconds, alone)


def grafts_for(found: Look, sources: Sequence[Source]) -> GraftPlan:
    """What to take from ``sources`` (nearest first) into the target in place.  Touches nothing."""
    from cargo_cow.prepare import grafting

    started = time.monotonic()
    with translated("preparing", Path(found.place.build_dir)):
        wanted = grafting.plan(
            found.target,
            found.place,
            found.contents,
            found.packages,
            found.plan,
            sources,
            cloned=False,
        )
    found.seconds["plan"] = found.seconds.get("plan", 0.0) + time.monotonic() - started
    return wanted


def settle(
    found: Look,
    *,
    grafts: GraftPlan | None = None,
    dry_run: bool = False,
    wait: bool = True,
    say: Callable[[str], None] = silent,
) -> Report:
    """Do what `look` found to a target in place, and what `grafts_for` planned.

    States among the sources are the caller's to keep from being deleted.  Raises CowError; without
    ``wait`` Locked, where a build runs in the target.
    """
    report = _settled(found, grafts, dry_run, wait, say)
    # Once the target is there: it says where the state in it was made.
    target = None if report.found is None else report.found.target
    place = found.place
    decided = identity.plan(place, target) if dry_run else identity.settle(place, target)
    return report._replace(identity=decided)


def _settled(
    found: Look,
    grafts: GraftPlan | None,
    dry_run: bool,
    wait: bool,
    say: Callable[[str], None],
) -> Report:
    place, plan, seconds = found.place, found.plan, found.seconds
    takings = grafts.takings if grafts is not None else ()
    done: Grafted | None = None
    if not dry_run:
        _sweep(Path(place.build_dir))
    if dry_run or (plan.changes_nothing and not takings):
        if not dry_run:
            found.contents.save()
        still = found if found.alone else None
        return Report("in place", None, plan, None, None, (), seconds, (), found=still)
    started = time.monotonic()
    with (
        translated("preparing", Path(place.build_dir)),
        build_lock(place.build_dir, wait=wait, waiting=lambda path: say(_waiting(path))),
    ):
        keys: frozenset[str] = frozenset()
        alone = found.alone and is_held_back(place.build_dir)
        if takings or not alone:
            # Another build may have run while we waited: decide again, under the lock.
            target = Target(place.build_dir)
            if takings:
                done = _graft(found, target, takings)
                target = Target(place.build_dir)
            keys = frozenset() if done is None else done.keys
            plan = proof.prove(
                target, place, found.contents, found.packages, cloned=False, grafted=keys
            )
        applied = stamp.apply(plan, found.t0, found.contents)
    seconds["apply"] = time.monotonic() - started - seconds.get("graft", 0.0)
    found.contents.save()
    notes = () if done is None else done.notes
    for note in notes:
        say(note)
    moved = plan.drop or plan.rewrites or plan.settled or plan.forget or takings
    return Report(
        "in place",
        None,
        plan,
        applied,
        None,
        (),
        seconds,
        notes,
        grafted=len(keys),
        found=found if alone and not moved else None,
    )


def _sweep(target: Path) -> None:
    """Remove what a killed graft left aside in ``target``."""
    try:
        names = os.listdir(target / ".cargo-cow")
    except OSError:
        return
    if any(name.startswith(".graft.") for name in names):
        filesystems.remove_stale(target / ".cargo-cow", "graft")


def _graft(found: Look, now: Target, takings: Sequence[Taking]) -> Grafted:
    """Carry out a plan for the target that `look` found, or a new one if it has changed since."""
    from cargo_cow.prepare import grafting

    started = time.monotonic()
    if _builds(now) != _builds(found.target):
        place, contents, packages = found.place, found.contents, found.packages
        plan = proof.prove(now, place, contents, packages, cloned=False)
        takings = grafting.plan(
            now,
            place,
            contents,
            packages,
            plan,
            [taking.source for taking in takings],
            cloned=False,
        ).takings
    done = grafting.act(Path(found.place.build_dir), takings, found.t0)
    found.seconds["graft"] = time.monotonic() - started
    return done


def _builds(target: Target) -> dict[str, tuple[int | None, int | None]]:
    return {unit.key: (unit.invoked(), unit.fingerprint_hash()) for unit in target.units}


def bring(
    place: Place,
    *,
    donor: Path | None = None,
    states: Sequence[Source] = (),
    dry_run: bool = False,
    say: Callable[[str], None] = silent,
    allow_copy: bool = True,
) -> Report:
    """Make the target that is missing: a clone of the nearest donor, proven for the place.

    ``states`` are donors beside the checkouts that git knows, newest first; what the clone lacks
    is grafted from them.  The caller holds them.  Raises CowError; nothing is there then.
    """
    with translated("preparing", Path(place.build_dir)):
        report = _from_donor(place, donor, states, dry_run, say, allow_copy)
        # Once the target is there: it says where the state in it was made.
        decided = identity.plan(place) if dry_run else identity.settle(place)
        return report._replace(identity=decided)


def begin(place: Place) -> bool:
    """Make an empty target that can be snapshotted, where there is none and Cargo is about to
    build; whether one was made.

    Only a subvolume is made: a directory Cargo makes itself.  Nothing is raised: whatever is in
    the way, Cargo says it better.
    """
    target = Path(place.build_dir)
    if os.path.lexists(target):
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = filesystems.temporary_sibling(target)
        try:
            if filesystems.create_target(temporary) != "subvolume":
                return False
            (temporary / "CACHEDIR.TAG").write_text(CACHE_TAG)
            filesystems.publish(temporary, target)
            return True
        finally:
            filesystems.remove_target(temporary)
    except (CowError, OSError):
        return False


def _from_donor(
    place: Place,
    wanted: Path | None,
    states: Sequence[Source],
    dry_run: bool,
    say: Callable[[str], None],
    allow_copy: bool,
) -> Report:
    choice = donors.find(place, wanted=wanted, states=states)
    notes: list[str] = []
    for path, why in choice.refused:
        notes.append(f"{path} is no donor: {why}")
    if not choice.donors:
        if wanted is not None:
            notes.append(f"{wanted} has no target to clone")
        for note in notes:
            say(note)
        return Report("none", None, None, None, None, choice.refused, {}, tuple(notes))
    chosen = choice.donors[0]
    seconds: dict[str, float] = {}
    source = chosen.source.target

    started = time.monotonic()
    records: dict[str, Record] = {}
    seen = None
    if chosen.workspace is not None:
        records = capture_of(chosen.workspace).records
        seen = identity.seen_by(place_of(chosen.workspace))
    seconds["capture"] = time.monotonic() - started

    contents = Contents()
    destination = Path(place.standing or place.build_dir)
    if dry_run:
        packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
        # The donor's own target, read as if it were the clone: nothing is made.
        plan = proof.prove(
            Target(str(source)), place, contents, packages, cloned=True, records=records
        )
        return Report(
            "dry run", chosen.origin, plan, None, None, choice.refused, seconds, tuple(notes)
        )

    fitted = clone_for(
        place,
        source,
        donor=chosen.origin,
        records=records,
        contents=contents,
        seconds=seconds,
        # Who has a state that is a copy has asked for copies.
        allow_copy=allow_copy or chosen.source.copied,
        taken=chosen.source.taken,
        seen=seen,
        sources=[state for state in states if state is not chosen.source],
    )
    try:
        started = time.monotonic()
        _publish(fitted.path, destination)
        seconds["publish"] = time.monotonic() - started
    except FileExistsError:
        filesystems.remove_target(fitted.path)
        say(f"{destination} was made by somebody else meanwhile: it is left as it is")
        return Report("none", None, None, None, None, choice.refused, seconds, tuple(notes))
    except BaseException:
        filesystems.remove_target(fitted.path)
        raise
    memo = Contents.of(destination)
    memo.adopt(contents)
    memo.save()
    return Report(
        fitted.clone.method,
        chosen.origin,
        fitted.plan,
        fitted.applied,
        fitted.clone,
        choice.refused,
        seconds,
        tuple(notes),
        grafted=fitted.grafted,
    )


class Fitted(NamedTuple):
    """A clone that is proven and stamped for its place, still under its temporary name."""

    path: Path
    clone: CloneReport
    plan: Plan
    applied: Applied
    grafted: int = 0


def clone_for(
    place: Place,
    source: Path,
    *,
    donor: Path,
    records: dict[str, Record],
    contents: Contents,
    seconds: dict[str, float],
    allow_copy: bool = True,
    taken: int | None = None,
    seen: Seen | None = None,
    sources: Sequence[Source] = (),
    begun: tuple[int, float] | None = None,
) -> Fitted:
    """Clone ``source`` to a temporary sibling of the place's target and fit it to the place.

    ``taken`` (ns) is when ``source`` began to be what it is, on the clock of its filesystem, for
    a state; None for a live target, which may change while it is cloned.  ``donor`` is what the
    clone will say it came from, ``records`` are those that ``source`` cannot keep itself, and
    ``seconds`` gets the times of the parts.  ``seen`` is where the donor's rustc saw its checkout;
    None leaves what ``source`` says itself.  What is not proven is grafted from ``sources``.
    ``begun`` is what `filesystems.clock_ahead` gave, for who has asked it before.
    Raises CowError and OSError; nothing is left then.
    """
    destination = Path(place.standing or place.build_dir)
    destination.parent.mkdir(parents=True, exist_ok=True)
    filesystems.remove_stale(destination.parent, destination.name)
    temporary = filesystems.temporary_target(destination)
    t0, begin = begun or filesystems.clock_ahead(destination.parent)
    started = time.monotonic()
    if taken is None:
        taken = filesystems.clock(source) if os.access(source, os.W_OK) else time.time_ns()
    clone = filesystems.clone_target(source, temporary, allow_copy=allow_copy)
    seconds["clone"] = time.monotonic() - started
    try:
        started = time.monotonic()
        target = Target(str(temporary))
        _drop_torn(target, source, taken)
        _drop_nested(temporary)
        _forget_donor(temporary)
        time.sleep(max(0.0, begin - time.monotonic()))
        _keep_records(target, records)
        packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
        plan = proof.prove(target, place, contents, packages, cloned=True)
        grafted = 0
        if sources and (plan.count("unproven") or plan.count("dirty")):
            from cargo_cow.prepare import grafting

            started_grafting = time.monotonic()
            wanted = grafting.plan(target, place, contents, packages, plan, sources, cloned=True)
            grafted = len(grafting.act(temporary, wanted.takings, t0).keys)
            seconds["graft"] = time.monotonic() - started_grafting
            if grafted:
                target = Target(str(temporary))
                plan = proof.prove(target, place, contents, packages, cloned=True)
        seconds["prove"] = time.monotonic() - started - seconds.get("graft", 0.0)
        started = time.monotonic()
        applied = stamp.apply(plan, t0, contents)
        seconds["apply"] = time.monotonic() - started
        identity.note_prepared(
            temporary,
            donor,
            clone.method,
            proven=plan.count("proven"),
            kept=plan.count("kept"),
            dropped=len(plan.drop),
        )
        if seen is not None:
            identity.carry(temporary, seen)
    except BaseException:
        filesystems.remove_target(temporary)
        raise
    return Fitted(temporary, clone, plan, applied, grafted)


def _publish(temporary: Path, destination: Path) -> None:
    """Give the finished clone its name; a target without any profile gives way to it.

    Raises FileExistsError if somebody builds there meanwhile: what is built is never replaced.
    """
    if not os.path.isdir(destination):
        filesystems.publish(temporary, destination)
        return
    from cargo_cow.filesystems import zfs

    if zfs.find(temporary) is not None and zfs.find(destination) is None:
        # A ZFS dataset does not change places with a plain directory.
        _publish_in_place_of(destination, temporary)
        return
    filesystems.exchange(temporary, destination)
    if profile_directories(str(temporary)):
        filesystems.exchange(temporary, destination)
        raise FileExistsError(destination)
    filesystems.remove_target(temporary)


def _publish_in_place_of(destination: Path, temporary: Path) -> None:
    aside = filesystems.temporary_sibling(destination)
    filesystems.publish(destination, aside)
    if profile_directories(str(aside)):
        filesystems.publish(aside, destination)
        raise FileExistsError(destination)
    filesystems.publish(temporary, destination)
    filesystems.remove_target(aside)


def _drop_torn(target: Target, source: Path, since: int) -> None:
    """Drop units that the donor was building while it was cloned.

    A snapshot is atomic, a tree clone is not: it may pair an old fingerprint with a new output.
    Cargo empties a dirty unit's fingerprint before it touches anything else of it, and sets
    ``invoked.timestamp`` when the job starts, so both tell in the donor afterwards.
    """
    for unit in target.units:
        inside = unit.hash_file[len(target.build_dir) + 1 :]
        invoked = unit.invoked_file[len(target.build_dir) + 1 :]
        for path in (inside, invoked):
            try:
                changed = os.stat(f"{source}/{path}").st_mtime_ns
            except OSError:
                changed = since
            if changed >= since - filesystems.GRANULE_NS:
                stamp.drop(proof.Drop(unit.hash_file, unit.reference_file))
                break


def _drop_nested(target: Path) -> None:
    """Drop all units of other Cargo target directories inside a clone.

    Nothing is recorded of them, and Cargo would go by times alone: it calls them fresh where the
    donor built after this checkout was made, whatever differs, and whatever path they baked.
    """
    for unit in nested(os.fspath(target)).units:
        stamp.drop(proof.Drop(unit.hash_file, unit.reference_file))


def _forget_donor(target: Path) -> None:
    """Remove from a clone what speaks of the donor's checkout alone."""
    for name in (MEMO, _PREPARED, unchanged.NOTE):
        try:
            os.unlink(target / name)
        except OSError:
            continue


def _keep_records(target: Target, records: dict[str, Record]) -> None:
    for unit in target.units:
        made = records.get(unit.key)
        if made is not None and made.invoked == unit.invoked() and record.load(unit) is None:
            record.save(unit, made)


def _waiting(path: str) -> str:
    return f"waiting for Cargo's build lock ({path})"
