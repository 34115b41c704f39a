"""Compaction: the states of a project use less disk, and are the same states.

A commit that changes one crate links every program anew, and most of what is linked is what was
linked before; rustc writes its incremental state whole, whatever changed.  No two states share such
files, though they are alike.  So what only states use, and no live target any more, is

1. shared with an older state that has the same bytes at the same place of the same file;
2. compressed, where the filesystem can (Btrfs).

Both is done by the kernel, which compares before it shares (`filesystems.deduplication`): names,
contents, times and modes stay, whoever reads or clones meanwhile, and a kill leaves whole states.
The trap is data that somebody else uses as well: a compressed copy of it is so much more on the
disk.  So all files of states that use a piece of data are looked at together, what live targets use
is left alone, and before the last file lets go of the old data the filesystem is asked whether
anybody else holds it; then everything is put back.

`plans` looks, `compact` acts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from cargo_cow.cargo import lock
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import CowError, Locked
from cargo_cow.filesystems import deduplication
from cargo_cow.filesystems.extents import extents
from cargo_cow.filesystems.failures import NO_SPACE, UNSUPPORTED, translated
from cargo_cow.snapshots import pruning, spans
from cargo_cow.snapshots import state as states
from cargo_cow.snapshots import store as storing
from cargo_cow.snapshots.spans import Span
from cargo_cow.snapshots.state import Compacted, State
from cargo_cow.snapshots.store import Store

_LEAST = 16 << 10
"""Bytes below which data is left alone: what it would save is eaten by the metadata."""
_SAMPLE = 128 << 10  # what Btrfs compresses as one (fs/btrfs/compression.h: BTRFS_MAX_UNCOMPRESSED)
_SAMPLES = 4
_WORTH = 0.85
"""What would use more than this part of what it uses is left alone."""
_PAUSE = 0.5  # seconds
_ASIDE = 900.0  # seconds
_OLDER = 2
"""Older contents of a file that are compared with it."""


class Use(NamedTuple):
    """A file of a state: the state's id, and the file's name relative to its target."""

    state: str
    name: str


class Piece(NamedTuple):
    """Data on the disk, and all states whose files use it; ``users[0]``, the oldest, has all of it.

    ``bytes``: what it uses on the disk now.  ``expected_bytes``: about what it will, by samples.
    ``like``: older files that are probably equal or alike, the best first.
    """

    users: tuple[Use, ...]
    spans: tuple[Span, ...]
    bytes: int
    expected_bytes: int
    like: tuple[Use, ...]


class Plan(NamedTuple):
    """What `compact` would do in one store, the oldest state first.

    ``compresses``: whether the filesystem can.  ``reason``: why there is nothing to be done, if
    that is so.  ``unsealed``: states at which a compaction was killed.  ``poor``: files that are
    not worth it, which `compact` notes, so that they are not looked at again, unless ``again``.
    """

    store: Store
    states: tuple[State, ...]
    pieces: tuple[Piece, ...]
    compresses: bool
    reason: str
    unsealed: tuple[str, ...]
    poor: tuple[Use, ...]
    again: bool

    @property
    def bytes(self) -> int:
        """What all pieces use on the disk now."""
        return sum(piece.bytes for piece in self.pieces)

    @property
    def expected_bytes(self) -> int:
        """About what they will use."""
        return sum(piece.expected_bytes for piece in self.pieces)


class Done(NamedTuple):
    """What `compact` did: bytes that are shared with an older state, that were written anew to
    be compressed (counted before that), and that somebody else turned out to use; ids of the states
    that were touched; why it stopped early, if it did."""

    shared_bytes: int
    rewritten_bytes: int
    foreign_bytes: int
    states: tuple[str, ...]
    stopped: str


# -- looking


def plans(workspace: Workspace, *, again: bool = True) -> list[Plan]:
    """What compaction would do in each store of the project; touches nothing.

    ``again``: also with files that were tried before without gain.

    Raises GitFailed outside git, StoreUnusable.
    """
    project = storing.project_of(workspace.root)
    build_dir = Path(os.path.realpath(workspace.build_dir))
    live = [os.fspath(path) for path in sorted(pruning.live_targets(workspace))]
    return [_plan(store, live, again=again) for store in storing.stores(project, build_dir)]


class _Found(NamedTuple):
    """A piece while it is looked for."""

    users: list[Use]
    spans: list[Span]
    like: tuple[Use, ...]


def _plan(store: Store, live: Sequence[str], *, again: bool) -> Plan:
    found = tuple(entry for entry in store.found() if isinstance(entry, State))
    nothing = Plan(store, found, (), False, "", (), (), again)
    if not found:
        return nothing._replace(reason="there are no states")
    if all(entry.seal.kind == "dataset" for entry in found):
        return nothing._replace(reason="ZFS compresses by itself: zfs get compression")
    with translated("look at", store.directory):
        if not deduplication.can_share(store.directory):
            return nothing._replace(reason="this filesystem does not let files share their data")
        compresses = deduplication.can_compress(store.directory)
    pieces, poor = [], []
    targets = {entry.id: entry.target for entry in found}
    for piece in _pieces(found, live, again=again):
        wanted = _expected(piece, targets, compresses=compresses)
        if wanted < piece.bytes * _WORTH:
            pieces.append(piece._replace(expected_bytes=wanted))
        else:
            poor.append(piece.users[0])
    notes = {entry.id: states.read_compacted(entry.path) for entry in found}
    unsealed = tuple(
        entry.id
        for entry in found
        if entry.seal.kind == "subvolume" and (note := notes[entry.id]) and note.seal is None
    )
    reason = "" if pieces else "all is shared or compressed as far as it pays"
    return Plan(store, found, tuple(pieces), compresses, reason, unsealed, tuple(poor), again)


def _pieces(found: Sequence[State], live: Sequence[str], *, again: bool) -> list[Piece]:
    """All data that states use and live targets do not, as far as can be seen from their files."""
    result: list[_Found] = []
    by_name: dict[str, list[_Found]] = {}
    older: dict[str, list[tuple[Use, int]]] = {}
    for entry in found:
        note = states.read_compacted(entry.path)
        kept = frozenset(() if note is None or again else note.kept)
        packed = frozenset(() if note is None else note.packed)
        seen: list[tuple[str, Use, int]] = []
        for name, facts in _files(os.fspath(entry.target)):
            usual, use = _usual(name), Use(entry.id, name)
            seen.append((usual, use, facts.st_size))
            if name in packed or _is_live(name, facts, live):
                continue
            left = _looked(use, f"{entry.target}/{name}", live)
            known = by_name.setdefault(usual, [])
            for piece in known:
                if same := spans.common(left, piece.spans):
                    piece.users.append(use)
                    left = spans.without(left, same)
            if spans.length(left) >= _LEAST:
                before = older.get(usual, [])[-_OLDER:]
                before.sort(key=lambda one: one[1] != facts.st_size)
                new = _Found([use], left, tuple(one for one, _ in before))
                known.append(new)
                if name not in kept:
                    result.append(new)
        for usual, use, size in seen:
            older.setdefault(usual, []).append((use, size))
    return [
        Piece(tuple(users), tuple(ours), total, total, like)
        for users, all_of_it, like in result
        # Shared, and not with a state: it is somebody else's, too.
        if (ours := [one for one in all_of_it if len(users) > 1 or not one.shared])
        and (total := spans.length(ours)) >= _LEAST
    ]


def _files(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """(name, stats) of the regular files below ``root`` that are not small; each inode once."""
    linked: set[int] = set()
    pending = [""]
    while pending:
        inside = pending.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(f"{root}/{inside}") as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{inside}{entry.name}/")
                    continue
                facts = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(facts.st_mode) or facts.st_size < _LEAST:
                    continue
                if facts.st_nlink > 1:
                    if facts.st_ino in linked:
                        continue
                    linked.add(facts.st_ino)
                yield f"{inside}{entry.name}", facts


def _usual(name: str) -> str:
    """The name without that of rustc's session, which is another one in every build:
    ``debug/incremental/<crate>-<id>/<session>/dep-graph.bin``."""
    front, found, rest = name.partition("/incremental/")
    words = rest.split("/")
    return f"{front}{found}{words[0]}/{'/'.join(words[2:])}" if len(words) > 2 else name


def _is_live(name: str, facts: os.stat_result, live: Sequence[str]) -> bool:
    """Whether a live target has this very file, as far as its stats tell: a shortcut only."""
    for root in live:
        with contextlib.suppress(OSError):
            other = os.lstat(f"{root}/{name}")
            if (other.st_size, other.st_mtime_ns) == (facts.st_size, facts.st_mtime_ns):
                return True
    return False


def _looked(use: Use, path: str, live: Sequence[str]) -> list[Span]:
    """What can be treated of the file."""
    found = _spans(path)
    if any(span.shared for span in found):
        for root in live:
            found = spans.without(found, spans.common(found, _spans(f"{root}/{use.name}")))
    return found


def _spans(path: str) -> list[Span]:
    """None for a file that vanished, or is not ours to read, or where nothing can be told."""
    try:
        descriptor = _open(path)
    except OSError:
        return []
    try:
        return spans.spans_of(descriptor)
    except OSError:
        return []
    finally:
        os.close(descriptor)


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _expected(piece: Piece, targets: dict[str, Path], *, compresses: bool) -> int:
    """About how many bytes the piece will use, by samples of it and of what is like it."""
    with ExitStack() as held:
        try:
            ours = _held(_path(targets, piece.users[0]), held)
            like = [_held(_path(targets, use), held) for use in piece.like]
        except OSError:
            return piece.bytes
        taken = packed = 0
        for position in spans.spread(piece.spans, _SAMPLES):
            sample = os.pread(ours, _SAMPLE, position)
            taken += len(sample)
            if any(os.pread(other, _SAMPLE, position) == sample for other in like):
                continue
            packed += _packed(sample) if compresses else len(sample)
    return piece.bytes * packed // taken if taken else piece.bytes


def _packed(sample: bytes) -> int:
    return min(len(sample), len(zlib.compress(sample, 1)))


def _path(targets: dict[str, Path], use: Use) -> str:
    return f"{targets[use.state]}/{use.name}"


def _held(path: str, held: ExitStack) -> int:
    descriptor = _open(path)
    held.callback(os.close, descriptor)
    return descriptor


# -- acting


def compact(
    wanted: Plan,
    *,
    wait: bool = True,
    busy: Callable[[], bool] = lambda: False,
    seconds: float | None = None,
) -> Done:
    """Carry the plan out, as far as it still holds.

    One compaction at a time works in a store: another is waited for, or, unless ``wait``, Locked is
    raised.  As long as ``busy`` says so nothing is done; it is asked between two files.  After
    ``seconds`` it stops, as where the disk is full.  States that go meanwhile are left alone.

    Raises Locked, TargetUnusable (read-only), FilesystemFailed.
    """
    directory = wanted.store.directory
    with translated("compact", directory), _alone(directory, wait=wait):
        return _Work(wanted, busy, seconds).done()


def compact_aside(wanted: Plan, workspace: Workspace) -> Done | None:
    """`compact` in the background: while no Cargo builds in the workspace's target, and for some
    minutes at most; None where another compaction is at work."""
    try:
        return compact(
            wanted, wait=False, busy=lambda: lock.is_held(workspace.build_dir), seconds=_ASIDE
        )
    except Locked:
        return None


@contextlib.contextmanager
def _alone(directory: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(directory / "compacting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Locked(f"{directory} is being compacted already") from None
        yield
    finally:
        os.close(descriptor)


class _Gone(Exception):
    """A state of the piece is gone, or not as it was."""


class _Work:
    def __init__(self, wanted: Plan, busy: Callable[[], bool], seconds: float | None) -> None:
        self._plan = wanted
        self._busy = busy
        self._asked = 0.0
        self._until = float("inf") if seconds is None else time.monotonic() + seconds
        self._states = {entry.id: entry for entry in wanted.states}
        self._targets = {entry.id: entry.target for entry in wanted.states}
        self._notes: dict[str, Compacted] = {}
        self._kept: dict[str, set[str]] = {}
        self._packed: dict[str, set[str]] = {}
        self._gone: set[str] = set()
        self._shared = self._rewritten = self._foreign = 0
        self._touched: set[str] = set()

    def done(self) -> Done:
        stopped = ""
        last: dict[str, int] = {}
        for number, piece in enumerate(self._plan.pieces):
            for use in piece.users:
                last[use.state] = number
        try:
            self._wait()
            for identity in self._plan.unsealed if time.monotonic() < self._until else ():
                with contextlib.suppress(_Gone):
                    self._begin(identity)
            for use in self._plan.poor if time.monotonic() < self._until else ():
                with contextlib.suppress(_Gone):
                    self._begin(use.state)
                    self._keep(use)
            for number, piece in enumerate(self._plan.pieces):
                self._wait()
                if time.monotonic() >= self._until:
                    stopped = "its time is over"
                    break
                with contextlib.suppress(_Gone):
                    for use in piece.users:
                        self._begin(use.state)
                    self._tried(piece)
                for identity in {use.state for use in piece.users}:
                    if last[identity] == number:
                        self._end(identity)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            stopped = "there is no space left"
        finally:
            self._end_all()
        touched = tuple(sorted(self._touched))
        return Done(self._shared, self._rewritten, self._foreign, touched, stopped)

    def _wait(self) -> None:
        if time.monotonic() < self._asked + _PAUSE:
            return
        self._asked = time.monotonic()
        while time.monotonic() < self._until and self._busy():
            self._end_all()
            time.sleep(_PAUSE)

    # -- a state

    def _end_all(self) -> None:
        for identity in list(self._notes):
            with contextlib.suppress(OSError):
                self._end(identity)

    def _begin(self, identity: str) -> None:
        """Leave the note by which the state is known while its transactions change."""
        if identity in self._gone:
            raise _Gone
        if identity in self._notes:
            return
        entry = self._states[identity]
        before = states.read_compacted(entry.path)
        try:
            stats = states.stats_digest(entry.target)
            # The digest first: what it saw is what the seal, asked after it, vouches for.
            states.verify(entry)
            kept = () if before is None or self._plan.again else before.kept
            packed = () if before is None else before.packed
            note = Compacted(stats, None, kept, packed)
            states.write_compacted(entry.path, note)
        except (FileNotFoundError, CowError):
            self._gone.add(identity)
            raise _Gone from None
        self._notes[identity] = note
        self._kept[identity] = set(note.kept)
        self._packed[identity] = set(note.packed)

    def _end(self, identity: str) -> None:
        """Note the transaction that is the state's last now."""
        note = self._notes.pop(identity, None)
        if note is None:
            return
        entry = self._states[identity]
        kept = tuple(sorted(self._kept.pop(identity)))
        packed = tuple(sorted(self._packed.pop(identity)))
        try:
            before = states.seal(entry.target)
            # Between the two looks nobody changed anything, and all is as it was published.
            same = states.stats_digest(entry.target) == note.stats
            sealed = same and states.seal(entry.target) == before
            value = before.value if sealed and entry.seal.kind == "subvolume" else None
            states.write_compacted(entry.path, Compacted(note.stats, value, kept, packed))
        except FileNotFoundError:
            self._gone.add(identity)

    # -- a piece

    def _tried(self, piece: Piece) -> None:
        try:
            settled = self._piece(piece)
        except OSError as error:
            # Files without copy on write (chattr +C) share nothing with others: EINVAL.
            if error.errno not in UNSUPPORTED | {errno.EXDEV, errno.EPERM, errno.EACCES}:
                raise
            settled = False
        if not settled:
            self._keep(piece.users[0])

    def _keep(self, use: Use) -> None:
        if use.state in self._kept:
            self._kept[use.state].add(use.name)

    def _piece(self, piece: Piece) -> bool:
        """Treat a piece; False if some of it is as it was, and may stay so."""
        with ExitStack() as held:
            try:
                users = [_held(_path(self._targets, use), held) for use in piece.users]
            except OSError as error:
                raise _Gone from error
            files = [(user, spans.spans_of(user)) for user in users]
            left = spans.common(files[0][1], piece.spans)
            if len(users) == 1:
                left = [span for span in left if not span.shared]
            if not left:
                return True  # another compaction was faster
            self._touched.update(use.state for use in piece.users)
            total = spans.length(left)
            for use in piece.like:
                with contextlib.suppress(FileNotFoundError):
                    left = self._share(_held(_path(self._targets, use), held), files, left)
            shared = total - spans.length(left)
            self._shared += shared
            settled = not left or (
                self._plan.compresses and self._compress(files, left, whole=not shared)
            )
            raw = [spans.length(spans.spans_of(user)) for user in users]
            for use, size in zip(piece.users, raw, strict=True):
                if size < _LEAST:
                    self._packed.setdefault(use.state, set()).add(use.name)
            # Some small files Btrfs leaves as they are, whatever it is told.
            return settled and not (self._plan.compresses and raw[0] >= _LEAST)

    def _share(self, other: int, files: Sequence[_Open], left: list[Span]) -> list[Span]:
        """Share with ``other`` what is equal; returns what is left."""
        ours = files[0][0]
        equal = []
        for span in left:
            for start, stop in spans.alike(other, ours, span):
                if _give(other, files, [span._replace(start=start, stop=stop)]):
                    equal.append(span._replace(start=start, stop=stop))
        return spans.without(left, equal)

    def _compress(self, files: Sequence[_Open], left: list[Span], *, whole: bool) -> bool:
        """Give all users a compressed copy of what is left; False if that would not help.

        What is left of a file that shares some of its extents with another by now is copied in
        any case (``whole`` is false): only then Btrfs frees these extents.
        """
        first, ours = files[0]
        worth = _compressible(first, left)
        if whole and not worth:
            return False
        ranges = [span[:2] for span in left]
        room = self._plan.store.directory
        with deduplication.rewritten(first, ranges, room, compress=True) as copy:
            if worth and _mostly_raw(copy):
                deduplication.compress_all_the_same(copy)
            _give(copy, files[1:], left)
            if len(files) > 1 and _foreign(first, left):
                # Somebody else uses the old extents: they would stay beside the new ones.
                _give(first, files[1:], left)
                self._foreign += spans.length(left)
                return False
            _give(copy, [(first, ours)], left)
        self._rewritten += spans.length(left)
        return True


