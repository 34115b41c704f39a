"""Btrfs subvolumes through their ioctls.

Numbers and layouts are those of the kernel's ``include/uapi/linux/btrfs.h`` (read: Linux 6.1
to 6.18; stable since 4.18), which is user-space interface.  Nothing here asks for a filesystem's
name: elsewhere the ioctls answer ENOTTY, and the caller goes on from there.

All functions raise ``OSError`` as the kernel gave it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

from cargo_cow.filesystems.failures import UNSUPPORTED

FIRST_FREE_OBJECTID = 256
"""Inode number of every subvolume's root directory (``include/uapi/linux/btrfs_tree.h``)."""

_READ_ONLY = 1 << 1  # BTRFS_SUBVOL_RDONLY, of the ioctls that take or give flags
_ROOT_READ_ONLY = 1 << 0  # BTRFS_ROOT_SUBVOL_RDONLY, as stored (btrfs_tree.h): GET_SUBVOL_INFO


def _write(number: int, size: int) -> int:
    """_IOW(BTRFS_IOCTL_MAGIC, number, size) of ``include/uapi/asm-generic/ioctl.h``."""
    return 1 << 30 | size << 16 | 0x94 << 8 | number


def _read(number: int, size: int) -> int:
    """_IOR(BTRFS_IOCTL_MAGIC, number, size)."""
    return 2 << 30 | size << 16 | 0x94 << 8 | number


# struct btrfs_ioctl_vol_args: __s64 fd; char name[4088]
_VOLUME = struct.Struct("=q4088s")
# struct btrfs_ioctl_vol_args_v2: __s64 fd; __u64 transid, flags, unused[4]; char name[4040]
_VOLUME_V2 = struct.Struct("=qQQ32x4040s")
# struct btrfs_ioctl_get_subvol_info_args: __u64 treeid; char name[256]; __u64 parent_id, dirid,
# generation, flags; __u8 uuid[16], parent_uuid[16], received_uuid[16]; 4 × __u64 transaction
# ids; 4 × struct btrfs_ioctl_timespec (16 bytes with its padding); __u64 reserved[8]
_INFORMATION = struct.Struct("=Q256x8x8xQQ16s16s16xQ24x64x64x")
_FS_INFO = _read(31, 1024)
# struct btrfs_ioctl_get_subvol_rootref_args: __u64 min_treeid; struct {__u64 treeid, dirid}
# rootref[255]; __u8 num_items, align[7]
_ROOTREF_SIZE = 4096
_ROOTREF_COUNT_AT = 8 + 255 * 16
# struct btrfs_ioctl_ino_lookup_user_args: __u64 dirid, treeid; char name[256], path[3824]
_LOOKUP = struct.Struct("=QQ256s3824s")

_SUBVOL_CREATE = _write(14, _VOLUME.size)
_SNAP_DESTROY = _write(15, _VOLUME.size)
_SNAP_CREATE_V2 = _write(23, _VOLUME_V2.size)
_SUBVOL_GETFLAGS = _read(25, 8)
_SUBVOL_SETFLAGS = _write(26, 8)
_GET_SUBVOL_INFO = _read(60, _INFORMATION.size)
_GET_SUBVOL_ROOTREF = _read(61, _ROOTREF_SIZE) | 1 << 30  # _IOWR
_INO_LOOKUP_USER = _read(62, _LOOKUP.size) | 1 << 30  # _IOWR

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Subvolume(NamedTuple):
    """One subvolume as the filesystem describes it.

    ``generation`` is the transaction that wrote its tree last, be it a balance that only moved
    it; ``changed`` (the kernel's ctransid) the one that last changed an inode in it.
    ``parent_uuid`` is the subvolume it is a snapshot of, all zero if it is none.
    """

    number: int
    generation: int
    read_only: bool
    uuid: bytes
    parent_uuid: bytes
    changed: int


def _ioctl(path: Path, request: int, argument: bytearray) -> None:
    # A bytearray, because CPython takes immutable bytes only up to 1024, and ours are 4096.
    descriptor = os.open(path, _DIRECTORY)
    try:
        fcntl.ioctl(descriptor, request, argument)
    finally:
        os.close(descriptor)


def _name(path: Path) -> bytes:
    name = os.fsencode(path.name)
    if len(name) > 255:  # BTRFS_NAME_LEN; struct.pack would cut it silently
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
    return name


def create(path: Path) -> None:
    """Make an empty subvolume.  Unprivileged: write permission on the parent is enough."""
    _ioctl(path.parent, _SUBVOL_CREATE, bytearray(_VOLUME.pack(0, _name(path))))


