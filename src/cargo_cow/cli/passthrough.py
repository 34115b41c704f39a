"""``cargo cow VERB ARGS…`` for Cargo's verbs: prepare, the real Cargo, capture.

Exit status and output are Cargo's.  Whatever goes wrong on our side is said once on stderr, and
plain Cargo does its work.  On the path of every build: imports are counted here, above all those
before Cargo is started.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow import processes
from cargo_cow.cargo.lock import HeldBack, hold_back
from cargo_cow.cargo.target import Target, unit_times
from cargo_cow.cargo.workspace import Workspace, cargo_program, load
from cargo_cow.errors import CowError, NotACargoProject
from cargo_cow.prepare import identity
from cargo_cow.prepare.place import FIXED_PATH, Place, place_of
from cargo_cow.warehouse.surroundings import is_on as warehouse_is_on

if TYPE_CHECKING:
    from cargo_cow import git
    from cargo_cow.prepare import Look, Report, unchanged
    from cargo_cow.prepare.begun import Begun
    from cargo_cow.prepare.proof import Plan
    from cargo_cow.warehouse.building import Foreseen
    from cargo_cow.warehouse.building import Ready as Stored
    from cargo_cow.warehouse.planning import Asking

# Verbs that compile nothing, or that must see the target as it is.
NOT_PREPARED = frozenset(
    """
    add clean config fetch fmt generate-lockfile help info init install locate-project login logout
    metadata new owner package pkgid publish read-manifest remove report rm search tree uninstall
    update vendor verify-project version yank
    """.split()
)


# Verbs of Cargo, and clippy, that take `--config` and compile.
_COMPILING = frozenset("b bench build c check clippy d doc fix r run rustc rustdoc t test".split())
SANDBOX = "--sandbox"


def run(arguments: Sequence[str]) -> int:
    """Run ``cargo <arguments>`` on a prepared target; returns Cargo's exit status."""
    verb, rest = arguments[0], list(arguments[1:])
    if SANDBOX in _before_separator(rest):
        from cargo_cow.cli.sandboxed import run_cargo

        return run_cargo(verb, rest, prepared=verb not in NOT_PREPARED)
    help_wanted = any(argument in ("-h", "--help") for argument in _before_separator(rest))
    found = None
    if verb not in NOT_PREPARED and not help_wanted:
        found = _find(rest)
    if found is None:
        return _cargo(arguments, None, None)
    foresight = _foresee(found, arguments) if verb in _COMPILING else _Foresight()
    held = _hold_back(found.place, foresight.known) if foresight.early else None
    if held is not None:
        return _at_once(found, arguments, held, foresight.known)
    with _asking(found, arguments) if foresight.ask else nullcontext() as asking:
        return _in_turn(found, arguments, foresight.known, asking)


def _in_turn(
    found: _Found, arguments: Sequence[str], known: Foreseen | None, asking: Asking | None
) -> int:
    """Prepare, and then run Cargo: once it is known what the warehouse will give."""
    ready = _prepare(found)
    stored = _look(ready, arguments, known, asking)
    if stored is not None and stored.plan is not None and stored.plan.chosen:
        held = _hold_for(ready.place, stored)
        if held is not None:
            return _given_meanwhile(ready, stored, arguments, held, asking)
        stored = _give(ready, stored)
    environment = None
    if arguments[0] in _COMPILING and (stored is not None or identity.is_wished(ready.place)):
        arguments, environment = _with_shim(arguments)
    if stored is not None:
        environment = _kept_by_us(environment)
    ahead = _Ahead(ready)

    def meanwhile() -> None:
        if asking is not None:
            asking.end()
        ahead()

    began = time.time_ns()
    status = _cargo(arguments, environment, meanwhile)
    _capture(ready, ahead, began)
    if stored is not None:
        _store(ready, stored, arguments)
    return status


class _Foresight(NamedTuple):
    """What can be told before anything is done.

    ``known``: what the warehouse may be asked for (None: it is off, or nobody knows); ``ask``:
    Cargo has to be asked for that; ``early``: it may be started before the target is prepared.
    """

    known: Foreseen | None = None
    ask: bool = False
    early: bool = False


def _foresee(found: _Found, arguments: Sequence[str]) -> _Foresight:
    workspace, place = found
    try:
        if warehouse_is_on(Path.cwd()) is None:
            return _Foresight(early=True)
        from cargo_cow.warehouse import building

        known = building.foreseen(workspace, place, arguments, Path.cwd())
        if known is None:
            return _Foresight(ask=True)
        return _Foresight(known, early=True)
    except CowError:
        return _Foresight()  # said by whoever asks next


