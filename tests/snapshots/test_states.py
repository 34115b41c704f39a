"""States of real targets on real filesystems, with the real Cargo."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NoReturn

import pytest
from tests.support.projects import SOURCE, cargo, cow, git, repository, settle, write
from tests.support.sample import FILES
from tests.support.states import TINY, built, edit, half_made, project

from cargo_cow import filesystems, snapshots
from cargo_cow.cargo.workspace import Workspace, load
from cargo_cow.errors import (
    FilesystemFailed,
    GitFailed,
    Locked,
    NoSpace,
    NoSuchState,
    StateDamaged,
    StateExists,
    StoreUnusable,
    TargetUnusable,
)
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.filesystems.clocks import clock
from cargo_cow.snapshots import pruning, state, store, taking
from cargo_cow.snapshots.state import State

ALL = ("--workspace", "--all-targets")


def _tells(checkout: Path) -> str:
    return subprocess.run(
        [checkout / "target/debug/tiny"], check=True, capture_output=True, text=True
    ).stdout


def _workspace(checkout: Path) -> Workspace:
    return load(checkout)


def _states(checkout: Path) -> list[State]:
    found = snapshots.list_snapshots(checkout)
    assert all(isinstance(entry, State) for entry in found), found
    return [entry for entry in found if isinstance(entry, State)]


def _store(checkout: Path) -> Path:
    return checkout / ".git/cargo-cow/states"


# -- there and back


def test_there_and_back_costs_no_compiler(sharing: Path, tmp_path: Path) -> None:
    root = project(sharing / "main", FILES)
    assert cow(root, tmp_path, "build", *ALL).status == 0
    first = snapshots.create_state("first", root)
    settle()
    git(root, "switch", "-qc", "other")
    write(
        root,
        {
            "util/src/inner.rs": 'pub const MARK: &str = "u2";\n',
            "old/data.txt": "old 2\n",
            "gen/schema.txt": "schema 2\n",
        },
    )
    git(root, "commit", "-qam", "other")
    assert "util" in cow(root, tmp_path, "build", *ALL).rustc
    snapshots.create_state("second", root)

    def output() -> str:
        return subprocess.run(
            [root / "target/debug/app"], check=True, capture_output=True, text=True
        ).stdout

    for name, branch, mark in (("first", "main", "1"), ("second", "other", "2")) * 2:
        settle()
        git(root, "switch", "-q", branch)  # and at once:
        done = snapshots.activate_cache(name, root)
        assert done.kept is None  # both are kept already
        built = cargo(root, tmp_path, "build", *ALL)
        assert (built.rustc, built.scripts) == ([], 0), built.output
        assert f"<1u{mark}>" in output()
        assert f"old {mark} secret 1" in output()
        assert f"schema {mark}" in output()
    told = {entry.name: (entry.branch, entry.commit, entry.clean) for entry in _states(root)}
    assert told["first"][:2] == ("main", git(root, "rev-parse", "main"))
    assert told["second"] == ("other", git(root, "rev-parse", "other"), False)  # Cargo.lock
    assert first.parent is None
    again = snapshots.create_state("third", root)
    assert again.parent == next(entry.id for entry in _states(root) if entry.name == "second")


def test_what_is_not_proven_is_built(tiny_any: Path, tmp_path: Path) -> None:
    snapshots.create_state("one", tiny_any)
    write(tiny_any, {"src/text": "two"})
    os.utime(tiny_any / "src/text", ns=(10**18, 10**18))  # older than the state
    done = snapshots.activate_cache("one", tiny_any)
    assert done.dropped
    assert cargo(tiny_any, tmp_path, "build").rustc == ["tiny"]
    assert _tells(tiny_any) == "two"


def test_what_was_live_is_kept_if_no_state_has_it(tiny_any: Path, tmp_path: Path) -> None:
    snapshots.create_state("one", tiny_any)
    edit(tiny_any, "two", tmp_path)
    settle()
    write(tiny_any, {"src/text": "one"})
    done = snapshots.activate_cache("one", tiny_any)
    assert done.kept is not None
    assert done.kept.origin == "kept"
    assert cargo(tiny_any, tmp_path, "build").rustc == []
    assert _tells(tiny_any) == "one"
    # Nothing was built since: nothing more is kept.
    assert snapshots.activate_cache("one", tiny_any).kept is None
    settle()
    write(tiny_any, {"src/text": "two"})
    assert snapshots.activate_cache(done.kept.id, tiny_any).kept is None
    assert cargo(tiny_any, tmp_path, "build").rustc == []
    assert _tells(tiny_any) == "two"
    assert len(_states(tiny_any)) == 2


def test_a_broken_or_missing_target_is_had_back(tiny: Path, tmp_path: Path) -> None:
    snapshots.create_state("good", tiny)
    for path in (tiny / "target/debug/deps").iterdir():
        path.write_bytes(b"spoilt")
    snapshots.activate_cache("good", tiny)
    assert cargo(tiny, tmp_path, "build").rustc == []
    assert _tells(tiny) == "one"
    filesystems.remove_target(tiny / "target")
    assert snapshots.activate_cache("good", tiny).kept is None
    assert cargo(tiny, tmp_path, "build").rustc == []
    assert _tells(tiny) == "one"


def test_a_state_serves_every_worktree_and_outlives_the_one_it_is_from(
    tiny: Path, tmp_path: Path
) -> None:
    there = tiny.parent / "there"
    git(tiny, "worktree", "add", "-q", str(there))
    edit(there, "two", tmp_path)
    snapshots.create_state("two", there)
    assert cow(tiny, tmp_path, "worktree", "remove", "--force", str(there)).status == 0
    settle()
    write(tiny, {"src/text": "two"})
    snapshots.activate_cache("two", tiny)
    assert cargo(tiny, tmp_path, "build").rustc == []
    assert _tells(tiny) == "two"


def test_the_commit_of_a_state_is_the_one_it_was_built_at(tiny: Path, tmp_path: Path) -> None:
    first = git(tiny, "rev-parse", "HEAD")
    time.sleep(1.1)  # a reflog counts in seconds
    write(tiny, {"src/text": "two"})
    git(tiny, "commit", "-qam", "two")
    git(tiny, "switch", "-qc", "topic", first)
    made = snapshots.create_state("before", tiny)
    assert made.branch == "main"
    assert made.clean is None
    # Built, or found unchanged by a build: it is of what is here.
    assert cow(tiny, tmp_path, "build").rustc == []
    made = snapshots.create_state("after", tiny)
    assert (made.commit, made.branch, made.clean) == (first, "topic", True)


def test_a_move_of_head_that_changes_no_file_is_no_other_build(tiny: Path) -> None:
    """A new branch, a renamed one, an amended message, a rebase onto itself."""
    git(tiny, "commit", "-q", "--allow-empty", "-m", "second")
    for arguments, branch in (
        (("switch", "-qc", "new"), "new"),
        (("branch", "-qm", "renamed"), "renamed"),
        (("commit", "-q", "--amend", "--allow-empty", "-m", "other words"), "renamed"),
        (("rebase", "-q", "--force-rebase", "--keep-empty", "HEAD~"), "renamed"),
        (("checkout", "-q", "--detach"), None),
        (("switch", "-q", "main"), "main"),
    ):
        git(tiny, *arguments)
        made = snapshots.create_state(None, tiny)
        assert (made.commit, made.branch) == (git(tiny, "rev-parse", "HEAD"), branch), arguments


# -- how it is stored


def test_a_state_on_btrfs_is_a_read_only_snapshot_that_shares_all(tiny: Path) -> None:
    made = snapshots.create_state("one", tiny)
    assert made.method == "snapshot"
    assert subvolumes.is_read_only(made.target)
    with pytest.raises(OSError, match="Read-only") as caught:
        (made.target / "debug/new").touch()
    assert caught.value.errno == errno.EROFS
    assert _store(tiny).stat().st_mode & 0o777 == 0o700
    assert (_store(tiny) / "CACHEDIR.TAG").is_file()
    assert git(tiny, "status", "--porcelain") == ""


def test_a_plain_directory_on_btrfs_becomes_a_read_only_subvolume(
    btrfs: Path, tmp_path: Path
) -> None:
    root = repository(btrfs / "main", TINY)
    (root / "target").mkdir()  # as Cargo does
    built(root, tmp_path)
    assert not subvolumes.is_subvolume(root / "target")
    made = snapshots.create_state("one", root)
    assert made.method == "reflink"
    assert subvolumes.is_read_only(made.target)
    # Checked with what the filesystem says of the file on both sides.
    program = root / "target/debug/tiny"
    os.sync()
    shared = pruning.measure_all([made], _workspace(root))
    assert shared.freed([made.id]) < program.stat().st_size / 2
    snapshots.activate_cache("one", root)
    assert subvolumes.is_subvolume(root / "target")
    assert cargo(root, tmp_path, "build").rustc == []


def test_a_subvolume_inside_a_target_is_in_the_state(tiny: Path) -> None:
    inner = tiny / "target/debug/inner"
    subvolumes.create(inner)
    (inner / "file").write_text("inside")
    done = cow(tiny, tiny.parent, "snapshot", "create", "nested")
    assert done.status == 0
    assert "1 subvolume(s) inside" in done.output
    made = _states(tiny)[0]
    assert made.method == "reflink"
    assert (made.target / "debug/inner/file").read_text() == "inside"


def test_no_reflinks_no_state_unless_a_copy_is_asked_for(ext4: Path, tmp_path: Path) -> None:
    root = built(repository(ext4 / "main", TINY), tmp_path)
    with pytest.raises(FilesystemFailed, match="full copy") as caught:
        snapshots.create_state("one", root)
    assert "--copy" in caught.value.hint
    assert _states(root) == []
    assert not _store(root).exists()
    made = snapshots.create_state("one", root, allow_copy=True)
    assert made.method == "copy"
    edit(root, "two", tmp_path)
    settle()
    write(root, {"src/text": "one"})
    assert snapshots.activate_cache("one", root).kept is not None
    assert cargo(root, tmp_path, "build").rustc == []
    assert _tells(root) == "one"


def test_a_target_on_another_filesystem_has_its_store_beside_it(
    tiny: Path, xfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARGO_TARGET_DIR", str(xfs / "far"))
    built(tiny, tmp_path)
    made = snapshots.create_state("far", tiny)
    assert made.path.parent == xfs / ".cargo-cow/states"
    assert (xfs / ".cargo-cow/.gitignore").read_text() == "*\n"
    edit(tiny, "two", tmp_path)
    settle()
    write(tiny, {"src/text": "one"})
    snapshots.activate_cache("far", tiny)
    assert cargo(tiny, tmp_path, "build").rustc == []
    # Another project's eyes do not see it.
    other = repository(xfs / "other", TINY)
    assert _states(other) == []


def test_a_simple_snapshot_needs_no_root(
    btrfs: Path, xfs: Path, unprivileged: Callable[..., object]
) -> None:
    for home in (btrfs, xfs):
        room = home / "room"
        room.mkdir()
        room.chmod(0o777)
        unprivileged(_snapshot_and_remove, room)
        assert list(room.iterdir()) == []


def _snapshot_and_remove(room: Path) -> None:
    filesystems.create_target(room / "target")
    (room / "target/debug").mkdir()
    (room / "target/debug/file").write_bytes(b"x" * 10_000)
    snapshots.create_snapshot(room / "target", room / "kept", True)
    assert (room / "kept/debug/file").read_bytes() == b"x" * 10_000
    for name in ("target", "kept"):
        filesystems.remove_target(room / name)


# -- a build runs


def test_a_snapshot_in_the_middle_of_a_build_is_usable(btrfs: Path, tmp_path: Path) -> None:
    files = {
        **TINY,
        "Cargo.toml": TINY["Cargo.toml"] + '[dependencies]\nleaf = { path = "leaf" }\n',
        "src/main.rs": 'fn main() { print!("{}", leaf::TEXT); }\n',
        "leaf/Cargo.toml": TINY["Cargo.toml"].replace("tiny", "leaf"),
        "leaf/src/lib.rs": 'pub const TEXT: &str = "one";\n',
        "build.rs": 'fn main() { while !std::path::Path::new("go").exists() {\n'
        "  std::thread::sleep(std::time::Duration::from_millis(20)); }\n"
        '  println!("cargo:rerun-if-changed=build.rs"); }\n',
        ".gitignore": "/target\nCargo.lock\ngo\n",
    }
    root = project(btrfs / "main", files)
    build = subprocess.Popen(["cargo", "build", "-q"], cwd=root, stderr=subprocess.DEVNULL)
    try:
        fingerprints = root / "target/debug/.fingerprint"
        until = time.monotonic() + 120
        while not list(fingerprints.glob("leaf-*/dep-lib-leaf")):
            assert time.monotonic() < until
            assert build.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)
        made = snapshots.create_state("middle", root)  # waits for nothing
        assert made.method == "snapshot"
        with pytest.raises(Locked):
            snapshots.activate_cache("middle", root, wait=False)
    finally:
        (root / "go").touch()
        assert build.wait(120) == 0
    assert snapshots.activate_cache("middle", root).kept is not None
    built = cargo(root, tmp_path, "build")
    assert "tiny" in built.rustc
    assert "leaf" not in built.rustc
    assert _tells(root) == "one"


def test_activation_waits_for_a_build(tiny: Path) -> None:
    snapshots.create_state("one", tiny)
    said: list[str] = []
    with (tiny / "target/debug/.cargo-lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Locked, match="Cargo is building"):
            snapshots.activate_cache("one", tiny, wait=False)
        before = (tiny / "target").stat().st_ino, (tiny / "target").stat().st_dev
        waiting = threading.Thread(
            target=lambda: snapshots.activate_cache("one", tiny, say=said.append)
        )
        waiting.start()
        while not said and waiting.is_alive():
            time.sleep(0.01)
        assert ((tiny / "target").stat().st_ino, (tiny / "target").stat().st_dev) == before
    waiting.join(60)
    assert "waiting for Cargo's build lock" in said[0]
    assert (tiny / "target").stat().st_dev != before[1]
    assert half_made(tiny) == []


def test_who_waits_for_the_lock_already_builds_first(tiny: Path) -> None:
    """A Cargo that waits has opened the lock file of what is live: it must stay live for it."""
    snapshots.create_state("one", tiny)
    path = tiny / "target/debug/.cargo-lock"
    still: list[bool] = []

    def cargo_waits() -> None:
        with path.open("w") as ours:
            fcntl.flock(ours, fcntl.LOCK_EX)
            for _ in range(2):
                named, held = path.stat(), os.fstat(ours.fileno())
                still.append((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino))
                time.sleep(0.3)

    for _ in range(3):
        said: list[str] = []
        with path.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            activating = threading.Thread(
                target=lambda said=said: snapshots.activate_cache("one", tiny, say=said.append)
            )
            activating.start()
            while not said and activating.is_alive():
                time.sleep(0.01)
            waiting = threading.Thread(target=cargo_waits)
            waiting.start()
            time.sleep(0.1)
        waiting.join(60)
        activating.join(60)
    assert still == [True] * 6


# -- what others do to a state


def _replace_text(path: Path) -> None:
    facts = path.stat()
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _edited(made: State) -> None:
    writable = made.seal.kind == "subvolume"
    if writable:
        subvolumes.set_read_only(made.target, False)
    _replace_text(made.target / "debug/tiny")
    if writable:
        subvolumes.set_read_only(made.target, True)


def _half_deleted(made: State) -> None:
    filesystems.remove_target(made.target)


def _moved(made: State) -> None:
    made.path.rename(made.path.with_name("20200101-000000-0000000000"))


def _described_otherwise(made: State) -> None:
    path = made.path / "state.json"
    path.write_text(path.read_text().replace('"branch":"main"', '"branch":"other"'))


def _cut_off(made: State) -> None:
    os.truncate(made.path / "state.json", 100)


def _replaced_by_a_file(made: State) -> None:
    filesystems.remove_target(made.path)
    made.path.write_text("not a state")


@pytest.mark.parametrize(
    "harm", [_edited, _half_deleted, _moved, _described_otherwise, _cut_off, _replaced_by_a_file]
)
def test_a_state_that_somebody_changed_is_told_and_never_used(
    tiny_any: Path, harm: Callable[[State], None]
) -> None:
    made = snapshots.create_state("one", tiny_any)
    snapshots.find_state("one", tiny_any)
    harm(made)
    before = (tiny_any / "target").stat().st_ino, (tiny_any / "target").stat().st_dev
    present = snapshots.list_snapshots(tiny_any)
    assert len(present) == 1
    with pytest.raises((StateDamaged, NoSuchState)) as caught:
        snapshots.activate_cache("one", tiny_any)
    assert str(caught.value).isprintable()
    if isinstance(caught.value, NoSuchState):
        with pytest.raises(StateDamaged):
            snapshots.activate_cache(present[0].id, tiny_any)
    with pytest.raises(StateDamaged):
        snapshots.find_state(present[0].id, tiny_any)
    assert ((tiny_any / "target").stat().st_ino, (tiny_any / "target").stat().st_dev) == before
    assert snapshots.delete_snapshots([present[0].id], tiny_any).refused == ()
    assert snapshots.list_snapshots(tiny_any) == []


def test_a_state_that_was_made_writable(tiny: Path) -> None:
    made = snapshots.create_state("one", tiny)
    subvolumes.set_read_only(made.target, False)
    with pytest.raises(StateDamaged, match="made writable"):
        snapshots.activate_cache(made.id, tiny)


def test_a_later_format_is_left_alone(tiny: Path) -> None:
    made = snapshots.create_state("one", tiny)
    path = made.path / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    with pytest.raises(StateDamaged) as caught:
        snapshots.activate_cache(made.id, tiny)
    assert "later cargo-cow" in caught.value.hint
    policy = snapshots.Policy(keep_last=0, keep_named=False)
    assert snapshots.prune_snapshots(policy, tiny)[0].going == ()


# -- names, and where there is nothing to do it with


def test_names_are_unique_and_states_are_found_by_name_and_id(tiny: Path) -> None:
    made = snapshots.create_state("grün", tiny)
    with pytest.raises(StateExists, match="grün"):
        snapshots.create_state("gru\u0308n", tiny)
    assert snapshots.find_state("grün", tiny) == made
    assert snapshots.find_state(made.id, tiny) == made
    assert snapshots.find_state(made.id[:15], tiny) == made
    snapshots.create_state(None, tiny)
    with pytest.raises(NoSuchState, match="may be any of"):
        snapshots.find_state("20", tiny)
    for wanted in ("green", "", "../x", "\n"):
        with pytest.raises(NoSuchState):
            snapshots.find_state(wanted, tiny)


def test_where_no_state_can_be(tiny: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    write(loose, TINY)
    with pytest.raises(GitFailed, match="not in a git checkout"):
        snapshots.create_state("one", loose)
    empty = repository(tiny.parent / "empty", TINY)
    with pytest.raises(TargetUnusable, match="there is no target"):
        snapshots.create_state("one", empty)
    (empty / "target").mkdir()
    with pytest.raises(TargetUnusable, match="nothing is built"):
        snapshots.create_state("one", empty)
    with pytest.raises(NoSuchState):
        snapshots.activate_cache("one", empty)
    assert snapshots.states_of(loose, loose / "target") == []


def test_a_store_of_somebody_else_or_open_to_others_is_refused(tiny: Path) -> None:
    snapshots.create_state("one", tiny)
    _store(tiny).chmod(0o777)
    with pytest.raises(StoreUnusable, match="written by others"):
        snapshots.activate_cache("one", tiny)
    _store(tiny).chmod(0o700)
    if os.geteuid() == 0:
        os.chown(_store(tiny), 65_534, 65_534)
        with pytest.raises(StoreUnusable, match="belongs to user 65534"):
            snapshots.create_state("two", tiny)
        assert snapshots.states_of(tiny, tiny / "target") == []
        os.chown(_store(tiny), 0, 0)
    assert [entry.name for entry in _states(tiny)] == ["one"]


def test_a_full_filesystem_leaves_nothing_behind(
    small_filesystem: Callable[..., Path], tmp_path: Path
) -> None:
    """A copy is sure to meet the end of the space, and goes the same way as a clone."""
    mount = small_filesystem("ext4", 96 << 20)
    root = built(repository(mount / "main", TINY), tmp_path)
    first = snapshots.create_state("first", root, allow_copy=True)
    with (mount / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"x" * 4096)
    with pytest.raises(NoSpace) as caught:
        snapshots.create_state("second", root, allow_copy=True)
    assert str(caught.value).isprintable()
    with pytest.raises(NoSpace):
        snapshots.activate_cache("first", root)
    for directory in (_store(root), root):
        assert half_made(directory) == []
    assert _tells(root) == "one"
    assert _states(root) == [first]
    state.verify(first)


def test_a_read_only_repository_says_so_in_one_line(
    tiny: Path, missing: Callable[[str], NoReturn]
) -> None:
    snapshots.create_state("one", tiny)
    chattr = shutil.which("chattr")
    if chattr is None or os.geteuid() != 0:
        missing("chattr +i needs root")
    subprocess.run([chattr, "+i", _store(tiny)], check=True)
    try:
        told = cow(tiny, tiny.parent, "snapshot", "create", "two")
        assert told.status == TargetUnusable.exit_code
        error, hint = told.output.splitlines()
        assert error.startswith("error: ")
        assert hint.startswith("  hint: ")
        assert cow(tiny, tiny.parent, "snapshot", "list").status == 0
    finally:
        subprocess.run([chattr, "-i", _store(tiny)], check=True)


# -- keeping house


def test_promote_prune_delete(tiny_any: Path) -> None:
    scratch = tiny_any.parent
    for name in ("one", "two"):
        snapshots.create_state(name, tiny_any)
    for _ in range(3):
        snapshots.create_state(None, tiny_any)
    chosen, before = snapshots.promote_snapshot("one", tiny_any)
    assert (chosen.baseline, before) == (True, None)
    _, before = snapshots.promote_snapshot("two", tiny_any)
    assert before is not None
    assert before.name == "one"
    assert [entry.name for entry in _states(tiny_any) if entry.baseline] == ["two"]
    told = cow(tiny_any, scratch, "snapshot", "prune", "--keep-last", "1", "--format", "json")
    assert told.status == 0, told.output
    assert len(_states(tiny_any)) == 5  # a plan, no more
    plan = json.loads(told.output)
    assert [entry["goes"] for entry in plan["states"]] == [False, False, True, True, False]
    assert plan["done"] is None
    told = cow(tiny_any, scratch, "snapshot", "prune", "--keep-last", "0", "--named", "--yes")
    assert told.status == 0, told.output
    assert [entry.name for entry in _states(tiny_any)] == ["two"]
    refused = cow(tiny_any, scratch, "snapshot", "delete", "two")
    assert refused.status == 2
    assert "is the baseline" in refused.output
    assert cow(tiny_any, scratch, "snapshot", "delete", "--force", "two").status == 0
    assert snapshots.list_snapshots(tiny_any) == []
    assert half_made(_store(tiny_any)) == []


def test_branches_decide_what_goes(tiny: Path) -> None:
    for branch in ("gone", "done"):
        git(tiny, "switch", "-qc", branch)
        # No file moved: what is built is a build of this branch as well.
        snapshots.create_state(None, tiny)
    git(tiny, "switch", "-q", "main")
    git(tiny, "branch", "-q", "-D", "gone")
    assert [entry.branch for entry in _states(tiny)] == ["gone", "done"]
    plan, _ = snapshots.prune_snapshots(
        snapshots.Policy(keep_last=9, drop_merged=True), tiny, dry_run=True
    )
    assert [decision.reason for decision in plan.going] == [
        "its branch gone is deleted",
        "its branch done is merged into main",
    ]


def test_what_comes_back_is_what_the_filesystem_says(tiny: Path, tmp_path: Path) -> None:
    """Two states share an artefact that the live target has no more: it comes back with both."""
    size = 3_000_000
    settle()
    (tiny / "target/debug/artefact").write_bytes(Random(1).randbytes(size))
    one, two = (snapshots.create_state(None, tiny) for _ in range(2))
    (tiny / "target/debug/artefact").unlink()
    os.sync()
    shared = pruning.measure_all([one, two], _workspace(tiny))
    assert shared.exact
    assert shared.freed([one.id]) < size / 10
    assert size <= shared.freed([one.id, two.id]) < size * 1.1


def test_a_state_that_is_being_cloned_is_not_deleted(tiny: Path) -> None:
    made = snapshots.create_state("one", tiny)
    with snapshots.in_use(made):
        done = snapshots.delete_snapshots(["one"], tiny)
        assert done.removed == ()
        assert "being cloned" in done.refused[0][1]
    assert snapshots.delete_snapshots(["one"], tiny).removed == (made.id,)


def test_what_killed_commands_left_is_reported_and_collected(tiny: Path) -> None:
    made = snapshots.create_state("one", tiny)
    orphan = filesystems.temporary_sibling(made.path.with_name(state.new_id()))
    orphan.mkdir()
    subvolumes.snapshot(made.target, orphan / "target", read_only=True)
    doomed = filesystems.temporary_sibling(made.path)
    made.path.rename(doomed)
    told = cow(tiny, tiny.parent, "snapshot", "list")
    assert "2 leftover(s)" in told.output
    assert orphan.exists()
    told = cow(tiny, tiny.parent, "snapshot", "create", "two")
    assert "removed 2 leftover(s)" in told.output
    assert not orphan.exists()
    assert not doomed.exists()
    assert [entry.name for entry in _states(tiny)] == ["two"]


def _count_subvolumes(below: Path) -> int:
    return len(subvolumes.nested(below))


def test_many_cycles_leak_nothing(tiny: Path) -> None:
    snapshots.create_state("base", tiny)
    before = _count_subvolumes(tiny)
    names = {path.name for path in tiny.iterdir()} | {".cargo-cow"}
    for number in range(30):
        (tiny / "target/debug/filler").write_bytes(Random(number).randbytes(20_000))
        snapshots.create_state("cycle", tiny)
        assert snapshots.activate_cache("cycle", tiny).kept is None
        assert snapshots.delete_snapshots(["cycle"], tiny).refused == ()
    assert _count_subvolumes(tiny) == before
    assert {path.name for path in tiny.iterdir()} == names
    assert half_made(tiny) == []
    assert [entry.name for entry in _states(tiny)] == ["base"]


# -- killed


def _killed(arguments: list[str], checkout: Path, after: float) -> bool:
    """Run a command and kill it after so many seconds; whether the kill hit it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "cargo_cow", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        child.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return True
    return False


