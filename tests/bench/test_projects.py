"""Projects come from Cargo's own unpacked sources, or from the user's checkout, only read."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from cargo_cow.bench import processes, projects

_MANIFEST = '[package]\nname = "small"\nversion = "{}"\nedition = "2021"\n\n[workspace]\n'


def _quiet(_message: str) -> None:
    pass


def _git(cwd: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _release(registry: Path, version: str) -> Path:
    """A package as Cargo unpacks it."""
    root = registry / f"small-{version}"
    (root / "src").mkdir(parents=True)
    (root / "Cargo.toml").write_text(_MANIFEST.format(version))
    (root / "Cargo.toml.orig").write_text("as published")
    (root / "Cargo.lock").write_text(
        f'version = 4\n\n[[package]]\nname = "small"\nversion = "{version}"\n'
    )
    (root / "src" / "main.rs").write_text("fn main() {}\n")
    (root / ".gitignore").write_text("Cargo.lock\n")
    (root / "rust-toolchain.toml").write_text('[toolchain]\nchannel = "1.0"\n')
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    (root / ".cargo-ok").write_text('{"v":1}')
    return root


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo"))
    monkeypatch.setenv("CARGO_NET_OFFLINE", "true")
    return tmp_path / "cargo" / "registry" / "src" / "somewhere-0123456789abcdef"


def test_two_releases_become_two_commits(registry: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.0.1"):
        _release(registry, version)
    room = tmp_path / "room"
    room.mkdir()
    published = projects.Published("small", ("1.0.0", "1.0.1"))
    project = projects.published("small", published, room, say=_quiet)
    assert project.revisions == ("v1.0.0", "v1.0.1")
    assert project.labels == ("small 1.0.0", "small 1.0.1")
    root = project.repository
    assert _git(root, "status", "--porcelain") == ""
    assert _git(root, "rev-parse", "HEAD") == _git(root, "rev-parse", "v1.0.0")
    assert _git(root, "diff", "--name-only", "v1.0.0", "v1.0.1").split() == [
        "Cargo.lock",
        "Cargo.toml",
    ]
    files = set(_git(root, "ls-files").split())
    assert files == {".gitignore", "Cargo.lock", "Cargo.toml", "run", "src/main.rs"}
    assert (root / ".gitignore").read_text() == "/target\n"
    assert os.access(root / "run", os.X_OK)
    # Sources older than any build would be fresh by their times alone.
    assert (root / "src" / "main.rs").stat().st_mtime > 1_000_000_000


def test_the_same_releases_give_the_same_commits(registry: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.0.1"):
        _release(registry, version)
    heads = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        published = projects.Published("small", ("1.0.0", "1.0.1"))
        project = projects.published("small", published, tmp_path / name, say=_quiet)
        heads.append(_git(project.repository, "rev-parse", "v1.0.1"))
    assert heads[0] == heads[1]


def test_cargo_is_asked_for_what_is_not_there(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``cargo info`` first, a package that depends on it where that does not serve."""
    stub = tmp_path / "bin" / "cargo"
    stub.parent.mkdir()
    log = tmp_path / "log"
    monkeypatch.setattr(
        processes, "environment", lambda extra=None: {**os.environ, **(extra or {})}
    )
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    for verb in ("info", "fetch"):
        version = "2.0.0" if verb == "info" else "3.0.0"
        made = registry / f"small-{version}"
        stub.write_text(
            f'#!/bin/sh\necho "$1" >>{log}\n'
            f"[ $1 = {verb} ] || exit 101\nmkdir -p {made}\ntouch {made}/.cargo-ok\n"
        )
        stub.chmod(0o755)
        room = tmp_path / verb
        room.mkdir()
        assert projects.unpacked("small", version, room, processes.environment()) == made
    assert log.read_text().split() == ["info", "info", "fetch"]
    assert 'small = "=3.0.0"' in (tmp_path / "fetch" / "fetch" / "Cargo.toml").read_text()


def test_a_package_half_unpacked_is_not_taken(registry: Path) -> None:
    root = _release(registry, "1.0.0")
    env = processes.environment()
    assert projects._in_registry("small", "1.0.0", env) == root
    (root / ".cargo-ok").unlink()
    assert projects._in_registry("small", "1.0.0", env) is None


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's repository with the package in a subdirectory, two commits, and work in hand."""
    root = tmp_path / "own"
    package = root / "rust"
    (package / "src").mkdir(parents=True)
    _git(tmp_path, "init", "-q", "own")
    (package / "Cargo.toml").write_text(_MANIFEST.format("0.1.0"))
    (package / "Cargo.lock").write_text(
        'version = 4\n\n[[package]]\nname = "small"\nversion = "0.1.0"\n'
    )
    (package / "src" / "lib.rs").write_text("// one\n")
    _git(root, "add", ".")
    _git(root, "commit", "-qm", "one")
    (package / "src" / "lib.rs").write_text("// two\n")
    _git(root, "commit", "-qam", "two")
    (package / "src" / "lib.rs").write_text("// in hand\n")
    (package / "target").mkdir()
    return root


