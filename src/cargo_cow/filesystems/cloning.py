"""Making a target: empty, or as a clone of a donor, or in place of a plain directory.

Every way is tried on the spot: snapshot, then a tree of reflinks, then (if allowed) a copy.
Trees are cloned by the native program; what is decided here is where, in which order, and what
happens when it fails.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from cargo_cow.errors import CowError, FilesystemFailed, TargetUnusable
from cargo_cow.filesystems import btrfs, renaming, syscalls, temporaries, zfs
from cargo_cow.filesystems.failures import FORBIDDEN, NO_SPACE, UNSUPPORTED, translated
from cargo_cow.filesystems.mounts import mounts_below, refuse_unusable
from cargo_cow.filesystems.removal import discard, empty, remove_target

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cargo_cow import native


class CloneReport(NamedTuple):
    """How a target was cloned.

    ``files`` counts regular files, 0 for a snapshot (nobody counted them).  ``copied_reasons``
    maps an errno's name to the number of files that had to be copied because of it.  ``notes``
    are sentences for the user about what is not as in the source.
    """

    method: Literal["snapshot", "reflink", "copy"]
    files: int
    seconds: float
    reflinked_bytes: int
    copied_bytes: int
    copied_reasons: dict[str, int]
    notes: tuple[str, ...] = ()


def can_snapshot(path: Path) -> bool:
    """Whether the target ``path`` is such that a snapshot can be taken of it: a Btrfs subvolume,
    or a ZFS dataset of ours."""
    return btrfs.is_subvolume(path) or zfs.find(path) is not None


def create_target(path: Path) -> Literal["subvolume", "dataset", "directory"]:
    """Make an empty target: a subvolume or dataset where that works, else a directory; says which.

    The parent must exist.  Raises ``FileExistsError`` if ``path`` does; ``TargetUnusable``
    (forbidden), ``NoSpace``, ``FilesystemFailed``.
    """
    kind: Literal["subvolume", "dataset", "directory"] = "directory"

    def make() -> None:
        nonlocal kind
        try:
            btrfs.create(path)
            kind = "subvolume"
        except OSError as error:
            if error.errno in NO_SPACE | {errno.EEXIST, errno.ENOENT, errno.EROFS}:
                raise
        else:
            return
        container = zfs.container_for(path.parent)
        if container is not None:
            try:
                zfs.create(path, container)
                kind = "dataset"
            except zfs.Refused:
                pass
            else:
                return
        # Not Btrfs, or a Btrfs that gives us no subvolumes: a directory serves as well.
        path.mkdir()

    with translated("create", path):
        temporaries.make(path, make)
    return kind


def clone_target(source: Path, dest: Path, *, allow_copy: bool = True) -> CloneReport:
    """Make ``dest`` a writable clone of the target ``source``, sharing its extents.

    ``dest`` must not exist and appears complete or not at all: a snapshot is atomic, a tree is
    made as a temporary sibling (``dest`` itself, if it has such a name) and published.  On
    failure everything made is removed again; ``source`` and what was there are never touched.

    A source that holds other subvolumes is cloned as a tree in which they are directories,
    because a snapshot would show them empty; the report says so.  A mount inside is left out and
    noted.  A read-only source is no hindrance.

    Raises ``FileExistsError`` if ``dest`` is there; ``TargetUnusable`` (source a symlink, mount
    point or no directory; dest inside source; forbidden), ``NoSpace``, and ``FilesystemFailed``,
    also where a file cannot be reflinked and ``allow_copy`` is false.
    """
    started = time.perf_counter()
    with translated("clone", source):
        refuse_unusable(source)
        if os.path.lexists(dest):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(dest))
        notes = _apart(source)
        if btrfs.is_subvolume(source) and not btrfs.nested(source) and _snapshot(source, dest):
            seconds = time.perf_counter() - started
            return CloneReport("snapshot", 0, seconds, 0, 0, {}, notes)
        dataset = zfs.find(source)
        if dataset is not None and zfs.near(dataset, dest.parent):
            try:
                temporaries.make(dest, lambda: zfs.clone(dataset, dest))
            except zfs.Refused as error:
                notes += (f"cloned file by file: {error.strerror}",)
            else:
                seconds = time.perf_counter() - started
                return CloneReport("snapshot", 0, seconds, 0, 0, {}, notes)
        report = _clone_tree(source, dest, "auto" if allow_copy else "reflink")
    return report._replace(seconds=time.perf_counter() - started, notes=notes + report.notes)


def clone_parts(
    source: Path, dest: Path, names: Iterable[str], *, allow_copy: bool = True
) -> CloneReport:
    """Clone some files and directories of the target ``source`` into the new directory ``dest``.

    ``names`` are relative, and stay so; one that does not exist is left out.  ``dest`` is no
    subvolume, so that what is in it can be renamed into the target around it; if it has a
    temporary's name it is held until it is removed.  Raises as `clone_target`; what was
    made is then removed.
    """
    from cargo_cow import native  # starts processes: loaded where one is started

    started = time.perf_counter()
    with translated("clone parts of", source):
        temporaries.make(dest, dest.mkdir)
        try:
            part = native.clone_tree(source, dest, "auto" if allow_copy else "reflink", only=names)
            if part.copied_files:
                syscalls.sync_filesystem(dest)  # see `_fill`
        except BaseException:
            discard(dest)
            raise
    return _report([part])._replace(seconds=time.perf_counter() - started)


def convert(path: Path) -> CloneReport | None:
    """Make the plain directory ``path`` a subvolume or dataset in place, for snapshots.

    Extents are shared with the old files until these are removed; times, modes, hard links,
    symlinks, xattrs and holes are kept.  (A dataset is filled with copies where ZFS cannot clone
    blocks.)  None, with nothing changed, if ``path`` is such already or none can be made here.

    The caller holds Cargo's lock.  Killed at any instant, ``path`` is the whole old directory or
    the whole new subvolume, beside a stale temporary.  Beware: the lock file is another inode
    afterwards, so a Cargo that was waiting for the old one no longer excludes others.

    Raises ``TargetUnusable`` (a symlink, a mount point, a mount inside, forbidden), ``NoSpace``
    and ``FilesystemFailed``.
    """
    started = time.perf_counter()
    with translated("convert", path):
        refuse_unusable(path)
        if can_snapshot(path):
            return None
        if mounts := mounts_below(path):
            raise TargetUnusable(
                f"{path} stays a directory: {mounts[0]} is mounted", hint="unmount it"
            )
        inside = _apart(path)
        aside = temporaries.temporary_target(path)
        kind = create_target(aside)
        if kind == "directory":
            discard(aside)
            return None
        report = _fill(path, aside, "reflink" if kind == "subvolume" else "auto")
        if report.notes:  # the old directory is about to go: nothing may be missing
            discard(aside)
            raise FilesystemFailed(f"{path} stays a directory: {'; '.join(report.notes)}")
        if kind == "dataset":
            notes = inside + _cover(aside, path)
            return report._replace(seconds=time.perf_counter() - started, notes=notes)
        try:
            renaming.exchange(aside, path)
        except BaseException:
            discard(aside)
            raise
    notes = inside
    try:
        remove_target(aside)
    except CowError as error:
        temporaries.release(aside)
        notes += (f"the old directory is left: {error}",)
    return report._replace(seconds=time.perf_counter() - started, notes=notes)


def _cover(aside: Path, path: Path) -> tuple[str, ...]:
    """Mount the finished dataset over the old directory, and remove what that hides.

    Killed in between, the old files lie below the mount, where they cost space only.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            zfs.cover(aside, path)
        except BaseException:
            discard(aside)
            raise
        temporaries.release(aside)
        try:
            empty(descriptor)
        except OSError as error:
            return (f"old files are left below the mount: {error.strerror}",)
    finally:
        os.close(descriptor)
    return ()


