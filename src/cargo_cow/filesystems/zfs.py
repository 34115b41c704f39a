"""ZFS datasets as targets: the one gateway to ``zfs``.

A target can be snapshotted and cloned in constant time where it is a dataset of its own.  Such
datasets lie below a *container*, which ``cargo cow init`` makes for root (or an administrator by
hand): ``<dataset of the checkout>/cargo-cow``, not mounted itself, known by a user property that
those below inherit.  Nothing outside of a container is ever touched.

    <container>/<random>      a target, mounted at its place; canmount=on once it has its name
    <container>/<id>          a state: a read-only clone of its snapshot, mounted below the
                              container's mountpoint
    …@cow-<name>              the snapshot a clone comes from; those of states are held

A dataset is a mount, and renameat2(2) answers EBUSY for one.  So targets change names as mounts
do: open_tree(2) holds one, move_mount(2) puts it in place, *beneath* the old one where the kernel
can (6.5), so that there is always a target.  The property ``mountpoint``, which decides after the
next boot, is set before that, by a ``zfs`` for which the dataset is not mounted (`_settle`).

mount(2) is root's on Linux, whatever ``zfs allow`` delegates: without root, ``Refused``, and the
caller goes on from there.  Read: zfs(8), zfsprops(7), zfs-allow(8) of OpenZFS 2.3; tried on
zfs-fuse 0.7, which lacks ``list -p``, ``guid``, ``clones``, bookmarks and ``.zfs``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow.filesystems import mounts, syscalls, temporaries

if TYPE_CHECKING:
    from collections.abc import Callable

CONTAINER = "cargo-cow"
_PROPERTY = "cargo-cow:container"
_STATE = "cargo-cow:state"
_HOLD = "cargo-cow"
_PATIENCE = 3.0
"""Seconds that a dataset may stay busy until its removal is left to a later `sweep`."""
_ORPHAN_AGE = 60
"""Seconds after which a dataset that nobody mounts is nobody's work in progress."""


class Refused(OSError):
    """``zfs`` said no, or is not there; nothing was changed, or it is undone.

    ``strerror`` is what it said.
    """


class Dataset(NamedTuple):
    """A dataset of ours."""

    name: str
    container: str


class _Member(NamedTuple):
    """A dataset in a container, as ``zfs`` lists it."""

    name: str
    origin: str
    mountpoint: str
    mounted: bool
    canmount: str
    creation: int


def _zfs(*arguments: str) -> list[list[str]]:
    """Run ``zfs``; the tab-separated fields of each line it prints.  Raises Refused."""
    import shutil
    import subprocess

    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    program = shutil.which("zfs", path=search)
    if program is None:
        raise Refused(errno.ENOENT, "zfs is not installed")
    done = subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode:
        words = os.fsdecode(done.stderr).strip().splitlines()
        told = words[0] if words else f"exit status {done.returncode}"
        raise Refused(errno.EIO, f"zfs {arguments[0]}: {told}")
    return [line.split("\t") for line in os.fsdecode(done.stdout).splitlines()]


def _properties(name: str, *wanted: str) -> dict[str, tuple[str, str]]:
    """(value, source) by property; sizes in bytes, times in seconds."""
    lines = _zfs("get", "-Hp", "-o", "property,value,source", ",".join(wanted), name)
    return {line[0]: (line[1], line[2]) for line in lines}


# -- what is there


def find(path: Path) -> Dataset | None:
    """The dataset of ours that is mounted at ``path``; None for everything else.

    The mount's type only saves everybody else the question; ``zfs`` answers it.
    """
    mount = mounts.mount_at(path)
    if mount is None or not mount.kind.endswith("zfs") or mount.root != "/":
        return None
    return _ours(mount.source)


def _ours(name: str) -> Dataset | None:
    container = name.rpartition("/")[0]
    try:
        value, source = _properties(name, _PROPERTY)[_PROPERTY]
    except (Refused, KeyError):
        return None
    return Dataset(name, container) if (value, source) == ("1", _inherited(container)) else None


