"""A temporary's maker is told to live or not by its lock, whatever its pid."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from tests.support.projects import git, repository, write

from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import (
    clone_target,
    create_target,
    exchange,
    is_temporary,
    publish,
    remove_stale,
    remove_target,
    stale_temporaries,
    temporaries,
    temporary_sibling,
    temporary_target,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_names() -> None:
    path = temporary_sibling(Path("/somewhere/target"))
    assert path.parent == Path("/somewhere")
    assert path.name.startswith(f".target.cow-{os.getpid()}-")
    assert is_temporary(path)
    assert is_temporary(path, "target")
    assert not is_temporary(path, "other")
    assert temporary_sibling(path) != path
    for name in (
        "target",
        ".target",
        ".cow-1-0123456789ab",
        "target.cow-1-0123456789ab",
        ".target.cow-x-0123456789ab",
        ".target.cow-1-0123456789aB",
        ".target.cow-1-0123456789a",
        ".target.cow-1",
    ):
        assert not is_temporary(Path(name)), name


def _child_makes(path: Path) -> int:
    """A child that makes ``path`` and then waits to be killed; its pid."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        create_target(path)
        os.write(write, b".")
        signal.pause()
        os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"."
    os.close(read)
    return child


def test_a_live_maker_is_spared_and_a_killed_one_is_not(any_filesystem: Path) -> None:
    target = any_filesystem / "target"
    path = temporary_sibling(target)
    child = _child_makes(path)
    try:
        (path / "work").touch()
        assert stale_temporaries(any_filesystem, "target") == []
        assert remove_stale(any_filesystem, "target") == []
        assert (path / "work").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert stale_temporaries(any_filesystem, "target") == [path]
    assert stale_temporaries(any_filesystem, "other") == []
    assert remove_stale(any_filesystem, "target") == [path]
    assert list(any_filesystem.iterdir()) == []


def test_our_own_are_never_stale(btrfs: Path) -> None:
    target, donor = btrfs / "target", btrfs / "donor"
    create_target(donor)
    made, cloned = temporary_sibling(target), temporary_sibling(target)
    create_target(made)
    clone_target(donor, cloned)
    assert stale_temporaries(btrfs, "target") == []
    assert remove_stale(btrfs, "target") == []
    publish(cloned, target)
    remove_target(made)
    assert not [path for path in temporaries._held if path.is_relative_to(btrfs)]
    assert _names(btrfs) == ["donor", "target"]


def test_what_an_exchange_leaves_is_held_too(btrfs: Path) -> None:
    target = btrfs / "target"
    create_target(target)
    aside = temporary_sibling(target)
    create_target(aside)
    exchange(aside, target)
    assert stale_temporaries(btrfs, "target") == []
    remove_target(aside)
    assert not [path for path in temporaries._held if path.is_relative_to(btrfs)]


def test_only_directories_of_the_very_form_are_touched(btrfs: Path) -> None:
    target = btrfs / "target"
    kept = [btrfs / ".target.cow-notes", temporary_sibling(target), temporary_sibling(target)]
    kept[0].mkdir()
    kept[1].write_text("a file")
    kept[2].symlink_to(btrfs / "elsewhere")
    (btrfs / "elsewhere").mkdir()
    assert remove_stale(btrfs, "target") == []
    assert all(path.is_symlink() or path.exists() for path in kept)
    assert (btrfs / "elsewhere").exists()


def test_a_maker_that_loses_the_race_makes_it_again(btrfs: Path) -> None:
    """The window between making and locking, played through: a sweeper takes the first one."""
    path = temporary_sibling(btrfs / "target")
    attempts = []

    def make() -> None:
        path.mkdir()
        attempts.append(path.stat().st_ino)
        if len(attempts) == 1:
            assert remove_stale(btrfs, "target") == [path]

    temporaries.make(path, make)
    assert len(attempts) == 2
    assert path.is_dir()
    assert stale_temporaries(btrfs, "target") == []
    temporaries.release(path)
    assert stale_temporaries(btrfs, "target") == [path]


def test_a_maker_waits_for_a_sweeper_at_work(btrfs: Path) -> None:
    """The same window, with a sweeper that has the lock and needs a while to remove."""
    path = temporary_sibling(btrfs / "target")
    attempts = []
    children = []

    def make() -> None:
        path.mkdir()
        attempts.append(path.stat().st_ino)
        if len(attempts) == 1:
            read, write = os.pipe()
            children.append(os.fork())
            if not children[-1]:
                for found in temporaries.abandoned(btrfs, "target"):
                    os.write(write, b".")
                    time.sleep(0.1)
                    found.rmdir()
                os._exit(0)
            assert os.read(read, 1) == b"."

    temporaries.make(path, make)
    assert len(attempts) == 2
    assert path.is_dir()
    os.waitpid(children[0], 0)
    temporaries.release(path)