def _asking(found: _Found, arguments: Sequence[str]) -> AbstractContextManager[Asking | None]:
    """Cargo, asked what it wants while the target is prepared."""
    from cargo_cow.warehouse import building

    try:
        asking = building.asking(found.workspace, found.place, arguments, Path.cwd())
    except CowError:
        asking = None  # said by whoever asks next
    return nullcontext() if asking is None else asking


def _hold_back(place: Place, known: Foreseen | None) -> HeldBack | None:
    """Hold Cargo back from the target, if it can be."""
    if os.environ.get(FIXED_PATH):
        return None
    if not identity.is_wished(place) and identity.seen_in(place.build_dir) not in (
        None,
        identity.own(place),
    ):
        return None  # it may get an identity, and Cargo has to be told before it starts
    if known is None:
        return hold_back(place.build_dir)
    from cargo_cow.warehouse import building

    return building.hold_whole(place, known.asked)


def _at_once(
    found: _Found, arguments: Sequence[str], held: HeldBack, known: Foreseen | None
) -> int:
    """Run Cargo, and prepare while it reads manifests and resolves.

    That is more than half of a build of nothing, and Cargo asks nothing of the target before it has
    its lock.
    """

    def prepare() -> tuple[_Ready, Stored | None]:
        ready = _prepare(found)
        if known is None or known.store is None:
            return ready, None
        stored = _look(ready, arguments, known)
        return ready, None if stored is None else _give(ready, stored)

    served = known is not None and known.store is not None
    return _beside(arguments, held, prepare, shim=served or identity.is_wished(found.place))


def _given_meanwhile(
    ready: _Ready,
    stored: Stored,
    arguments: Sequence[str],
    held: HeldBack,
    asking: Asking | None,
) -> int:
    """Run Cargo, and put into the target what the warehouse has while it reads and resolves."""

    def give() -> tuple[_Ready, Stored | None]:
        given = _give(ready, stored)
        if asking is not None:
            asking.end()
        return ready, given

    return _beside(arguments, held, give, shim=True)


def _beside(
    arguments: Sequence[str],
    held: HeldBack,
    work: Callable[[], tuple[_Ready, Stored | None]],
    *,
    shim: bool,
) -> int:
    """Run Cargo, held back from the target until ``work`` on that is done."""
    ready: _Ready | None = None
    stored: Stored | None = None
    ahead: _Ahead | None = None

    def first() -> None:
        nonlocal ready, stored, ahead
        with held:
            ready, stored = work()
            if stored is not None:
                # Nobody else has built since: Cargo is held back from before it was started.
                stored = stored._replace(since=min(stored.since, began))
            if stored is not None and stored.grafted is not None:
                # There is more now than was looked at.
                ready = ready._replace(found=None)
            ahead = _Ahead(ready)

    def meanwhile() -> None:
        if ahead is not None:
            ahead()

    with held:
        words, environment = _with_shim(arguments) if shim else (arguments, None)
        if shim:
            environment = _kept_by_us(environment)
        began = time.time_ns()
        status = _cargo(words, environment, meanwhile, first=first)
    if ready is not None:
        _capture(ready, ahead, began)
        if stored is not None:
            _store(ready, stored, arguments)
    return status


class _Found(NamedTuple):
    """What Cargo will work on."""

    workspace: Workspace
    place: Place


class _Ready(NamedTuple):
    """A prepared workspace; ``noted``: nothing had changed since the last build's note, ``fresh``:
    something had, and Cargo will find nothing to build all the same.

    ``plan`` is what was found of its target, if anything was looked at, and ``found`` all of that,
    where it still holds.
    """

    workspace: Workspace
    place: Place
    noted: bool
    plan: Plan | None = None
    fresh: bool = False
    found: Look | None = None


