"""Targets as datasets of a real ZFS pool: cloned, named, exchanged, removed, and promoted."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cargo_cow import filesystems
from cargo_cow.errors import FilesystemFailed, TargetUnusable
from cargo_cow.filesystems import mounts, syscalls, temporaries
from cargo_cow.filesystems import zfs as datasets
from cargo_cow.filesystems.sharing import measure
from cargo_cow.snapshots import create_snapshot

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _zfs(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("zfs", path=_PATH)
    assert program
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def _names(place: Path) -> set[str]:
    """What is in the container of the dataset at ``place``: datasets and snapshots."""
    container = datasets.container_for(place)
    assert container
    listed = _zfs("list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name", container).stdout
    return {name.removeprefix(container) for name in listed.split()} - {""}


def _datasets(place: Path) -> set[str]:
    return {name for name in _names(place) if "@" not in name}


@pytest.fixture
def place(zfs_container: Path) -> Path:
    """A dataset with a container."""
    return zfs_container


@pytest.fixture
def target(place: Path) -> Path:
    path = place / "target"
    assert filesystems.create_target(path) == "dataset"
    (path / "file").write_text("one")
    return path


def test_a_target_is_cloned_published_exchanged_and_removed(place: Path, target: Path) -> None:
    assert not os.path.ismount(place / "target2")
    beside = filesystems.temporary_sibling(place / "target2")
    report = filesystems.clone_target(target, beside, allow_copy=False)
    assert report.method == "snapshot"
    (beside / "file").write_text("two")
    assert (target / "file").read_text() == "one"

    filesystems.publish(beside, place / "target2")
    assert not beside.exists()
    assert (place / "target2/file").read_text() == "two"
    with pytest.raises(FileExistsError):
        filesystems.publish(target, place / "target2")

    # With a file of the live one locked, as activation does.
    coming = filesystems.temporary_sibling(target)
    filesystems.clone_target(place / "target2", coming, allow_copy=False)
    with (target / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        filesystems.exchange(coming, target)
        assert (target / "file").read_text() == "two"
        assert (coming / "file").read_text() == "one"
        assert (coming / "lock").exists()
        filesystems.exchange(coming, target)  # and back
        assert (target / "file").read_text() == "one"
        filesystems.exchange(coming, target)
    filesystems.remove_target(coming)
    assert not coming.exists()
    assert (target / "file").read_text() == "two"

    # What a boot would mount is what is mounted now.
    for path in (target, place / "target2"):
        mount = mounts.mount_at(path)
        assert mount
        facts = _zfs("get", "-Hp", "-o", "value", "mountpoint,canmount", mount.source).stdout
        assert facts.split() == [str(path), "on"]
    filesystems.remove_target(place / "target2")
    filesystems.remove_target(target)
    assert _names(place) == set()
    assert sorted(path.name for path in place.iterdir()) == [".cargo-cow"]


def test_a_target_goes_before_its_states_and_a_state_before_its_clones(
    place: Path, target: Path
) -> None:
    states = place / ".cargo-cow"
    for name in ("first", "second"):
        (target / "file").write_text(name)
        report = create_snapshot(target, states / name)
        assert report.method == "snapshot"
    (target / "file").write_text("live")
    with pytest.raises(OSError, match="Read-only"):
        (states / "first/file").write_text("edited")

    filesystems.remove_target(target)  # promotes a state
    assert [(states / name / "file").read_text() for name in ("first", "second")] == [
        "first",
        "second",
    ]
    assert _datasets(place) == {"/first", "/second"}
    sealed = datasets.find(states / "second")
    assert sealed
    assert datasets.seal(sealed)

    filesystems.clone_target(states / "second", target, allow_copy=False)
    assert (target / "file").read_text() == "second"
    datasets.remove_state(states / "second")  # promotes a target, or a state
    datasets.remove_state(states / "second")  # absent is fine
    assert (target / "file").read_text() == "second"
    assert (states / "first/file").read_text() == "first"
    # Destroyed by mistake with all that depends on it, the data of a state is still held.
    dataset = datasets.find(target)
    assert dataset
    create_snapshot(target, states / "third")
    assert _zfs("destroy", "-R", f"{dataset.name}@cow-third").returncode != 0
    assert _zfs("list", f"{dataset.name}@cow-third").returncode == 0
    datasets.remove_state(states / "third")

    datasets.remove_state(states / "first")
    filesystems.remove_target(target)
    assert _names(place) == set()


def _facts(root: Path) -> dict[str, tuple[object, ...]]:
    """What is below ``root``; an old ZFS keeps no xattrs."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        shape = (facts.st_mode, facts.st_nlink, facts.st_mtime_ns, content)
        found[str(path.relative_to(root))] = shape
    return found


