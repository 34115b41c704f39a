"""One step of a measurement: a child in a known environment, timed, and never left behind."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from cargo_cow.errors import CowError

# What would make two runs on one machine differ, or lead a build out of the scratch directory.
# A toolchain chosen with RUSTUP_TOOLCHAIN stays: it is the machine's Rust.
_DROPPED = ("CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "MAKEFLAGS", "MFLAGS", "NUM_JOBS", "OUT_DIR")
_DROPPED_PREFIXES = ("CARGO_", "RUSTC_", "GIT_", "RUST_LOG", "SCCACHE_", "KACHE_", "MBX_")
# CARGO_HOME and network settings say how this machine gets its crates.
_KEPT = ("CARGO_HOME", "CARGO_INSTALL_ROOT")
_KEPT_PREFIXES = ("CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "GIT_SSL_")

_PATIENCE = 120.0  # seconds until what was left running must have ended
_TAIL_LINES = 25
_TAIL_WIDTH = 400  # a call of rustc is longer than anything one wants to read


class StepFailed(CowError):
    """A command of a measurement failed; the message ends with the last lines it printed."""

    exit_code = 60


class Stopped(KeyboardInterrupt):
    """The measurement was told to stop by a signal; it cleans up on the way out."""


class Result(NamedTuple):
    status: int
    stdout: str
    stderr: str
    seconds: float


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The surroundings of every step: this machine's, without what steers single builds."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT
        or name.startswith(_KEPT_PREFIXES)
        or not (name in _DROPPED or name.startswith(_DROPPED_PREFIXES))
    }
    # Programs of this installation come first, so that `cargo cow` is the one under test.
    programs = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join([programs, kept.get("PATH", os.defpath)])
    kept["CARGO_TERM_COLOR"] = "never"
    kept["CARGO_TERM_PROGRESS_WHEN"] = "never"
    # Somebody's hooks, signing keys and default branch have no part in scratch repositories.
    kept["GIT_CONFIG_GLOBAL"] = os.devnull
    kept["GIT_CONFIG_NOSYSTEM"] = "1"
    kept["GIT_TERMINAL_PROMPT"] = "0"
    # A compaction in the background would meet the measurements after it by chance.
    kept["GIT_CONFIG_COUNT"] = "1"
    kept["GIT_CONFIG_KEY_0"] = "cargo-cow.compact"
    kept["GIT_CONFIG_VALUE_0"] = "false"
    kept["LC_ALL"] = "C.UTF-8"
    kept.update(extra or {})
    return kept


def run(
    args: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    check: bool = True,
) -> Result:
    """Run one command to its end.  It has a process group of its own, which dies with us."""
    started = time.perf_counter()
    child: subprocess.Popen[str] | None = None
    try:
        # Stopped between the fork and its return, we would leave a child that nobody knows.
        with not_now():
            child = subprocess.Popen(
                [os.fspath(argument) for argument in args],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        stdout, stderr = child.communicate()
    except BaseException:
        if child is not None:
            _end(child)
        raise
    seconds = time.perf_counter() - started
    if check and child.returncode != 0:
        words = " ".join(os.fspath(argument) for argument in args)
        lines = [line for line in (stdout + stderr).splitlines() if "Running `" not in line]
        tail = "\n".join(line[:_TAIL_WIDTH] for line in lines[-_TAIL_LINES:])
        raise StepFailed(f"`{words}` ended with status {child.returncode} in {cwd}\n{tail}")
    return Result(child.returncode, stdout, stderr, seconds)


def adopt(*, on: bool = True) -> None:
    """Become the parent of what steps leave running, so that ``finished`` knows of it, or no more.

    PR_SET_CHILD_SUBREAPER, prctl(2); where there is no such call nothing is waited for.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


_PR_SET_CHILD_SUBREAPER = 36
_PROGRAMS = (b"cargo-cow", b"cargo-cow-native")


def finished() -> float:
    """Wait until what Cargo-CoW does after a build has ended; seconds waited.

    Keeping what was built goes on in processes that outlive it.  Other orphans, a cache's server
    for example, are left alone.  Raises StepFailed if it does not end.
    """
    started = time.monotonic()
    while True:
        running = False
        for process, ended in _orphans():
            if ended:
                with suppress(ChildProcessError):
                    os.waitpid(process, 0)
            else:
                running = True
        waited = time.monotonic() - started
        if not running:
            return waited
        if waited > _PATIENCE:
            raise StepFailed("what was built is still not kept")
        time.sleep(0.005)


def used() -> float:
    """Processor seconds of all steps until now, with what Cargo-CoW did after them."""
    finished()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _orphans() -> list[tuple[int, bool]]:
    """Children of ours that run Cargo-CoW, and those of Python's or its name that have ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            text = (entry / "stat").read_text(errors="replace")
            state, parent = text[text.rindex(")") + 2 :].split()[:2]
            if int(parent) != os.getpid():
                continue
            if state == "Z":
                # Of one that has ended only 15 bytes of a name are left (proc_pid_stat(5)).
                called = text[text.index("(") + 1 : text.rindex(")")]
                if called.startswith(("cargo-cow", "python")):
                    found.append((int(entry.name), True))
            elif _is_ours((entry / "cmdline").read_bytes().split(b"\0")):
                found.append((int(entry.name), False))
    return found


def _is_ours(words: list[bytes]) -> bool:
    """``cargo-cow-native …``, ``python …/cargo-cow …`` or ``python -m cargo_cow …``."""
    programs = [word.rpartition(b"/")[2] for word in words[:2]]
    return any(name in _PROGRAMS for name in programs) or words[1:3] == [b"-m", b"cargo_cow"]


def _end(child: subprocess.Popen[str]) -> None:
    """Stop a whole process group: compilers that a build started included."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(patience)
            break
    # The leader is gone; what it started may still hold files on an image we must unmount.
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


_delayed = False
_waiting: list[int] = []


def _stop(number: int, _frame: FrameType | None) -> None:
    if _delayed:
        _waiting.append(number)
    else:
        raise Stopped(signal.Signals(number).name)


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into an exception, at a moment that leaves nothing behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def not_now() -> Iterator[None]:
    """Put the exception off to the end.  A signal mask would do it too, but children inherit it."""
    global _delayed  # noqa: PLW0603  signal handlers are the process's, and so is this
    _delayed = True
    try:
        yield
    finally:
        _delayed = False
    if _waiting:
        raise Stopped(signal.Signals(_waiting.pop()).name)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals back during a clean-up: a second Ctrl-C must not leave a mount."""
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
