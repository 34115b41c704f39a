"""Histories of checkouts, as data, and the world in which they are played.

A *history* is a workspace and a list of steps, all plain JSON.  ``World`` plays it on disk with a
tool in place of ``cargo build`` and judges every build against two others at the same path:

* the *twin*: plain Cargo with a target of its own that has seen the same history of this checkout.
  It is bound over the checkout's target in a private mount namespace, so that paths agree.  A new
  worktree's twin starts empty: its first build is a clean one.
* a *clean* build into an empty target, made the same way, where the tool and the twin differ.

Each thing seen must be what the clean build shows, or what the twin shows: then plain Cargo itself
is blind in place (a macro reads a file, a script declares too little), and being no blinder is what
is asked of us.  Beside that a build must leave nothing to do for a plain one, must not touch
sources, and must not show the path of another checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cargo_cow import filesystems, native

from . import observe as observing
from .observe import Observation
from .tools import Tool, git
from .workspaces import Rendered, Workspace, generate, render, write

Step = dict[str, Any]

SOURCE = Path(__file__).resolve().parents[2] / "src"
OLD_STYLE = ("declares_nothing", "git_silent")  # scripts for which sources' times may be put back


class History(NamedTuple):
    """``layout`` is ``legacy`` or ``new``: how Cargo lays out its target.

    ``bare``: the repository is a bare one, and ``main`` a worktree of it.  ``prefix`` begins the
    name of every checkout's directory.
    """

    workspace: Workspace
    steps: tuple[Step, ...]
    layout: str = "legacy"
    bare: bool = False
    prefix: str = ""

    def to_json(self) -> str:
        plain = {"workspace": self.workspace.to_json(), "steps": list(self.steps)}
        return json.dumps({**self._asdict(), **plain})

    @classmethod
    def from_json(cls, text: str) -> History:
        data = json.loads(text)
        workspace = Workspace.from_json(data["workspace"])
        return cls(**{**data, "workspace": workspace, "steps": tuple(data["steps"])})


class Finding(NamedTuple):
    """``kind``: ``stale``, ``foreign``, ``status``, ``needless`` or ``touched``."""

    kind: str
    step: int
    checkout: str
    key: str
    got: str | None
    clean: str | None

    def __str__(self) -> str:
        return (
            f"{self.kind} after step {self.step} in {self.checkout}: {self.key}\n"
            f"    got   {self.got}\n    clean {self.clean}"
        )


class Call(NamedTuple):
    """A Cargo call; ``inside`` is the directory it is made in, relative to the workspace root."""

    verb: str
    args: tuple[str, ...]
    inside: str

    def argv(self) -> list[str]:
        return [self.verb, "--message-format=json", *self.args]

    def __str__(self) -> str:
        return " ".join([f"({self.inside})"] * bool(self.inside) + [self.verb, *self.args])


class Count(NamedTuple):
    """Cargo's verdicts in the first build of a checkout that was not the first of the project."""

    fresh: int
    dirty: int


