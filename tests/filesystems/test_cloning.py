"""Clones: whole, sharing extents where the filesystem can, and none at all where they fail."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cargo_cow import native
from cargo_cow.errors import CowError, FilesystemFailed, NativeMissing, TargetUnusable
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import (
    clone_target,
    create_target,
    probe,
    stale_temporaries,
    temporary_sibling,
)
from cargo_cow.filesystems.extents import extents

if TYPE_CHECKING:
    from collections.abc import Callable


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(autouse=True, scope="module")
def _probe(missing: Callable[[str], None]) -> None:
    """PROBE: the native program is there and answers."""
    try:
        native.version()
    except NativeMissing as error:
        missing(str(error))


def _shared(path: Path) -> list[bool]:
    """For every extent outside the metadata: is it shared?"""
    with path.open("rb") as file:
        return [extent.shared for extent in extents(file.fileno()) if not extent.inline]


def _assert_shares(directory: Path, wanted: bool) -> int:
    """Every file with extents of its own shares all (or none) of them; how many there were."""
    seen = 0
    for path in directory.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        found = _shared(path)
        if found:
            seen += 1
            assert found == [wanted] * len(found), path
    assert seen > 3
    return seen


def test_a_subvolume_is_snapshotted(btrfs: Path, trees: Any) -> None:
    source, dest = btrfs / "source", btrfs / "dest"
    assert create_target(source) == "subvolume"
    trees.plant(source)
    before = trees.facts(source)
    report = clone_target(source, dest)
    assert report.method == "snapshot"
    assert report.notes == ()
    assert trees.facts(dest) == before
    assert subvolumes.describe(dest).parent_uuid == subvolumes.describe(source).uuid
    _assert_shares(dest, True)
    # and it is the recipient's own: what it does stays with it
    (dest / "debug" / "deps" / "program").write_bytes(b"changed")
    (dest / "new").touch()
    assert trees.facts(source) == before


def test_a_read_only_donor_gives_a_writable_clone(btrfs: Path, trees: Any) -> None:
    source, dest = btrfs / "source", btrfs / "dest"
    create_target(source)
    trees.plant(source)
    subvolumes.set_read_only(source, True)
    assert clone_target(source, dest).method == "snapshot"
    (dest / "new").touch()
    subvolumes.set_read_only(source, False)


def test_a_plain_directory_on_btrfs_becomes_a_subvolume(btrfs: Path, trees: Any) -> None:
    source, dest = btrfs / "source", btrfs / "dest"
    source.mkdir()
    trees.plant(source)
    before = trees.facts(source)
    report = clone_target(source, dest, allow_copy=False)
    assert report.method == "reflink"
    assert report.copied_bytes == 0
    assert report.reflinked_bytes > 300_000
    assert subvolumes.is_subvolume(dest)
    assert trees.facts(dest) == before
    assert trees.facts(source) == before
    _assert_shares(dest, True)
    # the next one is O(1)
    assert clone_target(dest, btrfs / "next").method == "snapshot"


def test_xfs_reflinks(xfs: Path, trees: Any) -> None:
    source, dest = xfs / "source", xfs / "dest"
    assert create_target(source) == "directory"
    trees.plant(source, files=20)
    before = trees.facts(source)
    report = clone_target(source, dest, allow_copy=False)
    assert report.method == "reflink"
    assert report.copied_reasons == {}
    assert trees.facts(dest) == before
    _assert_shares(dest, True)


def test_ext4_copies_and_says_why(ext4: Path, trees: Any) -> None:
    """The negative control of all sharing above."""
    source, dest = ext4 / "source", ext4 / "dest"
    create_target(source)
    trees.plant(source, files=20)
    before = trees.facts(source)
    report = clone_target(source, dest)
    assert report.method == "copy"
    assert report.reflinked_bytes == 0
    assert report.copied_bytes > 400_000
    assert report.copied_reasons == {"EOPNOTSUPP": report.files}
    assert trees.facts(dest) == before
    _assert_shares(dest, False)


def test_no_copy_where_none_is_allowed(ext4: Path, trees: Any) -> None:
    source, dest = ext4 / "source", ext4 / "dest"
    create_target(source)
    trees.plant(source)
    with pytest.raises(FilesystemFailed):
        clone_target(source, dest, allow_copy=False)
    assert [path.name for path in ext4.iterdir()] == ["source"]


def test_from_one_filesystem_to_another_is_a_copy(btrfs: Path, xfs: Path, trees: Any) -> None:
    source = btrfs / "source"
    create_target(source)
    trees.plant(source)
    dest = xfs / "dest"
    assert probe(xfs).reflink
    with pytest.raises(FilesystemFailed):
        clone_target(source, dest, allow_copy=False)
    assert list(xfs.iterdir()) == []
    report = clone_target(source, dest)
    assert report.method == "copy"
    assert report.copied_reasons == {"EXDEV": report.files}


def test_between_subvolumes_extents_are_shared(btrfs: Path, trees: Any) -> None:
    """They differ in st_dev, which must not be taken for another filesystem."""
    one, other = btrfs / "one", btrfs / "other"
    subvolumes.create(one)
    subvolumes.create(other)
    assert one.stat().st_dev != other.stat().st_dev
    (one / "source").mkdir()
    trees.plant(one / "source")
    report = clone_target(one / "source", other / "dest", allow_copy=False)
    assert report.method == "reflink"
    _assert_shares(other / "dest", True)


@pytest.mark.parametrize("outer", ["subvolume", "directory"])
def test_nested_subvolumes_are_cloned_and_told(btrfs: Path, trees: Any, outer: str) -> None:
    source, dest = btrfs / "source", btrfs / "dest"
    if outer == "subvolume":
        create_target(source)
    else:
        source.mkdir()
    trees.plant(source)
    inner = source / "debug" / "inner"
    subvolumes.create(inner)
    subvolumes.create(inner / "innermost")
    (inner / "innermost" / "file").write_bytes(os.urandom(9_000))
    (inner / "file").write_bytes(os.urandom(9_000))
    before = trees.facts(source)
    report = clone_target(source, dest)
    assert report.method == "reflink"
    assert any("subvolume(s) inside" in note and str(inner) in note for note in report.notes)
    assert trees.facts(dest) == before
    assert subvolumes.nested(dest) == []
    _assert_shares(dest, True)


def test_no_checksums_are_no_hindrance(btrfs: Path) -> None:
    """chattr +C: Btrfs refuses to share between files with and without checksums."""
    source, dest = btrfs / "source", btrfs / "dest"
    source.mkdir()
    subprocess.run(["chattr", "+C", str(source)], check=True)
    (source / "file").write_bytes(os.urandom(100_000))
    report = clone_target(source, dest)
    assert (report.method, report.copied_bytes) == ("reflink", 0)
    assert _shared(dest / "file") == [True]


@pytest.mark.parametrize("what", ["file", "empty", "dangling", "subvolume"])
def test_what_is_there_is_never_touched(btrfs: Path, trees: Any, what: str) -> None:
    source, dest = btrfs / "source", btrfs / "dest"
    create_target(source)
    if what == "file":
        dest.write_text("theirs")
    elif what == "empty":
        dest.mkdir()
    elif what == "dangling":
        dest.symlink_to("nowhere")
    else:
        subvolumes.create(dest)
    before = dest.lstat()
    for directory in (source, btrfs / "plain"):
        directory.mkdir(exist_ok=True)
        with pytest.raises(FileExistsError):
            clone_target(directory, dest)
    assert dest.lstat() == before
    assert stale_temporaries(btrfs, "dest") == []


def test_dest_that_appears_meanwhile_is_not_touched(
    btrfs: Path, trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = btrfs / "source", btrfs / "dest"
    source.mkdir()
    trees.plant(source)
    clone_tree = native.clone_tree

    def slow(*arguments: Any, **options: Any) -> native.CloneTree:
        result = clone_tree(*arguments, **options)
        dest.mkdir()
        return result

    monkeypatch.setattr(native, "clone_tree", slow)
    with pytest.raises(FileExistsError):
        clone_target(source, dest)
    assert _names(btrfs) == ["dest", "source"]
    assert _names(dest) == []


@pytest.mark.parametrize("kind", ["symlink", "file", "absent"])
def test_sources_that_are_none(btrfs: Path, kind: str) -> None:
    source = btrfs / "source"
    (btrfs / "real").mkdir()
    if kind == "symlink":
        source.symlink_to("real")
    elif kind == "file":
        source.touch()
    with pytest.raises(TargetUnusable):
        clone_target(source, btrfs / "dest")
    assert not (btrfs / "dest").exists()


def test_a_mount_point_is_no_donor(btrfs_mount: Path, btrfs: Path) -> None:
    with pytest.raises(TargetUnusable, match="mount point"):
        clone_target(btrfs_mount, btrfs / "dest")
    assert list(btrfs.iterdir()) == []


@pytest.mark.parametrize("outer", ["subvolume", "directory"])
def test_a_mount_inside_is_left_out_and_told(
    btrfs: Path, trees: Any, missing: Callable[[str], None], outer: str
) -> None:
    source, dest, elsewhere = btrfs / "source", btrfs / "dest", btrfs / "elsewhere"
    if outer == "subvolume":
        create_target(source)
    else:
        source.mkdir()
    trees.plant(source)
    elsewhere.mkdir()
    (elsewhere / "not-ours").touch()
    point = source / "empty"
    done = subprocess.run(
        ["mount", "--bind", str(elsewhere), str(point)], capture_output=True, check=False
    )
    if done.returncode:
        missing(f"no bind mounts: {done.stderr!r}")
    try:
        report = clone_target(source, dest)
    finally:
        subprocess.run(["umount", str(point)], check=True)
    assert any(str(point) in note and "mounted" in note for note in report.notes)
    assert not list(dest.rglob("not-ours"))
    assert (dest / "debug" / "deps" / "libbig.rlib").exists()


def test_a_clone_into_itself_is_refused(btrfs: Path, ext4: Path) -> None:
    for place in (btrfs, ext4):
        source = place / "plain"
        source.mkdir()
        with pytest.raises(TargetUnusable, match="inside"):
            clone_target(source, source / "dest")
        assert list(source.iterdir()) == []


def test_a_snapshot_into_its_own_source_works(btrfs: Path) -> None:
    """A worktree inside the target, say; a snapshot is taken in one step, so nothing loops."""
    source = btrfs / "source"
    create_target(source)
    (source / "file").touch()
    assert clone_target(source, source / "dest").method == "snapshot"
    assert _names(source / "dest") == ["file"]


def test_a_temporary_name_is_filled_in_place(xfs: Path, trees: Any) -> None:
    source, dest = xfs / "source", temporary_sibling(xfs / "target")
    create_target(source)
    trees.plant(source)
    clone_target(source, dest)
    assert _names(xfs) == sorted(["source", dest.name])


@pytest.mark.parametrize("kind", ["btrfs", "xfs", "ext4"])
@pytest.mark.parametrize("temporary", [True, False])
def test_whatever_fails_leaves_nothing(
    request: pytest.FixtureRequest,
    trees: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    temporary: bool,
) -> None:
    """Native trouble in the middle, and an interrupt: the same end."""
    place: Path = request.getfixturevalue(kind)
    source = place / "source"
    source.mkdir()
    trees.plant(source)
    before = trees.facts(source)
    clone_tree = native.clone_tree
    for trouble in (FilesystemFailed("broken"), KeyboardInterrupt(), OSError(errno.EIO, "disk")):

        def failing(
            *arguments: Any, trouble: BaseException = trouble, **options: Any
        ) -> native.CloneTree:
            clone_tree(*arguments, **options)
            raise trouble

        monkeypatch.setattr(native, "clone_tree", failing)
        dest = place / "dest"
        with pytest.raises((CowError, KeyboardInterrupt)) as caught:
            clone_target(source, temporary_sibling(dest) if temporary else dest)
        if isinstance(trouble, OSError):
            assert isinstance(caught.value, FilesystemFailed)
        assert _names(place) == ["source"]
    assert trees.facts(source) == before


def test_without_root_a_donor_of_ones_own_is_snapshotted(
    btrfs: Path, unprivileged: Callable[..., Any], trees: Any
) -> None:
    os.chown(btrfs, 65_534, 65_534)

    def act() -> tuple[str, bool]:
        source, dest = btrfs / "source", btrfs / "dest"
        create_target(source)
        trees.plant(source)
        method = clone_target(source, dest).method
        return method, trees.facts(dest) == trees.facts(source)

    assert unprivileged(act) == ("snapshot", True)


def test_without_root_another_ones_donor_is_cloned_as_a_tree(
    btrfs: Path, unprivileged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot needs the donor's owner (EPERM); reading it is enough for a tree."""
    source, place = btrfs / "source", btrfs / "place"
    create_target(source)
    (source / "file").write_text("root's")
    place.mkdir()
    os.chown(place, 65_534, 65_534)

    def by_hand(src: Path, dst: Path, mode: str, *, exclude: object = ()) -> native.CloneTree:
        # The program itself may lie where nobody may not go.
        (dst / "file").write_bytes((src / "file").read_bytes())
        return native.CloneTree(1, 1, 0, 0, 1, 6, 0, 0, {}, 0, 0, 0, 0, 0, 0.0)

    monkeypatch.setattr(native, "clone_tree", by_hand)

    def act() -> tuple[str, str]:
        report = clone_target(source, place / "dest")
        return report.method, (place / "dest" / "file").read_text()

    assert unprivileged(act) == ("reflink", "root's")


def test_what_a_live_donor_lost_is_told(
    btrfs: Path, trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = btrfs / "source"
    source.mkdir()
    trees.plant(source)
    clone_tree = native.clone_tree

    def lossy(*arguments: Any, **options: Any) -> native.CloneTree:
        return clone_tree(*arguments, **options)._replace(vanished=2, changed=1)

    monkeypatch.setattr(native, "clone_tree", lossy)
    notes = clone_target(source, btrfs / "dest").notes
    assert notes == (
        "2 file(s): vanished while they were cloned",
        "1 file(s): kept changing while they were cloned",
    )


def test_a_relative_path_and_a_symlinked_parent(
    btrfs: Path, trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (btrfs / "real").mkdir()
    (btrfs / "apparent").symlink_to("real")
    source = btrfs / "apparent" / "source"
    create_target(source)
    trees.plant(source)
    assert clone_target(source, btrfs / "apparent" / "dest").method == "snapshot"
    monkeypatch.chdir(btrfs / "apparent")
    assert clone_target(Path("dest"), Path("next")).method == "snapshot"
    assert trees.facts(btrfs / "real" / "next") == trees.facts(source)
