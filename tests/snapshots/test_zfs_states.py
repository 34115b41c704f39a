"""States on a real ZFS pool: the same acts as elsewhere, in constant time.

zfs-fuse keeps whole seconds only, so whatever must be older than something else waits for two.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from tests.support.projects import SOURCE, cargo, cow, git, repository, write
from tests.support.states import TINY

from cargo_cow import filesystems, snapshots
from cargo_cow.errors import FilesystemFailed
from cargo_cow.filesystems import zfs as datasets
from cargo_cow.snapshots import state as states
from cargo_cow.snapshots import store
from cargo_cow.snapshots.state import Damaged, State

pytestmark = pytest.mark.slow


def _tick() -> None:
    time.sleep(2.1)


def _build(root: Path, scratch: Path) -> None:
    _tick()
    built = cow(root, scratch, "build")
    assert built.status == 0, built.output
    _tick()


@pytest.fixture
def tiny(zfs_container: Path, tmp_path: Path) -> Path:
    """One package, its target a dataset, built."""
    root = repository(zfs_container / "main", TINY)
    assert filesystems.create_target(root / "target") == "dataset"
    _build(root, tmp_path)
    return root


def _leave(path: Path) -> None:
    return


def _tells(checkout: Path) -> str:
    program = checkout / "target/debug/tiny"
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


def _container(root: Path) -> set[str]:
    found = datasets.container_for(root)
    assert found
    return {member.name.rpartition("/")[2] for member in datasets._members(found)}


def test_states_of_a_dataset(tiny: Path, tmp_path: Path) -> None:
    one = snapshots.create_state("one", tiny)
    assert (one.method, one.seal.kind) == ("snapshot", "dataset")
    assert "one" in (one.target / "debug/tiny").read_bytes().decode("latin-1")

    write(tiny, {"src/text": "two"})
    _build(tiny, tmp_path)
    assert _tells(tiny) == "two"

    # Back, with what was live kept, and no compiler.
    write(tiny, {"src/text": "one"})
    _tick()
    done = snapshots.activate_cache("one", tiny)
    assert done.method == "snapshot"
    assert _tells(tiny) == "one"
    assert done.kept is not None
    kept = done.kept
    built = cargo(tiny, tmp_path, "build")
    assert (built.status, built.rustc) == (0, []), built.output

    # A worktree is a clone, too (its sources are as new as the clone, so some are built).
    added = cow(tiny, tmp_path, "worktree", "add", "-q", str(tiny.parent / "other"), "-b", "other")
    assert added.status == 0, added.output
    assert datasets.find(tiny.parent / "other/target") is not None
    built = cargo(tiny.parent / "other", tmp_path, "build")
    assert built.status == 0, built.output

    # States go in any order, whatever was cloned from them.
    snapshots.verify(snapshots.find_state("one", tiny))
    assert [entry.id for entry in snapshots.list_snapshots(tiny)] == [one.id, kept.id]
    snapshots.delete_snapshots(["one"], tiny)
    assert _tells(tiny) == _tells(tiny.parent / "other") == "one"
    write(tiny, {"src/text": "two"})
    snapshots.activate_cache(kept.id, tiny)
    assert _tells(tiny) == "two"
    for entry in snapshots.list_snapshots(tiny):
        snapshots.delete_snapshots([entry.id], tiny)
    removed = cow(tiny, tmp_path, "worktree", "remove", "--force", str(tiny.parent / "other"))
    assert removed.status == 0, removed.output
    assert git(tiny, "worktree", "list").count("\n") == 0
    # One target is left.
    assert len(_container(tiny)) == 1
    assert filesystems.can_snapshot(tiny / "target")


def test_killed_during_activation_the_target_is_the_old_or_the_new(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "cargo_cow", "snapshot", "activate"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    snapshots.create_state("one", tiny)
    write(tiny, {"src/text": "two"})
    _build(tiny, tmp_path)
    snapshots.create_state("two", tiny)
    for name in ("one", "two", "one"):
        started = time.monotonic()
        subprocess.run([*command, name], cwd=tiny, env=environment, check=True, capture_output=True)
        whole = time.monotonic() - started
    outcomes: dict[str, int] = {}
    random = Random(3)
    hits = 0
    for number in range(8):
        wanted = ("two", "one")[number % 2]
        with subprocess.Popen(
            [*command, wanted],
            cwd=tiny,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as running:
            time.sleep(random.uniform(0.1, 0.9) * whole)
            running.kill()
        hits += running.returncode != 0
        told = _tells(tiny)
        outcome = "new" if told == wanted else "old"
        assert told in ("one", "two")
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        for entry in snapshots.list_snapshots(tiny):
            assert isinstance(entry, State), entry
            snapshots.verify(entry)
    assert hits, outcomes
    print(hits, outcomes)
    snapshots.activate_cache("one", tiny)
    assert _tells(tiny) == "one"
    monkeypatch.setattr(datasets, "_ORPHAN_AGE", -5)
    until = time.monotonic() + 60
    known = {entry.id for entry in snapshots.list_snapshots(tiny)}
    while len(_container(tiny) - known) > 1 and time.monotonic() < until:
        datasets.sweep(tiny)
    assert len(_container(tiny) - known) == 1  # the live target
    assert _tells(tiny) == "one"


def test_a_kill_or_an_edit_leaves_no_state_that_is_used(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _container(tiny)

    class Killed(BaseException):
        pass

    def killed(*arguments: object, **words: object) -> None:
        raise Killed

    # Killed with the dataset made and nothing published: the next command finds it by its symlink.
    with monkeypatch.context() as patch:
        patch.setattr(states, "seal", killed)
        patch.setattr(store, "remove_state", _leave)
        with pytest.raises(Killed):
            snapshots.create_state("one", tiny)
    assert snapshots.list_snapshots(tiny) == []
    assert len(_container(tiny)) == len(before) + 1
    two = snapshots.create_state("two", tiny)
    assert _container(tiny) == before | {two.id}

    dataset = datasets.find(two.target)
    assert dataset
    assert datasets._zfs("set", "readonly=off", dataset.name) == []
    (two.target / "debug/tiny").write_bytes(os.urandom(3_000_000))
    # What a dataset refers to is counted when a transaction group ends, as it does with a snapshot.
    for act in ("snapshot", "destroy"):
        datasets._zfs(act, f"{dataset.name}@now")
    (entry,) = snapshots.list_snapshots(tiny)
    assert isinstance(entry, Damaged), entry
    assert "edited" in entry.reason
    snapshots.delete_snapshots([two.id], tiny)
    assert _container(tiny) == before


def test_without_a_container_a_copy_is_made_only_when_asked_for(zfs: Path, tmp_path: Path) -> None:
    root = repository(zfs / "main", TINY)
    assert cow(root, tmp_path, "build").status == 0
    with pytest.raises(FilesystemFailed, match="full copy"):
        snapshots.create_state("one", root)
    made = snapshots.create_state("one", root, allow_copy=True)
    assert isinstance(made, State)
    assert (made.method, made.seal.kind) == ("copy", "tree")
    if not filesystems.probe(root).exchange:
        with pytest.raises(FilesystemFailed, match="RENAME_EXCHANGE"):
            snapshots.activate_cache("one", root)
        assert _tells(root) == "one"
        filesystems.remove_target(root / "target")
    assert snapshots.activate_cache("one", root).method == "copy"
    assert _tells(root) == "one"


def test_init_makes_the_target_a_dataset(zfs: Path, tmp_path: Path) -> None:
    root = repository(zfs / "main", TINY)
    assert cow(root, tmp_path, "build").status == 0
    own = {"CARGO_HOME": str(tmp_path / "cargo home")}  # nothing here may reach the user's
    if filesystems.probe(root).reflink:
        # A ZFS that clones blocks: init leaves the target as it is.
        done = cow(root, tmp_path, "init", **own)
        assert done.status == 0, done.output
        assert datasets.container_for(root) is None
        return
    shown = cow(root, tmp_path, "init", "--dry-run", **own)
    assert shown.status == 0, shown.output
    assert "would make a container in" in shown.output
    assert datasets.container_for(root) is None
    done = cow(root, tmp_path, "init", **own)
    assert done.status == 0, done.output
    assert filesystems.can_snapshot(root / "target")
    assert _tells(root) == "one"
    doctor = cow(root, tmp_path, "doctor", **own)
    assert "targets are cloned by snapshot" in doctor.output, doctor.output
    assert "is a dataset" in doctor.output
    again = cow(root, tmp_path, "init", **own)
    assert "already switched on" in again.output, again.output
    undone = cow(root, tmp_path, "uninstall", **own)
    assert "stays the ZFS dataset" in undone.output, undone.output

    # What plain Cargo does with a mount: it empties it, and cannot remove it.
    cleaned = cargo(root, tmp_path, "clean")
    assert "Device or resource busy" in cleaned.output
    assert list((root / "target").iterdir()) == []
    built = cargo(root, tmp_path, "build")
    assert (built.status, built.rustc) == (0, ["tiny"]), built.output