def environment(root: Path, layout: str) -> dict[str, str]:
    """A scrubbed environment with a home of its own; the compiler is named without a proxy."""
    sysroot = subprocess.run(
        ["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True
    ).stdout.strip()
    for name in ("home", "cargo-home", "tmp"):
        (root / name).mkdir(exist_ok=True)
    env = {
        "PATH": f"{sysroot}/bin:{os.environ['PATH']}",
        "HOME": str(root / "home"),
        "CARGO_HOME": str(root / "cargo-home"),
        "CARGO_NET_OFFLINE": "true",
        "CARGO_TERM_COLOR": "never",
        "TMPDIR": str(root / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(SOURCE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        # What outlives a step would keep its filesystem busy.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "cargo-cow.compact",
        "GIT_CONFIG_VALUE_0": "false",
    }
    for who in ("AUTHOR", "COMMITTER"):
        env |= {
            f"GIT_{who}_NAME": "oracle",
            f"GIT_{who}_EMAIL": "oracle@localhost",
            f"GIT_{who}_DATE": "2024-01-01T00:00:00Z",
        }
    if named := os.environ.get("CARGO_COW_NATIVE"):
        env["CARGO_COW_NATIVE"] = named
    if layout == "new":
        env["__CARGO_TEST_CHANNEL_OVERRIDE_DO_NOT_USE_THIS"] = "nightly"
        env["CARGO_UNSTABLE_BUILD_DIR_NEW_LAYOUT"] = "true"
    return env


class World:
    """A project on disk with its checkouts, played step by step."""

    def __init__(self, root: Path, history: History, tool: Tool) -> None:
        self.root = root
        self.workspace = history.workspace
        self.tool = tool
        self.env = environment(root, history.layout)
        self.variables: dict[str, str] = {}
        self.findings: list[Finding] = []
        self.firsts: list[Count] = []
        self.builds = 0
        self.failed = 0  # builds of which nothing could be seen, because the sources do not compile
        self.log: list[str] = []
        self.step = -1
        self._built: set[str] = set()
        self._build_times: dict[str, list[int]] = {}
        self._serial = 0
        self._prefix = history.prefix
        first = root / "first" if history.bare else self._place("main")
        first.mkdir()
        self.rendered: Rendered = write(self.workspace, first)
        self.checkouts: dict[str, Path] = {"main": self._place("main")}
        git(first, self.env, "init", "-q", "-b", "main")
        observing.run(["cargo", "generate-lockfile"], first / self.workspace.root, self.env)
        git(first, self.env, "add", "-A")
        git(first, self.env, "commit", "-q", "-m", "first")
        if history.bare:
            git(root, self.env, "clone", "-q", "--bare", str(first), "bare.git")
            shutil.rmtree(first)
            main = str(self.checkouts["main"])
            git(root / "bare.git", self.env, "worktree", "add", "-q", main, "main")

    # --- reading ---------------------------------------------------------------------------

    def _place(self, name: str) -> Path:
        return self.root / f"{self._prefix}{name}"

    def _cwd(self, name: str) -> Path:
        return self.checkouts[name] / self.workspace.root

    def _targets(self, name: str) -> list[Path]:
        cwd = self._cwd(name)
        every = [cwd / target for target in self.workspace.targets()]
        if (named := self.variables.get("CARGO_TARGET_DIR")) is not None:
            every[0] = cwd / named
        return every

    def _twin(self, name: str) -> Path:
        # Plain Cargo is blind to a change of place: each place has a twin of its own.
        return self.root / ("twins-inside" if self._is_inside() else "twins") / name

    def _is_inside(self) -> bool:
        return self.tool.is_inside(self.step)

    def _view(self, cwd: Path) -> tuple[list[str], str, dict[str, str]]:
        """The words that make sandbox mode's view without preparing, the directory, variables."""
        program = [sys.executable, "-m", "cargo_cow", "enter", "--dry-run", "--format", "json"]
        status, out, err = observing.run(program, cwd, self._environment())
        assert status == 0, err
        view = json.loads(out)
        room = Path(view["fixed_path"]).parent
        room.mkdir(parents=True, exist_ok=True)
        words = [str(native.program()), "--enter", "--room", str(room)]
        for bind in view["binds"]:
            if Path(bind["real"]).exists():
                words += ["--bind", bind["real"], bind["seen"]]
        return (
            [*words, "--directory", view["directory"], "--"],
            view["directory"],
            view["environment"],
        )

    def _environment(self) -> dict[str, str]:
        return {**self.env, **self.variables}

    def _sources(self, name: str) -> dict[str, tuple[int, int, int]]:
        """Size, mtime and inode of every file of a checkout outside git and the targets."""
        checkout, left = self.checkouts[name], {}
        skipped = {str(self._cwd(name) / t) for t in (*self.workspace.targets(), "other")}
        old = self._old_style(name)
        for directory, names, files in os.walk(checkout):
            names[:] = [
                n
                for n in names
                if n not in (".git", ".worktrees", ".cargo-cow")
                and str(Path(directory, n)) not in skipped
            ]
            for file in files:
                path = Path(directory, file)
                stat = path.lstat()
                loose = file == "Cargo.lock" or any(path.is_relative_to(place) for place in old)
                if file not in (".git", "written.rs"):  # the latter is a script's
                    mtime = 0 if loose else stat.st_mtime_ns
                    left[str(path)] = (stat.st_size, mtime, stat.st_ino)
        return left

    def _old_style(self, name: str) -> list[Path]:
        places = []
        for member in self.workspace.members:
            if member.script in OLD_STYLE:
                root = self.checkouts[name] / ("" if member.place == "side" else self._nest())
                inner = {"crates": f"crates/{member.name}", "side": f"side/{member.name}"}
                places.append(root / inner.get(member.place, ""))
        return places

    def _nest(self) -> str:
        return self.workspace.root

    # --- builds ----------------------------------------------------------------------------

    def _plain(self, name: str, call: Call, place: Path) -> Observation:
        """Plain Cargo with the targets in ``place`` bound over the checkout's own."""
        script = ""
        made = []
        for target in self._targets(name):
            ours = place / target.name
            ours.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.mkdir(parents=True)
                made.append(target)
            script += f"mount --bind '{ours}' '{target}' && "
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script + 'exec "$@"']
        cwd = self._cwd(name) / call.inside
        argv.append("sh")
        env, seen = self._environment(), str(cwd)
        if self._is_inside():
            words, seen, more = self._view(cwd)
            argv += words
            env |= more
        argv += [sys.executable, observing.__file__, seen, "cargo", *call.argv()]
        status, out, err = observing.run(argv, cwd, env)
        for target in made:
            target.rmdir()
        assert status == 0, err
        return Observation.from_json(out)

    def _clean(self, name: str, call: Call) -> Observation:
        place = self.root / "clean"
        shutil.rmtree(place, ignore_errors=True)
        try:
            return self._plain(name, call, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _tool_build(
        self, name: str, call: Call, by: str = "tool", kill_after: float | None = None
    ) -> Observation:
        cwd = self._cwd(name) / call.inside
        env = {**self._environment(), **self.tool.environment()}
        self._build_times.setdefault(name, []).append(time.time_ns())
        if self._is_inside():
            got = self._inside(call, cwd, env, kill_after)
        else:
            got = self._outside(name, call, cwd, env, by, kill_after)
        if name not in self._built and self._built:
            self.firsts.append(Count(len(got.fresh), len(got.dirty)))
        self._built.add(name)
        return got

    def _outside(
        self,
        name: str,
        call: Call,
        cwd: Path,
        env: dict[str, str],
        by: str,
        kill_after: float | None,
    ) -> Observation:
        argv = self.tool.cargo()
        if by == "plain" and not self.tool.changes_place:
            argv = ["cargo"]
        else:
            target = self._targets(name)[0]
            was_there = target.exists()
            self.tool.before_build(self.checkouts[name], target)
            if was_there and not target.exists():
                # Plain Cargo begins anew as well: what it would not ask again is asked now.
                shutil.rmtree(self._twin(name) / target.name, ignore_errors=True)
        if by == "prepare" and (prepare := self.tool.prepare()) is not None:
            status, _, err = observing.run(prepare, cwd, env, kill_after=kill_after)
            assert status == 0 or kill_after is not None, err
            argv = ["cargo"]
        return observing.observe([*argv, *call.argv()], cwd, env, kill_after=kill_after)

    def _inside(
        self, call: Call, cwd: Path, env: dict[str, str], kill_after: float | None
    ) -> Observation:
        """A build in sandbox mode, and all programs run there, as nothing else could."""
        _, seen, _ = self._view(cwd)
        argv = [*self.tool.cargo(), "enter", "--", sys.executable, observing.__file__, seen]
        status, out, err = observing.run(
            [*argv, "cargo", *call.argv()], cwd, env, kill_after=kill_after
        )
        if kill_after is not None:
            return Observation(False, {}, (), (), err)
        assert status == 0, err
        return Observation.from_json(out)

    def _judge(self, name: str, call: Call, got: Observation) -> None:
        twin = self._plain(name, call, self._twin(name))
        self.log.append(
            f"{self.step:3} {name} {call}: {len(got.fresh)} fresh, {len(got.dirty)} dirty"
            f" (plain: {len(twin.dirty)} dirty){'' if got.ok else ' failed'}"
        )
        if (got.ok, got.seen) != (twin.ok, twin.seen) and (got.ok or twin.ok):
            self._differ(name, got, twin, self._clean(name, call))
        self.failed += not got.ok
        if got.ok:
            cwd = self._cwd(name) / call.inside
            argv, env = ["cargo", *call.argv()], self._environment()
            if self._is_inside():
                words, _, more = self._view(cwd)
                argv, env = [*words, *argv], env | more
            again = observing.observe(argv, cwd, env, programs=False)
            if again.dirty:
                plain = self._plain(name, call, self._twin(name))
                for unit in sorted(set(again.dirty) - set(plain.dirty)):
                    self._find("needless", name, unit, "dirty", "fresh")

    def _differ(self, name: str, got: Observation, twin: Observation, clean: Observation) -> None:
        if got.ok not in (twin.ok, clean.ok):
            self._find("status", name, got.text[-2000:], str(got.ok), str(clean.ok))
            return
        if not got.ok:
            return
        foreign = [str(path) for other, path in self.checkouts.items() if other != name]
        for key in sorted({*got.seen, *twin.seen, *clean.seen}):
            mine, right = got.seen.get(key), clean.seen.get(key)
            if mine in (right, twin.seen.get(key)):
                continue
            leaks = any(re.search(re.escape(path) + r"(?![\w-])", mine or "") for path in foreign)
            self._find("foreign" if leaks else "stale", name, key, mine, right)

    def _find(self, kind: str, name: str, key: str, got: str | None, clean: str | None) -> None:
        self.findings.append(Finding(kind, self.step, name, key, got, clean))

    def _do_build(self, at: str, by: str = "tool", **how: Any) -> None:
        call = self._call(at, **how)
        before = self._sources(at)
        got = self._tool_build(at, call, by)
        after = self._sources(at)
        for path in sorted({*before, *after}):
            swept = path not in after and ".cow-" in path  # left by an interrupted build
            if before.get(path) != after.get(path) and not swept:
                self._find("touched", at, path, str(after.get(path)), str(before.get(path)))
        self.builds += 1
        self._judge(at, call, got)

    def _call(
        self, at: str, args: Sequence[str] = (), verb: str = "build", inside: str = ""
    ) -> Call:
        known = (self._cwd(at) / inside).is_dir()  # members go when histories shrink
        return Call(verb, tuple(args), inside if known else "")

    def _do_interrupt(self, at: str, after: float, **how: Any) -> None:
        call = self._call(at, **how)
        self._plain(at, call, self._twin(at))
        self._tool_build(at, call, kill_after=after)

    def _do_during(self, at: str, after: float, change: Step, **how: Any) -> None:
        """A change while a build runs; the twin builds before both."""
        call = self._call(at, **how)
        self._plain(at, call, self._twin(at))
        with self._meanwhile(lambda: self._tool_build(at, call)):
            time.sleep(after)
            self._play(change)

    def _do_race(self, at: str, new: str, after: float, **how: Any) -> None:
        """A new worktree from a checkout in which a build runs."""
        call = self._call(at, **how)
        self._plain(at, call, self._twin(at))
        with self._meanwhile(lambda: self._tool_build(at, call)):
            time.sleep(after)
            self._do_worktree(at, new)
            if new in self.checkouts:
                self._tool_build(new, call)

    @contextlib.contextmanager
    def _meanwhile(self, work: Callable[[], object]) -> Iterator[None]:
        failed: list[BaseException] = []

        def watched() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                failed.append(error)

        thread = threading.Thread(target=watched)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        if failed:
            raise failed[0]

    def _do_clean(self, at: str) -> None:
        observing.run(["cargo", "clean"], self._cwd(at), self._environment())
        shutil.rmtree(self._twin(at), ignore_errors=True)

    # --- changes ---------------------------------------------------------------------------

    def _times(self, path: Path, how: str, name: str, before: os.stat_result | None) -> None:
        if how == "future":
            when = time.time_ns() + 86_400 * 10**9
        elif how == "past":
            when = 10**18
        elif how == "keep" and before is not None:
            when = before.st_mtime_ns
        elif how == "between" and len(self._build_times.get(name, [])) >= 2:
            times = self._build_times[name]
            when = (times[-1] + times[-2]) // 2
        else:
            return
        os.utime(path, ns=(when, when))

    def _do_edit(self, at: str, input: str, value: int, how: str = "write") -> None:  # noqa: A002 - the word of the steps
        place = self.rendered.inputs.get(input)  # it goes with its member when histories shrink
        if place is None or not (self.checkouts[at] / place.path).is_file():
            return
        path = self.checkouts[at] / place.path
        before = path.stat()
        old = path.read_text()
        pattern = re.escape(place.marker) + r"\d{3}"
        new = re.sub(pattern, lambda _: f"{place.marker}{value}", old)
        if how == "write":
            path.write_text(new)
            return
        aside = path.with_name(f".{path.name}.aside")
        aside.write_text(new)
        aside.replace(path)
        self._times(path, how, at, before)

    def _do_touch(self, at: str, path: str, how: str = "write") -> None:
        file = self.checkouts[at] / path
        if file.exists():
            os.utime(file)
            self._times(file, how, at, None)

    def _do_write(self, at: str, path: str, text: str, how: str = "write") -> None:
        file = self.checkouts[at] / path
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.stat() if file.exists() else None
        file.write_text(text)
        self._times(file, how, at, before)

    def _do_remove(self, at: str, path: str) -> None:
        (self.checkouts[at] / path).unlink(missing_ok=True)

    def _do_move(self, at: str, path: str, to: str) -> None:
        old, new = self.checkouts[at] / path, self.checkouts[at] / to
        if old.is_file() and not new.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            old.rename(new)

    def _do_link(self, at: str, path: str) -> None:
        """The file becomes a symbolic link to a copy beside it."""
        file = self.checkouts[at] / path
        if file.is_file() and not file.is_symlink():
            aside = file.with_name(f"{file.name}.real")
            shutil.copyfile(file, aside)
            file.unlink()
            file.symlink_to(aside.name)

    def _do_symlink(self, at: str, path: str, to: str) -> None:
        """A symbolic link to a file or directory of the checkout, relative to where it stands."""
        link, target = self.checkouts[at] / path, self.checkouts[at] / to
        if target.exists() and not os.path.lexists(link) and link.parent.is_dir():
            link.symlink_to(os.path.relpath(target, link.parent))

    def _do_copy(self, at: str, new: str) -> None:
        """``cp -a`` of a whole checkout, a project of its own: plain Cargo believes its target."""
        if new in self.checkouts or (self.checkouts[at] / ".git").is_file():
            return
        subprocess.run(["cp", "-a", self.checkouts[at], self._place(new)], check=True)
        if self._twin(at).exists():
            subprocess.run(["cp", "-a", self._twin(at), self._twin(new)], check=True)
        self.checkouts[new] = self._place(new)
        self._built.add(new)

    def _git(self, at: str, *args: str) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # conflicts are histories too
            git(self.checkouts[at], self._environment(), *args)

    def _do_commit(self, at: str) -> None:
        self._git(at, "add", "-A")
        self._git(at, "commit", "-q", "--allow-empty", "-m", f"step {self.step}")

    def _do_branch(self, at: str, name: str) -> None:
        self._git(at, "checkout", "-q", "-B", name)

    def _do_tag(self, at: str, name: str) -> None:
        self._git(at, "tag", "-f", name)

    def _do_switch(self, at: str, ref: str) -> None:
        self._git(at, "checkout", "-q", "-f", "--detach", ref)

    def _do_stash(self, at: str) -> None:
        self._git(at, "stash", "push", "-q", "--include-untracked")

    def _do_pop(self, at: str) -> None:
        self._git(at, "stash", "pop", "-q")

    def _do_undo(self, at: str) -> None:
        self._git(at, "checkout", "-q", "-f", "HEAD", "--", ".")

    def _do_worktree(
        self, at: str, new: str, ref: str | None = None, by: str = "tool", nested: bool = False
    ) -> None:
        if new in self.checkouts:
            return
        dest = self.checkouts["main"] / ".worktrees" / new if nested else self._place(new)
        tool = self.tool if by == "tool" else Tool()
        refs = [ref] if ref is not None and self._known(at, ref) else []
        tool.add_worktree(self.checkouts[at], dest, refs, self._environment(), self._nest())
        self.checkouts[new] = dest

    def _known(self, at: str, ref: str) -> bool:
        try:
            git(self.checkouts[at], self.env, "rev-parse", "--verify", "-q", f"{ref}^{{commit}}")
        except subprocess.CalledProcessError:
            return False
        return True

    def _do_drop(self, at: str) -> None:
        if (self.checkouts[at] / ".git").is_dir() and at != "main":
            shutil.rmtree(self.checkouts[at])
            self._forget(at)
        elif at != "main":
            self._git("main", "worktree", "remove", "--force", str(self.checkouts[at]))
            if self.checkouts[at].exists():  # as it may be where files cannot be removed by git
                shutil.rmtree(self.checkouts[at])
                self._git("main", "worktree", "prune")
            self._forget(at)

    def _forget(self, at: str) -> None:
        shutil.rmtree(self._twin(at), ignore_errors=True)
        del self.checkouts[at]
        self._built.discard(at)
        self._build_times.pop(at, None)

    def _do_relocate(self, at: str, new: str) -> None:
        """``git worktree move``: plain Cargo is blind to it, and so may we be."""
        if (self.checkouts[at] / ".git").is_dir() or at == "main" or new in self.checkouts:
            return
        self._git("main", "worktree", "move", str(self.checkouts[at]), str(self._place(new)))
        if self._twin(at).exists():
            self._twin(at).rename(self._twin(new))
        self.checkouts[new] = self._place(new)
        if at in self._built:
            self._built.add(new)
        self._forget(at)

    def _do_set(self, name: str, value: str | None) -> None:
        if value is None:
            self.variables.pop(name, None)
        else:
            self.variables[name] = value

    def _do_sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _play(self, step: Step) -> None:
        if step.get("at", "main") in self.checkouts:
            rest = {key: value for key, value in step.items() if key != "do"}
            getattr(self, f"_do_{step['do']}")(**rest)

    def play(self, steps: Sequence[Step], *, stop: bool = True) -> list[Finding]:
        """Plays steps, up to the first one that finds something unless ``stop`` is off."""
        for step in steps:
            self.step += 1
            self._play(step)
            if stop and self.findings:
                break
        return self.findings


def play(root: Path, history: History, tool: Tool, *, stop: bool = True) -> World:
    """Plays a whole history in a new world below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    world = World(root, history, tool)
    world.play(history.steps, stop=stop)
    return world


# --- random histories ------------------------------------------------------------------------

CALLS: tuple[Step, ...] = (
    {},
    {},
    {},
    {"args": ["--workspace"]},
    {"args": ["--workspace", "--all-targets"]},
    {"args": ["--workspace", "--release"]},
    {"args": ["-p", "app", "--features", "app/extra"]},
    {"args": ["--workspace"], "verb": "check"},
    {"args": ["--workspace", "--no-run"], "verb": "test"},
    {"args": ["--target", "x86_64-unknown-linux-gnu"]},
)

VARIABLES: dict[str, tuple[str, ...]] = {
    "ORACLE_OPTION": ("set1", "set2"),
    "ORACLE_RERUN": ("set1", "set2"),
    "RUSTFLAGS": ("--cfg oracle_flag",),
    "CARGO_INCREMENTAL": ("0",),
    "CARGO_TARGET_DIR": ("other",),
    "CARGO_PROFILE_DEV_OPT_LEVEL": ("1",),
}

HOW = ("write", "write", "write", "replace", "replace", "future", "past", "keep", "between")


class Author:
    """Writes random histories; knows which checkouts exist at each step."""

    def __init__(self, chance: random.Random, workspace: Workspace, rendered: Rendered) -> None:
        self.chance = chance
        self.workspace = workspace
        self.rendered = rendered
        self.checkouts = ["main"]
        self.refs: list[str] = []
        self.serial = 0
        self.prepared: set[str] = set()  # made by the tool, and not built in since

    def _call(self) -> Step:
        turn = self.chance.random()
        members = [member for member in self.workspace.members if member.place == "crates"]
        if turn < 0.15 and members:
            return {"args": ["-p", self.chance.choice(members).package_name]}
        if turn < 0.22 and members:
            return {"inside": f"crates/{self.chance.choice(members).name}"}
        return dict(self.chance.choice(CALLS))

    def _edit(self, at: str) -> Step:
        return {
            "do": "edit",
            "at": at,
            "input": self.chance.choice(sorted(self.rendered.inputs)),
            "value": self.chance.randint(101, 109),
            "how": self.chance.choice(HOW),
        }

    def _file(self) -> str:
        return self.chance.choice(sorted(self.rendered.files))

    def _new_worktree(self, at: str) -> list[Step]:
        names = [name for name in ("w1", "w2", "w3", "w4") if name not in self.checkouts]
        if not names:
            return []
        new = names[0]
        self.checkouts.append(new)
        ref = self.chance.choice([None, None, *self.refs])
        by = self.chance.choice(["tool", "git"])
        if by == "tool":
            self.prepared.add(new)
        nested = self.chance.random() < 0.2
        return [{"do": "worktree", "at": at, "new": new, "ref": ref, "by": by, "nested": nested}]

    def _change(self, at: str) -> list[Step]:
        chance = self.chance
        kind = chance.choices(
            ["edit", "touch", "git", "stash", "undo", "tree", "variable", "dotenv", "move", "link"],
            [10, 2, 4, 1, 1, 3, 1, 1, 1, 0.5],
        )[0]
        if kind == "edit":
            return [self._edit(at) for _ in range(chance.choice([1, 1, 2, 3]))]
        if kind == "touch":
            return [{"do": "touch", "at": at, "path": self._file(), "how": chance.choice(HOW)}]
        if kind == "git":
            if self.refs and chance.random() < 0.6:
                return [{"do": "switch", "at": at, "ref": chance.choice(self.refs)}]
            self.serial += 1
            self.refs.append(f"t{self.serial}")
            return [{"do": "commit", "at": at}, {"do": "tag", "at": at, "name": self.refs[-1]}]
        if kind == "stash":
            return [{"do": chance.choice(["stash", "pop"]), "at": at}]
        if kind == "undo":
            return [{"do": "undo", "at": at}]
        if kind == "tree":
            return self._tree(at)
        if kind == "variable":
            name = chance.choice(sorted(VARIABLES))
            value = chance.choice([None, *VARIABLES[name]])
            return [{"do": "set", "name": name, "value": value}]
        if kind == "dotenv":
            path = chance.choice(
                [".env", "../.env", *self._packages("maybe.ignored"), *self._packages(".env")]
            )
            if chance.random() < 0.3:
                return [{"do": "remove", "at": at, "path": path}]
            text = f"ignored {chance.randint(101, 109)}\n"
            return [{"do": "write", "at": at, "path": path, "text": text}]
        if kind == "move" and self.rendered.moves:
            one, other = chance.choice(self.rendered.moves)
            both = [{"do": "move", "at": at, "path": one, "to": other}]
            back = [{"do": "move", "at": at, "path": other, "to": one}]
            return chance.choice([both, back, both + back])
        return [{"do": "link", "at": at, "path": self._file()}]

    def _packages(self, name: str) -> list[str]:
        manifests = [file for file in self.rendered.files if file.endswith("Cargo.toml")]
        return [str(Path(manifest).parent / name) for manifest in sorted(manifests)]

    def _tree(self, at: str) -> list[Step]:
        """Files that come and go in directories that somebody watches."""
        chance = self.chance
        if not self.rendered.directories:
            return [self._edit(at)]
        directory = chance.choice(self.rendered.directories)
        name = f"{directory}/{chance.choice(['new.txt', 'more.txt', 'one.txt', 'sub/new.txt'])}"
        if chance.random() < 0.2:
            to = chance.choice([self._file(), str(Path(self._file()).parent)])
            if not f"{directory}/".startswith(f"{to}/") and to not in ("", "."):
                return [{"do": "symlink", "at": at, "path": f"{directory}/link", "to": to}]
        if chance.random() < 0.3:
            return [{"do": "remove", "at": at, "path": name}]
        text = f"added {chance.randint(101, 109)}\n"
        how = chance.choice(["write", "write", "past"])
        return [{"do": "write", "at": at, "path": name, "text": text, "how": how}]

    def _plainly_seen(self) -> list[str]:
        """Inputs whose change during a build Cargo sees afterwards, whoever read them."""
        if any(member.script == "git_dirty" for member in self.workspace.members):
            return []
        seen = ("value", "note", "blob", "leaf", "odd", "script", "derived")
        return sorted(name for name in self.rendered.inputs if name.rpartition(".")[2] in seen)

    def _build(self, at: str) -> list[Step]:
        chance = self.chance
        call = self._call()
        kind = chance.choices(
            ["build", "plain", "prepare", "interrupt", "during", "race", "clean"],
            [12, 2, 2, 1.5, 1.5, 0.7, 0.5],
        )[0]
        build: Step = {"do": "build", "at": at, "by": "tool", **call}
        delay = round(chance.uniform(0.05, 1.2), 2)
        if kind == "plain" and at in self.prepared:  # its hidden edits only the tool can know of
            kind = "build"
        self.prepared.discard(at)
        if kind in ("plain", "prepare"):
            return [{**build, "by": kind}]
        if kind == "interrupt":
            return [{"do": "interrupt", "at": at, "after": delay, **call}, build]
        if kind == "during" and (seen := self._plainly_seen()):
            where = chance.choice([at, at, *self.checkouts])
            change = {**self._edit(where), "input": chance.choice(seen), "how": "write"}
            steps: list[Step] = [
                {"do": "during", "at": at, "after": delay, "change": change, **call}
            ]
            if chance.random() < 0.5:
                steps.append({"do": "undo", "at": at})
            return [*steps, build]
        if kind == "race":
            for step in self._new_worktree(at):
                new = step["new"]
                race = {"do": "race", "at": at, "new": new, "after": delay, **call}
                return [race, build, {**build, "at": new}]
        if kind == "clean":
            return [{"do": "clean", "at": at}, build]
        return [build]

    def switch(self, length: int) -> tuple[Step, ...]:
        """Few commits, each of them built, and then to and fro between them."""
        chance = self.chance
        call = self._call()
        steps: list[Step] = []

        def build(at: str) -> None:
            by = chance.choices(["tool", "plain", "prepare"], [8, 1, 1])[0]
            how = call if chance.random() < 0.8 else self._call()
            steps.append({"do": "build", "at": at, "by": by, **how})

        for number in range(chance.choice([2, 2, 3, 4])):
            self.refs.append(f"t{number}")
            if number:
                for _ in range(chance.choice([1, 1, 2])):
                    steps += self._change("main")
            steps += [
                {"do": "commit", "at": "main"},
                {"do": "tag", "at": "main", "name": self.refs[-1]},
            ]
            build("main")
        while len(steps) < length:
            at = chance.choice(["main", "main", *self.checkouts])
            kind = chance.choices(
                ["switch", "stash", "pop", "edit", "change", "worktree", "clean", "interrupt"],
                [10, 2, 2, 2, 2, 1, 0.5, 0.5],
            )[0]
            if kind == "switch":
                steps.append({"do": "switch", "at": at, "ref": chance.choice(self.refs)})
            elif kind in ("stash", "pop", "clean"):
                steps.append({"do": kind, "at": at})
            elif kind == "edit":
                steps.append(self._edit(at))
            elif kind == "change":
                steps += self._change(at)
            elif kind == "interrupt":
                after = round(chance.uniform(0.05, 1.0), 2)
                steps.append({"do": "interrupt", "at": at, "after": after, **call})
            else:
                steps += self._new_worktree(at)
                at = self.checkouts[-1]
            if kind not in ("stash", "edit") or chance.random() < 0.6:
                # A new worktree's hidden edits only the tool can know of.
                if at in self.prepared:
                    steps.append({"do": "build", "at": at, "by": "tool", **call})
                    self.prepared.discard(at)
                else:
                    build(at)
        return tuple(steps)

    def write(self, length: int) -> tuple[Step, ...]:
        chance = self.chance
        steps: list[Step] = []
        if chance.random() < 0.4:  # something ignored that later worktrees lack
            steps.append({"do": "write", "at": "main", "path": ".env", "text": "ignored 100\n"})
        steps += [{"do": "tag", "at": "main", "name": "t0"}]
        self.refs.append("t0")
        if chance.random() < 0.3:  # experiment (e): checkouts older than the target
            steps += self._new_worktree("main")
        by = chance.choice(["tool", "tool", "plain"])
        steps += [{"do": "build", "at": "main", "by": by, **self._call()}]
        while len(steps) < length:
            at = chance.choice([*self.checkouts, self.checkouts[-1]])
            turn = chance.random()
            if turn < 0.28:
                new = self._new_worktree(at)
                steps += new
                at = self.checkouts[-1] if new else at
                if new and chance.random() < 0.4:
                    steps += self._change(at)
                steps += self._build(at)
            elif turn < 0.32 and at != "main":
                steps.append({"do": "drop", "at": at})
                self.checkouts.remove(at)
            elif turn < 0.33 and "copy" not in self.checkouts:
                steps.append({"do": "copy", "at": at, "new": "copy"})
                self.checkouts.append("copy")
            elif turn < 0.35 and at != "main":
                new_name = f"{at}m"
                steps.append({"do": "relocate", "at": at, "new": new_name})
                self.checkouts[self.checkouts.index(at)] = new_name
            else:
                for _ in range(chance.choice([1, 1, 1, 2, 3])):
                    steps += self._change(at)
                steps += self._build(at)
        return tuple(steps)


# --- shrinking -------------------------------------------------------------------------------


def shrink(history: History, fails: Callable[[History], bool], seconds: float) -> History:
    """A shorter history that still fails: drops runs of steps, then parts of the workspace."""
    end = time.monotonic() + seconds
    steps = list(history.steps)
    size = max(1, len(steps) // 2)
    while size >= 1:
        at = 0
        while at < len(steps):
            if time.monotonic() > end:
                return history
            fewer = steps[:at] + steps[at + size :]
            attempt = history._replace(steps=tuple(fewer))
            if fails(attempt):
                steps, history = fewer, attempt
            else:
                at += size
        size //= 2
    for workspace in _smaller(history.workspace):
        if time.monotonic() > end:
            break
        smaller = history._replace(workspace=workspace)
        if fails(smaller):
            return shrink(smaller, fails, end - time.monotonic())
    return history


def _smaller(workspace: Workspace) -> Iterator[Workspace]:
    """The workspace with one member, part or script less."""
    members = workspace.members
    for number, member in enumerate(members):
        if member.name not in ("app", "mac"):
            left = tuple(
                other._replace(uses=tuple(used for used in other.uses if used != member.name))
                for other in members
                if other != member
            )
            yield workspace._replace(members=left)
        for part in member.parts:
            fewer = member._replace(parts=tuple(other for other in member.parts if other != part))
            yield workspace._replace(members=(*members[:number], fewer, *members[number + 1 :]))
        if member.script is not None:
            fewer = member._replace(script=None)
            yield workspace._replace(members=(*members[:number], fewer, *members[number + 1 :]))


def report(history: History, world: World) -> str:
    """All that is needed to see and to repeat a failure; the last line is the history as JSON."""
    return "\n".join([*world.log, *(str(found) for found in world.findings), history.to_json()])


# --- hunting ---------------------------------------------------------------------------------


def draw(seed: int, *, switching: bool = False) -> History:
    """The random history of a seed; ``switching``: one of branch switches."""
    chance = random.Random(seed)
    workspace = generate(chance)
    layout = chance.choice(["legacy", "legacy", "new"])
    author = Author(chance, workspace, render(workspace))
    length = chance.choice([10, 20, 30])
    steps = author.switch(length) if switching else author.write(length)
    bare = chance.random() < 0.1
    prefix = chance.choice(["", "", "", "a b ", "ä#$ "])
    return History(workspace, steps, layout, bare, prefix)


def played(place: Path, history: History, tool: Tool) -> World:
    """Plays a history in ``place`` and removes what it made."""
    _sweep(place)
    try:
        return play(place, history, tool)
    finally:
        _sweep(place)


def _sweep(place: Path) -> None:
    """Removes a world; states in it are read-only subvolumes where there are such."""
    shutil.rmtree(place, ignore_errors=True)
    if place.exists():
        filesystems.remove_target(place)


def smallest(place: Path, history: History, tool: Tool, kind: str, seconds: float) -> History:
    """The history shrunk as far as it still finds something of a kind."""

    def fails(attempt: History) -> bool:
        world = played(place, attempt, tool)
        return any(found.kind == kind for found in world.findings)

    return shrink(history, fails, seconds)
