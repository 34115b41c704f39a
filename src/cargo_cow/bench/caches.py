"""Other people's caches for Rust, which take part in a measurement where they are installed.

Each is set up as its documentation says, with a store of its own on the checkouts' filesystem and
without a user's own settings for it.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import NamedTuple

from cargo_cow.bench import processes

SCCACHE, KACHE, MBX = "sccache", "kache", "mbx"
NAMES = (SCCACHE, KACHE, MBX)


class Cache(NamedTuple):
    """How somebody else's cache is used: a store and a server of this measurement's own."""

    program: str
    environment: dict[str, str]
    start: tuple[str, ...] = ()  # starts the server
    stop: tuple[str, ...] = ()


def program_of(tool: str) -> str | None:
    """Where one of the other caches is, if it is installed."""
    return shutil.which(tool, path=processes.environment()["PATH"])


def settings(tool: str, store: Path) -> Cache:
    """How ``tool`` is used with ``store``, which is made; raises StepFailed if it is not there."""
    program = program_of(tool)
    if program is None:
        raise processes.StepFailed(f"{tool} is not installed", hint="leave it out with --tool")
    store.mkdir(parents=True)
    return _SETTINGS[tool](program, store)


def _sccache(program: str, store: Path) -> Cache:
    """As its documentation says for Rust: incremental compilation off, for it caches no crate
    that is compiled so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "RUSTC_WRAPPER": program,
        "CARGO_INCREMENTAL": "0",
        "SCCACHE_DIR": os.fspath(store),
        "SCCACHE_SERVER_PORT": str(port),
        # Its server must not end in a pause between two builds, which would be measured.
        "SCCACHE_IDLE_TIMEOUT": "0",
    }
    return Cache(program, environment, stop=(program, "--stop-server"))


def _kache(program: str, store: Path) -> Cache:
    """What ``kache init`` sets up, without its changes to a user's shell and configuration:
    the wrapper and a running daemon (documentation of 2.0, "Quick start" and "Configuration").
    """
    environment = {
        "RUSTC_WRAPPER": program,
        **_own_configuration(store),
        "KACHE_CACHE_DIR": os.fspath(store / "store"),
        "KACHE_CONFIG": os.fspath(store / "config.toml"),
        "KACHE_HOST_CONFIG": "",
        "KACHE_LOCAL_ONLY": "1",
    }
    (store / "config.toml").touch()
    daemon = (program, "daemon")
    return Cache(program, environment, (*daemon, "start"), (*daemon, "stop"))


def _mbx(program: str, store: Path) -> Cache:
    """``mbx build`` in Cargo's place, as its documentation says; there is no server.

    Its managed targets are off: a target is looked at and removed where Cargo puts it.
    """
    environment = {
        **_own_configuration(store),
        "MBX_CACHE_DIR": os.fspath(store / "store"),
        "MBX_TARGET_VIEWS": "false",
    }
    return Cache(program, environment)


def _own_configuration(store: Path) -> dict[str, str]:
    """A user's own settings have no part in this, and nothing is written to their home."""
    rooms = {"XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache", "XDG_STATE_HOME": "state"}
    return {name: os.fspath(store / room) for name, room in rooms.items()}


_SETTINGS = {SCCACHE: _sccache, KACHE: _kache, MBX: _mbx}
