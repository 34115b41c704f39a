"""One warehouse for many: two projects, two users' paths, shared dependencies, a store that rots.

A ``Sharing`` is a workspace that serves as a git dependency, and steps.  Two users each have a
``CARGO_HOME`` and a checkout of two projects; all four build with one store.  Every build starts
without a target, so that all of it passes the warehouse, and must show exactly what plain Cargo
shows there; every other one is that of a checkout which never had a target, and gets whole units
before.  In between the dependency and the projects change, variables are set, and the store is
damaged in every way that comes to mind, once in a while during a build.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from cargo_cow import native

from . import observe as observing
from .histories import Finding, environment
from .observe import Observation
from .tools import git
from .workspaces import BEYOND, PARTS, SCRIPTS, Member, Workspace, generate, render, write

Step = dict[str, Any]

USERS = ("ann", "bob")
PROJECTS = ("one", "two")

# What does not compile in a package that is no member of the workspace (the assembler goes by the
# working directory), what it does not make there (shared objects), and what no warehouse can know
# (docs/correctness.md): a hash of OUT_DIR.
LEFT_OUT = frozenset({"incbin", "hashes_out_dir", "capi"})

VARIABLES: dict[str, tuple[str, ...]] = {
    "ORACLE_OPTION": ("set1", "set2"),
    "ORACLE_MACRO": ("set1", "set2"),
    "ORACLE_RERUN": ("set1", "set2"),
    "RUSTFLAGS": ("--cfg oracle_flag", "-C target-cpu=native"),
    "CARGO_PROFILE_DEV_OPT_LEVEL": ("1",),
}


class Sharing(NamedTuple):
    workspace: Workspace
    steps: tuple[Step, ...]

    def to_json(self) -> str:
        return json.dumps({"workspace": self.workspace.to_json(), "steps": list(self.steps)})

    @classmethod
    def from_json(cls, text: str) -> Sharing:
        data = json.loads(text)
        return cls(Workspace.from_json(data["workspace"]), tuple(data["steps"]))


# --- damage -----------------------------------------------------------------------------------


def _write(path: Path, change: Callable[[bytearray], bytes | bytearray]) -> None:
    path.chmod(0o600)
    path.write_bytes(change(bytearray(path.read_bytes())))


def _flip(chance: random.Random, path: Path) -> None:
    def change(data: bytearray) -> bytearray:
        if data:
            data[chance.randrange(len(data))] ^= 0x55
        return data

    _write(path, change)


def _halve(chance: random.Random, path: Path) -> None:
    del chance
    _write(path, lambda data: data[: len(data) // 2])


def _append(chance: random.Random, path: Path) -> None:
    del chance
    _write(path, lambda data: data + b"more")


def _unlink(chance: random.Random, path: Path) -> None:
    del chance
    path.unlink()


def _forbid(chance: random.Random, path: Path) -> None:
    del chance
    path.chmod(0)


def _open_to_all(chance: random.Random, path: Path) -> None:
    del chance
    path.chmod(0o666)


def _pipe(chance: random.Random, path: Path) -> None:
    del chance
    path.unlink()
    os.mkfifo(path)


def _directory(chance: random.Random, path: Path) -> None:
    del chance
    path.unlink()
    path.mkdir()


def _exchange(one: Path, other: Path) -> None:
    if one != other and one.exists() and other.exists():
        aside = one.with_name(".aside")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)


FILE_DAMAGE = (_flip, _halve, _append, _unlink, _forbid, _open_to_all, _pipe, _directory)


def damage(store: Path, seed: int) -> str:
    """Harms one thing in a store; returns what, for the log."""
    chance = random.Random(seed)
    files = sorted(path for path in store.glob("units/*/*/*/*") if path.is_file())
    entries = sorted(store.glob("units/*/*/*"))
    if not files:
        return "nothing to harm"
    kind = chance.choice(["file"] * 6 + ["outputs", "entries", "keys", "hollow", "memory"])
    if kind == "file":
        path, how = chance.choice(files), chance.choice(FILE_DAMAGE)
        how(chance, path)
        return f"{how.__name__} {path.relative_to(store)}"
    if kind == "memory":
        for path in sorted(store.glob("compilers/*")):
            _flip(chance, path)
    elif kind == "hollow":
        victim = chance.choice(entries)
        shutil.rmtree(victim)
        victim.mkdir()
    else:
        one, other = chance.choice(entries), chance.choice(entries)
        if kind == "outputs":
            _exchange(one / "0", other / "0")
        elif kind == "entries":
            _exchange(one, other)
        else:
            _exchange(one.parent, other.parent)
    return kind


def lie(store: Path, word: bytes, other: bytes) -> None:
    """Rewrites outputs that hold a word, with digests that fit: what no check can find."""
    for meta in store.glob("units/*/*/*/entry.json"):
        value = json.loads(meta.read_text().split("\n")[0])
        for index, output in enumerate(value["outputs"]):
            file = meta.with_name(str(index))
            data = file.read_bytes()
            if word in data and output[3]:
                _write(file, lambda text: text.replace(word, other))
                output[2] = blake3(file.read_bytes()).hexdigest()
        line = json.dumps(value)
        meta.write_text(f"{line}\n{blake3(line.encode()).hexdigest()}\n")


# --- the world --------------------------------------------------------------------------------


class Shared:
    """The shared dependency, four checkouts and a store below ``root``, played step by step."""

    def __init__(self, root: Path, history: Sharing) -> None:
        self.root = root
        self.store = root / "store"
        # The dependency is fetched, from this disk.
        self.env = environment(root, "legacy") | {"CARGO_NET_OFFLINE": "false"}
        self.variables: dict[str, str] = {}
        self.findings: list[Finding] = []
        self.log: list[str] = []
        self.builds = 0
        self.failed = 0
        self.hits = 0
        self.grafted = 0
        self.step = -1
        self._clean: dict[tuple[str, ...], Observation] = {}
        self._revision = 0
        self.shared = root / "shared"
        self.shared.mkdir()
        self.rendered = write(history.workspace, self.shared)
        git(self.shared, self.env, "init", "-q", "-b", "main")
        observing.run(["cargo", "generate-lockfile"], self.shared, self.env)
        self._do_commit()
        for user in USERS:
            (root / user / "cargo-home").mkdir(parents=True)
            for name in PROJECTS:
                self._make(root / user / name, name)

    def _make(self, place: Path, name: str) -> None:
        (place / "src").mkdir(parents=True)
        (place / ".cargo").mkdir()
        (place / "Cargo.toml").write_text(
            f'[package]\nname = "{name}"\nversion = "1.0.0"\nedition = "2021"\n'
            f'[dependencies]\napp.git = "file://{self.shared}"\n[workspace]\n'
            "[profile.dev]\ndebug = 0\n"
        )
        (place / "src/main.rs").write_text(
            "fn main() {\n    app::print();\n"
            f'    println!("obs own = {{:?}}", "{name} 100");\n}}\n'
        )
        git(place, self.env, "init", "-q")
        (place / ".cargo/config.toml").write_text(
            '[env]\nORACLE_CONFIG_PATH = { value = "shared.txt", relative = true }\n'
            'ORACLE_CONFIG_PLAIN = "c100"\n'
        )

    def _plain_env(self, user: str) -> dict[str, str]:
        return {
            **self.env,
            **self.variables,
            "CARGO_HOME": str(self.root / user / "cargo-home"),
        }

    def _do_build(self, user: str, project: str, harm: int | None = None) -> None:
        place = self.root / user / project
        env = self._plain_env(user)
        target = place / "target"
        argv = ["cargo", "build", "--message-format=json"]
        (place / "Cargo.lock").unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        if self.builds % 2:
            # As if it were new; what is asked for can be told where there is a lock file.
            shutil.rmtree(place / ".git/cargo-cow", ignore_errors=True)
            observing.run(["cargo", "generate-lockfile"], place, env)
        shim = {"RUSTC_WRAPPER": str(native.program()), "CARGO_COW_WAREHOUSE": str(self.store)}
        rival = threading.Timer(0.5, lambda: None if harm is None else self._do_damage(harm))
        rival.start()
        got = observing.observe(argv, place, {**env, **shim})
        rival.cancel()
        rival.join()
        self._settle()
        self.builds += 1
        self.hits += self._told_of_hits()
        source = (place / "src/main.rs").read_text()
        known = (user, project, str(self._revision), source, json.dumps(self.variables))
        clean = self._clean.get(known)
        if clean is None:
            shutil.rmtree(target, ignore_errors=True)
            clean = self._clean[known] = observing.observe(argv, place, env)
        self.failed += not clean.ok
        if not clean.ok:
            self.log.append(clean.text[-1000:])
        verdict = "" if clean.ok else " failed"
        self.log.append(f"{self.step:3} {user}/{project}: {len(got.dirty)} dirty{verdict}")
        if got.ok != clean.ok:
            text = got.text[-2000:]
            self._find("status", str(place), text, str(got.ok), str(clean.ok))
        elif got.ok:
            for key in sorted({*got.seen, *clean.seen}):
                mine, right = got.seen.get(key), clean.seen.get(key)
                if mine != right:
                    self._find("stale", key, mine or "", mine, right)

    def _find(self, kind: str, key: str, text: str, got: str | None, clean: str | None) -> None:
        at = "foreign" if kind == "stale" and self._is_foreign(key, text) else kind
        self.findings.append(Finding(at, self.step, "store", key, got, clean))

    def _is_foreign(self, key: str, text: str) -> bool:
        places = [self.root / user / name for user in USERS for name in PROJECTS]
        return any(f"{place}/" in text and f"{place}/" not in key for place in places)

    def _told_of_hits(self) -> int:
        """How many calls the last build got answered: the diary is read, and begun anew."""
        diary = self.store / "events"
        try:
            events = [json.loads(line) for line in diary.read_text().splitlines()]
            diary.unlink()
        except FileNotFoundError:
            return 0
        self.grafted += sum(event.get("units", 0) for event in events)
        return sum(event["what"] == "hit" for event in events)

    def _settle(self) -> None:
        """What is being kept after the build is kept."""
        until = time.monotonic() + 20
        rooms = ("making/*/job.json", "following/*")
        while any(list(self.store.glob(room)) for room in rooms) and time.monotonic() < until:
            time.sleep(0.01)

    def _do_edit(self, input: str, value: int) -> None:  # noqa: A002 - the word of the steps
        place = self.rendered.inputs.get(input)
        if place is None:
            return
        path = self.shared / place.path
        text = path.read_text()
        at = text.find(place.marker) + len(place.marker)
        path.write_text(f"{text[:at]}{value}{text[at + 3 :]}")
        self._do_commit()

    def _do_commit(self) -> None:
        self._revision += 1
        git(self.shared, self.env, "add", "-A")
        git(self.shared, self.env, "commit", "-q", "--allow-empty", "-m", str(self._revision))

    def _do_own(self, user: str, project: str, value: int) -> None:
        main = self.root / user / project / "src/main.rs"
        main.write_text(main.read_text()[:-9] + f'{value}");\n}}\n')

    def _do_set(self, name: str, value: str | None) -> None:
        self.variables.pop(name, None)
        if value is not None:
            self.variables[name] = value

    def _do_damage(self, seed: int) -> None:
        try:
            done = damage(self.store, seed)
        except OSError as error:  # a build moves things meanwhile
            done = str(error)
        self.log.append(f"{self.step:3} damage: {done}")

    def _do_remove(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)

    def play(self, steps: tuple[Step, ...]) -> list[Finding]:
        for step in steps:
            self.step += 1
            rest = {key: value for key, value in step.items() if key != "do"}
            getattr(self, f"_do_{step['do']}")(**rest)
            if self.findings:
                break
        return self.findings


def play(root: Path, history: Sharing) -> Shared:
    """Plays a history in a new world below ``root``, which is left there."""
    root.mkdir(parents=True)
    world = Shared(root, history)
    world.play(history.steps)
    return world


def played(place: Path, history: Sharing) -> Shared:
    """Plays a history in ``place`` and removes what it made."""
    shutil.rmtree(place, ignore_errors=True)
    try:
        return play(place, history)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def report(history: Sharing, world: Shared) -> str:
    """All that is needed to see and to repeat a failure; the last line is the history as JSON."""
    return "\n".join([*world.log, *(str(found) for found in world.findings), history.to_json()])


# --- random histories -------------------------------------------------------------------------


def _workspace(chance: random.Random) -> Workspace:
    """A random workspace that can be a git dependency, with macros that read all over the place."""
    while (made := generate(chance)).nested:
        pass
    members = []
    for member in made.members:
        parts = [part for part in member.parts if part not in LEFT_OUT]
        if member.name not in ("mac", "app") and chance.random() < 0.4:
            parts += [chance.choice(sorted(BEYOND & set(PARTS)))]
        script = member.script if member.script not in LEFT_OUT else None
        if script is None and member.name not in ("mac", "app") and chance.random() < 0.3:
            script = chance.choice(sorted((BEYOND & set(SCRIPTS)) - LEFT_OUT))
        place = "crates" if member.place == "root" else member.place
        members.append(member._replace(parts=tuple(parts), script=script, place=place))
    if members[0].name != "mac" and any("macro" in part for one in members for part in one.parts):
        members.insert(0, Member("mac"))
    return Workspace(tuple(members))


def draw(seed: int, length: int = 12) -> Sharing:
    """The random history of a seed."""
    chance = random.Random(seed)
    workspace = _workspace(chance)
    inputs = sorted(render(workspace).inputs)
    steps: list[Step] = []

    def build() -> None:
        step: Step = {"do": "build", "user": chance.choice(USERS)}
        step["project"] = chance.choice(PROJECTS)
        if chance.random() < 0.2:
            step["harm"] = chance.randrange(10**6)
        steps.append(step)

    build()
    while len(steps) < length:
        kind = chance.choices(
            ["edit", "own", "set", "damage", "remove", "none"], [4, 1, 3, 4, 0.5, 3]
        )[0]
        if kind == "edit":
            value = chance.choice([100, 101, 102])
            steps.append({"do": "edit", "input": chance.choice(inputs), "value": value})
        elif kind == "own":
            where = {"user": chance.choice(USERS), "project": chance.choice(PROJECTS)}
            steps.append({"do": "own", **where, "value": chance.randint(101, 109)})
        elif kind == "set":
            name = chance.choice(sorted(VARIABLES))
            value_or_none = chance.choice([None, *VARIABLES[name]])
            steps.append({"do": "set", "name": name, "value": value_or_none})
        elif kind == "damage":
            seeds = [chance.randrange(10**6) for _ in range(chance.choice([1, 1, 3]))]
            steps += [{"do": "damage", "seed": seed} for seed in seeds]
        elif kind == "remove":
            steps.append({"do": "remove"})
        build()
    return Sharing(workspace, tuple(steps))
