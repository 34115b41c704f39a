"""Contents of files and directories by BLAKE3, with a memo that cannot lie.

A memo entry is used while device, inode, size, mtime and ctime are those seen when the file was
hashed, and it is only kept if the file's mtime and ctime lay more than a clock granule before the
hashing began: a file edited within the granule may change again without changing its stat
(the "racy git" problem, git's Documentation/technical/racy-git.txt).
"""

from __future__ import annotations

import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any, TypeVar

from blake3 import blake3

from cargo_cow.filesystems import GRANULE_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Answer = TypeVar("_Answer")
_FORMAT = 1
MEMO = ".cargo-cow/contents.json"
"""Where a target keeps its memo."""
_MAPPED = 1 << 20
"""Files above this many bytes are hashed through a mapping, not read into memory."""
_ANSWERS = 1000
"""Answers that are kept: a unit has about three."""
MISSING = "missing"
"""Digest of a path that does not exist."""
UNREADABLE = "unreadable"
"""Digest of a path that exists and cannot be read; equal to nothing, not even itself."""


class Contents:
    """Digests of paths, each computed once per run and remembered between runs."""

    def __init__(self, memo_file: str | None = None) -> None:
        self._memo_file = memo_file
        self._memo: dict[str, list[int | str]] = {}
        self._fresh: dict[str, str] = {}
        self._answers: dict[str, Any] = {}
        self._changed = False
        self.hashed_files = 0
        self.hashed_bytes = 0
        if memo_file is not None:
            try:
                with open(memo_file, "rb") as file:
                    value = json.loads(file.read())
                if value["format"] == _FORMAT:
                    self._memo = value["files"]
                    self._answers = dict(value.get("answers", {}))
            except (OSError, ValueError, KeyError, TypeError):
                # A memo is a shortcut only: without it every file is read again.
                self._memo = {}

    @classmethod
    def of(cls, build_dir: str | os.PathLike[str]) -> Contents:
        """With what ``build_dir`` remembers of earlier runs."""
        return cls(f"{os.fspath(build_dir)}/{MEMO}")

    def file(self, path: str) -> str:
        """BLAKE3 (hex) of a regular file's bytes; MISSING or UNREADABLE; follows symlinks.

        A symlink that leads nowhere has a digest of its own, by where it leads.
        """
        digest = self._fresh.get(path)
        if digest is None:
            digest = self._fresh[path] = self._file(path)
        return digest

    def again(self, path: str) -> str:
        """As `file`, but reads the file now, whatever is remembered."""
        self._fresh.pop(path, None)
        self._memo.pop(path, None)
        return self.file(path)

    def _file(self, path: str) -> str:
        try:
            status = os.stat(path)
        except OSError:
            return _dangling(path)
        if not stat.S_ISREG(status.st_mode):
            return self.tree(path) if stat.S_ISDIR(status.st_mode) else UNREADABLE
        key: list[int | str] = [
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ]
        known = self._memo.get(path)
        if known is not None and known[:5] == key:
            return str(known[5])
        started = time.time_ns()
        try:
            if status.st_size > _MAPPED:
                digest = str(blake3().update_mmap(path).hexdigest())
            else:
                with open(path, "rb") as file:
                    digest = str(blake3(file.read()).hexdigest())
            after = os.stat(path)
        except OSError:
            return UNREADABLE
        self.hashed_files += 1
        self.hashed_bytes += status.st_size
        newest = max(status.st_mtime_ns, status.st_ctime_ns)
        unchanged = (after.st_mtime_ns, after.st_size) == (status.st_mtime_ns, status.st_size)
        if unchanged and newest + GRANULE_NS < started:
            self._memo[path] = [*key, digest]
            self._changed = True
        return digest

    def names(self, path: str) -> str:
        """Digest of the names in a directory, as the shim takes it; MISSING or UNREADABLE."""
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(path))
        except FileNotFoundError:
            return MISSING
        except OSError:
            return UNREADABLE
        return digest_of(b"".join(name + b"\0" for name in names))

    def answer(self, question: object, search: Callable[[], _Answer]) -> _Answer:
        """What ``search`` finds in contents, which it is asked for once.

        ``question`` (for JSON) says what is looked for, by which version of the search, and in
        which contents, by their digests; the answer has to be JSON's own.
        """
        name = digest_of(json.dumps(question).encode("utf-8", "surrogateescape"))
        if name in self._answers:
            # What was asked last goes last.
            found: _Answer = self._answers.pop(name)
        else:
            found = search()
            self._changed = True
        self._answers[name] = found
        return found

    def tree(self, path: str) -> str:
        """Digest of a directory: names, kinds and contents of all below it, recursively.

        A declared directory counts with everything below it, new files included
        (``paths::mtime_recursive``, which follows symlinks to files and directories).
        """
        seen: set[tuple[int, int]] = set()
        hasher = blake3()

        def walk(directory: str, prefix: str) -> None:
            status = os.stat(directory)
            identity = (status.st_dev, status.st_ino)
            if identity in seen:  # a loop of links, or a second way to the same
                return
            seen.add(identity)
            for name in sorted(os.listdir(directory)):
                full = f"{directory}/{name}"
                relative = f"{prefix}{name}"
                hasher.update(os.fsencode(relative) + b"\0")
                if os.path.isdir(full):
                    hasher.update(b"d")
                    walk(full, f"{relative}/")
                else:
                    hasher.update(b"f" + self.file(full).encode() + b"\0")

        try:
            walk(path, "")
        except FileNotFoundError:
            return MISSING
        except OSError:
            return UNREADABLE
        return "tree:" + str(hasher.hexdigest())

    def adopt(self, other: Contents) -> None:
        """Take over what another instance has hashed."""
        self._memo.update(other._memo)
        self._answers.update(other._answers)
        self._fresh.update(other._fresh)
        self._changed = self._changed or other._changed

    def save(self, keep: int = 200_000) -> None:
        """Write the memo back, if it changed.  Losing it costs time only: no sync, no error."""
        if self._memo_file is None or not self._changed:
            return
        files = self._memo
        if len(files) > keep:
            files = {path: files[path] for path in self._fresh if path in files}
        temporary = f"{self._memo_file}.{os.getpid()}.tmp"
        try:
            os.makedirs(os.path.dirname(self._memo_file), exist_ok=True)
            with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
                answers = dict(list(self._answers.items())[-_ANSWERS:])
                value = {"format": _FORMAT, "files": files, "answers": answers}
                # Not `dump`, which is written in Python.
                file.write(json.dumps(value, separators=(",", ":")))
            os.replace(temporary, self._memo_file)
        except OSError:
            return
        self._changed = False


def walk_below(path: str) -> Iterator[str]:
    """All paths below a directory, in order, through links to directories, each of them once."""
    seen: set[tuple[int, int]] = set()

    def walk(directory: str) -> Iterator[str]:
        try:
            status = os.stat(directory)
            if not stat.S_ISDIR(status.st_mode) or (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            names = sorted(os.listdir(directory))
        except OSError:
            return
        for name in names:
            yield f"{directory}/{name}"
            yield from walk(f"{directory}/{name}")

    return walk(path)


def digest_of(data: bytes) -> str:
    """BLAKE3 (hex)."""
    return str(blake3(data).hexdigest())


def _dangling(path: str) -> str:
    try:
        return "link:" + str(blake3(os.fsencode(os.readlink(path))).hexdigest())
    except OSError:
        return MISSING