class _Ahead:
    """What is done while Cargo runs, for when it has ended.

    A Cargo that builds nothing takes as long as we do to see what there is for the next proof; one
    that builds gets the machine to itself.
    """

    def __init__(self, ready: _Ready) -> None:
        self._ready = ready
        self._units = unit_times(ready.place.build_dir) if ready.fresh else {}
        self.draft: unchanged.Draft | None = None
        self.question: git.Asked | None = None

    def __call__(self) -> None:
        place = self._ready.place
        if self._ready.noted:
            from cargo_cow.prepare import unchanged

            if unchanged.awaits_what_is_missing(place.build_dir):
                # What is built will be recorded: the rooms for that are loaded meanwhile.
                from cargo_cow import prepare  # noqa: F401
                from cargo_cow.snapshots import housekeeping
            return
        with suppress(CowError, OSError):
            if not os.environ.get(FIXED_PATH):
                from cargo_cow.snapshots import housekeeping

                self.question = housekeeping.begin(self._ready.workspace)
            if self._units:
                from cargo_cow.prepare import unchanged

                self.draft = unchanged.draft(place, self._units, self._ready.found)

    def serves(self) -> bool:
        """Whether the draft is all that there is to say, and to record."""
        from cargo_cow.prepare import unchanged

        place = self._ready.place
        drafted = self.draft
        return drafted is not None and drafted.captured and unchanged.serves(place, drafted)


def _look(
    ready: _Ready,
    arguments: Sequence[str],
    known: Foreseen | None = None,
    asking: Asking | None = None,
) -> Stored | None:
    """What the warehouse has of the command's units; None where it is off, or of no use."""
    try:
        if warehouse_is_on(Path.cwd()) is None:
            return None
        from cargo_cow.warehouse import building

        return building.look(
            ready.workspace,
            ready.place,
            arguments,
            Path.cwd(),
            judged=ready.plan,
            unchanged=ready.noted,
            known=known,
            asking=asking,
        )
    except CowError as error:
        _warn(f"the warehouse is of no use here: {error}", error.hint)
        return None


def _hold_for(place: Place, stored: Stored) -> HeldBack | None:
    """Hold Cargo back from what is to be put into the target."""
    if os.environ.get(FIXED_PATH):
        return None
    from cargo_cow.warehouse import building

    return building.hold(stored, place)


def _give(ready: _Ready, stored: Stored) -> Stored | None:
    """Put into the target what the warehouse has of the command's units."""
    from cargo_cow.warehouse import building

    try:
        stored = building.give(stored, ready.workspace, ready.place, say=_say)
    except CowError as error:
        _warn(f"the warehouse is of no use here: {error}", error.hint)
        return None
    if stored.grafted is not None:
        grafted = stored.grafted
        for note in grafted.notes:
            _warn(f"not all of the warehouse is usable: {note}", "")
        _say(f"{len(grafted.keys)} units came from the warehouse")
    return stored


def _store(ready: _Ready, stored: Stored, arguments: Sequence[str]) -> None:
    """Keep what is new in the target, once this command has ended."""
    from cargo_cow.warehouse import building

    if unit_times(ready.place.build_dir) != stored.times:
        building.after(stored, ready.workspace, ready.place, arguments)


def _with_shim(arguments: Sequence[str]) -> tuple[Sequence[str], dict[str, str] | None]:
    """The call with our shim before the compiler, where no wrapper is configured.

    In a checkout that has an identity the shim alone makes use of it, and the warehouse answers
    single calls through it.  By `--config` and not by
    RUSTC_WRAPPER, which build scripts may declare, and tests that run Cargo would inherit.
    """
    from cargo_cow import native
    from cargo_cow.cargo import configuration

    try:
        if configuration.effective_wrapper(Path.cwd()) is not None:
            return arguments, None
        program = json.dumps(str(native.program()))  # a TOML string as well
    except CowError:
        return arguments, None
    if any("rustc-wrapper" in argument for argument in arguments):
        return arguments, None
    # The target was prepared: the shim need not look for one.
    environment = {**os.environ, "CARGO_COW_SEEDING": "1"}
    wrapper = ["--config", f"build.rustc-wrapper={program}"]
    return [arguments[0], *wrapper, *arguments[1:]], environment


def _kept_by_us(environment: dict[str, str] | None) -> dict[str, str]:
    """What Cargo is started with where we keep what it builds: the shim need not wait for its end,
    and notes that it is ours (`follow.rs`, `runs.rs`)."""
    return {**(environment or os.environ), "CARGO_COW_KEEPER": str(os.getpid())}


