"""The clock is the one that stamps files, and asking it changes nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cargo_cow import filesystems
from cargo_cow.errors import FilesystemFailed, TargetUnusable
from cargo_cow.filesystems import GRANULE_NS, clock, clocks, granule

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=["nameless", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With O_TMPFILE, and as on filesystems without."""
    if request.param == "named":
        original = os.open

        def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE", str(path))
            return original(path, flags, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)
    return str(request.param)


def test_it_lies_between_files_made_before_and_after(any_filesystem: Path, way: str) -> None:
    for attempt in range(20):
        before, after = any_filesystem / f"b{attempt}", any_filesystem / f"a{attempt}"
        before.touch()
        now = clock(any_filesystem)
        after.touch()
        assert before.stat().st_mtime_ns <= now <= after.stat().st_mtime_ns


def test_what_is_written_a_granule_later_is_newer(any_filesystem: Path, way: str) -> None:
    now = clock(any_filesystem)
    time.sleep(granule(any_filesystem) / 1e9)
    (any_filesystem / "edit").touch()
    assert (any_filesystem / "edit").stat().st_mtime_ns > now


def test_asking_changes_nothing(any_filesystem: Path) -> None:
    before = any_filesystem.stat()
    clock(any_filesystem)
    granule(any_filesystem)
    after = any_filesystem.stat()
    assert after.st_mtime_ns == before.st_mtime_ns
    assert list(any_filesystem.iterdir()) == []


def test_nothing_is_left_behind(any_filesystem: Path, way: str) -> None:
    clock(any_filesystem)
    granule(any_filesystem)
    assert list(any_filesystem.iterdir()) == []


def test_nanoseconds_have_the_fine_granule(any_filesystem: Path) -> None:
    assert granule(any_filesystem) == GRANULE_NS


def test_whole_seconds_have_the_coarse_one(small_filesystem: Callable[..., Path]) -> None:
    """ext4 with inodes of 128 bytes has no room for the fraction."""
    mount = small_filesystem("ext4-old", 32 << 20)
    assert granule(mount) == 2_000_000_000
    now = clock(mount)
    assert now % 1_000_000_000 == 0


@pytest.mark.parametrize("function", [clock, granule])
def test_errors_are_ours(
    btrfs: Path, unprivileged: Callable[..., Any], function: Callable[[Path], int]
) -> None:
    with pytest.raises(FilesystemFailed, match="No such file"):
        function(btrfs / "absent")
    with pytest.raises(TargetUnusable, match="Permission denied"):
        unprivileged(function, btrfs)


def test_it_is_cheap(btrfs: Path) -> None:
    """It is asked in every build: far below a millisecond, whatever the machine does meanwhile."""
    clock(btrfs)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        clock(btrfs)
        times.append(time.perf_counter() - started)
    assert sorted(times)[25] < 0.002


def test_asking_loads_no_heavy_module(tmp_path: Path) -> None:
    """The tariff of a build with nothing to do; and the check itself can fail."""
    program = (
        "import sys; from pathlib import Path; import cargo_cow.filesystems as f; "
        "{what}(Path(sys.argv[1])); "
        "print(*sorted({{'ctypes', 'subprocess', 'shutil', 'dataclasses'}} & set(sys.modules)))"
    )
    source = str(Path(filesystems.__file__).parents[2])

    def loaded(what: str) -> list[str]:
        return subprocess.run(
            [sys.executable, "-S", "-c", program.format(what=what), str(tmp_path)],
            env={"PYTHONPATH": source},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()

    assert loaded("f.clock") == []
    assert loaded("f.granule") == []
    assert "ctypes" in loaded("f.probe")


def test_granule_covers_the_longest_tick() -> None:
    assert clocks.GRANULE_NS >= 2 * 10_000_000
