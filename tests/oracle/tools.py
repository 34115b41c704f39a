"""What the oracle is held against: Cargo-CoW, plain Cargo, and tools that are wrong on purpose.

The wrong ones are mistakes that others made or that lie near (``cargo-facts``: P1, P2 and
experiment (e)); the oracle must find each of them out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def git(checkout: Path, env: Mapping[str, str], *args: str) -> str:
    """Runs git in a checkout; raises where it fails."""
    done = subprocess.run(
        ["git", *args],
        cwd=checkout,
        env=dict(env),
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


class Tool:
    """Plain Cargo; the others differ from it in a few places."""

    name = "cargo"
    changes_place = False
    """Whether a build may find what was built at another path: then plain Cargo is no match."""

    def cargo(self) -> list[str]:
        """The program that stands for ``cargo``."""
        return ["cargo"]

    def prepare(self) -> list[str] | None:
        """The call that only prepares, where there is one."""
        return None

    def before_build(self, checkout: Path, target: Path) -> None:
        """What the tool does by itself before each build."""

    def environment(self) -> dict[str, str]:
        """What the tool adds to the environment of its own and of plain builds."""
        return {}

    def is_inside(self, step: int) -> bool:
        """Whether the build of that step sees its checkout at another path (sandbox mode)."""
        del step
        return False

    def add_worktree(
        self, source: Path, dest: Path, ref: list[str], env: Mapping[str, str], root: str
    ) -> None:
        """A git worktree; ``root`` is the workspace root relative to the checkout."""
        del root  # the tools below need it
        git(source, env, "worktree", "add", "--detach", str(dest), *ref)


class CargoCow(Tool):
    name = "cargo-cow"
    _argv = (sys.executable, "-m", "cargo_cow")

    def cargo(self) -> list[str]:
        return list(self._argv)

    def prepare(self) -> list[str] | None:
        return [*self._argv, "prepare"]

    def add_worktree(
        self, source: Path, dest: Path, ref: list[str], env: Mapping[str, str], root: str
    ) -> None:
        argv = [*self._argv, "worktree", "add", "--detach", str(dest), *ref]
        done = subprocess.run(
            argv, cwd=source / root, env=dict(env), check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


class CargoCowShim(CargoCow):
    """With the shim as RUSTC_WRAPPER, as ``cargo cow init`` sets it up."""

    name = "cargo-cow-shim"

    def environment(self) -> dict[str, str]:
        from cargo_cow import native

        return {"RUSTC_WRAPPER": str(native.program())}


class CargoCowWarehouse(CargoCowShim):
    """With the warehouse, which lies in the history's own home.

    Every third build finds no target: all of it has to come back right.  Every fifth finds an
    entry damaged.
    """

    name = "cargo-cow-warehouse"

    def __init__(self) -> None:
        self.builds = 0

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "CARGO_COW_WAREHOUSE": "on", "CARGO_COW_KEEP": "wait"}

    keeps_target = 3
    """Of so many builds, all but one find a target."""

    def before_build(self, checkout: Path, target: Path) -> None:
        self.builds += 1
        if self.builds % self.keeps_target == 0:
            shutil.rmtree(target, ignore_errors=True)
        if self.builds % 5 == 0:
            home = checkout.parent / "home"
            outputs = sorted(home.glob(".cache/cargo-cow/warehouse/units/*/*/*/0"))
            if outputs:
                victim = outputs[self.builds % len(outputs)]
                victim.chmod(0o600)
                victim.write_bytes(victim.read_bytes()[::-1])


class ShimWarehouse(CargoCowWarehouse):
    """Plain Cargo behind the shim, and never a target: what comes back comes by the shim's door,
    and in worktrees from wherever the compiler sees them."""

    name = "shim-warehouse"
    keeps_target = 1

    def cargo(self) -> list[str]:
        return ["cargo"]

    def prepare(self) -> list[str] | None:
        return None

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "CARGO_COW_SEEDING": "1"}


class CargoCowOwnPlace(CargoCowShim):
    """Without identities: rustc sees every checkout where it lies."""

    name = "cargo-cow-own-place"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "CARGO_COW_IDENTITY": "off"}


class CargoCowNow(CargoCowShim):
    """With identities in every other build, and the shim in most."""

    name = "cargo-cow-now-and-then"

    def __init__(self) -> None:
        self._turn = 0

    def environment(self) -> dict[str, str]:
        self._turn += 1
        shim = super().environment() if self._turn % 3 else {}
        return shim | ({"CARGO_COW_IDENTITY": "off"} if self._turn % 2 else {})


class CargoCowInside(CargoCowShim):
    """In sandbox mode, always; plain Cargo is run there as well."""

    name = "cargo-cow-sandbox"

    def is_inside(self, step: int) -> bool:
        del step
        return True


class CargoCowInAndOut(CargoCowShim):
    """In sandbox mode in some steps, in no order."""

    name = "cargo-cow-in-and-out"
    changes_place = True

    def is_inside(self, step: int) -> bool:
        return step * 7919 % 5 < 2


class GitHooks(Tool):
    """Plain Cargo, prepared by git's hooks alone."""

    name = "git-hooks"

    def before_build(self, checkout: Path, target: Path) -> None:
        """Puts the hooks in before the first build."""
        common = checkout / git(checkout, os.environ, "rev-parse", "--git-common-dir")
        room = common / "oracle"
        if room.exists():
            return
        room.mkdir()
        program = room / "cargo-cow"
        source = Path(__file__).resolve().parents[2] / "src"
        program.write_text(
            f"#!/bin/sh\necho \"$@\" >> '{room}/calls'\n"
            f"PYTHONPATH='{source}' exec '{sys.executable}' -m cargo_cow \"$@\"\n"
        )
        program.chmod(0o755)
        subprocess.run(
            [program, "hooks", "install"],
            cwd=target.parent if (target.parent / "Cargo.toml").is_file() else checkout,
            env={
                **os.environ,
                "CARGO_COW_PROGRAM": str(program),
                "XDG_STATE_HOME": f"{room}/state",
            },
            check=True,
            capture_output=True,
        )


