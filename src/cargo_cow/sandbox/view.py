"""What a command in sandbox mode sees: decided here, as plain data; nothing is mounted.

The fixed path is ``<room>/<name>``, where the *room* ``<cache>/cargo-cow/sandbox/<project>`` is a
directory of our own that is empty outside, and inside holds the checkout, what its manifests name
beside it, and nothing else.  All real paths stay what they are, so that git, other checkouts and
absolute paths are found.

What Cargo, rustup and git find by going *up* from a checkout is not there above the fixed path.  So
it is brought along (configuration files by ``include``, a toolchain by ``RUSTUP_TOOLCHAIN``), and
where that cannot be done exactly, the mode is refused.
"""

# Strings and os.path, not pathlib: this runs in every sandboxed build.
# ruff: noqa: PTH111, PTH113, PTH118, PTH119, PTH120, PTH123
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cargo_cow import git
from cargo_cow.cargo.workspace import Package, Workspace, cargo_home
from cargo_cow.errors import SandboxRefused
from cargo_cow.git import Checkout
from cargo_cow.prepare.place import FIXED_PATH, below

_TARGET_VARIABLES = ("CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_BUILD_BUILD_DIR")
_OPTIONS_WITH_PATHS = ("--manifest-path", "--target-dir")


class View(NamedTuple):
    """What to mount, and what the command's world is.

    ``binds`` are (real, seen), in order; ``targets`` those of them that are a target outside the
    checkout.  ``files`` are to be written before: (path, text).
    ``environment`` holds variables that are set for the command alone, ``common`` also for our own
    work inside.  ``read_only`` and ``keep``: where nothing can be written, and where all the same.
    """

    checkout: str
    seen: str
    room: str
    binds: tuple[tuple[str, str], ...]
    targets: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    directory: str
    environment: dict[str, str]
    common: dict[str, str]
    network: bool
    read_only: tuple[str, ...]
    keep: tuple[str, ...]

    def at(self, path: str) -> str:
        """The path inside for a real path."""
        return _moved(path, self.binds)

    def real(self, path: str) -> str:
        """The real path for a path inside."""
        return _moved(path, tuple((seen, real) for real, seen in self.binds))

    def arguments(self, arguments: Sequence[str]) -> list[str]:
        """Cargo's arguments, with absolute paths in ``--manifest-path`` and ``--target-dir`` as
        they are inside."""
        result: list[str] = []
        previous = ""
        done = False
        for argument in arguments:
            done = done or argument == "--"
            name, equals, value = argument.partition("=")
            if done:
                result.append(argument)
            elif previous in _OPTIONS_WITH_PATHS and argument.startswith("/"):
                result.append(self.at(os.path.normpath(argument)))
            elif equals and name in _OPTIONS_WITH_PATHS and value.startswith("/"):
                result.append(f"{name}={self.at(os.path.normpath(value))}")
            else:
                result.append(argument)
            previous = argument
        return result

    def workspace(self, workspace: Workspace) -> Workspace:
        """The workspace as it is inside."""

        def moved(path: Path) -> Path:
            return Path(self.at(os.path.realpath(path)))

        return Workspace(
            moved(workspace.root),
            moved(workspace.target_dir),
            moved(workspace.build_dir),
            tuple(Package(name, version, moved(root)) for name, version, root in workspace.members),
            workspace.outside,
        )


def _moved(path: str, pairs: tuple[tuple[str, str], ...]) -> str:
    found = ""
    result = path
    for source, destination in pairs:
        rest = below(path, source)
        if rest is not None and len(source) > len(found):
            found, result = source, f"{destination}/{rest}" if rest else destination
    return result


def inside() -> str | None:
    """The fixed path if we run in sandbox mode."""
    return os.environ.get(FIXED_PATH) or None


def plan(
    workspace: Workspace,
    cwd: str,
    *,
    network: bool = True,
    read_only_home: bool = False,
) -> View:
    """How a command run in ``cwd`` (physical) sees the workspace's checkout in sandbox mode.

    Reads files and touches nothing.  Raises SandboxRefused where something that counts here could
    not count inside.
    """
    root = os.path.realpath(workspace.root)
    found = git.checkout_of(workspace.root)
    if found is not None and found.bare:
        found = None
    checkout = root if found is None else os.path.realpath(found.root)
    room, name = _room(checkout, found)
    seen = f"{room}/{name}"
    files: list[tuple[str, str]] = []
    binds: list[tuple[str, str]] = [(checkout, seen)]
    private = f"{room}.files" if found is None else f"{found.git_dir}/cargo-cow/sandbox"
    if found is not None:
        for file, content, over in _git_files(checkout, seen, found, private):
            files.append((file, content))
            binds.append((file, over))
    environment, target = _target(workspace, checkout, seen, room)
    binds += target
    binds += _beside(workspace, checkout, seen, room).items()
    text = _configuration(checkout, room)
    if text is not None:
        files.append((f"{private}/config.toml", text))
        binds.append((f"{private}/config.toml", f"{room}/.cargo/config.toml"))
    directory = _moved(cwd, tuple(binds))
    common = {FIXED_PATH: seen, "PWD": directory}
    toolchain = _toolchain(cwd, checkout, room)
    if toolchain is not None:
        common["RUSTUP_TOOLCHAIN"] = toolchain
    read_only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    if read_only_home:
        read_only = (os.path.realpath(os.path.expanduser("~")),)
        keep = _writable(checkout, found, [real for real, _ in target])
    return View(
        checkout,
        seen,
        room,
        tuple(binds),
        tuple(target),
        tuple(files),
        directory,
        environment,
        common,
        network,
        read_only,
        keep,
    )


