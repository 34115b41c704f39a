"""Cargo held back from a target: in silence, by whoever prepares it, and never for ever."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.capabilities import missing

from cargo_cow.cargo.lock import build_lock, hold_back, is_held_back
from cargo_cow.errors import Locked

LOCK = "debug/.cargo-lock"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    made = tmp_path / "target"
    (made / "debug/.fingerprint").mkdir(parents=True)
    (made / LOCK).touch()
    probe = hold_back(made)
    if probe is None:
        missing("no leases on this filesystem")
    probe.release()
    return made


def _cargo(target: Path) -> subprocess.Popen[bytes]:
    """What Cargo does to its lock: open it, try it, say so where it is taken."""
    text = f"""
import fcntl
with open({str(target / LOCK)!r}, "r+") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Blocking", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    print("in", flush=True)
"""
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)


def _opens(process: subprocess.Popen[bytes]) -> None:
    """Wait until it waits at the lease."""
    deadline = time.monotonic() + 20
    stack = Path(f"/proc/{process.pid}/wchan")
    while "lease" not in stack.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "lease" in stack.read_text()


def test_who_comes_waits_in_silence_and_finds_the_lock_free(target: Path) -> None:
    for _ in range(5):
        with hold_back(target) or pytest.fail("not held") as held:
            assert is_held_back(target)
            came = _cargo(target)
            _opens(came)
            assert came.poll() is None
            assert (target / LOCK).read_bytes() == b""  # who reads is not kept waiting
            held.release()
        assert not is_held_back(target)
        assert came.communicate(timeout=20)[0] == b"in\n"


def test_nobody_is_held_back_who_is_in_already(target: Path) -> None:
    with (target / LOCK).open("r+") as file:
        assert hold_back(target) is None
        fcntl.flock(file, fcntl.LOCK_EX)
        assert hold_back(target) is None
    with (target / LOCK).open() as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        assert hold_back(target) is None
    held = hold_back(target)
    assert held is not None
    assert hold_back(target) is None  # not even for ourselves
    held.release()
    held.release()


def test_a_profile_without_a_lock_file_is_not_held_back(target: Path) -> None:
    (target / "release/.fingerprint").mkdir(parents=True)
    assert hold_back(target) is None
    (target / LOCK).open("r+").close()  # and nothing is left of it
    assert not is_held_back(target)
    (target / "release/.cargo-lock").symlink_to(target / LOCK)
    assert hold_back(target) is None
    (target / "release/.cargo-lock").unlink()
    os.link(target / LOCK, target / "release/.cargo-lock")
    assert hold_back(target) is None


def test_who_holds_back_has_the_lock_and_nobody_else(target: Path) -> None:
    with hold_back(target) or pytest.fail("not held"):
        with build_lock(target, wait=False):
            pass
        text = (
            "import sys\nfrom cargo_cow.cargo.lock import build_lock\n"
            "from cargo_cow.errors import Locked\n"
            f"try:\n    with build_lock({str(target)!r}, wait=False): pass\n"
            "except Locked: sys.exit(7)\n"
        )
        assert subprocess.run([sys.executable, "-c", text], timeout=20, check=False).returncode == 7
        # By whoever was let in although we hold it, in Cargo's own words.
        (descriptor,) = (
            int(name)
            for name in os.listdir("/proc/self/fd")  # noqa: PTH208
            if os.path.realpath(f"/proc/self/fd/{name}") == str(target / LOCK)
        )
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        came = _cargo(target)
        assert came.stdout is not None
        assert came.stdout.readline() == b"Blocking\n"
    assert came.communicate(timeout=20)[0] == b"in\n"
    with build_lock(target, wait=False):
        pass


def test_killed_it_holds_nobody_back(target: Path) -> None:
    text = (
        "import time\nfrom cargo_cow.cargo.lock import hold_back\n"
        f"held = hold_back({str(target)!r})\nprint(held is not None, flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"True\n"
    came = _cargo(target)
    _opens(came)
    with pytest.raises(Locked), build_lock(target, wait=False):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert came.communicate(timeout=20)[0] == b"in\n"