def _inherited(container: str) -> str:
    return f"inherited from {container}"


def container_for(directory: Path) -> str | None:
    """The container of the dataset that ``directory`` lies in; None if there is none.

    For a directory in a target of ours, the one that the target is in.
    """
    holder = _holder(directory)
    if holder is None:
        return None
    name = f"{holder}/{CONTAINER}"
    with contextlib.suppress(Refused, KeyError):
        if _properties(name, _PROPERTY)[_PROPERTY] == ("1", "local"):
            return name
    ours = _ours(holder)
    return None if ours is None else ours.container


def _holder(directory: Path) -> str | None:
    mount = mounts.mount_of(directory)
    if mount is None or not mount.kind.endswith("zfs"):
        return None
    return mount.source


def near(dataset: Dataset, directory: Path) -> bool:
    """Whether ``directory`` lies in the same pool as ``dataset``."""
    while not directory.is_dir():
        directory = directory.parent
    holder = _holder(directory)
    return holder is not None and holder.split("/")[0] == dataset.name.split("/")[0]


def _members(container: str) -> list[_Member]:
    wanted = "name,origin,mountpoint,mounted,canmount"
    listed = _zfs("list", "-H", "-r", "-t", "filesystem", "-o", wanted, container)
    # `list -p` and `get -t` are younger than these.
    ages = _zfs("get", "-Hp", "-r", "-o", "name,value", "creation", container)
    made = {name: int(value) for name, value in ages}
    return [
        _Member(name, origin, point, mounted == "yes", canmount, made.get(name, 0))
        for name, origin, point, mounted, canmount in listed
        if name != container
    ]


def _snapshots(name: str) -> list[str]:
    """Snapshots of the dataset itself, oldest first."""
    listed = _zfs("list", "-H", "-r", "-t", "snapshot", "-o", "name", name)
    return [line[0] for line in listed if line[0].partition("@")[0] == name]


def exclusive(dataset: Dataset) -> int:
    """Bytes that come back at least if this target or state goes and nothing else, as ZFS counts.

    Of a state, what only its snapshot holds; of a target, what was written since its newest
    snapshot, or, where ZFS does not tell that, what it holds beyond its origin.  What two of them
    share comes back with both, and is in neither figure.  Counted when a transaction group ends.
    Raises Refused.
    """
    if _properties(dataset.name, _STATE)[_STATE][0] != "-":
        return int(_properties(_snapshot_of_state(dataset.name), "used")["used"][0])
    try:
        return int(_properties(dataset.name, "written")["written"][0])
    except Refused:  # zfs-fuse
        facts = _properties(dataset.name, "used", "usedbysnapshots", "origin")
    if facts["origin"][0] == "-" and _snapshots(dataset.name):
        return 0  # all of it may be in a snapshot
    return int(facts["used"][0]) - int(facts["usedbysnapshots"][0])


# -- containers


def may_contain(directory: Path) -> Path | None:
    """Where the dataset of ``directory`` is mounted, if a container can be made in it by us; None
    if it is no dataset that ``zfs`` knows, has one, or we are not root."""
    mount = mounts.mount_of(directory)
    if mount is None or os.geteuid() != 0 or not mount.kind.endswith("zfs") or mount.root != "/":
        return None
    try:
        _properties(mount.source, "type")
    except Refused:
        return None
    return mount.point if container_for(directory) is None else None


