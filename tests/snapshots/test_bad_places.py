"""Where states meet what is not as it should be: full, read-only, forbidden, busy, in motion.

Whatever happens, it is told in one line with what to do, and nothing that was there is lost.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NoReturn

import pytest
from tests.support.projects import SOURCE, cargo, cow, git, repository, settle, write
from tests.support.states import TINY, built, edit, half_made, project

from cargo_cow import filesystems, snapshots
from cargo_cow.cargo.workspace import Workspace, load
from cargo_cow.errors import NoSpace, TargetUnusable
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.snapshots import activation, pruning, state, store, taking
from cargo_cow.snapshots.policy import Policy
from cargo_cow.snapshots.state import State

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _states(checkout: Path) -> list[State]:
    found = snapshots.list_snapshots(checkout)
    assert all(isinstance(entry, State) for entry in found), found
    return [entry for entry in found if isinstance(entry, State)]


def _tells(checkout: Path) -> str:
    return subprocess.run(
        [checkout / "target/debug/tiny"], check=True, capture_output=True, text=True
    ).stdout


def _nothing_half_made(checkout: Path) -> None:
    assert half_made(checkout / ".git/cargo-cow/states", checkout) == []


def _one_line(told: str) -> None:
    lines = told.strip().splitlines()
    assert len([line for line in lines if line.startswith("error:")]) == 1, told
    assert any(line.startswith("  hint:") for line in lines), told
    assert "Traceback" not in told


def _administrator(*command: str | Path) -> None:
    program = shutil.which(str(command[0]), path=PATH)
    assert program is not None
    subprocess.run([program, *command[1:]], check=True, capture_output=True)


# -- places


def test_a_filesystem_that_became_read_only(
    small_filesystem: Callable[..., Path], tmp_path: Path
) -> None:
    mount = small_filesystem("btrfs", 256 << 20)
    root = built(project(mount / "main", TINY), tmp_path)
    made = snapshots.create_state("one", root)
    snapshots.create_state(None, root)
    _administrator("mount", "-o", "remount,ro", mount)
    try:
        for arguments in (
            ("create", "two"),
            ("activate", "one"),
            ("promote", "one"),
            ("delete", "one"),
            ("prune", "--keep-last", "0", "--yes"),
        ):
            told = cow(root, tmp_path, "snapshot", *arguments)
            assert told.status == TargetUnusable.exit_code, (arguments, told.output)
            _one_line(told.output)
        assert "one" in cow(root, tmp_path, "snapshot", "list").output
        assert cow(root, tmp_path, "snapshot", "show", "one").status == 0
        assert cow(root, tmp_path, "snapshot", "prune").status == 0
        # What Cargo makes of it is what comes out of our builds, too.
        ours = cow(root, tmp_path, "build")
        assert ours.status == cargo(root, tmp_path, "build").status
        assert "Traceback" not in ours.output
    finally:
        _administrator("mount", "-o", "remount,rw", mount)
    assert len(_states(root)) == 2
    state.verify(made)
    assert _tells(root) == "one"
    _nothing_half_made(root)
    assert snapshots.activate_cache("one", root).kept is None


@pytest.fixture
def limited(
    small_filesystem: Callable[..., Path], tmp_path: Path, missing: Callable[[str], NoReturn]
) -> Iterator[Path]:
    """A built project in a subvolume that has reached the limit of its qgroup."""
    mount = small_filesystem("btrfs", 512 << 20)
    try:
        _administrator("btrfs", "quota", "enable", mount)
    except subprocess.CalledProcessError as error:
        missing(f"no quota on this Btrfs: {error.stderr!r}")
    subvolumes.create(mount / "home")
    root = built(project(mount / "home/main", TINY), tmp_path)
    snapshots.create_state("first", root)
    _administrator("btrfs", "quota", "rescan", "-w", mount)
    _administrator("btrfs", "qgroup", "limit", "1M", mount / "home")
    ballast = mount / "home/ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(os.urandom(4096))
            os.fsync(file.fileno())
    yield root
    _administrator("btrfs", "qgroup", "limit", "none", mount / "home")


def test_a_quota_that_is_used_up(limited: Path, tmp_path: Path) -> None:
    root = limited
    before = {entry.id for entry in _states(root)}
    for arguments in (("create", "second"), ("activate", "first")):
        told = cow(root, tmp_path, "snapshot", *arguments)
        if told.status != 0:  # what needs no byte of the subvolume's may well be done
            assert told.status == NoSpace.exit_code, told.output
            _one_line(told.output)
            assert "Disk quota" in told.output or "quota" in told.output
        _nothing_half_made(root)
        assert _tells(root) == "one"
    assert before <= {entry.id for entry in _states(root)}
    for entry in _states(root):
        state.verify(entry)
    # Room is made by what takes room away.
    done = cow(root, tmp_path, "snapshot", "delete", "first")
    assert done.status == 0, done.output
    (root.parent / "ballast").unlink()
    os.sync()
    snapshots.create_state("third", root)
    snapshots.activate_cache("third", root)
    assert cargo(root, tmp_path, "build").rustc == []


def test_a_btrfs_that_is_full(small_filesystem: Callable[..., Path], tmp_path: Path) -> None:
    mount = small_filesystem("btrfs", 160 << 20)
    root = built(project(mount / "main", TINY), tmp_path)
    first = snapshots.create_state("first", root)
    edit(root, "two", tmp_path)
    with (mount / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"x" * 65_536)
    os.sync()
    for arguments in (("create", "second"), ("activate", "first")):
        told = cow(root, tmp_path, "snapshot", *arguments)
        if told.status:
            assert told.status == NoSpace.exit_code, told.output
            _one_line(told.output)
        _nothing_half_made(root)
    # Either is whole, and what was live is live, or kept.
    if _tells(root) == "one":
        assert any(entry.origin == "kept" for entry in _states(root))
    for entry in _states(root):
        state.verify(entry)
    assert first.id in {entry.id for entry in _states(root)}
    # A full filesystem is got out of: states can be deleted.
    every = [entry.id for entry in _states(root)]
    assert cow(root, tmp_path, "snapshot", "delete", *every).status == 0
    (mount / "ballast").unlink()
    os.sync()
    assert cow(root, tmp_path, "build").status == 0


def _as_owner(workspace: Workspace) -> list[str]:
    """The life of states by somebody who may do no more than own files."""
    told = []
    taking.create(workspace, "one")
    activated = activation.activate(workspace, "one")
    told.append(activated.method)
    (workspace.build_dir / "debug/more").write_bytes(b"x" * 10_000)
    for _ in range(2):
        taking.create(workspace)
    plan = pruning.plan(workspace, Policy(keep_last=1))
    done = pruning.prune(workspace, plan, say=told.append)
    told.append(f"{len(done.removed)} removed")
    return told


def test_without_root_all_of_it_works(
    btrfs: Path, xfs: Path, tmp_path: Path, unprivileged: Callable[..., list[str]]
) -> None:
    for home, method in ((btrfs, "snapshot"), (xfs, "reflink")):
        root = built(project(home / "main", TINY), tmp_path)
        workspace = load(root)
        _administrator("chown", "-R", "nobody", root)
        assert unprivileged(_as_owner, workspace) == [method, "1 removed"]
        assert half_made(root) == []


def _delete_another_owners(workspace: Workspace, identity: str) -> tuple[list[str], list[str]]:
    project_ = store.project_of(workspace.root)
    build_dir = Path(os.path.realpath(workspace.build_dir))
    said: list[str] = []
    found = store.named(project_, build_dir, identity)[1]
    done = pruning.remove(project_, build_dir, [found], say=said.append)
    left = [str(path) for home in store.stores(project_, build_dir) for path in home.closed()]
    assert list(done.removed) == [identity]
    return said, left


def test_a_state_that_may_not_be_deleted_is_told_and_left_over(
    tiny: Path,
    unprivileged: Callable[..., tuple[list[str], list[str]]],
    missing: Callable[[str], NoReturn],
) -> None:
    """Made by root (`sudo cargo cow …`) in a store that is another's."""
    if os.geteuid() != 0:
        missing("needs two users")
    made = snapshots.create_state("of root", tiny)
    workspace = load(tiny)
    for directory, names, files in os.walk(tiny):
        if Path(directory) == made.path:
            names.clear()
            continue
        for name in (".", *files):
            os.chown(Path(directory, name), 65_534, 65_534, follow_symlinks=False)
    os.chown(made.path, 0, 0)
    assert made.target.stat().st_uid == 0
    said, left = unprivileged(_delete_another_owners, workspace, made.id)
    assert len(said) == 1
    assert "some of it is left" in said[0]
    assert len(left) == 1
    # Root takes it away with the next command.
    _administrator("chown", "root", tiny / ".git/cargo-cow/states")
    home = store.stores(store.project_of(tiny), tiny / "target")[0]
    assert len(home.collect()) == 1
    assert home.leftovers() == []


