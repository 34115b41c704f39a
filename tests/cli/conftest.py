"""Running commands as ``cargo-cow`` does, with a private CARGO_HOME and a stand-in program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cargo_cow.cli.main import main

FILES = {
    "Cargo.toml": '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/lib.rs": "pub fn one() {}\n",
}


class Ran(NamedTuple):
    """One command: exit status, stdout, stderr."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)


Cow = Callable[..., Ran]


@pytest.fixture
def cow(capfd: pytest.CaptureFixture[str]) -> Cow:
    """``cow("init", "--dry-run")``: through the entry point, errors rendered and all."""

    def run(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ran(status, out, err)

    return run


@pytest.fixture(autouse=True)
def cargo_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private Cargo configuration: nothing here may reach the user's."""
    home = tmp_path / "cargo home"
    home.mkdir()
    monkeypatch.setenv("CARGO_HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return home


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the native program that notes what Cargo called it with, and the chain."""
    path = tmp_path / "bin" / "cargo-cow-native"
    path.parent.mkdir()
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ] || [ "$1" = --enter ]; then\n'
        '  echo \'{"name":"cargo-cow-native","version":"0.1.0","protocol":1}\'\n'
        "  exit 0\n"
        "fi\n"
        f"echo \"$CARGO_COW_CHAIN $*\" >> '{tmp_path}/called'\n"
        'exec "$@"\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("CARGO_COW_NATIVE", str(path))
    return path
