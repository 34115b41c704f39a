"""Whoever is killed while it keeps or restores leaves a store that works, and nothing by halves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3

from cargo_cow import native
from cargo_cow.warehouse import gc, store
from tests.support.projects import _environment, cargo

from .conftest import FILES, Place, told

if TYPE_CHECKING:
    from collections.abc import Callable

LATER = 3_600.0


def _job(place: Place, number: int, output: Path) -> Path:
    """What a shim hands over: an entry to be made, with one output of its own."""
    key = f"{number:064x}"
    status = output.stat()
    looks = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
    value = {
        "format": 2,
        "created": int(time.time()),
        "seconds": 1.0,
        "key": key,
        "crate": "x",
        "package": "x",
        "version": "1.0.0",
        "incremental": False,
        "parts": [],
    }
    digest = blake3(output.read_bytes()).hexdigest()
    job: dict[str, Any] = {
        "root": str(place.store),
        "copies": False,
        "key": key,
        "id": "1" * 64,
        "value": value,
        "made": [[str(output), "libx.rlib", False, digest, looks]],
        "event": {"time": 1, "what": "kept"},
        "most": 8,
    }
    directory = place.store / "making" / f"job-{number}"
    directory.mkdir(mode=0o700)
    (directory / "job.json").write_text(json.dumps(job))
    return directory


def _claimed(place: Place, number: int) -> int:
    claim = place.store / "building" / f"{number:064x}"
    descriptor = os.open(claim, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_killed_while_it_keeps(place: Place) -> None:
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    chance = random.Random(seed)
    for room in ("making", "building", "units"):
        (place.store / room).mkdir(mode=0o700, parents=True)
    (place.store / "CACHEDIR.TAG").touch()
    place.store.chmod(0o700)
    ends: Counter[tuple[str, str]] = Counter()
    took = 0.02
    for number in range(40):
        output = place.root / f"output-{number}"
        # Not on the disk yet: the reflink has to wait for that.
        output.write_bytes(os.urandom(1 << 20))
        directory = _job(place, number, output)
        claim = _claimed(place, number)
        began = time.monotonic()
        keeper = subprocess.Popen(
            [native.program(), "--keep", directory], stdin=claim, stdout=subprocess.DEVNULL
        )
        os.close(claim)
        if number:  # the first one tells how long it takes
            time.sleep(chance.uniform(0, took))
            keeper.kill()
        status = keeper.wait()
        if not number:
            took = time.monotonic() - began
        # The directory of the key may be there already, and nothing in it.
        kept = bool(list((place.store / "units" / "00").glob(f"{number:064x}/*")))
        ends["kept" if kept else "not kept", "ended" if status == 0 else "killed"] += 1
        # Whoever waits for it goes on at once, whatever became of it.
        claimed = os.open(place.store / "building" / f"{number:064x}", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(claimed)
    print(ends)
    assert ends["not kept", "killed"] > 3, "no kill came in between"
    entries = store.entries(place.store)
    assert [store.damage(entry) for entry in entries] == [None] * len(entries)
    assert len(entries) == ends["kept", "ended"] + ends["kept", "killed"]
    # What they left is found, and collected; what was kept stays.
    planned = gc.plan(place.store, entries, gc.Policy(), time.time() + LATER)
    left = {path.parent.name for path in planned.leftovers}
    assert left == {"making", "building"}
    gc.carry_out(place.store, planned)
    assert not list((place.store / "making").iterdir())
    assert not list((place.store / "building").iterdir())
    assert len(store.entries(place.store)) == len(entries)


def _shims(build: int) -> list[int]:
    """The children of a build."""
    found: list[int] = []
    for task in Path(f"/proc/{build}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def _kill_restoring(project: Path, environment: dict[str, str], moment: float) -> int:
    """Build, and kill who restores ``util``, so many seconds after it came; returns the kills."""
    build = subprocess.Popen(
        ["cargo", "build", "-q"], cwd=project, env=environment, stderr=subprocess.DEVNULL
    )
    killed = 0
    while build.poll() is None:
        for shim in _shims(build.pid):
            with contextlib.suppress(OSError):
                if b"--crate-name\0util" in Path(f"/proc/{shim}/cmdline").read_bytes():
                    time.sleep(moment)
                    os.kill(shim, signal.SIGKILL)
                    killed += 1
    return killed


@pytest.mark.parametrize("moment", [0.0, 0.005, 0.02])
def test_killed_while_it_restores(place: Place, moment: float) -> None:
    project = place.project("main", FILES)
    place.build(project)
    environment = {**_environment(place.scratch), **place.environment()}
    killed = 0
    for _ in range(30):  # a restore takes a few milliseconds
        shutil.rmtree(project / "target")
        killed += _kill_restoring(project, environment, moment)
        if killed or moment:
            break
    assert killed or moment, "no kill came in between"
    # A staging directory that was left by one who died long ago goes with the next restore.
    left = project / "target/debug/.cargo-cow/restoring-1-2"
    left.mkdir(parents=True)
    (left / "libutil.rlib").touch()
    old = time.time() - LATER
    os.utime(left, (old, old))
    assert place.build(project).rustc == []
    assert told(project) == "u1 none"
    (project / "util/src/inner.rs").write_text('pub const MARK: &str = "u2";\n')
    place.build(project)
    assert told(project) == "u2 none"
    (project / "util/src/inner.rs").write_text(FILES["util/src/inner.rs"])
    assert place.build(project).rustc == []
    assert told(project) == "u1 none"
    assert not left.exists()


def _fill(mount: Path, leave: int) -> Path:
    """Fill a filesystem, and give ``leave`` bytes back."""
    filler = mount / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            os.fsync(file)
    os.truncate(filler, max(0, filler.stat().st_size - leave))
    subprocess.run(["sync", "-f", mount], check=True)
    return filler


def test_a_full_btrfs(place: Place, small_filesystem: Callable[..., Path]) -> None:
    """While units are kept, and then while they are restored: Cargo's result, or its error."""
    mount = small_filesystem("btrfs", 256 << 20)
    small = place._replace(store=mount / "store")
    project = place.project("main", FILES)
    filler = _fill(mount, 1 << 20)
    small.build(project)
    assert told(project) == "u1 none"
    assert small.counts()["not-kept"] + small.counts()["kept"] <= 3
    assert not list((small.store / "making").glob("*"))
    assert not list((small.store / "building").glob("*"))
    for entry in store.entries(small.store):
        assert store.damage(entry) is None
    filler.unlink()
    shutil.rmtree(project / "target")
    small.build(project)
    shutil.rmtree(project / "target")
    assert small.build(project).rustc == []
    # Now the target has no place.
    target = str(mount / "target")
    filler = _fill(mount, 300_000)
    full = cargo(project, place.scratch, "build", **small.environment(), CARGO_TARGET_DIR=target)
    assert "warehouse" not in full.output
    filler.unlink()
    small.build(project, CARGO_TARGET_DIR=target)
    assert not list(mount.glob("target/debug/.cargo-cow/restoring-*"))
    ran = subprocess.run([f"{target}/debug/app"], check=True, capture_output=True, text=True)
    assert ran.stdout == "u1 none\n"