def make_container(directory: Path) -> str:
    """Make the container of the dataset that ``directory`` lies in; its name.

    Its mountpoint is below the place where that dataset is mounted now, be it by property or as
    a legacy mount.  Raises Refused.
    """
    mount = mounts.mount_of(directory)
    if mount is None or not mount.kind.endswith("zfs") or mount.root != "/":
        raise Refused(errno.ENOTSUP, f"{directory} is not on ZFS")
    name = f"{mount.source}/{CONTAINER}"
    place = mount.point / f".{CONTAINER}"
    made = not place.exists()
    place.mkdir(mode=0o700, exist_ok=True)
    ignore = place / ".gitignore"
    if not ignore.exists():  # the dataset may be a checkout
        ignore.write_text("*\n")
    try:
        # zfs-auto-snapshot would keep every target for ever.
        unkept = "com.sun:auto-snapshot=false"
        options = _options("canmount=off", f"mountpoint={place}", f"{_PROPERTY}=1", unkept)
        _zfs("create", *options, name)
    except BaseException:
        if made:
            ignore.unlink()
            place.rmdir()
        raise
    return name


def place_for_state(dataset: Dataset, identity: str) -> Path:
    """Where the state called ``identity`` of this target is to be mounted.  Raises Refused."""
    value, _ = _properties(dataset.container, "mountpoint")["mountpoint"]
    return Path(value) / identity


# -- making


def create(path: Path, container: str) -> None:
    """Make an empty target at ``path``.  Raises Refused; FileExistsError if it is there."""
    _make(path, container, lambda name, *options: _zfs("create", *options, name))


def clone(dataset: Dataset, path: Path) -> None:
    """Make a writable clone of ``dataset`` at ``path``; of a state, of its very snapshot.

    The snapshot in between goes with the last that needs it.  Raises Refused.
    """

    def cloned(name: str, *options: str) -> None:
        _zfs("clone", *options, snapshot, name)

    if _properties(dataset.name, _STATE)[_STATE][0] != "-":
        snapshot = _snapshot_of_state(dataset.name)
        _make(path, dataset.container, cloned)
        return
    snapshot = f"{dataset.name}@cow-{os.urandom(6).hex()}"
    _zfs("snapshot", snapshot)
    try:
        _make(path, dataset.container, cloned)
    finally:
        with contextlib.suppress(Refused):
            _zfs("destroy", "-d", snapshot)  # when its last clone goes


def _options(*settings: str) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("-o", setting))


def _make(path: Path, container: str, act: Callable[..., object]) -> None:
    """Let ``act(name, *options)`` make a dataset, and mount it at ``path``."""
    name = f"{container}/{os.urandom(6).hex()}"
    path.mkdir()
    try:
        act(name, *_options("canmount=noauto", f"mountpoint={path}"))
        try:
            if mounts.mount_at(path) is None:  # an old `zfs clone` mounts what it makes
                _zfs("mount", name)
            if not temporaries.is_temporary(path):
                _set(name, path, "canmount=on")
        except BaseException:
            with contextlib.suppress(Refused):
                _destroy(name)
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            path.rmdir()
        raise


def take(dataset: Dataset, path: Path) -> None:
    """Take a snapshot of ``dataset``, hold it, and mount a read-only clone of it at ``path``.

    Atomic, in constant time, and durable: ``zfs snapshot`` returns when its transaction group is
    on disk.  Raises Refused.
    """
    name = f"{dataset.container}/{path.name}"
    snapshot = f"{dataset.name}@cow-{path.name}"
    _zfs("snapshot", snapshot)
    try:
        _zfs("hold", _HOLD, snapshot)
        options = _options("readonly=on", f"mountpoint={path}", f"{_STATE}={path.name}")
        _zfs("clone", *options, snapshot, name)
    except BaseException:
        with contextlib.suppress(Refused):
            _drop_snapshot(snapshot)
        raise


def _snapshot_of_state(name: str) -> str:
    """The snapshot a state was made of; its own, once the state was promoted."""
    value, _ = _properties(name, _STATE)[_STATE]
    origin, _ = _properties(name, "origin")["origin"]
    if origin.endswith(f"@cow-{value}"):
        return origin
    return f"{name}@cow-{value}"


