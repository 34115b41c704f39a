"""A faster linker: what is installed, what the project sets itself, and what really links.

The shim names the linker to the compiler driver (``native/src/shim/linker.rs``); Cargo does not see
it.  Whether that works is found by linking, and by reading the mark that every linker leaves in the
section ``.comment``.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cargo_cow.cargo import configuration
from cargo_cow.errors import LinkerUnusable

Name = Literal["mold", "lld", "wild"]
NAMES: tuple[Name, ...] = ("mold", "lld", "wild")

_INSTALL = {
    "mold": "apt-get install mold, or your system's package of that name",
    "lld": "apt-get install lld, or your system's package of that name",
    "wild": "cargo install wild-linker, and a symlink ld.wild to it on PATH",
}
# Beside `-fuse-ld`: what chooses a linker, or speaks to a certain one.
_OWN = ("linker=", "linker-flavor", "linker_flavor", "linker-features", "link-self-contained",
        "linker-plugin-lto", "-fuse-ld", "--ld-path")  # fmt: skip


class Own(NamedTuple):
    """A linker that somebody set: what, and where; ``file`` is None for a variable."""

    what: str
    file: Path | None

    def __str__(self) -> str:
        return f"{self.what}, by {self.file}" if self.file is not None else self.what


def own_choice(cwd: Path) -> Own | None:
    """What sets a linker for the machine's own target in ``cwd``, if anything does.

    Raises ConfigurationUnusable.
    """
    for name, value in sorted(os.environ.items()):
        if name.startswith("CARGO_TARGET_") and name.endswith("_LINKER") and value:
            return Own(f"{name}={value}", None)
        flags = name in ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS")
        flags = flags or (name.startswith("CARGO_TARGET_") and name.endswith("_RUSTFLAGS"))
        if flags and (found := _linker_in(value.replace("\x1f", " ").split())):
            return Own(f"{name} has {found}", None)
    for file in configuration.files_for(cwd):
        for source, values in configuration.with_includes(file):
            for what in _set_in(values):
                return Own(what, source)
    return None


def _set_in(values: dict[str, Any]) -> Iterator[str]:
    build = values.get("build")
    if isinstance(build, dict) and (found := _linker_in(build.get("rustflags"))):
        yield f"build.rustflags has {found}"
    targets = values.get("target")
    for key, table in targets.items() if isinstance(targets, dict) else ():
        ours = key.startswith("cfg(") or key == f"{os.uname().machine}-unknown-linux-gnu"
        if not ours or not isinstance(table, dict):
            continue
        if isinstance(table.get("linker"), str):
            yield f"target.{key}.linker = {table['linker']}"
        if found := _linker_in(table.get("rustflags")):
            yield f"target.{key}.rustflags has {found}"


def _linker_in(flags: object) -> str | None:
    words = flags.split() if isinstance(flags, str) else flags
    for word in words if isinstance(words, list) else ():
        if isinstance(word, str) and any(own in word for own in _OWN):
            return word
    return None


def in_force(cwd: Path) -> str | None:
    """What was chosen, in words, and what it counts for in ``cwd``; None if nothing was.

    Raises ConfigurationUnusable.
    """
    name = configuration.effective_variable(cwd, configuration.LINKER_VARIABLE)
    if name is None:
        return None
    own = own_choice(cwd)
    if own is not None:
        return f"{name} is chosen, but not used here: {own}"
    if installed(name) is None:
        return f"{name} is chosen, but not used: ld.{name} is not on PATH"
    return name


def installed(name: str) -> str | None:
    """The program that a compiler driver calls for ``-fuse-ld=name``."""
    import shutil

    return shutil.which(f"ld.{name}")


def check(name: Name, native: Path, cwd: Path) -> str:
    """Link a program with ``name`` as the shim would in ``cwd``; returns the linker's mark.

    Raises LinkerUnusable where it is not installed, or something else links.
    """
    if installed(name) is None:
        raise LinkerUnusable(f"{name} is not installed (no ld.{name} on PATH)", hint=_INSTALL[name])
    mark, said = try_out(name, native, cwd)
    if mark is None:
        raise LinkerUnusable(
            f"a program cannot be linked with {name} here: {said}",
            hint="gcc knows mold from 12.1 on and wild from 16 on; clang knows both",
        )
    if not is_mark_of(name, mark):
        raise LinkerUnusable(
            f"asked for {name}, {mark} linked", hint="cc, or what runs it, chooses another linker"
        )
    return mark


def try_out(name: str, native: Path, cwd: Path) -> tuple[str | None, str]:
    """(the mark of what links with ``CARGO_COW_LINKER=name``, what was said where nothing links).

    ``name`` "" is rustc's own choice.
    """
    with tempfile.TemporaryDirectory(prefix="cargo-cow-") as scratch:
        source, program = Path(scratch, "linked.rs"), Path(scratch, "linked")
        source.write_text("fn main() {}\n")
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("CARGO_COW_")
        }
        words = [
            "--crate-name",
            "linked",
            "--crate-type",
            "bin",
            "--emit=link",
            "-o",
            str(program),
            str(source),
        ]
        done = subprocess.run(
            [str(native), os.environ.get("RUSTC") or "rustc", *words],
            cwd=cwd,
            env={**environment, configuration.LINKER_VARIABLE: name},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            telling = ("unrecognized", "not find", "invalid linker")
            about = [line.strip() for line in said if any(word in line for word in telling)]
            return None, (about or said or [f"status {done.returncode}"])[0]
        return mark_of(program), ""


def is_mark_of(name: str, mark: str) -> bool:
    """Whether a linker's mark is that of ``name``."""
    return name in mark.lower()


def mark_of(program: Path) -> str | None:
    """Who linked an ELF program, in the linker's own words; GNU ld leaves none.

    The section ``.comment`` holds a string of each compiler and linker (System V ABI, "Special
    Sections").
    """
    for text in _comments(program.read_bytes()):
        if text.startswith("mold ") or "LLD " in text or "wild" in text.lower():
            return text.removeprefix("Linker: ")
    return None


def _comments(data: bytes) -> list[str]:
    if data[:6] != b"\x7fELF\x02\x01":
        return []
    at = struct.unpack_from("<Q", data, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, at + index * size) for index in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, length in sections:
        if data[strings + name : strings + name + 9] == b".comment\0":
            parts = data[offset : offset + length].split(b"\0")
            return [part.decode("utf-8", "replace") for part in parts if part]
    return []
