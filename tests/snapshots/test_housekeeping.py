"""Keeping house: by rules, by settings, unasked after a build, and across filesystems."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from tests.support.projects import SOURCE, cow, git, repository, settle
from tests.support.states import TINY, built, edit, half_made, project

from cargo_cow import filesystems, snapshots
from cargo_cow.cargo.workspace import load
from cargo_cow.errors import FilesystemFailed, UsageError
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.snapshots import housekeeping, pruning, store
from cargo_cow.snapshots.policy import Mark, Policy
from cargo_cow.snapshots.state import Damaged, State


def _states(checkout: Path) -> list[State]:
    found = snapshots.list_snapshots(checkout)
    return [entry for entry in found if isinstance(entry, State)]


def _tidy(checkout: Path) -> list[str]:
    said: list[str] = []
    housekeeping.tidy(load(checkout), say=said.append)
    return said


# -- rules


def test_states_of_a_worktree_that_is_gone(tiny: Path, tmp_path: Path) -> None:
    there, stays = tiny.parent / "there", tiny.parent / "stays"
    for path in (there, stays):
        git(tiny, "worktree", "add", "-q", str(path))
        edit(path, path.name, tmp_path)
        snapshots.create_state(None, path)
    snapshots.create_state("named", there)
    here = snapshots.create_state(None, tiny)
    policy = Policy(keep_last=9, drop_deleted=False, drop_vanished=True)

    def going() -> list[str]:
        plan, _ = snapshots.prune_snapshots(policy, tiny, dry_run=True)
        return [decision.reason for decision in plan.going]

    assert going() == []
    (there / "target").rename(tiny.parent / "aside")
    shutil.rmtree(there)  # git has not noticed yet
    assert going() == ["its worktree is gone"]
    git(tiny, "worktree", "prune")
    assert going() == ["its worktree is gone"]
    # The branch lives: by default its states are still of use.
    plan, _ = snapshots.prune_snapshots(Policy(keep_last=9), tiny, dry_run=True)
    assert plan.going == ()
    _, done = snapshots.prune_snapshots(policy, tiny)
    assert done is not None
    assert [entry.checkout for entry in _states(tiny)] == [str(stays), str(there), here.checkout]
    # After the repository was moved nobody can say which of the old paths are gone.
    moved = tiny.rename(tiny.parent / "moved")
    plan, _ = snapshots.prune_snapshots(policy, moved, dry_run=True)
    assert plan.going == ()


def test_what_is_said_to_come_back_does(
    small_filesystem: Callable[..., Path], tmp_path: Path
) -> None:
    """A filesystem that is filled up until states have to go: what the plan says is freed."""
    mount = small_filesystem("btrfs", 512 << 20)
    root = built(project(mount / "main", TINY), tmp_path)
    size = 24 << 20
    for number in range(4):
        settle()
        (root / "target/debug/filler").write_bytes(Random(number).randbytes(size))
        snapshots.create_state(None, root)
    (root / "target/debug/filler").unlink()
    os.sync()

    def free() -> int:
        for what in ("filesystem", "subvolume", "filesystem"):  # what is deleted goes later
            subprocess.run(["btrfs", what, "sync", mount], check=True, capture_output=True)
        told = os.statvfs(mount)
        return told.f_bavail * told.f_frsize

    before = free()
    enough = Policy(keep_last=None, min_free=Mark(before - 1))
    assert snapshots.prune_snapshots(enough, root, dry_run=True)[0].going == ()
    short = Policy(keep_last=None, min_free=Mark(before + size + 1000))
    ids = [entry.id for entry in _states(root)]
    plan, done = snapshots.prune_snapshots(short, root)
    assert done is not None
    assert list(done.removed) == ids[:2]  # the oldest, and no more than it takes
    assert plan.freed_bytes is not None
    assert 2 * size <= plan.freed_bytes < 2.2 * size
    came = free() - before
    assert abs(came - plan.freed_bytes) < (4 << 20), (came, plan.freed_bytes)
    percent = Policy(keep_last=None, min_free=Mark(percent=99.0))
    plan, _ = snapshots.prune_snapshots(percent, root, dry_run=True)
    assert len(plan.going) == 2
    assert plan.going[0].reason == "the oldest, as the filesystem is nearly full"


def test_a_branch_that_was_renamed_is_no_deleted_one(tiny: Path) -> None:
    git(tiny, "switch", "-qc", "feature/one")
    made = snapshots.create_state(None, tiny)
    assert made.branch == "feature/one"
    policy = Policy(keep_last=9)

    def going() -> list[str]:
        plan, _ = snapshots.prune_snapshots(policy, tiny, dry_run=True)
        return [decision.reason for decision in plan.going]

    git(tiny, "branch", "-m", "feature/two")
    git(tiny, "switch", "-q", "main")
    assert going() == []
    git(tiny, "branch", "-m", "feature/two", "three")
    assert going() == []
    # Another branch by the first name is another branch, and gone when it is gone.
    time.sleep(1.1)  # a reflog counts in seconds
    git(tiny, "switch", "-qc", "feature/one")
    other = snapshots.create_state(None, tiny)
    assert other.branch == "feature/one"
    assert going() == []
    git(tiny, "switch", "-q", "main")
    git(tiny, "branch", "-qD", "feature/one")
    plan, _ = snapshots.prune_snapshots(policy, tiny, dry_run=True)
    assert [one.entry.id for one in plan.going] == [other.id]
    git(tiny, "branch", "-qD", "three")
    assert going() == ["its branch feature/one is deleted"] * 2


# -- settings


def test_settings_are_gits(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert housekeeping.settings(tiny) == (
        Policy(keep_last=10, min_free=Mark(percent=5.0)),
        True,
        False,  # for tests; see below
    )
    for name, value in (
        ("keepNewerThan", "2w"),
        ("budget", "3GB"),
        ("minFree", "1.5MiB"),
        ("deleted", "no"),
        ("merged", "true"),
        ("prune", "off"),
    ):
        git(tiny, "config", f"cargo-cow.{name}", value)
    with (tiny / ".git/config").open("a") as file:
        file.write("[cargo-cow]\n\tvanished\n")
    assert housekeeping.settings(tiny) == (
        Policy(
            keep_last=None,
            keep_newer_than=1_209_600.0,
            drop_deleted=False,
            drop_merged=True,
            drop_vanished=True,
            budget=3_000_000_000,
            min_free=Mark(1_572_864),
        ),
        False,
        False,
    )
    monkeypatch.setenv("GIT_CONFIG_COUNT", "0")
    assert housekeeping.settings(tiny).compact
    snapshots.create_state(None, tiny)
    plan = cow(tiny, tmp_path, "snapshot", "prune")
    assert "no rule takes it" in plan.output or "young enough" in plan.output
    # What is said on the command line counts.
    plan = cow(tiny, tmp_path, "snapshot", "prune", "--keep-last", "0")
    assert "not among the last 0" in plan.output
    for name, value in (
        ("keepLast", "many"),
        ("budget", "x"),
        ("minFree", "200%"),
        ("merged", "maybe"),
    ):
        git(tiny, "config", f"cargo-cow.{name}", value)
        with pytest.raises(UsageError, match="cargo-cow"):
            housekeeping.settings(tiny)
        told = cow(tiny, tmp_path, "snapshot", "prune")
        assert told.status == 2
        assert "hint:" in told.output
        git(tiny, "config", "--unset", f"cargo-cow.{name}")


# -- unasked


def test_a_build_prunes_when_a_mark_is_passed(tiny_any: Path, tmp_path: Path) -> None:
    git(tiny_any, "config", "cargo-cow.keepLast", "2")
    git(tiny_any, "config", "cargo-cow.minFree", "0")
    snapshots.create_state("named", tiny_any)
    ids = [snapshots.create_state(None, tiny_any).id for _ in range(8)]
    snapshots.promote_snapshot(ids[0], tiny_any)
    # Nothing compiled: nothing is looked at.
    assert cow(tiny_any, tmp_path, "build").output.count("pruned") == 0
    edit_output = _edited(tiny_any, "two", tmp_path)
    assert "pruned 4 automatic state(s)" in edit_output  # so many at once
    assert [entry.id for entry in _states(tiny_any)][1:] == [ids[0], *ids[5:]]
    assert "pruned 1 automatic state(s)" in _edited(tiny_any, "three", tmp_path)
    assert "pruned" not in _edited(tiny_any, "four", tmp_path)
    assert [entry.name for entry in _states(tiny_any)] == ["named", None, None, None]
    assert [entry.id for entry in _states(tiny_any) if entry.baseline] == [ids[0]]


def _edited(checkout: Path, text: str, scratch: Path) -> str:
    settle()
    (checkout / "src/text").write_text(text)
    done = cow(checkout, scratch, "build")
    assert done.status == 0, done.output
    return done.output


def test_what_is_switched_off_or_in_use_or_changed_by_others_stays(tiny: Path) -> None:
    git(tiny, "config", "cargo-cow.keepLast", "0")
    git(tiny, "config", "cargo-cow.prune", "false")
    one, two, three = (snapshots.create_state(None, tiny) for _ in range(3))
    assert _tidy(tiny) == []
    git(tiny, "config", "cargo-cow.prune", "true")
    subvolumes.set_read_only(one.target, False)  # damaged: for people to decide
    with snapshots.in_use(two):
        assert "pruned 1" in _tidy(tiny)[0]
    left = snapshots.list_snapshots(tiny)
    assert [entry.id for entry in left] == [one.id, two.id]
    assert isinstance(left[0], Damaged)
    assert three.id not in {entry.id for entry in left}
    git(tiny, "config", "cargo-cow.budget", "0")
    assert housekeeping.tidy(load(tiny), say=print, quick=True) == 0  # would have to be measured
    git(tiny, "config", "--unset", "cargo-cow.budget")
    # Looked at: not again before something changes, or a day has passed.
    assert _tidy(tiny) == []
    note = tiny / ".git/cargo-cow/tidied.json"
    os.utime(note, (0, 0))
    assert "pruned 1" in _tidy(tiny)[0]


def test_looking_costs_a_build_no_room_that_prunes(tiny: Path) -> None:
    snapshots.create_state(None, tiny)
    program = (
        "import sys; from pathlib import Path; from cargo_cow.cargo.workspace import load; "
        "from cargo_cow.snapshots import housekeeping; "
        "assert housekeeping.tidy(load(Path()), say=print) == 0; "
        "print('cargo_cow.snapshots.pruning' in sys.modules)"
    )

    def loaded() -> str:
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=tiny,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        ).stdout.strip()

    assert loaded() == "True"  # the first look
    assert loaded() == "False"
    snapshots.create_state(None, tiny)
    assert loaded() == "True"


@pytest.mark.parametrize("harm", ["", "no id\n", None])
def test_a_baseline_that_cannot_be_read_is_not_pruned(tiny: Path, harm: str | None) -> None:
    git(tiny, "config", "cargo-cow.keepLast", "0")
    one, two = (snapshots.create_state(None, tiny) for _ in range(2))
    snapshots.promote_snapshot(one.id, tiny)
    note = tiny / ".git/cargo-cow/states/baseline"
    note.unlink()
    if harm is None:
        note.mkdir()
    else:
        note.write_text(harm)
    _, done = snapshots.prune_snapshots(Policy(keep_last=0), tiny)
    assert done is not None
    assert done.removed == ()
    assert "promote one" in done.refused[0][1]
    _tidy(tiny)
    assert [entry.id for entry in _states(tiny)] == [one.id, two.id]
    # Who names a state means it.
    assert snapshots.delete_snapshots([two.id], tiny).removed == (two.id,)
    if harm is not None:
        snapshots.promote_snapshot(one.id, tiny)
        assert _states(tiny)[0].baseline


def test_a_wrong_setting_does_not_keep_a_build(tiny: Path, tmp_path: Path) -> None:
    snapshots.create_state(None, tiny)
    git(tiny, "config", "cargo-cow.keepLast", "many")
    output = _edited(tiny, "two", tmp_path)
    assert output.count("warning: states are not pruned") == 1


def test_after_a_bisect_the_branch_is_still_there(tiny: Path, tmp_path: Path) -> None:
    """Each step keeps what it replaces; what the branch had is not driven out by that."""
    git(tiny, "config", "cargo-cow.keepLast", "2")
    for number in range(12):
        (tiny / "src/text").write_text(f"text {number}")
        git(tiny, "commit", "-qam", f"{number}")
    built(tiny, tmp_path)
    git(tiny, "bisect", "start", "HEAD", "HEAD~12")
    for _ in range(3):
        settle()
        assert cow(tiny, tmp_path, "build").rustc == ["tiny"]
        git(tiny, "bisect", "bad")
    assert len([entry for entry in _states(tiny) if entry.branch is None]) <= 2
    git(tiny, "bisect", "reset")
    settle()
    assert cow(tiny, tmp_path, "build").rustc == []


# -- beside other targets


def test_stores_beside_other_targets_are_found(
    tiny: Path, xfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = snapshots.create_state("near", tiny)
    with monkeypatch.context() as patch:
        patch.setenv("CARGO_TARGET_DIR", str(xfs / "target"))
        built(tiny, tmp_path)
        far = snapshots.create_state("far", tiny)
        gone = snapshots.create_state(None, tiny)
        assert far.path.is_relative_to(xfs)
    there = tiny.parent / "there"
    git(tiny, "worktree", "add", "-q", str(there))
    for checkout in (tiny, there):
        assert [entry.id for entry in _states(checkout)] == [near.id, far.id, gone.id]
    # Not as donors: nothing would be shared.
    assert [entry.id for entry in snapshots.states_of(tiny, tiny / "target")] == [near.id]
    with pytest.raises(FilesystemFailed) as caught:
        snapshots.activate_cache("far", tiny)
    assert str(caught.value).isprintable()
    # Addresses on two filesystems are not the same bytes.
    os.sync()
    shared = pruning.measure_all([near, far], load(tiny))
    assert all(not {near.id, far.id} <= users for users in shared.used)
    _, done = snapshots.prune_snapshots(Policy(keep_last=0), there)
    assert done is not None
    assert done.removed == (gone.id,)
    assert snapshots.delete_snapshots(["far"], there).removed == (far.id,)
    assert [entry.name for entry in _states(there)] == ["near"]
    # A store that is another's by now, or gone, is nobody's.
    (xfs / ".cargo-cow/states").chmod(0o777)
    assert [entry.name for entry in _states(there)] == ["near"]
    shutil.rmtree(xfs / ".cargo-cow")
    assert [entry.name for entry in _states(there)] == ["near"]
    other = repository(tiny.parent / "other", TINY)
    assert store.stores(store.project_of(other), other / "target") == []


# -- killed


def test_killed_while_a_state_is_made_there_is_one_or_none(tiny_any: Path) -> None:
    arguments = [sys.executable, "-m", "cargo_cow", "snapshot", "create"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}

    def create(after: float) -> bool:
        child = subprocess.Popen(
            arguments,
            cwd=tiny_any,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return child.wait(after) != 0
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return True

    started = time.monotonic()
    assert not create(60.0)
    whole = time.monotonic() - started
    random = Random(6)
    hits = 0
    for _ in range(12):
        hits += create(random.uniform(0.4, 1.0) * whole)
        for entry in snapshots.list_snapshots(tiny_any):
            assert isinstance(entry, State)
            assert snapshots.find_state(entry.id, tiny_any) == entry
    assert hits
    snapshots.create_state("last", tiny_any)
    home = tiny_any / ".git/cargo-cow/states"
    assert half_made(home) == []
    every = [entry.id for entry in _states(tiny_any)]
    assert snapshots.delete_snapshots(every, tiny_any).refused == ()
    assert subvolumes.nested(home) == [] if filesystems.probe(home).snapshots else True