def seal(dataset: Dataset) -> str | None:
    """What tells that a state is as it was made; None if it is none.

    What it is cloned from is a snapshot, which cannot change.  The read-only clone through which it
    is looked at could be made writable: it refers to as many bytes as ever (counted when a
    transaction group ends, every five seconds).
    """
    wanted = (_STATE, "creation", "referenced")
    try:
        facts = {name: value for name, (value, _) in _properties(dataset.name, *wanted).items()}
        snapshot = _snapshot_of_state(dataset.name)
        made, _ = _properties(snapshot, "creation")["creation"]
    except (Refused, KeyError):
        return None
    if facts[_STATE] == "-":
        return None
    return f"{facts[_STATE]}:{made}:{facts['creation']}:{facts['referenced']}"


# -- changing names


def move(path: Path, dest: Path) -> None:
    """Give the target at ``path`` the name ``dest``, which is claimed by mkdir(2).

    Raises FileExistsError if it is there, and OSError; the target is then where it was.
    """
    name = _mounted(path)
    dest.mkdir()
    try:
        _settle(name, path, dest)
        _carry(path, dest)
    except BaseException:
        with contextlib.suppress(OSError):
            dest.rmdir()
        raise
    path.rmdir()


def exchange(one: Path, other: Path) -> None:
    """Let two targets change names.  ``other``, the live one, is there at every moment where the
    kernel mounts beneath (Linux 6.5; elsewhere it is away for some microseconds).

    Killed before the switch, ``other`` is what it was; after it, the new one.  Raises OSError, with
    both where they were, if nothing but the switch was refused.
    """
    coming, going = _mounted(one), _mounted(other)
    ours = theirs = -1
    try:
        try:
            _settle(coming, one, other)
            ours = syscalls.open_tree(one)
            theirs = syscalls.open_tree(other)
            syscalls.detach(one)
            try:
                beneath = _put(ours, theirs, other)
            except BaseException:
                syscalls.move_mount(ours, one)
                raise
        except BaseException:
            with contextlib.suppress(Refused):
                _zfs("set", "canmount=noauto", coming)
            raise
        if beneath:
            syscalls.detach(other)
        syscalls.move_mount(theirs, one)
    finally:
        for descriptor in (ours, theirs):
            if descriptor >= 0:
                os.close(descriptor)
    with contextlib.suppress(Refused):  # else both claim the place after the next boot
        _zfs("set", "canmount=noauto", going)


def cover(temporary: Path, path: Path) -> None:
    """Mount the target at ``temporary`` over the plain directory ``path``, in one step.

    What was in the directory is hidden, and is for the caller to remove through a descriptor that
    was opened before.
    """
    _settle(_mounted(temporary), temporary, path)
    _carry(temporary, path)
    temporary.rmdir()


def _settle(name: str, path: Path, dest: Path) -> None:
    """Note, in the dataset mounted at ``path``, that its place is ``dest`` after a boot."""
    _set(name, path, f"mountpoint={dest}", "canmount=on")


def _set(name: str, path: Path, *settings: str) -> None:
    """Set properties of the dataset mounted at ``path``, which stays mounted there.

    ``zfs set`` would mount it anew, which fails while another mount namespace has it as well, so it
    is run among mounts of its own that lack this one.  To take the mount away for that long would
    do as well, until we are killed: then it goes together with the files that we hold open in it,
    of whose closing the kernel no longer tells a FUSE server (fuse_abort_conn), and zfs-fuse 0.7
    waits for that with all its filesystems, for ever.
    """
    import threading

    trouble: list[BaseException] = []

    def act() -> None:
        try:
            syscalls.forget_mount(path)
            for setting in settings:
                _zfs("set", setting, name)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            trouble.append(error)

    # Mounts belong to a thread, and this one's end with it.
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    if trouble:
        raise trouble[0]


def _carry(path: Path, dest: Path) -> None:
    """Let what is mounted at ``path`` be mounted at ``dest`` instead."""
    descriptor = syscalls.open_tree(path)
    try:
        syscalls.detach(path)
        try:
            syscalls.move_mount(descriptor, dest)
        except BaseException:
            syscalls.move_mount(descriptor, path)
            raise
    finally:
        os.close(descriptor)


