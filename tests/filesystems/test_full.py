"""No space in the middle: nothing is left behind, nothing is lost, and the error says so."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cargo_cow import native
from cargo_cow.errors import NativeMissing, NoSpace
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import clone_target, convert, create_target, remove_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MIB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def _probe(missing: Callable[[str], None]) -> None:
    """PROBE: the native program is there and answers."""
    try:
        native.version()
    except NativeMissing as error:
        missing(str(error))


def _fill(mount: Path, *, leave: int = 0) -> None:
    """Take all space, by smaller and smaller pieces, then give ``leave`` bytes back."""
    with (mount / "filler").open("xb", buffering=0) as file:
        for size in (4 * _MIB, 65_536, 4_096):
            piece = bytes(size)
            with contextlib.suppress(OSError):
                while True:
                    file.write(piece)
            os.fsync(file.fileno())
        file.truncate(file.tell() - leave)
        os.fsync(file.fileno())


def _many_small(source: Path, count: int) -> None:
    """Files that Btrfs keeps in its metadata, where a reflink copies them."""
    source.mkdir(exist_ok=True)
    for number in range(count):
        (source / f"f{number}").write_bytes(os.urandom(2_000))


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "lost+found")


def test_copying_on_ext4(small_filesystem: Callable[..., Path], trees: Any) -> None:
    mount = small_filesystem("ext4", 24 * _MIB)
    source = mount / "source"
    source.mkdir()
    trees.plant(source, files=1_500)
    before = trees.facts(source)
    _fill(mount, leave=4 * _MIB)
    free = os.statvfs(mount).f_bavail
    with pytest.raises(NoSpace):
        clone_target(source, mount / "dest")
    assert _names(mount) == ["filler", "source"]
    assert trees.facts(source) == before
    os.sync()
    assert os.statvfs(mount).f_bavail >= free - 16
    remove_target(source)


def test_reflinking_on_xfs(small_filesystem: Callable[..., Path], trees: Any) -> None:
    """A reflink needs no room for data; its inodes do."""
    mount = small_filesystem("xfs", 320 * _MIB)
    source = mount / "source"
    source.mkdir()
    trees.plant(source, files=1_200)
    before = trees.facts(source)
    _fill(mount, leave=300_000)
    with pytest.raises(NoSpace):
        clone_target(source, mount / "dest")
    assert _names(mount) == ["filler", "source"]
    assert trees.facts(source) == before


@pytest.fixture
def full_btrfs(small_filesystem: Callable[..., Path]) -> tuple[Path, Path]:
    """A Btrfs whose data is full, so that metadata cannot grow, and a tree that needs it to."""
    mount = small_filesystem("btrfs", 128 * _MIB)
    source = mount / "target"
    _many_small(source, 2_000)
    os.sync()
    _fill(mount)
    return mount, source


def _clone_until_it_fails(source: Path) -> None:
    """Each clone takes its share of the metadata that is left."""
    for number in range(40):
        clone_target(source, source.with_name(f"dest{number}"))


def test_cloning_on_btrfs(full_btrfs: tuple[Path, Path], trees: Any) -> None:
    mount, source = full_btrfs
    before = trees.facts(source)
    with pytest.raises(NoSpace):
        _clone_until_it_fails(source)
    whole = [name for name in _names(mount) if name.startswith("dest")]
    assert _names(mount) == [*sorted(whole), "filler", "target"]
    for name in whole:
        assert trees.facts(mount / name) == before
    assert trees.facts(source) == before


def test_converting_on_btrfs(full_btrfs: tuple[Path, Path], trees: Any) -> None:
    mount, target = full_btrfs
    before = trees.facts(target)
    # metadata is taken by clones until one fails; then there is none for a conversion
    with pytest.raises(NoSpace):
        _clone_until_it_fails(target)
    with pytest.raises(NoSpace):
        convert(target)
    assert not subvolumes.is_subvolume(target)
    assert trees.facts(target) == before
    # and on a full filesystem removing still works, subvolumes and directories alike
    for name in _names(mount):
        if name != "filler":
            remove_target(mount / name)
    assert _names(mount) == ["filler"]


def test_over_quota_is_no_space(small_filesystem: Callable[..., Path], trees: Any) -> None:
    mount = small_filesystem("btrfs", 256 * _MIB)
    place = mount / "limited"
    subvolumes.create(place)
    source, donor = place / "source", mount / "donor"
    _many_small(source, 500)
    create_target(donor)
    os.sync()
    for command in (
        ("quota", "enable", str(mount)),
        ("qgroup", "limit", "64K", str(place)),
        ("quota", "rescan", "-w", str(mount)),
    ):
        subprocess.run(["btrfs", *command], check=True, capture_output=True)
    before = trees.facts(source)
    with pytest.raises(NoSpace, match="quota"):
        create_target(place / "dest")
    with pytest.raises(NoSpace, match="quota"):
        clone_target(source, place / "dest")
    with pytest.raises(NoSpace, match="quota"):
        clone_target(donor, place / "dest")
    assert _names(place) == ["source"]
    assert trees.facts(source) == before