def cache() -> str:
    """Where rooms, and what else we may forget, lie: below the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    # The XDG specification: a relative value is to be ignored.
    base = base if base.startswith("/") else os.path.expanduser("~/.cache")
    return os.path.realpath(f"{base}/cargo-cow")


def _room(checkout: str, found: Checkout | None) -> tuple[str, str]:
    """The room of the project, and what the checkout is called in it."""
    from blake3 import blake3

    project = checkout if found is None else os.path.realpath(found.common_dir)
    name = os.path.basename(project)
    if name == ".git":
        name = os.path.basename(os.path.dirname(project))
    name = name.removesuffix(".git").lstrip(".") or "checkout"
    digest = str(blake3(os.fsencode(project)).hexdigest())[:12]
    room = f"{cache()}/sandbox/{digest}"
    for one, other in ((checkout, room), (room, checkout)):
        if below(one, other) is not None:
            raise SandboxRefused(
                f"the checkout {checkout} and our cache {room} lie in each other",
                hint="set XDG_CACHE_HOME to another directory",
            )
    return room, name


def _git_files(
    checkout: str, seen: str, found: Checkout, private: str
) -> list[tuple[str, str, str]]:
    """(file of ours, its text, the file of git's that it stands over inside).

    A linked worktree's ``<git dir>/gitdir`` says where the worktree is.  Inside that is the fixed
    path; outside it must never be said, or ``git worktree prune`` would take the worktree's
    administration away.
    """
    dot_git = f"{checkout}/.git"
    result = []
    git_dir = os.fspath(found.git_dir)
    if os.path.isfile(dot_git):
        with open(dot_git, "rb") as file:
            pointed = os.fsdecode(file.read()).removeprefix("gitdir: ").rstrip("\r\n")
        if not pointed.startswith("/"):
            text = f"gitdir: {git_dir}\n"
            result.append((f"{private}/dot-git", text, f"{seen}/.git"))
    if not found.is_main:
        result.append((f"{private}/gitdir", f"{seen}/.git\n", f"{git_dir}/gitdir"))
    if git.names_work_tree(found):
        raise SandboxRefused(
            f"the repository of {checkout} names its working directory (core.worktree), "
            "so that git would not follow to another path",
            hint="a submodule cannot be entered alone; enter the checkout that holds it",
        )
    return result


def _target(
    workspace: Workspace, checkout: str, seen: str, room: str
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Variables that name the target inside, and binds for one that lies outside the checkout.

    Variables are set only where the target is not where Cargo puts it by itself: programs that are
    run inside may call Cargo for other projects.
    """
    binds: list[tuple[str, str]] = []
    target = os.path.realpath(workspace.target_dir)
    build = os.path.realpath(workspace.build_dir)
    for real, name in {build: ".build", target: ".target"}.items():
        if below(checkout, real) is not None:
            raise SandboxRefused(
                f"the target {real} holds the checkout {checkout}",
                hint="set build.target-dir to a directory beside it",
            )
        if below(real, checkout) is None:
            binds.append((real, f"{room}/{name}"))
    default = target == build == f"{os.path.realpath(workspace.root)}/target"
    if default and not any(name in os.environ for name in _TARGET_VARIABLES):
        return {}, binds
    pairs = ((checkout, seen), *binds)
    environment = {"CARGO_TARGET_DIR": _moved(target, pairs)}
    if build != target:
        environment["CARGO_BUILD_BUILD_DIR"] = _moved(build, pairs)
    return environment, binds


def _beside(workspace: Workspace, checkout: str, seen: str, room: str) -> dict[str, str]:
    """What manifests name beside the checkout by relative paths, and where that is inside.

    The whole directory next to the checkout comes along, as it may hold the workspace that such a
    package inherits from.
    """
    result: dict[str, str] = {}
    parent = os.path.dirname(checkout)
    for path in workspace.outside:
        package = os.path.realpath(path)
        if below(package, checkout) is not None:
            continue
        inside = below(os.path.normpath(path), parent)
        if not inside:
            raise SandboxRefused(
                f"a manifest names {path} by a relative path, which leads elsewhere from "
                "the fixed path",
                hint="make it an absolute path, or put it beside the checkout",
            )
        first = inside.partition("/")[0]
        if f"{room}/{first}" == seen:
            raise SandboxRefused(
                f"a manifest names {path} by a relative path, where this checkout stands inside",
                hint="make it an absolute path",
            )
        result[os.path.realpath(f"{parent}/{first}")] = f"{room}/{first}"
    return result


def _writable(checkout: str, found: Checkout | None, targets: list[str]) -> tuple[str, ...]:
    """Where a build has to write, wherever home is."""
    import tempfile

    places = [checkout, cargo_home(), cache(), tempfile.gettempdir(), *targets]
    if found is not None:
        places.append(os.fspath(found.common_dir))
    home = os.path.realpath(os.path.expanduser("~"))
    kept = dict.fromkeys(
        real for place in places if below(real := os.path.realpath(place), home) is not None
    )
    # What lies in another one comes with it.
    return tuple(
        place
        for place in kept
        if not any(place != other and below(place, other) is not None for other in kept)
    )


# ---------------------------------------------------------------------------------------------
# What is found by going up


def _configuration(checkout: str, room: str) -> str | None:
    """The text of the configuration file above the fixed path; None where none is needed.

    Inside, Cargo must find the same files in the same order as here.
    """
    here = _files_above(checkout)
    there = _files_above(room)
    extra = here[: len(here) - len(there)] if there else here
    if [*extra, *there] != here:
        odd = next(path for path in (*there, *here) if path not in here or path not in there)
        where = "here" if odd in here else "at the fixed path"
        raise SandboxRefused(
            f"the Cargo configuration {odd} counts only {where}",
            hint="set XDG_CACHE_HOME to a directory with no Cargo configuration above it",
        )
    if not extra:
        return None
    if any(not path.endswith(".toml") for path in extra) or not _includes():
        raise SandboxRefused(
            f"the Cargo configuration {extra[0]} above the checkout would not count inside",
            hint="rename it to config.toml and use Cargo 1.94 or later, whose configuration can "
            "include files; or move it into the checkout",
        )
    import json

    # The later one is the stronger one.
    quoted = ", ".join(json.dumps(path, ensure_ascii=False) for path in reversed(extra))
    return f"# By cargo-cow: the configuration files above the checkout.\ninclude = [{quoted}]\n"


def _files_above(directory: str) -> list[str]:
    """Cargo's configuration files in the directories above one, and the user's: strongest first."""
    home = os.path.realpath(cargo_home())
    found: list[str] = []
    for place in [f"{parent}/.cargo" for parent in _parents(directory)] + [home]:
        for name in ("config", "config.toml"):
            path = os.path.realpath(f"{place}/{name}")
            if os.path.isfile(path):
                if path not in found:
                    found.append(path)
                break  # where both exist, Cargo reads the one without a suffix
    return found


def _parents(directory: str) -> list[str]:
    result = []
    while directory != "/":
        directory = os.path.dirname(directory)
        result.append(directory)
    return result


def _includes() -> bool:
    """Whether Cargo's configuration may include files: stable since 1.94."""
    import re
    import subprocess

    from cargo_cow.cargo.workspace import cargo_program

    try:
        done = subprocess.run(
            [cargo_program(), "--version"], capture_output=True, check=False, text=True
        )
    except OSError:
        return False
    version = re.match(r"cargo (\d+)\.(\d+)", done.stdout)
    return version is not None and (int(version[1]), int(version[2])) >= (1, 94)


def _toolchain(cwd: str, checkout: str, room: str) -> str | None:
    """The toolchain that rustup would choose by the directories here and not inside; else None.

    Source: rustup's book, "Overrides": of all directories upwards the nearest decides, a
    ``rustup override`` before a toolchain file.
    """
    if os.environ.get("RUSTUP_TOOLCHAIN"):
        return None
    home = os.environ.get("RUSTUP_HOME") or os.path.expanduser("~/.rustup")
    try:
        with open(f"{home}/settings.toml", encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):
        return None  # no rustup
    overrides: dict[str, str] = {}
    if "/" in text.partition("[overrides]")[2]:
        import tomllib

        try:
            settings = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return None
        overrides = {str(key): str(value) for key, value in settings.get("overrides", {}).items()}
    for directory in (cwd, *_parents(cwd)):
        if directory in overrides:
            return overrides[directory]
        file_name = _toolchain_file(directory)
        if file_name is None:
            continue
        if below(directory, checkout) is not None:
            return None  # it is there inside, too
        return _named_toolchain(file_name)
    for directory in _parents(room):
        if directory in overrides or _toolchain_file(directory) is not None:
            import tomllib

            default = tomllib.loads(text).get("default_toolchain")
            if isinstance(default, str):
                return default
            raise SandboxRefused(
                f"{directory} sets a toolchain, which would count at the fixed path",
                hint="rustup default stable, or set RUSTUP_TOOLCHAIN",
            )
    return None


def _toolchain_file(directory: str) -> str | None:
    for name in ("rust-toolchain", "rust-toolchain.toml"):
        if os.path.isfile(f"{directory}/{name}"):
            return f"{directory}/{name}"
    return None


def _named_toolchain(path: str) -> str:
    import tomllib

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if "[" not in text:
            return text.strip()
        table = tomllib.loads(text)["toolchain"]
        if "path" in table:
            return os.path.normpath(os.path.join(os.path.dirname(path), str(table["path"])))
        return str(table["channel"])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError):
        raise SandboxRefused(
            f"{path} above the checkout would not count inside",
            hint="set RUSTUP_TOOLCHAIN to the toolchain it names",
        ) from None
