"""Other Cargo target directories inside a target come along with a clone, and prove nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.projects import cargo, cow, git, repository, settle, write

from cargo_cow import filesystems, snapshots
from cargo_cow.cargo.target import nested, profile_directories

FILES = {
    "Cargo.toml": '[package]\nname = "outer"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/lib.rs": "",
    "build.rs": 'fn main() { println!("cargo:rerun-if-changed=build.rs"); }\n',
    "src/main.rs": 'fn main() { println!("{} {}", include_str!("text"), env!("OUT_DIR")); }\n',
    "src/text": "one",
    ".gitignore": "/target\nCargo.lock\n",
}
PLACES = ("target/tests/inner", "target/tmp/a/b/c/inner", "target/debug/wbuild/inner/target")


def _tells(root: Path, place: str) -> list[str]:
    program = root / place / "debug/outer"
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("place", PLACES)
def test_a_clone_does_not_believe_in_it(btrfs: Path, tmp_path: Path, place: str) -> None:
    """Plain Cargo would: the files of the worktree are older than what the donor built."""
    root = repository(btrfs / "main", FILES)
    filesystems.create_target(root / "target")
    there = btrfs / "there"
    git(root, "worktree", "add", "-q", str(there))
    write(there, {"src/text": "two"})
    settle()
    assert cow(root, tmp_path, "build").status == 0
    assert cargo(root, tmp_path, "build", "--target-dir", place).status == 0
    assert _tells(root, place)[0] == "one"
    settle()
    assert cow(there, tmp_path, "build").status == 0
    assert (there / place).is_dir()  # it did come along
    built = cargo(there, tmp_path, "build", "--target-dir", place)
    assert built.scripts == 1
    text, out = _tells(there, place)
    assert text == "two"
    assert out.startswith(str(there))
    # The donor's is as it was.
    assert cargo(root, tmp_path, "build", "--target-dir", place).rustc == []


def test_without_us_it_would_be_stale(btrfs: Path, tmp_path: Path) -> None:
    """What the test above attacks is real: a copy with its times is called fresh."""
    root = repository(btrfs / "main", FILES)
    there = btrfs / "there"
    git(root, "worktree", "add", "-q", str(there))
    write(there, {"src/text": "two"})
    settle()
    place = PLACES[0]
    assert cargo(root, tmp_path, "build", "--target-dir", place).status == 0
    shutil.copytree(root / "target", there / "target", copy_function=shutil.copy2)
    assert cargo(there, tmp_path, "build", "--target-dir", place).rustc == []
    assert _tells(there, place)[0] == "one"


def test_a_state_that_becomes_live(btrfs: Path, tmp_path: Path) -> None:
    root = repository(btrfs / "main", FILES)
    filesystems.create_target(root / "target")
    place = PLACES[0]
    assert cow(root, tmp_path, "build").status == 0
    assert cargo(root, tmp_path, "build", "--target-dir", place).status == 0
    snapshots.create_state("one", root)
    write(root, {"src/text": "two"})
    old = (root / "Cargo.toml").stat().st_mtime_ns
    os.utime(root / "src/text", ns=(old, old))  # as `tar x` or `cp -p` leave it
    snapshots.activate_cache("one", root)
    assert cargo(root, tmp_path, "build", "--target-dir", place).status == 0
    assert _tells(root, place)[0] == "two"


def test_what_is_nested_and_what_is_the_targets_own(tmp_path: Path) -> None:
    own = ["debug", "x86_64-unknown-linux-gnu/release", "rust-analyzer/debug"]
    inner = [
        "tests/trybuild/debug",
        "debug/wbuild/a/target/wasm32-unknown-unknown/release",
        "debug/build/b-0123456789abcdef/out/t/debug",
        "tests/trybuild/debug/build/c-0123456789abcdef/out/t/debug",
    ]
    for name in own + inner:
        unit = tmp_path / name / ".fingerprint/p-0123456789abcdef"
        unit.mkdir(parents=True)
        (unit / "lib-p").write_text("0" * 16)
    unit = tmp_path / "far/away/debug/build/p/0123456789abcdef/fingerprint"  # the new layout
    unit.mkdir(parents=True)
    (unit / "lib-p").write_text("0" * 16)
    (tmp_path / "link").symlink_to(tmp_path / "tests")
    assert profile_directories(str(tmp_path)) == sorted(str(tmp_path / name) for name in own)
    found = nested(str(tmp_path))
    assert sorted(profile.name for profile in found.profiles) == sorted([*inner, "far/away/debug"])
    assert len(found.units) == 5
