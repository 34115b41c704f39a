"""git's worktrees with a prepared target: add, list, remove.

Everything about checkouts is git's to decide; nothing here re-implements a rule of
`git worktree`, and a worktree never fails because its target could not be prepared.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow import git
from cargo_cow.errors import CowError, GitFailed, NotACargoProject

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cargo_cow.cargo.workspace import Workspace
    from cargo_cow.filesystems import Usage


class AddOptions(NamedTuple):
    """The options of `git worktree add` that are passed on, each with git's meaning."""

    new_branch: str | None = None
    reset_branch: str | None = None
    detach: bool = False
    track: bool | None = None
    guess_remote: bool | None = None
    checkout: bool = True
    lock: bool = False
    reason: str | None = None
    force: int = 0
    quiet: bool = False


class Prepared(NamedTuple):
    """The last prepare of a target, as it left word in ``.cargo-cow/prepared.json``.

    ``time`` is in seconds since the epoch; ``donor`` the directory that the target was cloned
    from, ``None`` where it was there already.
    """

    donor: str | None
    time: float | None
    method: str | None
    proven: int | None
    dropped: int | None


class Added(NamedTuple):
    """A new worktree.  ``workspace`` is ``None`` where no Cargo project is in it."""

    root: Path
    head: str | None
    branch: str | None
    workspace: Path | None
    target: Path | None
    prepared: Prepared | None
    warning: str | None


class Listed(NamedTuple):
    """A checkout with its target.  ``target`` is ``None`` where Cargo finds no project in it.

    ``usage`` is ``None`` while nothing was built there, or where it was not asked for.
    """

    checkout: git.Checkout
    locked: bool
    workspace: Path | None
    target: Path | None
    usage: Usage | None
    prepared: Prepared | None
    trouble: str | None


class Removal(NamedTuple):
    """A worktree that may be removed.  ``targets`` lie inside it and go first.

    ``kept`` are target directories outside: other checkouts may use them.
    """

    checkout: git.Checkout
    targets: tuple[Path, ...]
    kept: tuple[Path, ...]
    force: int


