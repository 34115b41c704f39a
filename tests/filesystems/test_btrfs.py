"""The Btrfs ioctls, held against ``btrfs`` itself where that says the same thing."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cargo_cow.filesystems import btrfs as subvolumes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _probe(btrfs: Path, missing: Callable[[str], None]) -> None:
    """PROBE: a subvolume can be made here."""
    try:
        subvolumes.create(btrfs / "probe")
        subvolumes.destroy(btrfs / "probe")
    except OSError as error:
        missing(f"no subvolumes on this Btrfs: {error}")


def _show(path: Path) -> dict[str, str]:
    out = subprocess.run(
        ["btrfs", "subvolume", "show", str(path)], capture_output=True, text=True, check=True
    ).stdout
    pairs = (line.strip().partition(":") for line in out.splitlines()[1:])
    return {key: value.strip() for key, _, value in pairs}


def test_description_agrees_with_btrfs_progs(btrfs: Path) -> None:
    source, copy = btrfs / "source", btrfs / "copy"
    subvolumes.create(source)
    subvolumes.snapshot(source, copy, read_only=True)
    for path in (source, copy):
        ours, theirs = subvolumes.describe(path), _show(path)
        assert str(ours.number) == theirs["Subvolume ID"]
        assert str(ours.generation) == theirs["Generation"]
        assert ours.uuid.hex() == theirs["UUID"].replace("-", "")
        assert ours.read_only == ("readonly" in theirs["Flags"])
    assert subvolumes.describe(copy).parent_uuid == subvolumes.describe(source).uuid
    assert subvolumes.describe(source).parent_uuid == bytes(16)
    subvolumes.set_read_only(copy, False)
    assert not subvolumes.is_read_only(copy)
    assert not subvolumes.describe(copy).read_only


def test_only_a_subvolumes_root_is_one(btrfs: Path) -> None:
    subvolume = btrfs / "subvolume"
    subvolumes.create(subvolume)
    (subvolume / "inner").mkdir()
    (btrfs / "link").symlink_to(subvolume)
    assert subvolumes.is_subvolume(subvolume)
    assert not subvolumes.is_subvolume(subvolume / "inner")
    assert not subvolumes.is_subvolume(btrfs / "link")
    assert not subvolumes.is_subvolume(btrfs)
    assert not subvolumes.is_subvolume(btrfs / "absent")


def test_inode_256_elsewhere_is_no_subvolume(small_filesystem: Callable[..., Path]) -> None:
    """The number alone must not decide: ext4 hands it out as any other."""
    mount = small_filesystem("ext4", 8 << 20)  # one block group
    for count in range(500):
        (mount / f"d{count}").mkdir()
    [lookalike] = [path for path in mount.iterdir() if path.lstat().st_ino == 256]
    assert not subvolumes.is_subvolume(lookalike)


def test_nested_are_found_below_a_directory_and_not_beside_it(btrfs: Path) -> None:
    outer = btrfs / "outer"
    subvolumes.create(outer)
    (outer / "a" / "b").mkdir(parents=True)
    strange = os.fsdecode(b"not-utf8-\xff")
    for path in (outer / "direct", outer / "a" / "b" / "deep", outer / "a" / strange):
        subvolumes.create(path)
    subvolumes.create(outer / "direct" / "deeper")
    assert set(subvolumes.nested(outer)) == {
        outer / "direct",
        outer / "a" / "b" / "deep",
        outer / "a" / strange,
    }
    assert subvolumes.nested(outer / "a" / "b") == [outer / "a" / "b" / "deep"]
    assert subvolumes.nested(outer / "direct") == [outer / "direct" / "deeper"]
    # from a plain directory above: not those inside of the outer one
    assert subvolumes.nested(btrfs) == [outer]


def test_more_nested_than_one_answer_holds(btrfs: Path) -> None:
    outer = btrfs / "outer"
    subvolumes.create(outer)
    names = {outer / f"s{count}" for count in range(300)}
    for path in names:
        subvolumes.create(path)
    assert set(subvolumes.nested(outer)) == names
    for path in names:
        subvolumes.destroy(path)
    assert subvolumes.nested(outer) == []


def test_nested_elsewhere_is_empty(ext4: Path, xfs: Path) -> None:
    assert subvolumes.nested(ext4) == []
    assert subvolumes.nested(xfs) == []


def test_without_root_it_all_works_but_destroying(
    btrfs: Path, unprivileged: Callable[..., Any]
) -> None:
    os.chown(btrfs, 65_534, 65_534)

    def act() -> tuple[int | None, list[Path]]:
        subvolumes.create(btrfs / "mine")
        (btrfs / "mine" / "directory").mkdir()
        subvolumes.create(btrfs / "mine" / "directory" / "inner")
        subvolumes.snapshot(btrfs / "mine", btrfs / "copy", read_only=True)
        subvolumes.set_read_only(btrfs / "copy", False)
        refused = None
        try:
            subvolumes.destroy(btrfs / "copy")
        except OSError as error:
            refused = error.errno
        return refused, subvolumes.nested(btrfs / "mine")

    refused, nested = unprivileged(act)
    assert refused == errno.EPERM
    assert nested == [btrfs / "mine" / "directory" / "inner"]


def test_names_too_long_are_not_cut(btrfs: Path) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        subvolumes.create(btrfs / ("x" * 256))
    assert caught.value.errno == errno.ENAMETOOLONG
    subvolumes.create(btrfs / ("x" * 255))
    assert subvolumes.is_subvolume(btrfs / ("x" * 255))
