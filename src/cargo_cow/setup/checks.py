"""What ``doctor`` looks at: each check tries, and says what works, what is lost and what mends it.

Nothing is changed.  ``fail`` means that builds break or nothing of Cargo-CoW works; ``warn`` that
something is lost and plain Cargo does its work all the same.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from cargo_cow import git
from cargo_cow.cargo import configuration
from cargo_cow.errors import CowError, NotACargoProject, UnknownFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cargo_cow.cargo.workspace import Workspace
    from cargo_cow.filesystems import Capabilities

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), include/uapi/linux/fs.h
_TAG = "Signature: 8a477f597d28d172789f06886806bc55"


class Check(NamedTuple):
    """One thing that was looked at.  ``lost`` and ``mend`` are empty where all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    lost: str = ""
    mend: str = ""


def run(cwd: Path, cargo_args: Sequence[str] = ()) -> list[Check]:
    """All checks for the workspace around ``cwd``; outside of one, those that need none."""
    checks = [*_toolchain(cwd), _git(), _native()]
    workspace: Workspace | None = None
    try:
        from cargo_cow.cargo import workspace as workspaces

        workspace = workspaces.load(cwd, cargo_args)
    except NotACargoProject as error:
        checks.append(
            Check("project", "warn", str(error), "there is nothing to prepare here", error.hint)
        )
    except CowError as error:
        checks.append(Check("project", "fail", str(error), "Cargo cannot build here", error.hint))
    else:
        checks.append(
            Check("project", "ok", f"{workspace.root}, {len(workspace.members)} package(s)")
        )
    checks += _wrapper(cwd)
    checks += _linker(cwd)
    checks += _hooks(cwd)
    checks += _filesystem(cwd, workspace)
    if workspace is not None:
        checks += _target(workspace)
        checks += _siblings(workspace)
        checks += _identity(workspace)
    checks.append(_namespaces())
    checks.append(_warehouse(cwd, workspace))
    return checks


def _output(command: list[str], cwd: Path) -> str | None:
    import subprocess

    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _toolchain(cwd: Path) -> Iterator[Check]:
    from cargo_cow.cargo.toolchain import compiler_here
    from cargo_cow.cargo.workspace import cargo_program

    version = _output([cargo_program(), "--version"], cwd)
    if version is None:
        yield Check("cargo", "fail", f"{cargo_program()} does not run", "everything",
                    "install Rust (rustup), or put cargo on PATH")  # fmt: skip
    else:
        yield Check("cargo", "ok", version.strip())
    compiler = compiler_here(os.fspath(cwd))
    if compiler is None:
        yield Check("rustc", "fail", "rustc does not run", "everything",
                    "install Rust (rustup), or put rustc on PATH")  # fmt: skip
    else:
        yield Check("rustc", "ok", compiler.splitlines()[0])


def _git() -> Check:
    lost = "a new checkout finds no donor, and `cargo cow worktree` does not work"
    if not git.available():
        return Check("git", "warn", "git is not installed", lost, "install git")
    try:
        answer = git.call(["--version"], Path("/"))
    except CowError as error:
        return Check("git", "warn", str(error), lost, "reinstall git")
    if answer.status != 0:
        return Check("git", "warn", f"git does not run: {answer.error}", lost, "reinstall git")
    return Check("git", "ok", os.fsdecode(answer.output).strip())


def _hooks(cwd: Path) -> Iterator[Check]:
    from cargo_cow.setup import hooks

    try:
        there, gone = hooks.installed(cwd), hooks.dropped(cwd)
    except CowError:
        return  # no repository: no hooks
    if gone:
        yield Check(
            "hooks",
            "warn",
            "installed, and left out by whoever wrote git's hooks since",
            "plain cargo build finds nothing prepared after a switch",
            "cargo cow hooks install",
        )
    elif there:
        yield Check("hooks", "ok", "git prepares the target after a switch")
    else:
        yield Check("hooks", "ok", "none; after a switch, cargo cow build prepares the target")


def _native() -> Check:
    from cargo_cow import native

    try:
        version = native.version()
        return Check("native", "ok", f"{native.program()} {version}, protocol {native.PROTOCOL}")
    except CowError as error:
        return Check(
            "native", "fail", str(error), "no target can be cloned, nothing is observed", error.hint
        )


