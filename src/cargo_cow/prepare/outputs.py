"""What can be read out of compiled outputs: baked paths, source hashes, a script's habits.

An environment value that names a path is not yet a path in the output: serde, thiserror and many
others read ``env!("OUT_DIR")`` only to ``include!`` a generated file.  So the outputs decide.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

SEARCH = 2
"""Version of `bakes_path` and `asks_git`: another one may find something else in the same files."""

_AR_MAGIC = b"!<arch>\n"
_ELF_MAGIC = b"\x7fELF"
_BITCODE_MAGIC = (b"BC\xc0\xde", b"\xde\xc0\x17\x0b")

# Characters that may continue a file name: `/w/p` must not be found in `/w/p-old`.
_NAME = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+~@%")


def _view(path: str) -> mmap.mmap | bytes:
    with open(path, "rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            return b""


def _members(data: mmap.mmap | bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of the members of an ar archive (GNU format), or of the whole file."""
    if data[:8] != _AR_MAGIC:
        yield 0, len(data)
        return
    position = 8
    while position + 60 <= len(data):
        size = int(data[position + 48 : position + 58].split()[0])
        yield position + 60, position + 60 + size
        position += 60 + size + (size & 1)


class _Section(NamedTuple):
    """A section's range in the file, and where its name begins."""

    start: int
    end: int
    debug: bool
    name: int


def _sections(data: mmap.mmap | bytes, start: int, end: int) -> list[_Section]:
    """Sections of the 64-bit little-endian ELF file at ``start``; none for other files.

    Debug information (``.debug_*``) may name the donor's path: it is what a debugger shows,
    nothing that a program does.
    """
    if data[start : start + 4] != _ELF_MAGIC or data[start + 4 : start + 6] != b"\x02\x01":
        return []
    try:
        (table,) = struct.unpack_from("<Q", data, start + 0x28)
        entry_size, count, names_index = struct.unpack_from("<HHH", data, start + 0x3A)
        if not table or not count:
            return []

        def section(index: int) -> tuple[int, int, int, int]:
            at = start + table + index * entry_size
            name, kind = struct.unpack_from("<II", data, at)
            offset, size = struct.unpack_from("<QQ", data, at + 0x18)
            return name, kind, offset, size

        if names_index == 0xFFFF:  # SHN_XINDEX: more than 65,279 sections
            names_index = struct.unpack_from("<I", data, start + table + 0x28)[0]
        if count == 0:
            count = section(0)[3]
        _, _, names_offset, _ = section(names_index)
        found = []
        for index in range(count):
            name, kind, offset, size = section(index)
            at = start + names_offset + name
            if kind != 8:  # SHT_NOBITS takes no room in the file
                low = start + offset
                debug = data[at : at + 7] == b".debug_"
                found.append(_Section(low, min(low + size, end), debug, at))
    except struct.error:
        return []
    return found


def sections_at(path: str, offsets: Iterable[int]) -> set[str]:
    """Names of the sections of an ELF file, or of an archive of such, that hold bytes at
    ``offsets``; "" for what lies in none.  Raises OSError."""
    data = _view(path)
    sections = [one for low, high in _members(data) for one in _sections(data, low, high)]
    found = set()
    for offset in offsets:
        name = ""
        for section in sections:
            if section.start <= offset < section.end:
                end = data.find(b"\0", section.name)
                name = data[section.name : end].decode("ascii", "replace")
                break
        found.add(name)
    return found


def occurrences(path: str, needle: bytes) -> Iterator[bytes]:
    """What follows each occurrence of ``needle`` outside debug sections (256 bytes at most).

    It ends with the section.  Constants stand side by side without a terminator, so nothing can
    be said from the next byte about where a path ends.  Yields one ``b"\0bitcode"`` for LLVM
    bitcode, whose strings are packed: nothing can be said about it.  Raises OSError.
    """
    data = _view(path)
    for start, end in _members(data):
        if data[start : start + 4] in _BITCODE_MAGIC:
            yield b"\0bitcode"
            continue
        if data.find(needle, start, end) < 0:
            continue
        sections = _sections(data, start, end)
        debug = sorted((one.start, one.end) for one in sections if one.debug)
        low = start
        for high, resume in [*debug, (end, end)]:
            at = data.find(needle, low, high)
            while at >= 0:
                after = at + len(needle)
                section = next((one for one in sections if one.start <= at < one.end), None)
                limit = end if section is None else section.end
                yield bytes(data[after : min(after + 256, limit)])
                at = data.find(needle, after, high)
            low = max(low, resume)


# What follows a file's name: in the source map of crate metadata the byte that ends a string, which
# UTF-8 cannot hold (rustc_serialize, opaque.rs: STR_SENTINEL); in a panic's location a NUL
# (core::panic::Location::file_as_c_str).  A constant is followed by neither.
_END_OF_NAME = (b"\xc1", b"\0")


