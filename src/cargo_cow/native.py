"""Gateway to the native program: where it is, what it is asked, what it answers.

Nothing else knows its command lines and outputs (``docs/architecture.md``, "Native program").
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from cargo_cow.errors import FilesystemFailed, NativeMissing, NoSpace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NAME = "cargo-cow-native"
PROTOCOL = 1

Mode = Literal["auto", "reflink", "copy"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class CloneTree(NamedTuple):
    """What ``--clone-tree`` did.  ``files`` counts contents, ``hard_links`` their further names."""

    files: int
    directories: int
    symlinks: int
    hard_links: int
    reflinked_files: int
    reflinked_bytes: int
    copied_files: int
    copied_bytes: int
    copied_reasons: dict[str, int]
    vanished: int
    changed: int
    special: int
    attributes_dropped: int
    excluded: int
    seconds: float


def program() -> Path:
    """The program's path: ``CARGO_COW_NATIVE``, else where the wheel installs it, else ``PATH``,
    else the build directory of a development checkout.

    Raises NativeMissing.
    """
    if named := os.environ.get("CARGO_COW_NATIVE"):
        path = Path(named)
        if not _is_program(path):
            raise NativeMissing(f"CARGO_COW_NATIVE names no program: {named}")
        return path
    for path in _places():
        if _is_program(path):
            return path
    raise NativeMissing(f"{NAME} is not installed beside cargo-cow")


def _places() -> Iterable[Path]:
    # Not resolved: a virtual environment's python is a symlink out of it.
    yield Path(sys.executable).parent / NAME
    import sysconfig

    yield Path(sysconfig.get_path("scripts")) / NAME
    import shutil

    if found := shutil.which(NAME):
        yield Path(found)
    build = Path(__file__).parents[2] / "native" / "target"
    yield build / "release" / NAME
    yield build / "debug" / NAME


def _is_program(path: Path) -> bool:
    # access() first: it answers where stat() would raise, below a directory closed to us.
    return os.access(path, os.X_OK) and path.is_file()


def clone_tree(
    src: Path,
    dst: Path,
    mode: Mode = "auto",
    *,
    exclude: Iterable[str | Path] = (),
    only: Iterable[str] | None = None,
) -> CloneTree:
    """Clones the directory ``src`` to ``dst``, which does not exist or is empty.

    ``reflink`` demands shared extents, ``copy`` forbids them, ``auto`` shares what can be shared
    and says why the rest was copied.  ``exclude`` names are relative to ``src``, as are those of
    ``only``: with it nothing but these files and directories, and what leads to them, is taken.

    Raises NoSpace or FilesystemFailed; ``dst`` is then incomplete and the caller's to remove.
    """
    arguments: list[str | Path] = ["--clone-tree", "--mode", mode]
    for name in exclude:
        arguments += ["--exclude", name]
    names = None
    if only is not None:
        arguments += ["--only", "-"]
        names = b"".join(os.fsencode(name) + b"\0" for name in only)
    reply = _ask([*arguments, "--", src, dst], names)
    # Fields that a later program adds are not ours to know.
    return CloneTree(**{name: reply[name] for name in CloneTree._fields})


def warehouse(request: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Which store serves a target, and what is around (``surroundings.rs``).

    Raises NativeMissing and FilesystemFailed.
    """
    return _ask(["--warehouse"], json.dumps(request).encode(), environment)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Digests of those of the variables that Cargo's scripts may go by, as `runs.rs` notes them.

    Raises NativeMissing and FilesystemFailed.
    """
    return _ask(["--environment"], b"", variables)


def are_plain_for_linkers(arguments: Sequence[str]) -> bool:
    """Whether link arguments are understood, all of them, and name no file (``linking.rs``).

    Raises NativeMissing and FilesystemFailed.
    """
    return bool(_ask(["--link-arguments", *arguments])["plain"])


def keep_units(request: dict[str, Any]) -> dict[str, Any]:
    """Put whole units into a store (``units.rs``).  Raises NativeMissing and FilesystemFailed."""
    return _ask(["--keep-units"], json.dumps(request).encode())


def give_units(request: dict[str, Any]) -> dict[str, Any]:
    """Put whole units from a store into a directory (``units.rs``); as `keep_units`."""
    return _ask(["--give-units"], json.dumps(request).encode())


def try_view(directory: Path) -> tuple[int | None, str] | None:
    """Make a view, as sandbox mode and identities do, and leave it again; ``directory`` is bound.

    None where that works, else (errno, what was said).  Raises NativeMissing.
    """
    import subprocess

    path = program()
    words: list[str | Path] = [path, "--enter", "--bind", directory, directory]
    words += ["--", path, "--version"]
    try:
        run = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        reply = json.loads(run.stdout)
    except (OSError, ValueError) as error:
        raise NativeMissing(f"{path} cannot make a view: {error}") from error
    if "protocol" in reply:
        return None
    return reply.get("errno"), str(reply.get("error", "unknown error"))


def identify(
    store: Path,
    programs: Sequence[str],
    target: str,
    directory: Path,
    environment: Mapping[str, str],
) -> tuple[str, frozenset[str]]:
    """Which compiler a call with these ``programs`` (rustc, or clippy-driver and rustc) for the
    target ("": the host), in this directory and environment, means, by content; and the libraries
    that linkers find by themselves: both as keys of the warehouse have them.

    Raises NativeMissing, and FilesystemFailed where that cannot be told.
    """
    words = ["--identify", os.fspath(store), target, *programs]
    reply = _ask(words, directory=directory, environment=environment)
    return str(reply["identity"]), frozenset(map(str, reply["system"]))


def version() -> str:
    """The program's version.  Raises NativeMissing where it speaks another protocol."""
    reply = _ask(["--version"])
    if reply.get("protocol") != PROTOCOL:
        raise NativeMissing(f"{program()} speaks protocol {reply.get('protocol')}, not {PROTOCOL}")
    return str(reply["version"])


def _ask(
    arguments: Sequence[str | Path],
    given: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> dict[str, Any]:
    import subprocess

    path = program()
    try:
        run = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL if given is None else None,
            input=given,
            cwd=directory,
            env=environment,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise NativeMissing(f"cannot run {path}: {error.strerror}") from error
    try:
        reply = json.loads(run.stdout)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        message = run.stderr.decode(errors="replace").strip() or f"status {run.returncode}"
        raise NativeMissing(f"{path} does not answer as {NAME} does: {message}")
    if run.returncode != 0:
        _fail(reply)
    return reply


def _fail(reply: dict[str, Any]) -> NoReturn:
    message = str(reply.get("error", "unknown error"))
    if (path := reply.get("path")) is not None:
        message = f"{message}: {path}"
    if message.startswith("unknown verb"):
        raise NativeMissing(f"{program()}: {message}")
    raise (NoSpace if reply.get("errno") in _FULL else FilesystemFailed)(message)
