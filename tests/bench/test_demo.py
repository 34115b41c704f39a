"""The whole demonstration and a whole small benchmark, on a project of a few lines."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from cargo_cow.bench import caches, demo, processes, projects, report, run, workloads
from cargo_cow.bench.tools import COW, PLAIN, REFLINK, SHIM, TOOLS, TOUCHED
from cargo_cow.cli import bench as command

_FILES = {
    "Cargo.toml": '[workspace]\nresolver = "2"\nmembers = ["app", "util"]\n',
    "Cargo.lock": 'version = 4\n\n[[package]]\nname = "app"\nversion = "0.1.0"\n'
    'dependencies = [\n "util",\n]\n\n[[package]]\nname = "util"\nversion = "0.1.0"\n',
    "app/Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
    '[dependencies]\nutil = { path = "../util" }\n',
    "app/src/main.rs": 'fn main() { println!("{}", util::number()); }\n',
    "util/Cargo.toml": '[package]\nname = "util"\nversion = "0.1.0"\nedition = "2021"\n',
    "util/build.rs": 'fn main() { println!("cargo::rerun-if-changed=build.rs"); }\n',
    "util/src/lib.rs": "pub fn number() -> u32 { 1 }\n",
    ".gitignore": "/target\n",
}


@pytest.fixture(scope="module", autouse=True)
def _probe(missing: Callable[[str], NoReturn]) -> None:
    """PROBE: the programs that the wheel installs are where it installs them."""
    path = processes.environment()["PATH"]
    for program in ("cargo-cow", "cargo-cow-native"):
        found = shutil.which(program, path=path)
        if found is None:
            missing(f"{program} is not installed beside this Python: pip install .")


def _say(_message: str) -> None:
    pass


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name, text in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    (root / "app" / "src" / "main.rs").write_text('fn main() { print!("{}", util::number()); }\n')
    git("commit", "-qam", "second")
    return root


def test_the_demonstration_shows_what_it_says(project: Path, btrfs: Path) -> None:
    told = demo.tell(path=project, directory=btrfs, say=_say)
    steps = {step.name: step for step in told.steps}
    assert list(steps) == [
        "first build",
        "new worktree, built",
        "nothing changed",
        "other commit, built",
        "and back, built",
    ]
    first = steps["first build"]
    # A build script, a library and its test, a program and its test; one run of the script.
    assert (first.plain.rustc, first.plain.scripts) == (5, 1)
    assert (first.cow.rustc, first.cow.scripts) == (5, 1)
    new = steps["new worktree, built"]
    assert (new.plain.rustc, new.plain.scripts) == (5, 1)
    assert (new.cow.rustc, new.cow.scripts) == (0, 0), new.cow.compiled
    assert steps["other commit, built"].cow.compiled == ("app", "app")
    assert steps["nothing changed"].cow.rustc == 0
    assert told.cow_disk.worktree.exclusive_bytes < told.plain_disk.worktree.exclusive_bytes / 10
    assert list(btrfs.iterdir()) == []
    assert not (project / "target").exists()
    value = json.loads(json.dumps(demo.as_json(told)))
    assert value["steps"][1]["cow"]["rustc"] == 0


# Their own tests are in test_sharing.py.
_SHARING = ("target-removed", "second-project", "script-unchanged", "disk-shared", "two-at-once")


def _measured(project: Path, directory: Path, names: Sequence[str]) -> report.Report:
    """One run with every tool that is installed: servers must come and go with it, too."""
    absent = [name for name in caches.NAMES if caches.program_of(name) is None]
    return run.run(
        str(project),
        other=None,
        runs=1,
        workloads=names,
        tools=[name for name in TOOLS if name not in absent],
        directory=directory,
        filesystem=None,
        cargo_args=["--workspace"],
        say=_say,
    )


@pytest.mark.slow
def test_every_workload_of_the_warehouse_runs_and_every_tool(project: Path, btrfs: Path) -> None:
    found = _measured(project, btrfs, _SHARING)
    # A workspace has no second project.
    assert {cell.workload for cell in found.measured} == {*_SHARING} - {"second-project"}
    for workload in workloads.WORKLOADS:
        for tool in workload.tools:
            if workload.name in {*_SHARING} - {"second-project"} and tool not in caches.NAMES:
                assert found.cell(workload.name, tool) is not None
    assert list(btrfs.iterdir()) == []


def test_every_workload_runs_and_every_tool(project: Path, btrfs: Path) -> None:
    names = [name for name in command._WORKLOADS if name not in _SHARING]
    found = _measured(project, btrfs, names)
    # Which function to edit is known of the large project alone.
    assert {cell.workload for cell in found.measured} == {*names} - {"body-edit"}
    for tool in (COW, SHIM):
        cell = found.cell("new-worktree", tool)
        assert cell is not None
        assert cell.counts("rustc") == (0,), report.ran(cell)
        assert cell.counts("scripts") == (0,)
        other = found.cell("other-commit", tool)
        in_place = found.cell("other-commit", workloads.IN_PLACE)
        assert other is not None
        assert in_place is not None
        assert other.counts("rustc") == in_place.counts("rustc") == (1,)
    plain = found.cell("new-worktree", PLAIN)
    assert plain is not None
    assert plain.counts("rustc") == (3,)
    for tool in (REFLINK, TOUCHED):
        assert found.cell("new-worktree", tool) is not None
    value = json.loads(json.dumps(report.as_json(found), allow_nan=False))
    assert {figure["name"] for figure in value["figures"]} >= {"prepare", "shim: per passed call"}
    assert list(btrfs.iterdir()) == []


def test_the_command_line_knows_what_there_is() -> None:
    """Names are written out there, so that --help need not load the workloads."""
    assert tuple(workload.name for workload in workloads.WORKLOADS) == command._WORKLOADS
    assert tuple(TOOLS) == command._TOOLS
    assert command._PROJECTS == projects.NAMES


def test_a_stale_program_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration's own check must be able to fail."""
    program = tmp_path / "target" / "debug" / "rg"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho ripgrep 14.1.0\n")
    program.chmod(0o755)

    class Stub:
        class project:  # noqa: N801
            name = "ripgrep"

        @staticmethod
        def target(root: Path) -> Path:
            return root / "target"

    demo.verify(Stub(), tmp_path, "v14.1.0")  # type: ignore[arg-type]
    with pytest.raises(processes.StepFailed, match="stale"):
        demo.verify(Stub(), tmp_path, "v14.1.1")  # type: ignore[arg-type]
