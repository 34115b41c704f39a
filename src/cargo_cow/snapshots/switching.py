"""A checkout whose files changed: what was built is kept, what states have comes back.

`switched` is `prepare.prepare` for projects whose states are kept.  Where nothing has to be built
again it does the same and costs the same: no state is looked at.  Else, in this order:

1. Where git changed the checkout since the last build (a switch, a merge, a rebase, a reset, a
   stash), and the target holds builds that no state has, they are kept as an automatic state, if
   that costs no copy.
2. What is missing is grafted from states, and, where git changed the checkout, from the targets of
   the two nearest checkouts.
3. What is still missing Cargo builds.

Where the target itself is missing, states are donors beside the other checkouts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from cargo_cow import git, prepare
from cargo_cow.cargo.target import Target, Unit
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import CowError, GitFailed, NoSuchState, StateDamaged
from cargo_cow.prepare import Look, Report, donors, unchanged
from cargo_cow.prepare.begun import Begun
from cargo_cow.prepare.grafting import GraftPlan
from cargo_cow.prepare.place import Place, below, place_of
from cargo_cow.prepare.sources import Source
from cargo_cow.snapshots import state as states
from cargo_cow.snapshots import store as storing
from cargo_cow.snapshots import taking
from cargo_cow.snapshots.state import State, Units
from cargo_cow.snapshots.store import Project
from cargo_cow.telling import silent

_NEIGHBOURS = 2
"""Checkouts whose targets are looked through: each costs a listing of all its units."""
_FOR_A_CLONE = 4
"""States that may fill up a clone of the nearest one."""


def switched(
    workspace: Workspace,
    *,
    donor: Path | None = None,
    dry_run: bool = False,
    wait: bool = True,
    say: Callable[[str], None] = silent,
    allow_copy: bool = True,
    again: bool = True,
    eager: bool = False,
    begun: Begun | None = None,
    place: Place | None = None,
) -> Report:
    """Make the workspace's target as fresh as can be proved, with the help of the states.

    ``donor`` names the checkout, or the state's directory, to clone from where the target is
    missing (default: the nearest).  ``again``: whether a target that was removed may come back from
    a state of this very checkout; who ran ``cargo clean`` before ``cargo cow build`` wants a clean
    build.  ``wait``: for a build that runs in the target; else Locked is raised.  ``say`` gets
    lines for people.  ``eager``: keep what was built although nothing has to be built again yet; a
    hook is not asked again before plain Cargo builds over it.  ``begun``: as `prepare.look`;
    ``place``: that of the workspace, if it is known.

    Raises CowError; whatever is raised, the target is the old one or the new one, whole, and what
    goes wrong with states alone is said, not raised.
    """
    place = place or place_of(workspace)
    found = prepare.look(workspace, place, wait=wait or dry_run, begun=begun)
    if found is None:
        with ExitStack() as held:
            return prepare.bring(
                place,
                donor=donor,
                states=_donors(place, held, again=again or donor is not None),
                dry_run=dry_run,
                say=say,
                allow_copy=allow_copy,
            )
    if donor is not None:
        say(f"{place.build_dir} is there already: the donor is not used")
    if dry_run or not (found.missing or eager):
        return prepare.settle(found, dry_run=dry_run, wait=wait, say=say)
    with ExitStack() as held:
        kept = None
        grafts = None
        try:
            project = storing.project_of(Path(place.workspace))
            known = _known(project, place)
            changed = _changed_by_git(place, project, found.target)
            if changed:
                found = _recorded(workspace, found)
                kept = _keep(place, project, known, found, wait, say)
            if found.missing:
                grafts = _grafts(place, found, known, held, neighbours=changed)
        except GitFailed:
            pass  # no repository, no states
        except CowError as error:
            say(f"warning: the states are of no use here: {error}")
        report = prepare.settle(found, grafts=grafts, wait=wait, say=say)
    return report._replace(kept=None if kept is None else kept.path)


# -- what is there


def _known(project: Project, place: Place) -> list[tuple[State, Units | None]]:
    """The usable states of the workspace, newest first, and what is in each.

    A repository may hold several workspaces, each with states of its own.
    """
    inside = below(place.workspace, place.checkout)
    return [
        (entry, states.read_units(entry))
        for _, entry in reversed(storing.everything(project, Path(place.build_dir), near=True))
        if isinstance(entry, State) and below(entry.workspace, entry.checkout) == inside
    ]


def _source(state: State, units: Units | None) -> Source:
    return Source(
        state.target,
        state.path,
        state.taken,
        state.commit,
        state.compiler,
        state.baseline,
        None if units is None else units.made,
        copied=state.method == "copy",
    )


def _hold(state: State, held: ExitStack) -> bool:
    """Keep a state from being deleted, verified; False if it is not usable."""
    try:
        held.enter_context(storing.in_use(state))
        if state.seal.kind == "tree":  # a subvolume was judged when it was read
            states.verify(state)
    except (NoSuchState, StateDamaged):
        return False
    return True


def _donors(place: Place, held: ExitStack, *, again: bool) -> list[Source]:
    """States that a missing target may be cloned from, held; none where there are none."""
    try:
        known = _known(storing.project_of(Path(place.workspace)), place)
    except CowError:
        return []
    if not again and any(state.checkout == place.checkout for state, _ in known):
        return []
    # A state of another target directory (an editor's own) holds other units.
    inside = below(place.build_dir, place.checkout)
    known = [
        (state, units)
        for state, units in known
        if below(state.build_dir, state.checkout) in (inside, None)
    ]
    sources = [_source(state, units) for state, units in known]
    by_origin = {source.origin: state for source, (state, _) in zip(sources, known, strict=True)}
    nearest = [found.source for found in donors.find(place, states=sources, checkouts=False).donors]
    usable: list[Source] = []
    for source in nearest:
        if len(usable) < _FOR_A_CLONE and _hold(by_origin[source.origin], held):
            usable.append(source)
    return usable


# -- keeping


def _changed_by_git(place: Place, project: Project, target: Target) -> bool:
    """Whether git may have changed files of the checkout since the last build in ``target``.

    A commit changes none.  ``git stash pop`` moves no HEAD, but makes or removes a lock file beside
    ``refs/stash``: that changes the directory's time.
    """
    newest = max((unit.invoked() or 0 for unit in target.units), default=0)
    with suppress(OSError):
        if (project.common_dir / "refs").stat().st_mtime_ns > newest:
            return True
    if newest >= place.head_changed:
        return False
    built = newest // 1_000_000_000
    moves = None if place.git_dir is None else git.moves(Path(place.git_dir))
    if moves is None:
        moves = [(move.time, move.message) for move in taking.moves_of(Path(place.checkout))]
    for index, (when, word) in enumerate(moves):
        if index and when < built:
            break
        if not word.startswith("commit"):
            return True
    return False


def _recorded(workspace: Workspace, found: Look) -> Look:
    """``found`` again, with records of what plain Cargo built, as far as they can still be made.

    A unit without record is Cargo's to judge: nobody would look for another build of it.
    """
    if (
        unchanged.is_of_all(found.place)
        or not prepare.capture_at(found.target, found.place).records
    ):
        return found
    return prepare.look(workspace, found.place) or found


def _keep(
    place: Place,
    project: Project,
    known: Sequence[tuple[State, Units | None]],
    found: Look,
    wait: bool,
    say: Callable[[str], None],
) -> State | None:
    """Keep what is live as an automatic state, if it holds builds that no state has."""
    started = time.monotonic()
    live = Path(place.build_dir)
    try:
        built = taking.units_of(live, found.target if found.alone else None)
        if not built.beyond([units for _, units in known if units is not None]):
            return None
        return taking.take(
            place,
            project,
            None,
            origin="kept",
            allow_copy=False,
            wait=wait,
            say=say,
            differs=bool(found.missing),
        ).state
    except CowError as error:
        say(f"warning: what was built here is not kept: {error}")
        return None
    finally:
        found.seconds["keep"] = time.monotonic() - started


# -- grafting


def _grafts(
    place: Place,
    found: Look,
    known: Sequence[tuple[State, Units | None]],
    held: ExitStack,
    *,
    neighbours: bool,
) -> GraftPlan | None:
    """What to graft, all of it from targets that are sound and held."""
    by_origin = {state.path: state for state, _ in known}
    sources = [_source(state, units) for state, units in known]
    sound: set[Path] = set()
    while sources or neighbours:
        plan = prepare.grafts_for(found, sources)
        if neighbours and _are_needed(found, plan):
            # Asked only now: each of them is looked through whole.
            neighbours = False
            sources += _neighbours(place)
            continue
        damaged = set()
        for taken in plan.takings:
            origin = taken.source.origin
            if origin not in by_origin or origin in sound:
                continue
            if _hold(by_origin[origin], held):
                sound.add(origin)
            else:
                damaged.add(origin)
        if not damaged:
            return plan
        sources = [source for source in sources if source.origin not in damaged]
    return None


def _are_needed(found: Look, plan: GraftPlan) -> bool:
    """Whether the states lack anything that this commit may need.

    A unit that another one of its kind stands in for is most likely one of another version of its
    package, which nobody builds here.
    """

    def kind(unit: Unit) -> tuple[str, str, str]:
        return unit.profile.name, unit.package, unit.stem

    units = {unit.key: unit for unit in found.target.units}
    served = {
        kind(units[verdict.key])
        for verdict in found.plan.verdicts
        if verdict.status in ("proven", "kept")
    }
    served.update(kind(units[key]) for key in plan.keys)
    return any(kind(units[key]) not in served for key in plan.lacking)


def _neighbours(place: Place) -> list[Source]:
    """The nearest other checkouts' targets, with all records that can be made of them."""
    sources = []
    for donor in donors.find(place).donors[:_NEIGHBOURS]:
        if donor.workspace is not None and os.path.realpath(donor.source.target) != place.build_dir:
            with suppress(CowError):
                prepare.capture_of(donor.workspace)
                sources.append(donor.source)
    return sources
