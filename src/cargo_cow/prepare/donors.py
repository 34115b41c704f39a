"""Choosing the donor: the built checkout, or the state, whose commit's tree differs least."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cargo_cow import git
from cargo_cow.cargo import workspace as workspaces
from cargo_cow.cargo.target import profile_directories
from cargo_cow.cargo.toolchain import compiler_here, compiler_of
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import CowError, GitFailed
from cargo_cow.prepare.place import Place, below
from cargo_cow.prepare.sources import Source


class Donor(NamedTuple):
    """A target to clone from.  ``distance``: files that differ between the two commits.

    ``workspace`` is None for a state.
    """

    source: Source
    workspace: Workspace | None
    distance: int

    @property
    def origin(self) -> Path:
        """What people know it by: the checkout, or the state's directory."""
        return self.source.origin


class Choice(NamedTuple):
    """The donors that serve, nearest first, and those refused with the reason."""

    donors: tuple[Donor, ...]
    refused: tuple[tuple[Path, str], ...]


def find(
    place: Place,
    *,
    wanted: Path | None = None,
    states: Sequence[Source] = (),
    checkouts: bool = True,
) -> Choice:
    """Donors for the target of ``place``; ``wanted`` restricts them to that checkout or state.

    Without ``checkouts`` only ``states`` are looked at.

    At equal distance the baseline comes first, then checkouts, then other states in the order
    they are given in (newest first).
    """
    inside = below(place.workspace, place.checkout) or ""
    refused: list[tuple[Path, str]] = []
    found: list[tuple[tuple[int, int, float], Donor]] = []
    compiler: str | None = None
    distances: dict[str | None, int] = {}
    try:
        siblings = git.checkouts(Path(place.checkout)) if checkouts else []
    except GitFailed:
        siblings = []
    for sibling in siblings:
        root = os.path.realpath(sibling.root)
        if root == place.checkout or sibling.bare:
            continue
        if wanted is not None and root != os.path.realpath(wanted):
            continue
        if not os.path.isfile(f"{root}/{inside}/Cargo.toml" if inside else f"{root}/Cargo.toml"):
            continue
        try:
            workspace = workspaces.load(Path(root, inside))
        except CowError as error:
            refused.append((Path(root), str(error).splitlines()[0]))
            continue
        build_dir = os.path.realpath(workspace.build_dir)
        if build_dir == place.build_dir:
            refused.append((Path(root), "it builds into the same target directory"))
            continue
        profiles = profile_directories(build_dir)
        if not profiles:
            if any(name not in _NOT_BUILT for name in _listed(build_dir)):
                refused.append((Path(root), f"nothing we know is built in {build_dir}"))
            continue
        if compiler is None:
            compiler = compiler_here(place.workspace)
        theirs = compiler_of(build_dir)
        if theirs is not None and compiler is not None and theirs != compiler:
            built, here = theirs.splitlines()[0], compiler.splitlines()[0]
            refused.append((Path(root), f"it was built by {built}, here {here} would build"))
            continue
        distance = _distance(place, sibling.head, distances)
        newest = max(os.stat(directory).st_mtime for directory in profiles)
        source = Source(Path(build_dir), Path(root), None, sibling.head, theirs)
        found.append(((distance, 1, -newest), Donor(source, workspace, distance)))
    for index, state in enumerate(states):
        if wanted is not None and os.path.realpath(state.origin) != os.path.realpath(wanted):
            continue
        if compiler is None:
            compiler = compiler_here(place.workspace)
        if state.compiler is not None and compiler is not None and state.compiler != compiler:
            built, here = state.compiler.splitlines()[0], compiler.splitlines()[0]
            refused.append((state.origin, f"it was built by {built}, here {here} would build"))
            continue
        distance = _distance(place, state.commit, distances)
        rank = 0 if state.baseline else 2
        found.append(((distance, rank, index), Donor(state, None, distance)))
    found.sort(key=lambda entry: entry[0])
    return Choice(tuple(donor for _, donor in found), tuple(refused))


# What Cargo, and a prepare that was interrupted, leave where nothing was built yet.
_NOT_BUILT = frozenset({"CACHEDIR.TAG", ".rustc_info.json", ".cargo-cow", "doc", "package", "tmp"})


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _distance(place: Place, head: str | None, known: dict[str | None, int]) -> int:
    """Files that differ between a commit and what is checked out here; each asked for once."""
    if head is not None and head == place.head:
        return 0
    if head not in known:
        known[head] = 1 << 30
        if head is not None and place.head is not None:
            with suppress(GitFailed):
                known[head] = len(git.changed_paths(Path(place.checkout), head, place.head))
    return known[head]