def _before_separator(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _find(arguments: list[str]) -> _Found | None:
    """None, and a warning, where that cannot be told."""
    try:
        workspace = load(Path.cwd(), arguments)
    except NotACargoProject:
        return None  # Cargo says it better
    except CowError as error:
        _warn(f"not prepared: {error}", error.hint)
        return None
    return _Found(workspace, place_of(workspace))


def _prepare(found: _Found) -> _Ready:
    from cargo_cow.prepare import unchanged
    from cargo_cow.prepare.begun import begin

    workspace, place = found
    if unchanged.holds(place):
        return _Ready(workspace, place, noted=True)
    begun = begin(place) if os.path.isdir(place.build_dir) else None
    try:
        report = make_fresh(workspace, begun)
    finally:
        if begun is not None:
            begun.forget()
    plan = None if report is None else report.plan
    fresh = plan is not None and not plan.count("unproven") and not plan.count("dirty")
    if report is not None and report.applied is not None:
        # What was made fresh was made so for this command; what else is there may be of others.
        fresh = fresh or report.applied.stamped > 0 or report.grafted > 0
    found_here = None if report is None else report.found
    return _Ready(workspace, place, noted=False, plan=plan, fresh=fresh, found=found_here)


def make_fresh(workspace: Workspace, begun: Begun | None = None) -> Report | None:
    """Prepare, and say on stderr what is worth it; None if that failed.

    ``begun`` is what of it was begun before.
    """
    from cargo_cow import prepare
    from cargo_cow.prepare.declared import problems
    from cargo_cow.snapshots import switching

    place = place_of(workspace)
    for problem in problems(place):
        _warn(problem, "")
    try:
        report = switching.switched(workspace, say=_say, again=False, begun=begun, place=place)
    except CowError as error:
        _warn(f"not prepared: {error}", error.hint)
        return None
    else:
        if report.donor is not None:
            assert report.plan is not None
            _say(
                f"target cloned from {report.donor} ({report.method}): "
                f"{report.plan.count('proven')} units proven, {report.plan.count('kept')} kept, "
                f"{len(report.plan.drop)} dropped"
            )
        elif report.method == "none":
            prepare.begin(place)
        elif report.grafted:
            _say(f"{report.grafted} units came back from states and other checkouts")
    return report


def _capture(ready: _Ready, ahead: _Ahead | None, began: int) -> None:
    from cargo_cow.prepare import unchanged

    if ready.noted and unchanged.is_of_all(ready.place):
        return  # nothing was built, and whether the note still holds is asked by the next build
    if ahead is not None and ahead.draft is not None and ahead.serves():
        unchanged.leave(ready.place, ahead.draft)
    else:
        remember(ready.workspace, ready.place, since=began)
    tidy(ready.workspace, None if ahead is None else ahead.question)


def remember(workspace: Workspace, place: Place, *, since: int | None = None) -> bool:
    """Record what was built there, for the next proof; False if that failed.

    ``since`` (ns) is when a build began whose variables are those of now.
    """
    if not os.path.isdir(place.build_dir):
        return True  # nothing was built
    from cargo_cow import prepare
    from cargo_cow.filesystems.failures import translated
    from cargo_cow.prepare import unchanged

    units = unit_times(place.build_dir)
    target = Target(place.build_dir)
    try:
        with translated("recording", Path(place.build_dir)):
            # The place anew: somebody may have committed since the build began.
            prepare.capture_at(target, place_of(workspace), since=since)
    except CowError as error:
        _warn(f"not recorded: {error}", "")
        return False
    unchanged.note(place, units, target)
    return True


def tidy(workspace: Workspace, question: git.Asked | None = None) -> None:
    """Keep house among the states of the project (see `housekeeping.tidy`)."""
    if os.environ.get(FIXED_PATH):
        return  # it asks git where the checkouts are, which is not the same there
    from cargo_cow.snapshots import housekeeping

    try:
        housekeeping.tidy(workspace, say=_say, question=question)
    except CowError as error:
        _warn(f"states are not pruned: {error}", error.hint)


def _cargo(
    arguments: Sequence[str],
    environment: dict[str, str] | None,
    meanwhile: Callable[[], None] | None,
    *,
    first: Callable[[], None] | None = None,
) -> int:
    """Run Cargo with our stdio; signals reach it, and its status is ours (see `processes.run`)."""
    program = cargo_program()
    try:
        command = [program, *arguments]
        return processes.run(command, environment or os.environ, first=first, meanwhile=meanwhile)
    except OSError as error:
        _warn(f"{program}: {error.strerror}", "install Rust, or put cargo on PATH")
        return 127


def _say(message: str) -> None:
    print(f"cargo-cow: {message}", file=sys.stderr)


def _warn(message: str, hint: str) -> None:
    _say(f"warning: {message}")
    if hint:
        _say(f"  {hint}")
