"""Publishing never replaces, exchanging is one step: with renameat2 and, for publishing,
without."""

from __future__ import annotations

import errno
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cargo_cow.errors import FilesystemFailed
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import (
    create_target,
    exchange,
    publish,
    stale_temporaries,
    syscalls,
    temporary_sibling,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier

_FORK = multiprocessing.get_context("fork")


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(params=["renameat2", "fallback"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of publishing; the fallback is for filesystems that refuse the flag."""
    if request.param == "fallback":

        def refuse(old: Path, new: Path, flags: int) -> None:
            raise OSError(errno.EINVAL, "no flags here", str(old), None, str(new))

        monkeypatch.setattr(syscalls, "rename", refuse)
    return str(request.param)


def _made(name: Path, content: str) -> Path:
    temporary = temporary_sibling(name)
    create_target(temporary)
    (temporary / "file").write_text(content)
    return temporary


def test_publish_gives_the_name(any_filesystem: Path, way: str) -> None:
    dest = any_filesystem / "target"
    temporary = _made(dest, "new")
    publish(temporary, dest)
    assert (dest / "file").read_text() == "new"
    assert sorted(path.name for path in any_filesystem.iterdir()) == ["target"]


@pytest.mark.parametrize("what", ["file", "empty", "full", "dangling", "subvolume"])
def test_publish_never_replaces(btrfs: Path, way: str, what: str) -> None:
    dest = btrfs / "target"
    if what == "file":
        dest.write_text("theirs")
    elif what == "empty":
        dest.mkdir()
    elif what == "full":
        dest.mkdir()
        (dest / "theirs").touch()
    elif what == "dangling":
        dest.symlink_to("nowhere")
    else:
        subvolumes.create(dest)
    before = dest.lstat()
    temporary = _made(dest, "ours")
    with pytest.raises(FileExistsError):
        publish(temporary, dest)
    after = dest.lstat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (temporary / "file").read_text() == "ours"
    # The loser still holds its temporary.
    assert stale_temporaries(btrfs, "target") == []


def test_fallback_gives_way_to_who_fills_the_claimed_name(
    btrfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rival's act inside the window between mkdir and rename."""

    def refuse(old: Path, new: Path, flags: int) -> None:
        raise OSError(errno.ENOSYS, "no renameat2")

    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        (target / "theirs").touch()
        return rename(self, target)

    monkeypatch.setattr(syscalls, "rename", refuse)
    monkeypatch.setattr(Path, "rename", late)
    dest = btrfs / "target"
    temporary = _made(dest, "ours")
    with pytest.raises(FileExistsError):
        publish(temporary, dest)
    assert (dest / "theirs").exists()
    assert (temporary / "file").exists()


def _publisher(dest: Path, number: int, barrier: Barrier, answers: Connection) -> None:
    temporary = _made(dest, str(number))
    barrier.wait()
    try:
        publish(temporary, dest)
        answers.send((number, True))
    except FileExistsError:
        answers.send((number, False))
    answers.close()


def test_of_several_publishers_one_wins(any_filesystem: Path, way: str) -> None:
    publishers = 4
    for attempt in range(5):
        dest = any_filesystem / f"target{attempt}"
        barrier = _FORK.Barrier(publishers)
        answers, children = [], []
        for number in range(publishers):
            receive, send = _FORK.Pipe(duplex=False)
            child = _FORK.Process(target=_publisher, args=(dest, number, barrier, send))
            child.start()
            send.close()
            answers.append(receive)
            children.append(child)
        results = [receive.recv() for receive in answers]
        for child in children:
            child.join()
        winners = [number for number, won in results if won]
        assert len(winners) == 1
        assert (dest / "file").read_text() == str(winners[0])


def test_publishing_what_is_not_there(btrfs: Path, way: str) -> None:
    with pytest.raises(FilesystemFailed, match="No such file"):
        publish(btrfs / "absent", btrfs / "target")
    assert list(btrfs.iterdir()) == []


def test_exchange(any_filesystem: Path) -> None:
    one, other = any_filesystem / "one", any_filesystem / "other"
    create_target(one)
    other.mkdir()
    (one / "file").write_text("1")
    (other / "file").write_text("2")
    exchange(one, other)
    assert (one / "file").read_text() == "2"
    assert (other / "file").read_text() == "1"


def test_exchange_with_nothing_changes_nothing(any_filesystem: Path) -> None:
    one = any_filesystem / "one"
    one.mkdir()
    with pytest.raises(FilesystemFailed):
        exchange(one, any_filesystem / "absent")
    assert _names(any_filesystem) == ["one"]


def test_exchange_where_it_is_unknown(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(old: Path, new: Path, flags: int) -> None:
        raise OSError(errno.EINVAL, "no flags here")

    monkeypatch.setattr(syscalls, "rename", refuse)
    (btrfs / "one").mkdir()
    (btrfs / "other").mkdir()
    with pytest.raises(FilesystemFailed, match="RENAME_EXCHANGE"):
        exchange(btrfs / "one", btrfs / "other")


def test_renameat2_by_number_does_the_same(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a C library without the wrapper."""

    class OnlySyscall:
        def __init__(self, library: object) -> None:
            self.syscall = library.syscall  # type: ignore[attr-defined]

    monkeypatch.setattr(syscalls, "_library", OnlySyscall(syscalls._libc()))
    one, other = btrfs / "one", btrfs / "other"
    one.mkdir()
    other.mkdir()
    with pytest.raises(FileExistsError):
        syscalls.rename(one, other, syscalls.RENAME_NOREPLACE)
    syscalls.rename(one, btrfs / "third", syscalls.RENAME_NOREPLACE)
    assert _names(btrfs) == ["other", "third"]
