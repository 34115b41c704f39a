"""Dep-info: Cargo's encoded form (``dep-<kind>-<name>``) and rustc's makefile form (``*.d``).

Cargo judges by the encoded form alone; the makefile form is read for what the encoded one
leaves out: environment values that Cargo itself set (``# env-dep:``), see
``fingerprint/dep_info.rs::translate_dep_info``.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from cargo_cow.errors import UnknownFormat

# EncodedDepInfo::parse: an impossible first entry, which older Cargos refuse; then the version.
_MARKER = b"\x01\x00\x00\x00\xff"
_VERSION = 1

PACKAGE = 0
"""The path is relative to the package root (DepInfoPathType::PackageRootRelative)."""
BUILD = 1
"""The path is relative to the build directory, or absolute (DepInfoPathType::BuildRootRelative)."""


class InputFile(NamedTuple):
    """One file of a dep-info: ``base`` is PACKAGE or BUILD; an absolute path ignores its base."""

    base: int
    path: str
    checksum: tuple[int, str] | None


class DepInfo(NamedTuple):
    """What Cargo reads to decide about a rustc unit."""

    files: tuple[InputFile, ...]
    env: tuple[tuple[str, str | None], ...]


def parse_encoded(data: bytes, name: str = "dep-info") -> DepInfo:
    """Decode Cargo's ``dep-*`` file.

    Raises UnknownFormat for another version and for truncated data: Cargo itself then treats the
    unit as dirty, and so do we.
    """
    if data[:5] != _MARKER or len(data) < 10 or data[5] != _VERSION:
        raise UnknownFormat(f"{name}: not an encoded dep-info of version {_VERSION}")
    position = 6

    def number(width: int) -> int:
        nonlocal position
        chunk = data[position : position + width]
        if len(chunk) != width:
            raise UnknownFormat(f"{name}: truncated at byte {position}")
        position += width
        return int.from_bytes(chunk, "little")

    def text() -> str:
        nonlocal position
        size = number(4)
        chunk = data[position : position + size]
        if len(chunk) != size:
            raise UnknownFormat(f"{name}: truncated at byte {position}")
        position += size
        return os.fsdecode(chunk)

    files = []
    for _ in range(number(4)):
        base = number(1)
        if base not in (PACKAGE, BUILD):
            raise UnknownFormat(f"{name}: unknown path type {base}")
        path = text()
        checksum = (number(8), text()) if number(1) else None
        files.append(InputFile(base, path, checksum))
    env = []
    for _ in range(number(4)):
        key = text()
        env.append((key, text() if number(1) else None))
    return DepInfo(tuple(files), tuple(env))


def encode(info: DepInfo) -> bytes:
    """The inverse of `parse_encoded` (``EncodedDepInfo::serialize``)."""
    out = bytearray(_MARKER)
    out.append(_VERSION)

    def text(value: str) -> None:
        raw = os.fsencode(value)
        out.extend(len(raw).to_bytes(4, "little"))
        out.extend(raw)

    out += len(info.files).to_bytes(4, "little")
    for file in info.files:
        out.append(file.base)
        text(file.path)
        out.append(file.checksum is not None)
        if file.checksum is not None:
            out += file.checksum[0].to_bytes(8, "little")
            text(file.checksum[1])
    out += len(info.env).to_bytes(4, "little")
    for key, value in info.env:
        text(key)
        out.append(value is not None)
        if value is not None:
            text(value)
    return bytes(out)


class MakefileDepInfo(NamedTuple):
    """rustc's ``.d``: files as rustc named them (relative to its directory) and env-deps.

    ``output`` is the first of the files it says it wrote ("" if it says none).
    """

    files: tuple[str, ...]
    env: tuple[tuple[str, str | None], ...]
    output: str = ""


def _unescape_env(text: str) -> str:
    # dep_info.rs::unescape_env: rustc escapes newline, carriage return and backslash.
    if "\\" not in text:
        return text
    out = []
    characters = iter(text)
    for character in characters:
        if character != "\\":
            out.append(character)
            continue
        following = next(characters, "")
        out.append({"n": "\n", "r": "\r", "\\": "\\"}.get(following, "\\" + following))
    return "".join(out)


def parse_makefile(data: bytes) -> MakefileDepInfo:
    """Decode a ``.d`` file as ``parse_rustc_dep_info`` does: first rule's files, all env-deps."""
    files: tuple[str, ...] = ()
    env: list[tuple[str, str | None]] = []
    found = False
    output = ""
    # Only "\n" ends a line here: str.splitlines would also break at form feeds inside values.
    for line in os.fsdecode(data).split("\n"):
        if line.startswith("# env-dep:"):
            key, separator, value = line[len("# env-dep:") :].partition("=")
            env.append((_unescape_env(key), _unescape_env(value) if separator else None))
        elif not found and not line.startswith("#") and (at := line.find(": ")) >= 0:
            found = True
            output = line[:at].replace("\\ ", " ")
            names = []
            parts = iter(line[at + 2 :].split())
            for part in parts:
                name = part
                while name.endswith("\\"):
                    name = name[:-1] + " " + next(parts, "")
                names.append(name)
            files = tuple(names)
    return MakefileDepInfo(files, tuple(env), output)
