"""Amounts of disk and of time as users say them, and of disk as a filesystem has it.

Loaded by builds, so nothing else is.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cargo_cow.errors import UsageError

_AGE = re.compile(r"^([0-9]+)(m|h|d|w)$")
_AGES = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SIZE = re.compile(r"^([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?$", re.IGNORECASE)


class Mark(NamedTuple):
    """An amount of disk: bytes, or a share of the filesystem in percent."""

    bytes: int = 0
    percent: float = 0.0

    def of(self, total: int) -> int:
        """In bytes, on a filesystem of ``total`` bytes."""
        return max(self.bytes, int(total * self.percent / 100))


class Space(NamedTuple):
    """A filesystem's bytes: those that we may still use, and all."""

    free: int
    total: int


def space_of(directories: Iterable[Path]) -> dict[Path, Space]:
    """How much is free where; directories that cannot tell are left out."""
    result = {}
    for directory in directories:
        with contextlib.suppress(OSError):
            told = os.statvfs(directory)
            result[directory] = Space(told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize)
    return result


def parse_age(text: str) -> float:
    """Seconds of ``30m``, ``12h``, ``14d``, ``2w``.  Raises UsageError."""
    match = _AGE.match(text.strip())
    if match is None:
        raise UsageError(f"{text!a} is no age: a number and m, h, d or w, as 14d")
    return float(int(match[1]) * _AGES[match[2]])


def parse_size(text: str) -> int:
    """Bytes of ``500MB``, ``20G``, ``1.5TiB``.  Raises UsageError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"{text!a} is no size: a number and kB, MB, GB, TB, GiB …, as 20GB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** (" kmgt".index(match[2].lower()) if match[2] else 0))


def parse_mark(text: str) -> Mark:
    """A size, or ``5%`` of the filesystem.  Raises UsageError."""
    share = re.match(r"^([0-9]+(?:\.[0-9]+)?)\s*%$", text.strip())
    if share is None:
        return Mark(parse_size(text))
    if float(share[1]) > 100:
        raise UsageError(f"{text!a} is more than the whole filesystem")
    return Mark(percent=float(share[1]))
