"""Removing targets: at once where that is allowed, by emptying where not, never too much."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cargo_cow.errors import TargetUnusable
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import clone_target, create_target, remove_target
from cargo_cow.filesystems.mounts import mounts_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def test_whatever_it_is_it_goes(any_filesystem: Path, trees: Any) -> None:
    target, plain = any_filesystem / "target", any_filesystem / "plain"
    create_target(target)
    plain.mkdir()
    for path in (target, plain):
        trees.plant(path, files=200)
        remove_target(path)
    assert list(any_filesystem.iterdir()) == []


def test_absent_is_fine(btrfs: Path) -> None:
    remove_target(btrfs / "absent")


def test_symlinks_inside_are_not_followed(any_filesystem: Path) -> None:
    outside = any_filesystem / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    plain = any_filesystem / "plain"
    plain.mkdir()
    (plain / "link").symlink_to(outside)
    (plain / "file-link").symlink_to(outside / "kept")
    remove_target(plain)
    assert (outside / "kept").exists()


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_what_is_no_directory_is_refused(btrfs: Path, kind: str) -> None:
    path = btrfs / "target"
    (btrfs / "real").mkdir()
    (btrfs / "real" / "kept").touch()
    if kind == "symlink":
        path.symlink_to(btrfs / "real")
    else:
        path.write_text("mine")
    with pytest.raises(TargetUnusable):
        remove_target(path)
    assert os.path.lexists(path)
    assert (btrfs / "real" / "kept").exists()


@pytest.fixture
def mounted(btrfs: Path, missing: Callable[[str], None]) -> Iterator[Path]:
    """A target with a bind mount of this very filesystem inside: the same device number."""
    precious, point = btrfs / "precious", btrfs / "target" / "a place" / "mounted"
    precious.mkdir()
    (precious / "kept").touch()
    create_target(btrfs / "target")
    point.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "--bind", str(precious), str(point)], capture_output=True, check=False
    )
    if done.returncode:
        missing(f"no bind mounts: {done.stderr!r}")
    yield point
    subprocess.run(["umount", str(point)], check=True)


def test_a_mount_inside_is_never_emptied(btrfs: Path, mounted: Path) -> None:
    assert mounts_within(btrfs / "target") == [mounted]
    for path in (btrfs / "target", mounted):
        with pytest.raises(TargetUnusable, match="mount"):
            remove_target(path)
    assert (btrfs / "precious" / "kept").exists()
    assert (mounted / "kept").exists()


def test_a_lower_layer_of_an_overlay(ext4: Path, missing: Callable[[str], None]) -> None:
    """A target that came with a container's image: it cannot be renamed (EXDEV), but removed."""
    layers = [ext4 / name for name in ("lower", "upper", "work", "merged")]
    for path in layers:
        path.mkdir()
    lower, upper, work, merged = layers
    (lower / "target" / "debug").mkdir(parents=True)
    (lower / "target" / "debug" / "file").touch()
    options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        missing(f"no overlayfs: {done.stderr!r}")
    try:
        with pytest.raises(OSError, match="cross-device"):
            (merged / "target").rename(merged / "other")
        remove_target(merged / "target")
        assert list(merged.iterdir()) == []
    finally:
        subprocess.run(["umount", str(merged)], check=True)
    assert (lower / "target" / "debug" / "file").exists()


def test_read_only_and_nested_subvolumes(btrfs: Path, trees: Any) -> None:
    target = btrfs / "target"
    create_target(target)
    trees.plant(target)
    subvolumes.create(target / "inner")
    subvolumes.create(target / "inner" / "innermost")
    subvolumes.snapshot(target / "inner" / "innermost", target / "frozen", read_only=True)
    subvolumes.set_read_only(target / "inner", True)
    subvolumes.set_read_only(target, True)
    remove_target(target)
    assert list(btrfs.iterdir()) == []
    assert subvolumes.nested(btrfs) == []


def test_subvolumes_inside_a_plain_directory(btrfs: Path) -> None:
    plain = btrfs / "plain"
    (plain / "deep").mkdir(parents=True)
    subvolumes.create(plain / "deep" / "inner")
    (plain / "deep" / "inner" / "file").touch()
    remove_target(plain)
    assert list(btrfs.iterdir()) == []


def test_without_root(btrfs: Path, unprivileged: Callable[..., Any], trees: Any) -> None:
    """Neither CAP_SYS_ADMIN nor user_subvol_rm_allowed: emptied, then rmdir(2)."""
    os.chown(btrfs, 65_534, 65_534)

    def act() -> list[Path]:
        target, frozen = btrfs / "target", btrfs / "frozen"
        create_target(target)
        trees.plant(target, files=100)
        subvolumes.create(target / "inner")
        (target / "inner" / "file").touch()
        subvolumes.snapshot(target, frozen, read_only=True)
        remove_target(target)
        remove_target(frozen)
        return list(btrfs.iterdir())

    assert unprivileged(act) == []


def test_without_permission_nothing_is_touched(
    btrfs: Path, unprivileged: Callable[..., Any], trees: Any
) -> None:
    target = btrfs / "target"
    create_target(target)
    trees.plant(target)
    before = trees.facts(target)
    with pytest.raises(TargetUnusable):
        unprivileged(remove_target, target)
    assert trees.facts(target) == before
    assert [path.name for path in btrfs.iterdir()] == ["target"]


def test_what_cannot_be_removed_stays_in_its_place(
    btrfs: Path, unprivileged: Callable[..., Any]
) -> None:
    """A target of one's own, with root's files inside (built in a container, say)."""
    os.chown(btrfs, 65_534, 65_534)

    def make() -> None:
        (btrfs / "target").mkdir()
        (btrfs / "target" / "mine").touch()

    unprivileged(make)
    (btrfs / "target" / "roots").mkdir()
    (btrfs / "target" / "roots" / "file").touch()
    with pytest.raises(TargetUnusable, match=r"Permission denied|not permitted"):
        unprivileged(remove_target, btrfs / "target")
    assert [path.name for path in btrfs.iterdir()] == ["target"]
    assert (btrfs / "target" / "roots" / "file").exists()


def test_rm_removes_a_subvolume_without_root(
    btrfs: Path, unprivileged: Callable[..., Any], trees: Any
) -> None:
    """What a user does by hand must work on a target of ours."""
    os.chown(btrfs, 65_534, 65_534)

    def act() -> str:
        source, target = btrfs / "source", btrfs / "target"
        create_target(source)
        trees.plant(source)
        (source / "debug" / "deps" / "read-only").chmod(0o755)  # rm is not cleverer than that
        assert clone_target(source, target).method == "snapshot"
        done = subprocess.run(["rm", "-rf", str(target)], capture_output=True, check=False)
        return done.stderr.decode()

    assert unprivileged(act) == ""
    assert not (btrfs / "target").exists()


def test_cargo_clean_removes_a_subvolume(btrfs: Path, missing: Callable[[str], None]) -> None:
    if shutil.which("cargo") is None:
        missing("cargo is not installed")
    (btrfs / "src").mkdir()
    (btrfs / "src" / "lib.rs").touch()
    (btrfs / "Cargo.toml").write_text('[package]\nname = "p"\nversion = "1.0.0"\n')
    create_target(btrfs / "target")
    (btrfs / "target" / "debug").mkdir()
    (btrfs / "target" / "debug" / "file").touch()
    subprocess.run(["cargo", "clean"], cwd=btrfs, check=True, capture_output=True)
    assert not (btrfs / "target").exists()