def test_a_directory_becomes_a_dataset(place: Path) -> None:
    path = place / "target"
    (path / "debug/deps").mkdir(parents=True)
    (path / "debug/deps/program").write_bytes(b"x" * 300_000)
    (path / "debug/program").hardlink_to(path / "debug/deps/program")
    (path / "link").symlink_to("debug")
    os.utime(path / "debug/program", (1_234_567_890, 1_234_567_890))
    before = _facts(path)
    report = filesystems.convert(path)
    assert report is not None
    assert report.method == "copy"
    assert filesystems.can_snapshot(path)
    assert filesystems.convert(path) is None
    assert _facts(path) == before
    # Nothing is left below the mount.
    syscalls.detach(path)
    assert list(path.iterdir()) == []


def test_nothing_is_done_to_datasets_of_others(zfs: Path) -> None:
    """Without a container all is as on any other filesystem; a foreign mount is left alone."""
    assert datasets.container_for(zfs) is None
    assert filesystems.create_target(zfs / "target") == "directory"
    (zfs / "target/file").write_text("one")
    assert filesystems.clone_target(zfs / "target", zfs / "copy").method == "copy"
    with pytest.raises(FilesystemFailed):
        filesystems.clone_target(zfs / "target", zfs / "other", allow_copy=False)

    holder = mounts.mount_of(zfs)
    assert holder
    assert _zfs("create", f"{holder.source}/foreign").returncode == 0
    for act in (filesystems.remove_target, filesystems.convert):
        with pytest.raises(TargetUnusable, match="mount point"):
            act(zfs / "foreign")
    with pytest.raises(TargetUnusable, match="mount point"):
        filesystems.clone_target(zfs / "foreign", zfs / "another")
    # A container's name alone makes none.
    assert _zfs("create", f"{holder.source}/cargo-cow").returncode == 0
    assert datasets.container_for(zfs) is None


