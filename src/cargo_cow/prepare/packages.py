"""The files of each package of a checkout, and their digest as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from blake3 import blake3

from cargo_cow import git
from cargo_cow.errors import GitFailed
from cargo_cow.prepare.contents import MISSING, Contents
from cargo_cow.prepare.declared import Declarations
from cargo_cow.prepare.macros import READS_BEYOND


class Packages:
    """All package files of one checkout, listed once, when first needed.

    A package's files are those below its root, less those of packages nested in it, and less the
    target.  With git: tracked and untracked ones, and ignored ones of the ``.env`` kind;
    without git: all.
    """

    def __init__(
        self,
        checkout: str,
        workspace: str,
        build_dir: str,
        contents: Contents,
        listing: git.Listing | None = None,
    ) -> None:
        self._checkout = checkout
        self._workspace = workspace
        self._build_dir = build_dir
        self._contents = contents
        self._listing = listing
        self._files: dict[str, list[str]] | None = None
        self._listed: set[str] = set()
        self._ignored: dict[str, bool] = {}
        self.declarations = Declarations(workspace, build_dir, contents)

    def files(self, package_root: str) -> list[str]:
        """Paths relative to ``package_root`` (absolute), sorted."""
        if not (package_root + "/").startswith(self._checkout + "/"):
            return _walk(package_root, self._build_dir)
        if self._files is None:
            self._files = self._partition()
        return self._files.get(package_root, [])

    def adopt(self, other: Packages) -> bool:
        """Take over the list of files that ``other`` had of git, if it asked."""
        self._files = other._files
        return self._files is not None

    def _partition(self) -> dict[str, list[str]]:
        try:
            names = git.package_names(Path(self._checkout), listing=self._listing)
        except GitFailed:
            names = _walk(self._checkout, self._build_dir)
        roots = {
            os.path.dirname(name)
            for name in names
            if name == "Cargo.toml" or name.endswith("/Cargo.toml")
        }
        inside = (
            self._build_dir[len(self._checkout) + 1 :] + "/"
            if self._build_dir.startswith(self._checkout + "/")
            else None
        )
        table: dict[str, list[str]] = {}
        for name in names:
            if inside is not None and name.startswith(inside):
                continue
            directory = os.path.dirname(name)
            while directory and directory not in roots:
                directory = os.path.dirname(directory)
            root = f"{self._checkout}/{directory}" if directory else self._checkout
            relative = name[len(directory) + 1 :] if directory else name
            table.setdefault(root, []).append(relative)
        for files in table.values():
            files.sort()
        return table

    def ignored(self, paths: Sequence[str]) -> str | None:
        """The first of ``paths`` (absolute, in the checkout) that git ignores; None if there is
        none.

        Where git has no answer it is the first: nothing says that somebody else keeps the file.
        What is in the list of files already is not asked for.
        """
        if self._files is not None and not self._listed:
            self._listed = {
                f"{root}/{name}"
                for root, names in self._files.items()
                for name in names
                if not git.is_environment_file(name)  # listed although ignored
            }
        self._ignored.update(dict.fromkeys(self._listed.intersection(paths), False))
        unknown = [path for path in paths if path not in self._ignored]
        if unknown:
            try:
                found = git.ignored(Path(self._checkout), unknown)
            except GitFailed:
                found = set(unknown)
            self._ignored.update({path: path in found for path in unknown})
        return next((path for path in paths if self._ignored[path]), None)

    def digests(self, package_root: str, macros: Iterable[str] = ()) -> dict[str, str]:
        """Digest of every file that ``macros`` may read for the package, by relative path.

        These are all files of the package, ``.env`` files in the directories above it up to the
        checkout's root (dotenv walks up), and what a macro is known to read beyond that.
        Cargo.lock is left out: where nobody commits it, Cargo has yet to write it in a new
        checkout, and what it says reaches a unit through its dependencies.
        """
        found = {
            name: self._contents.file(f"{package_root}/{name}")
            for name in self.files(package_root)
            if name != "Cargo.lock"
        }
        directory, up = package_root, ""
        while directory != self._checkout and directory.startswith(self._checkout + "/"):
            directory, up = os.path.dirname(directory), f"{up}../"
            for name in _environment_files(directory):
                found[f"{up}{name}"] = self._contents.file(f"{directory}/{name}")
        for macro in macros:
            for name in READS_BEYOND.get(macro, ()):
                path = f"{self._workspace}/{name}"
                found[f"{macro}:{name}"] = self._contents.file(path)
        return found

    def digest(self, package_root: str, macros: Iterable[str] = ()) -> str:
        """One digest over names and contents of `digests`."""
        return self.digest_of(self.digests(package_root, macros))

    def digest_of(self, digests: Mapping[str, str]) -> str:
        """The same over those that are known."""
        hasher = blake3()
        for name, value in digests.items():
            if value != MISSING:
                hasher.update(os.fsencode(name) + b"\0" + value.encode() + b"\0")
        return str(hasher.hexdigest())

    def newest(self, package_root: str) -> int:
        """Newest ctime (ns) of the package's files and of their directories below the root.

        An mtime can be set back, a ctime cannot.  Directories tell of a file that was deleted.
        The root itself is left out: the target is made in it.
        """
        newest = 0
        directories = set()
        for name in self.files(package_root):
            if name == "Cargo.lock":
                continue
            try:
                newest = max(newest, os.stat(f"{package_root}/{name}").st_ctime_ns)
            except OSError:
                continue
            directory = os.path.dirname(name)
            while directory:
                directories.add(directory)
                directory = os.path.dirname(directory)
        for directory in directories:
            newest = max(newest, os.stat(f"{package_root}/{directory}").st_ctime_ns)
        return newest


def _environment_files(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return sorted(name for name in names if name == ".env" or name.startswith(".env."))


def _walk(root: str, build_dir: str) -> list[str]:
    found: list[str] = []
    for directory, directories, files in os.walk(root):
        directories[:] = [
            name
            for name in directories
            if name != ".git"
            and f"{directory}/{name}" != build_dir
            and not os.path.exists(f"{directory}/{name}/CACHEDIR.TAG")
        ]
        relative = directory[len(root) + 1 :]
        prefix = f"{relative}/" if relative else ""
        found.extend(f"{prefix}{name}" for name in files)
    return sorted(found)


def keep_list(build_dir: str, digest: str, digests: dict[str, str]) -> None:
    """Keep a package's file list in the target: ``explain`` names the first difference by it."""
    path = f"{build_dir}/.cargo-cow/packages/{digest}.json"
    if os.path.exists(path):
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(json.dumps(digests, separators=(",", ":")))
        os.replace(temporary, path)
    except OSError:
        return


def first_difference(build_dir: str, digest: str, here: dict[str, str]) -> str | None:
    """The first file that differs between the kept list of ``digest`` and ``here``."""
    try:
        with open(f"{build_dir}/.cargo-cow/packages/{digest}.json", "rb") as file:
            there = json.loads(file.read())
    except (OSError, ValueError):
        return None
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            return str(name)
    return None