def last_prepare(build_dir: Path) -> Prepared | None:
    """What the last prepare of this target left word of; ``None`` where there was none."""
    import json

    try:
        value = json.loads((build_dir / ".cargo-cow" / "prepared.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict):
        return None

    def text(key: str) -> str | None:
        found = value.get(key)
        return found if isinstance(found, str) else None

    def number(key: str) -> int | None:
        found = value.get(key)
        return found if isinstance(found, int) else None

    time = value.get("time")
    return Prepared(
        donor=text("donor"),
        time=float(time) if isinstance(time, int | float) else None,
        method=text("method"),
        proven=number("proven"),
        dropped=number("dropped"),
    )


# ---------------------------------------------------------------------------------------------
# add


def add(
    path: str,
    commit: str | None,
    options: AddOptions,
    *,
    cwd: Path,
    say: Callable[[str], None],
    donor: Path | None = None,
) -> Added:
    """`git worktree add` in ``cwd``, then a prepared target in the new worktree.

    The workspace that ``cwd`` lies in is the one prepared, also where it is a directory of the
    repository and not its root.  Raises GitFailed when git refuses; whatever goes wrong after
    that is in ``warning``, and plain Cargo builds there.
    """
    here = git.checkout_of(cwd)
    if here is None:
        raise _no_repository(cwd)
    place = _place_of_workspace(here, cwd)
    status = git.run_visibly(_add_arguments(path, commit, options), cwd)
    if status != 0:
        raise GitFailed(
            f"git worktree add ended with status {status}; its words are above",
            hint="nothing was prepared; `cargo cow worktree list` shows what there is",
        )
    root = Path(os.path.realpath(cwd / path))
    added = git.checkout_of(root)
    head = None if added is None else added.head
    branch = None if added is None else added.branch
    result = Added(root, head, branch, None, None, None, None)
    if not options.checkout:
        return result._replace(
            warning="no files are checked out yet; once they are: cargo cow prepare"
        )
    found = _workspace_in(root, place)
    if found is None:
        return result._replace(warning=f"no Cargo.toml in {root}: nothing to prepare")
    result = result._replace(workspace=found)
    try:
        from cargo_cow.cargo import workspace as workspaces
        from cargo_cow.snapshots.switching import switched

        workspace = workspaces.load(found)
        result = result._replace(workspace=workspace.root, target=workspace.build_dir)
        switched(workspace, donor=donor, say=say)
    except CowError as error:
        reason = f"{error} ({error.hint})" if error.hint else str(error)
    except Exception as error:  # noqa: BLE001  a worktree must not fail for what is only a head start
        reason = f"{type(error).__name__}: {error}"
    else:
        return result._replace(prepared=last_prepare(workspace.build_dir))
    return result._replace(
        warning=f"the target could not be prepared, cargo builds it from scratch: {reason}"
    )


def _no_repository(cwd: Path) -> GitFailed:
    if not git.available():
        return GitFailed("git is not installed", hint="install git, or put it on PATH")
    return GitFailed(
        f"{cwd} is not in a git checkout",
        hint="run the command inside the project's checkout",
    )


def _add_arguments(path: str, commit: str | None, options: AddOptions) -> list[str]:
    arguments = ["worktree", "add"]
    arguments += ["--force"] * options.force
    if options.quiet:
        arguments.append("--quiet")
    if options.detach:
        arguments.append("--detach")
    if not options.checkout:
        arguments.append("--no-checkout")
    if options.lock:
        arguments.append("--lock")
        if options.reason is not None:
            arguments += ["--reason", options.reason]
    if options.track is not None:
        arguments.append("--track" if options.track else "--no-track")
    if options.guess_remote is not None:
        arguments.append("--guess-remote" if options.guess_remote else "--no-guess-remote")
    if options.new_branch is not None:
        arguments += ["-b", options.new_branch]
    if options.reset_branch is not None:
        arguments += ["-B", options.reset_branch]
    arguments += ["--", path]
    if commit is not None:
        arguments.append(commit)
    return arguments


def _place_of_workspace(here: git.Checkout, cwd: Path) -> Path:
    """Where the invoking workspace lies, relative to its checkout (``.``: at its root)."""
    if here.bare:
        return Path()
    from cargo_cow.cargo import workspace as workspaces

    try:
        root = Path(os.path.realpath(workspaces.load(cwd).root))
    except CowError:
        # No project, or one that does not parse here: the other branch may be better.
        return Path()
    return root.relative_to(here.root) if root.is_relative_to(here.root) else Path()


def _workspace_in(root: Path, place: Path) -> Path | None:
    """The directory to ask Cargo about in another checkout of the project."""
    for candidate in (root / place, root):
        if (candidate / "Cargo.toml").is_file():
            return candidate
    return None


# ---------------------------------------------------------------------------------------------
# list


def listing(cwd: Path, *, sizes: bool = True) -> list[Listed]:
    """Every checkout of the project around ``cwd`` with its target, the main one first.

    Measuring reads the extents of every file of every target; without ``sizes`` that is left
    out.  Raises GitFailed outside git.
    """
    here = git.checkout_of(cwd)
    if here is None:
        raise _no_repository(cwd)
    place = _place_of_workspace(here, cwd)
    measured: dict[Path, Usage] = {}
    result: list[Listed] = []
    for checkout in git.checkouts(cwd):
        workspace, trouble = _workspace_of(checkout, place)
        target = None if workspace is None else workspace.build_dir
        usage = None
        if sizes and target is not None and target.is_dir():
            if target not in measured:  # CARGO_TARGET_DIR: one target for all of them
                from cargo_cow import filesystems

                try:
                    measured[target] = filesystems.usage(target)
                except (CowError, OSError) as error:
                    trouble = f"cannot measure {target}: {error}"
            usage = measured.get(target)
        result.append(
            Listed(
                checkout=checkout,
                locked=(checkout.git_dir / "locked").exists(),
                workspace=None if workspace is None else workspace.root,
                target=target,
                usage=usage,
                prepared=None if target is None else last_prepare(target),
                trouble=trouble,
            )
        )
    return result


def _workspace_of(checkout: git.Checkout, place: Path) -> tuple[Workspace | None, str | None]:
    """(workspace, None), or (None, why not)."""
    if checkout.bare or checkout.prunable:
        return None, None
    directory = _workspace_in(checkout.root, place)
    if directory is None:
        return None, None
    from cargo_cow.cargo import workspace as workspaces

    try:
        return workspaces.load(directory), None
    except NotACargoProject:
        return None, None
    except CowError as error:
        return None, str(error).splitlines()[0]


# ---------------------------------------------------------------------------------------------
# remove


def plan_removal(path: str, *, cwd: Path, force: int = 0) -> Removal:
    """What removing a worktree would take away.  Touches nothing.

    ``path`` is a path, or the unique end of one, as git takes it.  git's own refusals are made
    here, before a target is gone, with one difference: an untracked target that nobody ignores
    is no reason to refuse.  Raises GitFailed.
    """
    here = git.checkout_of(cwd)
    if here is None:
        raise _no_repository(cwd)
    checkout = _named(path, cwd)
    shown = checkout.root
    if checkout.is_main:
        raise GitFailed(
            f"{shown} is the main checkout", hint="only linked worktrees can be removed"
        )
    locked = checkout.git_dir / "locked"
    if locked.exists() and force < 2:
        reason = locked.read_text(errors="replace").strip()
        raise GitFailed(
            f"{shown} is locked" + (f": {reason}" if reason else ""),
            hint="git worktree unlock it, or repeat --force",
        )
    if checkout.prunable or not checkout.root.is_dir():
        return Removal(checkout, (), (), force)
    if git.checkout_of(checkout.root) is None:
        raise GitFailed(
            f"{shown} is no longer a checkout: its .git file is missing or points elsewhere",
            hint="git worktree repair it, or delete it by hand and git worktree prune",
        )
    targets, kept = _targets(checkout, _place_of_workspace(here, cwd))
    if force == 0:
        _refuse_unclean(checkout, targets)
    return Removal(checkout, targets, kept, force)


def remove(removal: Removal, *, say: Callable[[str], None]) -> None:
    """Carry a removal out: targets first, so that git need not delete them file by file.

    A target that cannot be removed is left to git, with a word about it.  Raises Locked when a
    build runs in one of them (unless forced), and GitFailed when git refuses all the same.
    """
    from contextlib import ExitStack

    from cargo_cow import filesystems
    from cargo_cow.cargo.lock import build_lock

    for target in removal.targets:
        with ExitStack() as stack:
            if removal.force == 0:
                stack.enter_context(build_lock(target, wait=False))
            try:
                filesystems.remove_target(target)
            except (CowError, OSError) as error:
                say(f"warning: {target} is left to git: {error}")
    # From the repository, not from the worktree: the caller may stand in what is going away.
    status = git.run_visibly(
        ["worktree", "remove", *["--force"] * removal.force, "--", str(removal.checkout.root)],
        removal.checkout.common_dir,
    )
    if status != 0:
        gone = f"; its target {removal.targets[0]} is removed" if removal.targets else ""
        raise GitFailed(f"git worktree remove ended with status {status}{gone}")


def _named(path: str, cwd: Path) -> git.Checkout:
    """The checkout that ``path`` means: git's rule (worktree.c, find_worktree)."""
    known = git.checkouts(cwd)
    exact = Path(os.path.realpath(cwd / path))
    for checkout in known:
        if checkout.root == exact:
            return checkout
    ending = [
        checkout
        for checkout in known
        if path and f"/{checkout.root}".endswith(f"/{path.strip('/')}")
    ]
    if len(ending) == 1:
        return ending[0]
    raise GitFailed(
        f"{path} is not a worktree of this project"
        if not ending
        else f"{path} may be any of " + ", ".join(str(checkout.root) for checkout in ending),
        hint="cargo cow worktree list",
    )


def _targets(checkout: git.Checkout, place: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(targets inside the checkout, those of it that lie outside)."""
    workspace, _ = _workspace_of(checkout, place)
    candidates: list[Path] = []
    if workspace is not None:
        candidates = [workspace.build_dir, workspace.target_dir]
    elif (checkout.root / place / "target" / "CACHEDIR.TAG").is_file():
        candidates = [checkout.root / place / "target"]  # its manifest does not parse any more
    inside: list[Path] = []
    outside: list[Path] = []
    for target in dict.fromkeys(candidates):
        if not target.is_dir():
            continue
        real = Path(os.path.realpath(target))
        if target.is_symlink() or not real.is_relative_to(checkout.root) or real == checkout.root:
            outside.append(target)
        elif not any(target.is_relative_to(other) for other in inside):
            inside.append(target)
    # A build directory below the target directory would be removed twice.
    return (
        tuple(
            target
            for target in inside
            if not any(target != other and target.is_relative_to(other) for other in inside)
        ),
        tuple(outside),
    )


def _refuse_unclean(checkout: git.Checkout, targets: Sequence[Path]) -> None:
    """builtin/worktree.c, check_clean_worktree, with our targets left out of the count."""
    staged = git.run(["ls-files", "-z", "--stage"], checkout.root)
    modules = checkout.git_dir / "modules"
    if any(entry.startswith(b"160000 ") for entry in staged.split(b"\0")) or (
        modules.is_dir() and any(modules.iterdir())
    ):
        raise GitFailed(
            f"{checkout.root} contains submodules", hint="repeat with --force to delete it"
        )
    ours = [os.fsencode(target.relative_to(checkout.root)) for target in targets]
    output = git.run(
        ["status", "--porcelain", "-z", "--no-renames", "--ignore-submodules=none"], checkout.root
    )
    unclean = []
    for entry in output.split(b"\0"):
        name = entry[3:]
        if entry.startswith(b"?? ") and any(
            name.rstrip(b"/") == target or name.startswith(target + b"/") for target in ours
        ):
            continue
        if name:
            unclean.append(os.fsdecode(name))
    if unclean:
        more = f" and {len(unclean) - 3} more" if len(unclean) > 3 else ""
        raise GitFailed(
            f"{checkout.root} contains modified or untracked files: "
            + ", ".join(unclean[:3])
            + more,
            hint="commit or stash them, or repeat with --force to delete them",
        )
