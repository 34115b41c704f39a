"""Where states are kept: one flat directory per project and filesystem.

The first choice is ``<common git directory>/cargo-cow/states``: it is the user's own, private,
found from every worktree, on the filesystem of the checkouts in most cases, survives each worktree
and goes with the project.  Where the target cannot share data with that place (another filesystem),
it is ``.cargo-cow/states`` beside the target.  Whether two places share is found by cloning a file
from one to the other, never from device numbers: Btrfs subvolumes differ in them and share.

Every such store is noted in ``<common git directory>/cargo-cow/stores/``, so that it is listed and
pruned from every checkout.

    <store>/CACHEDIR.TAG
    <store>/lock                    held while names are given and taken
    <store>/baseline-<project>      the id of the project's baseline
    <store>/<id>/…                  states (see `state`)
    <store>/.<id>.cow-<pid>-<random>/   being made, or being removed

A state is *forgotten first* when it is deleted: renamed to a temporary's name, and only then
removed.  What a kill leaves is such a directory without a living holder, and `collect` removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from cargo_cow import filesystems, git
from cargo_cow.durable import sync_directory
from cargo_cow.errors import (
    CowError,
    FilesystemFailed,
    GitFailed,
    Locked,
    NoSuchState,
    StateExists,
    StoreUnusable,
    TargetUnusable,
)
from cargo_cow.filesystems import btrfs, temporaries, zfs
from cargo_cow.filesystems.clocks import temporary_file
from cargo_cow.filesystems.failures import NO_SPACE, UNSUPPORTED, translated
from cargo_cow.snapshots import state as states
from cargo_cow.snapshots.state import Damaged, State

if TYPE_CHECKING:
    from collections.abc import Iterator

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), include/uapi/linux/fs.h
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This directory holds states of Cargo targets, made by cargo-cow.\n"
    "# They can be made again: see https://bford.info/cachedir/\n"
)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class Project(NamedTuple):
    """A git repository with all its worktrees."""

    id: str
    common_dir: Path


def project_of(directory: Path) -> Project:
    """The project that ``directory`` lies in.  Raises GitFailed outside git."""
    checkout = git.checkout_of(directory)
    if checkout is None:
        if not git.available():
            raise GitFailed("git is not installed", hint="install git, or put it on PATH")
        raise GitFailed(
            f"{directory} is not in a git checkout: states are kept for git repositories",
            hint="git init, and commit what you have",
        )
    common = Path(os.path.realpath(checkout.common_dir))
    return Project(str(blake3(os.fsencode(common)).hexdigest())[:16], common)


def places(project: Project, build_dir: Path) -> tuple[Path, Path]:
    """Where a store for the target at ``build_dir`` may be, in order of preference."""
    return (
        project.common_dir / "cargo-cow" / "states",
        build_dir.parent / ".cargo-cow" / "states",
    )


class Store(NamedTuple):
    """One store, seen by one project.  ``shared``: it may hold states of other projects too.

    ``far``: it is not this target's, but beside that of another checkout.
    """

    directory: Path
    project: Project
    shared: bool
    far: bool = False

    # -- what is there

    def found(self) -> list[State | Damaged]:
        """Everything in the store that is this project's, oldest first.

        Raises StoreUnusable for a store that is not ours alone.
        """
        found = (self.entry(name) for name in self.ids())
        baseline = self.baseline()
        return [
            entry._replace(baseline=entry.id == baseline) if isinstance(entry, State) else entry
            for entry in found
            if entry is not None
        ]

    def ids(self) -> list[str]:
        """The ids of all that is in the store, oldest first.  Raises StoreUnusable."""
        if not self.exists():
            return []
        check(self.directory)
        with translated("list", self.directory):
            names = os.listdir(self.directory)  # noqa: PTH208 - names are what we want
        return sorted(name for name in names if states.ID.match(name))

    def entry(self, identity: str) -> State | Damaged | None:
        """What is in the store under that id; None for another project's state.

        Whether it is the baseline is not looked up.
        """
        entry = states.read(self.directory / identity)
        # A repository that was moved takes its states along, and its id is another.
        is_foreign = isinstance(entry, State) and entry.project != self.project.id
        return None if self.shared and is_foreign else entry

    def exists(self) -> bool:
        """Whether anything was ever kept here."""
        return os.path.lexists(self.directory)

    def baseline(self) -> str | None:
        """The id of the project's baseline; None if there is none."""
        try:
            text = self._baseline_file().read_text("ascii").strip()
        except (OSError, ValueError):
            return None
        return text if states.ID.match(text) else None

    def baseline_is_unclear(self) -> bool:
        """Whether there is a note of the baseline that cannot be read."""
        return os.path.lexists(self._baseline_file()) and self.baseline() is None

    def _baseline_file(self) -> Path:
        return self.directory / (f"baseline-{self.project.id}" if self.shared else "baseline")

    # -- changing it

    def prepare(self) -> None:
        """Make the store, if it is not there, and see that it is ours.

        Raises StoreUnusable, TargetUnusable (read-only), NoSpace, FilesystemFailed.
        """
        if not self.exists():
            with translated("make the store", self.directory):
                self.directory.parent.mkdir(parents=True, exist_ok=True)
                self.directory.mkdir(mode=0o700, exist_ok=True)
                tag = self.directory / "CACHEDIR.TAG"
                if not tag.exists():
                    tag.write_text(_TAG)
                if self.shared:
                    # Beside a target means inside a checkout, mostly: git need not see it.
                    (self.directory.parent / ".gitignore").write_text("*\n")
        check(self.directory)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock: nobody else gives or takes names meanwhile."""
        path = self.directory / "lock"
        with translated("lock", self.directory):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def publish(self, temporary: Path, made: State) -> State:
        """Give the finished state its id.  Raises StateExists if the name was taken meanwhile."""
        with self.locked():
            if made.name is not None:
                refuse_taken(self.found(), made.name)
            path = self.directory / made.id
            with translated("publish", path):
                # Replaces nothing: nobody else gives names meanwhile, and this one is new.
                temporary.rename(path)
                temporaries.release(temporary)
                sync_directory(self.directory)
        return made._replace(path=path)

    def promote(self, chosen: State) -> State | None:
        """Make ``chosen`` the project's baseline; returns the one it was before.

        One file holds the id and is replaced in one step: there is never more than one.
        """
        path = self._baseline_file()
        temporary = path.with_name(f".{path.name}.tmp")
        with self.locked(), translated("promote", chosen.path):
            before = next(
                (
                    entry
                    for entry in self.found()
                    if isinstance(entry, State) and entry.baseline and entry.id != chosen.id
                ),
                None,
            )
            with temporary.open("w", encoding="ascii") as file:
                file.write(f"{chosen.id}\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(self.directory)
        return before

    def forget(self, entry: State | Damaged) -> Path:
        """Take a state out of the store durably; returns where it now waits for its removal.

        The caller holds the store's lock.  Raises Locked while somebody clones from it, and
        NoSuchState if it is gone.
        """
        descriptor = _hold(entry.path, fcntl.LOCK_EX)
        doomed = filesystems.temporary_sibling(entry.path)
        try:
            with translated("delete", entry.path):
                try:
                    entry.path.rename(doomed)
                except OSError as error:
                    if error.errno not in NO_SPACE:
                        raise
                    # No room for a rename, but Btrfs lets unlink have some, at a quota as well:
                    # without its file a state is none.  Killed now, it is "not usable", and goes
                    # with the next prune.
                    doomed = entry.path
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        (doomed / states.STATE_FILE).unlink()
                if self.baseline() == entry.id:
                    self._baseline_file().unlink(missing_ok=True)
                with contextlib.suppress(OSError) if doomed == entry.path else nullcontext():
                    sync_directory(self.directory)
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise
        if descriptor is not None:
            _doomed[doomed] = descriptor
        return doomed

    def leftovers(self) -> list[Path]:
        """What killed commands left half made or half removed: to show."""
        return [
            path
            for name in self._temporary_names()
            for path in filesystems.stale_temporaries(self.directory, name)
        ]

    def closed(self) -> list[Path]:
        """Leftovers that we may not even open: of another user, who alone can remove them."""
        found = [
            self.directory / name
            for name in _names(self.directory)
            if filesystems.is_temporary(Path(name))
        ]
        return [path for path in found if not os.access(path, os.R_OK)]

    def collect(self) -> list[Path]:
        """Remove what killed commands left; returns it."""
        zfs.sweep(self.directory)
        return [
            path
            for name in self._temporary_names()
            for path in filesystems.remove_stale(self.directory, name, remove_state)
        ]

    def _temporary_names(self) -> list[str]:
        found = [Path(name) for name in _names(self.directory)]
        return sorted(
            {
                path.name[1:].rpartition(".cow-")[0]
                for path in found
                if filesystems.is_temporary(path)
            }
        )


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208 - names are what we want
    except OSError:
        return []


_doomed: dict[Path, int] = {}
"""Forgotten states that this process is about to remove, and the descriptor that locks each."""


def remove(doomed: Path) -> None:
    """Remove a forgotten state.  Raises CowError; what is left is then a leftover."""
    try:
        if doomed.is_dir() and not doomed.is_symlink():
            remove_state(doomed)
        else:  # somebody put a file or a symlink in its place
            with translated("delete", doomed):
                doomed.unlink(missing_ok=True)
    finally:
        descriptor = _doomed.pop(doomed, None)
        if descriptor is not None:
            os.close(descriptor)


def remove_state(path: Path) -> None:
    """Remove the directory of a state, half made or whole, and the dataset it may lead to."""
    elsewhere = states.elsewhere(path)
    if elsewhere is not None:
        with translated("delete", elsewhere):
            zfs.remove_state(elsewhere)
    filesystems.remove_target(path)


@contextlib.contextmanager
def in_use(used: State) -> Iterator[None]:
    """Keep a state from being deleted while the body clones from it.

    Raises NoSuchState if that has happened already.
    """
    descriptor = _hold(used.path, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _hold(path: Path, how: int) -> int | None:
    """A descriptor that locks the state at ``path``; None for what is no directory at all.

    Raises NoSuchState if it is gone, and Locked if somebody clones from it (``how`` LOCK_EX).
    """
    gone = NoSuchState(f"the state {path.name} is being deleted, or gone")
    try:
        descriptor = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        raise gone from None
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return None
        raise
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        if how == fcntl.LOCK_SH:
            raise gone from None
        raise Locked(f"the state {path.name} is being cloned") from None
    except OSError:
        pass  # a filesystem without locks (NFS): who deletes there should know what else runs
    try:
        ours, named = os.fstat(descriptor), os.lstat(path)
        still = (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)
    except FileNotFoundError:
        still = False
    if not still:
        os.close(descriptor)
        raise gone
    return descriptor


def refuse_taken(entries: list[State | Damaged], name: str) -> None:
    """Raise StateExists if one of ``entries`` has this name."""
    for entry in entries:
        if isinstance(entry, State) and entry.name == name:
            raise StateExists(f"there is a state {name} already ({entry.id})")


def check(directory: Path) -> None:
    """Raise StoreUnusable unless ``directory`` is a directory that is ours alone.

    Targets hold programs that will be run: a store that others can write to is none.
    """
    with translated("look at the store", directory):
        facts = os.lstat(directory)
    if not directory.is_dir() or directory.is_symlink():
        raise StoreUnusable(f"{directory} is not a directory", hint="move it out of the way")
    if facts.st_uid != os.geteuid():
        raise StoreUnusable(
            f"{directory} belongs to user {facts.st_uid}, not to you ({os.geteuid()})",
            hint="run the command as that user",
        )
    if facts.st_mode & 0o022:
        raise StoreUnusable(f"{directory} can be written by others", hint=f"chmod 700 {directory}")


# -- which store


def stores(project: Project, build_dir: Path, *, near: bool = False) -> list[Store]:
    """The stores that exist for this project, as seen from one of its targets.

    With ``near`` only those that the target's own states would be in; else also those beside
    other targets, as far as they are known (`_note_store`) and ours.
    """
    common, beside = places(project, build_dir)
    found = [
        store
        for store in (Store(common, project, False), Store(beside, project, True))
        if store.exists()
    ]
    if near:
        return found
    for directory in _noted_stores(project):
        if directory in (common, beside):
            continue
        store = Store(directory, project, True, far=True)
        try:
            check(directory)
        except CowError:
            continue  # gone with its target, not mounted, or another's by now
        found.append(store)
    return found


def _notes(project: Project) -> Path:
    return project.common_dir / "cargo-cow" / "stores"


def _note_store(project: Project, directory: Path) -> None:
    """Leave word of a store beside a target, so that every checkout finds it.

    A file for each, made and never changed: nothing to lock.  Where the repository may not be
    written to, the store is found from its own target alone.
    """
    text = os.fsencode(directory)
    note = _notes(project) / str(blake3(text).hexdigest())[:16]
    with contextlib.suppress(OSError):
        if not note.exists():
            note.parent.mkdir(parents=True, exist_ok=True)
            temporary = note.with_name(f".{note.name}.{os.getpid()}.tmp")
            temporary.write_bytes(text)
            temporary.replace(note)


def _noted_stores(project: Project) -> list[Path]:
    found = []
    with contextlib.suppress(OSError):
        found += [
            Path(os.fsdecode(note.read_bytes()))
            for note in sorted(_notes(project).iterdir())
            if not note.name.startswith(".")
        ]
    return found


def store_for(project: Project, build_dir: Path, *, allow_copy: bool = False) -> Store:
    """The store that can share data with the target at ``build_dir``; made, if need be.

    Raises FilesystemFailed where none can and copies were not asked for; TargetUnusable (read-only,
    forbidden), StoreUnusable, NoSpace.
    """
    common, beside = places(project, build_dir)
    candidates = (Store(common, project, False), Store(beside, project, True))
    for store in candidates:
        if shares(build_dir, store.directory):
            store.prepare()
            if store.shared:
                _note_store(project, store.directory)
            return store
    if not allow_copy:
        from cargo_cow.filesystems.mounts import filesystem_name

        raise FilesystemFailed(
            f"a state of {build_dir} would be a full copy: its filesystem "
            f"({filesystem_name(build_dir)}) cannot share data between files",
            hint="--copy makes one all the same",
        )
    candidates[0].prepare()
    return candidates[0]


def shares(target: Path, place: Path) -> bool:
    """Whether files below ``target`` can be cloned to ``place``, by cloning one.

    ``place`` need not exist: its nearest ancestor that does is tried.  A ZFS dataset is
    snapshotted where it lies: the same pool is near enough.
    Raises TargetUnusable (nothing built, read-only, forbidden), NoSpace, FilesystemFailed.
    """
    source = _some_file(target)
    if source is None:
        raise TargetUnusable(f"nothing is built in {target}", hint="cargo cow build")
    while not place.is_dir():
        place = place.parent
    dataset = zfs.find(target)
    if dataset is not None and zfs.near(dataset, place):
        return True
    with translated("write to", place), source.open("rb") as data:
        descriptor = temporary_file(place)
        try:
            fcntl.ioctl(descriptor, _FICLONE, data.fileno())
        except OSError as error:
            # A target with nodatacow (chattr +C) is not reflinked to a file without, but can be
            # snapshotted: EINVAL says at least that the filesystem is the same one.
            if error.errno == errno.EINVAL and btrfs.is_subvolume(target):
                return True
            if error.errno in UNSUPPORTED | {errno.EXDEV}:
                return False
            raise
        finally:
            os.close(descriptor)
    return True


def _some_file(target: Path) -> Path | None:
    for name in ("CACHEDIR.TAG", ".rustc_info.json"):
        path = target / name
        if path.is_file() and not path.is_symlink() and path.stat().st_size:
            return path
    for directory, _, files in os.walk(target):
        for name in files:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                return path
    return None


def everything(
    project: Project, build_dir: Path, *, near: bool = False
) -> list[tuple[Store, State | Damaged]]:
    """All states of the project, oldest first; with ``near`` those that share data with the
    target."""
    result = [
        (store, entry) for store in stores(project, build_dir, near=near) for entry in store.found()
    ]
    return sorted(result, key=lambda pair: pair[1].id)


def newest_first(project: Project, build_dir: Path) -> Iterator[State]:
    """The usable states of the project, newest first, each read when it is asked for."""
    there = [(identity, store) for store in stores(project, build_dir) for identity in store.ids()]
    for identity, store in sorted(there, key=lambda pair: pair[0], reverse=True):
        entry = store.entry(identity)
        if isinstance(entry, State):
            yield entry


def named(project: Project, build_dir: Path, wanted: str) -> tuple[Store, State | Damaged]:
    """The state of that name, or whose id is or begins so.  Raises NoSuchState."""
    found = everything(project, build_dir)
    for exact in (
        [pair for pair in found if isinstance(pair[1], State) and pair[1].name == wanted],
        [pair for pair in found if pair[1].id == wanted],
    ):
        if exact:
            return exact[0]
    beginning = [pair for pair in found if wanted and pair[1].id.startswith(wanted)]
    if len(beginning) == 1:
        return beginning[0]
    if beginning:
        several = ", ".join(entry.id for _, entry in beginning[:3])
        raise NoSuchState(f"{wanted} may be any of {several}")
    raise NoSuchState(f"no state of this project is called {wanted!a}")


def usable(entry: State | Damaged) -> State:
    """The state, or StateDamaged."""
    if isinstance(entry, Damaged):
        error = states.damaged(entry.id, entry.reason)
        if entry.foreign:
            error.hint = "a later cargo-cow made it; this one leaves it alone"
        raise error
    return entry


def temporary_state(store: Store, identity: str) -> Path:
    """A directory in which a state can be made: private, and held until it is published."""
    path = filesystems.temporary_sibling(store.directory / identity)
    with translated("make a state in", store.directory):
        temporaries.make(path, lambda: path.mkdir(mode=0o700))
    return path
