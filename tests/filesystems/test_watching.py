"""The watch over zfs-fuse: it fails where it should, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from tests.support.watching import watched


def test_who_does_not_answer_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "note"
    with subprocess.Popen(["sleep", "100"]) as server:
        note.write_text(str(server.pid))
        with watched(tmp_path, note, patience=0.5, pause=0.1):
            time.sleep(2)
        assert server.poll() is None
        silent = tmp_path / "ls"
        silent.write_text("#!/bin/sh\nexec sleep 100\n")
        silent.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

        def be_watched() -> None:
            with watched(tmp_path, note, patience=0.5, pause=0.1):
                server.wait(timeout=60)
                time.sleep(1)

        with pytest.raises(pytest.fail.Exception, match="answered nothing"):
            be_watched()
        assert server.returncode == -9