# -- git in unusual conditions


def test_a_detached_head_is_no_deleted_branch(tiny: Path, tmp_path: Path) -> None:
    git(tiny, "switch", "-q", "--detach")
    edit(tiny, "two", tmp_path)
    made = snapshots.create_state(None, tiny)
    assert (made.branch, made.clean) == (None, False)
    going = snapshots.prune_snapshots(Policy(drop_merged=True), tiny)[0].going
    assert [each.reason for each in going] == []
    git(tiny, "checkout", "-q", "--", "src/text")
    git(tiny, "switch", "-q", "main")
    settle()
    write(tiny, {"src/text": "two"})
    snapshots.activate_cache(made.id, tiny)
    assert cargo(tiny, tmp_path, "build").rustc == []
    assert _tells(tiny) == "two"


def test_a_repository_that_is_a_submodule(btrfs: Path, tmp_path: Path) -> None:
    origin = repository(btrfs / "origin", TINY)
    outer = repository(btrfs / "outer", {"readme": "outer"})
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(origin), "inner")
    inner = outer / "inner"
    filesystems.create_target(inner / "target")
    built(inner, tmp_path)
    made = snapshots.create_state("one", inner)
    assert made.path.parent == outer / ".git/modules/inner/cargo-cow/states"
    assert made.method == "snapshot"
    assert git(outer, "status", "--porcelain", "--ignore-submodules=none") == (
        "A  .gitmodules\nA  inner"
    )
    edit(inner, "two", tmp_path)
    settle()
    git(inner, "checkout", "-q", "--", "src/text")
    assert snapshots.activate_cache("one", inner).kept is not None
    assert cargo(inner, tmp_path, "build").rustc == []
    # The repository around it is another project.
    assert store.stores(store.project_of(outer), outer / "target") == []
    there = btrfs / "there"
    git(inner, "worktree", "add", "-q", str(there), "HEAD")
    assert [entry.name for entry in snapshots.states_of(there, there / "target")][-1] == "one"


