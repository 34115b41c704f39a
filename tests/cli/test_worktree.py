"""The ``worktree`` commands: arguments, exit status, text and JSON."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.cli.conftest import FILES, Cow
from tests.support.projects import git, repository


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = repository(tmp_path / "project", FILES)
    monkeypatch.chdir(root)
    return root


def test_add_list_remove(cow: Cow, project: Path, tmp_path: Path) -> None:
    ran = cow("worktree", "add", "../fix", "-b", "fix", "--format", "json")
    assert ran.status == 0
    assert ran.json() == {
        "path": str(tmp_path / "fix"),
        "head": git(project, "rev-parse", "HEAD"),
        "branch": "fix",
        "workspace": str(tmp_path / "fix"),
        "target": str(tmp_path / "fix" / "target"),
        "prepared": None,
        "warning": None,
    }
    assert "Preparing worktree" in ran.err  # git's own words, not on stdout
    found = cow("worktree", "list", "--format", "json").json()
    assert [entry["branch"] for entry in found] == ["main", "fix"]
    assert [entry["main"] for entry in found] == [True, False]
    text = cow("worktree", "list").out
    assert text.splitlines()[0].split() == ["checkout", "branch", "size", "exclusive", "prepared"]
    assert str(tmp_path / "fix") in text
    dry = cow("worktree", "remove", "fix", "--dry-run")
    assert (dry.status, dry.out) == (0, f"would remove {tmp_path / 'fix'}\n")
    assert (tmp_path / "fix").is_dir()
    ran = cow("worktree", "remove", "../fix", "--format", "json")
    assert ran.json()[0]["removed"] is True
    assert not (tmp_path / "fix").exists()


def test_what_git_refuses(cow: Cow, project: Path, tmp_path: Path) -> None:
    ran = cow("worktree", "add", "../fix", "no-such-branch")
    assert (ran.status, ran.out) == (20, "")
    assert "invalid reference" in ran.err
    assert cow("worktree", "add", "../fix", "main").status == 20
    assert cow("worktree", "add", "../fix", "-b", "x", "-B", "y").status == 20
    assert cow("worktree", "add", "../fix", "--reason", "x").status == 2
    assert cow("worktree", "add").status == 2
    assert cow("worktree", "remove", "../fix").status == 20
    assert cow("worktree", "remove", ".").status == 20
    assert not (tmp_path / "fix").exists()


def test_several_are_checked_before_the_first_goes(cow: Cow, project: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert cow("worktree", "add", "-q", f"../{name}", "-d").status == 0
    (tmp_path / "two" / "mine.txt").write_text("")
    ran = cow("worktree", "remove", "../one", "../two")
    assert ran.status == 20
    assert (tmp_path / "one").is_dir()
    assert cow("worktree", "remove", "-f", "../one", "../two").status == 0


def test_quiet_says_nothing(cow: Cow, project: Path) -> None:
    ran = cow("worktree", "add", "-q", "../fix", "-d")
    assert (ran.status, ran.out, ran.err) == (0, "", "")


def test_a_warning_goes_to_stderr_and_json(
    cow: Cow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(tmp_path / "docs", {"README": ""})
    monkeypatch.chdir(root)
    ran = cow("worktree", "add", "../fix", "-d", "--format", "json")
    assert ran.status == 0
    assert "nothing to prepare" in ran.err
    assert "nothing to prepare" in ran.json()["warning"]


def test_odd_names_stay_on_one_line(cow: Cow, project: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"two\nlines \xff")
    git(project, "worktree", "add", "-q", "--detach", str(odd))
    lines = cow("worktree", "list", "--no-sizes").out.splitlines()
    assert len(lines) == 3
    assert "two\\nlines \\xff" in lines[2]


def test_prunable_and_locked_are_marked(cow: Cow, project: Path, tmp_path: Path) -> None:
    for name in ("gone", "held"):
        git(project, "worktree", "add", "-q", "--detach", str(tmp_path / name))
    git(project, "worktree", "lock", str(tmp_path / "held"))
    (tmp_path / "gone").rename(tmp_path / "away")
    out = cow("worktree", "list").out
    assert "[prunable]" in out
    assert "[locked]" in out


def test_outside_git(cow: Cow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["list"], ["add", "x"], ["remove", "x"]):
        ran = cow("worktree", *arguments)
        assert ran.status == 20
        assert "hint:" in ran.err
