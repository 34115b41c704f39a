"""``status``, ``completion`` and rendering."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.cli.conftest import FILES, Cow
from tests.support.projects import SOURCE, git, repository, settle

from cargo_cow.cli import render
from cargo_cow.filesystems import Usage


@pytest.fixture
def project(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = repository(btrfs / "project", FILES)
    monkeypatch.chdir(root)
    return root


def test_never_built(cow: Cow, project: Path) -> None:
    value = cow("status", "--format", "json").json()
    assert (value["exists"], value["units"], value["rebuild"]) == (False, 0, None)
    assert value["method"] == "snapshot"
    assert value["checkout"]["branch"] == "main"
    text = cow("status")
    assert text.status == 0
    assert "nothing is built here" in text.out


def test_built_edited_and_cloned(
    cow: Cow, project: Path, monkeypatch: pytest.MonkeyPatch, program: Path
) -> None:
    monkeypatch.delenv("CARGO_COW_NATIVE")
    subprocess.run(["cargo", "build", "-q", "--offline"], check=True)
    settle()
    value = cow("status", "--format", "json").json()
    assert (value["exists"], value["units"], value["rebuild"]) == (True, 1, [])
    assert value["layouts"] == ["legacy"]
    assert value["usage"]["logical_bytes"] > 0
    assert "nothing that was built would be rebuilt" in cow("status").out
    (project / "src/lib.rs").write_text("pub fn two() {}\n")
    (entry,) = cow("status", "--format", "json", "--no-sizes").json()["rebuild"]
    assert entry["unit"].startswith("debug/tiny-")
    assert entry["code"] == "newer"  # built by plain Cargo: there is no record to compare with
    out = cow("status").out
    assert "1 unit would be rebuilt" in out
    assert "src/lib.rs" in out
    git(project, "worktree", "add", "-q", "../other")
    monkeypatch.chdir("../other")
    value = cow("status", "--format", "json").json()
    assert value["donor"] == str(project)
    assert not Path("target").exists()


def test_outside_a_project(cow: Cow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cow("status").status == 10


def test_manifest_path(
    cow: Cow, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value = cow("status", "--manifest-path", project / "Cargo.toml", "--format", "json").json()
    assert value["workspace"] == str(project)


# --- completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, cow: Cow) -> None:
    ran = cow("completion", shell)
    assert ran.status == 0
    assert f"cargo-cow completion {shell}" in ran.out
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=ran.out.encode(), check=True)


def test_completion_in_bash(cow: Cow, tmp_path: Path, missing: Callable[[str], NoReturn]) -> None:
    if shutil.which("bash") is None:
        missing("bash is not installed")
    script = cow("completion", "bash").out
    bin_directory = tmp_path / "programs"
    bin_directory.mkdir()
    program = bin_directory / "cargo-cow"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cargo_cow "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "--norc", "-c",
         script + "\nCOMP_WORDS=(cargo-cow worktree re); COMP_CWORD=2\n"
         '_cargo_cow_completion cargo-cow\necho "${COMPREPLY[@]}"'],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}",
             "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    assert done.stdout.split() == ["remove"]


def test_completion_of_an_unknown_shell(cow: Cow) -> None:
    assert cow("completion", "tcsh").status == 2


# --- rendering -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9994, "9.99 kB"), (9996, "10.0 kB"),
     (99_960, "100 kB"), (999_499, "999 kB"), (999_600, "1.00 MB"), (1_570_000_000, "1.57 GB"),
     (5 * 10**15, "5000 TB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert render.human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "just now"), (59, "just now"), (60, "1 minute ago"), (7200, "2 hours ago"),
     (90_000, "1 day ago")],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert render.human_age(seconds) == text


def test_usage_is_plain_data() -> None:
    assert render.usage_value(Usage(3, 2, 1, False)) == {
        "logical_bytes": 3,
        "exclusive_bytes": 2,
        "shared_bytes": 1,
        "exact": False,
    }


def test_a_table_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    render.table(("path", "size"), [("/a/[bold]b", "1 B"), ("/" + "x" * 50, "12 B")], right=(1,))
    out = capsys.readouterr().out
    assert "[bold]b" in out
    assert out.replace("\n", "").count("x") == 50
    assert "\x1b[3" not in out


def test_rich_is_not_loaded_for_a_pipe() -> None:
    """Importing rich costs more than most of these commands."""
    code = (
        "import sys; from cargo_cow.cli import render; "
        "render.table(('a', 'b'), [('x', '1')], right=(1,)); "
        "import cargo_cow.cli.worktree, cargo_cow.cli.init, cargo_cow.cli.doctor; "
        "import cargo_cow.cli.status, cargo_cow.cli.uninstall, cargo_cow.cli.completion; "
        "bad = [name for name in ('rich', 'tomlkit', 'subprocess', 'cargo_cow.prepare', "
        "'cargo_cow.filesystems') if name in sys.modules]; assert not bad, bad"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    assert (done.stderr, done.stdout) == ("", "a  b\nx  1\n")


@pytest.mark.parametrize(
    "name", ["worktree", "init", "uninstall", "doctor", "status", "completion"]
)
def test_help_teaches(name: str, cow: Cow) -> None:
    ran = cow(name, "--help")
    assert ran.status == 0
    assert "Example" in ran.out
    assert f"cargo cow {name}" in ran.out