def _snapshot(source: Path, dest: Path) -> bool:
    """Snapshot the subvolume; False where only a tree clone remains."""
    try:
        temporaries.make(dest, lambda: btrfs.snapshot(source, dest))
    except OSError as error:
        # EXDEV: dest on another filesystem.  EPERM: not ours, though we may read it.
        if error.errno not in UNSUPPORTED | FORBIDDEN | {errno.EXDEV}:
            raise
        return False
    return True


def _clone_tree(source: Path, dest: Path, mode: Literal["auto", "reflink"]) -> CloneReport:
    """Clone file by file: aside, so that ``dest`` appears complete or not at all."""
    if dest.resolve().is_relative_to(source.resolve()):
        raise TargetUnusable(f"{dest} lies inside {source}: a clone would hold itself")
    if temporaries.is_temporary(dest):
        create_target(dest)
        return _fill(source, dest, mode)
    aside = temporaries.temporary_target(dest)
    report = _clone_tree(source, aside, mode)
    try:
        renaming.publish(aside, dest)
    except BaseException:
        discard(aside)
        raise
    return report


def _apart(source: Path) -> tuple[str, ...]:
    """What in ``source`` is not simply its own, told to the user."""
    notes = [f"{point} is mounted: what is in it is not cloned" for point in mounts_below(source)]
    if inner := btrfs.nested(source):
        notes.append(
            f"{len(inner)} subvolume(s) inside, as {inner[0]}: cloned file by file, as directories"
        )
    return tuple(notes)