def _state(root: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(root)): (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(root.rglob("*"))
    }


def test_the_users_checkout_is_only_read(own: Path, tmp_path: Path) -> None:
    before = _state(own)
    said: list[str] = []
    project = projects.own(own / "rust", tmp_path / "clone", say=said.append)
    assert _state(own) == before
    assert any("uncommitted" in line for line in said)
    assert project.subdirectory == Path("rust")
    assert project.revisions == (
        _git(own, "rev-parse", "HEAD"),
        _git(own, "rev-parse", "HEAD~1"),
    )
    assert project.labels[0].endswith(" two")
    assert (project.repository / "rust" / "src" / "lib.rs").read_text() == "// two\n"


def test_another_revision_can_be_named_and_must_exist(own: Path, tmp_path: Path) -> None:
    _git(own, "tag", "first", "HEAD~1")
    project = projects.own(own / "rust", tmp_path / "a", other="first", say=_quiet)
    assert project.revisions[1] == _git(own, "rev-parse", "first")
    with pytest.raises(processes.StepFailed, match="nowhere"):
        projects.own(own / "rust", tmp_path / "b", other="nowhere", say=_quiet)


def test_without_git_the_files_are_copied(own: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (own / "rust").rename(bare)
    (bare / "target" / "CACHEDIR.TAG").touch()
    (bare / "src" / "target").mkdir()
    (bare / "src" / "target" / "mod.rs").touch()
    project = projects.own(bare, tmp_path / "copy", say=_quiet)
    assert len(project.revisions) == 1
    assert not (project.repository / "target").exists()
    assert (project.repository / "src" / "target" / "mod.rs").exists()
    assert not (bare / ".git").exists()


def test_what_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(projects.UnknownProject, match="has no Cargo"):
        projects.obtain(None, tmp_path, tmp_path / "room", say=_quiet)
    with pytest.raises(projects.UnknownProject, match="no project nothing") as caught:
        projects.obtain("nothing", None, tmp_path / "room", say=_quiet)
    assert "ripgrep" in caught.value.hint


def test_members_of_a_workspace_lose_their_origin_in_the_lock_file() -> None:
    part = (
        '\nname = "globset"\nversion = "0.4.14"\nsource = "registry+somewhere"\n'
        'checksum = "00"\ndependencies = [\n "log",\n]\n'
    )
    assert projects._local(part, {("globset", "0.4.14")}) == (
        '\nname = "globset"\nversion = "0.4.14"\ndependencies = [\n "log",\n]\n'
    )
    assert projects._local(part, {("globset", "0.4.15")}) == part


def test_benchmarks_of_members_are_left_out(tmp_path: Path) -> None:
    manifest = tmp_path / "Cargo.toml"
    manifest.write_text(
        '[package]\nname = "globset"\n\n[[bench]]\nname = "bench"\n\n[dependencies]\nlog = "0.4"\n'
    )
    projects._without_benches(manifest)
    assert tomllib.loads(manifest.read_text()) == {
        "package": {"name": "globset", "autobenches": False},
        "dependencies": {"log": "0.4"},
    }


def test_the_synthetic_workspace_is_as_large_as_it_says(tmp_path: Path) -> None:
    project = projects.synthetic(tmp_path / "project")
    files = _git(project.repository, "ls-files").split()
    assert len([name for name in files if name.endswith(".rs")]) == 2100
    assert len([name for name in files if name.endswith("build.rs")]) == 150
    assert _git(project.repository, "diff", "--name-only", "one", "two") == "p149/src/m0.rs"
    assert _git(project.repository, "status", "--porcelain") == ""


def test_the_large_crate_is_large(tmp_path: Path) -> None:
    project = projects.large(tmp_path / "project")
    sources = project.repository / "large" / "src"
    assert sum(len(path.read_text().splitlines()) for path in sources.iterdir()) >= 20_000
    assert project.edited is not None
    assert (project.repository / project.edited).read_text().endswith("{\n    0\n}\n")
    assert _git(project.repository, "status", "--porcelain") == ""
