"""Branch switches: what a branch had comes back, and nothing stale comes with it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.projects import SOURCE, cargo, cow, git, repository, run, settle, write
from tests.support.sample import FILES

from cargo_cow import filesystems, native, snapshots
from cargo_cow.cargo.target import Session, Target, sessions
from cargo_cow.cargo.workspace import load
from cargo_cow.errors import CowError
from cargo_cow.filesystems import btrfs as subvolumes
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


def test_the_way_back_asks_git_little(
    branches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of git costs as much as the proof of a hundred units."""
    from cargo_cow import git as gateway

    for branch in ("main", "other"):
        _switch(branches, branch)
        assert _build(branches, tmp_path) == []
    asked: list[list[str]] = []
    begin = gateway.Asked.__init__

    def ask(self: gateway.Asked, args: list[str], cwd: Path) -> None:
        asked.append(args)
        begin(self, args, cwd)

    monkeypatch.setattr(gateway.Asked, "__init__", ask)
    _switch(branches, "main")
    report = switching.switched(load(branches))
    assert report.grafted
    assert asked == []
    assert cargo(branches, tmp_path, "build", "--workspace").rustc == []


def test_the_next_edit_is_incremental_from_the_right_state(branches: Path, tmp_path: Path) -> None:
    def began(target: Path) -> dict[str, list[Session]]:
        (profile,) = Target(str(target)).profiles
        return sessions(profile)

    there = began(branches / "target")
    _switch(branches, "main")
    assert _build(branches, tmp_path) == []
    here = began(branches / "target")
    of_main = _states(branches)[0]
    # Every unit got the state that belongs to it; those that are the same never lost theirs.
    assert here == began(of_main.target)
    assert {crate for crate in here if here[crate] != there[crate]} == {"app", "one"}
    settle()
    _mark(branches, "one", "uno")
    assert cargo(branches, tmp_path, "build", "--workspace").rustc == ["app", "one"]
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


def test_plain_cargo_with_the_shim_and_a_hook(btrfs: Path, tmp_path: Path) -> None:
    """The hook alone keeps and grafts; records come from the shim, whatever git did since."""
    root = _project(btrfs / "main", SMALL)
    hook = [sys.executable, "-m", "cargo_cow", "hooks", "run", "post-checkout", str(root)]

    def build() -> list[str]:
        settle()
        wrapper = str(native.program())
        built = cargo(root, tmp_path, "build", "--workspace", RUSTC_WRAPPER=wrapper)
        assert built.status == 0, built.output
        settle()
        return built.rustc

    def switched(*words: str) -> None:
        settle()
        git(root, "switch", "-q", *words)
        settle()
        assert run(root, hook, tmp_path).status == 0

    assert build() == ["app", "one", "two"]
    switched("-c", "other")
    assert len(_states(root)) == 1
    _commit(root, "one", "ONE")
    assert build() == ["app", "one"]
    for branch, said in (("main", "one two"), ("other", "ONE two")) * 2:
        switched(branch)
        assert build() == []
        assert _tells(root) == said
    assert len(_states(root)) == 2


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