def snapshot(source: Path, dest: Path, *, read_only: bool = False) -> None:
    """Make ``dest`` a snapshot of the subvolume ``source``, atomically and in constant time.

    Data that ``source`` still holds only in memory is written first, so the call takes as long
    as that takes.  Subvolumes inside ``source`` are empty directories in ``dest``.
    Unprivileged: the caller must own ``source`` (EPERM otherwise).  EXDEV: another filesystem.
    """
    descriptor = os.open(source, _DIRECTORY)
    try:
        flags = _READ_ONLY if read_only else 0
        argument = bytearray(_VOLUME_V2.pack(descriptor, 0, flags, _name(dest)))
        _ioctl(dest.parent, _SNAP_CREATE_V2, argument)
    finally:
        os.close(descriptor)


def _flags(path: Path) -> int:
    argument = bytearray(8)
    _ioctl(path, _SUBVOL_GETFLAGS, argument)
    (flags,) = struct.unpack("=Q", argument)
    return int(flags)


def is_subvolume(path: Path) -> bool:
    """Whether ``path`` is the root directory of a Btrfs subvolume; a symlink to one is not.

    The inode number is only the cheap half: any filesystem may have an inode 256, so the ioctl
    decides (ENOTTY elsewhere).
    """
    try:
        if os.lstat(path).st_ino != FIRST_FREE_OBJECTID:
            return False
        _flags(path)
    except OSError:
        return False
    return True


def is_read_only(path: Path) -> bool:
    """Whether the subvolume ``path`` is read-only by its own flag (not by its mount)."""
    return bool(_flags(path) & _READ_ONLY)


def set_read_only(path: Path, wanted: bool) -> None:
    """Set or clear the subvolume's read-only flag.  The owner may."""
    flags = _flags(path) & ~_READ_ONLY | (_READ_ONLY if wanted else 0)
    _ioctl(path, _SUBVOL_SETFLAGS, bytearray(struct.pack("=Q", flags)))


def destroy(path: Path) -> None:
    """Delete the subvolume with everything in it, in constant time.

    EPERM without root, unless the filesystem is mounted with ``user_subvol_rm_allowed``;
    ENOTEMPTY while other subvolumes are inside.
    """
    _ioctl(path.parent, _SNAP_DESTROY, bytearray(_VOLUME.pack(0, _name(path))))


def describe(path: Path) -> Subvolume:
    """Facts about the subvolume that holds the directory ``path``."""
    argument = bytearray(_INFORMATION.size)
    _ioctl(path, _GET_SUBVOL_INFO, argument)
    number, generation, flags, uuid, parent, changed = _INFORMATION.unpack(argument)
    return Subvolume(number, generation, bool(flags & _ROOT_READ_ONLY), uuid, parent, changed)


def filesystem_id(path: Path) -> str:
    """What tells filesystems apart: two paths on one filesystem have the same.

    The device number, except on Btrfs, where each subvolume has its own.  Raises OSError.
    """
    # struct btrfs_ioctl_fs_info_args (1,024 bytes): __u64 max_id, num_devices; __u8 fsid[16]
    argument = bytearray(1024)
    try:
        _ioctl(path, _FS_INFO, argument)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return str(os.lstat(path).st_dev)
    return argument[16:32].hex()


def nested(directory: Path) -> list[Path]:
    """The subvolumes below ``directory``, but not those inside of them.  Empty off Btrfs.

    One ioctl per 255 subvolumes that the containing subvolume has, and one for each of them
    (microseconds); no walk over the files.
    """
    found: list[Path] = []
    descriptor = os.open(directory, _DIRECTORY)
    try:
        for number, holder in _children(descriptor):
            argument = bytearray(_LOOKUP.pack(holder, number, b"", b""))
            try:
                fcntl.ioctl(descriptor, _INO_LOOKUP_USER, argument)
            except OSError as error:
                # EACCES: not below this directory (or hidden from us).  ENOENT: just deleted.
                if error.errno in (errno.EACCES, errno.ENOENT):
                    continue
                raise
            _, _, name, path = _LOOKUP.unpack(argument)
            # C strings: the kernel leaves what it does not need behind the first NUL as it is.
            relative = path.split(b"\0", 1)[0] + name.split(b"\0", 1)[0]
            found.append(directory / os.fsdecode(relative))
    finally:
        os.close(descriptor)
    return found


def _children(descriptor: int) -> list[tuple[int, int]]:
    """(subvolume number, inode of the directory that holds it) in the containing subvolume."""
    children: list[tuple[int, int]] = []
    start = 0
    while True:
        argument = bytearray(_ROOTREF_SIZE)
        struct.pack_into("=Q", argument, 0, start)
        more = False
        try:
            fcntl.ioctl(descriptor, _GET_SUBVOL_ROOTREF, argument)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return []
            if error.errno != errno.EOVERFLOW:  # EOVERFLOW: 255 are here, and there are more
                raise
            more = True
        count = argument[_ROOTREF_COUNT_AT]
        pairs = struct.unpack_from(f"={2 * count}Q", argument, 8)
        children += zip(pairs[::2], pairs[1::2], strict=True)
        (start,) = struct.unpack_from("=Q", argument, 0)
        if not more:
            return children
