"""Taking a state: what is built in a target now, kept as it is.

On Btrfs a target that is a subvolume is taken by a read-only snapshot: atomic, so it may be taken
in the middle of a build.  Cargo empties the fingerprint of a unit before it touches anything else
of it, so units in flight are dirty in the state, or dropped when it is activated.  Everything else
is cloned file by file, for which Cargo's build lock is held.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from cargo_cow import filesystems, git, prepare
from cargo_cow.cargo.lock import build_lock
from cargo_cow.cargo.target import Target, profile_directories
from cargo_cow.cargo.toolchain import compiler_of
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.durable import sync_directory
from cargo_cow.errors import CowError, FilesystemFailed, Locked, TargetUnusable
from cargo_cow.filesystems import CloneReport, btrfs, syscalls, temporaries, zfs
from cargo_cow.filesystems.failures import FORBIDDEN, UNSUPPORTED, translated
from cargo_cow.filesystems.mounts import mounts_below, refuse_unusable
from cargo_cow.prepare import unchanged
from cargo_cow.prepare.place import Place, place_of
from cargo_cow.snapshots import state as states
from cargo_cow.snapshots import store as storing
from cargo_cow.snapshots.state import Origin, State, Units
from cargo_cow.snapshots.store import Project
from cargo_cow.telling import silent

_ORDINARY = frozenset(
    {"CACHEDIR.TAG", ".rustc_info.json", ".future-incompat-report.json", ".cargo-cow"}
)


class Taken(NamedTuple):
    """A new state, and how it was taken.  ``notes`` are sentences for people."""

    state: State
    clone: CloneReport
    seconds: float
    collected: tuple[Path, ...]
    notes: tuple[str, ...]


def create(
    workspace: Workspace,
    name: str | None = None,
    *,
    allow_copy: bool = False,
    wait: bool = True,
    say: Callable[[str], None] = silent,
) -> Taken:
    """Keep what is built in the workspace's target now as a state.

    What its units were made from is recorded first, as far as that is not done.  ``name`` is
    unique in the project; without one the state is automatic, and goes by its id.  ``wait``: for
    a build that runs, where the target has to be cloned file by file.

    Raises UsageError (name), StateExists, GitFailed (no repository), TargetUnusable (nothing built;
    a symlink; read-only store), StoreUnusable, Locked, NoSpace, FilesystemFailed (a full copy would
    be needed and was not asked for).
    """
    wanted = None if name is None else states.checked_name(name)
    place = place_of(workspace)
    project = storing.project_of(Path(place.workspace))
    build_dir = Path(place.build_dir)
    _refuse_unbuilt(build_dir)
    with _Git(place) as told:
        if wanted is not None:
            found = storing.everything(project, build_dir)
            storing.refuse_taken([entry for _, entry in found], wanted)
        # As long as that holds, the last build is one of what is checked out, whatever git did
        # since.
        told.current = unchanged.holds(place)
        if not told.current:
            with translated("recording", build_dir):
                prepare.capture_at(Target(place.build_dir), place)
        return _take(
            place,
            project,
            wanted,
            told,
            origin="created",
            allow_copy=allow_copy,
            wait=wait,
            say=say,
        )


def take(
    place: Place,
    project: Project,
    name: str | None,
    *,
    origin: Origin,
    allow_copy: bool,
    wait: bool = True,
    locked: bool = False,
    say: Callable[[str], None] = silent,
    differs: bool = False,
) -> Taken:
    """As `create`, for a target whose records are there.  ``locked``: Cargo's lock is held already.
    ``differs``: the target is known not to be a build of what is checked out.
    """
    with _Git(place, differs=differs) as told:
        return _take(
            place,
            project,
            name,
            told,
            origin=origin,
            allow_copy=allow_copy,
            wait=wait,
            locked=locked,
            say=say,
        )


def _take(
    place: Place,
    project: Project,
    name: str | None,
    told: _Git,
    *,
    origin: Origin,
    allow_copy: bool,
    wait: bool = True,
    locked: bool = False,
    say: Callable[[str], None] = silent,
) -> Taken:
    """As `take`.

    The order makes a kill harmless: everything is made under a temporary's name and durable
    before one rename publishes it.
    """
    build_dir = Path(place.build_dir)
    started = time.monotonic()
    store = storing.store_for(project, build_dir, allow_copy=allow_copy)
    collected = store.collect()
    identity = states.new_id()
    temporary = storing.temporary_state(store, identity)
    try:
        taken = filesystems.clock(store.directory)
        atomic = _is_atomic(build_dir)
        units: Units | None = None
        whole = False
        with ExitStack() as held:
            if not locked:
                try:
                    held.enter_context(
                        build_lock(
                            build_dir,
                            wait=wait and not atomic,
                            waiting=lambda path: say(_waiting(path)),
                        )
                    )
                except Locked:
                    if not atomic:
                        raise
                else:
                    locked = True
            if locked:
                # What Cargo cannot change now is in the state as it is here, where it has been
                # read before: a fresh snapshot is read from the disk.
                units = units_of(build_dir)
                whole = unchanged.is_whole(place, len(units.made))
            target, clone = _taken(build_dir, temporary, identity, allow_copy)
        if units is None:
            units = units_of(target)
        at = told.at(max(units.made.values(), default=0))
        made = State(
            id=identity,
            name=name,
            project=project.id,
            checkout=place.checkout,
            workspace=place.workspace,
            build_dir=place.build_dir,
            branch=at.branch,
            commit=at.commit,
            tree=at.tree,
            clean=at.clean,
            compiler=compiler_of(os.fspath(target)),
            profiles=tuple(
                os.path.relpath(directory, target)
                for directory in profile_directories(os.fspath(target))
            ),
            created=time.time(),
            taken=taken,
            method=clone.method,
            parent=_parent(target, store),
            origin=origin,
            logical_bytes=None
            if clone.method == "snapshot"
            else clone.reflinked_bytes + clone.copied_bytes,
            seal=states.seal(target),
            whole=whole,
        )
        with translated("make a state in", store.directory):
            states.write(temporary, made, units)
        made = store.publish(temporary, made)
    except BaseException:
        with contextlib.suppress(CowError):
            storing.remove_state(temporary)
        temporaries.release(temporary)
        raise
    notes = clone.notes
    if store.shared:
        notes += (f"kept in {store.directory}, which goes with that directory",)
    return Taken(made, clone, time.monotonic() - started, tuple(collected), notes)


def create_snapshot(
    source: Path, dest: Path, read_only: bool = True, *, allow_copy: bool = False
) -> CloneReport:
    """Make ``dest`` a snapshot of the target ``source``, durably; the simplest building block.

    ZFS: a dataset's snapshot, held, and a read-only clone of it mounted at ``dest``.  Btrfs: a
    subvolume's snapshot, or a tree of reflinks in a fresh subvolume (a plain directory, or
    one that holds subvolumes, which a snapshot would show empty), either way set read-only
    if ``read_only``.  Elsewhere a tree of reflinks, or with ``allow_copy`` a copy; nothing can
    make these read-only.  ``dest`` must not exist, and its parent must.

    Needs no lock of Cargo's where ``source`` is a subvolume without subvolumes inside; otherwise
    the caller holds it.  Raises FileExistsError, TargetUnusable, NoSpace, FilesystemFailed.
    """
    started = time.perf_counter()
    if read_only and _is_atomic(source) and not os.path.lexists(dest):
        with translated("take a snapshot of", source):
            refuse_unusable(source)
            try:
                dataset = zfs.find(source)
                if dataset is None:
                    btrfs.snapshot(source, dest, read_only=True)
                else:
                    zfs.take(dataset, dest)
            except zfs.Refused as error:
                if not allow_copy:
                    raise FilesystemFailed(
                        f"{source} cannot be taken as a ZFS snapshot: {error.strerror}",
                        hint="a full copy needs --copy",
                    ) from error
            except OSError as error:
                # EXDEV: dest on another filesystem.  EPERM: not ours, though we may read it.
                if error.errno not in UNSUPPORTED | FORBIDDEN | {errno.EXDEV}:
                    raise
            else:
                # The ioctl commits, as does zfs: the snapshot is durable already.
                seconds = time.perf_counter() - started
                return CloneReport("snapshot", 0, seconds, 0, 0, {}, ())
    try:
        report = filesystems.clone_target(source, dest, allow_copy=allow_copy)
    except FilesystemFailed as error:
        if not allow_copy and not error.hint:
            error.hint = "a full copy needs --copy"
        raise
    if read_only:
        with translated("set read-only", dest):
            if btrfs.is_subvolume(dest):
                btrfs.set_read_only(dest, True)
            syscalls.sync_filesystem(dest)
    return report._replace(seconds=time.perf_counter() - started)


def _taken(
    build_dir: Path, temporary: Path, identity: str, allow_copy: bool
) -> tuple[Path, CloneReport]:
    """Take the target into the directory of the new state; or, a ZFS dataset, to the place where it
    may stay mounted, with a symlink in that directory that leads there."""
    target = temporary / states.TARGET
    dataset = zfs.find(build_dir) if _is_atomic(build_dir) else None
    if dataset is not None and zfs.near(dataset, temporary):
        with translated("take a snapshot of", build_dir):
            place = zfs.place_for_state(dataset, identity)
            target.symlink_to(place)
            sync_directory(temporary)
        try:
            return place, create_snapshot(build_dir, place)
        except FilesystemFailed:
            if not allow_copy:
                raise
            target.unlink()
    return target, create_snapshot(build_dir, target, allow_copy=allow_copy)


def units_of(target: Path, scanned: Target | None = None) -> Units:
    """What is built in a target: units that Cargo could call fresh, and other top-level names.

    ``scanned`` is the target, if it was listed before.
    """
    scanned = scanned or Target(os.fspath(target))
    made: dict[str, int] = {}
    for unit in scanned.units:
        try:
            if os.stat(unit.hash_file).st_size == 0:  # noqa: PTH116 - thousands of units
                continue  # dropped, or in flight: nobody misses it
        except OSError:
            continue
        made[unit.key] = unit.invoked() or 0
    profiles = {
        os.path.relpath(entry.directory, target).split("/")[0] for entry in scanned.profiles
    }
    names = sorted(set(os.listdir(target)) - _ORDINARY - profiles)  # noqa: PTH208
    return Units(made, tuple(names))


def _is_atomic(target: Path) -> bool:
    """Whether a snapshot takes all of the target at one moment."""
    if mounts_below(target):
        return False
    return (btrfs.is_subvolume(target) and not btrfs.nested(target)) or zfs.find(target) is not None


def _refuse_unbuilt(build_dir: Path) -> None:
    if not os.path.lexists(build_dir):
        raise TargetUnusable(f"there is no target at {build_dir}", hint="cargo cow build")
    refuse_unusable(build_dir)
    if not profile_directories(os.fspath(build_dir)):
        raise TargetUnusable(f"nothing is built in {build_dir}", hint="cargo cow build")


def _waiting(path: str) -> str:
    return f"waiting for Cargo's build lock ({path})"


def _parent(target: Path, store: storing.Store) -> str | None:
    """The state that the target was cloned from, by the word that `prepare` leaves in a clone."""
    import json

    try:
        donor = Path(str(json.loads((target / ".cargo-cow/prepared.json").read_bytes())["donor"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = donor.parent == store.directory and states.ID.match(donor.name)
    return donor.name if known else None


class Built(NamedTuple):
    """What was checked out when a target was last built; None where that is not known."""

    commit: str | None
    branch: str | None
    tree: str | None
    clean: bool | None


class Move(NamedTuple):
    """An entry of HEAD's reflog: where it moved, when (seconds), git's word for it, its tree."""

    commit: str
    time: int
    message: str
    tree: str = ""


def built_at(
    head: str | None,
    branch: str | None,
    moves: list[Move],
    built: int,
    *,
    differs: bool = False,
) -> tuple[str | None, str | None]:
    """(commit, branch) that were checked out at ``built`` (seconds); ``moves`` newest first.

    The newest move is known to be later (its time is kept to the nanosecond elsewhere).

    A commit made since then changes no file: what was built before it is a build of it.  A switch,
    a reset, a merge or a rebase changes files: then it is a build of what was there before.  Unless
    it came to the same tree: a new branch, a renamed one, a rebase onto itself.

    ``differs``: what is checked out is known to be other than what was built, so that the newest
    commits hold edits made since then, and a new branch before them was not built.
    """
    switched = False
    for index, move in enumerate(moves):
        if index and move.time <= built:
            break
        is_commit = move.message.startswith("commit")
        if is_commit and (switched or not differs):
            continue
        before = moves[index + 1] if index + 1 < len(moves) else None
        if before is not None and move.tree and move.tree == before.tree and not differs:
            continue
        switched = switched or not is_commit
        head = None if before is None else before.commit
        if move.message.startswith("checkout: moving from "):
            name = move.message.removeprefix("checkout: moving from ").split(" to ")[0]
            branch = None if _COMMIT.match(name) else name
    return head, branch


_COMMIT = re.compile(r"^[0-9a-f]{40,64}$")


class _Git:
    """What git says of the checkout, asked while the snapshot is taken: each answer costs
    as much as the snapshot."""

    current = False
    """Whether the last build is known to be one of what is checked out."""

    def __init__(self, place: Place, *, differs: bool = False) -> None:
        self._place = place
        self._differs = differs
        self._checkout = Path(place.checkout)
        self._asked: list[git.Asked] = []
        with contextlib.suppress(CowError):
            self._asked.append(git.Asked(["status", "--porcelain", "-z"], self._checkout))
            if place.head is not None:
                self._asked.append(git.tree_asked(self._checkout, place.head))

    def __enter__(self) -> _Git:
        return self

    def __exit__(self, *_error: object) -> None:
        for asked in self._asked:
            asked.forget()
        self._asked = []

    def _told(self) -> tuple[bool | None, str | None]:
        """Whether the checkout is clean, and the tree of its commit; None what git does not say."""
        answers = [asked.answer() for asked in self._asked]
        self._asked = []
        clean = None if not answers or answers[0].status else not answers[0].output
        tree = None
        with contextlib.suppress(CowError):
            tree = None if len(answers) < 2 else git.tree_told(answers[1])
        return clean, tree

    def at(self, newest: int) -> Built:
        """What was checked out when the newest unit was made (ns)."""
        clean, tree = self._told()
        head, branch = self._place.head, self._place.branch
        if self.current or newest >= self._place.head_changed:
            return Built(head, branch, tree, clean)
        commit, named = built_at(
            head,
            branch,
            moves_of(self._checkout),
            newest // 1_000_000_000,
            differs=self._differs,
        )
        if commit == head:
            return Built(head, named, tree, clean)
        tree = None
        with contextlib.suppress(CowError):
            tree = None if commit is None else git.tree_id(self._checkout, commit)
        return Built(commit, named, tree, None)


def moves_of(checkout: Path) -> list[Move]:
    """The last hundred moves of HEAD by its reflog, newest first; none where there is no log."""
    arguments = ["log", "-g", "-n", "100", "--date=unix", "--format=%H%x00%gd%x00%gs%x00%T", "-z"]
    answer = git.call([*arguments, "HEAD", "--"], checkout)
    if answer.status:
        return []
    words = os.fsdecode(answer.output).rstrip("\0").split("\0")
    moves = []
    for commit, when, message, tree in zip(*(words[i::4] for i in range(4)), strict=False):
        time_text = when.rpartition("{")[2].rstrip("}")
        if not time_text.isdecimal():
            return []
        moves.append(Move(commit, int(time_text), message, tree))
    return moves