def _wrapper(cwd: Path) -> Iterator[Check]:
    from cargo_cow import native
    from cargo_cow.setup import neighbours

    lost = "plain cargo does not prepare new checkouts; `cargo cow build` does"
    try:
        found = configuration.effective_wrapper(cwd)
        chain = configuration.effective_chain(cwd)
    except CowError as error:
        yield Check("wrapper", "fail", str(error), "Cargo cannot build here", error.hint)
        return
    if found is None:
        yield Check("wrapper", "warn", "no rustc-wrapper is configured", lost, "cargo cow init")
        return
    if not configuration.is_ours(found.program):
        mend = []
        if found.file is None:
            mend.append(f"unset {found.source.rpartition(' ')[2]}")
            if found.program:
                mend.append(f"export {configuration.CHAIN_VARIABLE}={shlex.quote(found.program)}")
        mend.append("cargo cow init")
        if found.file is not None and found.program:
            called = neighbours.name(found.program)
            mend[-1] += f" (ours then calls {called}; --wrapper-found replace: instead of it)"
        yield Check(
            "wrapper",
            "warn",
            f"{found.source} sets {found.program or 'none'}",
            lost,
            "; ".join(mend),
        )
        return
    if not _runs(found.program):
        yield Check(
            "wrapper",
            "fail",
            f"{found.source} sets {found.program}, which is not there",
            "every cargo build fails",
            "cargo cow init, or cargo cow uninstall",
        )
        return
    try:
        other = not Path(found.program).samefile(native.program())
    except (CowError, OSError):
        other = False
    if other:
        yield Check("wrapper", "warn", f"{found.source} sets {found.program}",
                    "that is another installation's program", "cargo cow init")  # fmt: skip
    else:
        yield Check("wrapper", "ok", f"{found.program}, by {found.source}")
    if chain is not None:
        if not _runs(chain):
            yield Check(
                "chained wrapper",
                "fail",
                f"{configuration.CHAIN_VARIABLE} is {chain}, which is not there",
                "the compiler is run without it",
                f"install {chain}, or cargo cow init --wrapper-found replace",
            )
        elif _kept(configuration.effective_variable(cwd, configuration.WAREHOUSE_VARIABLE)):
            yield Check(
                "chained wrapper",
                "warn",
                f"{chain}, with the warehouse on",
                neighbours.chained(chain),
                "cargo cow init --wrapper-found replace",
            )
        else:
            yield Check("chained wrapper", "ok", f"{chain}: {neighbours.chained(chain)}")
    replaced = configuration.effective_variable(cwd, configuration.REPLACED_VARIABLE)
    if replaced is not None:
        yield Check("replaced wrapper", "ok", f"{replaced}, which cargo cow uninstall puts back")
    around = neighbours.around_members(cwd)
    if around is not None:
        yield Check("workspace wrapper", "ok", around)


def _kept(setting: str | None) -> bool:
    return setting not in (None, "", "off", "0")


def _linker(cwd: Path) -> Iterator[Check]:
    """Whether the linker that was chosen links: by linking."""
    from cargo_cow import native
    from cargo_cow.setup import linker

    lost = "programs are linked as without cargo-cow"
    try:
        name = configuration.effective_variable(cwd, configuration.LINKER_VARIABLE)
        if name is None:
            return
        own = linker.own_choice(cwd)
        wrapper = configuration.effective_wrapper(cwd)
        known = next((known for known in linker.NAMES if known == name), None)
        if known is None:
            yield Check("linker", "warn", f"{name} is not known", lost, "cargo cow init --linker")
        elif wrapper is None or not configuration.is_ours(wrapper.program):
            yield Check("linker", "warn", f"{name} is chosen, but no shim calls it", lost,
                        "cargo cow init")  # fmt: skip
        elif own is not None:
            yield Check("linker", "ok", str(linker.in_force(cwd)))
        else:
            mark = linker.check(known, native.program(), cwd)
            yield Check("linker", "ok", f"{mark} links; what was linked before stays as it is")
    except CowError as error:
        yield Check("linker", "warn", str(error), lost, error.hint)


def _runs(program: str) -> bool:
    import shutil

    return shutil.which(program) is not None


def _filesystem(cwd: Path, workspace: Workspace | None) -> Iterator[Check]:
    from cargo_cow import filesystems
    from cargo_cow.filesystems import zfs

    directory = cwd if workspace is None else _existing(workspace.build_dir)
    try:
        able = filesystems.probe(directory)
    except CowError as error:
        yield Check("filesystem", "fail", str(error), "no target can be made here", error.hint)
        return
    if able.snapshots:
        yield Check("filesystem", "ok", f"{able.name}: targets are cloned by snapshot")
    elif able.reflink:
        yield Check("filesystem", "ok", f"{able.name}: targets are cloned file by file, by reflink")
    else:
        yield Check(
            "filesystem",
            "warn",
            f"{able.name} cannot share extents (tried in {directory})",
            "new targets are full copies: slower, and each uses all its size on disk",
            "cargo cow init, as root"
            if zfs.may_contain(directory) is not None
            else "put the checkouts on Btrfs, XFS (reflink=1), bcachefs or OpenZFS 2.2 and later",
        )
    if able.snapshots and able.subvolume_removal == "none":
        yield Check(
            "subvolumes",
            "warn",
            "this user may make subvolumes but not delete them",
            "removing a target leaves an empty subvolume",
            "mount -o remount,user_subvol_rm_allowed <the filesystem>, as root",
        )
    if not able.exchange and able.subvolume_removal != "dataset":
        yield Check(
            "exchange",
            "warn",
            f"{able.name} cannot exchange two names at once",
            "a target that is there is not replaced by a nearer one, nor converted",
            "use a filesystem with renameat2(RENAME_EXCHANGE)",
        )
    if workspace is not None:
        yield from _snapshot_ready(workspace, able)


