"""What is compared: ways to get from a commit to a built checkout.

Each way has checkouts of its own under the scratch directory; all of them use the same Cargo,
the same counted compiler and the same arguments.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cargo_cow import filesystems
from cargo_cow.bench import counting, processes, projects
from cargo_cow.cargo.target import CACHE_TAG
from cargo_cow.errors import CowError, NativeMissing

PLAIN, COW, SHIM, REFLINK, TOUCHED = "plain", "cow", "shim", "reflink", "reflink-touched"
OWN_PLACE = "cow-own-place"
SCCACHE = "sccache"

TOOLS: Mapping[str, str] = {
    PLAIN: "git worktree add, cargo build",
    COW: "cargo cow worktree add, cargo cow build; the shim as RUSTC_WRAPPER",
    OWN_PLACE: "the same with CARGO_COW_IDENTITY=off: rustc sees each worktree where it lies",
    SHIM: "git worktree add, cargo build; the shim as RUSTC_WRAPPER",
    REFLINK: "git worktree add, cp -a --reflink of the target, cargo build",
    TOUCHED: "the same, then the copy touched: UNSAFE, Cargo calls changed code fresh",
    SCCACHE: "git worktree add, cargo build; sccache as RUSTC_WRAPPER, CARGO_INCREMENTAL=0",
}

# Ways that start from the same built main checkout, which is thus built once.
_MAIN_OF = {
    PLAIN: PLAIN,
    COW: COW,
    OWN_PLACE: COW,
    SHIM: COW,
    REFLINK: PLAIN,
    TOUCHED: PLAIN,
    SCCACHE: SCCACHE,
}
_COW = (COW, OWN_PLACE)


class Built(NamedTuple):
    """One build: its wall-clock time and what it started."""

    seconds: float
    ran: counting.Count


class Added(NamedTuple):
    """A new worktree and the time it took to get, target included."""

    root: Path
    seconds: float


class Bench:
    """A project, a counter and the checkouts of every way."""

    def __init__(
        self,
        project: projects.Project,
        room: Path,
        cargo_args: Sequence[str],
    ) -> None:
        self.project = project
        self.room = room
        self.cargo_args = tuple(cargo_args)
        env = processes.environment()
        # Everything was fetched before; a look at the registry would be measured as a build.
        env["CARGO_NET_OFFLINE"] = "true"
        where = project.repository / project.subdirectory
        self.counter = counting.Counter(room / "counter", counting.real_compiler(where, env))
        self._env = {**env, **self.counter.environment()}
        self._target = _target_of(where, env, project.repository)
        self._sccache: dict[str, str] | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop what a tool left running: sccache's server outlives its clients."""
        if self._sccache is not None:
            words = [self._sccache["RUSTC_WRAPPER"], "--stop-server"]
            env = {**self._env, **self._sccache}
            processes.run(words, cwd=self.room, env=env, check=False)

    # --- checkouts ---------------------------------------------------------------------------

    def main(self, tool: str) -> Path:
        """The tool's main checkout at the first revision; made when first asked for."""
        root = self.room / _MAIN_OF[tool] / "main"
        if not root.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            projects.git(
                [
                    "clone",
                    "-q",
                    "--shared",
                    "--no-checkout",
                    str(self.project.repository),
                    str(root),
                ],
                self.room,
            )
            self.switch(root, self.project.revisions[0])
            if _MAIN_OF[tool] == COW:
                # As `cargo cow init` leaves a main checkout: ready to be snapshotted.
                target = self.target(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.new_target(root)
        return root

    def switch(self, root: Path, revision: str) -> None:
        projects.git(["checkout", "-q", "--detach", revision], root)

    def workspace(self, root: Path) -> Path:
        return root / self.project.subdirectory

    def target(self, root: Path) -> Path:
        return root / self._target

    def add(self, tool: str, name: str, revision: str) -> Added:
        """A worktree of the tool's main checkout, in the tool's own way."""
        main = self.main(tool)
        root = main.parent / name
        words = ["worktree", "add", "--detach", str(root), revision]
        started = time.perf_counter()
        if tool in _COW:
            self._run(tool, ["cargo", "cow", *words], self.workspace(main))
        else:
            projects.git(words, main)
        if tool in (REFLINK, TOUCHED):
            target = self.target(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = ["cp", "-a", "--reflink=auto", "--", str(self.target(main)), str(target)]
            processes.run(copy, cwd=self.room, env=self._env)
            if tool == TOUCHED:
                # One moment for all, as Cargo compares dependencies with their dependents.
                moment = f"--date=@{time.time():.6f}"
                touch = ["find", str(target), "-type", "f", "-exec"]
                touch += ["touch", "--no-create", moment, "{}", "+"]
                processes.run(touch, cwd=self.room, env=self._env)
        return Added(root, time.perf_counter() - started)

    def discard(self, tool: str, root: Path) -> None:
        """Take a worktree away again; never measured."""
        self.forget_target(root)
        projects.git(["worktree", "remove", "--force", "--force", str(root)], self.main(tool))

    def new_target(self, root: Path) -> None:
        """An empty target that can be snapshotted, marked as Cargo marks those it makes."""
        target = self.target(root)
        filesystems.create_target(target)
        (target / "CACHEDIR.TAG").write_text(CACHE_TAG)

    def forget_target(self, root: Path) -> None:
        target = self.target(root)
        if target.exists():
            try:
                filesystems.remove_target(target)
            except CowError:
                shutil.rmtree(target)

    def forget_cache(self) -> None:
        """Empty what sccache has stored; its server holds the store open, and ends."""
        if self._sccache is not None:
            self._run(SCCACHE, [self._sccache["RUSTC_WRAPPER"], "--stop-server"], self.room)
            shutil.rmtree(self.room / "sccache", ignore_errors=True)

    # --- builds ------------------------------------------------------------------------------

    def build(self, tool: str, root: Path, *, seeding: bool = True) -> Built:
        """``cargo build`` (or ``cargo cow build``) in a checkout; raises StepFailed."""
        words = ["cargo", "cow", "build"] if tool in _COW else ["cargo", "build"]
        extra = {} if seeding else {"CARGO_COW_SEEDING": "1"}
        self.counter.forget()
        result = self._run(
            tool, [*words, "--verbose", *self.cargo_args], self.workspace(root), extra
        )
        return Built(result.seconds, self.counter.take(result.stderr))

    def prepare(self, root: Path) -> tuple[float, dict[str, Any]]:
        """``cargo cow prepare`` alone: seconds and its own report."""
        words = ["cargo", "cow", "prepare", "--format", "json"]
        result = self._run(COW, words, self.workspace(root))
        report: dict[str, Any] = {}
        with suppress(ValueError):
            report = json.loads(result.stdout)
        return result.seconds, report

    def cow(self, root: Path, *words: str) -> processes.Result:
        """``cargo cow WORDS`` in a checkout; raises StepFailed."""
        return self._run(COW, ["cargo", "cow", *words], self.workspace(root))

    def _run(
        self,
        tool: str,
        words: Sequence[str],
        cwd: Path,
        extra: Mapping[str, str] | None = None,
    ) -> processes.Result:
        env = {**self._env, **(extra or {})}
        if tool in (*_COW, SHIM):
            env["RUSTC_WRAPPER"] = os.fspath(native_program())
        if tool == OWN_PLACE:
            env["CARGO_COW_IDENTITY"] = "off"
        elif tool == SCCACHE:
            if self._sccache is None:
                self._sccache = _sccache(self.room)
            env.update(self._sccache)
        return processes.run(words, cwd=cwd, env=env)


def sccache_program() -> str | None:
    """Where sccache is, if it is installed."""
    return shutil.which("sccache", path=processes.environment()["PATH"])


def _sccache(room: Path) -> dict[str, str]:
    """Settings of an sccache whose store and server are this measurement's own.

    As its documentation says for Rust: incremental compilation off, for it caches no crate that
    is compiled so.
    """
    program = sccache_program()
    if program is None:
        raise processes.StepFailed("sccache is not installed", hint="leave it out with --tool")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "RUSTC_WRAPPER": program,
        "CARGO_INCREMENTAL": "0",
        "SCCACHE_DIR": os.fspath(room / "sccache"),
        "SCCACHE_SERVER_PORT": str(port),
        # Its server must not end in a pause between two builds, which would be measured.
        "SCCACHE_IDLE_TIMEOUT": "0",
    }


def native_program() -> Path:
    """The shim of this installation, as a user's Cargo would find it."""
    found = shutil.which("cargo-cow-native", path=processes.environment()["PATH"])
    if found is None:
        raise NativeMissing("cargo-cow-native is not beside cargo-cow")
    return Path(found)


def _target_of(workspace: Path, env: Mapping[str, str], repository: Path) -> Path:
    """The target directory relative to the checkout's root."""
    words = ["cargo", "metadata", "--no-deps", "--format-version", "1"]
    metadata = json.loads(processes.run(words, cwd=workspace, env=env).stdout)
    target = Path(metadata["target_directory"])
    if not target.is_relative_to(repository.resolve()):
        raise processes.StepFailed(
            f"the project builds into {target}, outside its checkout: nothing to compare",
            hint="take build.target-dir out of the Cargo configuration for this",
        )
    return target.relative_to(repository.resolve())
