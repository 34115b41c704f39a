"""A plain target becomes a subvolume in place, and nothing in it changes."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cargo_cow import native
from cargo_cow.errors import FilesystemFailed, NativeMissing, TargetUnusable
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import (
    clone_target,
    cloning,
    convert,
    renaming,
    stale_temporaries,
    syscalls,
    usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True, scope="module")
def _probe(missing: Callable[[str], None]) -> None:
    """PROBE: the native program is there and answers."""
    try:
        native.version()
    except NativeMissing as error:
        missing(str(error))


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def plain(btrfs: Path, trees: Any) -> Path:
    target = btrfs / "target"
    target.mkdir()
    trees.plant(target, files=50)
    return target


def test_everything_is_kept(btrfs: Path, plain: Path, trees: Any) -> None:
    before = trees.facts(plain)
    owner = (plain.stat().st_uid, plain.stat().st_gid)
    report = convert(plain)
    assert report is not None
    assert report.method == "reflink"
    assert report.copied_bytes == 0
    assert report.notes == ()
    assert subvolumes.is_subvolume(plain)
    assert trees.facts(plain) == before
    assert (plain.stat().st_uid, plain.stat().st_gid) == owner
    assert _names(btrfs) == ["target"]
    # nothing is left that shares: the old files are gone
    assert usage(plain).shared_bytes == 0
    assert clone_target(plain, btrfs / "clone").method == "snapshot"


def test_twice_is_once(plain: Path) -> None:
    assert convert(plain) is not None
    inode, uuid = plain.stat().st_ino, subvolumes.describe(plain).uuid
    assert convert(plain) is None
    assert (plain.stat().st_ino, subvolumes.describe(plain).uuid) == (inode, uuid)


def test_where_there_are_no_subvolumes_nothing_happens(xfs: Path, ext4: Path, trees: Any) -> None:
    for place in (xfs, ext4):
        target = place / "target"
        target.mkdir()
        trees.plant(target)
        before, inode = trees.facts(target), target.stat().st_ino
        assert convert(target) is None
        assert target.stat().st_ino == inode
        assert trees.facts(target) == before
        assert _names(place) == ["target"]


def test_subvolumes_inside_become_directories_and_are_told(plain: Path, trees: Any) -> None:
    inner = plain / "debug" / "inner"
    subvolumes.create(inner)
    (inner / "file").write_bytes(os.urandom(9_000))
    before = trees.facts(plain)
    report = convert(plain)
    assert report is not None
    assert any(str(inner) in note for note in report.notes)
    assert trees.facts(plain) == before
    assert subvolumes.nested(plain) == []


def test_no_checksums_are_kept(btrfs: Path) -> None:
    target = btrfs / "target"
    target.mkdir()
    subprocess.run(["chattr", "+C", str(target)], check=True)
    (target / "file").write_bytes(os.urandom(100_000))
    report = convert(target)
    assert report is not None
    assert report.copied_bytes == 0
    shown = subprocess.run(
        ["lsattr", "-d", str(target), str(target / "file")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [("C" in line.split()[0]) for line in shown.splitlines()] == [True, True]


def test_what_cannot_be_cloned_is_not_lost(btrfs: Path, plain: Path, trees: Any) -> None:
    """A pipe: the old directory would take it along."""
    os.mkfifo(plain / "pipe")
    inode = plain.stat().st_ino
    with pytest.raises(FilesystemFailed, match="stays a directory"):
        convert(plain)
    assert plain.stat().st_ino == inode
    assert (plain / "pipe").is_fifo()
    assert _names(btrfs) == ["target"]


@pytest.mark.parametrize("lost", ["vanished", "changed"])
def test_a_target_that_changes_meanwhile_stays(
    btrfs: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Whoever writes without Cargo's lock must not lose it."""
    clone_tree = native.clone_tree

    def lossy(*arguments: Any, **options: Any) -> native.CloneTree:
        result = clone_tree(*arguments, **options)
        return result._replace(changed=1) if lost == "changed" else result._replace(vanished=1)

    monkeypatch.setattr(native, "clone_tree", lossy)
    inode = plain.stat().st_ino
    with pytest.raises(FilesystemFailed, match="stays a directory"):
        convert(plain)
    assert plain.stat().st_ino == inode
    assert _names(btrfs) == ["target"]


def test_without_exchange_it_stays(
    btrfs: Path, plain: Path, trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(old: Path, new: Path, flags: int) -> None:
        raise OSError(errno.EINVAL, "no flags here")

    before = trees.facts(plain)
    monkeypatch.setattr(syscalls, "rename", refuse)
    with pytest.raises(FilesystemFailed, match="RENAME_EXCHANGE"):
        convert(plain)
    monkeypatch.undo()
    assert trees.facts(plain) == before
    assert _names(btrfs) == ["target"]


def test_an_interrupt_before_the_exchange(
    btrfs: Path, plain: Path, trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(one: Path, other: Path) -> None:
        raise KeyboardInterrupt

    before = trees.facts(plain)
    monkeypatch.setattr(renaming, "exchange", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(plain)
    assert trees.facts(plain) == before
    assert _names(btrfs) == ["target"]


def test_an_old_directory_that_resists_is_told_and_swept_later(
    btrfs: Path, plain: Path, trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resist(path: Path) -> None:
        raise TargetUnusable("cannot be removed")

    before = trees.facts(plain)
    monkeypatch.setattr(cloning, "remove_target", resist)
    report = convert(plain)
    assert report is not None
    assert any("old directory is left" in note for note in report.notes)
    assert subvolumes.is_subvolume(plain)
    assert trees.facts(plain) == before
    assert len(stale_temporaries(btrfs, "target")) == 1


@pytest.mark.parametrize("kind", ["symlink", "file", "absent", "mount"])
def test_what_is_no_target_is_refused(btrfs: Path, btrfs_mount: Path, kind: str) -> None:
    target = btrfs / "target"
    if kind == "symlink":
        (btrfs / "real").mkdir()
        target.symlink_to("real")
    elif kind == "file":
        target.touch()
    elif kind == "mount":
        target = btrfs_mount
    with pytest.raises(TargetUnusable):
        convert(target)