def _put(coming: int, going: int, path: Path) -> bool:
    """Mount what comes at ``path``; True if that is beneath what goes, which hides it still."""
    try:
        syscalls.move_mount(coming, path, beneath=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    else:
        return True
    syscalls.detach(path)
    try:
        syscalls.move_mount(coming, path)
    except BaseException:
        syscalls.move_mount(going, path)
        raise
    return False


def _mounted(path: Path) -> str:
    mount = mounts.mount_at(path)
    if mount is None:
        raise Refused(errno.EINVAL, f"{path} is no mount point")
    return mount.source


# -- removing


def remove(path: Path, dataset: Dataset) -> None:
    """Destroy the target that is mounted at ``path``, and the directory.

    States that were taken of it live on: the newest one is promoted and takes the older ones'
    snapshots along.  Raises Refused, for instance while a file in it is open.
    """
    _destroy(dataset.name)
    path.rmdir()


def remove_state(path: Path) -> None:
    """Destroy the state that is, or was to be, mounted at ``path``; absent is fine.

    Targets that were cloned from it live on: its snapshot goes to one of them, and with the last
    of them.  Raises Refused.
    """
    directory = path.parent
    container = container_for(directory) if directory.is_dir() else None
    if container is None:
        return
    name = f"{container}/{path.name}"
    try:
        facts = _properties(name, _STATE, _PROPERTY)
    except Refused:
        return  # there is none
    if facts[_STATE][0] != path.name or facts[_PROPERTY] != ("1", _inherited(container)):
        return
    _free(name)
    snapshot, _ = _properties(name, "origin")["origin"]
    _destroy(name)
    if snapshot.endswith(f"@cow-{path.name}"):
        _drop_snapshot(snapshot)
    with contextlib.suppress(OSError):
        path.rmdir()


def _free(name: str) -> None:
    """See that nothing depends on the snapshots of a dataset, and remove those that are left."""
    origins = {member.origin: member.name for member in _members(name.rpartition("/")[0])}
    for snapshot in reversed(_snapshots(name)):
        if snapshot in origins:
            # It takes this snapshot and all older ones; those after it have no clones.
            _zfs("promote", origins[snapshot])
            break
    for snapshot in _snapshots(name):
        if snapshot.partition("@")[2].startswith("cow-"):
            _drop_snapshot(snapshot)


def _drop_snapshot(snapshot: str) -> None:
    with contextlib.suppress(Refused):
        _zfs("release", _HOLD, snapshot)
    _zfs("destroy", "-d", snapshot)


def _destroy(name: str) -> None:
    _free(name)
    until = time.monotonic() + _PATIENCE
    wait = 0.02
    while True:
        try:
            _zfs("destroy", name)
        except Refused:
            # Busy for a moment: a descriptor was closed just now, or a compiler ends soon whose
            # mount namespace (an identity's) has this mount as well.
            if time.monotonic() > until:
                raise
            time.sleep(wait)
            wait = min(2 * wait, 0.5)
            continue
        return


def sweep(directory: Path) -> list[str]:
    """Destroy what killed commands left in the container of ``directory``'s dataset: datasets that
    are mounted nowhere, and not to be either, or whose place another one has.

    One that somebody works on is younger than a minute, or busy, which ``zfs`` tells.
    """
    container = container_for(directory)
    if container is None:
        return []
    swept = []
    try:
        members = _members(container)
    except Refused:
        return []
    taken = {member.mountpoint for member in members if member.mounted}
    for member in members:
        orphan = not member.mounted and (member.canmount == "noauto" or member.mountpoint in taken)
        if orphan and time.time() - member.creation > _ORPHAN_AGE:
            with contextlib.suppress(Refused):
                _free(member.name)
                _zfs("destroy", member.name)
                swept.append(member.name)
    return swept
