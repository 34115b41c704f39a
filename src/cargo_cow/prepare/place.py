"""Where a target stands: the paths that records are mapped to and compared with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from cargo_cow import git
from cargo_cow.cargo import configuration
from cargo_cow.cargo.target import Unit
from cargo_cow.cargo.workspace import Workspace, cargo_home

FIXED_PATH = "CARGO_COW_SANDBOX"
"""Set in sandbox mode: the path at which the checkout is seen there, as all others are."""


class Place(NamedTuple):
    """Absolute, symlink-free paths of one checkout's workspace and build directory.

    ``build_dir`` is where the target stands when Cargo runs, also while a clone of it is still
    being made under another name.  ``checkout`` is the git top level, or the workspace root
    without git; ``head_changed`` is when ``head`` came there (ns).  ``members`` maps package names
    to package roots.  ``git_dir`` and ``common_dir`` are the checkout's and the project's (None
    without git).  ``standing``: see `Workspace`.
    """

    checkout: str
    workspace: str
    build_dir: str
    head: str | None
    branch: str | None
    head_changed: int
    members: dict[str, tuple[str, ...]]
    registry: tuple[str, ...]
    git_dir: str | None = None
    common_dir: str | None = None
    standing: str | None = None


def place_of(workspace: Workspace) -> Place:
    """The place of a workspace as Cargo reported it."""
    root = os.path.realpath(workspace.root)
    checkout = git.checkout_of(workspace.root)
    top = root
    head = None
    branch = None
    changed = 0
    git_dir = common_dir = None
    if checkout is not None and not checkout.bare:
        top = os.path.realpath(checkout.root)
        head = checkout.head
        branch = checkout.branch
        changed = git.head_changed(checkout)
        git_dir = os.path.realpath(checkout.git_dir)
        common_dir = os.path.realpath(checkout.common_dir)
    members: dict[str, tuple[str, ...]] = {}
    known: dict[str, str] = {}
    for package in workspace.members:
        physical = _physical(os.path.abspath(package.root), known)
        members[package.name] = (*members.get(package.name, ()), physical)
    home = cargo_home()
    registry = tuple(
        f"{base}/{name}/" for base in {home, os.path.realpath(home)} for name in ("registry", "git")
    )
    build_dir = os.path.realpath(workspace.build_dir)
    standing = None if workspace.standing is None else str(workspace.standing)
    return Place(
        top,
        root,
        build_dir,
        head,
        branch,
        changed,
        members,
        registry,
        git_dir,
        common_dir,
        standing,
    )


def variables(place: Place) -> dict[str, str]:
    """The variables that Cargo gives to compilers at a place, beside those that it sets itself.

    Its configuration is looked for from the directory that it is run in: ours, if that is there.
    """
    try:
        here = os.getcwd()
    except OSError:
        here = place.workspace
    inside = below(here, place.checkout) is not None
    return configuration.environment(Path(here if inside else place.workspace))


def _physical(path: str, known: dict[str, str]) -> str:
    """``os.path.realpath`` of an absolute path, looking at each directory once for all members."""
    found = known.get(path)
    if found is None:
        parent, name = os.path.split(path)
        if os.path.islink(path) or not name:
            found = os.path.realpath(path)
        else:
            found = os.path.join(_physical(parent, known), name)
        known[path] = found
    return found


def is_made_at(unit: Unit, place: Place) -> bool:
    """Whether a unit was compiled, or a script run, in the build directory of ``place``.

    Elsewhere is the same target seen at another path (sandbox mode, a checkout that was moved):
    what the unit baked is of that path.  Where nothing tells, it counts as made here.
    """
    made = unit.made_in()
    return made in (None, place.build_dir) or os.path.realpath(made or "") == place.build_dir


def below(path: str, root: str) -> str | None:
    """``path`` relative to ``root``; None if it does not lie below it."""
    if path == root:
        return ""
    prefix = root if root.endswith("/") else root + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def asked_above(path: str, was: str, here: str) -> tuple[str, ...] | None:
    """What else may be asked for from ``here`` by who asked for ``path`` from ``was``.

    ``was`` and ``here`` are two places of one checkout, and ``path`` lies outside of the first.
    Who looks for a file in each directory above (as dotenv does) meets other directories here;
    whether it was that, or a path that is the same from everywhere, nobody can tell.  Both are
    right only where none of the answer is there.  None: ``path`` lies below a directory that is
    not above ``here``.
    """

    def is_above(directory: str, place: str) -> bool:
        return directory != place and below(place, directory) is not None

    common = os.path.commonpath((path, was))
    if not is_above(common, here):
        return None
    rest = path[len(common) :].lstrip("/")
    found = []
    above = os.path.dirname(here)
    while above != "/" and not is_above(above, was):
        found.append(os.path.join(above, rest) if rest else above)
        above = os.path.dirname(above)
    return tuple(found)
