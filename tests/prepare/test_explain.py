"""``explain`` and ``prepare --format json``: reasons with codes, in place and in a clone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.projects import cargo, cow, git, repository, settle, write

if TYPE_CHECKING:
    from pathlib import Path

_FILES = {
    "Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/main.rs": 'mod part;\nfn main() { println!("{}", part::X); }\n',
    "src/part.rs": "pub const X: u32 = 1;\n",
}


def test_in_place_and_in_a_clone(btrfs: Path, tmp_path: Path) -> None:
    root = repository(btrfs / "main", _FILES)
    assert "no target here" in cow(root, tmp_path, "explain").output
    assert cow(root, tmp_path, "build").status == 0
    settle()
    assert "1 units: 1 proven, 0 kept, 0 unproven" in cow(root, tmp_path, "explain").output
    write(root, {"src/part.rs": "pub const X: u32 = 2;\n"})
    said = cow(root, tmp_path, "explain").output
    assert "src/part.rs has other content" in said
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", str(there))
    write(there, {"src/part.rs": "pub const X: u32 = 3;\n"})
    result = cow(there, tmp_path, "explain", "app", "--format", "json")
    value = json.loads(result.output)
    assert value["donor"] == str(root)
    (unit,) = value["units"]
    assert unit["unit"].startswith("debug/app-")
    assert (unit["status"], unit["code"]) == ("unproven", "content")
    assert not (there / "target").exists()
    assert "no such unit" in cow(there, tmp_path, "explain", "nosuch").output


def test_a_target_that_plain_cargo_built(tmp_path: Path) -> None:
    root = repository(tmp_path / "main", _FILES)
    assert cargo(root, tmp_path, "build").status == 0
    settle()
    write(root, {"src/part.rs": "pub const X: u32 = 2;\n"})
    said = cow(root, tmp_path, "explain").output
    assert "is newer, and there is no record" in said


def test_the_report_as_data(btrfs: Path, tmp_path: Path) -> None:
    root = repository(btrfs / "main", _FILES)
    assert cargo(root, tmp_path, "build").status == 0
    settle()
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", str(there))
    said = cow(there, tmp_path, "prepare", "--format", "json").output
    value = json.loads(said)
    assert value["method"] == "reflink"
    assert value["clone"]["files"] > 0
    assert set(value["seconds"]) == {"capture", "clone", "prove", "apply", "publish"}
    assert [unit["status"] for unit in value["units"]] == ["proven"]
    assert value["applied"]["dropped"] == 0
