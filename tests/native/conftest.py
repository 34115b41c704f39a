"""The built program, and calls of the shim with a compiler that does what a test says."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cargo_cow import native
from cargo_cow.errors import NativeMissing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MANIFEST = Path(__file__).parents[2] / "native" / "Cargo.toml"
HASH = "0123456789abcdef"


@pytest.fixture(scope="session")
def native_program(_scrubbed_environment: None) -> Path:
    """The program under test; built once where there is none."""
    try:
        return native.program()
    except NativeMissing:
        command = ["cargo", "build", "--release", "--locked", "--manifest-path", str(MANIFEST)]
        subprocess.run(command, check=True)
        return native.program()


class Unit(NamedTuple):
    """A unit of Cargo's old layout in a workspace of its own, and the shim called for it."""

    shim: Path
    root: Path

    @property
    def deps(self) -> Path:
        return self.root / "target" / "debug" / "deps"

    @property
    def fingerprint(self) -> Path:
        return self.root / "target" / "debug" / ".fingerprint" / f"app-{HASH}"

    @property
    def stamp(self) -> Path:
        return self.fingerprint / "invoked.timestamp"

    @property
    def observed(self) -> Path:
        return self.fingerprint / "cow-observed.json"

    @property
    def dep_info(self) -> Path:
        return self.deps / f"app-{HASH}.d"

    @property
    def compiler(self) -> Path:
        return self.root / "rustc"

    def arguments(self) -> list[str]:
        """What Cargo passes for a library."""
        return [
            *("--crate-name", "app", "--edition=2021", "src/lib.rs", "--error-format=json"),
            *("--crate-type", "lib", "--emit=dep-info,metadata,link", "-C", "metadata=1"),
            *("-C", f"extra-filename=-{HASH}", "--out-dir", str(self.deps)),
        ]

    def environment(self, does: str = "") -> dict[str, str]:
        """What Cargo sets; ``does`` is a shell program that the fake compiler runs."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "CARGO_MANIFEST_DIR": str(self.root),
            "CARGO_PKG_NAME": "app",
            "FAKE": does,
        }

    def writes(self, *files: str) -> str:
        """For ``does``: a dep-info that lists these files (spaces escaped by the caller)."""
        return f"printf '%s\\n' '{self.dep_info}: {' '.join(files)}' > '{self.dep_info}'\n"

    def call(
        self,
        does: str = "",
        arguments: Sequence[str | bytes] | None = None,
        environment: Mapping[str, str] | None = None,
        compiler: Sequence[str | Path] | None = None,
        announced: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        if announced and self.stamp.exists():
            self.stamp.touch()  # as Cargo does just before
        words = [self.compiler] if compiler is None else compiler
        arguments = self.arguments() if arguments is None else arguments
        return subprocess.run(
            [self.shim, *words, *arguments],
            cwd=self.root,
            env=self.environment(does) if environment is None else environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def unit(native_program: Path, tmp_path: Path) -> Unit:
    made = Unit(native_program, tmp_path / "work space")
    made.fingerprint.mkdir(parents=True)
    made.deps.mkdir()
    (made.root / "src").mkdir()
    for name in ("lib.rs", "b.rs"):
        (made.root / "src" / name).write_text(f"// {name}\n")
    made.compiler.write_text('#!/bin/sh\neval "$FAKE"\n')
    made.compiler.chmod(0o755)
    made.stamp.touch()
    time.sleep(0.02)  # all of it is certainly older than what the shim starts
    return made