def test_where_zfs_refuses_a_copy_is_made(
    place: Path,
    target: Path,
    unprivileged: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = place / "room"
    room.mkdir()
    room.chmod(0o777)
    assert unprivileged(filesystems.create_target, room / "own") == "directory"
    ask = datasets._zfs

    def only_ask(*arguments: str) -> list[list[str]]:
        if arguments[0] in ("get", "list"):
            return ask(*arguments)
        raise datasets.Refused(5, "permission denied")

    monkeypatch.setattr(datasets, "_zfs", only_ask)
    report = filesystems.clone_target(target, room / "target")
    assert report.method == "copy"
    assert report.notes == ("cloned file by file: permission denied",)
    assert (room / "target/file").read_text() == "one"
    for act in (filesystems.clone_target, create_snapshot):
        with pytest.raises(FilesystemFailed):
            act(target, room / "none", allow_copy=False)
        assert not (room / "none").exists()
    assert create_snapshot(target, room / "state", allow_copy=True).method == "copy"


def test_what_a_killed_command_leaves_is_collected(
    place: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = datasets.container_for(place)
    # Killed with a clone mounted under a temporary's name ...
    left = filesystems.temporary_sibling(target)
    filesystems.clone_target(target, left, allow_copy=False)
    temporaries.release(left)
    assert filesystems.stale_temporaries(place, "target") == [left]
    assert filesystems.remove_stale(place, "target") == [left]
    assert not left.exists()
    # ... before it was mounted ...
    gone = filesystems.temporary_sibling(target)
    options = ("-o", "canmount=noauto", "-o", f"mountpoint={gone}")
    assert _zfs("create", *options, f"{container}/half").returncode == 0
    # ... between an exchange and the removal of what was live, with a boot after it.
    other = filesystems.temporary_sibling(target)
    filesystems.clone_target(target, other, allow_copy=False)
    mount = mounts.mount_at(other)
    assert mount
    temporaries.release(other)
    assert _zfs("umount", mount.source).returncode == 0
    assert _zfs("set", f"mountpoint={target}", mount.source).returncode == 0
    assert _zfs("set", "canmount=on", mount.source).returncode == 0
    live = datasets.find(target)
    assert live

    assert datasets.sweep(place) == []  # may be somebody's work in progress
    monkeypatch.setattr(datasets, "_ORPHAN_AGE", -5)
    swept: list[str] = []
    until = time.monotonic() + 60
    while len(swept) < 2 and time.monotonic() < until:  # some namespace may have it still
        swept += datasets.sweep(place)
    assert sorted(swept) == sorted([f"{container}/half", mount.source])
    assert _datasets(place) == {live.name.removeprefix(str(container))}
    assert (target / "file").read_text() == "one"


def _let_fail(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let the call with this number (from 0 on) that concerns mounts fail; those after it work."""
    calls = iter(range(1000))

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **words: Any) -> Any:
            if next(calls) == number:
                raise OSError(errno.EIO, "refused by the test")
            return real(*arguments, **words)

        return act

    for name in ("forget_mount", "open_tree", "detach", "move_mount"):
        patch.setattr(syscalls, name, wrapped(getattr(syscalls, name)))


def test_a_failed_exchange_leaves_both(
    place: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = filesystems.temporary_sibling(target)
    filesystems.clone_target(target, coming, allow_copy=False)
    (coming / "file").write_text("two")

    def refuse(*arguments: object) -> None:
        raise datasets.Refused(5, "no")

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_settle", refuse)
        with pytest.raises(FilesystemFailed, match="no"):
            filesystems.exchange(coming, target)
    assert (coming / "file").read_text() == "two"
    assert (target / "file").read_text() == "one"
    filesystems.exchange(coming, target)
    assert (target / "file").read_text() == "two"
    (place / "plain").mkdir()
    with pytest.raises(FilesystemFailed, match="plain directory"):
        filesystems.exchange(coming, place / "plain")
    filesystems.remove_target(coming)


@pytest.mark.parametrize("number", range(8))
def test_whichever_call_fails_the_live_target_is_whole(
    place: Path, target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """forget, open_tree twice, detach, move beneath, detach, move aside; the eighth never comes."""
    coming = filesystems.temporary_sibling(target)
    filesystems.clone_target(target, coming, allow_copy=False)
    (coming / "file").write_text("two")
    with monkeypatch.context() as patch:
        _let_fail(patch, number)
        if number < 7:
            with pytest.raises(FilesystemFailed, match="refused by the test"):
                filesystems.exchange(coming, target)
        else:
            filesystems.exchange(coming, target)
    assert (target / "file").read_text() == ("one" if number < 6 else "two")
    if number < 5:
        assert (coming / "file").read_text() == "two"
    filesystems.remove_target(coming)


def test_a_target_is_made_while_another_namespace_has_its_mount(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a compiler at an identity, which may start at any moment."""
    holders: list[subprocess.Popen[bytes]] = []
    ask = datasets._zfs

    def held(*arguments: str) -> list[list[str]]:
        answer = ask(*arguments)
        if arguments[0] in ("create", "mount"):
            words = ["unshare", "--mount", "sh", "-c", "echo; exec sleep 60"]
            holders.append(subprocess.Popen(words, stdout=subprocess.PIPE))
            told = holders[-1].stdout
            assert told
            with told:
                told.readline()
        return answer

    monkeypatch.setattr(datasets, "_zfs", held)
    try:
        assert filesystems.create_target(place / "target") == "dataset"
        assert mounts.mount_at(place / "target")
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


_SLOW_ZFS = """#!/bin/sh
case $1 in set) touch "$ASKED"; sleep 60 ;; esac
exec {zfs} "$@"
"""

_EXCHANGE = """
import sys
from pathlib import Path
from cargo_cow import filesystems
live, coming = map(Path, sys.argv[1:])
filesystems.clone_target(live, coming, allow_copy=False)
(coming / "file").write_text("two")
filesystems.exchange(coming, live)
"""


def test_killed_while_zfs_is_asked_both_are_still_mounted(
    place: Path, target: Path, tmp_path: Path
) -> None:
    """A mount that ended together with a file open in it would lock up zfs-fuse for good."""
    program = tmp_path / "zfs"
    program.write_text(_SLOW_ZFS.format(zfs=shutil.which("zfs", path=_PATH)))
    program.chmod(0o755)
    asked = tmp_path / "asked"
    environment = {**os.environ, "PATH": f"{tmp_path}:{_PATH}", "ASKED": str(asked)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    coming = filesystems.temporary_sibling(target)
    until = time.monotonic() + 60
    with subprocess.Popen(
        [sys.executable, "-c", _EXCHANGE, str(target), str(coming)],
        env=environment,
        start_new_session=True,
    ) as running:
        while not asked.exists() and time.monotonic() < until:
            assert running.poll() is None
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
    for path, told in ((target, "one"), (coming, "two")):
        # Not by us: who waits for a file that zfs-fuse does not open can be ended by nobody.
        reading = subprocess.Popen(["cat", path / "file"], stdout=subprocess.PIPE, text=True)
        assert reading.communicate(timeout=20)[0] == told
    temporaries.release(coming)
    assert filesystems.remove_stale(place, "target") == [coming]


def test_what_a_dataset_uses_alone(place: Path, target: Path) -> None:
    (target / "file").write_bytes(os.urandom(2_000_000))
    state = place / ".cargo-cow/state"
    create_snapshot(target, state)
    other = place / "other"
    filesystems.clone_target(state, other)
    (other / "more").write_bytes(os.urandom(1_000_000))
    (target / "file").write_bytes(os.urandom(2_000_000))
    create_snapshot(target, place / ".cargo-cow/now")

    alone = filesystems.usage(other)
    until = time.monotonic() + 60
    while alone.exclusive_bytes < 1_000_000 and time.monotonic() < until:
        time.sleep(0.2)  # counted when a transaction group ends
        alone = filesystems.usage(other)
    assert alone.logical_bytes == 3_000_000
    assert 1_000_000 <= alone.exclusive_bytes < 1_300_000
    assert 2_000_000 <= alone.shared_bytes < 2_300_000
    assert not alone.exact
    # The first state shares its file with the clone only, the second with the live target.
    told = measure({"state": state, "now": place / ".cargo-cow/now", "other": other})
    assert not told.exact
    assert 2_000_000 <= told.freed(["state"]) < 2_300_000
    assert told.freed(["now"]) < 300_000


def _zpool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("zpool", path=_PATH)
    assert program
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def test_after_a_boot_all_is_where_it_was(place: Path, target: Path) -> None:
    create_snapshot(target, place / ".cargo-cow/state")
    coming = filesystems.temporary_sibling(target)
    filesystems.clone_target(target, coming, allow_copy=False)
    (coming / "file").write_text("two")
    filesystems.exchange(coming, target)
    left = filesystems.temporary_sibling(target)
    filesystems.clone_target(target, left, allow_copy=False)  # of a command that the boot ends
    for path in (coming, left):
        temporaries.release(path)
    holder = mounts.mount_of(place)
    assert holder
    pool = holder.source.split("/")[0]
    until = time.monotonic() + 60
    while (done := _zpool("export", pool)).returncode and time.monotonic() < until:
        time.sleep(0.2)  # some namespace may have it still
    assert done.returncode == 0, done.stderr
    assert not (place / ".cargo-cow/state/file").exists()
    done = _zpool("import", "-o", "cachefile=none", "-d", str(place.parent.parent), pool)
    assert done.returncode == 0, done.stderr

    assert (target / "file").read_text() == "two"
    assert (place / ".cargo-cow/state/file").read_text() == "one"
    assert list(coming.iterdir()) == list(left.iterdir()) == []
    filesystems.remove_stale(place, "target")
    assert not coming.exists()
    assert not left.exists()
