"""Where a workspace builds: Cargo's answer, and a cache that notices every change of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.support.projects import git, repository, settle, write

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
    settle()
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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories for which Cargo was asked."""
    found: list[str] = []
    ask = workspace._ask_cargo

    def note(directory: str, arguments: list[str], toolchain: list[str]) -> object:
        found.append(directory)
        return ask(directory, arguments, toolchain)

    monkeypatch.setattr(workspace, "_ask_cargo", note)
    return found


def _names(root: Path) -> list[str]:
    return [f"{package.name} {package.version}" for package in workspace.load(root).members]


def test_there_and_back_asks_once_for_each(tmp_path: Path, asked: list[str]) -> None:
    """After a switch every manifest that git wrote has another stat, and the old content."""
    root = repository(tmp_path / "ws", _FILES)
    git(root, "switch", "-qc", "other")
    manifest = '[package]\nname = "{}"\nversion = "0.2.0"\n'
    for name in ("one", "two"):
        write(root, {f"crates/{name}/Cargo.toml": manifest.format(name)})
    write(root, {"crates/two/src/lib.rs": ""})
    git(root, "add", "-A")
    git(root, "commit", "-qm", "other")
    for branch in ("main", "other") * 4:
        git(root, "switch", "-q", branch)
        settle()
        expected = ["one 0.1.0"] if branch == "main" else ["one 0.2.0", "two 0.2.0"]
        assert _names(root) == expected
        assert _names(root) == expected
    assert len(asked) == 2


def test_content_is_what_counts_after_a_change(root: Path, asked: list[str]) -> None:
    assert _names(root) == ["one 0.1.0"]
    manifest = root / "crates/one/Cargo.toml"
    for version in ("0.2.0", "0.3.0", "0.1.0", "0.2.0"):
        manifest.write_text(manifest.read_text()[:-8] + f'"{version}"\n')
        settle()
        assert _names(root) == [f"one {version}"]
    assert len(asked) == 3
    # Found by a glob: no manifest that was there changes.
    write(root, {"crates/two/src/lib.rs": ""})
    write(root, {"crates/two/Cargo.toml": '[package]\nname = "two"\nversion = "0.1.0"\n'})
    settle()
    assert _names(root) == ["one 0.2.0", "two 0.1.0"]
    assert len(asked) == 4
    # A file where there was none, and the other way round.
    write(root, {".cargo/config.toml": ""})
    settle()
    assert workspace.load(root).target_dir == root / "target"
    write(root, {".cargo/config.toml": '[build]\ntarget-dir = "e"\n'})
    assert workspace.load(root).target_dir == root / "e"
    (root / ".cargo/config.toml").unlink()
    assert workspace.load(root).target_dir == root / "target"


def test_what_changes_while_cargo_is_asked_is_not_kept(
    root: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = root / "crates/one/Cargo.toml"
    ask = workspace._ask_cargo

    def edited(directory: str, arguments: list[str], toolchain: list[str]) -> object:
        value = ask(directory, arguments, toolchain)
        manifest.write_text(manifest.read_text().replace("0.1.0", "0.2.0"))
        return value

    with monkeypatch.context() as patch:
        patch.setattr(workspace, "_ask_cargo", edited)
        assert _names(root) == ["one 0.1.0"]
    assert _names(root) == ["one 0.2.0"]
    assert len(asked) == 2


def test_a_cache_of_another_shape_is_none(root: Path, asked: list[str]) -> None:
    assert _names(root) == ["one 0.1.0"]
    (kept,) = (Path(workspace._cache_file("")).parent).glob("*.json")
    for text in ("", "[]", '{"identity":""}', kept.read_text().replace("watched", "seen")):
        kept.write_text(text)
        asked.clear()
        assert _names(root) == ["one 0.1.0"]
        assert len(asked) == 1


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