def bakes_path(
    outputs: Sequence[str], value: str, included: Iterable[str], *, working_directory: bool = False
) -> bool:
    """Whether ``outputs`` hold the path ``value`` other than as the name of an included file.

    ``included`` are the files that the unit's dep-info lists; those below ``value`` are named in
    the source map, and in the locations of panics in generated code.  Anything else is baked.
    ``working_directory``: the source map also names ``value`` itself.
    What cannot be read, or not decided (bitcode), counts as baked.
    """
    names = tuple(
        file[len(value) :].encode() + ending
        for file in set(included)
        if file.startswith(value + "/")
        for ending in _END_OF_NAME
    )
    if working_directory:
        names += (_END_OF_NAME[0],)
    try:
        for path in outputs:
            for following in occurrences(path, value.encode()):
                if not names or not following.startswith(names):
                    return True
    except (OSError, ValueError):
        return True
    return False


def contains_path(path: str, roots: Sequence[bytes], excused: Sequence[bytes] = ()) -> bytes | None:
    """The first of ``roots`` that the file holds outside debug sections; None if none.

    Paths that begin with one of ``excused`` (the registry, say, when it lies below a root, or
    beside it with a longer name) do not count.
    """
    try:
        for root in roots:
            tails = tuple(other[len(root) :] for other in excused if other.startswith(root))
            for following in occurrences(path, root):
                if following != b"\0bitcode" and not (tails and following.startswith(tails)):
                    return root
    except (OSError, ValueError):
        return roots[0] if roots else None
    return None


def other_content(metadata_file: str, sources: Sequence[tuple[bytes, bytes]]) -> int | None:
    """Index of the first source whose content the crate metadata contradicts; None if none.

    ``sources`` are (end of the file's path, MD5 of its content now).  rustc keeps path and MD5 of
    source files in the source map of ``.rmeta`` (rustc_span ``SourceFileHash``; SHA-256 on MSVC):
    evidence of what was really compiled, independent of any mtime.  Only files that an encoded
    span points to are kept (rustc_metadata ``encode_source_map``): a path that is not there says
    nothing.  Raises OSError.
    """
    data = _view(metadata_file)
    near = -1
    for index, (name, digest) in enumerate(sources):
        at = -1
        if near >= 0:  # the entries of one source map lie close together
            at = data.find(digest, max(0, near - (1 << 20)), near + (1 << 20))
        if at < 0:
            at = data.find(digest)
        if at >= 0:
            near = at
        elif data.find(name) >= 0:
            return index
    return None


def holds_hashes(metadata_file: str, digests: Sequence[bytes]) -> bool:
    """Whether the crate metadata holds every one of these MD5 digests (see `other_content`)."""
    data = _view(metadata_file)
    return all(data.find(digest) >= 0 for digest in digests)


def names_path(path: str, root: bytes) -> bool:
    """Whether the file holds ``root`` as whole path components, debug information included."""
    data = _view(path)
    at = data.find(root)
    while at >= 0:
        after = data[at + len(root) : at + len(root) + 1]
        if not after or after[0] not in _NAME:
            return True
        at = data.find(root, at + 1)
    return False


def _without_debug_information(data: mmap.mmap | bytes) -> bytes:
    """All of a file but its debug sections: nothing that a program says or asks for lies there,
    and they are nine tenths of a build script."""
    debug = sorted((one.start, one.end) for one in _sections(data, 0, len(data)) if one.debug)
    parts = []
    low = 0
    for start, end in [*debug, (len(data), len(data))]:
        parts.append(data[low : max(low, start)])
        low = max(low, end)
    return b"\0".join(parts)


def has_debug_information(path: str) -> bool:
    """Whether an ELF file has ``.debug_*`` sections, whose names end its section name table."""
    data = _view(path)
    return any(section.debug for section in _sections(data, 0, len(data)))


# What a script that asks git may learn, by the words in its program.
_GIT_MARKS = {
    "head": (b"rev-parse", b".git/", b"libgit2", b"gix-"),
    "branch": (b"--abbrev-ref", b"symbolic-ref", b"--show-current", b"libgit2", b"gix-"),
    "clean": (b"--porcelain", b"--dirty", b"diff-index", b"--exit-code", b"libgit2", b"gix-"),
    "refs": (b"describe", b"for-each-ref", b"rev-list"),
}
_GIT = (b"git",)


def asks_git(program: str) -> tuple[str, ...]:
    """What a build script's program seems to ask git for: "head", "branch", "clean", "refs".

    Such a script often declares nothing about it, so that its result is stale in place under
    plain Cargo as well; but in a new worktree a clean build is not.  Without a word of git's in
    the program the answer is empty; raises nothing (an unreadable program asks for all).
    """
    try:
        data = _without_debug_information(_view(program))
    except OSError:
        return tuple(_GIT_MARKS)
    found = tuple(
        what for what, marks in _GIT_MARKS.items() if any(data.find(mark) >= 0 for mark in marks)
    )
    return found if any(data.find(word) >= 0 for word in _GIT) else ()
