"""On Cargo's probe the shim has a missing target seeded: once, and only where that is wanted.

The real cargo calls the shim; ``cargo-cow`` is a script that notes how it was called and does
what a test says.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

NOTE = 'printf "%s|%s|%s\\n" "$*" "$PWD" "$CARGO_COW_SEEDING" >> "$NOTES"\n'


class Project(NamedTuple):
    """A repository with a linked worktree, beside a ``cargo-cow`` of ours."""

    main: Path
    worktree: Path
    program: Path
    notes: Path
    shim: Path

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {
            "RUSTC_WRAPPER": str(self.shim),
            "CARGO_COW_PROGRAM": str(self.program),
            "NOTES": str(self.notes),
            "CARGO_NET_OFFLINE": "true",
        }

    def cargo(
        self, *arguments: str, where: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["cargo", *arguments],
            cwd=where or self.worktree,
            env=self.environment() | variables,
            capture_output=True,
            text=True,
            check=True,
        )

    def does(self, script: str) -> None:
        self.program.write_text(f"#!/bin/sh\n{NOTE}{script}\n")
        self.program.chmod(0o755)

    def calls(self) -> list[tuple[str, ...]]:
        if not self.notes.exists():
            return []
        return [tuple(line.split("|")) for line in self.notes.read_text().splitlines()]

    def seeded(self, where: Path | None = None, options: str = "") -> list[tuple[str, ...]]:
        return [(f"prepare --seed{options}", str(where or self.worktree), "1")]

    def marker(self, checkout: Path) -> Path:
        git_dir = _git("rev-parse", "--absolute-git-dir", where=checkout)
        return Path(git_dir) / "cargo-cow" / "seeded"


def _git(*arguments: str, where: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=where, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def project(native_program: Path, tmp_path: Path) -> Project:
    main, worktree = tmp_path / "main", tmp_path / "feature"
    for name in ("Cargo.toml", "member/Cargo.toml", "src/lib.rs", "member/src/lib.rs"):
        (main / name).parent.mkdir(parents=True, exist_ok=True)
        (main / name).touch()
    package = '[package]\nname = "{}"\nversion = "0.1.0"\nedition = "2021"\n'
    (main / "Cargo.toml").write_text(package.format("root") + '[workspace]\nmembers=["member"]\n')
    (main / "member/Cargo.toml").write_text(package.format("member"))
    (main / ".gitignore").write_text("/target\nCargo.lock\n")
    _git("init", "--quiet", where=main)
    _git("add", ".", where=main)
    _git("commit", "--quiet", "-m", "first", where=main)
    _git("worktree", "add", "--quiet", str(worktree), where=main)
    made = Project(main, worktree, tmp_path / "cargo-cow", tmp_path / "notes", native_program)
    made.does("mkdir target; echo said by us")
    return made


# --- when -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["build", "check", "test", "run --example none", "doc"])
def test_a_first_build_is_seeded_before_cargo_opens_the_target(
    project: Project, command: str
) -> None:
    project.does("mkdir target; echo seed > target/from-donor")
    words = command.split()
    if words[0] == "run":
        words = ["run", "--example", "show"]
        (project.worktree / "examples").mkdir()
        (project.worktree / "examples/show.rs").write_text("fn main() {}")
    project.cargo(*words)
    assert project.calls() == project.seeded()
    assert (project.worktree / "target/from-donor").exists()
    assert project.marker(project.worktree).exists()
    assert not project.marker(project.main).exists()


def test_clean_is_followed_by_a_clean_build(project: Project) -> None:
    project.cargo("build")
    project.cargo("clean")
    project.cargo("build")
    assert project.calls() == project.seeded()


def test_a_target_that_is_there_is_left_alone(project: Project) -> None:
    (project.worktree / "target").mkdir()
    project.cargo("build")
    project.cargo("clean")
    project.cargo("build")
    assert project.calls() == []


def test_a_target_built_without_us_is_remembered(project: Project) -> None:
    """Cargo does not probe again, but it compiles."""
    project.cargo("build", RUSTC_WRAPPER="")
    project.cargo("build")
    project.marker(project.worktree).unlink()
    (project.worktree / "src/lib.rs").write_text("pub fn edited() {}")
    project.cargo("build")
    assert project.marker(project.worktree).exists()
    assert project.calls() == []


def test_a_compile_behind_another_wrapper_is_remembered(project: Project) -> None:
    """Our parent is not Cargo then, but the output tells where we are."""
    wrapper = project.notes.with_name("wrapper")
    wrapper.write_text(f'#!/bin/sh\n"{project.shim}" "$@"\n')
    wrapper.chmod(0o755)
    project.cargo("build", RUSTC_WRAPPER="")
    (project.worktree / "src/lib.rs").write_text("pub fn edited() {}")
    assert not project.marker(project.worktree).exists()
    project.cargo("build", RUSTC_WRAPPER=str(wrapper))
    assert project.marker(project.worktree).exists()


def test_the_main_checkout_is_seeded_from_its_worktrees(project: Project) -> None:
    project.cargo("build", where=project.main)
    assert project.calls() == project.seeded(project.main)
    assert project.marker(project.main).exists()


def test_below_the_workspace_root(project: Project) -> None:
    (project.worktree / "target").mkdir()
    project.cargo("build", where=project.worktree / "member")
    assert project.calls() == []


def test_without_a_sibling_there_is_nothing_to_seed_from(project: Project) -> None:
    _git("worktree", "remove", "--force", str(project.worktree), where=project.main)
    project.cargo("build", where=project.main)
    assert project.calls() == []
    assert project.marker(project.main).exists()


def test_outside_of_git(project: Project, tmp_path: Path) -> None:
    (tmp_path / "plain/src").mkdir(parents=True)
    (tmp_path / "plain/src/lib.rs").touch()
    (tmp_path / "plain/Cargo.toml").write_text('[package]\nname = "plain"\n')
    project.cargo("build", where=tmp_path / "plain")
    assert project.calls() == []


@pytest.mark.parametrize(
    "command",
    ["metadata --format-version=1 --filter-platform=x", "tree --target=all", "clean --release"],
)
def test_commands_that_build_nothing(project: Project, command: str) -> None:
    subprocess.run(
        ["cargo", *command.split()],
        cwd=project.worktree,
        env=project.environment(),
        capture_output=True,
        check=False,
    )
    assert project.calls() == []


def test_installing_a_program_says_nothing_about_the_target(
    project: Project, tmp_path: Path
) -> None:
    """It is compiled below a temporary directory."""
    tool = tmp_path / "tool"
    project.cargo("new", "--quiet", "--vcs=git", str(tool))
    _git("add", ".", where=tool)
    _git("commit", "--quiet", "-m", "first", where=tool)
    project.cargo(
        *("install", "--root", str(tmp_path / "installed"), "--git", f"file://{tool}"),
        CARGO_HOME=str(tmp_path / "cargo home"),
        CARGO_NET_OFFLINE="false",
    )
    assert (tmp_path / "installed/bin/tool").exists()
    assert project.calls() == []
    assert not project.marker(project.worktree).exists()


def test_seeding_does_not_seed(project: Project) -> None:
    project.cargo("build", CARGO_COW_SEEDING="1")
    assert project.calls() == []


def test_a_probe_by_hand_seeds_and_answers(project: Project) -> None:
    done = subprocess.run(
        [project.shim, "rustc", "-vV"],
        cwd=project.worktree,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("rustc ")
    assert done.stderr == "said by us\n"
    assert project.calls() == project.seeded()


def test_other_questions_do_not_seed(project: Project) -> None:
    for question in (["--version"], ["-Vv"], ["-vV", "--verbose"], ["--print=sysroot"]):
        subprocess.run(
            [project.shim, "rustc", *question],
            cwd=project.worktree,
            env=project.environment(),
            capture_output=True,
            check=False,
        )
    assert project.calls() == []


# --- where the target is ----------------------------------------------------------------------


def test_a_target_named_on_the_command_line(project: Project) -> None:
    project.does("mkdir -p 'else where'")
    project.cargo("build", "--target-dir", "else where")
    assert project.calls() == project.seeded(options=" --target-dir else where")


@pytest.mark.parametrize("variable", ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"])
def test_a_target_named_by_the_environment(
    project: Project, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "there")
    (project.worktree / "there").mkdir()
    project.cargo("build")
    assert project.calls() == []
    project.marker(project.worktree).unlink()
    monkeypatch.setenv(variable, "missing")
    project.cargo("build")
    assert len(project.calls()) == 1


@pytest.mark.parametrize("key", ["target-dir", "build-dir"])
def test_a_target_named_by_the_configuration_is_pythons_to_judge(
    project: Project, key: str
) -> None:
    (project.worktree / "target").mkdir()
    (project.worktree / ".cargo").mkdir()
    (project.worktree / ".cargo/config.toml").write_text(f'[build]\n{key} = "elsewhere"\n')
    project.does("true")
    project.cargo("build")
    assert project.calls() == project.seeded()
    assert project.marker(project.worktree).exists()  # by the compile that followed


def test_a_manifest_elsewhere(project: Project, tmp_path: Path) -> None:
    project.does(f"mkdir {project.worktree}/target")
    project.cargo("build", "--manifest-path=feature/Cargo.toml", where=tmp_path)
    assert project.calls() == project.seeded(tmp_path, " --manifest-path feature/Cargo.toml")
    assert project.marker(project.worktree).exists()


def test_arguments_of_the_program_that_is_run_are_not_cargos(project: Project) -> None:
    (project.worktree / "src/main.rs").write_text("fn main() {}")
    project.cargo("run", "--quiet", "-p", "root", "--", "--target-dir", "x")
    assert project.calls() == project.seeded()


def test_a_no_is_asked_for_once_in_a_build(project: Project) -> None:
    """Cargo probes twice; the answer to another build may be another."""
    project.does("true")
    for count in (1, 2):
        project.cargo("build")
        assert len(project.calls()) == count
        project.cargo("clean")
        project.marker(project.worktree).unlink()


# --- when it goes wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("script", ["exit 50", "kill -9 $$", "echo noise >&2; mkdir target"])
def test_whatever_happens_cargo_builds(project: Project, script: str) -> None:
    project.does(script)
    done = project.cargo("build")
    assert "noise" not in done.stderr
    assert (project.worktree / "target/debug").is_dir()
    assert project.marker(project.worktree).exists()


def test_without_the_python_side_cargo_builds(project: Project) -> None:
    project.program.unlink()
    project.cargo("build")
    project.marker(project.worktree).unlink()
    project.cargo("clean")
    # Without CARGO_COW_PROGRAM it is looked for beside the shim.
    project.cargo("build", CARGO_COW_PROGRAM="")
    assert project.marker(project.worktree).exists()


def test_a_git_directory_that_cannot_be_written(project: Project) -> None:
    marker = project.marker(project.worktree)
    marker.parent.write_text("a file where the directory should be")
    project.cargo("build")
    assert len(project.calls()) == 1


def test_an_interrupt_ends_the_seeding_and_then_the_shim(project: Project) -> None:
    project.does('trap "echo cleaned >> $NOTES; exit 1" INT\necho $$ > pid\nsleep 60 & wait')
    pid = project.worktree / "pid"
    with subprocess.Popen(
        [project.shim, "rustc", "-vV"],
        cwd=project.worktree,
        env=project.environment(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        while not (pid.exists() and pid.read_text().endswith("\n")):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert output == b""
    assert project.notes.read_text().endswith("cleaned\n")
