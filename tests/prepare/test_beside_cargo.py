"""Cargo is started before the target is prepared, and gets at it only when it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.projects import Build, cow, git, repository, settle, write
from tests.support.projects import cargo as plain

from cargo_cow.cargo.lock import build_lock

_MACRO = """
use proc_macro::TokenStream;
#[proc_macro]
pub fn look(_: TokenStream) -> TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    format!("{:?}", std::fs::read_to_string(format!("{root}/data")).unwrap()).parse().unwrap()
}
"""


def _package(name: str, more: str = "") -> str:
    return f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n{more}'


@pytest.fixture
def there(btrfs: Path, tmp_path: Path) -> Path:
    """A worktree with a clone of a target, built in; nobody observed what the macro read."""
    root = repository(
        btrfs / "main",
        {
            "Cargo.toml": '[workspace]\nmembers = ["app", "looking"]\nresolver = "2"\n',
            "app/Cargo.toml": _package("app", '[dependencies]\nlooking.path = "../looking"\n'),
            "app/src/main.rs": 'fn main() { println!("{}", looking::look!()); }\n',
            "app/data": "a",
            "looking/Cargo.toml": _package("looking", "[lib]\nproc-macro = true\n"),
            "looking/src/lib.rs": _MACRO,
        },
    )
    assert plain(root, tmp_path, "build").status == 0
    git(root, "add", "-A")
    git(root, "commit", "-qm", "lock")
    checkout = root.parent / "there"
    git(root, "worktree", "add", "-q", str(checkout))
    settle()
    assert _build(checkout, tmp_path).rustc == []
    assert _build(checkout, tmp_path).rustc == []
    assert _told(checkout) == "a"
    settle()
    return checkout


def _build(root: Path, scratch: Path, **extra: str) -> Build:
    built = cow(root, scratch, "build", "-v", CARGO_COW_IDENTITY="off", **extra)
    assert built.status == 0, built.output
    return built


def _told(root: Path) -> str:
    program = root / "target/debug/app"
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.strip()


def _slow_git(scratch: Path, seconds: float = 0.7) -> str:
    """A PATH on which git takes its time with lists of files: longer than Cargo with a build."""
    room = scratch / "slow"
    room.mkdir(exist_ok=True)
    script = room / "git"
    real = shutil.which("git")
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *ls-files*) touch {room}/asked; sleep {seconds};; esac\n'
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    return f"{room}:{os.environ['PATH']}"


def test_cargo_gets_at_the_target_when_it_is_prepared(there: Path, tmp_path: Path) -> None:
    """What a macro read is seen by us alone: Cargo, before us, would call the unit fresh."""
    write(there, {"app/data": "b"})
    slow = _slow_git(tmp_path)
    built = _build(there, tmp_path, PATH=slow)
    assert (tmp_path / "slow/asked").exists()
    assert built.rustc == ["app"], built.output
    assert "Blocking" not in built.output
    assert "waiting" not in built.output
    assert _told(there) == "b"


def test_a_file_under_a_newer_time_costs_nothing_however_slow_we_are(
    there: Path, tmp_path: Path
) -> None:
    source = there / "looking/src/lib.rs"
    source.write_text(source.read_text())
    built = _build(there, tmp_path, PATH=_slow_git(tmp_path))
    assert built.rustc == [], built.output
    assert "Blocking" not in built.output


@pytest.mark.parametrize("what", ["content", "new file", "new directory"])
@pytest.mark.parametrize("when", ["at once", "then"])
def test_what_a_macro_may_have_read_is_edited_while_cargo_runs(
    there: Path, tmp_path: Path, what: str, when: str
) -> None:
    """Cargo would never see it, so that nothing we leave for the next build may hide it.

    ``then``: when we have let go of the lock, what git listed and what was proven is of before.
    """
    source = there / "looking/src/lib.rs"
    source.write_text(source.read_text())
    changed = {"content": "data", "new file": "src/more", "new directory": "more/more"}[what]
    path = there / "app" / changed
    edit = f"mkdir -p {path.parent}; printf b > {path}; sleep 0.1"
    if when == "then":
        edit = f"(: >> {there}/target/debug/.cargo-lock); {edit}"
    script = tmp_path / "cargo"
    script.write_text(f'#!/bin/sh\n[ "$1" = build ] && {{ {edit}; }}\nexec cargo "$@"\n')
    script.chmod(0o755)
    first = _build(there, tmp_path, CARGO=str(script)).rustc
    if when == "then":
        assert first == []
    settle()
    # Once, in this build or in the next one: all files of its package are held to be read.
    assert first + _build(there, tmp_path).rustc == ["app"]
    assert _told(there) == ("b" if what == "content" else "a")
    assert _build(there, tmp_path).rustc == []


def test_a_build_that_runs_is_waited_for_and_told(there: Path, tmp_path: Path) -> None:
    source = there / "looking/src/lib.rs"
    source.write_text(source.read_text())
    with build_lock(there / "target"):
        command = [sys.executable, "-m", "cargo_cow", "build"]
        waiting = subprocess.Popen(
            command, cwd=there, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert waiting.stdout is not None
        assert "waiting for Cargo's build lock" in waiting.stdout.readline()
    assert "Finished" in waiting.communicate(timeout=60)[0]
    assert waiting.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_ended_while_cargo_waits(there: Path, tmp_path: Path, number: signal.Signals) -> None:
    """The lock is free at once, nobody waits for ever, and the next build is right."""
    write(there, {"app/data": "b"})
    settle()
    environment = {**os.environ, "PATH": _slow_git(tmp_path, 20), "CARGO_COW_IDENTITY": "off"}
    command = [sys.executable, "-m", "cargo_cow", "build"]
    started = time.monotonic()
    running = subprocess.Popen(
        command,
        cwd=there,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (tmp_path / "slow/asked").exists() and time.monotonic() < started + 15:
        time.sleep(0.01)
    time.sleep(0.3)
    if number == signal.SIGKILL:
        running.kill()
    else:
        os.killpg(running.pid, number)
    assert running.wait(15) in (-number, 128 + number, 130)
    assert time.monotonic() - started < 15
    with build_lock(there / "target", waiting=lambda _: None):
        pass
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)  # git still takes its time, in the checkout
    assert _build(there, tmp_path).rustc == ["app"]
    assert _told(there) == "b"
