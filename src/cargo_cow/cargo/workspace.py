"""Where a workspace's root, members and target directories are: Cargo's own answer, cached.

``cargo metadata --no-deps`` costs some 40 ms, more than a whole no-op build may.  Its answer is
kept below the user's cache directory and used again as long as every manifest and configuration
file that could change it has the same stat (size, mtime, ctime, inode), including those that did
not exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from cargo_cow.errors import CargoFailed, NotACargoProject

_CACHE_FORMAT = 3
_ENVIRONMENT = (
    "CARGO",
    "CARGO_HOME",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_BUILD_DIR",
    "RUSTUP_TOOLCHAIN",
)


_DEPENDENCIES = frozenset(
    {
        "dependencies",
        "dev-dependencies",
        "dev_dependencies",
        "build-dependencies",
        "build_dependencies",
        "patch",
        "replace",
    }
)


class _Answer(TypedDict):
    workspace_root: str
    target_directory: str
    build_directory: str
    members: list[tuple[str, str, str]]
    outside: list[str]


class Package(NamedTuple):
    """A workspace member: its name, version and the directory of its manifest."""

    name: str
    version: str
    root: Path


class Workspace(NamedTuple):
    """A workspace as one Cargo call sees it.

    ``build_dir`` holds the intermediate files, and is what Cargo-CoW calls the target;
    ``target_dir`` holds the final artefacts.  Both are the same unless ``build.build-dir`` is set.
    ``standing`` is where a missing build directory is to be made, if that is another name of what
    Cargo will find at ``build_dir``.  ``outside`` are directories outside ``root`` that manifests
    name by relative paths, and those that manifests there name.
    """

    root: Path
    target_dir: Path
    build_dir: Path
    members: tuple[Package, ...]
    outside: tuple[str, ...] = ()
    standing: Path | None = None


def cargo_program() -> str:
    """The Cargo to run: the one that runs us (``$CARGO``), else the first on PATH."""
    return os.environ.get("CARGO") or "cargo"


def cargo_home() -> str:
    """``$CARGO_HOME``, by default ``~/.cargo``."""
    return os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo")


def option(cargo_args: Sequence[str], name: str) -> str | None:
    """The last value of ``--name VALUE`` or ``--name=VALUE`` before ``--``; None if absent."""
    value = None
    arguments = iter(cargo_args)
    for argument in arguments:
        if argument == "--":
            break
        if argument == name:
            value = next(arguments, None)
        elif argument.startswith(name + "="):
            value = argument[len(name) + 1 :]
    return value


def _metadata_arguments(cargo_args: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    arguments = iter(cargo_args)
    for argument in arguments:
        if argument == "--":
            break
        if argument in ("--manifest-path", "--config", "-C", "-Z"):
            value = next(arguments, None)
            if value is not None:
                chosen += [argument, value]
        elif argument.startswith(("--manifest-path=", "--config=", "-Z")):
            chosen.append(argument)
    return chosen


def load(cwd: Path, cargo_args: Sequence[str] = ()) -> Workspace:
    """The workspace that ``cargo <verb> <cargo_args>`` would work on in ``cwd``.

    Of the arguments only those that choose it are read: ``--manifest-path``, ``--target-dir``,
    ``--config``, ``-C``, and a leading ``+toolchain``.  Raises NotACargoProject or CargoFailed.
    """
    directory = os.path.realpath(cwd)
    arguments = _metadata_arguments(cargo_args)
    toolchain = [argument for argument in cargo_args[:1] if argument.startswith("+")]
    identity = json.dumps(
        [
            _CACHE_FORMAT,
            directory,
            arguments,
            toolchain,
            [os.environ.get(name) for name in _ENVIRONMENT],
        ]
    )
    cache = _cache_file(identity)
    value = _read_cache(cache, identity)
    if value is None:
        value = _ask_cargo(directory, arguments, toolchain)
        _write_cache(cache, identity, directory, value)
    target = option(cargo_args, "--target-dir")
    target_dir = value["target_directory"]
    build_dir = value["build_directory"]
    if target is not None:
        # --target-dir moves the build directory along unless that has a setting of its own.
        absolute = os.path.normpath(os.path.join(directory, target))
        build_dir = absolute if build_dir == target_dir else build_dir
        target_dir = absolute
    return Workspace(
        Path(value["workspace_root"]),
        Path(target_dir),
        Path(build_dir),
        tuple(Package(name, version, Path(root)) for name, version, root in value["members"]),
        tuple(value["outside"]),
    )


def _ask_cargo(directory: str, arguments: list[str], toolchain: list[str]) -> _Answer:
    import subprocess

    command = [
        cargo_program(),
        *toolchain,
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        *arguments,
    ]
    try:
        result = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    except OSError as error:
        cause = "not found" if isinstance(error, FileNotFoundError) else error.strerror
        if not os.path.isdir(directory):
            raise CargoFailed(f"{directory} is not there any more") from None
        raise CargoFailed(
            f"{command[0]}: {cause}", hint="install Rust, or put cargo on PATH"
        ) from None
    if result.returncode != 0:
        text = os.fsdecode(result.stderr).strip()
        if "could not find `Cargo.toml`" in text or "does not exist" in text:
            raise NotACargoProject(f"no Cargo project in {directory}: {text.splitlines()[0]}")
        raise CargoFailed(
            f"cargo metadata failed in {directory}:\n{text}",
            hint="run `cargo metadata --no-deps` here and mend what it says",
        )
    # stdout is one JSON line; what precedes it on stderr are warnings that Cargo prints again.
    value = json.loads(result.stdout)
    member_ids = set(value["workspace_members"])
    members = [
        (package["name"], package["version"], os.path.dirname(package["manifest_path"]))
        for package in value["packages"]
        if package["id"] in member_ids
    ]
    return {
        "workspace_root": value["workspace_root"],
        "target_directory": value["target_directory"],
        # Reported from Cargo 1.91 on; before that there is no build.build-dir.
        "build_directory": value.get("build_directory") or value["target_directory"],
        "members": members,
        "outside": _outside(value["workspace_root"], [root for _, _, root in members]),
    }


def _outside(workspace_root: str, members: list[str]) -> list[str]:
    """Directories outside ``workspace_root`` that manifests name by relative paths.

    Cargo's answer gives them as absolute paths, as if they had been written so.
    """
    import tomllib

    found: set[str] = set()
    waiting = [workspace_root, *members]
    seen = set(waiting)
    found.update(root for root in members if not f"{root}/".startswith(f"{workspace_root}/"))
    while waiting:
        root = waiting.pop()
        try:
            with open(f"{root}/Cargo.toml", "rb") as file:
                manifest = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError):
            continue
        for path in _named_paths(manifest, ()):
            place = os.path.normpath(os.path.join(root, path))
            if os.path.isabs(path) or f"{place}/".startswith(f"{workspace_root}/"):
                continue
            found.add(place)
            if place not in seen:
                seen.add(place)
                waiting.append(place)
    return sorted(found)


def _named_paths(value: object, where: tuple[str, ...]) -> Iterator[str]:
    """Paths of packages in a manifest: of dependencies of all kinds, patches, the workspace."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _named_paths(inner, (*where, key))
        elif isinstance(inner, str) and (
            (key == "path" and any(name in _DEPENDENCIES for name in where))
            or (key == "workspace" and where == ("package",))
        ):
            yield inner


