"""Inputs that a package declares in its manifest, because nothing can see that it reads them.

::

    [package.metadata.cow]
    inputs = ["queries", "schema/**/*.sql", "env:REGION"]

Paths and patterns are relative to the manifest; those of ``[workspace.metadata.cow]`` are of all
packages below the workspace's root.  ``*`` and ``?`` stay within a name, ``**`` stands for any
number of directories, and a directory counts with everything below it.  What is not there counts as
missing.  The shim reads the same (``native/src/shim/manifest.rs``).

What is declared belongs to every unit of the package, its script's run included, whatever else is
known of it.  What was there when a unit was made is *noted* in its record as (name, digest).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from blake3 import blake3

from cargo_cow.prepare.contents import MISSING, UNREADABLE, Contents, digest_of
from cargo_cow.prepare.place import Place, below

UNKNOWN = "unknown"
"""Stands for the digest of what may have changed since the unit was made; equal to nothing."""
UNSET = "unset"
BY_SCRIPT = "by the script"
"""Stands for the value of a variable that the package's own script sets: its run answers for it."""
_VARIABLE = "env:"
_WORDS = (b"metadata", b"cow", b"inputs")
_PASSED_BY = (".git", ".cargo-cow")


class Declared(NamedTuple):
    """One declaration: ``root`` is the manifest's directory, ``name`` what records call it.

    ``variable`` is None for a path or pattern.
    """

    name: str
    root: str
    path: str
    variable: str | None


class Difference(NamedTuple):
    """A declared input that is not what it was; ``noted``: it is known what it was."""

    name: str
    noted: bool


