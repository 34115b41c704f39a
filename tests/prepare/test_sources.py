"""Packages from elsewhere: git dependencies, ``[patch]``, vendored sources, paths outside."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.support.projects import cargo, cow, git, repository, settle, write

_PACKAGE = '[package]\nname = "{}"\nversion = "{}"\nedition = "2021"\n'
_BUILD = """
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").unwrap();
    std::fs::write(format!("{out}/g.rs"), "pub const G: u32 = 7;").unwrap();
}
"""
_LIBRARY = 'include!(concat!(env!("OUT_DIR"), "/g.rs"));\npub fn dep() -> u32 { VALUE + G - 7 }\n'


@pytest.fixture
def dependency(btrfs: Path) -> Path:
    """A git repository with a library whose script generates code."""
    return repository(
        btrfs / "dep",
        {
            "Cargo.toml": _PACKAGE.format("dep", "1.0.0"),
            "build.rs": _BUILD,
            "src/lib.rs": "pub const VALUE: u32 = 1;\n" + _LIBRARY,
        },
    )


def _project(root: Path, dependency: Path, more: str = "") -> Path:
    return repository(
        root,
        {
            "Cargo.toml": '[workspace]\nmembers = ["app"]\nresolver = "2"\n' + more,
            "app/Cargo.toml": _PACKAGE.format("app", "0.1.0")
            + f'[dependencies]\ndep = {{ git = "file://{dependency}" }}\n',
            "app/src/main.rs": 'fn main() { println!("{}", dep::dep()); }\n',
        },
    )


def _told(root: Path) -> str:
    return subprocess.run(
        [root / "target/debug/app"], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(autouse=True)
def _own_cargo_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo-home"))


def test_a_git_dependency_is_kept(btrfs: Path, dependency: Path, tmp_path: Path) -> None:
    root = _project(btrfs / "main", dependency)
    assert cargo(root, tmp_path, "build").status == 0
    settle()
    there = btrfs / "there"
    git(root, "add", "-A")
    git(root, "commit", "-qm", "lock")
    git(root, "worktree", "add", "-q", str(there))
    built = cow(there, tmp_path, "build", "-v")
    assert (built.rustc, built.scripts) == ([], 0), built.output
    assert _told(there) == "1"


def test_a_patch_inside_the_checkout_is_a_package_like_any_other(
    btrfs: Path, dependency: Path, tmp_path: Path
) -> None:
    root = btrfs / "main"
    write(
        root / "patched",
        {
            "Cargo.toml": _PACKAGE.format("dep", "1.0.0"),
            "build.rs": _BUILD,
            "src/lib.rs": "pub const VALUE: u32 = 2;\n" + _LIBRARY,
        },
    )
    _project(root, dependency, f'[patch."file://{dependency}"]\ndep = {{ path = "patched" }}\n')
    first = cargo(root, tmp_path, "build")
    assert first.status == 0, first.output
    git(root, "add", "-A")
    git(root, "commit", "-qm", "lock")
    settle()
    there = btrfs / "there"
    git(root, "worktree", "add", "-q", str(there))
    built = cow(there, tmp_path, "build", "-v")
    assert (built.rustc, built.scripts) == ([], 0), built.output
    settle()
    write(there, {"patched/src/lib.rs": "pub const VALUE: u32 = 3;\n" + _LIBRARY})
    assert cow(there, tmp_path, "build", "-v").rustc == ["app", "dep"]
    assert _told(there) == "3"


def test_vendored_sources_are_cargos_to_judge(
    btrfs: Path, dependency: Path, tmp_path: Path
) -> None:
    """Their absolute path is in Cargo's fingerprint: rebuilt in a worktree, and never stale."""
    root = _project(btrfs / "main", dependency)
    vendor = subprocess.run(
        ["cargo", "vendor", "vendor"], cwd=root, capture_output=True, text=True, check=True
    )
    write(root, {".cargo/config.toml": vendor.stdout})
    assert cargo(root, tmp_path, "build", "--offline").status == 0
    git(root, "add", "-A")
    git(root, "commit", "-qm", "vendored")
    settle()
    there = btrfs / "there"
    git(root, "worktree", "add", "-q", str(there))
    built = cow(there, tmp_path, "build", "--offline", "-v")
    assert built.status == 0, built.output
    assert built.rustc == ["app", "build_script_build", "dep"]
    assert _told(there) == "1"
    assert cow(there, tmp_path, "build", "--offline", "-v").rustc == []


