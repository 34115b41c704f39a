"""How one checkout stands: its target, where that came from, and what Cargo would rebuild."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from cargo_cow import git
from cargo_cow.errors import CowError
from cargo_cow.worktrees import Prepared, last_prepare

if TYPE_CHECKING:
    from pathlib import Path

    from cargo_cow.cargo.workspace import Workspace
    from cargo_cow.filesystems import Usage
    from cargo_cow.prepare.identity import Identity


class Unfresh(NamedTuple):
    """A unit that would be built; ``code`` is stable, ``reason`` is for people."""

    unit: str
    code: str | None
    reason: str


class Status(NamedTuple):
    """One workspace in one checkout.

    ``method`` is how a target would be cloned here.  ``rebuild`` counts only units that are in
    the target (of the ``donor`` that would be cloned, where there is no target yet); what was
    never built is not known.  ``identity`` is where rustc sees the checkout.  None where it could
    not be found out: ``trouble`` says why.
    """

    workspace: Path
    checkout: git.Checkout | None
    build_dir: Path
    target_dir: Path
    exists: bool
    layouts: tuple[str, ...]
    units: int
    records: int
    filesystem: str | None
    method: Literal["snapshot", "reflink", "copy"] | None
    prepared: Prepared | None
    donor: Path | None
    rebuild: tuple[Unfresh, ...] | None
    usage: Usage | None
    trouble: tuple[str, ...]
    identity: Identity | None


def status(workspace: Workspace, *, sizes: bool = True) -> Status:
    """Look, prove, measure; nothing in the target is stamped or dropped."""
    import os

    from cargo_cow import filesystems
    from cargo_cow.cargo.target import Target
    from cargo_cow.prepare import record

    trouble: list[str] = []
    build_dir = workspace.build_dir
    exists = build_dir.is_dir()
    target = Target(os.fspath(build_dir))
    filesystem: str | None = None
    method: Literal["snapshot", "reflink", "copy"] | None = None
    place = build_dir
    while not place.is_dir():
        place = place.parent
    try:
        able = filesystems.probe(place)
    except CowError as error:
        trouble.append(str(error))
    else:
        filesystem = able.name
        method = "snapshot" if able.snapshots else "reflink" if able.reflink else "copy"
    usage = None
    if sizes and exists:
        try:
            usage = filesystems.usage(build_dir)
        except (CowError, OSError) as error:
            trouble.append(f"cannot measure {build_dir}: {error}")
    donor, rebuild, decided = _judged(workspace, trouble)
    return Status(
        workspace=workspace.root,
        checkout=git.checkout_of(workspace.root),
        build_dir=build_dir,
        target_dir=workspace.target_dir,
        exists=exists,
        layouts=tuple(sorted({profile.layout for profile in target.profiles})),
        units=len(target.units),
        records=sum(record.load(unit) is not None for unit in target.units),
        filesystem=filesystem,
        method=method,
        prepared=last_prepare(build_dir),
        donor=donor,
        rebuild=rebuild,
        usage=usage,
        trouble=tuple(trouble),
        identity=decided,
    )


def _judged(
    workspace: Workspace, trouble: list[str]
) -> tuple[Path | None, tuple[Unfresh, ...] | None, Identity | None]:
    """(the donor that would be cloned, what Cargo would rebuild after a prepare, the identity)."""
    from cargo_cow import prepare

    try:
        report = prepare.prepare(workspace, dry_run=True)
    except CowError as error:
        trouble.append(str(error))
        return None, None, None
    except OSError as error:
        trouble.append(f"cannot prove the target: {error}")
        return None, None, None
    if report.plan is None:
        return report.donor, None, report.identity
    found = [
        Unfresh(
            verdict.key,
            None if verdict.reason is None else verdict.reason.code,
            "" if verdict.reason is None else str(verdict.reason),
        )
        for verdict in report.plan.verdicts
        if verdict.status in {"unproven", "dirty"}
    ]
    if report.donor is None:
        kept = {verdict.key for verdict in report.plan.verdicts if verdict.status == "kept"}
        found += _newer(workspace, kept, trouble)
    return report.donor, tuple(found), report.identity


def _newer(workspace: Workspace, kept: set[str], trouble: list[str]) -> list[Unfresh]:
    """Units without a record (plain Cargo built them) whose sources are newer by mtime.

    A proof leaves them to Cargo's own judgement, which is not asked here: Cargo would build.
    """
    from cargo_cow.cargo.target import Target
    from cargo_cow.prepare.audit import audit
    from cargo_cow.prepare.place import place_of

    place = place_of(workspace)
    found: list[Unfresh] = []
    wrong = 0
    for entry in audit(Target(place.build_dir), place):
        if entry.key in kept and entry.finding == "dirty":
            found.append(Unfresh(entry.key, "newer", entry.evidence))
        wrong += entry.finding == "false-fresh"
    if wrong:
        trouble.append(f"Cargo would call {wrong} unit(s) fresh that are not: cargo cow audit")
    return found