class Declarations:
    """What the packages of one workspace declare; each manifest is read once."""

    def __init__(self, workspace: str, build_dir: str, contents: Contents) -> None:
        self._workspace = workspace
        self._build_dir = build_dir
        self._contents = contents
        self._tables: dict[tuple[str, str], list[str]] = {}
        self._digests: dict[str, str] = {}
        self.problems: list[str] = []

    def manifests(self, package_root: str) -> tuple[str, ...]:
        """The files that declarations of the package in ``package_root`` (absolute) stand in."""
        roots = dict.fromkeys((package_root, self._shared(package_root)))
        return tuple(f"{root}/Cargo.toml" for root in roots)

    def of(self, package_root: str) -> tuple[Declared, ...]:
        """What the package in ``package_root`` (absolute) declares, in order."""
        found: dict[str, Declared] = {}
        for root, table in ((package_root, "package"), (self._shared(package_root), "workspace")):
            for word in self._table(root, table):
                if word.startswith(_VARIABLE):
                    one = Declared(word, root, "", word.removeprefix(_VARIABLE))
                else:
                    one = Declared(f"{table}:{word}", root, word, None)
                found[one.name] = one
        return tuple(found[name] for name in sorted(found))

    def difference(
        self, package_root: str, noted: Mapping[str, str], variables: Mapping[str, str]
    ) -> Difference | None:
        """The first declared input that is not what was noted; None if there is none."""
        for one in self.of(package_root):
            then = noted.get(one.name, UNKNOWN)
            if then == UNKNOWN:
                return Difference(_shown(one), noted=False)
            if then != BY_SCRIPT and then != self.digest(one, variables):
                return Difference(_shown(one), noted=True)
        return None

    def digest(self, one: Declared, variables: Mapping[str, str]) -> str:
        """What a declared input is now."""
        if one.variable is not None:
            value = variables.get(one.variable)
            return UNSET if value is None else digest_of(os.fsencode(value))
        pattern = os.path.join(one.root, one.path)
        known = self._digests.get(pattern)
        if known is None:
            known = self._digests[pattern] = self._content(pattern)
        return known

    def files(self, one: Declared) -> list[str]:
        """As `files_of`, for a declared path."""
        return files_of(os.path.join(one.root, one.path), self._build_dir)

    def changed(self, one: Declared) -> int:
        """When (ns) what a declared path stands for was changed last, at the latest.

        An mtime can be set back, a ctime cannot.  Where something went, its directory tells.
        """
        pattern = os.path.join(one.root, one.path)
        newest = 0
        above: set[str] = set()
        for path in (*self.files(one), *_searched(pattern, self._build_dir)):
            for status in _looks(path.rstrip("/") or "/"):
                newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
            directory = os.path.dirname(path.rstrip("/"))
            while directory not in ("/", one.root) and directory not in above:
                above.add(directory)
                directory = os.path.dirname(directory)
        for directory in above:
            for status in _looks(directory):
                # Moved into place with all that is in it, which shows in its ctime alone.
                if status.st_ctime_ns != status.st_mtime_ns:
                    newest = max(newest, status.st_ctime_ns)
        return newest

    def _content(self, pattern: str) -> str:
        hasher = blake3()
        files = files_of(pattern, self._build_dir)
        if not files:
            return MISSING
        for path in files:
            hasher.update(os.fsencode(os.path.relpath(path, _fixed(pattern))) + b"\0")
            if not path.endswith("/"):
                digest = self._contents.file(path)
                if digest == UNREADABLE:
                    return UNKNOWN
                hasher.update(digest.encode())
            hasher.update(b"\0")
        return str(hasher.hexdigest())

    def _shared(self, package_root: str) -> str:
        """Whose ``[workspace]`` counts: Cargo runs rustc there."""
        return self._workspace if below(package_root, self._workspace) is not None else package_root

    def _table(self, root: str, table: str) -> list[str]:
        known = self._tables.get((root, table))
        if known is None:
            known = self._tables[root, table] = self._read(root, table)
        return known

    def _read(self, root: str, table: str) -> list[str]:
        path = f"{root}/Cargo.toml"
        try:
            with open(path, "rb") as file:
                text = file.read()
        except OSError:
            return []
        if b"metadata" not in text or b"cow" not in text:
            return []
        import tomllib  # for the few that declare something

        try:
            value: object = tomllib.loads(text.decode())
        except ValueError:
            return []  # Cargo says it better
        for name in (table, "metadata", "cow"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is None:
            return []
        return self._understood(path, table, value)

    def _understood(self, path: str, table: str, value: object) -> list[str]:
        where = f"{path}: {table}.metadata.cow"
        if not isinstance(value, dict):
            self.problems.append(f"{where} is no table")
            return []
        for name in value:
            if name != "inputs":
                self.problems.append(f"{where}.{name} means nothing to cargo-cow")
        words = value.get("inputs", [])
        if not isinstance(words, list):
            self.problems.append(f"{where}.inputs is no list")
            return []
        found = []
        for word in words:
            trouble = _trouble(word)
            if trouble is not None:
                self.problems.append(f"{where}.inputs: {word!r} {trouble}; it is left out")
            else:
                found.append(word)
                if not _WILD.search(word) and re.search(r"[\[\]{}]", word):
                    place = os.path.join(os.path.dirname(path), word)
                    if not os.path.lexists(place):
                        self.problems.append(
                            f"{where}.inputs: {word!r} is no file; only *, ? and ** are patterns"
                        )
        return found


def problems(place: Place) -> list[str]:
    """What cannot be understood of what the workspace's members declare, for people."""
    declarations = Declarations(place.workspace, place.build_dir, Contents())
    for roots in place.members.values():
        for root in roots:
            declarations.of(root)
    return declarations.problems


_WILD = re.compile(r"[*?]")


def _trouble(word: object) -> str | None:
    if not isinstance(word, str):
        return "is no string"
    if "\0" in word or not word:
        return "is no path"
    name = word.removeprefix(_VARIABLE)
    if name != word and (not name or "=" in name):
        return "names no variable"
    return None


def _shown(one: Declared) -> str:
    if one.variable is not None:
        return f"the variable {one.variable}"
    return os.path.normpath(os.path.join(one.root, one.path))


def _looks(path: str) -> Iterator[os.stat_result]:
    """What is at a path, and the link itself if it is one."""
    for look in (os.stat, os.lstat):
        with contextlib.suppress(OSError):
            yield look(path)


# -- patterns


def _fixed(pattern: str) -> str:
    """The directory that a pattern's names are relative to: before its first wildcard."""
    fixed: list[str] = []
    for part in pattern.split("/"):
        if _WILD.search(part):
            return "/".join(fixed) or "/"
        fixed.append(part)
    return os.path.dirname(pattern)


def _parts(pattern: str) -> list[str]:
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if any(map(_WILD.search, parts)):
        while parts and parts[-1] == "**":
            parts.pop()
    return parts


def _searched(pattern: str, build_dir: str) -> Iterator[str]:
    """The directories that were looked into for a pattern's names."""
    parts = _parts(pattern)
    for count, part in enumerate(parts):
        if _WILD.search(part):
            yield from _matched(parts[:count], build_dir)
    if not any(map(_WILD.search, parts)) and not os.path.lexists(pattern):
        directory = os.path.dirname(os.path.normpath(pattern))
        while not os.path.isdir(directory):
            directory = os.path.dirname(directory)
        yield directory


def _matched(parts: list[str], build_dir: str) -> list[str]:
    """Paths that the parts of an absolute pattern stand for, there or not."""
    found = [""]
    for part in parts:
        following: list[str] = []
        seen: set[tuple[int, int]] = set()
        for path in found:
            if part == "**":
                following += _directories(path, build_dir, seen)
            elif _WILD.search(part):
                fits = _expression(part)
                following += [f"{path}/{name}" for name in _names(path) if fits.fullmatch(name)]
            else:
                following.append(f"{path}/{part}")
        found = following
    return found


def _expression(part: str) -> re.Pattern[str]:
    words = {"*": ".*", "?": "."}
    return re.compile("".join(words.get(letter, re.escape(letter)) for letter in part), re.DOTALL)


def files_of(pattern: str, build_dir: str) -> list[str]:
    """Everything that an absolute pattern stands for now: files, and directories with a slash."""
    found: set[str] = set()
    seen: set[tuple[int, int]] = set()
    for path in sorted(_matched(_parts(pattern), build_dir)):
        if os.path.isdir(path):
            for directory in _directories(path, build_dir, seen):
                found.add(f"{directory}/")
                for name in _names(directory):
                    if not os.path.isdir(f"{directory}/{name}"):
                        found.add(f"{directory}/{name}")
        elif os.path.lexists(path):
            found.add(path)
    return sorted(found)


def _directories(path: str, build_dir: str, seen: set[tuple[int, int]]) -> list[str]:
    """A directory and all below it, links followed, each once; without the target."""
    try:
        status = os.stat(path or "/")
    except OSError:
        return []
    if not os.path.isdir(path or "/") or (status.st_dev, status.st_ino) in seen:
        return []
    if f"{build_dir}/".startswith(f"{path}/") and os.path.exists(f"{path}/CACHEDIR.TAG"):
        return []
    seen.add((status.st_dev, status.st_ino))
    found = [path]
    for name in _names(path):
        if name not in _PASSED_BY:
            found += _directories(f"{path}/{name}", build_dir, seen)
    return found


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory or "/")
    except OSError:
        return []
