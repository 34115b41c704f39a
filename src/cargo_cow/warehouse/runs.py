"""Which Cargo built a unit, and whether with the variables of now: told by the shim's notes.

Each run of Cargo leaves word in the profiles that it compiles for
(``native/src/shim/warehouse/runs.rs``): when the shim was called first and last, and digests of the
variables.  From the one to the other Cargo holds its lock on all profiles that it builds in, so
what was begun there in that time was begun by that run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

from cargo_cow import native
from cargo_cow.cargo.target import Profile
from cargo_cow.prepare.place import Place, variables

_ROOM = ".cargo-cow/runs"


class _Run(NamedTuple):
    """Times in ns; not ``own``: some of the variables may be what a package's script set.

    ``keeper`` is the process that started Cargo, where that keeps what it builds.
    """

    first: int
    last: int
    profiles: frozenset[str]
    own: bool
    variables: dict[str, str]
    keeper: str | None


class Runs:
    """The runs that left word in one target."""

    def __init__(
        self, place: Place, profiles: list[Profile], since: int, keeper: int | None
    ) -> None:
        """``keeper``: the process that started a Cargo at ``since`` (ns), with the variables of
        now."""
        self._place = place
        self._since = since
        self._keeper = None if keeper is None else str(keeper)
        found: dict[str, _Run] = {}
        for profile in profiles:
            room = Path(profile.directory) / _ROOM
            with contextlib.suppress(OSError):
                for path in room.iterdir():
                    # One that goes meanwhile, or was written by halves, tells nothing.
                    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                        one = _read(path, profile.name)
                        known = found.get(path.name)
                        found[path.name] = one if known is None else _joined(known, one)
        self._runs = list(found.values())

    @functools.cached_property
    def _now(self) -> dict[str, str]:
        return native.environment(variables(self._place))

    def is_of_now(self, profile: str, invoked: int, *, made_here: bool) -> bool:
        """Whether what began in a profile at ``invoked`` (ns) was given the variables of now.

        ``made_here``: it began here; what came from elsewhere began while others ran here.
        """
        there = [run for run in self._runs if profile in run.profiles]
        during = [run for run in there if run.first < invoked < run.last]
        if during and made_here:
            # More than one where Cargo holds no lock of a whole profile.
            return all(self._is_ours(run) or run.variables == self._now for run in during)
        # Nobody called us then: no compiler ran before.  Or nobody would, without the shim.
        return invoked >= self._since and all(
            self._is_ours(run) for run in there if run.last >= self._since
        )

    def _is_ours(self, run: _Run) -> bool:
        return run.keeper is not None and run.keeper == self._keeper and run.last >= self._since


def _read(path: Path, profile: str) -> _Run:
    with path.open("rb") as file:
        value = json.loads(file.read())
        last = os.fstat(file.fileno()).st_mtime_ns
    digests = {str(name): str(digest) for name, digest in value["variables"].items()}
    keeper = value.get("keeper")
    own = value["own"] is True
    return _Run(int(value["first"]), last, frozenset({profile}), own, digests, keeper)


def _joined(one: _Run, other: _Run) -> _Run:
    """One run in two profiles."""
    return (one if one.own else other)._replace(
        first=min(one.first, other.first),
        last=max(one.last, other.last),
        profiles=one.profiles | other.profiles,
    )
