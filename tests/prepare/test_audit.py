"""``audit`` on targets that nobody prepared: the classic ways to a false-fresh unit are found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.support.projects import cargo, cow, git, repository, settle, write

_FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["app", "util"]\nresolver = "2"\n',
    "util/Cargo.toml": '[package]\nname = "util"\nversion = "0.1.0"\nedition = "2021"\n',
    "util/src/lib.rs": "pub mod deep;\n",
    "util/src/deep.rs": "pub fn value() -> u32 { 1 }\n",
    "app/Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
    '[dependencies]\nutil = { path = "../util" }\n',
    "app/build.rs": """
fn main() {
    println!("cargo:rerun-if-changed=data.txt");
    println!("cargo:rustc-env=DATA={}", std::fs::read_to_string("data.txt").unwrap().trim());
}
""",
    "app/data.txt": "one\n",
    "app/src/main.rs": 'fn main() { println!("{} {}", util::deep::value(), env!("DATA")); }\n',
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = repository(tmp_path / "main", _FILES)
    assert cargo(root, tmp_path, "build").status == 0
    settle()
    return root


def _findings(root: Path, scratch: Path, *arguments: str, **extra: str) -> dict[str, str]:
    result = cow(root, scratch, "audit", "--format", "json", *arguments, **extra)
    assert result.status in (0, 1), result.output
    value = json.loads(result.output)
    found = {unit["key"].partition("/")[2].rpartition("-")[0]: unit["finding"]
             for unit in value["units"]}  # fmt: skip
    assert result.status == (1 if found else 0)
    return found


def test_an_ordinary_target_is_sound(project: Path, tmp_path: Path) -> None:
    assert _findings(project, tmp_path) == {}


def test_a_target_copied_without_times(project: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    git(project, "worktree", "add", "-q", str(there))
    write(there, {"util/src/deep.rs": "pub fn value() -> u32 { 2 }\n"})
    settle()
    shutil.copytree(project / "target", there / "target", copy_function=shutil.copyfile)
    for path in (there / "target").rglob("build-script-build*"):
        path.chmod(0o755)
    # Plain Cargo is fooled: every file of the target is newer than every source.
    times = sorted(path.stat().st_mtime_ns for path in (there / "target").rglob("*"))
    for path in (there / "target").rglob("*"):
        os.utime(path, ns=(times[-1], times[-1]))
    assert "util" not in cargo(there, tmp_path, "build").rustc
    found = _findings(there, tmp_path)
    assert found["util"] == "false-fresh"
    assert found["app"] in ("false-fresh", "suspect")


def test_a_target_shared_between_worktrees(project: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    git(project, "worktree", "add", "-q", str(there))
    write(there, {"util/src/deep.rs": "pub fn value() -> u32 { 3 }\n"})
    settle()
    shared = str(tmp_path / "shared")
    assert cargo(project, tmp_path, "build", CARGO_TARGET_DIR=shared).status == 0
    assert cargo(there, tmp_path, "build", CARGO_TARGET_DIR=shared).rustc == []  # fooled
    assert _findings(project, tmp_path, CARGO_TARGET_DIR=shared) == {}
    found = _findings(there, tmp_path, CARGO_TARGET_DIR=shared)
    assert found["util"] == "false-fresh"
    assert found["app"] in ("false-fresh", "suspect")


def test_a_declared_file_with_new_content_and_an_old_time(project: Path, tmp_path: Path) -> None:
    data = project / "app/data.txt"
    before = data.stat().st_mtime_ns
    data.write_text("two\n")
    os.utime(data, ns=(before, before))
    assert cargo(project, tmp_path, "build").rustc == []  # fooled
    assert _findings(project, tmp_path)["app"] == "suspect"


def test_with_a_record_the_same_is_proved(project: Path, tmp_path: Path) -> None:
    assert cow(project, tmp_path, "build").rustc == []
    settle()
    data = project / "app/data.txt"
    before = data.stat().st_mtime_ns
    data.write_text("two\n")
    os.utime(data, ns=(before, before))
    assert _findings(project, tmp_path)["app"] == "false-fresh"
    # And a build through us is not fooled.
    assert "app" in cow(project, tmp_path, "build").rustc
    assert _findings(project, tmp_path) == {}


def test_capture_takes_no_content_that_was_not_compiled(project: Path, tmp_path: Path) -> None:
    """A unit in a shared target, built from another checkout, must not be recorded here."""
    there, third = tmp_path / "there", tmp_path / "third"
    git(project, "worktree", "add", "-q", str(there))
    git(project, "worktree", "add", "-q", "--detach", str(third))
    for root in (there, third):
        write(root, {"util/src/deep.rs": "pub fn value() -> u32 { 4 }\n"})
    for path in there.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    (project / "target").rename(there / "target")
    assert cargo(there, tmp_path, "build").rustc == []  # fooled
    assert cow(third, tmp_path, "prepare", "--from", str(there)).status == 0
    assert "util" in cargo(third, tmp_path, "build").rustc