def test_in_the_middle_of_a_bisect(tiny: Path, tmp_path: Path) -> None:
    for text in ("two", "three", "four"):
        write(tiny, {"src/text": text})
        git(tiny, "commit", "-qam", text)
    git(tiny, "bisect", "start", "HEAD", "HEAD~3")
    here = git(tiny, "rev-parse", "HEAD")
    built(tiny, tmp_path)
    text = _tells(tiny)
    made = snapshots.create_state("bisecting", tiny)
    assert (made.commit, made.branch, made.clean) == (here, None, True)
    git(tiny, "bisect", "good")
    built(tiny, tmp_path)
    kept = snapshots.create_state(None, tiny)
    git(tiny, "bisect", "reset")
    settle()
    git(tiny, "checkout", "-q", here)
    snapshots.activate_cache("bisecting", tiny)
    assert cargo(tiny, tmp_path, "build").rustc == []
    assert _tells(tiny) == text
    state.verify(kept)


# -- others at work


def test_activation_under_programs_that_run_from_the_target(tiny_any: Path, tmp_path: Path) -> None:
    """What an editor does: macros mapped into memory, programs running, directories open."""
    root = tiny_any
    write(root, {"src/main.rs": SLEEPER})
    built(root, tmp_path)
    snapshots.create_state("one", root)
    program = subprocess.Popen(
        [root / "target/debug/tiny"],
        cwd=root / "target/debug/deps",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    held = os.open(root / "target/debug", os.O_RDONLY | os.O_DIRECTORY)
    try:
        open_file = (root / "target/debug/extra").open("w+b")
        open_file.write(b"what no state has")
        open_file.flush()
        for _ in range(2):
            snapshots.activate_cache("one", root)
        assert program.poll() is None
        answer, _ = program.communicate("go\n", timeout=30)
        assert answer == "one"
        open_file.seek(0)
        assert open_file.read() == b"what no state has"
        open_file.close()
    finally:
        os.close(held)
        program.kill()
        program.wait()
    _nothing_half_made(root)
    assert cargo(root, tmp_path, "build").rustc == []


SLEEPER = """fn main() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    print!("{}", include_str!("text"));
}
"""


def test_a_cargo_that_watches_is_told_apart_by_its_lock(tiny: Path, tmp_path: Path) -> None:
    """Cargo after Cargo, as an editor runs them, while states are activated."""
    snapshots.create_state("one", tiny)
    edit(tiny, "two", tmp_path)
    snapshots.create_state("two", tiny)
    stop = threading.Event()
    wrong: list[str] = []

    def checks() -> None:
        while not stop.is_set():
            done = subprocess.run(
                ["cargo", "build", "-q"], cwd=tiny, capture_output=True, text=True, check=False
            )
            if done.returncode:
                wrong.append(done.stderr)

    running = threading.Thread(target=checks)
    running.start()
    try:
        for name in ("one", "two") * 3:
            snapshots.activate_cache(name, tiny)
    finally:
        stop.set()
        running.join(60)
    assert wrong == []
    assert cargo(tiny, tmp_path, "build").status == 0
    assert _tells(tiny) == "two"
    _nothing_half_made(tiny)


WAITING = {
    **TINY,
    "Cargo.toml": TINY["Cargo.toml"] + '[dependencies]\nleaf = { path = "leaf" }\n',
    "src/main.rs": 'fn main() { print!("{} {}", leaf::TEXT, include_str!("text")); }\n',
    "leaf/Cargo.toml": TINY["Cargo.toml"].replace("tiny", "leaf"),
    "leaf/src/lib.rs": 'pub const TEXT: &str = include_str!("text");\n',
    "leaf/src/text": "one",
    "build.rs": 'fn main() { while !std::path::Path::new("go").exists() {\n'
    "  std::thread::sleep(std::time::Duration::from_millis(20)); }\n"
    '  println!("cargo:rerun-if-changed=build.rs"); }\n',
    ".gitignore": "/target\nCargo.lock\ngo\n",
}


@pytest.mark.parametrize("hooked", [False, True], ids=["without hooks", "with hooks"])
def test_a_switch_in_the_middle_of_a_build(
    btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hooked: bool
) -> None:
    """The build reads some files of one branch and some of the other; nothing of it is believed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    root = project(btrfs / "main", WAITING)
    git(root, "switch", "-qc", "other")
    write(root, {"src/text": "two", "leaf/src/text": "two"})
    git(root, "commit", "-qam", "two")
    git(root, "switch", "-q", "main")
    if hooked:
        assert cow(root, tmp_path, "hooks", "install").status == 0
    build = subprocess.Popen(["cargo", "build", "-q"], cwd=root, stderr=subprocess.DEVNULL)
    try:
        fingerprints = root / "target/debug/.fingerprint"
        until = time.monotonic() + 120
        while not list(fingerprints.glob("leaf-*/dep-lib-leaf")):
            assert time.monotonic() < until
            assert build.poll() is None
            time.sleep(0.05)
        settle()
        started = time.monotonic()
        git(root, "switch", "-q", "other")
        assert time.monotonic() - started < 10
        middle = snapshots.create_state("middle", root)
        assert middle.commit is None or middle.branch in ("main", "other", None)
    finally:
        (root / "go").touch()
        assert build.wait(120) == 0
    # Whatever order things are done in, what is built is what is checked out.
    for branch, text in (("other", "two two"), ("main", "one one")):
        git(root, "switch", "-q", branch)
        done = cow(root, tmp_path, "build")
        assert done.status == 0, done.output
        assert _tells(root) == text
        snapshots.activate_cache("middle", root)
        assert cargo(root, tmp_path, "build").status == 0
        assert _tells(root) == text


def test_a_hook_that_is_killed(tiny_any: Path, tmp_path: Path) -> None:
    """At any moment: what plain Cargo builds afterwards is what is checked out."""
    root = tiny_any
    git(root, "switch", "-qc", "other")
    write(root, {"src/text": "two"})
    git(root, "commit", "-qam", "two")
    built(root, tmp_path)
    text = {"main": "one", "other": "two"}
    arguments = [sys.executable, "-m", "cargo_cow", "hooks", "run", "post-checkout", "."]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}

    def hook(after: float) -> bool:
        child = subprocess.Popen(
            arguments, cwd=root, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            child.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return True
        return False

    git(root, "switch", "-q", "main")
    started = time.monotonic()
    assert not hook(60.0)
    whole = time.monotonic() - started
    random = Random(8)
    hits = 0
    for turn in range(10):
        branch = "main" if turn % 2 else "other"
        settle()
        git(root, "switch", "-q", branch)
        hits += hook(random.uniform(0.3, 1.0) * whole)
        assert "??" not in git(root, "status", "--porcelain", "--untracked-files=all")
        assert cargo(root, tmp_path, "build").status == 0
        assert _tells(root) == text[branch]
    assert hits
    for entry in _states(root):
        state.verify(entry)
    # What was left is swept up by those that are let live.
    settle()
    git(root, "switch", "-q", "other")
    assert not hook(60.0)
    snapshots.create_state("last", root)
    _nothing_half_made(root)