def test_two_at_once(branches: Path, tmp_path: Path) -> None:
    """Whoever comes second finds the work done, and nothing is done twice to the same files."""
    _switch(branches, "main")
    program = [sys.executable, "-m", "cargo_cow", "prepare", "--format", "json"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    running = [
        subprocess.Popen(program, cwd=branches, env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    reports = [json.loads(process.communicate()[0]) for process in running]
    assert all(process.returncode == 0 for process in running)
    assert max(report["grafted"] for report in reports) == 2
    assert cargo(branches, tmp_path, "build", "--workspace").rustc == []
    assert _tells(branches) == "one two"


def test_no_space_while_grafting_loses_nothing(
    branches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the space may come with any file: while staging, and while installing."""
    root = branches

    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    for name, calls in (("clone_parts", 0), ("supersede", 0), ("supersede", 6)):
        real = getattr(filesystems, name)
        left = calls

        def sometimes(*arguments: object, real: Callable[..., object] = real) -> object:
            nonlocal left
            left -= 1
            return full() if left < 0 else real(*arguments)

        _switch(root, "main")
        said: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(filesystems, name, full if name == "clone_parts" else sometimes)
            report = switching.switched(load(root), say=said.append)
        assert any("No space left" in line for line in said), said
        assert report.grafted <= 1
        assert not list((root / "target/.cargo-cow").glob(".graft*"))
        # All the same Cargo builds what is right, and the states have what they had.
        built = cargo(root, tmp_path, "build", "--workspace")
        assert built.status == 0
        assert _tells(root) == "one two"
        _switch(root, "other")
        assert _build(root, tmp_path) == []
        assert _tells(root) == "ONE two"


def test_a_filesystem_that_is_full(small_filesystem: Callable[..., Path], tmp_path: Path) -> None:
    mount = small_filesystem("xfs", 320 << 20)
    root = _project(mount / "main", SMALL)
    _build(root, tmp_path)
    git(root, "switch", "-qc", "other")
    _commit(root, "one", "ONE")
    _build(root, tmp_path)
    _switch(root, "main")
    with (mount / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"x" * 4096)
    said: list[str] = []
    with contextlib.suppress(CowError):
        switching.switched(load(root), say=said.append)
    (mount / "ballast").unlink()
    assert cow(root, tmp_path, "build", "--workspace").status == 0
    assert _tells(root) == "one two"
    assert cargo(root, tmp_path, "build", "--workspace").rustc == []


def test_a_damaged_state_is_passed_over(branches: Path, tmp_path: Path) -> None:
    root = branches
    _switch(root, "main")
    _build(root, tmp_path)
    for found in _states(root):
        target = found.target
        if subvolumes.is_subvolume(target):
            subvolumes.set_read_only(target, False)
        program = next(path for path in (target / "debug/deps").glob("app-*") if not path.suffix)
        program.write_bytes(b"not what Cargo linked")
    _switch(root, "other")
    assert _build(root, tmp_path) == ["app", "one"]
    assert _tells(root) == "ONE two"


def test_a_broken_target_is_had_back(branches: Path, tmp_path: Path) -> None:
    """Cargo's own clean build is not undone; who asks gets the last state, in one command."""
    root = branches
    _switch(root, "main")
    _build(root, tmp_path)
    for path in (root / "target/debug/deps").iterdir():
        path.write_bytes(b"broken")
    filesystems.remove_target(root / "target")
    assert set(_build(root, tmp_path)) == {"app", "one", "two"}
    filesystems.remove_target(root / "target")
    assert cow(root, tmp_path, "prepare").status == 0
    assert cargo(root, tmp_path, "build", "--workspace").rustc == []
    assert _tells(root) == "one two"


def test_what_was_not_finished_is_in_no_state(btrfs: Path, tmp_path: Path) -> None:
    root = _project(btrfs / "main", SMALL)
    _build(root, tmp_path)
    git(root, "switch", "-qc", "other")
    settle()
    write(root, {"app/src/main.rs": "fn main() { this does not compile }\n"})
    _mark(root, "one", "ONE")
    git(root, "commit", "-qam", "broken")
    assert cow(root, tmp_path, "build", "--workspace").status != 0
    _switch(root, "main")
    # `one` was finished on `other`, and is grafted over here; `app` was not.
    assert _build(root, tmp_path) == []
    assert _tells(root) == "one two"
    _switch(root, "other")
    settle()
    write(root, {"app/src/main.rs": SMALL["app/src/main.rs"]})
    assert _build(root, tmp_path) == ["app"]
    assert _tells(root) == "ONE two"


# -- what must not come back


def test_what_a_script_generated_is_not_what_it_would_generate(btrfs: Path, tmp_path: Path) -> None:
    """A script that writes into its package, where git ignores it: a switch leaves the file."""
    files = {
        **SMALL,
        ".gitignore": "/target\nCargo.lock\nmade.rs\n",
        "one/build.rs": """
fn main() {
    println!("cargo::rerun-if-changed=input.txt");
    let text = std::fs::read_to_string("input.txt").unwrap();
    std::fs::write("src/made.rs", format!("pub const MADE: &str = {:?};", text.trim())).unwrap();
}
""",
        "one/input.txt": "made 1\n",
        "one/src/lib.rs": "mod made;\npub fn mark() -> &'static str { made::MADE }\n",
    }
    root = _project(btrfs / "main", files)
    _build(root, tmp_path)
    git(root, "switch", "-qc", "other")
    settle()
    write(root, {"one/input.txt": "made 2\n"})
    git(root, "commit", "-qam", "other")
    _build(root, tmp_path)
    for branch, said in (("main", "made 1 two"), ("other", "made 2 two")) * 2:
        _switch(root, branch)
        _build(root, tmp_path)
        assert _tells(root) == said
    # And where somebody edits what was generated, that counts, as it does for Cargo.
    _switch(root, "main")
    _build(root, tmp_path)
    settle()
    write(root, {"one/src/made.rs": 'pub const MADE: &str = "by hand";\n'})
    _build(root, tmp_path)
    _switch(root, "other")
    _build(root, tmp_path)
    assert _tells(root) == "made 2 two"


def test_what_a_script_wrote_for_a_macro(btrfs: Path, tmp_path: Path) -> None:
    """The same where only a macro reads it: the shim saw that."""
    files = {
        **SMALL,
        ".gitignore": "/target\nCargo.lock\nsecret.txt\n",
        **_member("one", "hidden"),
        "one/build.rs": """
fn main() {
    println!("cargo::rerun-if-changed=input.txt");
    std::fs::copy("input.txt", "secret.txt").unwrap();
}
""",
        "one/input.txt": "read 1\n",
        "one/src/lib.rs": "pub fn mark() -> &'static str { hidden::read!() }\n",
        "hidden/Cargo.toml": FILES["hidden/Cargo.toml"],
        "hidden/src/lib.rs": FILES["hidden/src/lib.rs"],
    }
    files["Cargo.toml"] = files["Cargo.toml"].replace('"one"', '"one", "hidden"')
    root = _project(btrfs / "main", files)

    def build() -> None:
        settle()
        wrapper = str(native.program())
        assert cow(root, tmp_path, "build", "--workspace", RUSTC_WRAPPER=wrapper).status == 0
        settle()

    build()
    git(root, "switch", "-qc", "other")
    settle()
    write(root, {"one/input.txt": "read 2\n"})
    git(root, "commit", "-qam", "other")
    build()
    for branch, said in (("main", "read 1 two"), ("other", "read 2 two")) * 2:
        _switch(root, branch)
        build()
        assert _tells(root) == said
        # The next compile reads the file again: it must be what the script makes of this branch.
        write(root, {"one/src/lib.rs": files["one/src/lib.rs"] + "// edited\n"})
        build()
        assert _tells(root) == said
        write(root, {"one/src/lib.rs": files["one/src/lib.rs"]})


def test_a_hidden_input_changed_before_the_way_back(btrfs: Path, tmp_path: Path) -> None:
    root = _project(btrfs / "main", FILES)
    _build(root, tmp_path, *ALL)
    git(root, "switch", "-qc", "other")
    settle()
    write(root, {"reader/src/lib.rs": "pub fn secret() -> &'static str { hidden::read!() } // 2\n"})
    git(root, "commit", "-qam", "other")
    _build(root, tmp_path, *ALL)
    settle()
    write(root, {"reader/secret.txt": "secret 3\n"})
    git(root, "commit", "-qam", "secret")
    git(root, "checkout", "-q", "main")
    git(root, "checkout", "-q", "other", "--", "reader/secret.txt")
    # The files of `main` but for what the macro reads: the unit that `main` had is stale.
    assert "reader" in _build(root, tmp_path, *ALL)
    assert "secret 3" in _tells(root)


def test_a_grafted_unit_is_held_to_what_cargo_does_not_see(btrfs: Path, tmp_path: Path) -> None:
    root = _project(btrfs / "main", FILES)
    _build(root, tmp_path, *ALL)
    git(root, "switch", "-qc", "other")
    settle()
    write(root, {"reader/src/lib.rs": "pub fn secret() -> &'static str { hidden::read!() } // 2\n"})
    git(root, "commit", "-qam", "other")
    _build(root, tmp_path, *ALL)
    _switch(root, "main")
    assert _build(root, tmp_path, *ALL) == []
    settle()
    write(root, {"reader/secret.txt": "secret 4\n"})
    assert "reader" in _build(root, tmp_path, *ALL)
    assert "secret 4" in _tells(root)


def test_a_unit_is_not_put_on_another_build_of_its_dependency(btrfs: Path, tmp_path: Path) -> None:
    """``one`` was edited, edited back and rebuilt: what is live is right, and another build."""
    root = _project(btrfs / "main", SMALL)
    _build(root, tmp_path)
    git(root, "switch", "-qc", "other")
    settle()
    write(root, {"app/src/main.rs": SMALL["app/src/main.rs"].replace("{} {}", "{}-{}")})
    git(root, "commit", "-qam", "other")
    assert _build(root, tmp_path) == ["app"]
    for text in ("passing", "one"):
        settle()
        _mark(root, "one", text)
        # Plain Cargo looks for no other build.
        assert cargo(root, tmp_path, "build", "--workspace").rustc == ["app", "one"]
    assert _build(root, tmp_path) == []
    _switch(root, "main")
    # The state of `main` has an `app` against its own `one`: both come, or neither.
    assert _build(root, tmp_path) == []
    assert _tells(root) == "one two"
    (made,) = [
        json.loads(path.read_text())
        for path in (root / "target/debug/.fingerprint").glob("app-*/cow-record.json")
    ]
    built = dict(made["dependencies"])
    for unit in Target(str(root / "target")).units:
        if unit.key in built:
            assert unit.invoked() == built[unit.key]


# -- states as donors


def test_a_new_worktree_is_cloned_from_the_nearest_state(branches: Path, tmp_path: Path) -> None:
    root = branches
    _switch(root, "main")
    _build(root, tmp_path)
    _commit(root, "two", "far away")
    _build(root, tmp_path)
    there = root.parent / "there"
    # Here is `main`, edited; a state has what was built on `other`, and is nearest to it.
    added = cow(root, tmp_path, "worktree", "add", str(there), "other")
    assert added.status == 0, added.output
    assert cargo(there, tmp_path, "build", "--workspace").rustc == []
    assert _tells(there) == "ONE two"


def test_the_baseline_comes_first_at_equal_distance(btrfs: Path, tmp_path: Path) -> None:
    root = _project(btrfs / "main", SMALL)
    _build(root, tmp_path)
    first = snapshots.create_state("first", root)
    snapshots.create_state("second", root)
    snapshots.promote_snapshot("first", root)
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", str(there))
    report = json.loads(cow(there, tmp_path, "prepare", "--format", "json").output)
    assert report["donor"] == str(first.path)


def test_a_branch_off_an_old_baseline_compiles_only_what_drifted(
    btrfs: Path, tmp_path: Path
) -> None:
    root = _project(btrfs / "main", SMALL)
    _build(root, tmp_path)
    snapshots.create_state("green", root)
    snapshots.promote_snapshot("green", root)
    for number in range(10):
        _commit(root, "one", f"one{number}")
    filesystems.remove_target(root / "target")
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "prepare").status == 0
    assert cargo(there, tmp_path, "build", "--workspace").rustc == ["app", "one"]
    assert _tells(there) == "one9 two"


@pytest.mark.parametrize("filesystem", ["btrfs", "ext4"])
def test_another_checkout_gives_what_it_has_built(
    filesystem: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """By reflink, and by a copy where there is none: cheaper than a compiler all the same."""
    root = _project(request.getfixturevalue(filesystem) / "main", SMALL)
    _build(root, tmp_path)
    there = root.parent / "there"
    cow(root, tmp_path, "worktree", "add", "-b", "other", str(there))
    _commit(there, "one", "ONE")
    assert _build(there, tmp_path) == ["app", "one"]
    settle()
    git(root, "merge", "-q", "--ff-only", "other")
    # Nobody ever compiled it here.
    assert _build(root, tmp_path) == []
    assert _tells(root) == "ONE two"


def test_a_state_of_another_workspace_is_no_donor(btrfs: Path, tmp_path: Path) -> None:
    """One repository, two workspaces, and an editor with a target directory of its own."""
    files = {f"{side}/{name}": text for side in "ab" for name, text in SMALL.items()}
    root = repository(btrfs / "main", {**files, ".gitignore": "target\nother\nCargo.lock\n"})
    filesystems.create_target(root / "a/target")
    _build(root / "a", tmp_path)
    snapshots.create_state("of a", root / "a")
    for side, target in (("b", "target"), ("a", "other")):
        words = ["prepare", "--target-dir", target, "--format", "json"]
        report = json.loads(cow(root / side, tmp_path, *words).output)
        assert report["donor"] is None, report
        assert not (root / side / target / "debug").exists()
