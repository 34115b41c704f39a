"""What is compared: ways to get from a commit to a built checkout.

Each way has checkouts of its own under the scratch directory; all of them use the same Cargo,
the same counted compiler and the same arguments.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cargo_cow import filesystems
from cargo_cow.bench import caches, counting, processes, projects
from cargo_cow.bench.caches import KACHE, MBX, SCCACHE
from cargo_cow.cargo.target import CACHE_TAG
from cargo_cow.errors import CowError, NativeMissing

PLAIN, COW, SHIM, REFLINK, TOUCHED = "plain", "cow", "shim", "reflink", "reflink-touched"
OWN_PLACE = "cow-own-place"
UNOBSERVED = "cow-unobserved"
COW_WAREHOUSE, SHIM_WAREHOUSE = "cow-warehouse", "shim-warehouse"

TOOLS: Mapping[str, str] = {
    PLAIN: "git worktree add, cargo build",
    COW: "cargo cow worktree add, cargo cow build; the shim as RUSTC_WRAPPER",
    OWN_PLACE: "the same with CARGO_COW_IDENTITY=off: rustc sees each worktree where it lies",
    UNOBSERVED: "as cow, with CARGO_COW_OBSERVE=off: what a compile reads is not watched",
    COW_WAREHOUSE: "as cow, with a warehouse (CARGO_COW_WAREHOUSE) of its own",
    SHIM: "git worktree add, cargo build; the shim as RUSTC_WRAPPER",
    SHIM_WAREHOUSE: "as shim, with the warehouse of cow-warehouse",
    REFLINK: "git worktree add, cp -a --reflink of the target, cargo build",
    TOUCHED: "the same, then the copy touched: UNSAFE, Cargo calls changed code fresh",
    SCCACHE: "git worktree add, cargo build; sccache as RUSTC_WRAPPER, CARGO_INCREMENTAL=0",
    KACHE: "git worktree add, cargo build; kache as RUSTC_WRAPPER, its daemon running",
    MBX: "git worktree add, mbx build; targets in the checkouts (MBX_TARGET_VIEWS=false)",
}

# Whose built main checkout a way starts from, which is thus built once.
_MAIN_OF = {tool: tool for tool in TOOLS} | {
    OWN_PLACE: COW,
    SHIM: COW,
    SHIM_WAREHOUSE: COW_WAREHOUSE,
    REFLINK: PLAIN,
    TOUCHED: PLAIN,
}
_COW = (COW, OWN_PLACE, UNOBSERVED, COW_WAREHOUSE)
_SHIMMED = (*_COW, SHIM, SHIM_WAREHOUSE)
_WITH_WAREHOUSE = (COW_WAREHOUSE, SHIM_WAREHOUSE)


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
        self._caches: dict[str, caches.Cache] = {}

    def __enter__(self) -> Bench:
        processes.adopt()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop what a tool left running: servers outlive their clients."""
        with suppress(processes.StepFailed):
            processes.finished()
        for tool in list(self._caches):
            self._stop(tool)
        processes.adopt(on=False)

    # --- checkouts ---------------------------------------------------------------------------

    def main(self, tool: str) -> Path:
        """The tool's main checkout at the first revision; made when first asked for."""
        root = self.home(tool) / "main"
        if not root.exists():
            self.clone(root)
            if main_of(tool) in _COW:
                # As `cargo cow init` leaves a main checkout: ready to be snapshotted.
                self.new_target(root)
        return root

    def home(self, tool: str) -> Path:
        """Where the tool's checkouts lie."""
        return self.room / main_of(tool)

    def clone(self, root: Path) -> None:
        """A repository of its own at the first revision, that knows of no other checkout."""
        root.parent.mkdir(parents=True, exist_ok=True)
        words = ["clone", "-q", "--shared", "--no-checkout"]
        projects.git([*words, str(self.project.repository), str(root)], self.room)
        self.switch(root, self.project.revisions[0])

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
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystems.create_target(target)
        (target / "CACHEDIR.TAG").write_text(CACHE_TAG)

    def forget_target(self, root: Path) -> None:
        target = self.target(root)
        if target.exists():
            try:
                filesystems.remove_target(target)
            except CowError:
                shutil.rmtree(target)

    def forget_cache(self, tool: str) -> None:
        """Empty what the tool has stored; its server holds the store open, and ends."""
        self._stop(tool)
        if self.store(tool).exists():
            shutil.rmtree(self.store(tool))

    def store(self, tool: str) -> Path:
        """Where the tool keeps what it gives to other builds; on the checkouts' filesystem."""
        return self.room / "stores" / main_of(tool)

    def _stop(self, tool: str) -> None:
        cache = self._caches.pop(tool, None)
        if cache is not None and cache.stop:
            env = {**self._env, **cache.environment}
            processes.run(cache.stop, cwd=self.room, env=env, check=False)

    # --- builds ------------------------------------------------------------------------------

    def build(self, tool: str, root: Path, *, seeding: bool = True) -> Built:
        """``cargo build`` (or ``cargo cow build``) in a checkout; raises StepFailed."""
        extra = {} if seeding else {"CARGO_COW_SEEDING": "1"}
        self.counter.forget()
        result = self._run(tool, self._build_words(tool), self.workspace(root), extra)
        return Built(result.seconds, self.counter.take(result.stderr))

    def build_at_once(self, tool: str, roots: Sequence[Path]) -> Built:
        """The same in several checkouts at the same time; seconds until all are done."""
        # One shell for all of them: whatever stops us stops its whole process group.
        notes = [self.room / f"said-{number}" for number in range(len(roots))]
        words = shlex.join(self._build_words(tool))
        starts = [
            f"(cd {shlex.quote(str(self.workspace(root)))} && exec {words}) "
            f'>/dev/null 2>{shlex.quote(str(note))} & jobs="$jobs $!"'
            for root, note in zip(roots, notes, strict=True)
        ]
        ends = "for job in $jobs; do wait $job || failed=1; done; exit ${failed:-0}"
        self.counter.forget()
        result = self._run(tool, ["sh", "-c", "\n".join([*starts, ends])], self.room, check=False)
        said = "".join(note.read_text(errors="replace") for note in notes)
        if result.status != 0:
            raise processes.StepFailed(f"building at once with {tool} failed\n{said[-2000:]}")
        return Built(result.seconds, self.counter.take(said))

    def _build_words(self, tool: str) -> list[str]:
        if tool in _COW:
            words = ["cargo", "cow", "build"]
        elif tool == MBX:
            words = [self._cache(tool).program, "build"]
        else:
            words = ["cargo", "build"]
        return [*words, "--verbose", *self.cargo_args]

    def prepare(self, root: Path) -> tuple[float, dict[str, Any]]:
        """``cargo cow prepare`` alone: seconds and its own report."""
        words = ["cargo", "cow", "prepare", "--format", "json"]
        result = self._run(COW, words, self.workspace(root))
        report: dict[str, Any] = {}
        with suppress(ValueError):
            report = json.loads(result.stdout)
        return result.seconds, report

    def statistics(self, tool: str) -> dict[str, Any]:
        """``cargo cow stats`` of the tool's warehouse."""
        words = ["cargo", "cow", "stats", "--format", "json", "--no-disk"]
        words += ["--store", str(self.store(tool))]
        told: dict[str, Any] = json.loads(self._run(tool, words, self.room).stdout)
        return told

    def cow(self, root: Path, *words: str) -> processes.Result:
        """``cargo cow WORDS`` in a checkout; raises StepFailed."""
        return self._run(COW, ["cargo", "cow", *words], self.workspace(root))

    def _run(
        self,
        tool: str,
        words: Sequence[str],
        cwd: Path,
        extra: Mapping[str, str] | None = None,
        *,
        check: bool = True,
    ) -> processes.Result:
        env = {**self._env, **(extra or {})}
        if tool in _SHIMMED:
            env["RUSTC_WRAPPER"] = os.fspath(native_program())
        if tool == OWN_PLACE:
            env["CARGO_COW_IDENTITY"] = "off"
        if tool == UNOBSERVED:
            env["CARGO_COW_OBSERVE"] = "off"
        if tool in _WITH_WAREHOUSE:
            # The store itself is made by whoever first wants it, with its modes.
            self.store(tool).parent.mkdir(parents=True, exist_ok=True)
            env["CARGO_COW_WAREHOUSE"] = os.fspath(self.store(tool))
        if tool in caches.NAMES:
            env.update(self._cache(tool).environment)
        return processes.run(words, cwd=cwd, env=env, check=check)

    def _cache(self, tool: str) -> caches.Cache:
        """The tool's settings; its server is started when it is first asked for."""
        if tool not in self._caches:
            cache = caches.settings(tool, self.store(tool))
            self._caches[tool] = cache
            if cache.start:
                env = {**self._env, **cache.environment}
                processes.run(cache.start, cwd=self.room, env=env)
        return self._caches[tool]


def main_of(tool: str) -> str:
    """The tool that builds this tool's main checkout and fills its store."""
    return _MAIN_OF[tool]


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
