"""One Cargo call and everything that can be observed of its result.

``observe`` runs a build with JSON messages, then every program that the build made, and returns
the lines they print, the diagnostics, and what the build scripts said.  Run as a program it does
so inside another mount namespace and prints the observation as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TIMEOUT = 600


class Observation(NamedTuple):
    """``seen``: what a user could see, by name.  ``fresh`` and ``dirty``: Cargo's own verdicts."""

    ok: bool
    seen: dict[str, str]
    fresh: tuple[str, ...]
    dirty: tuple[str, ...]
    text: str  # what was written for people, for reports

    def to_json(self) -> str:
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> Observation:
        data = json.loads(text)
        return cls(
            data["ok"], data["seen"], tuple(data["fresh"]), tuple(data["dirty"]), data["text"]
        )


def run(
    argv: Sequence[str | Path],
    cwd: Path,
    env: Mapping[str, str],
    *,
    kill_after: float | None = None,
) -> tuple[int, str, str]:
    """Runs a program in a session of its own, and kills all of it after ``kill_after`` seconds."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [str(part) for part in argv],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            process.wait(TIMEOUT if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if kill_after is None:
                raise
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return process.returncode, texts[0], texts[1]


def _lines(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        # the test harness writes "test name ... " before the first line
        at = line.find("obs ")
        if at >= 0 and " = " in line[at:]:
            key, _, value = line[at + 4 :].partition(" = ")
            found[key] = value
    return found


def call_library(name: str) -> str:
    """What the C function of a dynamic library returns."""
    library = ctypes.CDLL(name)
    function = getattr(library, f"oracle_{Path(name).stem.removeprefix('lib')}")
    function.restype = ctypes.c_char_p
    return str(function().decode())


def _call_archive(path: Path, scratch: Path, env: Mapping[str, str]) -> str:
    """The same of a static library, linked into a program by the C compiler."""
    name = path.stem.removeprefix("lib")
    source, program = scratch / f"{name}.c", scratch / name
    source.write_text(
        f"#include <stdio.h>\nconst char *oracle_{name}(void);\n"
        f"int main(void) {{ puts(oracle_{name}()); return 0; }}\n"
    )
    libraries = ["-lpthread", "-ldl", "-lm", "-lgcc_s"]
    link = run(["cc", source, path, "-o", program, *libraries], scratch, env)
    if link[0] != 0:
        # The linker names an object of its own, each time another one.
        return f"obs link = {re.sub(r'/[^:]*/cc[A-Za-z0-9]{6}[.]o', 'cc.o', link[2])}"
    return run([program], scratch, env)[1]


def _run_artifact(
    message: Mapping[str, Any], cwd: Path, env: Mapping[str, str], scratch: Path
) -> dict[str, str]:
    kinds = message["target"]["kind"]
    if kinds == ["custom-build"]:
        return {}
    seen: dict[str, str] = {}
    if message["executable"]:
        harness = message["profile"]["test"] and kinds[0] not in ("test", "bench")
        more = ["--nocapture", "--test-threads=1"] if harness else []
        status, out, err = run([message["executable"], *more], cwd, env)
        name = str(Path(message["executable"]))
        seen |= {f"run {name} {key}": value for key, value in _lines(out).items()}
        seen[f"run {name}"] = f"exit {status}" + (f": {err}" if status else "")
        return seen
    for name in message["filenames"]:
        path = Path(name)
        text = ""
        if path.suffix == ".so" and "proc-macro" not in kinds:
            code = (
                "import sys,observe,pathlib;print(observe._call_library(pathlib.Path(sys.argv[1])))"
            )
            own = {**env, "PYTHONPATH": str(Path(__file__).parent)}
            text = run([sys.executable, "-c", code, path], scratch, own)[1]
        elif path.suffix == ".a":
            text = _call_archive(path, scratch, env)
        seen |= {f"run {name} {key}": value for key, value in _lines(text).items()}
    return seen


def observe(
    argv: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    *,
    programs: bool = True,
    kill_after: float | None = None,
) -> Observation:
    """Runs ``argv``, a Cargo call with ``--message-format=json``, and what it built."""
    status, out, err = run(argv, cwd, env, kill_after=kill_after)
    seen: dict[str, str] = {}
    diagnostics: dict[str, list[str]] = {}
    fresh: list[str] = []
    dirty: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for line in out.splitlines():
            if not line.startswith("{"):
                continue
            try:
                message = json.loads(line)
            except json.JSONDecodeError:
                continue  # a killed Cargo may leave half a line
            reason = message.get("reason")
            if reason == "compiler-artifact":
                target, profile = message["target"], message["profile"]
                mode = "test" if profile["test"] else profile["opt_level"]
                unit = f"{message['package_id']} {target['kind'][0]} {target['name']} {mode}"
                (fresh if message["fresh"] else dirty).append(unit)
                if programs and status == 0:
                    seen |= _run_artifact(message, cwd, env, Path(scratch))
            elif reason == "compiler-message":
                where = f"diagnostics {message['package_id']} {message['target']['name']}"
                diagnostics.setdefault(where, []).append(message["message"]["rendered"])
            elif reason == "build-script-executed":
                names = ("linked_libs", "linked_paths", "cfgs", "env", "out_dir")
                said = {name: message[name] for name in names}
                seen[f"script {message['package_id']}"] = json.dumps(said, sort_keys=True)
    if status == 0:
        for where, texts in diagnostics.items():
            seen[where] = "".join(sorted(texts))
        warnings = sorted(line for line in err.splitlines() if line.startswith("warning: "))
        seen["warnings"] = "\n".join(line for line in warnings if "@" in line)
    else:
        err += "".join(text for texts in diagnostics.values() for text in texts)
    return Observation(status == 0, seen, tuple(sorted(fresh)), tuple(sorted(dirty)), err)


def main() -> None:
    """``observe.py CWD ARGV…``: the environment is the caller's."""
    cwd, argv = sys.argv[1], sys.argv[2:]
    print(observe(argv, Path(cwd), os.environ).to_json())


if __name__ == "__main__":
    main()