def test_killed_during_activation_the_target_is_the_old_or_the_new(
    tiny_any: Path, tmp_path: Path
) -> None:
    root = tiny_any
    snapshots.create_state("one", root)
    edit(root, "two", tmp_path)
    started = time.monotonic()
    assert cow(root, tmp_path, "snapshot", "create", "two").status == 0
    whole = time.monotonic() - started
    edit(root, "three", tmp_path)  # what no state has: it must not be lost
    random = Random(4)
    hits = 0
    outcomes: dict[str, int] = {}
    for _ in range(12):
        hits += _killed(["snapshot", "activate", "one"], root, random.uniform(0.05, 1.6) * whole)
        # TINY ignores /target, by exact name: what is half made must not be committed.
        assert "??" not in git(root, "status", "--porcelain", "--untracked-files=all")
        told = _tells(root)
        outcomes[told] = outcomes.get(told, 0) + 1
        kept = [entry for entry in _states(root) if entry.origin == "kept"]
        for entry in _states(root):
            state.verify(entry)
        assert told in ("one", "three")
        if told == "one":
            assert kept, "what was live is lost"
            snapshots.activate_cache(kept[-1].id, root)
            assert _tells(root) == "three"
            snapshots.delete_snapshots([entry.id for entry in kept], root)
            # Now it is live alone again, as no state has it.
    assert hits, outcomes
    settle()
    write(root, {"src/text": "two"})
    snapshots.activate_cache("two", root)
    assert cargo(root, tmp_path, "build").rustc == []
    assert _tells(root) == "two"
    assert half_made(root) == []


