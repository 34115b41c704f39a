"""``--enter``: what is told where, and that no process of ours remains."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest


@pytest.fixture(autouse=True)
def _namespaces(missing: Callable[[str], NoReturn]) -> None:
    """PROBE: the act itself, by another program."""
    words = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--mount"]
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"no mount namespaces: {done.stderr.strip()}")


def _enter(program: Path, *words: str | Path, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program, "--enter", *words], capture_output=True, check=False, timeout=60, **more
    )


def _told(program: Path, *words: str | Path) -> list[dict[str, object]]:
    reading, writing = os.pipe()
    try:
        _enter(program, "--status", str(writing), *words, pass_fds=(writing,))
    finally:
        os.close(writing)
    with os.fdopen(reading) as pipe:
        return [json.loads(line) for line in pipe]


def test_a_view(native_program: Path, tmp_path: Path) -> None:
    room, place, file = tmp_path / "room", tmp_path / "a place", tmp_path / "file"
    room.mkdir()
    (place / "sub").mkdir(parents=True)
    file.write_text("other\n")
    (place / "covered").write_text("own\n")
    words: list[str | Path] = ["--room", room, "--bind", place, room / "seen"]
    words += ["--bind", file, room / "seen/covered", "--directory", room / "seen/sub", "--"]
    done = _enter(native_program, *words, "sh", "-c", "pwd; cat ../covered; touch made; echo $$")
    where, covered, number = done.stdout.decode().split()
    assert (where, covered) == (str(room / "seen/sub"), "other")
    assert number.isdigit()
    assert (place / "sub/made").exists()
    assert (place / "covered").read_text() == "own\n"
    assert list(room.iterdir()) == []
    done = _enter(native_program, *words, "touch", "../../lost")
    assert b"Read-only" in done.stderr


def test_the_process_is_the_command(native_program: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [native_program, "--enter", "--bind", tmp_path, tmp_path, "sh", "-c", "echo $$; exit 3"],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.read()) == process.pid
        assert process.wait() == 3


def test_what_becomes_of_it_is_told(native_program: Path, tmp_path: Path) -> None:
    entered = {"entered": True}
    assert _told(native_program, "true") == [entered]
    first, second = _told(native_program, tmp_path / "no-program")
    assert first == entered
    assert second["errno"] == 2
    (only,) = _told(native_program, "--room", tmp_path / "missing", "true")
    assert only["path"] == str(tmp_path / "missing")
    # Without a descriptor it is told as every verb tells it.
    done = _enter(native_program, "--room", tmp_path / "missing", "true")
    assert done.returncode == 1
    assert json.loads(done.stdout) == only
    for words in (["--bind", "/"], ["--room"], ["--signal", "x", "true"], ["--nonsense", "x"], []):
        done = _enter(native_program, *words)
        assert done.returncode == 1
        assert json.loads(done.stdout)["errno"] is None
