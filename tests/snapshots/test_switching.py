"""Branch switches: what a branch had comes back, and nothing stale comes with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.projects import cargo, cow, git, repository, settle, write
from tests.support.sample import FILES

from cargo_cow import filesystems, snapshots
from cargo_cow.cargo.workspace import load
from cargo_cow.snapshots import switching
from cargo_cow.snapshots.state import State

ALL = ("--workspace", "--all-targets")


def _member(name: str, *uses: str) -> dict[str, str]:
    needs = "".join(f'{use} = {{ path = "../{use}" }}\n' for use in uses)
    return {
        f"{name}/Cargo.toml": f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n'
        f"[dependencies]\n{needs}"
    }


SMALL = {
    "Cargo.toml": '[workspace]\nmembers = ["app", "one", "two"]\nresolver = "2"\n',
    ".gitignore": "/target\nCargo.lock\n",
    **_member("one"),
    "one/src/lib.rs": 'pub fn mark() -> &\'static str { "one" }\n',
    **_member("two"),
    "two/src/lib.rs": 'pub fn mark() -> &\'static str { "two" }\n',
    **_member("app", "one", "two"),
    "app/src/main.rs": 'fn main() { println!("{} {}", one::mark(), two::mark()); }\n',
}


@pytest.fixture(params=["btrfs", "xfs"])
def sharing(request: pytest.FixtureRequest) -> Path:
    """A directory on each filesystem that shares extents."""
    directory = request.getfixturevalue(request.param)
    assert isinstance(directory, Path)
    return directory


def _project(root: Path, files: dict[str, str]) -> Path:
    repository(root, files)
    filesystems.create_target(root / "target")
    return root


def _mark(root: Path, crate: str, text: str) -> None:
    write(root, {f"{crate}/src/lib.rs": f'pub fn mark() -> &\'static str {{ "{text}" }}\n'})


def _commit(root: Path, crate: str, text: str) -> None:
    settle()
    _mark(root, crate, text)
    git(root, "commit", "-qam", f"{crate} {text}")
    settle()


def _build(root: Path, scratch: Path, *arguments: str) -> list[str]:
    """Build through us; the crates really compiled."""
    settle()
    built = cow(root, scratch, "build", *(arguments or ("--workspace",)))
    assert built.status == 0, built.output
    settle()
    return built.rustc


def _tells(root: Path) -> str:
    return subprocess.run(
        [root / "target/debug/app"], check=True, capture_output=True, text=True
    ).stdout.strip()


def _states(root: Path) -> list[State]:
    return [entry for entry in snapshots.list_snapshots(root) if isinstance(entry, State)]


def _switch(root: Path, branch: str) -> None:
    settle()
    git(root, "switch", "-q", branch)
    settle()


@pytest.fixture
def branches(sharing: Path, tmp_path: Path) -> Path:
    """``main`` and ``other``, which changed ``one``; both built, ``main`` first; on ``other``."""
    root = _project(sharing / "main", SMALL)
    _build(root, tmp_path)
    git(root, "switch", "-qc", "other")
    _commit(root, "one", "ONE")
    assert _build(root, tmp_path) == ["app", "one"]
    return root


def test_there_and_back_costs_no_compiler(branches: Path, tmp_path: Path) -> None:
    for branch, said in (("main", "one two"), ("other", "ONE two")) * 3:
        _switch(branches, branch)
        assert _build(branches, tmp_path) == []
        assert _tells(branches) == said
        assert cargo(branches, tmp_path, "build", "--workspace").rustc == []
    # Kept once for each branch, whatever the number of switches.
    assert len(_states(branches)) == 2


def test_the_next_edit_is_incremental_from_the_right_state(branches: Path, tmp_path: Path) -> None:
    _switch(branches, "main")
    assert _build(branches, tmp_path) == []
    settle()
    write(branches, {"one/src/lib.rs": 'pub fn mark() -> &\'static str { "uno" }\n'})
    told = cargo(branches, tmp_path, "build", "--workspace", RUSTC_LOG="", CARGO_INCREMENTAL="1")
    assert told.rustc == ["app", "one"]
    assert _tells(branches) == "uno two"


def test_every_trap_of_freshness_there_and_back(btrfs: Path, tmp_path: Path) -> None:
    root = _project(btrfs / "main", FILES)
    _build(root, tmp_path, *ALL)
    git(root, "switch", "-qc", "other")
    settle()
    write(
        root,
        {
            "util/src/inner.rs": 'pub const MARK: &str = "u2";\n',
            "old/data.txt": "old 2\n",
            "gen/schema.txt": "schema 2\n",
            "absolute/table.txt": "table 2\n",
            "reader/secret.txt": "secret 2\n",
            "reader/src/lib.rs": "pub fn secret() -> &'static str { hidden::read!() } // 2\n",
        },
    )
    git(root, "commit", "-qam", "other")
    assert "util" in _build(root, tmp_path, *ALL)
    for branch, mark in (("main", "1"), ("other", "2")) * 2:
        _switch(root, branch)
        assert _build(root, tmp_path, *ALL) == []
        said = _tells(root)
        for word in (f"u{mark}", f"old {mark}", f"schema {mark}", f"table {mark}"):
            assert word in said, said
        assert f"secret {mark}" in said


def test_a_merge_of_two_branches_uses_the_states_of_both(branches: Path, tmp_path: Path) -> None:
    root = branches
    _switch(root, "main")
    git(root, "switch", "-qc", "third")
    _commit(root, "two", "TWO")
    assert _build(root, tmp_path) == ["app", "two"]
    _switch(root, "main")
    assert _build(root, tmp_path) == []
    git(root, "merge", "-q", "--no-edit", "other", "third")
    # `one` is in the state of `other`, `two` in that of `third`; nobody ever linked both.
    assert _build(root, tmp_path) == ["app"]
    assert _tells(root) == "ONE TWO"


def test_stash_and_pop(sharing: Path, tmp_path: Path) -> None:
    root = _project(sharing / "main", SMALL)
    _build(root, tmp_path)
    _mark(root, "one", "work")
    assert _build(root, tmp_path) == ["app", "one"]
    for _ in range(2):
        settle()
        git(root, "stash", "-q")
        clean = _build(root, tmp_path)
        assert _tells(root) == "one two"
        settle()
        git(root, "stash", "pop", "-q")
        assert _build(root, tmp_path) == []
        assert _tells(root) == "work two"
    assert clean == []


def test_rebase_cherry_pick_and_pull_back(btrfs: Path, tmp_path: Path) -> None:
    root = _project(btrfs / "main", SMALL)
    _build(root, tmp_path)
    git(root, "switch", "-qc", "work")
    _commit(root, "two", "TWO")
    assert _build(root, tmp_path) == ["app", "two"]
    _switch(root, "main")
    assert _build(root, tmp_path) == []
    _commit(root, "one", "ONE")
    assert _build(root, tmp_path) == ["app", "one"]
    _switch(root, "work")
    before = git(root, "rev-parse", "HEAD")
    git(root, "rebase", "-q", "main")
    assert _build(root, tmp_path) == ["app"]
    assert _tells(root) == "ONE TWO"
    git(root, "reset", "-q", "--hard", before)
    assert _build(root, tmp_path) == []
    assert _tells(root) == "one TWO"
    git(root, "cherry-pick", "main")
    assert _build(root, tmp_path) == []
    assert _tells(root) == "ONE TWO"


def test_bisect_keeps_each_commit_once(btrfs: Path, tmp_path: Path) -> None:
    root = _project(btrfs / "main", SMALL)
    _build(root, tmp_path)
    commits = [git(root, "rev-parse", "HEAD")]
    for number in range(4):
        _commit(root, "one", f"one{number}")
        commits.append(git(root, "rev-parse", "HEAD"))
    for commit in (commits[2], commits[1], commits[3]):
        git(root, "checkout", "-q", commit)
        assert _build(root, tmp_path) == ["app", "one"]
    kept = len(_states(root))
    for commit in (commits[2], commits[0], commits[1], commits[3]) * 2:
        git(root, "checkout", "-q", commit)
        assert _build(root, tmp_path) == []
    assert len(_states(root)) == kept + 1


def test_edits_alone_keep_nothing(btrfs: Path, tmp_path: Path) -> None:
    root = _project(btrfs / "main", SMALL)
    _build(root, tmp_path)
    for number in range(3):
        _commit(root, "one", f"one{number}")
        assert _build(root, tmp_path) == ["app", "one"]
    assert _states(root) == []


# -- killed, full, at once


def _in_child(act: Callable[[], None]) -> int:
    """Run ``act`` in a process of its own; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a child never returns
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _prepare(root: Path) -> None:
    switching.switched(load(root))