def _snapshot_ready(workspace: Workspace, able: Capabilities) -> Iterator[Check]:
    from cargo_cow import filesystems

    target = workspace.build_dir
    if not able.snapshots or not target.is_dir():
        return
    if filesystems.can_snapshot(target):
        kind = "dataset" if able.subvolume_removal == "dataset" else "subvolume"
        yield Check("snapshot-ready", "ok", f"{target} is a {kind}")
    else:
        yield Check(
            "snapshot-ready",
            "warn",
            f"{target} is an ordinary directory",
            "it is cloned file by file instead of by snapshot",
            "cargo cow init",
        )


def _existing(path: Path) -> Path:
    while not path.is_dir():
        path = path.parent
    return path


def _target(workspace: Workspace) -> Iterator[Check]:
    from cargo_cow import filesystems
    from cargo_cow.cargo.target import Target

    target = workspace.build_dir
    quoted = shlex.quote(os.fspath(target))
    if target.is_symlink():
        yield Check(
            "target",
            "warn",
            f"{target} is a symlink to {target.resolve()}",
            "it is neither replaced nor converted",
            "set build.target-dir to the place itself, or remove the symlink",
        )
    elif not target.is_dir():
        yield Check("target", "ok", f"{target} is not there yet")
        return
    elif not os.access(target, os.W_OK):
        yield Check("target", "fail", f"{target} is not writable", "Cargo cannot build here",
                    f"chown -R $USER {quoted}")  # fmt: skip
    else:
        yield Check("target", "ok", os.fspath(target))
    found = Target(os.fspath(target))
    unknown = list(found.unknown)
    for unit in found.units:
        try:
            unit.dep_info()
        except UnknownFormat:
            unknown.append(unit.directory)
    layouts = sorted({profile.layout for profile in found.profiles})
    if unknown:
        yield Check(
            "formats",
            "warn",
            f"{len(unknown)} of {len(found.units) + len(found.unknown)} units are of a form "
            f"that is not known here, such as {unknown[0]}",
            "they are left alone and rebuilt where they are cloned",
            "update cargo-cow; if there is no newer one, report the version of Cargo",
        )
    elif found.units:
        yield Check("formats", "ok", f"{len(found.units)} units, layout {' and '.join(layouts)}")
    if not (target / "CACHEDIR.TAG").is_file():
        yield Check(
            "CACHEDIR.TAG",
            "warn",
            f"{target} has none",
            "backup programs copy the target, and git lists it where it is not ignored",
            f"echo '{_TAG}' > {quoted}/CACHEDIR.TAG",
        )
    stale = filesystems.stale_temporaries(target.parent, target.name)
    if stale:
        names = " ".join(shlex.quote(os.fspath(path)) for path in stale)
        yield Check(
            "temporaries",
            "warn",
            f"{len(stale)} left by a killed run",
            "disk space",
            f"rm -rf {names}",
        )


def _siblings(workspace: Workspace) -> Iterator[Check]:
    from cargo_cow.setup.switching import siblings

    try:
        found = siblings(workspace)
    except CowError as error:
        yield Check("checkouts", "warn", str(error), "no donor is found", error.hint)
        return
    if not found:
        yield Check(
            "checkouts",
            "warn",
            f"{workspace.root} is not in a git checkout",
            "a new checkout of this project finds no donor",
            "git init, or pass --from to cargo cow prepare",
        )
        return
    others = [other for _, other in found if other.root != workspace.root]
    same = [other for other in others if other.build_dir == workspace.build_dir]
    if same:
        yield Check(
            "checkouts",
            "warn",
            f"{len(same) + 1} checkouts build in one target, {workspace.build_dir}",
            "each build there undoes the other's",
            "unset CARGO_TARGET_DIR and build.target-dir: a target of its own costs nothing now",
        )
        return
    apart = [
        other.root
        for other in others
        if not _shares(_existing(workspace.build_dir), _existing(other.build_dir))
    ]
    if apart:
        yield Check(
            "checkouts",
            "warn",
            f"{len(found)}, but no extents can be shared with {apart[0]}"
            + (f" and {len(apart) - 1} more" if len(apart) > 1 else ""),
            "a target cloned between them is a full copy",
            "git worktree move them onto one filesystem that can share",
        )
    else:
        yield Check(
            "checkouts",
            "ok",
            "1" if len(found) == 1 else f"{len(found)}, which can share extents",
        )


