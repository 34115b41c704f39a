"""A scratch directory is there while it is needed, and gone afterwards, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, NoReturn

import pytest

from cargo_cow import filesystems, snapshots
from cargo_cow.bench import processes, scratch

_HOLDER = """\
import sys, time
from pathlib import Path
from cargo_cow.bench import processes, scratch
with scratch.scratch(Path(sys.argv[1]), filesystem=sys.argv[2] or None, say=print) as place:
    (place.path / "file").write_text("here")
    print("READY", place.kind, place.path, flush=True)
    processes.run(["sleep", "600"], cwd=place.path, env=processes.environment())
"""


def _quiet(_message: str) -> None:
    pass


def _mounts_below(directory: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if f" {directory}/" in line]


def _loops_on(directory: Path) -> list[str]:
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        text = backing.read_text().strip()
        if text.startswith(f"{directory}/"):
            found.append(text)
    return found


def _hold(directory: Path, filesystem: str) -> tuple[subprocess.Popen[str], list[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(directory), filesystem],
        stdout=subprocess.PIPE,
        text=True,
    )
    stdout = child.stdout
    assert stdout is not None
    return child, _until_ready(stdout)


def _until_ready(stdout: IO[str]) -> list[str]:
    for line in stdout:
        if line.startswith("READY"):
            return line.split()
    raise AssertionError("the holder ended before it had a directory")


@pytest.fixture
def needs_images(missing: Callable[[str], NoReturn], btrfs_mount: Path) -> Path:
    """Loop images can be mounted here: the fixture did."""
    return btrfs_mount


def test_where_files_can_be_cloned_nothing_is_mounted(btrfs: Path) -> None:
    with scratch.scratch(btrfs, say=_quiet) as place:
        assert place.kind == "reflink"
        assert place.filesystem == "btrfs"
        assert place.path.parent.parent == btrfs
        (place.path / "deep" / "er").mkdir(parents=True)
        (place.path / "deep" / "er").chmod(0o500)
    assert list(btrfs.iterdir()) == []


def test_a_state_in_it_leaves_nothing(btrfs: Path) -> None:
    """A read-only subvolume, as `cargo cow` keeps them in a project."""
    with scratch.scratch(btrfs, say=_quiet) as place:
        filesystems.create_target(place.path / "source")
        (place.path / "source" / "file").write_text("kept")
        (place.path / "below").mkdir()
        snapshots.create_snapshot(place.path / "source", place.path / "below" / "state")
    assert list(btrfs.iterdir()) == []


@pytest.mark.root
def test_root_gets_an_image_where_files_cannot_be_cloned(ext4: Path, needs_images: Path) -> None:
    with scratch.scratch(ext4, say=_quiet) as place:
        assert (place.kind, place.filesystem) == ("image", "btrfs")
        assert place.path.is_mount()
        assert _loops_on(ext4)
    assert list(ext4.iterdir()) == []
    assert not _mounts_below(ext4)
    assert not _loops_on(ext4)


@pytest.mark.root
def test_a_demanded_filesystem_is_made_even_where_files_can_be_cloned(
    btrfs: Path, needs_images: Path
) -> None:
    with scratch.scratch(btrfs, filesystem="ext4", say=_quiet) as place:
        assert (place.kind, place.filesystem) == ("image", "ext4")
    assert list(btrfs.iterdir()) == []


def test_without_root_it_is_a_plain_directory_and_said_so(
    ext4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_can_mount", lambda _program: False)
    with scratch.scratch(ext4, say=_quiet) as place:
        assert place.kind == "copy"
        assert "cannot clone" in place.note
        assert "--scratch" in place.note
    assert list(ext4.iterdir()) == []
    with (
        pytest.raises(scratch.NoScratch, match="needs root"),
        scratch.scratch(ext4, filesystem="xfs", say=_quiet),
    ):
        pass
    assert list(ext4.iterdir()) == []


@pytest.mark.root
def test_an_exception_leaves_nothing(ext4: Path, needs_images: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="inside"),
        scratch.scratch(ext4, say=_quiet) as place,
        (place.path / "open").open("w"),
    ):
        raise RuntimeError("inside")
    assert list(ext4.iterdir()) == []
    assert not _mounts_below(ext4)


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(ext4: Path, needs_images: Path, number: signal.Signals) -> None:
    child, ready = _hold(ext4, "")
    assert ready[1] == "image"
    assert _mounts_below(ext4)
    child.send_signal(number)
    assert child.wait(60) != 0
    assert child.stdout is not None
    child.stdout.close()
    assert not _mounts_below(ext4)
    assert not _loops_on(ext4)
    assert list(ext4.iterdir()) == []


@pytest.mark.root
def test_what_a_killed_run_left_is_swept_by_the_next(ext4: Path, needs_images: Path) -> None:
    child, ready = _hold(ext4, "")
    child.kill()
    child.wait(60)
    assert child.stdout is not None
    child.stdout.close()
    _end_sleeper(Path(ready[2]))
    assert _mounts_below(ext4), "the kill came too late to test anything"
    said: list[str] = []
    swept = scratch.sweep(ext4, said.append)
    assert [path.parent for path in swept] == [ext4]
    assert "interrupted" in said[0]
    assert not _mounts_below(ext4)
    assert not _loops_on(ext4)
    assert list(ext4.iterdir()) == []


def _end_sleeper(work: Path) -> None:
    """SIGKILL spares the group of the step that was running; in life it ends by itself."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == work:
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue


def test_the_living_are_not_swept(btrfs: Path) -> None:
    with scratch.scratch(btrfs, say=_quiet) as place:
        assert scratch.sweep(btrfs, _quiet) == []
        assert place.path.is_dir()


def test_a_step_takes_its_children_with_it(tmp_path: Path) -> None:
    """Interrupted, a build must not go on compiling in a directory that goes away."""
    program = (
        "import os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from cargo_cow.bench import processes\n"
        "with processes.stoppable():\n"
        "    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    words = ['sh', '-c', 'sleep 600 & echo $! >child; wait']\n"
        "    processes.run(words, cwd=Path(sys.argv[1]), env=processes.environment())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False, timeout=60
    )
    assert done.returncode != 0
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    # Gone, or waiting for init to notice.
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_failing_step_shows_its_last_words(tmp_path: Path) -> None:
    words = ["sh", "-c", "echo one; echo the reason >&2; exit 3"]
    with pytest.raises(processes.StepFailed, match=r"status 3[\s\S]*the reason"):
        processes.run(words, cwd=tmp_path, env=processes.environment())


def test_the_callers_cargo_settings_do_not_reach_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "CARGO_TARGET_DIR",
        "RUSTC_WRAPPER",
        "CARGO_PROFILE_DEV_DEBUG",
        "GIT_DIR",
        "CARGO",
    ):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("CARGO_HOME", "/home/cargo")
    env = processes.environment()
    assert "theirs" not in env.values()
    assert env["CARGO_HOME"] == "/home/cargo"
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
