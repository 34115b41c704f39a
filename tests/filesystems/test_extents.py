"""Disk usage: exclusive and shared bytes, held against btrfs-progs and against what we made."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from cargo_cow.errors import FilesystemFailed
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import create_target, extents, probe, usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MIB = 1 << 20


class _Du(NamedTuple):
    total: int
    exclusive: int
    set_shared: int


def _btrfs_du(path: Path) -> _Du:
    out = subprocess.run(
        ["btrfs", "filesystem", "du", "-s", "--raw", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return _Du(*(int(word) for word in out.splitlines()[1].split()[:3]))


def _assert_agrees(path: Path) -> None:
    ours, theirs = usage(path), _btrfs_du(path)
    assert (ours.exclusive_bytes, ours.shared_bytes) == (theirs.exclusive, theirs.set_shared)
    assert ours.exact


def test_btrfs_agrees_with_btrfs_progs(btrfs: Path, trees: Any) -> None:
    assert probe(btrfs).shares_extents
    source, clone = btrfs / "source", btrfs / "clone"
    create_target(source)
    trees.plant(source, files=300)
    _assert_agrees(source)
    assert usage(source).shared_bytes == 0
    subvolumes.snapshot(source, clone)
    _assert_agrees(source)
    assert usage(source).exclusive_bytes == 0
    # the clone goes its own way: new files, a file written over in the middle, one truncated
    (clone / "new").write_bytes(os.urandom(_MIB))
    with (clone / "debug" / "deps" / "libbig.rlib").open("r+b") as file:
        file.seek(100_000)
        file.write(os.urandom(50_000))
    os.truncate(clone / "many" / "0" / "f7", 4_096)
    os.sync()
    _assert_agrees(clone)
    _assert_agrees(source)
    assert usage(clone).exclusive_bytes >= _MIB + 49_152
    _assert_agrees(btrfs)


def test_nothing_need_be_synced_first(btrfs: Path) -> None:
    """Data just written has no place yet (DELALLOC): the call itself writes it."""
    (btrfs / "fresh").write_bytes(os.urandom(_MIB))
    assert usage(btrfs) == (_MIB, _MIB, 0, True)


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_reflinks_are_shared_on_both_sides(request: pytest.FixtureRequest, kind: str) -> None:
    place: Path = request.getfixturevalue(kind)
    for name in ("one", "other"):
        (place / name).mkdir()
    (place / "one" / "file").write_bytes(os.urandom(_MIB))
    subprocess.run(
        ["cp", "--reflink=always", place / "one" / "file", place / "other" / "file"], check=True
    )
    assert usage(place / "one") == (_MIB, 0, _MIB, True)
    assert usage(place / "other") == (_MIB, 0, _MIB, True)
    # both: counted once per place on disk
    assert usage(place) == (2 * _MIB, 0, _MIB, True)
    (place / "one" / "file").unlink()
    os.sync()
    # XFS gives the extents of a removed file back in the background (inodegc, Linux 5.14)
    until = time.monotonic() + 30
    while usage(place / "other").shared_bytes and time.monotonic() < until:
        time.sleep(0.01)
    assert usage(place / "other") == (_MIB, _MIB, 0, True)


def test_copies_share_nothing(any_filesystem: Path) -> None:
    """The negative control."""
    (any_filesystem / "one").write_bytes(os.urandom(_MIB))
    subprocess.run(
        ["cp", "--reflink=never", any_filesystem / "one", any_filesystem / "other"], check=True
    )
    assert usage(any_filesystem) == (2 * _MIB, 2 * _MIB, 0, True)


def test_hard_links_count_once_and_holes_not_at_all(any_filesystem: Path) -> None:
    (any_filesystem / "file").write_bytes(os.urandom(_MIB))
    (any_filesystem / "link").hardlink_to(any_filesystem / "file")
    with (any_filesystem / "sparse").open("xb") as file:
        file.truncate(100 * _MIB)
    (any_filesystem / "to-file").symlink_to("file")
    assert usage(any_filesystem) == (101 * _MIB, _MIB, 0, True)


def test_small_files_lie_in_the_metadata(btrfs: Path) -> None:
    (btrfs / "small").write_bytes(b"x" * 2_000)
    assert usage(btrfs) == (2_000, 0, 0, True)
    with (btrfs / "small").open("rb") as file:
        [extent] = extents.extents(file.fileno())
    assert extent.inline


def test_subvolumes_inside_count(btrfs: Path) -> None:
    subvolumes.create(btrfs / "inner")
    (btrfs / "inner" / "file").write_bytes(os.urandom(_MIB))
    assert usage(btrfs) == (_MIB, _MIB, 0, True)


def test_many_extents_need_several_answers(btrfs: Path) -> None:
    """More than one call's worth, with holes between, so that none can be merged."""
    with (btrfs / "holes").open("xb") as file:
        for number in range(300):
            file.seek(number * 8_192)
            file.write(os.urandom(4_096))
    with (btrfs / "holes").open("rb") as file:
        found = list(extents.extents(file.fileno()))
    assert len(found) == 300
    assert [extent.logical for extent in found] == [number * 8_192 for number in range(300)]
    assert usage(btrfs).exclusive_bytes == 300 * 4_096


def test_compressed_data_is_not_exact(small_filesystem: Callable[..., Path]) -> None:
    """FIEMAP gives the length before compression; what compsize tells it does not know."""
    mount = small_filesystem("btrfs", 256 * _MIB, "compress=zstd")
    (mount / "zeros").write_bytes(b"compress me " * 100_000)
    found = usage(mount)
    assert found.logical_bytes == 1_200_000
    assert not found.exact


def test_without_fiemap_it_is_not_exact(ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on tmpfs or ZFS: all of it counts as exclusive, and is said to be a guess."""

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "no FIEMAP")

    (ext4 / "file").write_bytes(os.urandom(_MIB))
    os.sync()
    monkeypatch.setattr("fcntl.ioctl", refuse)
    assert usage(ext4) == (_MIB, _MIB, 0, False)


def test_what_cannot_be_read_is_not_exact(btrfs: Path, unprivileged: Callable[..., Any]) -> None:
    (btrfs / "open").write_bytes(os.urandom(_MIB))
    (btrfs / "closed").write_bytes(os.urandom(_MIB))
    (btrfs / "closed").chmod(0o600)
    os.sync()
    assert unprivileged(usage, btrfs) == (2 * _MIB, 2 * _MIB, 0, False)
    (btrfs / "room").mkdir(mode=0o700)
    assert not unprivileged(usage, btrfs).exact


def test_pipes_are_not_waited_for(btrfs: Path) -> None:
    os.mkfifo(btrfs / "pipe")
    assert usage(btrfs) == (0, 0, 0, True)


def test_absent_is_an_error(btrfs: Path) -> None:
    with pytest.raises(FilesystemFailed, match="No such file"):
        usage(btrfs / "absent")
