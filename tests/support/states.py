"""One small package, built on a filesystem of the test's: what tests of states begin with."""

from __future__ import annotations

from pathlib import Path

from cargo_cow import filesystems
from tests.support.projects import cow, repository, settle, write

TINY = {
    "Cargo.toml": '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/main.rs": 'fn main() { print!("{}", include_str!("text")); }\n',
    "src/text": "one",
    ".gitignore": "/target\nCargo.lock\n",
}


def project(root: Path, files: dict[str, str]) -> Path:
    """A repository whose target is a subvolume, where there are such."""
    repository(root, files)
    filesystems.create_target(root / "target")
    return root


def built(root: Path, scratch: Path) -> Path:
    """Build it by `cargo cow build`."""
    done = cow(root, scratch, "build")
    assert done.status == 0, done.output
    settle()
    return root


def edit(checkout: Path, text: str, scratch: Path) -> None:
    """Change what the program prints, and build."""
    settle()
    write(checkout, {"src/text": text})
    built(checkout, scratch)


def half_made(*directories: Path) -> list[str]:
    """What is left in them under a temporary's name, also where git does not look."""
    return [
        str(path)
        for directory in directories
        for place in (directory, directory / ".cargo-cow")
        if place.is_dir()
        for path in place.iterdir()
        if ".cow-" in path.name
    ]