def test_an_entry_of_another_version_is_left_alone(place: Place) -> None:
    project = place.project("main", FILES)
    place.build(project, "build", "-p", "util")
    (entry,) = place.entries()
    line, _ = (entry / "entry.json").read_bytes().split(b"\n")[:2]
    for number in (1, 9):
        other = entry.with_name(f"{number:064x}")
        shutil.copytree(entry, other)
        value = json.dumps(json.loads(line) | {"format": number}).encode()
        (other / "entry.json").write_bytes(value + b"\n" + blake3(value).hexdigest().encode())
    shutil.rmtree(entry)
    # A miss; and both stay, beside what is kept now.
    shutil.rmtree(project / "target")
    assert place.build(project, "build", "-p", "util").rustc == ["util"]
    assert {path.name for path in place.entries()} == {f"{1:064x}", f"{9:064x}", entry.name}
    found = store.entries(place.store)
    assert sorted(one.kind for one in found) == ["call", store.FOREIGN, store.FOREIGN]
    assert [store.damage(one) for one in found] == [None] * 3
    # They go when nobody uses them any more.
    assert gc.plan(place.store, found, gc.Policy(), time.time() + LATER).going == ()
    later = time.time() + 31 * gc.DAY
    assert len(gc.plan(place.store, found, gc.Policy(), later).going) == 3
