"""Where a workspace builds: Cargo's answer, and a cache that notices every change of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.support.projects import write

from cargo_cow.cargo import workspace
from cargo_cow.errors import CargoFailed, NotACargoProject

_FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["crates/*"]\nresolver = "2"\n',
    "crates/one/Cargo.toml": '[package]\nname = "one"\nversion = "0.1.0"\n',
    "crates/one/src/lib.rs": "",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "ws", _FILES)
    return tmp_path / "ws"


def _cargo_says(root: Path) -> str:
    import json

    output = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"],
        cwd=root, capture_output=True, check=True,
    ).stdout  # fmt: skip
    return str(json.loads(output)["target_directory"])


def test_from_any_directory_inside(root: Path) -> None:
    for directory in (root, root / "crates/one", root / "crates/one/src"):
        found = workspace.load(directory)
        assert found.root == root
        assert found.build_dir == root / "target"
        assert [package.name for package in found.members] == ["one"]


def test_a_cached_answer_asks_nobody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = workspace.load(root)
    monkeypatch.setenv("CARGO", "/nonexistent")
    with pytest.raises(CargoFailed, match="not found"):
        workspace.load(root)  # another Cargo may answer otherwise
    monkeypatch.delenv("CARGO")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert workspace.load(root) == first


def test_every_change_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workspace.load(root).target_dir == root / "target"
    write(root, {".cargo/config.toml": '[build]\ntarget-dir = "elsewhere"\n'})
    assert str(workspace.load(root).target_dir) == _cargo_says(root) == f"{root}/elsewhere"
    write(root, {".cargo/config.toml": '[build]\nbuild-dir = "intermediate"\n'})
    found = workspace.load(root)
    assert (found.target_dir, found.build_dir) == (root / "target", root / "intermediate")
    write(root, {".cargo/config.toml": '[build]\nbuild-dir = "{workspace-root}/b"\n'})
    assert workspace.load(root).build_dir == root / "b"
    (root / ".cargo/config.toml").unlink()
    write(root, {"crates/two/Cargo.toml": '[package]\nname = "two"\nversion = "0.1.0"\n',
                 "crates/two/src/lib.rs": ""})  # fmt: skip
    assert [package.name for package in workspace.load(root).members] == ["one", "two"]
    monkeypatch.setenv("CARGO_TARGET_DIR", str(root.parent / "shared"))
    assert workspace.load(root).build_dir == root.parent / "shared"


def test_options_of_the_call(root: Path) -> None:
    found = workspace.load(root, ["--workspace", "--target-dir", "t"])
    assert found.build_dir == found.target_dir == root / "t"
    assert workspace.load(root, ["--", "--target-dir", "t"]).target_dir == root / "target"
    outside = root.parent
    found = workspace.load(outside, ["--manifest-path=ws/Cargo.toml"])
    assert found.root == root
    found = workspace.load(root, ["--config", 'build.target-dir="c"'])
    assert found.target_dir == root / "c"


def test_no_project_and_a_broken_one(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotACargoProject):
        workspace.load(tmp_path)
    write(root, {"Cargo.toml": "[workspace\n"})
    with pytest.raises(CargoFailed) as caught:
        workspace.load(root)
    assert caught.value.hint


def test_a_cargo_that_cannot_be_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cargo").write_text("not a program")
    monkeypatch.setenv("CARGO", str(tmp_path / "cargo"))
    with pytest.raises(CargoFailed, match="Permission denied"):
        workspace.load(root)
    monkeypatch.delenv("CARGO")
    with pytest.raises(CargoFailed, match="not there any more"):
        workspace.load(root / "gone")
