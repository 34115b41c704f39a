"""The mechanism: make a target as fresh as can be proved, then let Cargo judge.

One operation serves every case: a new worktree (the target is missing: clone the nearest donor),
a branch switch, a stash, a rebase (the target is there: prove what Cargo would call newer).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cargo_cow import filesystems
from cargo_cow.cargo.lock import build_lock
from cargo_cow.cargo.target import Target, profile_directories
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import CowError, TargetUnusable
from cargo_cow.filesystems import CloneReport
from cargo_cow.filesystems.failures import translated
from cargo_cow.prepare import donors, identity, proof, record, stamp, unchanged
from cargo_cow.prepare.capture import Capture, Capturer
from cargo_cow.prepare.contents import Contents
from cargo_cow.prepare.identity import Identity, Seen
from cargo_cow.prepare.packages import Packages
from cargo_cow.prepare.place import Place, place_of
from cargo_cow.prepare.proof import Plan
from cargo_cow.prepare.record import Record
from cargo_cow.prepare.stamp import Applied

_MEMO = ".cargo-cow/contents.json"
_PREPARED = ".cargo-cow/prepared.json"


class Report(NamedTuple):
    """What prepare did, or (dry run) would do.

    ``method``: "in place", "snapshot", "reflink", "copy", or "none" (nothing to prepare and no
    donor).  ``seconds`` by part: capture, clone, prove, apply, publish.  ``identity`` is where
    rustc will see the checkout.
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


def _silent(_: str) -> None:
    return


def prepare(
    workspace: Workspace,
    *,
    donor: Path | None = None,
    dry_run: bool = False,
    wait: bool = True,
    say: Callable[[str], None] = _silent,
    allow_copy: bool = True,
) -> Report:
    """Make the workspace's target as fresh as can be proved.

    ``donor`` names the checkout to clone from when the target is missing (default: the nearest).
    ``wait``: for a build that runs in the target; else Locked is raised.
    ``say`` gets lines for people.  Raises CowError; whatever is raised, the target is the old one
    or the new one, whole.
    """
    place = place_of(workspace)
    if os.path.lexists(workspace.build_dir) and not os.path.isdir(place.build_dir):
        raise TargetUnusable(
            f"{workspace.build_dir} is not a directory",
            hint="remove it: cargo, or the next prepare, makes a new one",
        )
    with translated("preparing", Path(place.build_dir)):
        target = Target(place.build_dir)
        if target.profiles:
            if donor is not None:
                say(f"{place.build_dir} is there already: the donor is not used")
            report = _in_place(target, place, dry_run, say, wait)
        else:
            report = _from_donor(place, donor, dry_run, say, allow_copy)
        # Once the target is there: it says where the state in it was made.
        decided = identity.plan(place) if dry_run else identity.settle(place)
        return report._replace(identity=decided)


def _in_place(
    target: Target, place: Place, dry_run: bool, say: Callable[[str], None], wait: bool
) -> Report:
    seconds: dict[str, float] = {}
    if not wait and not dry_run:
        # Told now, not after the work of a proof.
        with build_lock(place.build_dir, wait=False):
            pass
    t0 = _t0(Path(place.build_dir))
    contents = Contents(f"{place.build_dir}/{_MEMO}")
    packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
    started = time.monotonic()
    plan = proof.prove(target, place, contents, packages, cloned=False)
    seconds["prove"] = time.monotonic() - started
    applied = None
    if not dry_run and not plan.changes_nothing:
        started = time.monotonic()
        with build_lock(place.build_dir, wait=wait, waiting=lambda path: say(_waiting(path))):
            # Another build may have run while we waited: decide again, under the lock.
            plan = proof.prove(Target(place.build_dir), place, contents, packages, cloned=False)
            applied = stamp.apply(plan, t0, contents)
        seconds["apply"] = time.monotonic() - started
    if not dry_run:
        contents.save()
    return Report("in place", None, plan, applied, None, (), seconds, ())


