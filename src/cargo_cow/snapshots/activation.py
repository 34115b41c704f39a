"""Activating a state: it becomes the live target, proven for what is checked out.

The state is cloned to a temporary sibling of the target and fitted to the checkout exactly as a
donor is (`prepare.clone_for`); or, where nothing that was built into it has changed in this very
checkout, it is left as it is.  Then, under Cargo's build lock: what is live is kept as an
automatic state, if it holds anything that no state has; the clone and the live target change names
in one step; what was live is removed.  Killed at any moment, the target is the old one or the new
one, whole, and nothing that was built is lost: the old one is kept before it goes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow import filesystems, prepare
from cargo_cow.cargo.lock import build_lock
from cargo_cow.cargo.target import Target, profile_directories
from cargo_cow.cargo.toolchain import compiler_of
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import CowError, FilesystemFailed
from cargo_cow.filesystems import btrfs
from cargo_cow.filesystems.failures import translated
from cargo_cow.filesystems.mounts import refuse_unusable
from cargo_cow.filesystems.removal import discard
from cargo_cow.prepare import identity, unchanged
from cargo_cow.prepare.contents import MEMO, Contents
from cargo_cow.prepare.place import Place, place_of
from cargo_cow.snapshots import state as states
from cargo_cow.snapshots import store as storing
from cargo_cow.snapshots import taking
from cargo_cow.snapshots.state import State
from cargo_cow.snapshots.store import Project
from cargo_cow.telling import silent

if TYPE_CHECKING:
    from cargo_cow.filesystems import CloneReport


class Activated(NamedTuple):
    """What activation did.

    ``proven``, ``held`` and ``dropped`` are numbers of units: found to be what a build here would
    give, of no concern to the checkout, and to be built again.  ``kept`` is the state that was made
    of what was live; None if other states have all of it, or there was nothing.  ``seconds`` by
    part: verify, clone, prove, apply, keep, exchange, remove.
    """

    state: State
    method: str
    proven: int
    held: int
    dropped: int
    kept: State | None
    seconds: dict[str, float]
    notes: tuple[str, ...]


def activate(
    workspace: Workspace,
    name: str,
    *,
    wait: bool = True,
    say: Callable[[str], None] = silent,
    begun: tuple[int, float] | None = None,
) -> Activated:
    """Make the state called ``name`` the live target of the workspace.

    ``wait``: for a build that runs in the live target; else Locked is raised.  ``begun`` is what
    `filesystems.clock_ahead` gave for the directory around the target, for who has asked before.

    Raises NoSuchState, StateDamaged, GitFailed, TargetUnusable (a symlink, a mount), Locked,
    NoSpace, FilesystemFailed.  Whatever is raised, the target is the old one, whole.
    """
    place = place_of(workspace)
    project = storing.project_of(Path(place.workspace))
    build_dir = Path(place.build_dir)
    if os.path.lexists(build_dir):
        refuse_unusable(build_dir)
    begun = begun or filesystems.clock_ahead(Path(place.standing or place.build_dir).parent)
    chosen = storing.usable(storing.named(project, build_dir, name)[1])
    seconds: dict[str, float] = {}
    notes: list[str] = []
    with storing.in_use(chosen):
        started = time.monotonic()
        states.verify(chosen)
        seconds["verify"] = time.monotonic() - started
        _compare_compilers(chosen, place, say)
        if not wait:
            # Told now, not after the work of a clone.
            with build_lock(place.build_dir, wait=False):
                pass
        contents = Contents.of(place.build_dir)
        with translated("activate", chosen.path):
            if chosen.whole and unchanged.still_holds(place, os.fspath(chosen.target)):
                made = _cloned(place, chosen, seconds)
            else:
                fitted = prepare.clone_for(
                    place,
                    chosen.target,
                    donor=chosen.path,
                    records={},
                    contents=contents,
                    seconds=seconds,
                    # Who has a state that is a copy has asked for copies.
                    allow_copy=chosen.method == "copy",
                    taken=chosen.taken,
                    begun=begun,
                )
                made = _Made(
                    fitted.path,
                    fitted.clone,
                    fitted.plan.count("proven"),
                    fitted.plan.count("kept"),
                    len(fitted.plan.drop),
                )
    notes += made.clone.notes
    kept: State | None = None
    try:
        with contextlib.suppress(OSError):  # a shortcut for the next proof only
            (made.path / MEMO).write_bytes((build_dir / MEMO).read_bytes())
        kept = _exchange(place, project, made.path, chosen, wait, say, seconds, notes)
    except BaseException:
        discard(made.path)
        raise
    started = time.monotonic()
    try:
        filesystems.remove_target(made.path)
    except CowError as error:
        notes.append(f"what was live is left at {made.path}: {error}")
    seconds["remove"] = time.monotonic() - started
    contents.save()
    identity.settle(place)
    return Activated(
        chosen,
        made.clone.method,
        made.proven,
        made.held,
        made.dropped,
        kept,
        seconds,
        tuple(notes),
    )


class _Made(NamedTuple):
    """The clone that is to be live, under its temporary name; numbers as in `Activated`."""

    path: Path
    clone: CloneReport
    proven: int
    held: int
    dropped: int


def _cloned(place: Place, chosen: State, seconds: dict[str, float]) -> _Made:
    """A clone of a state that is what would be live, had nothing been built since it was taken."""
    started = time.monotonic()
    live = Path(place.build_dir)
    live.parent.mkdir(parents=True, exist_ok=True)
    filesystems.remove_stale(live.parent, live.name)
    temporary = filesystems.temporary_target(live)
    clone = filesystems.clone_target(chosen.target, temporary, allow_copy=chosen.method == "copy")
    seconds["clone"] = time.monotonic() - started
    try:
        units = states.read_units(chosen)
        proven = 0 if units is None else len(units.made)
        identity.note_prepared(
            temporary, chosen.path, clone.method, proven=proven, kept=0, dropped=0
        )
    except BaseException:
        filesystems.remove_target(temporary)
        raise
    return _Made(temporary, clone, proven, 0, 0)


def _exchange(
    place: Place,
    project: Project,
    temporary: Path,
    chosen: State,
    wait: bool,
    say: Callable[[str], None],
    seconds: dict[str, float],
    notes: list[str],
) -> State | None:
    """Keep what is live, then let it and ``temporary`` change names; returns what was kept."""
    live = Path(place.build_dir)
    kept: State | None = None
    for attempt in range(12):
        polite = attempt < 8
        if not os.path.lexists(live):
            try:
                filesystems.publish(temporary, live)
            except FileExistsError:
                continue  # a build began meanwhile: it is live now
            return kept
        if attempt:
            time.sleep(0.01)
        with build_lock(
            live, wait=wait, waiting=lambda path: say(f"waiting for Cargo's build lock ({path})")
        ) as lock:
            locked = profile_directories(os.fspath(live))
            kept = _keep(place, project, chosen, say, seconds, notes) or kept
            started = time.monotonic()
            # Btrfs commits one transaction after the other: what follows, above all the removal of
            # what was live, is never there without the exchange.  Waiting for that (a whole commit,
            # 10 to 60 ms) would buy no more than that a power cut cannot undo the command.
            durable = not btrfs.is_subvolume(live)
            filesystems.exchange(temporary, live, durable=durable)
            # A profile that was not there when the locks were taken has a lock of its own.
            # Who waits has opened a file of what is live no more: released, the lock is theirs, and
            # who came first builds first.
            more = len(profile_directories(os.fspath(temporary))) != len(locked)
            if more or (polite and lock.awaited()):
                filesystems.exchange(temporary, live, durable=durable)
                continue
            seconds["exchange"] = time.monotonic() - started
            return kept
    raise FilesystemFailed(f"{live} changes as often as it is exchanged: nothing was activated")


def _keep(
    place: Place,
    project: Project,
    chosen: State,
    say: Callable[[str], None],
    seconds: dict[str, float],
    notes: list[str],
) -> State | None:
    """Keep what is live, if it holds anything that no state has.  The caller holds its lock."""
    started = time.monotonic()
    live = Path(place.build_dir)
    known = (states.read_units(state) for state in storing.newest_first(project, live))
    try:
        if not taking.units_of(live).beyond(units for units in known if units is not None):
            return None
        prepare.capture_at(Target(place.build_dir), place)
        taken = taking.take(
            place,
            project,
            None,
            origin="kept",
            allow_copy=chosen.method == "copy",
            locked=True,
            say=say,
        )
    finally:
        seconds["keep"] = time.monotonic() - started
    notes += taken.notes
    return taken.state


def _compare_compilers(chosen: State, place: Place, say: Callable[[str], None]) -> None:
    """Warn where the state was built by another compiler than the live target: Cargo will
    build all of it again."""
    here = compiler_of(place.build_dir)
    if chosen.compiler is not None and here is not None and here != chosen.compiler:
        built, live = chosen.compiler.splitlines()[0], here.splitlines()[0]
        say(f"warning: {chosen.title} was built by {built}, what is live by {live}")
