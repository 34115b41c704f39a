"""Which compiler built a target, and which one would build here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence


def compiler_of(build_dir: str) -> str | None:
    """The ``rustc -vV`` text kept in ``<build_dir>/.rustc_info.json``; None if not known.

    Source: ``util/rustc.rs``: a cache of probe outputs; the version text is the one entry that
    names its ``host:``.
    """
    try:
        with open(f"{build_dir}/.rustc_info.json", "rb") as file:
            value = json.loads(file.read())
        for output in value["outputs"].values():
            text = str(output["stdout"])
            if text.startswith("rustc ") and "\nhost: " in text:
                return text
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def compiler_here(directory: str, cargo_args: Sequence[str] = ()) -> str | None:
    """The ``rustc -vV`` text of the compiler that Cargo would use in ``directory``."""
    import subprocess

    toolchain = [argument for argument in cargo_args[:1] if argument.startswith("+")]
    rustc = os.environ.get("RUSTC") or "rustc"
    # rustup's proxy takes +toolchain; a compiler named by the user does not.
    command = [rustc, *(toolchain if rustc == "rustc" else []), "-vV"]
    try:
        result = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    except OSError:
        return None
    return os.fsdecode(result.stdout) if result.returncode == 0 else None