def _shares(one: Path, other: Path) -> bool:
    """Whether a file in one directory can be a reflink of one in the other: by trying.

    Not by st_dev: Btrfs subvolumes differ in it and share all the same.
    """
    try:
        with (
            tempfile.TemporaryFile(dir=one) as source,
            tempfile.TemporaryFile(dir=other) as copy,
        ):
            # Above Btrfs' inline limit, and on disk: what is inline is copied, not shared.
            source.write(os.urandom(65_536))
            source.flush()
            os.fsync(source.fileno())
            fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True


def _identity(workspace: Workspace) -> Iterator[Check]:
    """Where rustc sees this checkout, and who runs it there."""
    from cargo_cow.prepare import identity
    from cargo_cow.prepare.place import place_of

    lost = "the first edit here compiles whole crates anew"
    try:
        decided = identity.plan(place_of(workspace))
        wrapper = configuration.effective_wrapper(workspace.root)
        chain = configuration.effective_chain(workspace.root)
        switch = configuration.effective_variable(workspace.root, identity.SWITCH)
    except CowError as error:
        yield Check("identity", "warn", str(error), lost, error.hint)
        return
    if not decided.in_use:
        yield Check("identity", "ok", f"rustc sees this checkout at {decided}")
    elif switch == "off":
        yield Check("identity", "warn", f"switched off by {identity.SWITCH}=off", lost,
                    f"unset {identity.SWITCH}")  # fmt: skip
    elif chain is not None or (
        wrapper is not None and wrapper.program and not configuration.is_ours(wrapper.program)
    ):
        other = chain or (wrapper.program if wrapper is not None else "")
        yield Check(
            "identity",
            "warn",
            f"the compiler is run by {other}, which may work elsewhere",
            lost,
            f"do without {other}; what it caches is cloned with the target anyhow",
        )
    elif wrapper is None or not wrapper.program:
        yield Check(
            "identity",
            "warn",
            f"{decided}, but plain cargo runs rustc without our shim",
            f"under plain cargo, {lost}; under `cargo cow build` it does not",
            "cargo cow init",
        )
    else:
        yield Check("identity", "ok", f"rustc sees this checkout at {decided}")


def _namespaces() -> Check:
    """Whether a view can be made, as identities and sandbox mode need it: by making one."""
    from cargo_cow.setup import namespaces

    lost = "the first edit in a new worktree compiles whole crates anew"
    try:
        refusal = namespaces.refusal()
    except CowError as error:
        return Check("namespaces", "warn", f"not tried: {error}", lost, error.hint)
    if refusal is None:
        return Check("namespaces", "ok", "this user may make mount namespaces")
    if _output(["bwrap", "--dev-bind", "/", "/", "true"], Path("/")) is None:
        lost += ", and sandbox mode is refused"
    return Check("namespaces", "warn", refusal.reason, lost, refusal.mend)


def _warehouse(cwd: Path, workspace: Workspace | None) -> Check:
    """Whether what is compiled is kept, and where."""
    from cargo_cow.errors import ConfigurationUnusable, WarehouseMissing, WarehouseUnusable
    from cargo_cow.warehouse import store

    try:
        setting = configuration.effective_variable(cwd, configuration.WAREHOUSE_VARIABLE)
    except ConfigurationUnusable:
        return Check("warehouse", "ok", "not known: the configuration cannot be read")
    if not _kept(setting):
        return Check("warehouse", "ok", "off (cargo cow init --warehouse switches it on)")
    try:
        root = store.locate(workspace, cwd)
    except WarehouseMissing as error:
        if setting == "on" and workspace is not None and _searched_in_vain(workspace):
            return Check(
                "warehouse",
                "warn",
                "no place shares data with the target",
                "nothing that is compiled is kept",
                "move target or cache to one Btrfs or XFS, or name a directory that may copy: "
                f"{configuration.WAREHOUSE_VARIABLE}=/path",
            )
        return Check("warehouse", "ok", str(error))
    except WarehouseUnusable as error:
        return Check("warehouse", "warn", str(error), "nothing is kept or given out", error.hint)
    if workspace is None or _shares(_existing(workspace.build_dir), root):
        return Check("warehouse", "ok", f"{root}, shares data with the target")
    return Check(
        "warehouse",
        "warn",
        f"{root} cannot share data with the target",
        "files are copied in and out: slower, and twice on the disk",
        f"{configuration.WAREHOUSE_VARIABLE}=on uses a store only where data can be shared",
    )


def _searched_in_vain(workspace: Workspace) -> bool:
    """Whether the shim looked for a store (``warehouse/store.rs``) and found none."""
    notes = workspace.build_dir.glob("*/.cargo-cow/warehouse")
    return any(note.read_text() == "-" for note in notes)
