"""A unit that another build is compiling right now is waited for, as long as that makes sense."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cargo_cow.warehouse import gc, stats, store

from .conftest import Place, told, user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Counts who really compiles; the first one of `leaf` then stands before a gate, and does what the
# test wrote down for it.
_GATED = """#!/bin/sh
for argument in "$@"; do
  [ "$previous" = --crate-name ] && name=$argument
  previous=$argument
done
[ "$name" = ___ ] || [ -z "$name" ] || echo "$name" >> "$SCRATCH/compiled"
if [ "$name" = leaf ] && mkdir "$SCRATCH/first" 2>/dev/null; then
  until [ -e "$SCRATCH/gate" ]; do sleep 0.02; done
  . "$SCRATCH/gate"
fi
exec rustc "$@"
"""


class Two(NamedTuple):
    """Two projects with the same dependencies; the first stands at the gate."""

    place: Place
    scratch: Path
    builds: list[subprocess.Popen[bytes]]

    def open(self, then: str = "") -> None:
        """Let the first compile of ``leaf`` go on, with a few words of shell before it."""
        aside = self.scratch / "aside"
        aside.write_text(then + "\n")
        aside.rename(self.scratch / "gate")

    def end(self) -> list[int]:
        """The builds' exit statuses."""
        ended = [build.wait(60) for build in self.builds]
        self.place.wait()
        return ended

    def compiled(self) -> Counter[str]:
        return Counter((self.scratch / "compiled").read_text().split())

    def build(self, name: str) -> list[str]:
        """Build a project again, with the same compiler; returns what that compiles, but for what
        is made in each place, to which the first build may not have come.
        """
        before = self.compiled()
        self.place.build(
            self.place.root / name,
            RUSTC=str(self.scratch / "bin" / "rustc"),
            SCRATCH=str(self.scratch),
        )
        return sorted(set(self.compiled() - before) - {"baked"})

    def shim(self, number: int) -> int:
        """The process that stands for the compile of ``leaf`` in a build."""
        return next(self._shims(number))

    def waits(self, number: int) -> bool:
        """Whether a build has come to ``leaf``, and holds or wants its claim."""
        for shim in self._shims(number):
            for file in Path(f"/proc/{shim}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if "/building/" in str(file.readlink()):
                        return True
        return False

    def _shims(self, number: int) -> Iterator[int]:
        children = _children(self.builds[number].pid)
        return (one for one in children if b"\0leaf\0" in _words(one))


def _words(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _children(process: int) -> Iterator[int]:
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):
            yield from map(int, (task / "children").read_text().split())


def _until(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not what():
        assert time.monotonic() < limit, "it never happens"
        time.sleep(0.01)


@pytest.fixture
def two(place: Place, dependencies: Path) -> Iterator[Two]:
    scratch = place.scratch / "gated"
    (scratch / "bin").mkdir(parents=True)
    compiler = scratch / "bin" / "rustc"
    compiler.write_text(_GATED)
    compiler.chmod(0o755)
    environment = {
        **os.environ,
        **place.environment(),
        "RUSTC": str(compiler),
        "SCRATCH": str(scratch),
    }
    builds = []

    def start(name: str) -> None:
        project = place.root / name
        builds.append(
            subprocess.Popen(
                ["cargo", "build", "-q"],
                cwd=project,
                env=environment,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    for name in ("one", "two"):
        place.project(name, user(name, dependencies))
    start("one")
    try:
        _until((scratch / "first").exists)
        start("two")
        two = Two(place, scratch, builds)
        _until(lambda: two.waits(1))
        yield two
    finally:
        for build in builds:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(build.pid, signal.SIGKILL)
            build.wait()


def _waited(two: Two, what: str, crate: str) -> float:
    """The seconds of the call that waited longest."""
    events = two.place.events()
    return max(float(e["waited"]) for e in events if (e["what"], e["crate"]) == (what, crate))


def _both_work(two: Two) -> None:
    for name in ("one", "two"):
        shown, where = told(two.place.root / name, name).split()
        assert shown == "<7>"
        assert where.startswith(f"{two.place.root / name}/")
    assert not list((two.place.store / "building").iterdir())


def test_what_another_build_compiles_is_waited_for(two: Two) -> None:
    time.sleep(0.3)
    two.open()
    assert two.end() == [0, 0]
    compiled = two.compiled()
    # What bakes where it was made is made in each.
    own = ("baked", "one", "two", "build_script_build")
    assert {name: count for name, count in compiled.items() if name not in own} == {
        "leaf": 1,
        "gen": 1,
    }
    _both_work(two)
    assert _waited(two, "hit", "leaf") > 0.25
    counted = stats.count(two.place.events())
    assert counted.waited >= 1
    assert counted.seconds_waited > 0.25


def test_a_builder_that_is_killed_is_noticed(two: Two) -> None:
    os.kill(two.shim(0), signal.SIGKILL)
    # Though the gate is shut: nobody waits for a compiler whose shim is gone.
    assert two.builds[1].wait(60) == 0
    assert two.compiled()["leaf"] == 2
    assert _waited(two, "miss", "leaf") < 5
    two.open()
    assert two.builds[0].wait(60) != 0
    two.place.wait()
    # What was killed comes back from what the other one made.
    assert two.build("one") == ["one"]
    _both_work(two)


def test_a_build_that_is_killed_as_a_whole(two: Two) -> None:
    os.killpg(two.builds[0].pid, signal.SIGKILL)
    assert two.builds[1].wait(60) == 0
    two.place.wait()
    assert two.build("one") == ["one"]
    _both_work(two)


def test_who_waits_can_be_killed(two: Two) -> None:
    os.kill(two.shim(1), signal.SIGKILL)
    assert two.builds[1].wait(60) != 0
    two.open()
    assert two.builds[0].wait(60) == 0
    two.place.wait()
    assert two.compiled()["leaf"] == 1
    assert two.build("two") == ["two"]
    _both_work(two)


def test_a_compile_that_fails_is_not_waited_for_again(two: Two) -> None:
    two.open("exit 1")
    assert two.end() == [101, 0]
    assert two.compiled()["leaf"] == 2
    assert two.build("one") == ["one"]
    _both_work(two)


def test_a_unit_that_is_not_kept_is_compiled(two: Two, dependencies: Path) -> None:
    """An input is written to while it is compiled, with what it holds already."""
    (source,) = Path(os.environ["CARGO_HOME"]).glob("git/checkouts/*/*/leaf/src/lib.rs")
    two.open(f"touch {source}")
    assert two.end() == [0, 0]
    assert two.compiled()["leaf"] == 2
    assert [e["crate"] for e in two.place.events() if e["what"] == "not-kept"] == ["leaf"]
    _both_work(two)


def test_claims_that_nobody_holds_are_in_nobodys_way(place: Place, dependencies: Path) -> None:
    project = place.project("one", user("one", dependencies))
    place.build(project)
    keys = {entry.parent.name for entry in place.entries()}
    for key in keys:
        (place.store / "building" / key).write_text("99999999        ")
    began = time.monotonic()
    other = place.project("two", user("two", dependencies))
    place.build(other)
    assert told(other, "two").startswith("<7>")
    assert time.monotonic() - began < 20
    assert {path.name for path in (place.store / "building").iterdir()} == keys
    # Nobody knows what a claim without a holder was for: it goes, unless somebody takes it first.
    later = time.time() + 3_600
    planned = gc.plan(place.store, [], gc.Policy(), later)
    assert {path.name for path in planned.leftovers} == keys
    taken = os.open(planned.leftovers[0], os.O_RDWR)
    try:
        fcntl.flock(taken, fcntl.LOCK_EX)
        gc.carry_out(place.store, planned)
        assert list((place.store / "building").iterdir()) == [planned.leftovers[0]]
        assert store.leftovers(place.store, later) == []
    finally:
        os.close(taken)
