"""Where a workspace's root, members and target directories are: Cargo's own answer, cached.

``cargo metadata --no-deps`` costs some 40 ms, more than a whole no-op build may.  Its last answers
are kept below the user's cache directory.  One is used again if every manifest and configuration
file that could change it has the same stat (size, mtime, ctime, inode), including those that did
not exist; or, after a branch switch and back, the same content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import time_ns
from typing import NamedTuple, TypedDict

from cargo_cow.errors import CargoFailed, NotACargoProject

_CACHE_FORMAT = 4
_KEPT_ANSWERS = 8
_GRANULE_NS = 20_000_000  # see `filesystems.clocks`, which this room does not load
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
    known = _read_cache(cache, identity)
    value = _known_answer(cache, identity, known)
    if value is None:
        before = _before()
        value = _ask_cargo(directory, arguments, toolchain)
        watched = tuple(_Watched(path, *_look(path)) for path in _watched(directory, value))
        if _newest(watched) < before:
            _write_cache(cache, identity, [_Entry(watched, value), *known])
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


class _Watched(NamedTuple):
    """A path that an answer depends on: its stat, and the digest of its content or of the names in
    it; None and an empty digest where there is nothing."""

    path: str
    status: list[int] | None
    digest: str


class _Entry(NamedTuple):
    watched: tuple[_Watched, ...]
    value: _Answer


def _look(path: str) -> tuple[list[int] | None, str]:
    """The stat of a path, taken first, and its digest."""
    from blake3 import blake3

    status = _stat(path)
    if status is None:
        return None, ""
    try:
        if os.path.isdir(path):
            data = b"/" + b"\0".join(sorted(os.fsencode(name) for name in os.listdir(path)))
        else:
            with open(path, "rb") as file:
                data = file.read()
    except OSError:
        return status, "unreadable"  # never called the same
    return status, str(blake3(data).hexdigest())


def _before() -> int:
    """What is not older (ns) may have been written after a look at it that begins now, or will be,
    under the same stat."""
    return time_ns() - _GRANULE_NS


def _newest(watched: tuple[_Watched, ...]) -> int:
    return max((when for each in watched for when in (each.status or ())[2:]), default=0)


def _known_answer(cache: str, identity: str, known: list[_Entry]) -> _Answer | None:
    """The kept answer that is still right, the newest first."""
    for entry in known:
        if all(_stat(watched.path) == watched.status for watched in entry.watched):
            return entry.value
    found: dict[str, tuple[list[int] | None, str]] = {}
    before = _before()

    def is_same(watched: _Watched) -> bool:
        if watched.path not in found:
            found[watched.path] = _look(watched.path)
        status, digest = found[watched.path]
        return (status is None) == (watched.status is None) and (
            digest == watched.digest != "unreadable"
        )

    for entry in known:
        if all(is_same(watched) for watched in entry.watched):
            again = tuple(
                watched._replace(status=found[watched.path][0]) for watched in entry.watched
            )
            if _newest(again) < before:
                others = [other for other in known if other is not entry]
                _write_cache(cache, identity, [_Entry(again, entry.value), *others])
            return entry.value
    return None


def _read_cache(cache: str, identity: str) -> list[_Entry]:
    try:
        with open(cache, "rb") as file:
            stored = json.loads(file.read())
        if stored["identity"] != identity:
            return []
        return [
            _Entry(tuple(_Watched(*watched) for watched in entry["watched"]), entry["value"])
            for entry in stored["answers"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_cache(cache: str, identity: str, entries: list[_Entry]) -> None:
    answers = [entry._asdict() for entry in entries[:_KEPT_ANSWERS]]
    text = json.dumps({"identity": identity, "answers": answers})
    temporary = f"{cache}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        # No sync: a torn file after a power cut does not parse, and Cargo is asked again.
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        os.replace(temporary, cache)
    except OSError:
        return
