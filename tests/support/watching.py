"""A filesystem in user space is watched, because nobody who waits for it can look after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_WATCH = """
while sleep "$4" && kill -0 "$5"; do
    ls "$2" & asked=$! tenths=0
    while kill -0 $asked; do
        sleep 0.1
        tenths=$((tenths + 1))
        if [ $tenths -gt "$3" ]; then kill -9 "$(cat "$1")"; exit; fi
    done
done
"""


@contextlib.contextmanager
def watched(mount: Path, note: Path, *, patience: float = 60, pause: float = 2) -> Iterator[None]:
    """Kill a zfs-fuse (``note`` holds its number) that answers nothing for ``patience`` seconds,
    and fail.

    It loops for ever, and all its filesystems with it, once a mount has gone together with a file
    that was open in it.  Who waits for it to open a program can then be interrupted by nothing
    else, pytest's own timeout included; so this is a process, because a fork that waits holds
    everything that this one could do.
    """
    facts = (note, mount, int(patience * 10), pause, os.getpid())
    words = ["sh", "-c", _WATCH, "sh", *map(str, facts)]
    watch = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        ended = watch.poll() is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(watch.pid, signal.SIGKILL)
        watch.wait()
    if ended:
        pytest.fail(f"zfs-fuse answered nothing for {patience:g} seconds, and was killed")