def test_without_locks_nothing_is_stale_and_nobody_is_stopped(
    btrfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    path, target = temporary_sibling(btrfs / "target"), btrfs / "target"
    create_target(path)
    temporaries.release(path)
    assert stale_temporaries(btrfs, "target") == []
    publish(path, target)
    assert target.is_dir()


def test_no_parent_no_temporaries(tmp_path: Path) -> None:
    assert stale_temporaries(tmp_path / "absent", "target") == []
    assert remove_stale(tmp_path / "absent", "target") == []


def test_anothers_that_we_may_not_remove_are_left(
    btrfs: Path, unprivileged: Callable[..., object]
) -> None:
    path = temporary_sibling(btrfs / "target")
    path.mkdir(mode=0o755)
    assert unprivileged(remove_stale, btrfs, "target") == []
    path.chmod(0o700)
    assert unprivileged(stale_temporaries, btrfs, "target") == []
    assert path.exists()
    assert remove_stale(btrfs, "target") == [path]


@pytest.mark.parametrize("name", ["target", ".hidden", "a.cow-1-0123456789ab", "ü\udcff"])
def test_any_name_can_have_temporaries(ext4: Path, name: str) -> None:
    path = temporary_sibling(ext4 / name)
    path.mkdir()
    assert stale_temporaries(ext4, name) == [path]
    assert remove_stale(ext4, name) == [path]


# -- where git does not look


def _status(checkout: Path) -> str:
    return git(checkout, "status", "--porcelain", "--untracked-files=all")


def test_git_does_not_see_what_a_killed_maker_left(any_filesystem: Path) -> None:
    root = repository(any_filesystem / "checkout", {"file": "text"})  # ignores /target
    target = root / "target"
    path = temporary_target(target)
    assert path.parent == root / ".cargo-cow"
    child = _child_makes(path)
    assert (_status(root), stale_temporaries(root, "target")) == ("", [])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert _status(root) == ""
    assert stale_temporaries(root, "target") == [path]
    # One that an earlier version left beside the target is found, too.
    beside = temporary_sibling(target)
    beside.mkdir()
    assert sorted(remove_stale(root, "target")) == sorted([path, beside])
    again = temporary_target(target)
    create_target(again)
    publish(again, target)
    other = temporary_target(target)
    create_target(other)
    (other / "file").write_text("new")
    exchange(other, target)
    remove_target(other)
    assert (target / "file").read_text() == "new"
    remove_target(target)
    assert _names(root / ".cargo-cow") == [".gitignore"]
    assert _status(root) == ""


def test_where_there_is_no_room_it_is_a_sibling(btrfs: Path) -> None:
    loose = btrfs / "loose"
    loose.mkdir()
    assert temporary_target(loose / "target").parent == loose
    assert _names(loose) == []  # no checkout, no room
    for number, harm in enumerate(
        (
            lambda room: room.write_text("a file"),
            lambda room: room.symlink_to(btrfs),
            subvolumes.create,
        )
    ):
        root = repository(btrfs / f"checkout{number}", {"file": "text"})
        harm(root / ".cargo-cow")
        assert temporary_target(root / "target").parent == root
    # In the repository itself, and in a store of states, there is nothing to hide.
    root = repository(btrfs / "whole", {"file": "text"})
    for inside in (".git/cargo-cow/states", ".cargo-cow/states"):
        (root / inside).mkdir(parents=True)
        assert temporary_target(root / inside / "id").parent == root / inside
    write(root, {"target/CACHEDIR.TAG": "", "target/.cargo-cow/prepared.json": "{}"})
    for inside in ("target/.cargo-cow", "target/debug"):
        assert temporary_target(root / inside).parent == root / "target"


def test_a_room_of_another_user_is_not_used(
    btrfs: Path, unprivileged: Callable[..., Path], missing: Callable[[str], NoReturn]
) -> None:
    if os.geteuid() != 0:
        missing("needs two users")
    root = repository(btrfs / "checkout", {"file": "text"})
    (root / ".cargo-cow").mkdir()
    os.chown(root, 65_534, 65_534)
    assert unprivileged(temporary_target, root / "target").parent == root
