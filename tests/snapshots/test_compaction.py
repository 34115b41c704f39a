"""Compaction: less disk for the states, and the same states.

PROBE: `test_probe`.  Every disk figure is the filesystem's own.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.support.projects import SOURCE, cow, git, settle
from tests.support.states import TINY, built, edit, project

from cargo_cow import filesystems, snapshots
from cargo_cow.cargo.workspace import load
from cargo_cow.errors import StateDamaged
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems import deduplication, syscalls
from cargo_cow.filesystems.extents import extents
from cargo_cow.snapshots import compaction, housekeeping, pruning, spans, state
from cargo_cow.snapshots.compaction import Done, Plan
from cargo_cow.snapshots.spans import Span
from cargo_cow.snapshots.state import State

MIB = 1 << 20


@functools.cache
def _text(seed: int, size: int) -> bytes:
    """What compresses, and repeats nowhere."""
    random = Random(seed)
    return b"".join(b"%016x" % random.getrandbits(24) for _ in range(size // 16))


def _plant(root: Path, number: int) -> None:
    """What a build would leave, for commit ``number``: linked anew and equal, linked anew and a bit
    different, all different, and what cannot be compressed."""
    deps = root / "target/debug/deps"
    session = root / "target/debug/incremental/tiny-1" / f"s-{number}-x-y"
    shutil.rmtree(session.parent, ignore_errors=True)
    session.mkdir(parents=True)
    alike = bytearray(_text(2, 2 * MIB))
    alike[MIB : MIB + 6] = b"%06d" % number
    for path, data in (
        (deps / "equal", _text(1, 2 * MIB + 1000)),  # its last block is not full
        (deps / "alike", bytes(alike)),
        (deps / "new", _text(100 + number, 2 * MIB)),
        (deps / "random", Random(number).randbytes(MIB)),
        (session / "dep-graph.bin", _text(3, MIB)),
        (session / "query-cache.bin", _text(200 + number, MIB)),
    ):
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        path.chmod(0o755)
    os.setxattr(deps / "alike", "user.cow", b"kept")
    settle()


def _make(root: Path, count: int) -> list[State]:
    """So many states, and a live target that has gone on since."""
    made = []
    for number in range(count):
        _plant(root, number)
        made.append(snapshots.create_state(f"s{number}", root))
    _plant(root, 99)
    return made


def _used(directory: Path) -> int:
    """Bytes in use on the filesystem, by its own account, what is deleted no longer among them."""
    if subvolumes.is_subvolume(directory / "target"):
        # The first wakes who deletes, which else comes every 30 s.
        for words in (("filesystem", "sync"), ("subvolume", "sync")):
            command = ["btrfs", *words, str(directory)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    syscalls.sync_filesystem(directory)
    facts = os.statvfs(directory)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def _plan(root: Path, *, again: bool = True) -> Plan:
    found = compaction.plans(load(root), again=again)
    assert len(found) == 1
    return found[0]


def _compact(root: Path) -> Done:
    return compaction.compact(_plan(root))


def _times(root: Path) -> dict[str, tuple[int, int]]:
    """ctimes and inodes, which a copy would not have."""
    return {str(path): (path.lstat().st_ctime_ns, path.lstat().st_ino) for path in root.rglob("*")}


def _note(made: State) -> state.Compacted:
    note = state.read_compacted(made.path)
    assert note is not None
    return note


def test_probe(btrfs: Path, xfs: Path, ext4: Path) -> None:
    assert deduplication.can_share(btrfs)
    assert deduplication.can_compress(btrfs)
    assert deduplication.can_share(xfs)
    assert not deduplication.can_compress(xfs)
    assert not deduplication.can_share(ext4)


def test_states_stay_what_they_are_and_use_less(tiny_any: Path, trees: Any, xfs: Path) -> None:
    root = tiny_any
    made = _make(root, 4)
    before = [(trees.facts(entry.target), _times(entry.target)) for entry in made]
    live = trees.facts(root / "target"), _layout(root / "target")
    plan = _plan(root)
    used = _used(root)
    done = compaction.compact(plan)
    freed = used - _used(root)
    assert [(trees.facts(entry.target), _times(entry.target)) for entry in made] == before
    assert (trees.facts(root / "target"), _layout(root / "target")) == live
    # Shared: three times "equal" and "dep-graph.bin", and nearly all of "alike".
    assert 14.5 * MIB < done.shared_bytes < 15.1 * MIB
    on_xfs = root.is_relative_to(xfs)
    # Compressed to less than a half: one "equal" and "alike" and "dep-graph.bin", four of the rest.
    assert freed > (14 if on_xfs else 22) * MIB
    assert plan.compresses is not on_xfs
    expected = plan.bytes - plan.expected_bytes
    assert 0.8 * expected < freed < 1.25 * expected
    # Again: nothing to do, nothing lost.
    assert _plan(root, again=False).pieces == ()
    looked = _opened(root, again=False)
    assert on_xfs or {Path(name).name for name in looked if "/deps/" in name} == {"random"}
    again = _plan(root)
    assert sum(piece.bytes - piece.expected_bytes for piece in again.pieces) < 0.2 * MIB
    used = _used(root)
    compaction.compact(again)
    assert _used(root) <= used + 100_000
    for entry in made:
        state.verify(entry)
        assert snapshots.find_state(entry.id, root) == entry
    for name in ("s0", "s3"):
        snapshots.activate_cache(name, root)
        assert (root / "target/debug/deps/equal").read_bytes() == _text(1, 2 * MIB + 1000)


def _opened(root: Path, *, again: bool) -> list[str]:
    """The files whose extents are looked at for a plan: what makes it slow on Btrfs."""
    names: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = compaction._open

        def opened(path: str) -> int:
            names.append(path)
            return real(path)

        patch.setattr(compaction, "_open", opened)
        _plan(root, again=again)
    return names


def _layout(target: Path) -> dict[str, list[tuple[int, int, int, int]]]:
    """Where each file lies, and whether shared."""
    found = {}
    for path in target.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path)] = [extent[:] for extent in extents(file.fileno())]
    return found


def test_more_commits_after_a_compaction(tiny: Path, trees: Any) -> None:
    """Each new state is compared with the compacted ones, whose data is no longer where it was."""
    made = _make(tiny, 2)
    _compact(tiny)
    used = _used(tiny)
    for number in (2, 3):
        _plant(tiny, number)
        made.append(snapshots.create_state(f"s{number}", tiny))
    _plant(tiny, 98)
    before = [trees.facts(entry.target) for entry in made]
    done = _compact(tiny)
    assert 9.5 * MIB < done.shared_bytes < 10.1 * MIB
    # What remains of two states: "random", and "new" and "query-cache.bin" compressed.
    assert _used(tiny) - used < 2 * (1 + 3 * 0.5) * MIB
    assert [trees.facts(entry.target) for entry in made] == before


def test_what_comes_back_is_told_of_compacted_states(
    small_filesystem: Callable[..., Path], tmp_path: Path
) -> None:
    """FIEMAP tells where compressed data is, and not how long: nearly right where it lies side by
    side, as on a filesystem that is not full of holes."""
    tiny = built(project(small_filesystem("btrfs", 1 << 30) / "main", TINY), tmp_path)
    made = _make(tiny, 4)
    before = _used(tiny)
    _compact(tiny)
    told = pruning.measure_all(made, load(tiny)).freed(entry.id for entry in made)
    alone = filesystems.usage(made[3].path)
    assert not alone.exact
    used = _used(tiny)
    assert snapshots.delete_snapshots([entry.id for entry in made], tiny).refused == ()
    freed = used - _used(tiny)
    assert 0.9 * freed < told < 1.25 * freed
    assert alone.exclusive_bytes < 6 * MIB  # 3 of it random or new, and compressed
    assert used < before - 20 * MIB


def test_what_the_live_target_uses_is_left_where_it_is(tiny_any: Path) -> None:
    made = []
    for number in range(3):
        _plant(tiny_any, number)
        made.append(snapshots.create_state(f"s{number}", tiny_any))
    _compact(tiny_any)
    # The newest state and the live target share all they have, as before.
    live, kept = (_layout(path / "debug") for path in (tiny_any / "target", made[-1].target))
    assert [runs for _, runs in sorted(live.items())] == [runs for _, runs in sorted(kept.items())]
    used = _used(tiny_any)
    snapshots.activate_cache("s0", tiny_any)  # keeps nothing: all is in a state
    done = _compact(tiny_any)
    assert done.foreign_bytes == 0
    assert _used(tiny_any) < used + 100_000


def test_what_somebody_else_uses_is_put_back(tiny: Path, trees: Any) -> None:
    """Two states share files with a third party, of which nothing is known."""
    _plant(tiny, 0)
    made = [snapshots.create_state(name, tiny) for name in ("one", "two")]
    aside = tiny.parent / "aside"
    shutil.copytree(tiny / "target", aside, copy_function=_reflinked)
    _plant(tiny, 99)
    before = [trees.facts(entry.target) for entry in made]
    held = {path.name: runs[0][1] for path, runs in _by_path(made[0].target).items()}
    used = _used(tiny)
    done = _compact(tiny)
    assert done.foreign_bytes > 7 * MIB
    assert done.rewritten_bytes == 0
    assert _used(tiny) < used + 200_000
    assert [trees.facts(entry.target) for entry in made] == before
    assert {path.name: runs[0][1] for path, runs in _by_path(made[1].target).items()} == held
    # It is not tried again and again, but when it is asked for.
    assert _plan(tiny, again=False).pieces == ()
    shutil.rmtree(aside)
    syscalls.sync_filesystem(tiny)
    assert _compact(tiny).rewritten_bytes > 7 * MIB
    assert _used(tiny) < used - 3 * MIB


def _by_path(target: Path) -> dict[Path, list[tuple[int, int, int, int]]]:
    return {
        Path(name): runs
        for name, runs in _layout(target).items()
        if runs and Path(name).stat().st_size >= MIB
    }


def _reflinked(source: str, destination: str) -> None:
    subprocess.run(["cp", "--reflink=always", source, destination], check=True)


def test_what_btrfs_leaves_as_it_is_is_not_tried_again(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tiny, 2)
    real = deduplication.rewritten

    def rewritten(source: int, ranges: Any, room: Path, *, compress: bool) -> Any:
        del compress
        return real(source, ranges, room, compress=False)

    with monkeypatch.context() as patch:
        patch.setattr(deduplication, "rewritten", rewritten)
        patch.setattr(deduplication, "compress_all_the_same", lambda _: None)
        assert _compact(tiny).rewritten_bytes > 5 * MIB
    assert _plan(tiny, again=False).pieces == ()
    assert _plan(tiny).pieces


# -- the seal


def _change(made: State) -> None:
    """An edit that leaves size and mtime as they were."""
    writable = made.seal.kind == "subvolume"
    if writable:
        subvolumes.set_read_only(made.target, False)
    path = made.target / "debug/deps/equal"
    facts = path.stat()
    with path.open("r+b") as file:
        file.write(b"!")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    if writable:
        subvolumes.set_read_only(made.target, True)


def test_an_edit_after_a_compaction_is_found_out(tiny_any: Path) -> None:
    made = _make(tiny_any, 2)
    _compact(tiny_any)
    _change(made[0])
    with pytest.raises(StateDamaged, match="edited"):
        snapshots.find_state("s0" if made[0].seal.kind == "tree" else made[0].id, tiny_any)
    state.verify(made[1])


def test_an_edit_during_a_compaction_is_found_out(tiny_any: Path) -> None:
    made = _make(tiny_any, 2)
    calls = 0

    def busy() -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            _change(made[0])
        return False

    compaction.compact(_plan(tiny_any), busy=busy)
    assert calls
    with pytest.raises(StateDamaged, match="edited"):
        state.verify(made[0])
    # Nor does another compaction make it good.
    _compact(tiny_any)
    with pytest.raises(StateDamaged, match="edited"):
        state.verify(made[0])
    state.verify(made[1])


def test_an_edit_between_two_pieces_is_found_out(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the note stands already, and transactions change for our sake."""
    made = _make(tiny, 2)
    real = deduplication.share
    calls = 0

    def share(source: int, destination: int, start: int, stop: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            _change(made[0])
        return real(source, destination, start, stop)

    monkeypatch.setattr(deduplication, "share", share)
    _compact(tiny)
    assert calls > 3
    assert _note(made[0]).seal is None
    with pytest.raises(StateDamaged, match="edited"):
        state.verify(made[0])
    state.verify(made[1])


@pytest.mark.parametrize("harm", ["foreign", "cut", "edited"])
def test_a_note_that_is_not_whole_is_none(tiny: Path, harm: str) -> None:
    made = _make(tiny, 2)
    _compact(tiny)
    path = made[0].path / state.COMPACTED_FILE
    if harm == "foreign":
        shutil.copy(made[1].path / state.COMPACTED_FILE, path)
    elif harm == "cut":
        os.truncate(path, 40)
    else:
        value = json.loads(path.read_text())
        path.write_text(json.dumps({**value, "stats": "0" * 64}))
    assert state.read_compacted(made[0].path) is None
    with pytest.raises(StateDamaged, match="edited"):
        state.verify(made[0])


def test_a_note_that_remembers_less_still_vouches(tiny: Path) -> None:
    """What was tried or compressed only saves work; without it no state is lost."""
    made = _make(tiny, 2)
    _compact(tiny)
    path = made[0].path / state.COMPACTED_FILE
    value = json.loads(path.read_text())
    del value["packed"], value["digest"]
    value["digest"] = state._digest(value)
    path.write_text(json.dumps(value))
    state.verify(made[0])
    assert _note(made[0]).packed == ()


def test_another_subvolume_in_its_place_is_found_out(tiny: Path) -> None:
    """A snapshot of a state has the very stats of it; it is not the state."""
    made = _make(tiny, 2)
    _compact(tiny)
    other = made[0].path / "other"
    subvolumes.snapshot(made[0].target, other, read_only=True)
    filesystems.remove_target(made[0].target)
    other.rename(made[0].target)
    with pytest.raises(StateDamaged, match="edited or exchanged"):
        state.verify(made[0])


def test_the_seal_stays_after_a_sync(tiny: Path) -> None:
    made = _make(tiny, 2)
    _compact(tiny)
    _used(tiny)
    for entry in made:
        assert state.seal(entry.target).value == _note(entry).seal


# -- killed, disturbed


def test_killed_at_any_moment_states_are_whole(tiny_any: Path, trees: Any) -> None:
    made = _make(tiny_any, 3)
    before = [trees.facts(entry.target) for entry in made]
    random = Random(7)
    hits = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-m", "cargo_cow", "snapshot", "compact"],
            cwd=tiny_any,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        marks = [entry.path / state.COMPACTED_FILE for entry in made]
        until = time.monotonic() + 60
        while child.poll() is None and not any(mark.exists() for mark in marks):
            assert time.monotonic() < until
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.15))
        hits += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        for entry in made:
            state.verify(entry)
        for mark in marks:
            mark.unlink(missing_ok=True) if _sealed(made) else None
    assert hits
    assert [trees.facts(entry.target) for entry in made] == before
    _compact(tiny_any)
    for entry in made:
        state.verify(entry)
        note = state.read_compacted(entry.path)
        assert entry.seal.kind == "tree" or note is None or note.seal is not None
    assert [trees.facts(entry.target) for entry in made] == before