def test_killed_during_prune_the_store_works(tiny_any: Path) -> None:
    root = tiny_any
    arguments = ["snapshot", "prune", "--keep-last", "1", "--yes", "--no-sizes"]
    for _ in range(6):
        snapshots.create_state(None, root)
    started = time.monotonic()
    assert not _killed(arguments, root, 60.0)
    whole = time.monotonic() - started
    random = Random(5)
    hits = 0
    for _ in range(10):
        while len(_states(root)) < 6:
            snapshots.create_state(None, root)
        before = {entry.id for entry in _states(root)}
        hits += _killed(arguments, root, random.uniform(0.5, 1.0) * whole)
        left = _states(root)
        assert {entry.id for entry in left} <= before
        assert max(before) in {entry.id for entry in left}
        for entry in left:
            state.verify(entry)
    assert hits
    snapshots.create_state("last", root)
    assert half_made(_store(root)) == []


# -- for donors


def test_donors_are_told_what_they_need(tiny: Path, tmp_path: Path) -> None:
    made = snapshots.create_state("one", tiny)
    edit(tiny, "two", tmp_path)
    newer = snapshots.create_state(None, tiny)
    there = tiny.parent / "there"
    git(tiny, "worktree", "add", "-q", str(there))
    found = snapshots.states_of(there, there / "target")
    assert [entry.id for entry in found] == [newer.id, made.id]
    assert found[1].commit == git(tiny, "rev-parse", "HEAD")
    assert (found[1].compiler or "").startswith("rustc ")
    assert found[1].target.is_dir()


def test_the_clock_of_a_store_is_not_read_in_a_state(tiny_any: Path) -> None:
    """A file made in a state for a moment would break its seal."""
    made = snapshots.create_state("one", tiny_any)
    snapshots.activate_cache("one", tiny_any)
    state.verify(made)
    assert made.taken <= clock(_store(tiny_any))
    assert taking.units_of(made.target) == state.read_units(made)
    assert store.usable(state.read(made.path)).id == made.id
