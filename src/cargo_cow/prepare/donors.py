"""Choosing the donor: the built checkout of the same project whose tree differs least."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from cargo_cow import git
from cargo_cow.cargo import workspace as workspaces
from cargo_cow.cargo.target import profile_directories
from cargo_cow.cargo.toolchain import compiler_here, compiler_of
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import CowError, GitFailed
from cargo_cow.prepare.place import Place, below


class Donor(NamedTuple):
    """A target to clone from.  ``distance``: files that differ between the two commits."""

    workspace: Workspace
    checkout: Path
    distance: int


class Choice(NamedTuple):
    """The donors that serve, nearest first, and those refused with the reason."""

    donors: tuple[Donor, ...]
    refused: tuple[tuple[Path, str], ...]


def find(place: Place, *, wanted: Path | None = None) -> Choice:
    """Donors for the target of ``place``; ``wanted`` restricts them to that checkout."""
    inside = below(place.workspace, place.checkout) or ""
    refused: list[tuple[Path, str]] = []
    found: list[tuple[int, float, Donor]] = []
    compiler: str | None = None
    try:
        siblings = git.checkouts(Path(place.checkout))
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
        distance = _distance(place, sibling)
        newest = max(os.stat(directory).st_mtime for directory in profiles)
        found.append((distance, -newest, Donor(workspace, Path(root), distance)))
    found.sort(key=lambda entry: entry[:2])
    return Choice(tuple(donor for _, _, donor in found), tuple(refused))


# What Cargo, and a prepare that was interrupted, leave where nothing was built yet.
_NOT_BUILT = frozenset({"CACHEDIR.TAG", ".rustc_info.json", ".cargo-cow", "doc", "package", "tmp"})


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _distance(place: Place, sibling: git.Checkout) -> int:
    if sibling.head is None or place.head is None:
        return 1 << 30
    if sibling.head == place.head:
        return 0
    try:
        return len(git.changed_paths(Path(place.checkout), sibling.head, place.head))
    except GitFailed:
        return 1 << 30