def _touch_all(target: Path) -> None:
    """Gives every file one present time."""
    now = target.stat().st_mtime_ns
    probe = target / ".now"
    probe.touch()
    now = probe.stat().st_mtime_ns
    probe.unlink()
    for directory, _, names in os.walk(target):
        for name in names:
            os.utime(Path(directory, name), ns=(now, now), follow_symlinks=False)


class CopyAndTouch(Tool):
    """Copies the target without its times into a new worktree and touches all of it."""

    name = "copy-and-touch"

    def add_worktree(
        self, source: Path, dest: Path, ref: list[str], env: Mapping[str, str], root: str
    ) -> None:
        super().add_worktree(source, dest, ref, env, root)
        if (source / root / "target").is_dir():
            shutil.copytree(
                source / root / "target",
                dest / root / "target",
                symlinks=True,
                copy_function=shutil.copy,
            )
            _touch_all(dest / root / "target")


class TouchInPlace(Tool):
    """Stamps the whole target before each build."""

    name = "touch-in-place"

    def before_build(self, checkout: Path, target: Path) -> None:
        del checkout
        if target.is_dir():
            _touch_all(target)


class CopyWithTimes(Tool):
    """Copies the target with its times: experiment (e), where the checkout may be older."""

    name = "copy-with-times"

    def __init__(self) -> None:
        self.donor: Path | None = None

    def before_build(self, checkout: Path, target: Path) -> None:
        del checkout
        if self.donor is None:
            self.donor = target
        elif not target.exists():
            subprocess.run(["cp", "-a", self.donor, target], check=True)


class RestoredTimes(Tool):
    """Copies the target and gives unchanged sources the donor's times: paths stay foreign."""

    name = "restored-times"

    def add_worktree(
        self, source: Path, dest: Path, ref: list[str], env: Mapping[str, str], root: str
    ) -> None:
        super().add_worktree(source, dest, ref, env, root)
        subprocess.run(["cp", "-a", source / root / "target", dest / root / "target"], check=True)
        for name in git(dest, env, "ls-files").splitlines():
            ours, theirs = dest / name, source / name
            if theirs.is_file() and ours.read_bytes() == theirs.read_bytes():
                stat = theirs.stat()
                os.utime(ours, ns=(stat.st_atime_ns, stat.st_mtime_ns))


_ALL = (
    Tool,
    CargoCow,
    CargoCowShim,
    CargoCowOwnPlace,
    CargoCowNow,
    CargoCowInside,
    CargoCowInAndOut,
    GitHooks,
    CargoCowWarehouse,
    ShimWarehouse,
    CopyAndTouch,
    TouchInPlace,
    CopyWithTimes,
    RestoredTimes,
)
TOOLS: dict[str, type[Tool]] = {tool.name: tool for tool in _ALL}