def _cache_file(identity: str) -> str:
    from blake3 import blake3

    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = str(blake3(identity.encode("utf-8", "surrogateescape")).hexdigest())[:32]
    return f"{base}/cargo-cow/workspaces/{name}.json"


def _stat(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _watched(directory: str, value: _Answer) -> list[str]:
    paths = {
        f"{value['workspace_root']}/Cargo.toml",
        f"{cargo_home()}/config.toml",
        f"{cargo_home()}/config",
    }
    current = directory
    while True:
        paths.update(
            (
                f"{current}/Cargo.toml",
                f"{current}/.cargo/config.toml",
                f"{current}/.cargo/config",
                f"{current}/rust-toolchain.toml",
                f"{current}/rust-toolchain",
            )
        )
        parent = os.path.dirname(current)
        if parent == current:
            break
        current = parent
    paths.update(f"{root}/Cargo.toml" for root in value["outside"])
    for _, _, root in value["members"]:
        paths.add(f"{root}/Cargo.toml")
        # A glob such as `crates/*` finds a new member without any manifest being edited; a
        # directory's stat changes with its entries.  Not the root itself: `target` lives there.
        parent = os.path.dirname(root)
        if parent.startswith(f"{value['workspace_root']}/"):
            paths.add(parent)
    return sorted(paths)


def _read_cache(cache: str, identity: str) -> _Answer | None:
    try:
        with open(cache, "rb") as file:
            stored = json.loads(file.read())
        if stored["identity"] != identity:
            return None
        for path, status in stored["watched"]:
            if _stat(path) != status:
                return None
        value: _Answer = stored["value"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value


def _write_cache(cache: str, identity: str, directory: str, value: _Answer) -> None:
    watched = [[path, _stat(path)] for path in _watched(directory, value)]
    text = json.dumps({"identity": identity, "watched": watched, "value": value})
    temporary = f"{cache}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        # No sync: a torn file after a power cut does not parse, and Cargo is asked again.
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        os.replace(temporary, cache)
    except OSError:
        return
