"""Build-script output: the directives that decide about freshness and about paths.

Source: ``core/compiler/custom_build.rs::BuildOutput::parse``.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple


class ScriptOutput(NamedTuple):
    """What a build script printed, as far as freshness and paths are concerned.

    Paths are as printed (relative to the package root, or absolute); ``env`` holds the
    ``rustc-env`` values; ``others`` every other directive's value.
    """

    rerun_if_changed: tuple[str, ...]
    rerun_if_env_changed: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    others: tuple[str, ...]


def parse_output(data: bytes) -> ScriptOutput:
    """Decode a build script's stdout.  Lines that are not directives are ignored, as by Cargo."""
    changed: list[str] = []
    variables: list[str] = []
    env: list[tuple[str, str]] = []
    others: list[str] = []
    for raw in data.split(b"\n"):
        line = os.fsdecode(raw).strip()
        if line.startswith("cargo::"):
            directive = line[len("cargo::") :]
        elif line.startswith("cargo:"):
            directive = line[len("cargo:") :]
        else:
            continue
        key, _, value = directive.partition("=")
        value = value.rstrip()
        if key == "rerun-if-changed":
            changed.append(value)
        elif key == "rerun-if-env-changed":
            variables.append(value)
        elif key == "rustc-env":
            name, _, text = value.partition("=")
            env.append((name, text))
        else:
            others.append(directive)
    return ScriptOutput(tuple(changed), tuple(variables), tuple(env), tuple(others))


def relocate_rerun_lines(data: bytes, old: bytes, new: bytes) -> bytes:
    """``data`` with ``old`` replaced by ``new`` at the start of ``rerun-if-changed`` paths only.

    Cargo strips the package root from such a path before it hashes it
    (``local_fingerprints_deps``), so the script's fingerprint stays the one Cargo computed.
    """
    lines = data.split(b"\n")
    for index, line in enumerate(lines):
        stripped = line.strip()
        for prefix in (b"cargo::rerun-if-changed=", b"cargo:rerun-if-changed="):
            path = stripped[len(prefix) :] if stripped.startswith(prefix) else None
            if path is not None and (path == old or path.startswith(old + b"/")):
                lines[index] = prefix + new + path[len(old) :]
    return b"\n".join(lines)


# `<profile>/build/<pkg>-<hash>/out`, or `<profile>/build/<pkg>/<hash>/out` in the new layout.
_OUT_DIR = rb"/((?:[^/\s=]+/)?[^/\s=]+/build/[^/\s=]+?[-/][0-9a-f]{16}/out)(?![A-Za-z0-9_.-])"


def relocate_out_dirs(data: bytes, old: str, new: str, own: bytes) -> bytes:
    """``data`` with every unit's OUT_DIR below build directory ``old`` moved below ``new``.

    A script that passes on what its ``links`` dependencies print (``DEP_*``) names their OUT_DIRs.
    ``own`` is the script's own OUT_DIR as ``root-output`` has it: Cargo rewrites that itself.
    """
    if old == new or os.fsencode(old) not in data:
        return data

    def moved(match: re.Match[bytes]) -> bytes:
        return match[0] if match[0] == own else os.fsencode(new) + b"/" + match[1]

    return re.sub(re.escape(os.fsencode(old)) + _OUT_DIR, moved, data)


def without_out_dirs(text: str, build_dir: str) -> str:
    """``text`` without the OUT_DIRs below ``build_dir``: what else it names is not relocated."""
    data = re.sub(re.escape(os.fsencode(build_dir)) + _OUT_DIR, b"", os.fsencode(text))
    return os.fsdecode(data)