def test_a_path_outside_the_workspace_inside_the_repository(btrfs: Path, tmp_path: Path) -> None:
    root = repository(
        btrfs / "main",
        {
            ".gitignore": "target\n",
            "ws/Cargo.toml": '[workspace]\nmembers = ["app"]\nresolver = "2"\n',
            "ws/app/Cargo.toml": _PACKAGE.format("app", "0.1.0")
            + '[dependencies]\ndep = { path = "../../beside/dep" }\n',
            "ws/app/src/main.rs": 'fn main() { println!("{}", dep::dep()); }\n',
            "beside/dep/Cargo.toml": _PACKAGE.format("dep", "1.0.0"),
            "beside/dep/build.rs": _BUILD,
            "beside/dep/src/lib.rs": "pub const VALUE: u32 = 4;\n" + _LIBRARY,
        },
    )
    assert cargo(root / "ws", tmp_path, "build").status == 0
    git(root, "add", "-A")
    git(root, "commit", "-qm", "lock")
    settle()
    there = btrfs / "there"
    git(root, "worktree", "add", "-q", str(there))
    # Cargo names units of packages outside the workspace by their absolute path: other units.
    built = cow(there / "ws", tmp_path, "build", "-v")
    assert built.status == 0, built.output
    assert built.rustc == ["app", "build_script_build", "dep"]
    assert _told(there / "ws") == "4"
    settle()
    write(there, {"beside/dep/src/lib.rs": "pub const VALUE: u32 = 5;\n" + _LIBRARY})
    assert cow(there / "ws", tmp_path, "build", "-v").rustc == ["app", "dep"]
    assert _told(there / "ws") == "5"
    git(there, "stash", "-q")
    git(there, "stash", "pop", "-q")
    assert cow(there / "ws", tmp_path, "build", "-v").rustc == []


def test_two_packages_of_one_name(btrfs: Path, dependency: Path, tmp_path: Path) -> None:
    root = repository(
        btrfs / "main",
        {
            "Cargo.toml": '[workspace]\nmembers = ["app"]\nresolver = "2"\n',
            "app/Cargo.toml": _PACKAGE.format("app", "0.1.0")
            + f'[dependencies]\none = {{ package = "dep", git = "file://{dependency}" }}\n'
            'two = { package = "dep", path = "../two" }\n',
            "app/src/main.rs": 'fn main() { println!("{} {}", one::dep(), two::dep()); }\n',
            "two/Cargo.toml": _PACKAGE.format("dep", "2.0.0"),
            "two/src/lib.rs": "pub fn dep() -> u32 { 2 }\n",
        },
    )
    built = cargo(root, tmp_path, "build")
    assert built.status == 0, built.output
    git(root, "add", "-A")
    git(root, "commit", "-qm", "lock")
    settle()
    there = btrfs / "there"
    git(root, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "build", "-v").rustc == []
    settle()
    write(there, {"two/src/lib.rs": "pub fn dep() -> u32 { 3 }\n"})
    assert cow(there, tmp_path, "build", "-v").rustc == ["app", "dep"]
    assert _told(there) == "1 3"


def test_profiles_side_by_side(btrfs: Path, tmp_path: Path) -> None:
    root = repository(
        btrfs / "main",
        {
            "Cargo.toml": _PACKAGE.format("app", "0.1.0") + "[profile.release]\nlto = true\n",
            "src/lib.rs": "pub fn f() {}\n",
            "src/main.rs": "fn main() { app::f() }\n",
        },
    )
    for arguments in ([], ["--release"], ["--profile", "bench"]):
        assert cargo(root, tmp_path, "build", *arguments).status == 0
    git(root, "add", "-A")
    git(root, "commit", "-qm", "lock")
    settle()
    there = btrfs / "there"
    git(root, "worktree", "add", "-q", str(there))
    for arguments in ([], ["--release"], ["--profile", "bench"]):
        assert cow(there, tmp_path, "build", "-v", *arguments).rustc == []
    assert cow(there, tmp_path, "check", "-v").rustc == ["app", "app"]


def test_a_link_that_leads_nowhere_is_a_file_of_its_package(btrfs: Path, tmp_path: Path) -> None:
    """Cargo takes its time for 0, and so a script that declares nothing can be proven."""
    here = repository(
        btrfs / "here",
        {
            "Cargo.toml": _PACKAGE.format("app", "0.1.0"),
            "build.rs": (
                "fn main() {\n"
                '    let to = std::fs::read_link("link").unwrap();\n'
                '    println!("cargo::rustc-env=LEADS={}", to.display());\n'
                "}\n"
            ),
            "src/main.rs": 'fn main() { println!("{}", env!("LEADS")); }\n',
        },
    )
    (here / "link").symlink_to("nowhere")
    assert cargo(here, tmp_path, "generate-lockfile").status == 0
    git(here, "add", "-A")
    git(here, "commit", "-qm", "link")
    settle()
    assert cow(here, tmp_path, "build").status == 0
    there = btrfs / "there"
    git(here, "worktree", "add", "-q", str(there))
    built = cow(there, tmp_path, "build", "-v")
    assert (built.rustc, built.scripts) == ([], 0), built.output
    # What it leads to counts all the same, though Cargo looks at no time of it.
    (there / "link").unlink()
    (there / "link").symlink_to("elsewhere")
    assert cow(there, tmp_path, "build").status == 0
    assert _told(there) == "elsewhere"
