"""The end of the program around Cargo's verbs: Python is not taken apart, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _script(path: Path, text: str) -> dict[str, str]:
    """The environment with a Cargo of our own that has no workspace to tell of."""
    path.write_text(f'#!/bin/sh\n[ "$1" = metadata ] && exit 101\n{text}\n')
    path.chmod(0o755)
    return {**os.environ, "CARGO": str(path)}


@pytest.mark.parametrize("status", [0, 1, 7, 101])
def test_status_and_output_arrive(tmp_path: Path, status: int) -> None:
    environment = _script(tmp_path / "cargo", f"echo cargo; echo said >&2; exit {status}")
    for verb in ("build", "metadata-like", "tree"):
        # Files, not terminals: what is not flushed would be lost.
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            ran = subprocess.run(
                [sys.executable, "-m", "cargo_cow", verb],
                cwd=tmp_path,
                env=environment,
                stdout=out,
                stderr=err,
                check=False,
            )
        assert ran.returncode == status
        assert (tmp_path / "out").read_text() == "cargo\n"
        told = (tmp_path / "err").read_text()
        assert told.endswith("said\n")
        assert ("cargo-cow: warning: not prepared" in told) == (verb != "tree")


def test_a_reader_that_has_gone_changes_no_status(tmp_path: Path) -> None:
    environment = _script(tmp_path / "cargo", "exit 7")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "cargo_cow", "build"]
        ran = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=writer, stderr=writer, check=False
        )
    finally:
        os.close(writer)
    # 141: we had something to say to nobody, as `main` has it.
    assert ran.returncode in (7, 141)
    closed = f"exec '{sys.executable}' -m cargo_cow tree >&- 2>&-"
    ran = subprocess.run(["sh", "-c", closed], cwd=tmp_path, env=environment, check=False)
    assert ran.returncode == 7


def test_our_own_commands_end_as_programs_do(tmp_path: Path) -> None:
    for words, status in ((["--version"], 0), (["snapshot", "nonsense"], 2)):
        ran = subprocess.run(
            [sys.executable, "-m", "cargo_cow", *words],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert ran.returncode == status, ran
        assert ran.stdout or ran.stderr
