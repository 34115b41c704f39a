"""What the warehouse's workloads count, on a tiny program with one dependency from elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.projects import git, repository

from cargo_cow.bench import caches, processes, projects, sharing, steps, workloads
from cargo_cow.bench.caches import SCCACHE
from cargo_cow.bench.tools import COW_WAREHOUSE, PLAIN, SHIM_WAREHOUSE, Bench

_PACKAGE = '[package]\nname = "{}"\nversion = "1.0.0"\nedition = "2021"\n'
_SCRIPT = """
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").unwrap();
    std::fs::write(format!("{out}/g.rs"), "pub fn g() -> u32 { 7 }").unwrap();
}
"""


@pytest.fixture(scope="module", autouse=True)
def _probe(missing: Callable[[str], NoReturn]) -> None:
    """PROBE: the programs that the wheel installs are where it installs them."""
    for program in ("cargo-cow", "cargo-cow-native"):
        if shutil.which(program, path=processes.environment()["PATH"]) is None:
            missing(f"{program} is not installed beside this Python: pip install .")


def _say(_message: str) -> None:
    pass


@pytest.fixture
def bench(btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A program that depends on a git repository: Cargo keeps that outside of the scratch room."""
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo-home"))
    dependency = repository(
        btrfs / "dep",
        {
            "Cargo.toml": _PACKAGE.format("dep"),
            "build.rs": _SCRIPT,
            "src/lib.rs": 'include!(concat!(env!("OUT_DIR"), "/g.rs"));\n',
        },
    )
    own = repository(
        btrfs / "own",
        {
            ".gitignore": "/target\n",
            "Cargo.toml": _PACKAGE.format("app")
            + f'[dependencies]\ndep = {{ git = "file://{dependency}" }}\n',
            "src/main.rs": 'fn main() { println!("{}", dep::g()); }\n',
        },
    )
    subprocess.run(["cargo", "generate-lockfile", "--quiet"], cwd=own, check=True)
    git(own, "add", "-A")
    git(own, "commit", "-qm", "lock")
    room = btrfs / "room"
    room.mkdir()
    project = projects.own(own, room / "project", say=_say)
    with Bench(project, room, []) as bench:
        yield bench


def _count(sample: steps.Sample) -> tuple[int, int]:
    assert sample.ran is not None
    return sample.ran.rustc, len(sample.ran.scripts)


def test_another_project_differs_in_its_own_units_alone(bench: Bench) -> None:
    """Plain Cargo compiles the same units for it, as the names of their files tell."""
    sample = sharing.second_project(bench, PLAIN, 0)
    # The dependency's script and library; its own library.
    assert _count(sample) == (3, 1)
    assert sample.values["dependencies_rustc"] == 2
    assert sample.values["dependencies_scripts"] == 1
    root = projects.another(bench.project, bench.home(PLAIN) / "kept", "kept")
    for built in (root, bench.main(PLAIN)):
        bench.build(PLAIN, built)
    units = [
        {path.name for path in (target / "debug" / ".fingerprint").glob("dep-*")}
        for target in (root / "target", bench.target(bench.main(PLAIN)))
    ]
    assert units[0] == units[1] != set()
    assert git(root, "status", "--porcelain") == ""


def test_a_second_project_compiles_no_dependency(bench: Bench) -> None:
    sample = sharing.second_project(bench, SHIM_WAREHOUSE, 0)
    assert sample.values["dependencies_rustc"] == 0, sample.ran
    assert not (bench.home(SHIM_WAREHOUSE) / f"{SHIM_WAREHOUSE}-second-0").exists()


@pytest.mark.parametrize("tool", [COW_WAREHOUSE, SHIM_WAREHOUSE])
def test_a_removed_target_comes_back(bench: Bench, tool: str) -> None:
    sample = sharing.target_removed(bench, tool, 0)
    assert sample.ran is not None
    assert sample.ran.rustc == 0, sample.ran
    assert sample.values["still_rustc"] == 0
    if tool == SHIM_WAREHOUSE:
        assert sample.values["hits"] == 3  # the dependency's script and library, the program
        assert 0 < sample.values["hit_seconds"] < 10
    plain = sharing.target_removed(bench, PLAIN, 0)
    assert _count(plain) == (3, 1)


def test_a_script_that_always_runs_compiles_nothing(bench: Bench) -> None:
    plain = sharing.script_unchanged(bench, PLAIN, 0)
    assert _count(plain) == (1, 1)  # the program; the script itself is as it was
    ours = sharing.script_unchanged(bench, SHIM_WAREHOUSE, 0)
    assert _count(ours) == (0, 1)
    for tool in (PLAIN, SHIM_WAREHOUSE):
        assert git(bench.main(tool), "status", "--porcelain") == ""


def test_two_at_once_are_two_whole_builds(bench: Bench) -> None:
    sample = sharing.two_at_once(bench, PLAIN, 0)
    assert _count(sample) == (6, 2)
    with pytest.raises(processes.StepFailed, match="at once with plain failed"):
        bench.build_at_once(PLAIN, [bench.main(PLAIN), bench.room])


@pytest.mark.slow
def test_disk_is_counted_for_worktrees_and_projects(bench: Bench) -> None:
    sample = sharing.disk_shared(bench, COW_WAREHOUSE, 0)
    values = sample.values
    assert 0 < values["project_own_bytes"] < values["target_bytes"]
    assert values["worktrees_bytes"] <= 5 * values["worktree_bytes"]
    assert {path.name for path in bench.home(COW_WAREHOUSE).iterdir()} == {"main"}


def test_a_cold_build_finds_no_store_and_leaves_the_checkout(bench: Bench) -> None:
    """The store lies apart from the checkouts: emptying one must not take the others."""
    tools = [COW_WAREHOUSE]
    if caches.program_of(SCCACHE) is not None:
        tools.append(SCCACHE)
    for tool in tools:
        for run in range(2):
            sample = workloads.cold(bench, tool, run)
            assert _count(sample) == (3, 1)
            assert sample.values["cpu_seconds"] > 0


def test_what_a_build_leaves_running_is_waited_for_and_counted(tmp_path: Path) -> None:
    """A server goes on, and its time is no part of a build's."""
    text = f"#!{sys.executable}\nimport time\nwhile time.process_time() < 0.3:\n    pass\n"
    for name, more in (("cargo-cow", ""), ("server", "time.sleep(60)\n")):
        (tmp_path / name).write_text(text + more)
        (tmp_path / name).chmod(0o755)
    processes.adopt()
    try:
        before = processes.used()
        run = f"{tmp_path}/server >/dev/null 2>&1 & echo $!"
        server = int(processes.run(["sh", "-c", run], cwd=tmp_path, env={}).stdout)
        assert processes.used() - before < 0.25
        processes.run(["sh", "-c", f"{tmp_path}/cargo-cow >/dev/null 2>&1 &"], cwd=tmp_path, env={})
        assert 0.25 < processes.used() - before < 0.55
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    finally:
        processes.adopt(on=False)


def test_where_no_script_is_one_is_made(tmp_path: Path) -> None:
    root = tmp_path / "package"
    (root / "src").mkdir(parents=True)
    (root / "src" / "lib.rs").touch()
    (root / "Cargo.toml").write_text(_PACKAGE.format("none") + "build = false\n\n[workspace]\n")
    script = steps.declare_missing(root)
    assert script == root / "build.rs"
    assert projects.script_of(root) == script
    steps.declare_missing(root)
    assert script.read_text().count("cargo-cow-has-no-such-file") == 2
