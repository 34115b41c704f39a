"""States: immutable snapshots of targets that can become the live target again.

For scripts and CI::

    from cargo_cow import snapshots

    snapshots.create_state("green")                 # keep what is built here, under a name
    snapshots.activate_cache("green")               # and have it back, proven for what is here now
    snapshots.prune_snapshots(snapshots.Policy(keep_last=5))

All of them work in the project around ``directory`` (default: the working directory) and raise
:class:`cargo_cow.errors.CowError`.  The modules below are loaded when one of their names is first
asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cargo_cow.telling import silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cargo_cow.cargo.workspace import Workspace
    from cargo_cow.filesystems.sharing import Sharing
    from cargo_cow.snapshots.activation import Activated, activate
    from cargo_cow.snapshots.policy import Mark, Policy
    from cargo_cow.snapshots.pruning import Plan, Pruned, decide, plan, prune
    from cargo_cow.snapshots.state import Damaged, State, verify
    from cargo_cow.snapshots.store import Project, Store, in_use, project_of
    from cargo_cow.snapshots.taking import Taken, create, create_snapshot

__all__ = [
    "Activated",
    "Damaged",
    "Mark",
    "Plan",
    "Policy",
    "Project",
    "Pruned",
    "Sharing",
    "State",
    "Store",
    "Taken",
    "activate",
    "activate_cache",
    "create",
    "create_snapshot",
    "create_state",
    "decide",
    "delete_snapshots",
    "find_state",
    "in_use",
    "list_snapshots",
    "plan",
    "project_of",
    "promote_snapshot",
    "prune",
    "prune_snapshots",
    "states_of",
    "verify",
]

_HOME = {
    "activation": ("Activated", "activate"),
    "policy": ("Mark", "Policy"),
    "pruning": ("Plan", "Pruned", "Sharing", "decide", "plan", "prune"),
    "state": ("Damaged", "State", "verify"),
    "store": ("Project", "Store", "in_use", "project_of"),
    "taking": ("Taken", "create", "create_snapshot"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _workspace(directory: Path | None) -> Workspace:
    from pathlib import Path

    from cargo_cow.cargo.workspace import load

    return load(Path.cwd() if directory is None else directory)


def _build_dir(workspace: Workspace) -> Path:
    import os
    from pathlib import Path

    return Path(os.path.realpath(workspace.build_dir))


def states_of(directory: Path, build_dir: Path) -> list[State]:
    """The usable states of the project around ``directory``, newest first: donors.

    ``build_dir`` is the target that would be made.  What a donor needs is ``state.target`` (clone
    it inside ``in_use(state)``, with ``taken=state.taken``), ``commit``, ``compiler``, ``id`` and
    ``baseline``.  No states, no repository, a store that is not ours: an empty list.
    """
    from cargo_cow.errors import CowError
    from cargo_cow.snapshots import store
    from cargo_cow.snapshots.state import State

    try:
        found = store.everything(store.project_of(directory), build_dir, near=True)
    except CowError:
        return []
    return [entry for _, entry in reversed(found) if isinstance(entry, State)]


def list_snapshots(directory: Path | None = None) -> list[State | Damaged]:
    """All states of the project, oldest first; those that are not usable with the reason."""
    from cargo_cow.snapshots import store

    workspace = _workspace(directory)
    found = store.everything(store.project_of(workspace.root), _build_dir(workspace))
    return [entry for _, entry in found]


def find_state(name: str, directory: Path | None = None) -> State:
    """The state of that name or id (or unique beginning of an id), verified to the last file.

    Raises NoSuchState, StateDamaged.
    """
    from cargo_cow.snapshots import state, store

    workspace = _workspace(directory)
    project = store.project_of(workspace.root)
    found = store.usable(store.named(project, _build_dir(workspace), name)[1])
    state.verify(found)
    return found


def create_state(
    name: str | None = None, directory: Path | None = None, *, allow_copy: bool = False
) -> State:
    """Keep what is built now as a state; without a name it is automatic.  See `create`."""
    from cargo_cow.snapshots import taking

    return taking.create(_workspace(directory), name, allow_copy=allow_copy).state


def activate_cache(
    name: str,
    directory: Path | None = None,
    *,
    wait: bool = True,
    say: Callable[[str], None] = silent,
) -> Activated:
    """Make the state of that name or id the live target, proven for what is checked out.

    What was live is kept as an automatic state, if it holds anything that no state has.
    See `activate`.
    """
    from cargo_cow.snapshots import activation

    return activation.activate(_workspace(directory), name, wait=wait, say=say)


def promote_snapshot(name: str, directory: Path | None = None) -> tuple[State, State | None]:
    """Make a state the project's baseline; returns it and the one that was it before.

    Raises NoSuchState, StateDamaged.
    """
    from cargo_cow.snapshots import state, store

    workspace = _workspace(directory)
    project = store.project_of(workspace.root)
    home, found = store.named(project, _build_dir(workspace), name)
    chosen = store.usable(found)
    state.verify(chosen)
    before = home.promote(chosen)
    return chosen._replace(baseline=True), before


def prune_snapshots(
    policy: Policy,
    directory: Path | None = None,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = silent,
) -> tuple[Plan, Pruned | None]:
    """Plan what ``policy`` lets go, and (unless ``dry_run``) remove it."""
    from cargo_cow.snapshots import pruning

    workspace = _workspace(directory)
    wanted = pruning.plan(workspace, policy)
    return wanted, None if dry_run else pruning.prune(workspace, wanted, say=say)


def delete_snapshots(
    names: list[str],
    directory: Path | None = None,
    *,
    force: bool = False,
    say: Callable[[str], None] = silent,
) -> Pruned:
    """Delete states by name or id, usable or not; the baseline only with ``force``.

    Raises NoSuchState before anything is deleted, and UsageError (the baseline).
    """
    from cargo_cow.errors import UsageError
    from cargo_cow.snapshots import pruning, store

    workspace = _workspace(directory)
    project = store.project_of(workspace.root)
    build_dir = _build_dir(workspace)
    found = [store.named(project, build_dir, name)[1] for name in names]
    for entry in found:
        if getattr(entry, "baseline", False) and not force:
            raise UsageError(
                f"{entry.id} is the baseline and is kept",
                hint="promote another one first, or say --force",
            )
    unique = list({entry.id: entry for entry in found}.values())
    return pruning.remove(project, build_dir, unique, baseline_too=force, say=say)