def _fill(source: Path, dest: Path, mode: Literal["auto", "reflink"]) -> CloneReport:
    """Clone the tree into the empty ``dest``; on failure ``dest`` is removed."""
    try:
        parts = _clone_parts(source, dest, mode)
        copied = sum(part.copied_files for part in parts)
        if copied:
            # A reflink's data is on disk before the ioctl returns (the kernel flushes the
            # source: generic_remap_file_range_prep) and metadata stays in order; copied data
            # could be published before it is written, and an empty rlib beside a whole
            # fingerprint would be called fresh after a power cut.
            syscalls.sync_filesystem(dest)
    except BaseException:
        discard(dest)
        raise
    return _report(parts)


def _report(parts: list[native.CloneTree]) -> CloneReport:
    copied = sum(part.copied_files for part in parts)
    reasons: dict[str, int] = {}
    for part in parts:
        for name, count in part.copied_reasons.items():
            reasons[name] = reasons.get(name, 0) + count
    return CloneReport(
        "copy" if copied and not any(part.reflinked_files for part in parts) else "reflink",
        sum(part.files for part in parts),
        sum(part.seconds for part in parts),
        sum(part.reflinked_bytes for part in parts),
        sum(part.copied_bytes for part in parts),
        reasons,
        _losses(parts),
    )


def _clone_parts(
    source: Path, dest: Path, mode: Literal["auto", "reflink"]
) -> list[native.CloneTree]:
    """One call of the native program for ``source``, and one for every subvolume inside, which
    it refuses to enter by itself."""
    from cargo_cow import native  # starts processes: loaded where one is started

    inner = btrfs.nested(source)
    apart = [path.relative_to(source) for path in (*inner, *mounts_below(source))]
    parts = [native.clone_tree(source, dest, mode, exclude=apart)]
    for subvolume in inner:
        place = dest / subvolume.relative_to(source)
        parts += _clone_parts(subvolume, place, mode)
        times = subvolume.parent.stat()
        os.utime(place.parent, ns=(times.st_atime_ns, times.st_mtime_ns))
    return parts


def _losses(parts: list[native.CloneTree]) -> tuple[str, ...]:
    """In what the clone is not the source: a live tree changed, or something has no place."""
    counts = (
        (sum(part.vanished for part in parts), "vanished while they were cloned"),
        (sum(part.changed for part in parts), "kept changing while they were cloned"),
        (sum(part.special for part in parts), "are sockets, pipes or devices: not cloned"),
        (sum(part.attributes_dropped for part in parts), "extended attributes have no place here"),
    )
    return tuple(f"{count} file(s): {what}" for count, what in counts if count)
