"""Keeping house: which states go, why, and what comes back; then their removal.

`decide` is a pure function of a policy and of facts: it touches nothing and names the rule that
decided for every state.  `prune` acts on such a plan, and checks for each state that it still
holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cargo_cow import git
from cargo_cow.cargo import workspace as workspaces
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import CowError, UsageError
from cargo_cow.filesystems.sharing import Sharing, measure
from cargo_cow.snapshots import store as storing
from cargo_cow.snapshots.policy import Policy, Space, space_of
from cargo_cow.snapshots.state import Damaged, State
from cargo_cow.snapshots.store import Project


class Facts(NamedTuple):
    """What a decision needs to know besides the states.

    ``branches``: those that exist, None where git could not say.  ``merged``: those of them that
    are merged into ``into`` and checked out nowhere.  ``vanished``: checkouts that are gone.
    ``space`` by the store's directory.
    """

    now: float
    branches: frozenset[str] | None = None
    merged: frozenset[str] = frozenset()
    into: str = ""
    vanished: frozenset[str] = frozenset()
    space: Mapping[Path, Space] = MappingProxyType({})


class Decision(NamedTuple):
    """One state, whether it goes, and the rule that decided."""

    entry: State | Damaged
    goes: bool
    reason: str


class Plan(NamedTuple):
    """What `prune` would do, oldest first.

    ``freed_bytes``: what comes back if all that goes is removed together; ``kept_bytes``: what the
    states that stay use by themselves.  Both None where nobody measured; roughly where not
    ``exact``.
    """

    decisions: tuple[Decision, ...]
    freed_bytes: int | None
    kept_bytes: int | None
    exact: bool

    @property
    def going(self) -> tuple[Decision, ...]:
        """Those that go."""
        return tuple(decision for decision in self.decisions if decision.goes)


class Pruned(NamedTuple):
    """What was done: ids removed, states that stayed although they were to go with the reason, and
    leftovers of killed commands that were removed."""

    removed: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    collected: tuple[Path, ...]


def decide(
    policy: Policy,
    entries: Sequence[State | Damaged],
    facts: Facts,
    sharing: Sharing | None = None,
) -> Plan:
    """The plan.  ``sharing`` knows the states by id, and must be given for ``budget`` and
    ``min_free``."""
    ordered = sorted(entries, key=lambda entry: entry.id)
    automatic = [
        entry for entry in ordered if isinstance(entry, State) and not _protected(policy, entry)
    ]
    last = frozenset(_by_rank(automatic)[: policy.keep_last or 0])
    decisions = [_decide(policy, entry, facts, last) for entry in ordered]
    if policy.budget is not None:
        assert sharing is not None
        decisions = _within(policy.budget, policy, decisions, sharing)
    if policy.min_free is not None:
        assert sharing is not None
        for store, space in facts.space.items():
            wanted = policy.min_free.of(space.total) - space.free
            decisions = _freeing(wanted, store, policy, decisions, sharing)
    freed = kept = None
    if sharing is not None:
        freed = sharing.freed(decision.entry.id for decision in decisions if decision.goes)
        kept = sharing.freed(decision.entry.id for decision in decisions) - freed
    return Plan(tuple(decisions), freed, kept, sharing is None or sharing.exact)


def _by_rank(automatic: Sequence[State]) -> list[str]:
    """Ids of states (oldest first), those first that should stay longest: the newest of each
    branch, then all others by age.  A bisect leaves a dozen states of commits without a branch, and
    would else drive out the one that is wanted at its end.
    """
    newest_first = list(reversed(automatic))
    heads: dict[str, str] = {}
    for entry in newest_first:
        if entry.branch is not None:
            heads.setdefault(entry.branch, entry.id)
    first = list(heads.values())
    return first + [entry.id for entry in newest_first if entry.id not in first]


def _protected(policy: Policy, state: State) -> bool:
    return state.baseline or (policy.keep_named and state.name is not None)


def _decide(policy: Policy, entry: State | Damaged, facts: Facts, last: frozenset[str]) -> Decision:
    if isinstance(entry, Damaged):
        if entry.foreign:
            return Decision(entry, False, entry.reason)
        return Decision(entry, True, f"not usable: {entry.reason}")
    if entry.baseline:
        return Decision(entry, False, "the baseline")
    if policy.keep_named and entry.name is not None:
        return Decision(entry, False, "it has a name")
    branch = entry.branch
    if branch is not None and facts.branches is not None:
        if policy.drop_deleted and branch not in facts.branches:
            return Decision(entry, True, f"its branch {branch} is deleted")
        if policy.drop_merged and branch in facts.merged:
            return Decision(entry, True, f"its branch {branch} is merged into {facts.into}")
    if policy.drop_vanished and entry.checkout in facts.vanished:
        return Decision(entry, True, "its worktree is gone")
    if policy.keep_newer_than is not None and facts.now - entry.created < policy.keep_newer_than:
        return Decision(entry, False, "young enough")
    if entry.id in last:
        return Decision(entry, False, f"among the last {policy.keep_last}")
    if policy.keep_last is not None:
        return Decision(entry, True, f"not among the last {policy.keep_last}")
    if policy.keep_newer_than is not None:
        return Decision(entry, True, "older than asked for")
    return Decision(entry, False, "no rule takes it")


def _within(
    budget: int, policy: Policy, decisions: list[Decision], sharing: Sharing
) -> list[Decision]:
    """Let the oldest go, until those that stay use no more than ``budget`` by themselves."""
    everyone = [decision.entry.id for decision in decisions]
    total = sharing.freed(everyone)
    result = list(decisions)
    for index, decision in enumerate(decisions):
        going = [entry.entry.id for entry in result if entry.goes]
        if total - sharing.freed(going) <= budget:
            break
        entry = decision.entry
        if decision.goes or isinstance(entry, Damaged) or _protected(policy, entry):
            continue
        result[index] = Decision(entry, True, "the oldest beyond the budget")
    return result


def _freeing(
    wanted: int, store: Path, policy: Policy, decisions: list[Decision], sharing: Sharing
) -> list[Decision]:
    """Let the oldest in ``store`` go, until ``wanted`` bytes come back."""
    result = list(decisions)
    for index, decision in enumerate(decisions):
        entry = decision.entry
        going = [one.entry.id for one in result if one.goes and one.entry.path.parent == store]
        if sharing.freed(going) >= wanted:
            break
        if decision.goes or isinstance(entry, Damaged) or _protected(policy, entry):
            continue
        if entry.path.parent == store:
            result[index] = Decision(entry, True, "the oldest, as the filesystem is nearly full")
    return result


# -- looking


def plan(workspace: Workspace, policy: Policy, *, sizes: bool = True) -> Plan:
    """What ``policy`` would remove in the project of ``workspace``; touches nothing.

    Without ``sizes`` nobody measures (unless there is a budget, or space is short of ``min_free``):
    reading all extents of all states and targets takes time.
    """
    project = storing.project_of(workspace.root)
    build_dir = Path(os.path.realpath(workspace.build_dir))
    entries = [entry for _, entry in storing.everything(project, build_dir)]
    facts = _facts(policy, workspace.root)
    entries = _as_called_now(entries, facts.branches, workspace.root)
    if policy.min_free is not None:
        facts = facts._replace(space=space_of({entry.path.parent for entry in entries}))
        if not any(space.free < policy.min_free.of(space.total) for space in facts.space.values()):
            policy = policy._replace(min_free=None)
    sharing = None
    if policy.drop_vanished:
        facts = facts._replace(vanished=_vanished(entries, project))
    demanded = policy.budget is not None or policy.min_free is not None
    if entries and (sizes or demanded):
        sharing = measure_all(entries, workspace)
    elif demanded:
        sharing = Sharing({}, True)
    return decide(policy, entries, facts, sharing)


class Rename(NamedTuple):
    """A branch that got another name, and when (seconds since the epoch)."""

    old: str
    new: str
    time: float


def called_now(
    branch: str, since: float, branches: frozenset[str], renames: Sequence[Rename]
) -> str:
    """What ``branch``, as it was called at ``since``, is called now; itself if nobody knows.

    Another branch may have had the name later, so only renames after ``since`` count, in turn.
    """
    name, moment = branch, since
    for rename in sorted(renames, key=lambda one: one.time):
        # A reflog counts in whole seconds.
        if rename.old == name and rename.time >= int(moment):
            name, moment = rename.new, rename.time
    return name if name in branches else branch


def _as_called_now(
    entries: Sequence[State | Damaged], branches: frozenset[str] | None, root: Path
) -> list[State | Damaged]:
    """The entries, those of renamed branches under their new names.  Asks git only if a branch of
    a state is not there; without reflogs (a bare repository) it counts as deleted."""

    def is_gone(entry: State | Damaged) -> bool:
        branch = entry.branch if isinstance(entry, State) else None
        return branches is not None and branch is not None and branch not in branches

    if branches is None or not any(map(is_gone, entries)):
        return list(entries)
    renames = _renames(root)
    return [
        entry._replace(branch=called_now(entry.branch, entry.created, branches, renames))
        if isinstance(entry, State) and entry.branch is not None and is_gone(entry)
        else entry
        for entry in entries
    ]


def _renames(root: Path) -> list[Rename]:
    """All renames of branches that the reflogs of the branches still know, oldest first.

    ``git branch -m`` writes them to the log of the branch, which it takes along (``refs.c``,
    ``builtin/branch.c``).
    """
    words = ["log", "-g", "--branches", "--grep-reflog=^Branch: renamed ", "--date=unix"]
    answer = git.call([*words, "--format=%gs%x00%gd", "-z"], root)
    if answer.status:
        return []
    found = []
    fields = os.fsdecode(answer.output).rstrip("\0").split("\0")
    for message, when in zip(fields[::2], fields[1::2], strict=False):
        told = message.removeprefix("Branch: renamed ").split(" to ")
        moment = when.rpartition("{")[2].rstrip("}")
        if len(told) == 2 and moment.isdecimal():
            old, new = (name.removeprefix("refs/heads/") for name in told)
            found.append(Rename(old, new, float(moment)))
    return found[::-1]


def _vanished(entries: Sequence[State | Damaged], project: Project) -> frozenset[str]:
    """Checkouts of states that git knows no more, or only as gone from disk.

    After the repository itself was moved nothing is known of the old paths.
    """
    try:
        known = git.checkouts(project.common_dir)
    except CowError:
        return frozenset()
    there = {os.path.realpath(checkout.root) for checkout in known if not checkout.prunable}
    return frozenset(
        entry.checkout
        for entry in entries
        if isinstance(entry, State) and entry.project == project.id and entry.checkout not in there
    )


def measure_all(entries: Sequence[State | Damaged], workspace: Workspace) -> Sharing:
    """How the states and all live targets of the project share their bytes."""
    trees = {entry.id: entry.path for entry in entries}
    trees.update({f"target {path}": path for path in live_targets(workspace)})
    return measure(trees)


def live_targets(workspace: Workspace) -> set[Path]:
    """The live targets of all checkouts of the project."""
    found = {Path(os.path.realpath(workspace.build_dir))}
    try:
        here = git.checkout_of(workspace.root)
        siblings = git.checkouts(workspace.root)
    except CowError:
        return found
    root = Path(os.path.realpath(workspace.root))
    inside = Path()
    if here is not None and root.is_relative_to(here.root):
        inside = root.relative_to(here.root)
    for sibling in siblings:
        directory = sibling.root / inside
        if sibling.bare or not (directory / "Cargo.toml").is_file():
            continue
        try:
            found.add(Path(os.path.realpath(workspaces.load(directory).build_dir)))
        except CowError:
            continue
    return {path for path in found if path.is_dir()}


def _facts(policy: Policy, root: Path) -> Facts:
    now = time.time()
    answer = git.call(["for-each-ref", "--format=%(refname)", "refs/heads"], root)
    if answer.status:
        return Facts(now)
    branches = _branches(answer.output)
    if not policy.drop_merged:
        return Facts(now, branches)
    checkouts = git.checkouts(root)
    into = policy.merged_into or _trunk(checkouts[0])
    if into is None or into.startswith("-"):
        raise UsageError(
            "it is not clear into what branches should be merged: --merged-into BRANCH"
        )
    merged = git.run(
        ["for-each-ref", "--format=%(refname)", f"--merged={into}", "refs/heads"], root
    )
    busy = {checkout.branch for checkout in checkouts} | {into}
    if into == checkouts[0].head:
        # A detached HEAD (a bisect) stands for the branch that it was taken from, which is merged
        # into nothing by that.
        words = ["for-each-ref", "--format=%(refname)", f"--points-at={into}", "refs/heads"]
        busy |= _branches(git.run(words, root))
    return Facts(now, branches, _branches(merged) - busy, into)


def _trunk(main: git.Checkout) -> str | None:
    """What the main checkout is at, as git can be asked for it: its branch, else its commit (a
    bisect, a detached HEAD); for a bare repository its default branch."""
    if main.branch is None and main.bare:
        answer = git.call(["symbolic-ref", "--quiet", "--short", "HEAD"], main.common_dir)
        return os.fsdecode(answer.output).strip() or None
    return main.branch or main.head


def _branches(output: bytes) -> frozenset[str]:
    names = os.fsdecode(output).splitlines()
    return frozenset(name.removeprefix("refs/heads/") for name in names)


# -- acting


def prune(workspace: Workspace, wanted: Plan, *, say: Callable[[str], None]) -> Pruned:
    """Remove what ``wanted`` lets go, as far as it still may.

    All are forgotten first, and removed afterwards: killed in between, what is left is waste that
    the next command collects.
    """
    project = storing.project_of(workspace.root)
    build_dir = Path(os.path.realpath(workspace.build_dir))
    going = [decision.entry for decision in wanted.going]
    return remove(project, build_dir, going, by_rule=True, say=say)


def remove(
    project: Project,
    build_dir: Path,
    entries: Sequence[State | Damaged],
    *,
    baseline_too: bool = False,
    by_rule: bool = False,
    say: Callable[[str], None],
) -> Pruned:
    """Forget and remove states; a baseline only if ``baseline_too``.

    ``by_rule``: they were not chosen one by one, so none goes where the baseline may be among them.
    """
    removed: list[str] = []
    refused: list[tuple[str, str]] = []
    collected: list[Path] = []
    for store in storing.stores(project, build_dir):
        ours = [entry for entry in entries if entry.path.parent == store.directory]
        if store.far and not ours:
            continue
        storing.check(store.directory)
        collected += store.collect()
        doomed: list[tuple[str, Path]] = []
        with store.locked():
            baseline = store.baseline()
            unclear = by_rule and store.baseline_is_unclear()
            for entry in ours:
                if unclear:
                    why = "it cannot be read which state is the baseline: promote one"
                    refused.append((entry.id, why))
                    continue
                if entry.id == baseline and not baseline_too:
                    refused.append((entry.id, "it has become the baseline"))
                    continue
                try:
                    doomed.append((entry.id, store.forget(entry)))
                except CowError as error:
                    refused.append((entry.id, str(error)))
        for identity, path in doomed:
            removed.append(identity)
            try:
                storing.remove(path)
            except CowError as error:
                say(f"warning: {identity} is forgotten, but some of it is left: {error}")
    return Pruned(tuple(removed), tuple(refused), tuple(collected))