_Open = tuple[int, list[Span]]
"""An open file, and what it had on the disk when it was opened."""


def _give(source: int, files: Sequence[_Open], wanted: Sequence[Span]) -> bool:
    """Let the files use the extents of ``source`` in ``wanted``, as far as they had the same data;
    False where one of them is no longer equal."""
    whole = True
    for descriptor, had in files:
        size = os.fstat(descriptor).st_size
        for span in spans.common(wanted, had):
            stop = min(span.stop, size)
            done = deduplication.share(source, descriptor, span.start, stop)
            whole = whole and done == stop - span.start
    return whole


def _compressible(descriptor: int, left: Sequence[Span]) -> bool:
    samples = [os.pread(descriptor, _SAMPLE, position) for position in spans.spread(left, _SAMPLES)]
    return sum(map(_packed, samples)) < _WORTH * sum(map(len, samples))


def _mostly_raw(descriptor: int) -> bool:
    """Whether less than half of a new file is compressed."""
    size = sum(facts.length for facts in extents(descriptor))
    return spans.length(spans.spans_of(descriptor)) > size / 2


def _foreign(descriptor: int, left: Sequence[Span]) -> bool:
    """Whether somebody else uses what the file has there."""
    now = spans.spans_of(descriptor)
    return any(one.shared for span in left for one in spans.within(now, *span[:2]))
