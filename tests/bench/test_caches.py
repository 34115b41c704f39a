"""Other people's caches: each with a store and settings of this measurement's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.projects import repository

from cargo_cow.bench import caches, processes, projects
from cargo_cow.bench.caches import KACHE, MBX
from cargo_cow.bench.tools import Bench

# As wrapper they are called with the compiler; `mbx build` stands for `cargo build`.
_STUBS = {
    KACHE: '[ "$1" = daemon ] && echo "$2" >>{log} && exit\n'
    'echo "$KACHE_CACHE_DIR|$KACHE_LOCAL_ONLY|$KACHE_REMOTE|$XDG_CONFIG_HOME" >>{log}\n'
    'exec "$@"\n',
    MBX: 'echo "$MBX_CACHE_DIR|$MBX_TARGET_VIEWS|$MBX_REMOTE_URL|$XDG_CONFIG_HOME" >>{log}\n'
    'exec cargo "$@"\n',
}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in _STUBS.items():
        (programs / name).write_text("#!/bin/sh\n" + text.format(log=tmp_path / name))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    # A user's own, which may lead to a server of theirs.
    monkeypatch.setenv("KACHE_REMOTE", "theirs")
    monkeypatch.setenv("MBX_REMOTE_URL", "theirs")
    own = repository(
        tmp_path / "own",
        {
            "Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n',
            "src/lib.rs": "",
            ".gitignore": "/target\n",
        },
    )
    room = tmp_path / "room"
    room.mkdir()
    project = projects.own(own, room / "project", say=lambda _message: None)
    return Bench(project, room, [])


@pytest.mark.parametrize("tool", [KACHE, MBX])
def test_a_users_settings_have_no_part_in_it(bench: Bench, tool: str, tmp_path: Path) -> None:
    with bench:
        assert bench.build(tool, bench.main(tool)).ran.compiled == ("app",)
        store = bench.store(tool)
    setting = "false" if tool == MBX else "1"
    said = (tmp_path / tool).read_text().splitlines()
    calls = {line for line in said if "|" in line}
    assert calls == {f"{store / 'store'}|{setting}||{store / 'config'}"}
    if tool == KACHE:
        # Its daemon runs before the first build, and no longer than the measurement.
        assert (said[0], said[-1]) == ("start", "stop")


def test_an_emptied_store_has_another_server(bench: Bench, tmp_path: Path) -> None:
    with bench:
        bench.build(KACHE, bench.main(KACHE))
        (bench.store(KACHE) / "store").mkdir()
        bench.forget_cache(KACHE)
        assert not bench.store(KACHE).exists()
        bench.forget_target(bench.main(KACHE))
        bench.build(KACHE, bench.main(KACHE))
    said = (tmp_path / KACHE).read_text().splitlines()
    assert [line for line in said if "|" not in line] == ["start", "stop", "start", "stop"]


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(processes, "environment", lambda: {"PATH": str(tmp_path)})
    for tool in caches.NAMES:
        assert caches.program_of(tool) is None
        with pytest.raises(processes.StepFailed, match=f"{tool} is not installed"):
            caches.settings(tool, tmp_path / tool)
        assert not (tmp_path / tool).exists()
