"""Making a target: empty, or as a clone of a donor, or in place of a plain directory.

Every way is tried on the spot: snapshot, then a tree of reflinks, then (if allowed) a copy.
Trees are cloned by the native program; what is decided here is where, in which order, and what
happens when it fails.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from cargo_cow.errors import FilesystemFailed, TargetUnusable
from cargo_cow.filesystems import btrfs, renaming, syscalls, temporaries
from cargo_cow.filesystems.failures import FORBIDDEN, NO_SPACE, UNSUPPORTED, failure
from cargo_cow.filesystems.mounts import mounts_within, refuse_unusable
from cargo_cow.filesystems.removal import discard, remove_target

if TYPE_CHECKING:
    from pathlib import Path

# include/uapi/linux/fs.h, for 64-bit kernels: _IOR('f', 1, long), _IOW('f', 2, long)
_GETFLAGS = 0x80086601
_SETFLAGS = 0x40086602
_NOCOW = 0x00800000


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


def create_target(path: Path) -> Literal["subvolume", "directory"]:
    """Make an empty target: a subvolume where that works, else a directory; says which.

    The parent must exist and ``path`` must not.  Raises ``TargetUnusable`` (exists, forbidden),
    ``NoSpace``, ``FilesystemFailed``.
    """
    kind: Literal["subvolume", "directory"] = "directory"

    def make() -> None:
        nonlocal kind
        try:
            btrfs.create(path)
            kind = "subvolume"
        except OSError as error:
            if error.errno in NO_SPACE | {errno.EEXIST, errno.ENOENT, errno.EROFS}:
                raise
            # Not Btrfs, or a Btrfs that gives us no subvolumes: a directory serves as well.
            path.mkdir()

    try:
        temporaries.make(path, make)
    except FileExistsError as error:
        raise TargetUnusable(f"{path} already exists") from error
    except OSError as error:
        raise failure(error, "create", path) from error
    return kind


def clone_target(source: Path, dest: Path, *, allow_copy: bool = True) -> CloneReport:
    """Make ``dest`` a writable clone of the target ``source``, sharing its extents.

    ``dest`` must not exist and appears complete or not at all: a snapshot is atomic, a tree is
    made as a temporary sibling (``dest`` itself, if it has such a name) and published.  On
    failure everything made is removed again; ``source`` and what was there are never touched.

    A source that holds other subvolumes is cloned as a tree, because a snapshot would show them
    as empty directories; the report says so.  A read-only source is no hindrance.

    Raises ``TargetUnusable`` (source a symlink, mount point or no directory; dest exists;
    forbidden), ``NoSpace``, and ``FilesystemFailed``, also where a file cannot be reflinked and
    ``allow_copy`` is false.
    """
    started = time.perf_counter()
    refuse_unusable(source)
    if os.path.lexists(dest):
        raise TargetUnusable(f"{dest} already exists")
    notes = [f"{point} is mounted: what is in it is not cloned" for point in mounts_within(source)]
    if btrfs.is_subvolume(source):
        inner = btrfs.nested(source)
        if inner:
            notes.append(
                f"{len(inner)} subvolume(s) inside, as {inner[0]}: "
                "cloned file by file into one subvolume instead of by a snapshot"
            )
        elif _snapshot(source, dest):
            seconds = time.perf_counter() - started
            return CloneReport("snapshot", 0, seconds, 0, 0, {}, tuple(notes))
    mode: Literal["auto", "reflink"] = "auto" if allow_copy else "reflink"
    if temporaries.is_temporary(dest):
        report = _clone_tree(source, dest, mode)
    else:
        aside = temporaries.temporary_sibling(dest)
        report = _clone_tree(source, aside, mode)
        try:
            renaming.publish(aside, dest)
        except BaseException as error:
            discard(aside)
            if isinstance(error, FileExistsError):
                raise TargetUnusable(f"{dest} already exists") from error
            raise
    return report._replace(seconds=time.perf_counter() - started, notes=tuple(notes) + report.notes)


def convert(path: Path) -> CloneReport | None:
    """Make the plain directory ``path`` a subvolume in place, so that it can be snapshotted.

    Extents are shared with the old files until these are removed; times, modes, hard links,
    symlinks, xattrs and holes are kept.  None, with nothing changed, if ``path`` is a subvolume
    already or subvolumes cannot be made here.

    The caller holds Cargo's lock.  Killed at any instant, ``path`` is the whole old directory or
    the whole new subvolume, beside a stale temporary.  Beware: the lock file is another inode
    afterwards, so a Cargo that was waiting for the old one no longer excludes others.

    Raises as :func:`clone_target`.
    """
    started = time.perf_counter()
    refuse_unusable(path)
    if btrfs.is_subvolume(path):
        return None
    if mounts := mounts_within(path):
        raise TargetUnusable(f"{path} stays a directory: {mounts[0]} is mounted", hint="unmount it")
    aside = temporaries.temporary_sibling(path)
    if create_target(aside) != "subvolume":
        discard(aside)
        return None
    report = _fill(path, aside, "reflink")
    try:
        renaming.exchange(aside, path)
    except BaseException:
        discard(aside)
        raise
    notes = report.notes
    try:
        remove_target(aside)
    except (FilesystemFailed, TargetUnusable) as error:
        temporaries.release(aside)
        notes += (f"the old directory is left: {error}",)
    return report._replace(seconds=time.perf_counter() - started, notes=notes)


def _snapshot(source: Path, dest: Path) -> bool:
    """Snapshot the subvolume; False where only a tree clone remains."""
    try:
        temporaries.make(dest, lambda: btrfs.snapshot(source, dest))
    except FileExistsError as error:
        raise TargetUnusable(f"{dest} already exists") from error
    except OSError as error:
        # EXDEV: dest on another filesystem.  EPERM: not ours, though we may read it.
        if error.errno in UNSUPPORTED | FORBIDDEN | {errno.EXDEV}:
            return False
        raise failure(error, "snapshot", source) from error
    return True


def _clone_tree(source: Path, dest: Path, mode: Literal["auto", "reflink"]) -> CloneReport:
    create_target(dest)
    return _fill(source, dest, mode)


def _fill(source: Path, dest: Path, mode: Literal["auto", "reflink"]) -> CloneReport:
    """Clone the tree into the empty ``dest``; on failure ``dest`` is removed."""
    try:
        from cargo_cow import native  # starts processes: loaded where one is started

        _inherit_nocow(source, dest)
        tree = native.clone_tree(source, dest, mode)
        if tree.copied_files:
            # A reflink's data is on disk before the ioctl returns (the kernel flushes the
            # source: generic_remap_file_range_prep) and metadata stays in order; copied data
            # could be published before it is written, and an empty rlib beside a whole
            # fingerprint would be called fresh after a power cut.
            syscalls.sync_filesystem(dest)
    except BaseException as error:
        discard(dest)
        if isinstance(error, OSError):
            raise failure(error, "clone", source) from error
        raise
    notes: tuple[str, ...] = ()
    if tree.vanished:
        notes = (f"{tree.vanished} file(s) vanished while they were cloned",)
    return CloneReport(
        "copy" if tree.copied_files and not tree.reflinked_files else "reflink",
        tree.files,
        tree.seconds,
        tree.reflinked_bytes,
        tree.copied_bytes,
        dict(tree.copied_reasons),
        notes,
    )


def _inherit_nocow(source: Path, dest: Path) -> None:
    """Give ``dest`` the source's ``chattr +C``, which new files in it then inherit.

    Btrfs refuses to reflink between files with and without checksums (EINVAL;
    ``btrfs_remap_file_range_prep``), so without this a target made +C for speed would be copied.
    """
    try:
        if _attributes(source) & _NOCOW:
            _add_attributes(dest, _NOCOW)
    except OSError as error:
        if error.errno not in UNSUPPORTED | FORBIDDEN:
            raise


def _attributes(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The kernel reads and writes an int, whatever the number says.
        (flags,) = struct.unpack_from("=I", fcntl.ioctl(descriptor, _GETFLAGS, bytes(8)))
    finally:
        os.close(descriptor)
    return int(flags)


def _add_attributes(path: Path, wanted: int) -> None:
    flags = struct.pack("=Ixxxx", _attributes(path) | wanted)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _SETFLAGS, flags)
    finally:
        os.close(descriptor)