def _sealed(made: list[State]) -> bool:
    """Whether no state needs its note yet."""
    return all(state.seal(entry.target) == entry.seal for entry in made)


def test_states_that_go_meanwhile(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _make(tiny, 3)
    plan = _plan(tiny)
    assert snapshots.delete_snapshots(["s1"], tiny).refused == ()
    real = deduplication.share
    calls = 0

    def share(source: int, destination: int, start: int, stop: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert snapshots.delete_snapshots(["s0"], tiny).refused == ()
        return real(source, destination, start, stop)

    monkeypatch.setattr(deduplication, "share", share)
    done = compaction.compact(plan)
    assert made[1].id not in done.states
    assert [entry.id for entry in snapshots.list_snapshots(tiny)] == [made[2].id]
    state.verify(made[2])
    assert not made[0].path.exists()


def test_a_full_disk_stops_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _make(tiny, 2)

    def rewritten(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    plan = _plan(tiny)
    monkeypatch.setattr(deduplication, "rewritten", rewritten)
    assert compaction.compact(plan).stopped == "there is no space left"
    for entry in made:
        state.verify(entry)
        note = state.read_compacted(entry.path)
        assert note is None or note.seal is not None


# -- unasked


def test_after_a_build_it_happens_by_itself(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _make(tiny, 2)
    edit(tiny, "before", tmp_path)
    assert state.read_compacted(made[0].path) is None  # switched off for tests
    git(tiny, "config", "cargo-cow.compact", "true")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "0")
    started = []
    real = os.posix_spawn

    def spawn(*arguments: Any, **named: Any) -> int:
        started.append(real(*arguments, **named))
        return started[-1]

    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.setattr(os, "posix_spawn", spawn)
    used = _used(tiny)
    housekeeping.tidy(load(tiny), say=print)
    housekeeping.tidy(load(tiny), say=print)  # a short while ago
    assert len(started) == 1
    assert os.getsid(started[0]) == started[0]
    _, status = os.waitpid(started[0], 0)
    assert status == 0
    for entry in made:
        assert _note(entry).seal is not None
    assert _used(tiny) < used - 5 * MIB
    # Another state: another look.
    snapshots.create_state("new", tiny)
    housekeeping.tidy(load(tiny), say=print)
    assert len(started) == 2
    os.waitpid(started[1], 0)


def test_a_build_is_waited_for(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _make(tiny, 2)
    monkeypatch.setattr(compaction, "_ASIDE", 0.2)
    with (tiny / "target/debug/.cargo-lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = compaction.compact_aside(_plan(tiny), load(tiny))
    assert done is not None
    assert done.stopped
    assert done.states == ()
    assert state.read_compacted(made[0].path) is None
    with (made[0].path.parent / "compacting").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert compaction.compact_aside(_plan(tiny), load(tiny)) is None


# -- what people see


def test_a_dry_run_touches_nothing(tiny: Path, tmp_path: Path) -> None:
    made = _make(tiny, 2)
    before = [_layout(entry.target) for entry in made]
    told = cow(tiny, tmp_path, "snapshot", "compact", "--dry-run")
    assert told.status == 0
    assert made[0].id in told.output
    assert "would become about" in told.output
    plan = json.loads(
        cow(tiny, tmp_path, "snapshot", "compact", "--dry-run", "--format", "json").output
    )[0]
    assert plan["done"] is None
    assert plan["bytes"] > plan["expected_bytes"] > 0
    assert {use["state"] for piece in plan["pieces"] for use in piece["users"]} == {
        entry.id for entry in made
    }
    assert [_layout(entry.target) for entry in made] == before
    assert not (made[0].path / state.COMPACTED_FILE).exists()
    told = cow(tiny, tmp_path, "snapshot", "compact")
    assert "2 state(s)" in told.output


def test_where_nothing_can_be_shared(ext4: Path, tmp_path: Path) -> None:
    from tests.support.projects import repository
    from tests.support.states import TINY, built

    root = built(repository(ext4 / "main", TINY), tmp_path)
    told = cow(root, tmp_path, "snapshot", "compact")
    assert (told.status, told.output) == (0, "there are no states\n")
    snapshots.create_state("one", root, allow_copy=True)
    told = cow(root, tmp_path, "snapshot", "compact")
    assert told.status == 0
    assert "does not let files share" in told.output


def test_units_come_back_from_a_compacted_state(tiny_any: Path, tmp_path: Path) -> None:
    """There and back, with real builds."""
    git(tiny_any, "switch", "-qc", "other")
    edit(tiny_any, "two", tmp_path)
    git(tiny_any, "commit", "-qam", "two")
    snapshots.create_state("two", tiny_any)
    settle()
    git(tiny_any, "switch", "-q", "main")
    assert cow(tiny_any, tmp_path, "build").status == 0
    _compact(tiny_any)
    settle()
    git(tiny_any, "switch", "-q", "other")
    settle()
    back = cow(tiny_any, tmp_path, "build")
    assert (back.status, back.rustc) == (0, []), back.output
    told = subprocess.run(
        [tiny_any / "target/debug/tiny"], check=True, capture_output=True, text=True
    )
    assert told.stdout == "two"


# -- arithmetic


def _random_spans(random: Random, distances: int) -> list[Span]:
    result = []
    position = 0
    while position < 40:
        position += random.randrange(3)
        stop = position + random.randrange(1, 6)
        result.append(Span(position, stop, random.randrange(distances)))
        position = stop
    return result


def _blocks(found: list[Span]) -> dict[int, int]:
    return {place: span.distance for span in found for place in range(span.start, span.stop)}


def test_spans_against_single_bytes() -> None:
    random = Random(11)
    for _ in range(500):
        first, second = _random_spans(random, 2), _random_spans(random, 2)
        same = spans.common(first, second)
        ours, theirs = _blocks(first), _blocks(second)
        agreed = {place: far for place, far in ours.items() if theirs.get(place) == far}
        assert _blocks(same) == agreed
        left = spans.without(first, same)
        assert _blocks(left) == {p: far for p, far in ours.items() if p not in agreed}
        assert spans.length(left) + spans.length(same) == spans.length(first)
        assert all(one.stop <= two.start for one, two in itertools.pairwise(left))


def test_what_is_alike_is_found_to_the_block(tmp_path: Path) -> None:
    block = deduplication.BLOCK
    random = Random(12)
    data = random.randbytes(3 * MIB + 500)
    other = bytearray(data)
    for place in (5, 100, 101, 400):
        other[place * block] ^= 1
    (tmp_path / "one").write_bytes(data)
    (tmp_path / "two").write_bytes(other)
    (tmp_path / "longer").write_bytes(data + b"more")
    whole = Span(0, -(-len(data) // block) * block, 0)

    def runs(name: str) -> list[tuple[int, int]]:
        with (tmp_path / "one").open("rb") as ours, (tmp_path / name).open("rb") as theirs:
            found = spans.alike(theirs.fileno(), ours.fileno(), whole)
            return [(start // block, stop // block) for start, stop in found]

    assert runs("one") == [(0, 769)]
    # A run of five blocks is not worth it.
    assert runs("two") == [(6, 100), (102, 400), (401, 769)]
    assert runs("longer") == [(0, 768)]