def _from_donor(
    place: Place,
    wanted: Path | None,
    dry_run: bool,
    say: Callable[[str], None],
    allow_copy: bool,
) -> Report:
    choice = donors.find(place, wanted=wanted)
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
    source = Path(os.path.realpath(chosen.workspace.build_dir))

    started = time.monotonic()
    captured = capture(chosen.workspace)
    seconds["capture"] = time.monotonic() - started

    contents = Contents()
    destination = Path(place.build_dir)
    if dry_run:
        packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
        # The donor's own target, read as if it were the clone: nothing is made.
        plan = proof.prove(
            Target(str(source)), place, contents, packages, cloned=True, records=captured.records
        )
        return Report(
            "dry run", chosen.checkout, plan, None, None, choice.refused, seconds, tuple(notes)
        )

    fitted = clone_for(
        place,
        source,
        donor=chosen.checkout,
        records=captured.records,
        contents=contents,
        seconds=seconds,
        allow_copy=allow_copy,
        seen=identity.seen_by(place_of(chosen.workspace)),
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
    memo = Contents(f"{place.build_dir}/{_MEMO}")
    memo.adopt(contents)
    memo.save()
    return Report(
        fitted.clone.method,
        chosen.checkout,
        fitted.plan,
        fitted.applied,
        fitted.clone,
        choice.refused,
        seconds,
        tuple(notes),
    )


class Fitted(NamedTuple):
    """A clone that is proven and stamped for its place, still under its temporary name."""

    path: Path
    clone: CloneReport
    plan: Plan
    applied: Applied


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
) -> Fitted:
    """Clone ``source`` to a temporary sibling of the place's target and fit it to the place.

    ``taken`` (ns) is when ``source`` began to be what it is, on the clock of its filesystem, for
    a state; None for a live target, which may change while it is cloned.  ``donor`` is what the
    clone will say it came from, ``records`` are those that ``source`` cannot keep itself, and
    ``seconds`` gets the times of the parts.  ``seen`` is where the donor's rustc saw its checkout;
    None leaves what ``source`` says itself.  Raises CowError and OSError; nothing is left then.
    """
    destination = Path(place.build_dir)
    destination.parent.mkdir(parents=True, exist_ok=True)
    filesystems.remove_stale(destination.parent, destination.name)
    temporary = filesystems.temporary_sibling(destination)
    t0, begin = _t0_ahead(destination.parent)
    started = time.monotonic()
    if taken is None:
        taken = filesystems.clock(source) if os.access(source, os.W_OK) else time.time_ns()
    clone = filesystems.clone_target(source, temporary, allow_copy=allow_copy)
    seconds["clone"] = time.monotonic() - started
    try:
        started = time.monotonic()
        target = Target(str(temporary))
        _drop_torn(target, source, taken)
        _forget_donor(temporary)
        time.sleep(max(0.0, begin - time.monotonic()))
        plan = proof.prove(
            Target(str(temporary)),
            place,
            contents,
            Packages(place.checkout, place.workspace, place.build_dir, contents),
            cloned=True,
            records=records,
        )
        seconds["prove"] = time.monotonic() - started
        started = time.monotonic()
        _keep_records(target, records)
        applied = stamp.apply(plan, t0, contents)
        seconds["apply"] = time.monotonic() - started
        _note_prepared(temporary, donor, clone.method, plan)
        if seen is not None:
            identity.carry(temporary, seen)
    except BaseException:
        filesystems.remove_target(temporary)
        raise
    return Fitted(temporary, clone, plan, applied)


def _publish(temporary: Path, destination: Path) -> None:
    """Give the finished clone its name; a target without any profile gives way to it.

    Raises FileExistsError if somebody builds there meanwhile: what is built is never replaced.
    """
    if not os.path.isdir(destination):
        filesystems.publish(temporary, destination)
        return
    filesystems.exchange(temporary, destination)
    if profile_directories(str(temporary)):
        filesystems.exchange(temporary, destination)
        raise FileExistsError(destination)
    filesystems.remove_target(temporary)


def _t0(directory: Path) -> int:
    """The stamp: the filesystem's present time less its granule (ns).

    Everything read after this moment and edited after it has a later mtime.
    """
    try:
        return filesystems.clock(directory) - filesystems.granule(directory)
    except CowError:
        return time.time_ns() - filesystems.GRANULE_NS


def _t0_ahead(directory: Path) -> tuple[int, float]:
    """The stamp (ns) as it is now, and when (by the monotonic clock) reading may begin.

    As good as `_t0`, for who has other work to do first: files that were written just before the
    call, by the `git switch` whose hook we are, are older than the stamp.
    """
    try:
        granule = filesystems.granule(directory)
        if granule <= filesystems.GRANULE_NS:
            return filesystems.clock(directory), time.monotonic() + granule / 1e9
    except CowError:
        pass
    return _t0(directory), 0.0


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


def _forget_donor(target: Path) -> None:
    """Remove from a clone what speaks of the donor's checkout alone."""
    for name in (_MEMO, _PREPARED, unchanged.NOTE):
        try:
            os.unlink(target / name)
        except OSError:
            continue


def _keep_records(target: Target, records: dict[str, Record]) -> None:
    for unit in target.units:
        made = records.get(unit.key)
        if made is not None and made.invoked == unit.invoked() and record.load(unit) is None:
            record.save(unit, made)


def _note_prepared(target: Path, donor: Path, method: str, plan: Plan) -> None:
    value = {
        "format": 1,
        "donor": str(donor),
        "time": time.time(),
        "method": method,
        "proven": plan.count("proven"),
        "kept": plan.count("kept"),
        "dropped": len(plan.drop),
    }
    path = target / _PREPARED
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8", errors="surrogateescape")


def _waiting(path: str) -> str:
    return f"waiting for Cargo's build lock ({path})"


def capture(workspace: Workspace) -> Capture:
    """Record what the units of a target were made from, as far as that can still be known.

    Needs no lock: a unit that is rebuilt meanwhile is recognised by its ``invoked.timestamp``.
    Records are written beside the fingerprints where that is permitted, and returned in any case.
    """
    place = place_of(workspace)
    with translated("recording", Path(place.build_dir)):
        return capture_at(Target(place.build_dir), place)


def capture_at(target: Target, place: Place) -> Capture:
    """As `capture`, for a target and place that are known already."""
    contents = Contents(f"{place.build_dir}/{_MEMO}")
    packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
    result = Capturer(target, place, contents, packages).run()
    units = {unit.key: unit for unit in target.units}
    for key, made in result.records.items():
        try:
            record.save(units[key], made)
        except OSError:
            break  # a read-only donor: the caller has the records
    contents.save()
    identity.keep(place)
    return result
