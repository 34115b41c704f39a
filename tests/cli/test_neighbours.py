"""Other wrappers beside ours, with real builds: the real sccache where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import FILES, Cow
from tests.support.projects import repository

Count = Callable[[], int]

_STAND_IN = """#!/bin/sh
case $2 in -vV) ;; *) echo >> '{log}' ;; esac
exec "$@"
"""


@pytest.fixture(params=["sccache", "kache", "mbx"])
def neighbour(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Path, Count]]:
    """A wrapper, and how many compiles went through it."""
    real = shutil.which("sccache") if request.param == "sccache" else None
    if real is not None:
        place = tmp_path_factory.mktemp("sccache")
        monkeypatch.setenv("SCCACHE_DIR", str(place / "cache"))
        monkeypatch.setenv("SCCACHE_SERVER_UDS", str(place / "server"))
        monkeypatch.setenv("SCCACHE_IDLE_TIMEOUT", "60")
        yield Path(real), lambda: _requests(real)
        _sccache(real, "--stop-server")
        return
    # How kache and mbx keep what they compile is theirs: here it counts that they are called.
    program, log = tmp_path / "other" / request.param, tmp_path / "compiles"
    program.parent.mkdir()
    program.write_text(_STAND_IN.format(log=log))
    program.chmod(0o755)
    log.touch()
    yield program, lambda: len(log.read_text().splitlines())


def _sccache(program: str, *arguments: str) -> bytes:
    return subprocess.run([program, *arguments], check=True, capture_output=True).stdout


def _requests(program: str) -> int:
    told = json.loads(_sccache(program, "--show-stats", "--stats-format", "json"))
    return int(told["stats"]["compile_requests"])


def test_chained_replaced_and_back(
    neighbour: tuple[Path, Count],
    cow: Cow,
    cargo_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapper, compiles = neighbour
    monkeypatch.delenv("CARGO_COW_NATIVE")
    root = repository(tmp_path / "project", FILES)
    monkeypatch.chdir(root)
    file = cargo_home / "config.toml"
    mine = f'[build]\nrustc-wrapper = "{wrapper}" # mine\n'
    file.write_text(mine)

    def build() -> dict[str, object]:
        """What the shim noted of a clean build."""
        shutil.rmtree(root / "target", ignore_errors=True)
        environment = {key: value for key, value in os.environ.items() if key != "RUSTC_WRAPPER"}
        words = ["cargo", "build", "-q", "--offline"]
        subprocess.run(words, check=True, env=environment)
        assert (root / "target/debug/libtiny.rlib").exists()
        found = list((root / "target").glob("debug/**/cow-observed.json"))
        return json.loads(found[0].read_text()) if found else {}

    assert build() == {}
    plain = compiles()
    assert plain > 0

    ran = cow("init")
    assert f"{wrapper.name} goes on working" in ran.err
    noted = build()
    assert noted["files"]
    assert noted.get("hidden") is None  # its server would go on being observed
    chained = compiles()
    assert chained > plain

    ran = cow("init", "--wrapper-found", "replace")
    assert f"{wrapper.name} is not called any more" in ran.err
    noted = build()
    assert noted["hidden"]
    assert compiles() == chained

    assert cow("uninstall").status == 0
    assert file.read_text() == mine
    assert build() == {}
    assert compiles() > chained
