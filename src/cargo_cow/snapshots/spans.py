"""Runs of bytes of files, by where on the disk they are: what compaction calculates with.

Two files that share data have the same bytes at the same position in both, in all that is looked
at here: snapshots and reflinks of whole files make no others.  So the distance between the place
on the disk and the position in the file tells whether two files share, whatever pieces the
filesystem cut their extents into.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cargo_cow.filesystems.deduplication import BLOCK
from cargo_cow.filesystems.extents import extents

LEAST_RUN = 32 << 10
"""Bytes that must be alike in a row to be shared: each run costs some 150 bytes of metadata."""
_CHUNK = 1 << 20


class Span(NamedTuple):
    """Bytes ``[start, stop)`` of a file, ``distance`` before their place on the disk.

    ``shared``: somebody else uses them too; another file, or another place in this one.
    """

    start: int
    stop: int
    distance: int
    shared: bool = False


def spans_of(descriptor: int) -> list[Span]:
    """What an open file has on the disk, uncompressed; written there first.  Raises OSError."""
    size = os.fstat(descriptor).st_size
    found = []
    for extent in extents(descriptor):
        stop = min(extent.logical + extent.length, -(-size // BLOCK) * BLOCK)
        if not extent.settled and stop > extent.logical:
            distance = extent.physical - extent.logical
            found.append(Span(extent.logical, stop, distance, extent.shared))
    return found


def common(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    """What both files have at the same place on the disk (both in order)."""
    result = []
    rest = list(second)
    for span in first:
        while rest and rest[0].stop <= span.start:
            del rest[0]
        for other in rest:
            if other.start >= span.stop:
                break
            if other.distance == span.distance:
                start, stop = max(span.start, other.start), min(span.stop, other.stop)
                result.append(span._replace(start=start, stop=stop))
    return result


def without(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    """``first`` but for the positions of ``second``, which lie within it (both in order)."""
    result = []
    rest = list(second)
    for span in first:
        start = span.start
        while rest and rest[0].stop <= span.stop:
            taken = rest.pop(0)
            if taken.start > start:
                result.append(span._replace(start=start, stop=taken.start))
            start = max(start, taken.stop)
        if start < span.stop:
            result.append(span._replace(start=start))
    return result


def within(spans: Sequence[Span], start: int, stop: int) -> list[Span]:
    """The part of ``spans`` in ``[start, stop)``."""
    return [
        span._replace(start=max(span.start, start), stop=min(span.stop, stop))
        for span in spans
        if span.start < stop and start < span.stop
    ]


def length(spans: Sequence[Span]) -> int:
    """How many bytes they are."""
    return sum(span.stop - span.start for span in spans)


def spread(spans: Sequence[Span], count: int) -> list[int]:
    """Positions of about ``count`` samples, at blocks, spread over the spans."""
    total = length(spans)
    wanted = [total * number // count for number in range(count)]
    result, passed = [], 0
    for span in spans:
        while wanted and wanted[0] < passed + span.stop - span.start:
            result.append(span.start + (wanted.pop(0) - passed) // BLOCK * BLOCK)
        passed += span.stop - span.start
    return sorted(set(result))


def alike(other: int, ours: int, span: Span) -> Iterator[tuple[int, int]]:
    """Runs of blocks in ``span`` that are equal in two open files: long ones, or all of it."""
    other_size, size = os.fstat(other).st_size, os.fstat(ours).st_size
    limit = span.stop
    if other_size != size:
        # A last block that is not full can be shared only with one that ends there, too.
        limit = min(limit, min(other_size, size) // BLOCK * BLOCK)
    start: int | None = None
    position = span.start
    while position < limit:
        ahead = min(_CHUNK, limit - position)
        left, right = os.pread(other, ahead, position), os.pread(ours, ahead, position)
        if left == right:
            start = position if start is None else start
            position += ahead
            continue
        for offset in range(0, ahead, BLOCK):
            if left[offset : offset + BLOCK] == right[offset : offset + BLOCK]:
                start = position + offset if start is None else start
            elif start is not None:
                if position + offset - start >= LEAST_RUN:
                    yield start, position + offset
                start = None
        position += ahead
    if start is not None and (limit - start >= LEAST_RUN or (start, limit) == span[:2]):
        yield start, limit
