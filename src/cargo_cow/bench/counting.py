"""Counting compilers where they start, whatever stands before them.

Cargo is told (``RUSTC``) to call a tiny program that notes each call and becomes the real rustc.
A wrapper such as the shim is called with that program as its compiler, so a call is counted
exactly when a compiler process really starts; nobody's own statistics are believed.  Cargo
hashes only what ``rustc -vV`` prints, never the compiler's path, so targets built with and
without the counter are the same to it (held by ``tests/bench/test_counting.py``).

Not counted as compiling: questions (``-vV``, ``--version``, ``--print``, Cargo's ``___`` probe,
and calls that emit nothing but dep-info, which is how sccache asks for the inputs of a crate).
Counted apart: compilers that build scripts start (to try a language feature).

Runs of build scripts are taken from Cargo's own ``--verbose`` lines.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cargo_cow.bench import processes

# The shell's printf writes a note of this size at once; each process notes in a file of its own,
# so that two notes never mix.  Only a build script's children see OUT_DIR and HOST together.
_PROGRAM = """\
#!/bin/sh
printf '%s\\0' "${{HOST:+${{NUM_JOBS:+script}}}}" "$PWD" "$@" >>{notes}/$$
printf '\\n' >>{notes}/$$
exec {compiler} "$@"
"""

_RUNNING = re.compile(r"^ *Running `(?P<words>.*)`$", re.MULTILINE)


class Count(NamedTuple):
    """What one build started."""

    compiled: tuple[str, ...]  # crate names in no particular order, one per rustc process
    from_scripts: int  # rustc processes that build scripts started
    scripts: tuple[str, ...]  # `<pkg>-<hash>` of each build-script run
    places: tuple[str, ...] = ()  # where each of ``compiled`` ran: Cargo's packages in their own

    @property
    def rustc(self) -> int:
        return len(self.compiled)

    def outside(self, room: Path) -> tuple[str, ...]:
        """Crates of packages that do not lie in ``room``: Cargo compiles each where it lies."""
        pairs = zip(self.compiled, self.places, strict=True)
        return tuple(crate for crate, place in pairs if not Path(place).is_relative_to(room))


class Counter:
    """The counting program and its notes, at one place for a whole measurement.

    The place matters: Cargo asks the compiler anew when its path or times have changed.
    """

    def __init__(self, directory: Path, compiler: Path) -> None:
        self.program = directory / "rustc"
        self._notes = directory / "notes"
        self._notes.mkdir(parents=True)
        self.program.write_text(
            _PROGRAM.format(
                notes=shlex.quote(os.fspath(self._notes)),
                compiler=shlex.quote(os.fspath(compiler)),
            )
        )
        self.program.chmod(0o755)

    def environment(self) -> dict[str, str]:
        return {"RUSTC": os.fspath(self.program)}

    def forget(self) -> None:
        for note in self._notes.iterdir():
            note.unlink()

    def take(self, cargo_output: str) -> Count:
        """What ran since the last ``forget``; ``cargo_output`` is of ``cargo … --verbose``."""
        compiled = []
        places = []
        from_scripts = 0
        for note in self._notes.iterdir():
            for line in note.read_bytes().split(b"\0\n"):
                if not line:
                    continue
                origin, directory, *arguments = (os.fsdecode(word) for word in line.split(b"\0"))
                crate = compiled_crate(arguments)
                if crate is None:
                    continue
                if origin:
                    from_scripts += 1
                else:
                    compiled.append(crate)
                    places.append(directory)
        scripts = script_runs(cargo_output)
        return Count(tuple(compiled), from_scripts, scripts, tuple(places))


def compiled_crate(arguments: list[str]) -> str | None:
    """The crate that a call of rustc compiles; None for a question."""
    if {"-vV", "-V", "--version", "-Vv"} & set(arguments):
        return None
    crate = None
    for position, argument in enumerate(arguments):
        if argument == "--print" or argument.startswith("--print="):
            return None
        following = arguments[position + 1 : position + 2]
        if argument == "--emit=dep-info" or (argument == "--emit" and following == ["dep-info"]):
            return None
        if argument == "--crate-name" and position + 1 < len(arguments):
            crate = arguments[position + 1]
        elif argument.startswith("--crate-name="):
            crate = argument.partition("=")[2]
    if crate is None:
        return "?" if arguments else None
    return None if crate == "___" else crate


def script_runs(cargo_output: str) -> tuple[str, ...]:
    """Build scripts that Cargo says it ran.

    ``Running `<target>/debug/build/<pkg>-<hash>/build-script-build` ``; in the new layout the
    program lies in ``build/<pkg>/<hash>/out/``.  Compiler calls are ``Running`` lines too.
    """
    runs = []
    for match in _RUNNING.finditer(cargo_output):
        try:
            words = shlex.split(match["words"])
        except ValueError:
            continue
        program = next((Path(word) for word in words if "=" not in word.partition("/")[0]), None)
        if program is None or not program.name.startswith(("build-script-", "build_script_")):
            continue
        unit = program.parent
        if unit.name == "out":
            unit = unit.parent
            runs.append(f"{unit.parent.name}-{unit.name}")
        else:
            runs.append(unit.name)
    return tuple(runs)


def real_compiler(cwd: Path, env: Mapping[str, str]) -> Path:
    """The compiler itself: rustup's proxy in front of it would cost each call some time."""
    try:
        result = processes.run(["rustc", "--print", "sysroot"], cwd=cwd, env=env)
    except (OSError, subprocess.SubprocessError) as error:
        raise processes.StepFailed(f"cannot run rustc: {error}") from error
    return Path(result.stdout.rstrip("\n")) / "bin" / "rustc"