@pytest.mark.parametrize("filesystem", ["btrfs", "xfs"])
def test_killed_while_grafting_a_unit_is_dirty_or_whole(
    filesystem: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _project(request.getfixturevalue(filesystem) / "main", SMALL)
    _build(root, tmp_path)
    git(root, "switch", "-qc", "other")
    _commit(root, "one", "ONE")
    _build(root, tmp_path)
    whole = filesystems.supersede
    outcomes = set()
    killed = 0
    for step in range(9):
        branch, said = (("main", "one two"), ("other", "ONE two"))[step % 2]
        _switch(root, branch)
        left = step

        def supersede(new: Path, old: Path) -> None:
            nonlocal left
            if left == 0:
                os._exit(9)
            left -= 1
            whole(new, old)

        monkeypatch.setattr(filesystems, "supersede", supersede)
        killed += _in_child(lambda: _prepare(root)) == 9
        monkeypatch.setattr(filesystems, "supersede", whole)
        built = cargo(root, tmp_path, "build", "--workspace")
        assert built.status == 0, built.output
        assert _tells(root) == said
        outcomes.add(tuple(built.rustc))
        # And the next one brings back what is right here, sweeping up.
        settle()
        _prepare(root)
        assert not list((root / "target/.cargo-cow").glob(".graft*"))
        assert cargo(root, tmp_path, "build", "--workspace").rustc == []
    assert killed > 4
    assert len(outcomes) > 1, outcomes  # some of the kills landed in the middle
