"""The warehouse around one Cargo command: what it has is put there before, what is new is kept
after.

Nothing here stops a build: what goes wrong is said once, and Cargo does the work.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow.cargo.lock import HeldBack, hold_back, is_profile_held_back
from cargo_cow.cargo.target import unit_times
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import CowError, UsageError
from cargo_cow.prepare.place import Place
from cargo_cow.warehouse import planning, surroundings
from cargo_cow.warehouse.planning import Asked

if TYPE_CHECKING:
    from cargo_cow.prepare.proof import Plan
    from cargo_cow.warehouse.grafting import Grafted, GraftPlan
    from cargo_cow.warehouse.units import Kept


class Ready(NamedTuple):
    """What is known of a command once the warehouse has done its part.

    ``asked`` is None where Cargo does not say what it will build.

    ``since`` (ns) is when that began: what Cargo builds is younger.  ``times`` are the units that
    were there then (see ``unit_times``).
    """

    asked: Asked | None
    plan: GraftPlan | None
    grafted: Grafted | None
    since: int
    times: dict[str, int]


class Foreseen(NamedTuple):
    """What is known of a command without asking Cargo: the store (None: the warehouse is off), and
    what it will ask for (None: that is never learned of such a command)."""

    store: tuple[Path, bool] | None
    asked: Asked | None


def foreseen(
    workspace: Workspace, place: Place, arguments: Sequence[str], cwd: Path
) -> Foreseen | None:
    """What can be told at once of ``cargo <arguments>``; None: Cargo has to be asked first.

    A few stats.  Raises CowError.
    """
    store = surroundings.store_for(place.build_dir, cwd)
    if store is None or not planning.is_learned(workspace, arguments):
        return Foreseen(store, None)
    asked = planning.remembered(workspace, arguments, cwd, store[0])
    return None if asked is None else Foreseen(store, asked)


def asking(
    workspace: Workspace, place: Place, arguments: Sequence[str], cwd: Path
) -> planning.Asking | None:
    """Cargo asked for what was not `foreseen`, while something else is done; None where the
    warehouse is off.  Raises CowError."""
    store = surroundings.store_for(place.build_dir, cwd)
    if store is None:
        return None
    return planning.Asking(workspace, arguments, cwd, store[0], _without_probes(place))


def is_held_whole(place: Place, asked: Asked | None) -> bool:
    """Whether Cargo is held back from every profile that it will ask for: from one that is not
    there yet it is not."""
    profiles = {key.rpartition("/")[0] for key, _ in (() if asked is None else asked.units)}
    return all(is_profile_held_back(f"{place.build_dir}/{name}") for name in profiles)


def before(
    workspace: Workspace,
    place: Place,
    arguments: Sequence[str],
    cwd: Path,
    *,
    judged: Plan | None = None,
    unchanged: bool = False,
    dry_run: bool = False,
    known: Foreseen | None = None,
    say: Callable[[str], None],
) -> Ready | None:
    """Put into the target what ``cargo <arguments>`` will ask for, as far as the warehouse has it.

    As `look`, and then `give`.
    """
    ready = look(
        workspace,
        place,
        arguments,
        cwd,
        judged=judged,
        unchanged=unchanged,
        dry_run=dry_run,
        known=known,
    )
    return ready if ready is None or dry_run else give(ready, workspace, place, say=say)


def look(
    workspace: Workspace,
    place: Place,
    arguments: Sequence[str],
    cwd: Path,
    *,
    judged: Plan | None = None,
    unchanged: bool = False,
    dry_run: bool = False,
    known: Foreseen | None = None,
    asking: planning.Asking | None = None,
) -> Ready | None:
    """What the warehouse has of what ``cargo <arguments>`` will ask for, and is right here.

    ``judged`` is what a proof found of the target a moment ago; ``unchanged``: nothing has changed
    since the last build, so that what is there is right; ``known`` what was foreseen, ``asking`` a
    Cargo that is asked already.  Of the target nothing is touched but what Cargo learns of the
    compiler while it is asked (not in a ``dry_run``).

    None where the warehouse is off.  Raises CowError.
    """
    since = time.time_ns()
    if surroundings.is_on(cwd) is None:
        return None
    store = surroundings.store_for(place.build_dir, cwd) if known is None else known.store
    if store is None:
        return None
    if known is not None:
        asked = known.asked
    elif asking is not None:
        asked = asking.answer()
    else:
        learned = None if dry_run else _without_probes(place)
        asked = planning.ask(workspace, arguments, cwd, store[0], learned=learned)
    if asked is None:
        return Ready(None, None, None, since, unit_times(place.build_dir))
    complete = planning.is_complete(asked, place.build_dir)
    if complete and unchanged:
        return Ready(asked, None, None, since, unit_times(place.build_dir))
    # Loaded where something has to be built: a build with nothing to do pays for none of it.
    from cargo_cow import prepare
    from cargo_cow.warehouse import grafting

    if judged is None:
        found = prepare.look(workspace, place)
        judged = None if found is None else found.plan
    if complete and (judged is None or planning.is_fresh(asked, judged)):
        return Ready(asked, None, None, since, unit_times(place.build_dir))
    source = grafting.Source(*store, place, cwd, asked)
    if not source.is_own() and source.around is None:
        return None
    if not complete:
        source.begin()  # something will come, most likely
    try:
        wanted = grafting.plan(place, asked, source, judged)
    finally:
        source.end()
    return Ready(asked, wanted, None, since, unit_times(place.build_dir))


def hold(ready: Ready, place: Place) -> HeldBack | None:
    """Make the target ready for what will be put there, so that Cargo can be started meanwhile, and
    held back from it; None where that cannot be had, or nothing is to be put there."""
    from cargo_cow import prepare
    from cargo_cow.warehouse import grafting

    if ready.plan is None or not ready.plan.chosen:
        return None
    prepare.begin(place)
    try:
        grafting.mark(place, ready.plan)
    except CowError:
        return None  # it will be said by who puts something there
    _bring_probes(ready.plan.source.root, Path(place.build_dir))
    return hold_whole(place, ready.asked)


def hold_whole(place: Place, asked: Asked | None) -> HeldBack | None:
    """Hold Cargo back from all that it will ask for; None where that cannot be had."""
    held = hold_back(place.build_dir)
    if held is not None and not is_held_whole(place, asked):
        held.release()
        return None
    return held


def give(ready: Ready, workspace: Workspace, place: Place, *, say: Callable[[str], None]) -> Ready:
    """Put into the target what `look` found.  Raises CowError."""
    wanted, asked = ready.plan, ready.asked
    if wanted is None or asked is None or not wanted.chosen:
        return ready
    from cargo_cow import prepare
    from cargo_cow.warehouse import grafting

    prepare.begin(place)
    done = grafting.act(place, wanted, say=say)
    if done.notes:
        # What was damaged is gone from the store now; others may do in its stead.
        now = prepare.look(workspace, place)
        again = grafting.plan(place, asked, wanted.source, None if now is None else now.plan)
        if again.chosen:
            more = grafting.act(place, again, say=say)
            done = more._replace(keys=done.keys | more.keys, notes=done.notes + more.notes)
    _bring_probes(wanted.source.root, Path(place.build_dir))
    return ready._replace(grafted=done, times=unit_times(place.build_dir))


def _without_probes(place: Place) -> Path | None:
    """A target, there or not yet, in which Cargo has not asked the compiler about itself."""
    target = Path(place.build_dir)
    return None if (target / planning.INFO).exists() else target


def _bring_probes(store: Path, target: Path) -> None:
    """What Cargo learned of the compiler while it planned; it judges itself whether that holds."""
    import shutil

    probes = store / planning.PROBES
    if probes.is_file() and not (target / planning.INFO).exists():
        try:
            shutil.copyfile(probes, target / planning.INFO)
        except OSError:
            return


KEEPING = "CARGO_COW_KEEP"
"""``wait``: a command ends when what it built is kept, for machines that end with it.  ``off``:
whole units are kept where that is asked for."""


def after(ready: Ready, workspace: Workspace, place: Place, arguments: Sequence[str]) -> None:
    """Keep what was built, in a process of its own that ends with it; a build waits for nothing.

    It is this process once more, which has loaded nearly all that it takes: a new one costs as much
    as the rest of the work.  Nothing is raised.
    """
    if not planning.is_planned(arguments) or os.environ.get(KEEPING) == "off":
        return
    cwd = Path.cwd()
    keeper = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        child = os.fork()
    except OSError:
        return
    if child == 0:
        try:
            _stand_alone()
            keep(workspace, place, cwd, arguments, ready.since, keeper)
        finally:
            # Not through what the command has still to do, which is its own.
            os._exit(0)
    if os.environ.get(KEEPING) == "wait":
        os.waitpid(child, 0)


def _stand_alone() -> None:
    """Nobody waits for this process by its files, its terminal or its directory."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    for file in list(Path("/proc/self/fd").iterdir()):
        if int(file.name) > 2:
            # The one that listed them is closed by now.
            with suppress(OSError):
                os.close(int(file.name))
    # The build's user has gone on.
    os.nice(5)


def keep(
    workspace: Workspace,
    place: Place,
    cwd: Path,
    arguments: Sequence[str],
    since: int,
    keeper: int | None = None,
) -> Kept | None:
    """Keep what is built in ``place`` (see ``units.keep``); None where the warehouse is off.

    Raises CowError.
    """
    from cargo_cow.warehouse import units

    store = surroundings.store_for(place.build_dir, cwd)
    asked = planning.ask(workspace, arguments, cwd, None if store is None else store[0])
    if asked is None:
        raise UsageError(
            "Cargo does not say which compiler it calls",
            hint="name a command that builds, such as build or test; a Cargo.lock is needed",
        )
    return units.keep(
        place, cwd, rustc=asked.rustc, toolchain=asked.toolchain, since=since, keeper=keeper
    )
