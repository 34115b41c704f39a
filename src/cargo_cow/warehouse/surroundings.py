"""What units depend on beside sources and dependencies, as it is on this machine now.

The native program tells it (``native/src/shim/warehouse/surroundings.rs``); the shim puts the same
into its keys.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cargo_cow.cargo import configuration


class Surroundings(NamedTuple):
    """The store that serves a target, and digests of what is around.

    ``linkers`` are those of which ``linking`` tells beside ``cc``.
    ``copies``: files that cannot be shared may be copied.  ``compilers`` are by triple, the host's
    is "".  ``linking`` is None where it cannot be told what a linker goes by.  ``changed`` (ns) is
    when a program or directory that counts was changed last.
    """

    root: Path
    copies: bool
    compilers: dict[str, str]
    linking: str | None
    tools: str
    variables: str
    processor: str
    changed: int
    linkers: frozenset[str] = frozenset()


def is_on(cwd: Path) -> str | None:
    """What switches the warehouse on in ``cwd`` (``on``, or a path); None where nothing does.

    On the path of every build: no file is parsed that does not name it.
    """
    name = configuration.WAREHOUSE_VARIABLE
    if name not in os.environ and not configuration.files_naming(cwd, name):
        return None
    value = configuration.effective_variable(cwd, name)
    return None if value in (None, "", "off", "0") else value


def store_for(build_dir: str, cwd: Path) -> tuple[Path, bool] | None:
    """The store that shares data with a target, there or not yet, and whether it may copy.

    None where the warehouse is off.  Raises FilesystemFailed where no place for it is found.
    """
    setting = is_on(cwd)
    if setting is None:
        return None
    known = _known_store(build_dir, setting)
    if known is not None:
        return known
    from cargo_cow import native

    answer = native.warehouse(_beside(build_dir), _environment(cwd, setting, None))
    return None if answer["root"] is None else (Path(answer["root"]), bool(answer["copies"]))


def _beside(build_dir: str) -> dict[str, Any]:
    """What the native program is told of where a target is, or will be."""
    beside = Path(build_dir)
    while not beside.is_dir():
        beside = beside.parent
    return {"beside": str(beside), "target": str(beside) == build_dir}


def _known_store(build_dir: str, setting: str) -> tuple[Path, bool] | None:
    """The store without asking: the one that is named, or the one that was found before, if it is
    there.  Whether it is this user's alone is judged before anything is taken or kept."""
    if setting.startswith("/"):
        root = Path(setting)
        return (root, True) if root.is_dir() else None
    with contextlib.suppress(OSError, ValueError):
        root = Path(Path(f"{build_dir}/.cargo-cow/warehouse").read_text().strip())
        if root.is_absolute() and root.is_dir():
            return root, False
    return None


def around(
    build_dir: str, cwd: Path, rustc: str, toolchain: str | None, profiles: Iterable[str]
) -> Surroundings | None:
    """What is around a target, there or not yet, for ``profiles`` (``[<triple>/]<profile>``).

    None where the warehouse is off.  Raises CowError.
    """
    setting = is_on(cwd)
    if setting is None:
        return None
    from cargo_cow import native
    from cargo_cow.prepare.contents import digest_of

    linkers = _linkers(cwd)
    triples = sorted({name.rpartition("/")[0] for name in profiles} - {""})
    answer = native.warehouse(
        {
            **_beside(build_dir),
            "rustc": rustc,
            "targets": triples,
            "linkers": linkers,
        },
        _environment(cwd, setting, toolchain),
    )
    if answer["root"] is None:
        return None
    return Surroundings(
        Path(answer["root"]),
        bool(answer["copies"]),
        dict(answer["compilers"]),
        answer["linking"],
        digest_of(f"{answer['tools']} {_set_for_all(cwd)}".encode()),
        digest_of(f"{answer['variables']} {_set_for_all(cwd)}".encode()),
        str(answer["processor"]),
        int(answer["changed"]),
        frozenset(linkers),
    )


def _environment(cwd: Path, setting: str, toolchain: str | None) -> dict[str, str]:
    linker = configuration.effective_variable(cwd, configuration.LINKER_VARIABLE)
    return {
        **os.environ,
        configuration.WAREHOUSE_VARIABLE: setting,
        **({} if toolchain is None else {"RUSTUP_TOOLCHAIN": toolchain}),
        **({} if linker is None else {configuration.LINKER_VARIABLE: linker}),
    }


def _values(cwd: Path) -> Iterable[dict[str, object]]:
    for file in configuration.files_for(cwd):
        for _, values in configuration.with_includes(file):
            yield values


def _linkers(cwd: Path) -> list[str]:
    """All linkers that variables and configuration files name, for whatever target."""
    found = {
        value
        for name, value in os.environ.items()
        if name.startswith("CARGO_TARGET_") and name.endswith("_LINKER")
    }
    for values in _values(cwd):
        targets = values.get("target")
        for target in targets.values() if isinstance(targets, dict) else ():
            linker = target.get("linker") if isinstance(target, dict) else None
            if isinstance(linker, str):
                found.add(linker)
    for flags in _flags(cwd):
        found.update(value for name, value in codegen(flags) if name == "linker")
    return sorted(found)


def _flags(cwd: Path) -> Iterable[list[str]]:
    """The flags for rustc that variables and configuration files set."""
    for name, value in os.environ.items():
        if name == "CARGO_ENCODED_RUSTFLAGS":
            yield value.split("\x1f")
        elif name == "RUSTFLAGS" or (name.startswith("CARGO_") and name.endswith("_RUSTFLAGS")):
            yield value.split()
    for values in _values(cwd):
        targets = values.get("target")
        tables = [values.get("build"), *(targets.values() if isinstance(targets, dict) else ())]
        for table in tables:
            flags = table.get("rustflags") if isinstance(table, dict) else None
            if isinstance(flags, str):
                yield flags.split()
            elif isinstance(flags, list):
                yield [str(flag) for flag in flags]


def codegen(flags: Sequence[str]) -> Iterable[tuple[str, str]]:
    """The options of ``-C`` among flags for rustc, as (name, value), in one spelling."""
    words = iter(flags)
    for word in words:
        option = None
        if word in ("-C", "--codegen"):
            option = next(words, "")
        elif word.startswith("--codegen="):
            option = word.removeprefix("--codegen=")
        elif word.startswith("-C"):
            option = word[2:]
        if option is not None:
            name, _, value = option.partition("=")
            yield name.replace("_", "-"), value


def _set_for_all(cwd: Path) -> str:
    """What ``[env]`` of the configuration files sets for scripts and compilers, but our own."""
    found = []
    for values in _values(cwd):
        environment = values.get("env")
        if isinstance(environment, dict):
            own = {
                name: value
                for name, value in environment.items()
                if not name.startswith("CARGO_COW_")
            }
            found.append(repr(sorted(own.items())))
    return "".join(found)
