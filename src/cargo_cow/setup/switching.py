"""``init`` and ``uninstall``: planned as steps, then carried out.

Planning touches nothing.  A step that fails is reported and the others are still taken, except
that nothing is carried out once the configuration could not be changed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from cargo_cow import git
from cargo_cow.cargo import configuration
from cargo_cow.errors import ConfigurationUnusable, CowError, Locked, NotACargoProject
from cargo_cow.prepare import identity
from cargo_cow.setup import neighbours, notes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cargo_cow.cargo.configuration import Change
    from cargo_cow.cargo.workspace import Workspace
    from cargo_cow.setup.neighbours import Choice

Kind = Literal[
    "set-wrapper",
    "mark-built",
    "make-container",
    "convert-target",
    "take-back",
    "take-out",
    "remove-file",
    "remove-records",
    "install-hooks",
    "remove-hooks",
]


class Step(NamedTuple):
    """One thing to do to one path.  ``detail`` says what in words for people."""

    kind: Kind
    path: Path
    detail: str
    change: Change | None = None


class Plan(NamedTuple):
    """What would be done, and what the user should know beside it."""

    steps: tuple[Step, ...]
    remarks: tuple[str, ...]


class Done(NamedTuple):
    """A step that was taken.  ``trouble`` says why it was not, after all."""

    step: Step
    trouble: str | None


def marker_of(checkout: git.Checkout) -> Path:
    """The file that says "a target was here": without target, the shim then does not seed."""
    return checkout.git_dir / "cargo-cow" / "seeded"


# ---------------------------------------------------------------------------------------------
# init


def plan_init(
    cwd: Path,
    native: Path,
    *,
    project: bool = False,
    convert: bool = True,
    hooks: bool = False,
    linker: str | None = None,
    warehouse: bool = False,
    wrapper_found: Choice | None = None,
    cargo_args: Sequence[str] = (),
) -> Plan:
    """The steps that switch Cargo-CoW on, for the user or (``project``) for one workspace.

    ``native`` is the program that Cargo is to call; ``hooks``: git's hooks of this repository, too;
    ``linker``: who links from now on, "default" for rustc's own choice; ``warehouse``: what is
    compiled is kept; ``wrapper_found``: what becomes of a wrapper that is there (None: what was
    chosen before, and chained at first).  Raises ConfigurationUnusable, NotACargoProject where a
    workspace is needed and there is none, GitFailed and HooksRefused (``hooks``), LinkerUnusable
    (``linker``).
    """
    remarks: list[str] = []
    # Before Cargo is asked: it would answer with an error about something else.
    for existing in configuration.files_for(cwd):
        configuration.parse(configuration.read(existing), existing)
    workspace = _workspace(cwd, cargo_args, remarks, needed=project)
    if project and workspace is not None:
        file = configuration.project_file(workspace.root)
    else:
        file = configuration.user_file()
    file = Path(os.path.realpath(file))

    steps: list[Step] = []
    base = workspace.root if project and workspace is not None else cwd
    former = _former(base, file, native, wrapper_found, remarks)
    chosen, mark = _linker(linker, base, file, native, remarks)
    variables = _settled(former, wrapper_found, file, remarks)
    if chosen is not None:
        variables[configuration.LINKER_VARIABLE] = chosen
    if warehouse:
        variables[configuration.WAREHOUSE_VARIABLE] = "on"
    change = None
    if wrapper_found == "keep" and (former.state == "found" or former.variable):
        remarks.append(neighbours.meaning("keep", former.variable or former.program))
    else:
        change = configuration.plan_wrapper(file, str(native), variables)
    if change is not None:
        detail = f'build.rustc-wrapper = "{native}"'
        chain = variables.get(configuration.CHAIN_VARIABLE)  # None: as it is
        if chain == "":
            detail += f", instead of {former.program}"
            remarks.append(neighbours.meaning("replace", former.program))
        elif chain or former.state == "chained":
            detail += f", which runs rustc through {former.program}"
            remarks.append(neighbours.meaning("chain", former.program))
        if chosen is not None:
            detail += f", which links with {mark}" if chosen else ", which links as rustc does"
        if warehouse:
            detail += f", with {configuration.WAREHOUSE_VARIABLE}=on"
        steps.append(Step("set-wrapper", file, detail, change))
    remarks += filter(None, [neighbours.around_members(base)])
    if workspace is not None:
        steps += _markers(workspace)
        if convert:
            steps += _conversion(workspace, remarks)
    if hooks:
        from cargo_cow.setup import hooks as githooks

        wanted = githooks.plan_install(cwd)
        remarks += wanted.remarks
        if wanted.steps:
            detail = "git prepares the target after a switch, a merge or a rebase"
            steps.append(Step("install-hooks", wanted.root, detail))
    return Plan(tuple(steps), tuple(dict.fromkeys(remarks)))


def _workspace(
    cwd: Path, cargo_args: Sequence[str], remarks: list[str], *, needed: bool
) -> Workspace | None:
    from cargo_cow.cargo import workspace as workspaces

    try:
        return workspaces.load(cwd, cargo_args)
    except NotACargoProject:
        if needed:
            raise
        remarks.append("no Cargo project here: only the user's configuration is looked at")
        return None


def _linker(
    wanted: str | None, cwd: Path, file: Path, native: Path, remarks: list[str]
) -> tuple[str | None, str]:
    """(what to set as linker, its mark); see `configuration.plan_wrapper`."""
    if wanted is None:
        return None, ""
    if wanted == "default":
        return "", ""
    from cargo_cow.setup import linker

    name = next(name for name in linker.NAMES if name == wanted)
    mark = linker.check(name, native, cwd)
    own = linker.own_choice(cwd)
    if own is not None:
        remarks.append(f"{own}: that linker stays, {name} is not used where it counts")
        if own.file is None or Path(os.path.realpath(own.file)) == file:
            return None, ""
    usual, _ = linker.try_out("", native, cwd)
    if usual is not None and linker.is_mark_of(name, usual):
        remarks.append(f"rustc links with {usual} here without being asked: nothing to gain")
        return "", ""
    return name, mark


class _Former(NamedTuple):
    """The other wrapper: ``program`` counted up to now, or did before ours; "" if there is none.

    ``state``: "found" where ours is not set yet, else what ours does with it, by ``file``.
    ``variable``: the one that the environment sets, which counts whatever stands in a file.
    """

    program: str
    state: Literal["none", "found", "chained", "replaced"]
    variable: str = ""
    file: Path | None = None


def _settled(
    former: _Former, choice: Choice | None, file: Path, remarks: list[str]
) -> dict[str, str]:
    """The variables that do with a wrapper what was chosen; see `configuration.plan_wrapper`."""
    chain, replaced = configuration.CHAIN_VARIABLE, configuration.REPLACED_VARIABLE
    elsewhere = former.file is not None and former.file != file
    if former.state in ("chained", "replaced") and choice is not None and elsewhere:
        remarks.append(f"{former.file} says what becomes of {former.program}: not changed here")
        return {}
    if choice == "keep" and former.state == "chained":
        remarks.append(f"{former.program} is called by ours already: cargo cow uninstall ends that")
    if choice == "replace" and former.state in ("found", "chained"):
        # One that a weaker file sets counts again by itself, when ours is gone.
        return {chain: "", replaced: "" if elsewhere else former.program}
    if former.state == "found" or (choice == "chain" and former.state == "replaced"):
        return {chain: former.program, replaced: ""}
    return {}


def _former(
    cwd: Path, file: Path, native: Path, choice: Choice | None, remarks: list[str]
) -> _Former:
    """What is to be done with besides ours.

    Also remarks on what is stronger than ``file``, so that our wrapper would never be called.
    """

    def ours(program: str) -> bool:
        # Also under another name: a program that is chained to itself would never end.
        return configuration.is_ours(program) or program == str(native)

    chain = configuration.CHAIN_VARIABLE
    variable = ""
    found = configuration.wrapper_from_environment()
    if found is not None and not ours(found.program):
        variable = found.program
        if choice != "keep":
            remark = (
                f"{found.source} ({variable or 'empty: no wrapper'}) is stronger than any file: "
                f"unset {found.source.rpartition(' ')[2]}"
            )
            if variable and choice != "replace":
                remark += f", and export {chain}={variable} to go on using that program"
            remarks.append(remark)
    if choice == "replace" and os.environ.get(chain):
        remarks.append(f"environment variable {chain} is stronger than any file: unset {chain}")
    files = _ranked(cwd, file)
    place = files.index(file)
    for candidate in files[:place]:
        found = configuration.wrapper_in(candidate)
        if found is not None and not ours(found.program):
            remarks.append(
                f"{found.source} sets the wrapper {found.program or 'none'} and is stronger "
                "here: cargo cow init --project"
            )
    for candidate in files[place:]:
        found = configuration.wrapper_in(candidate)
        if found is None:
            continue
        if not ours(found.program):
            state: Literal["found", "none"] = "found" if found.program else "none"
            return _Former(found.program, state, variable, found.file)
        if before := configuration.variable_in(candidate, chain):
            return _Former(before, "chained", variable, candidate)
        if before := configuration.variable_in(candidate, configuration.REPLACED_VARIABLE):
            return _Former(before, "replaced", variable, candidate)
        break
    return _Former("", "none", variable)


def _ranked(cwd: Path, file: Path) -> list[Path]:
    """The configuration files that count in ``cwd`` with ``file``, which may be new, in its place:
    the strongest first, and one above another in the tree is weaker."""
    files = [Path(os.path.realpath(path)) for path in configuration.files_for(cwd)]
    if file in files:
        return files
    user = Path(os.path.realpath(configuration.user_file()))
    holder = file.parent.parent
    for index, other in enumerate(files):
        if file != user and (other == user or holder.is_relative_to(other.parent.parent)):
            return [*files[:index], file, *files[index:]]
    return [*files, file]


def siblings(workspace: Workspace) -> list[tuple[git.Checkout, Workspace]]:
    """The same workspace in every checkout of the project, the main one first."""
    from cargo_cow.cargo import workspace as workspaces

    here = git.checkout_of(workspace.root)
    if here is None or here.bare:
        return []
    place = Path(os.path.realpath(workspace.root)).relative_to(here.root)
    result: list[tuple[git.Checkout, Workspace]] = []
    for checkout in git.checkouts(here.root):
        directory = checkout.root / place
        if checkout.bare or checkout.prunable or not (directory / "Cargo.toml").is_file():
            continue
        try:
            result.append((checkout, workspaces.load(directory)))
        except CowError:
            continue  # another branch may hold a manifest that does not parse
    return result


def _markers(workspace: Workspace) -> Iterator[Step]:
    for checkout, sibling in siblings(workspace):
        marker = marker_of(checkout)
        if sibling.build_dir.is_dir() and not marker.exists():
            yield Step(
                "mark-built",
                marker,
                "built before, so cargo clean there stays clean",
            )


def _conversion(workspace: Workspace, remarks: list[str]) -> Iterator[Step]:
    """The main checkout's target, from which most clones will be taken, and this one's."""
    from cargo_cow import filesystems
    from cargo_cow.filesystems import zfs

    contained: set[Path] = set()
    main = [sibling for checkout, sibling in siblings(workspace) if checkout.is_main]
    targets = dict.fromkeys(each.build_dir for each in [*main, workspace])
    for target in targets:
        if target.is_symlink():
            remarks.append(f"{target} is a symlink: it stays what it is")
            continue
        try:
            able = filesystems.probe(_existing(target))
        except CowError as error:
            remarks.append(f"{target}: {error}")
            continue
        snapshots = able.snapshots
        if not snapshots and not able.reflink:
            # A ZFS that cannot clone blocks can clone datasets.
            place = zfs.may_contain(_existing(target))
            if place is None:
                remarks.append(
                    f"{able.name} cannot share extents: new targets are copies (cargo cow doctor)"
                )
            elif place not in contained:
                contained.add(place)
                yield Step("make-container", place, "below it targets are datasets of their own")
            snapshots = place is not None
        if not snapshots:
            continue
        if not target.is_dir():
            remarks.append(
                f"{target} is not there yet: build it with cargo cow build, or init again after "
                "the first build, so that it can be snapshotted"
            )
        elif not filesystems.can_snapshot(target):
            kind = "dataset" if able.subvolume_removal == "dataset" or contained else "subvolume"
            detail = f"a {kind}, cloned by snapshot; contents and times stay"
            yield Step("convert-target", target, detail)


def _existing(path: Path) -> Path:
    while not path.is_dir():
        path = path.parent
    return path


# ---------------------------------------------------------------------------------------------
# uninstall


def plan_uninstall(cwd: Path, *, purge: bool = False, cargo_args: Sequence[str] = ()) -> Plan:
    """The steps that take back everything ``init`` changed, in this project and elsewhere.

    With ``purge`` also what prepare and the shim left in this project's targets, which only
    costs the next prepare its records.  Raises ConfigurationUnusable.
    """
    from cargo_cow.filesystems import zfs

    remarks: list[str] = []
    noted = notes.load()
    steps = [
        Step("take-back", change.file, "as it was before cargo cow init", change)
        for change in reversed(noted.changes)
    ]
    known = {change.file for change in noted.changes}
    for file in dict.fromkeys([*configuration.files_for(cwd), configuration.user_file()]):
        real = Path(os.path.realpath(file))
        if real in known:
            continue
        change = configuration.plan_without_wrapper(real)
        if change is not None:
            steps.append(
                Step("take-out", real, "cargo-cow-native is set here, by hand it seems", change)
            )
    markers = list(noted.markers)
    try:
        workspace = _workspace(cwd, cargo_args, [], needed=False)
        found = [] if workspace is None else siblings(workspace)
    except CowError as error:
        workspace, found = None, []
        remarks.append(f"the project here is left out: {str(error).splitlines()[0]}")
    markers += [marker_of(checkout) for checkout, _ in found]
    steps += [
        Step("remove-file", marker, "the mark that this checkout was built before")
        for marker in dict.fromkeys(markers)
        if marker.exists()
    ]
    steps += _hooks_of_ours(cwd, noted, remarks)
    steps += [
        Step("remove-file", file, "where rustc was to see this checkout")
        for file in (checkout.git_dir / identity.FILE for checkout, _ in found)
        if file.exists()
    ]
    if purge:
        targets = [sibling.build_dir for _, sibling in found]
        if workspace is not None:
            targets.append(workspace.build_dir)
        steps += [
            Step("remove-records", target, ".cargo-cow and cow-*.json")
            for target in dict.fromkeys(targets)
            if target.is_dir()
        ]
    for _, sibling in found:
        dataset = zfs.find(sibling.build_dir)
        if dataset is not None:
            remarks.append(
                f"{sibling.build_dir} stays the ZFS dataset {dataset.name}: cargo works in it; "
                f"zfs destroy -r {dataset.name} removes it"
            )
    found_wrapper = configuration.wrapper_from_environment()
    if found_wrapper is not None and configuration.is_ours(found_wrapper.program):
        remarks.append(f"{found_wrapper.source} still names cargo-cow-native: unset it")
    return Plan(tuple(steps), tuple(remarks))


def _hooks_of_ours(cwd: Path, noted: notes.Notes, remarks: list[str]) -> list[Step]:
    """The repositories whose hooks run us: this one and those that were noted."""
    from cargo_cow.setup import hooks

    found: dict[Path, Step] = {}
    for root in (cwd, *noted.hooks):
        try:
            plan = hooks.plan_remove(root)
        except (CowError, OSError):
            continue  # no repository, or gone with its hooks
        if plan.steps and plan.common not in found:
            found[plan.common] = Step("remove-hooks", plan.root, "git's hooks run us no more")
            remarks += plan.remarks
    return list(found.values())


# ---------------------------------------------------------------------------------------------
# Carrying out


def carry_out(plan: Plan) -> list[Done]:
    """Take the steps of a plan in order.

    A step that cannot be taken is in the answer with its trouble; only a configuration that
    cannot be changed raises (ConfigurationUnusable), as the rest would be for nothing.
    """
    done: list[Done] = []
    for step in plan.steps:
        try:
            trouble = _act(step)
        except ConfigurationUnusable:
            if step.kind == "set-wrapper":
                raise
            trouble = f"{step.path} could not be written; take build.rustc-wrapper out by hand"
        except Locked:
            trouble = "a build is running there: try again when it has ended"
        except CowError as error:
            trouble = str(error)
        except OSError as error:
            trouble = error.strerror or str(error)
        done.append(Done(step, trouble))
    taken_back = {"take-back", "take-out", "remove-file", "remove-hooks"}
    if any(step.kind in taken_back for step in plan.steps):
        _forget_what_is_gone()
    return done


def _act(step: Step) -> str | None:
    """Take one step; the trouble, or None."""
    if step.kind == "set-wrapper":
        assert step.change is not None
        _set_wrapper(step.change)
    elif step.kind == "mark-built":
        step.path.parent.mkdir(exist_ok=True)
        step.path.touch()
        noted = notes.load()
        notes.save(noted._replace(markers=(*noted.markers, step.path)))
    elif step.kind == "make-container":
        from cargo_cow.filesystems import zfs

        zfs.make_container(step.path)
    elif step.kind == "convert-target":
        return _convert(step.path)
    elif step.kind in ("install-hooks", "remove-hooks"):
        from cargo_cow.setup import hooks

        install = step.kind == "install-hooks"
        plan = hooks.plan_install(step.path) if install else hooks.plan_remove(step.path)
        return "; ".join(hooks.carry_out(plan)) or None
    elif step.kind == "take-back":
        assert step.change is not None
        return _take_back(step.change)
    elif step.kind == "take-out":
        assert step.change is not None
        configuration.apply(step.change)
    elif step.kind == "remove-file":
        step.path.unlink(missing_ok=True)
        _remove_if_empty(step.path.parent)
    else:
        _remove_records(step.path)
    return None


def _set_wrapper(change: Change) -> None:
    noted = notes.load()
    made = tuple(
        directory
        for directory in (change.file.parent,)
        if change.created and not directory.is_dir()
    )
    notes.save(
        noted._replace(changes=(*noted.changes, change), directories=(*noted.directories, *made))
    )
    try:
        configuration.apply(change)
    except BaseException:
        for directory in made:
            _remove_if_empty(directory)
        notes.save(noted)
        raise


def _take_back(change: Change) -> str | None:
    if configuration.take_back(change):
        return None
    if not change.file.exists():
        return None
    # Edited since: our two settings go, everything else stays.
    rest = configuration.plan_without_wrapper(change.file)
    if rest is not None:
        configuration.apply(rest)
    return None


def _forget_what_is_gone() -> None:
    """Drop what was taken back from the notes; what still stands in a file stays noted."""
    noted = notes.load()
    remaining = tuple(change for change in noted.changes if _still_set(change.file))
    for directory in noted.directories:
        _remove_if_empty(directory)
    notes.save(
        notes.Notes(
            changes=remaining,
            markers=tuple(marker for marker in noted.markers if marker.exists()),
            directories=tuple(path for path in noted.directories if path.is_dir() and remaining),
            hooks=tuple(path for path in noted.hooks if path.is_dir()),
        )
    )


def _still_set(file: Path) -> bool:
    try:
        return configuration.plan_without_wrapper(file) is not None
    except CowError:
        return file.exists()


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return


def _convert(target: Path) -> str | None:
    from cargo_cow import filesystems
    from cargo_cow.cargo.lock import build_lock

    # Not waiting: a Cargo that waits for the old lock file would not see the new one's lock.
    with build_lock(target, wait=False):
        report = filesystems.convert(target)
    return "nothing to do any more" if report is None else None


def _remove_records(target: Path) -> None:
    from cargo_cow import filesystems
    from cargo_cow.cargo.lock import build_lock
    from cargo_cow.cargo.target import ASKED_NAME, OBSERVED_NAME, RECORD_NAME, Target
    from cargo_cow.filesystems import temporaries

    with build_lock(target, wait=False):
        found = Target(str(target))
        for directory in [unit.directory for unit in found.units] + found.unknown:
            for name in (ASKED_NAME, OBSERVED_NAME, RECORD_NAME):
                (Path(directory) / name).unlink(missing_ok=True)
        ours = target / ".cargo-cow"
        if ours.is_dir() and not ours.is_symlink():
            filesystems.remove_target(ours)
    room = target.parent / temporaries.ROOM
    with contextlib.suppress(OSError):
        if [path.name for path in room.iterdir()] == [".gitignore"]:
            (room / ".gitignore").unlink()
            room.rmdir()
