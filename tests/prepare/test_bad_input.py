"""Bad input: one clear line each, and nothing lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.projects import Build, cargo, cow, git, repository, settle

from cargo_cow.prepare.audit import audit

_FILES = {
    "Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/main.rs": 'fn main() { println!("{}", env!("CARGO_PKG_NAME")); }\n',
    "build.rs": 'fn main() { println!("cargo:rerun-if-changed=build.rs"); }\n',
}


@pytest.fixture
def project(btrfs: Path, tmp_path: Path) -> Path:
    root = repository(btrfs / "main", _FILES)
    assert cargo(root, tmp_path, "build").status == 0
    settle()
    return root


def _one_clear_line(result: Build, *words: str) -> None:
    assert "Traceback" not in result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.output
    for word in words:
        assert word in result.output


def test_not_a_cargo_project(tmp_path: Path) -> None:
    for command in ("prepare", "explain", "audit"):
        result = cow(tmp_path, tmp_path, command)
        assert result.status == 10
        _one_clear_line(result, "Cargo.toml", "hint")
    # Cargo's own verbs fail with Cargo's own words and status.
    result = cow(tmp_path, tmp_path, "build")
    assert result.status == 101
    assert "could not find `Cargo.toml`" in result.output


def test_without_git(project: Path, tmp_path: Path) -> None:
    subprocess.run(["rm", "-rf", project / ".git"], check=True)
    assert cow(project, tmp_path, "build", "-v").rustc == []
    os.utime(project / "src/main.rs")
    assert cow(project, tmp_path, "build", "-v").rustc == []


def test_no_git_program(project: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cargo", "rustc", "cc", "ld", "sh", "env", "rustup"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            (programs / name).symlink_to(found.stdout.strip())
    there = project.parent / "there"
    git(project, "worktree", "add", "-q", str(there))
    result = cow(there, tmp_path, "prepare", PATH=str(programs))
    assert result.status == 0, result.output
    assert "nothing to prepare" in result.output


def test_a_bare_repository_with_worktrees_only(project: Path, tmp_path: Path) -> None:
    bare = project.parent / "bare"
    git(project, "clone", "-q", "--bare", str(project), str(bare))
    first, second = project.parent / "first", project.parent / "second"
    git(bare, "worktree", "add", "-q", str(first))
    git(bare, "worktree", "add", "-q", "--detach", str(second))
    assert cow(first, tmp_path, "build", "-v").status == 0
    settle()
    assert cow(second, tmp_path, "build", "-v").rustc == []


def test_a_worktree_whose_main_checkout_is_gone(project: Path, tmp_path: Path) -> None:
    there = project.parent / "there"
    git(project, "worktree", "add", "-q", str(there))
    subprocess.run(["rm", "-rf", project], check=True)
    result = cow(there, tmp_path, "prepare")
    assert result.status == 0, result.output
    assert "nothing to prepare" in result.output
    assert cow(there, tmp_path, "build", "-v").status == 0


def test_a_target_that_is_a_symlink(project: Path, tmp_path: Path) -> None:
    elsewhere = project.parent / "elsewhere"
    (project / "target").rename(elsewhere)
    (project / "target").symlink_to(elsewhere)
    os.utime(project / "src/main.rs")
    assert cow(project, tmp_path, "build").status == 0
    settle()
    os.utime(project / "src/main.rs")
    assert cow(project, tmp_path, "build", "-v").rustc == []
    assert (project / "target").is_symlink()


def test_a_target_that_is_a_file_or_a_dangling_symlink(project: Path, tmp_path: Path) -> None:
    there = project.parent / "there"
    git(project, "worktree", "add", "-q", str(there))
    (there / "target").write_text("mine\n")
    result = cow(there, tmp_path, "prepare")
    assert result.status == 32
    _one_clear_line(result, "not a directory", "hint")
    assert (there / "target").read_text() == "mine\n"
    (there / "target").unlink()
    (there / "target").symlink_to(there / "nowhere")
    result = cow(there, tmp_path, "prepare")
    assert result.status == 32
    assert (there / "target").is_symlink()


def test_a_target_of_somebody_else(
    project: Path, tmp_path: Path, unprivileged: Callable[..., object]
) -> None:
    settle()
    assert cow(project, tmp_path, "build", "-v").rustc == []
    (project / "src/main.rs").write_text("fn main() {}\n")
    os.utime(project / "src/main.rs", ns=(10**18, 10**18))
    message = unprivileged(_prepare_as_nobody, str(project))
    assert isinstance(message, str)
    assert "TargetUnusable" in message, message
    assert "Permission denied" in message


def _prepare_as_nobody(root: str) -> str:
    from cargo_cow import prepare
    from cargo_cow.cargo.workspace import Package, Workspace
    from cargo_cow.errors import CowError

    path = Path(root)
    workspace = Workspace(path, path / "target", path / "target", (Package("app", "0.1.0", path),))
    os.environ["HOME"] = "/nonexistent"
    try:
        report = prepare.prepare(workspace)
    except CowError as error:
        return f"{type(error).__name__}: {error}"
    return str(report)


def test_a_mounted_target(project: Path, tmp_path: Path) -> None:
    there = project.parent / "there"
    git(project, "worktree", "add", "-q", str(there))
    (there / "target").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", there / "target"], check=True)
    try:
        result = cow(there, tmp_path, "build", "-v")
        assert result.status == 0, result.output
        assert "warning: not prepared" in result.output
    finally:
        subprocess.run(["umount", there / "target"], check=True)


def test_a_cargo_we_do_not_know(project: Path, tmp_path: Path) -> None:
    """Dep-info of a later version: dropped in a clone, left alone in place, and said."""
    assert cow(project, tmp_path, "build", "-v").rustc == []
    for path in (project / "target/debug/.fingerprint").glob("*/dep-*"):
        data = bytearray(path.read_bytes())
        data[5] = 9
        status = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for path in (project / "target/debug/.fingerprint").glob("*/cow-record.json"):
        path.unlink()
    there = project.parent / "there"
    git(project, "worktree", "add", "-q", str(there))
    said = cow(there, tmp_path, "prepare").output
    assert "not an encoded dep-info of version 1" in said
    assert sorted(cargo(there, tmp_path, "build").rustc) == ["app", "build_script_build"]


def test_a_layout_we_do_not_know(project: Path, tmp_path: Path) -> None:
    (project / "target/debug/.fingerprint").rename(project / "target/debug/.fingerprints-v9")
    there = project.parent / "there"
    git(project, "worktree", "add", "-q", str(there))
    result = cow(there, tmp_path, "prepare")
    assert result.status == 0
    assert "nothing we know is built in" in result.output
    assert not (there / "target").exists()


def test_audit_of_nothing_finds_nothing() -> None:
    from cargo_cow.cargo.target import Target
    from cargo_cow.prepare.place import Place

    place = Place("/nowhere", "/nowhere", "/nowhere/target", None, None, 0, {}, ())
    assert audit(Target("/nowhere/target"), place) == ()
