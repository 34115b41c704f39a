"""Small real Cargo projects in git, and builds whose compiler calls are counted.

Compilers are counted where they start: ``RUSTC`` is a script that notes the crate and runs the
real rustc.  Cargo hashes only what ``rustc -vV`` prints, so units are the same with or without.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[2] / "src"

_COUNTER = """#!/bin/sh
for argument in "$@"; do
  if [ "$previous" = --crate-name ] && [ "$argument" != ___ ]; then
    echo "$argument" >> "$COUNTED_RUSTC"
  fi
  previous=$argument
done
exec rustc "$@"
"""


class Build(NamedTuple):
    """One Cargo run: its status, the crates really compiled, the scripts run, and its output."""

    status: int
    rustc: list[str]
    scripts: int
    output: str


def write(root: Path, files: dict[str, str]) -> None:
    """Write files (relative path → text), making directories."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(root: Path, *arguments: str) -> str:
    """Run git in ``root``; returns stdout."""
    return subprocess.run(
        ["git", *arguments], cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()


def repository(root: Path, files: dict[str, str]) -> Path:
    """A git repository at ``root`` with ``files`` committed and the target ignored."""
    root.mkdir(parents=True, exist_ok=True)
    write(root, {".gitignore": "/target\n", **files})
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    settle()
    return root


def settle() -> None:
    """Let the filesystem's clock pass a granule: what is written next is newer."""
    time.sleep(0.03)


def _environment(scratch: Path) -> dict[str, str]:
    # By another name the shim would take it for a wrapper.
    counter = scratch / "counting" / "rustc"
    if not counter.exists():
        counter.parent.mkdir()
        counter.write_text(_COUNTER)
        counter.chmod(0o755)
        settle()
    return {
        **os.environ,
        "RUSTC": str(counter),
        "COUNTED_RUSTC": str(scratch / "counted"),
        "PYTHONPATH": str(SOURCE),
        "CARGO_TERM_COLOR": "never",
    }


def run(
    root: Path, command: list[str], scratch: Path, extra: dict[str, str] | None = None
) -> Build:
    """Run a Cargo command with its compilers counted."""
    counted = scratch / "counted"
    counted.unlink(missing_ok=True)
    result = subprocess.run(
        command,
        cwd=root,
        env={**_environment(scratch), **(extra or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    calls = counted.read_text().split() if counted.exists() else []
    output = result.stdout + result.stderr
    scripts = output.count("/build-script-build`")
    return Build(result.returncode, sorted(calls), scripts, output)


def cargo(root: Path, scratch: Path, *arguments: str, **extra: str) -> Build:
    """``cargo ARGUMENTS -v``."""
    return run(root, ["cargo", *arguments, "-v"], scratch, extra)


def cow(root: Path, scratch: Path, *arguments: str, **extra: str) -> Build:
    """``cargo cow ARGUMENTS``; build verbs want a ``-v`` of the caller's."""
    return run(root, [sys.executable, "-m", "cargo_cow", *arguments], scratch, extra)
