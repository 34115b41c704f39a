"""``cargo cow snapshot create|list|show|activate|promote|prune|compact|delete``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cargo_cow.cli import render

if TYPE_CHECKING:
    from cargo_cow.snapshots import Damaged, Plan, Pruned, Sharing, State
    from cargo_cow.snapshots.compaction import Done as Compacted
    from cargo_cow.snapshots.compaction import Plan as Compaction


@click.group("snapshot")
def command() -> None:
    """Keep what is built, and have it back.

    A state is an immutable snapshot of this checkout's target, shared by all worktrees of the
    repository.  On Btrfs and XFS it costs no disk until the live target changes.

    \b
    Examples:
      cargo cow snapshot create green       keep what is built now
      cargo cow snapshot activate green     have it back, proven for what is checked out
      cargo cow snapshot list
      cargo cow snapshot prune              what would go, and what comes back; --yes does it
      cargo cow snapshot compact            let those that stay use less disk
    """


@command.command("create")
@click.argument("name", required=False)
@click.option("--copy", is_flag=True, help="Also where only a full copy is possible (ext4).")
@click.option("--no-wait", is_flag=True, help="Fail where a running build would be waited for.")
@render.manifest_option
@render.format_option
def create(
    *, name: str | None, copy: bool, no_wait: bool, manifest_path: str | None, style: str
) -> int:
    """Keep what is built now as a state called NAME.

    Without NAME the state is automatic: it goes by its id, and prune may take it.

    Where the target is a Btrfs subvolume (`cargo cow init` makes it one) this is one snapshot,
    whatever the size, also in the middle of a build: units in flight are simply not in it.
    Elsewhere the tree is cloned file by file under Cargo's build lock.

    \b
    Examples:
      cargo cow snapshot create                 before something daring
      cargo cow snapshot create release-1.2
    """
    from cargo_cow.cargo.workspace import load
    from cargo_cow.snapshots import taking

    workspace = load(Path.cwd(), render.cargo_arguments(manifest_path))
    taken = taking.create(workspace, name, allow_copy=copy, wait=not no_wait, say=render.say)
    _say_collected(taken.collected)
    for note in taken.notes:
        render.say(note)
    if style == "json":
        render.print_json({**_value(taken.state), "seconds": taken.seconds})
    else:
        click.echo(f"{taken.state.title}: {_how(taken.state)} in {taken.seconds:.3f} s")
    return 0


@command.command("list")
@click.option("--sizes", is_flag=True, help="Measure too: reading all extents takes time.")
@render.format_option
def listing(*, sizes: bool, style: str) -> int:
    """List this project's states, oldest first.

    With --sizes, `exclusive` is what comes back if that state alone is deleted: what neither
    another state nor a live target uses.  `~` marks a figure that the filesystem could only
    give roughly.

    \b
    Examples:
      cargo cow snapshot list
      cargo cow snapshot list --sizes --format json
    """
    from cargo_cow.cargo.workspace import load
    from cargo_cow.snapshots import pruning, store

    workspace = load(Path.cwd())
    project = store.project_of(workspace.root)
    build_dir = workspace.build_dir.resolve()
    entries = [entry for _, entry in store.everything(project, build_dir)]
    stores = store.stores(project, build_dir)
    for path in (path for place in stores for path in place.closed()):
        render.say(f"{path} is left over from another user, who alone can remove it")
    leftovers = [path for place in stores for path in place.leftovers()]
    if leftovers:
        render.say(
            f"{len(leftovers)} leftover(s) of interrupted commands; the next create, prune or "
            "delete removes them"
        )
    sharing = pruning.measure_all(entries, workspace) if sizes and entries else None
    if style == "json":
        render.print_json([_value(entry, sharing) for entry in entries])
        return 0
    import time

    now = time.time()
    render.table(
        ("state", "name", "branch", "commit", "age", "method", "exclusive", ""),
        [_row(entry, sharing, now) for entry in entries],
        right=(6,),
    )
    return 0


@command.command("show")
@click.argument("name")
@render.format_option
def show(*, name: str, style: str) -> int:
    """Show one state: where it comes from, whether it is whole, what it uses on disk.

    NAME is a name, an id, or the beginning of an id.  Everything is looked at: a state that
    somebody edited, made writable or moved is told (exit status 62).  `exclusive` is what comes
    back if it alone is deleted.
    """
    from cargo_cow import filesystems, snapshots
    from cargo_cow.cargo.workspace import load
    from cargo_cow.snapshots import pruning, store

    found = snapshots.find_state(name)
    logical = filesystems.usage(found.target).logical_bytes
    workspace = load(Path.cwd())
    build_dir = workspace.build_dir.resolve()
    everything = store.everything(store.project_of(workspace.root), build_dir)
    sharing = pruning.measure_all([entry for _, entry in everything], workspace)
    if style == "json":
        render.print_json({**_value(found, sharing), "logical_bytes": logical})
        return 0
    import time

    clean = {True: "clean", False: "with changes", None: ""}[found.clean]
    render.fields(
        [
            ("state", found.id),
            ("name", "" if found.name is None else render.shown(found.name)),
            ("baseline", "yes" if found.baseline else ""),
            ("kept by", "activate" if found.origin == "kept" else ""),
            ("branch", "" if found.branch is None else render.shown(found.branch)),
            ("commit", " ".join(filter(None, (found.commit, clean)))),
            ("tree", found.tree or ""),
            ("checkout", render.shown(found.checkout)),
            ("compiler", (found.compiler or "").partition("\n")[0]),
            ("profiles", ", ".join(found.profiles)),
            ("parent", found.parent or ""),
            ("taken", render.human_age(time.time() - found.created)),
            ("method", found.method),
            ("target", render.shown(found.target)),
            ("size", render.human_bytes(logical)),
            (
                "exclusive",
                ("" if sharing.exact else "~") + render.human_bytes(sharing.freed([found.id])),
            ),
        ]
    )
    return 0


@command.command("activate")
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Fail if a build runs in the live target.")
@render.manifest_option
@render.format_option
def activate(*, name: str, no_wait: bool, manifest_path: str | None, style: str) -> int:
    """Make the state NAME this checkout's live target.

    NAME is a name, an id, or the beginning of an id.  The state is cloned, every unit is compared
    with the files that are checked out here, and the clone takes the place of the live target in
    one step; a running build is waited for.  What was live is kept as an automatic state, if it
    holds anything that no state has.  The state itself does not change.

    \b
    Examples:
      cargo cow snapshot activate green
      cargo cow snapshot activate --no-wait 20260101
    """
    from cargo_cow import filesystems
    from cargo_cow.cargo.workspace import load

    workspace = load(Path.cwd(), render.cargo_arguments(manifest_path))
    # The rest of the program is loaded while the clock goes on.
    begun = filesystems.clock_ahead(workspace.build_dir.parent)
    from cargo_cow.snapshots import activation

    done = activation.activate(workspace, name, wait=not no_wait, say=render.say, begun=begun)
    for note in done.notes:
        render.say(note)
    if style == "json":
        render.print_json(
            {
                "state": _value(done.state),
                "method": done.method,
                "proven": done.proven,
                "kept": done.held,
                "dropped": done.dropped,
                "kept_state": None if done.kept is None else _value(done.kept),
                "seconds": done.seconds,
            }
        )
        return 0
    click.echo(
        f"{done.state.title} is live ({done.method}): {done.proven} units proven, "
        f"{done.held} kept, {done.dropped} dropped"
    )
    if done.kept is not None:
        click.echo(f"what was live is kept as {done.kept.id}")
    return 0


@command.command("promote")
@click.argument("name")
@render.format_option
def promote(*, name: str, style: str) -> int:
    """Make the state NAME the baseline of the project.

    A project has one baseline; prune never takes it.  The one before becomes an ordinary state.

    \b
    Examples:
      cargo cow snapshot promote green
    """
    from cargo_cow import snapshots

    chosen, before = snapshots.promote_snapshot(name)
    if style == "json":
        render.print_json(
            {"state": _value(chosen), "before": None if before is None else _value(before)}
        )
    else:
        was = "" if before is None else f" (it was {before.title})"
        click.echo(f"{chosen.title} is the baseline{was}")
    return 0


@command.command("prune")
@click.option("--keep-last", type=click.IntRange(0), metavar="N", help="Keep the newest N.")
@click.option("--keep-newer-than", metavar="AGE", help="Keep those younger: 12h, 14d, 2w.")
@click.option("--named", is_flag=True, help="States with a name may go as well.")
@click.option(
    "--deleted/--no-deleted",
    default=None,
    help="Drop states whose branch is deleted (the default).",
)
@click.option("--merged/--no-merged", default=None, help="Drop states whose branch is merged.")
@click.option("--merged-into", metavar="BRANCH", help="Merged into this one (the main checkout's).")
@click.option(
    "--vanished/--no-vanished", default=None, help="Drop states taken in a worktree that is gone."
)
@click.option("--budget", metavar="SIZE", help="Then drop the oldest until SIZE is enough: 20GB.")
@click.option(
    "--min-free",
    metavar="SIZE",
    help="And until so much of the filesystem would be free: 10GB, 5% (the default), 0.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would go (the default).")
@click.option("-y", "--yes", is_flag=True, help="Do it.")
@click.option("--no-sizes", is_flag=True, help="Do not measure: reading all extents takes time.")
@render.format_option
def prune(
    *,
    keep_last: int | None,
    keep_newer_than: str | None,
    named: bool,
    deleted: bool | None,
    merged: bool | None,
    merged_into: str | None,
    vanished: bool | None,
    budget: str | None,
    min_free: str | None,
    dry_run: bool,
    yes: bool,
    no_sizes: bool,
    style: str,
) -> int:
    """Say which states would go by a policy, why, and what comes back; --yes removes them.

    Automatic states go when they are neither among the last N (10, if no other rule is given) nor
    young enough, when their branch is deleted, or, the oldest first, while less than 5% of the
    filesystem would be free.  States with a name stay, unless --named; the baseline always stays.
    What comes back is the bytes of all that go together: what two states share with each other
    alone counts too.

    What is not said here is taken from git's configuration, for one repository or for all:
    cargo-cow.keepLast, keepNewerThan, deleted, merged, vanished, budget, minFree.  By the same
    settings automatic states are pruned after builds, unless cargo-cow.prune is false.

    \b
    Examples:
      cargo cow snapshot prune                              the plan, by the usual rules
      cargo cow snapshot prune --keep-last 3 --merged --yes
      cargo cow snapshot prune --keep-newer-than 14d --budget 20GB
      git config --global cargo-cow.minFree 20GB
    """
    from cargo_cow.cargo.workspace import load
    from cargo_cow.snapshots import housekeeping, pruning
    from cargo_cow.snapshots import policy as policy_words

    usual = housekeeping.settings(Path.cwd()).policy
    age = None if keep_newer_than is None else policy_words.parse_age(keep_newer_than)
    size = None if budget is None else policy_words.parse_size(budget)
    # One rule on the command line stands for itself.
    given = keep_last is not None or age is not None or size is not None
    policy = usual._replace(
        keep_last=keep_last if given else usual.keep_last,
        keep_newer_than=age if given else usual.keep_newer_than,
        keep_named=not named,
        drop_deleted=usual.drop_deleted if deleted is None else deleted,
        drop_merged=merged_into is not None or (usual.drop_merged if merged is None else merged),
        merged_into=merged_into,
        drop_vanished=usual.drop_vanished if vanished is None else vanished,
        budget=size if given else usual.budget,
        min_free=usual.min_free if min_free is None else policy_words.parse_mark(min_free),
    )
    workspace = load(Path.cwd())
    plan = pruning.plan(workspace, policy, sizes=not no_sizes)
    done = None
    if yes and not dry_run:
        done = pruning.prune(workspace, plan, say=render.say)
        _say_collected(done.collected)
        for identity, why in done.refused:
            render.say(f"{identity} stays: {why}")
    if style == "json":
        render.print_json(_plan_value(plan, done))
        return 0
    render.table(
        ("state", "name", "", "why"),
        [
            (
                decision.entry.id,
                render.shown(getattr(decision.entry, "name", None) or ""),
                "goes" if decision.goes else "stays",
                render.shown(decision.reason),
            )
            for decision in plan.decisions
        ],
    )
    count = len(plan.going) if done is None else len(done.removed)
    freed = ""
    if plan.freed_bytes is not None:
        freed = f", {'' if plan.exact else 'about '}{render.human_bytes(plan.freed_bytes)}"
        freed += " come back"
    if done is not None:
        click.echo(f"removed {count}{freed}")
    else:
        click.echo(f"{count} would go{freed}" + ("; --yes does it" if count else ""))
    return 0


@command.command("compact")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--idle", is_flag=True, help="Stand back for everybody, wait for builds, 15 minutes at most."
)
@render.manifest_option
@render.format_option
def compact(*, dry_run: bool, idle: bool, manifest_path: str | None, style: str) -> int:
    """Let the states use less disk, without changing them.

    What states hold and no live target uses any more is shared with an older state that holds the
    same bytes in the same file, and, on Btrfs, compressed.  The kernel does it, and compares first:
    contents, times and modes stay, and states can be activated meanwhile.

    After builds and branch switches this happens by itself, with --idle, unless
    `git config cargo-cow.compact false`.

    \b
    Examples:
      cargo cow snapshot compact --dry-run      what uses how much, and about how much it would
      cargo cow snapshot compact
    """
    import os

    from cargo_cow.cargo.workspace import load
    from cargo_cow.snapshots import compaction

    workspace = load(Path.cwd(), render.cargo_arguments(manifest_path))
    if idle:
        from cargo_cow.filesystems import syscalls

        os.chdir("/")  # nobody is kept from unmounting what we started in
        syscalls.stand_back()
    plans = compaction.plans(workspace, again=not idle)
    done: list[Compacted | None] = []
    for plan in plans:
        if dry_run or (plan.reason and not (plan.unsealed or plan.poor)):
            done.append(None)
        elif idle:
            done.append(compaction.compact_aside(plan, workspace))
        else:
            done.append(compaction.compact(plan))
    if style == "json":
        render.print_json(
            [_compaction_value(plan, did) for plan, did in zip(plans, done, strict=True)]
        )
        return 0
    for plan, did in zip(plans, done, strict=True):
        _show_compaction(plan, did)
    if not plans:
        click.echo("there are no states")
    return 0


@command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-f", "--force", is_flag=True, help="The baseline, too.")
@render.format_option
def delete(*, names: tuple[str, ...], force: bool, style: str) -> int:
    """Delete states by name, id, or the beginning of an id; also those that are not usable.

    No live target is touched: clones share data with a state, but never need it.

    \b
    Examples:
      cargo cow snapshot delete green
      cargo cow snapshot delete 20260101-1200 20260102-0900
    """
    from cargo_cow import snapshots

    done = snapshots.delete_snapshots(list(names), force=force, say=render.say)
    _say_collected(done.collected)
    for identity, why in done.refused:
        render.say(f"error: {identity} is not deleted: {why}")
    if style == "json":
        render.print_json(_pruned_value(done))
    else:
        for identity in done.removed:
            click.echo(f"deleted {identity}")
    return 1 if done.refused else 0


# -- how it is shown


def _say_collected(paths: tuple[Path, ...]) -> None:
    if paths:
        render.say(f"removed {len(paths)} leftover(s) of interrupted commands")


def _how(state: State) -> str:
    text = {"snapshot": "snapshot", "reflink": "cloned", "copy": "copied"}[state.method]
    size = "" if state.logical_bytes is None else f", {render.human_bytes(state.logical_bytes)}"
    return text + size


def _row(entry: State | Damaged, sharing: Sharing | None, now: float) -> tuple[str, ...]:
    exclusive = ""
    if sharing is not None:
        exclusive = ("" if sharing.exact else "~") + render.human_bytes(sharing.freed([entry.id]))
    reason = getattr(entry, "reason", None)
    if reason is not None:
        return (entry.id, "", "", "", "", "", exclusive, f"not usable: {render.shown(reason)}")
    state: Any = entry
    marks = [
        mark
        for mark, holds in (
            ("baseline", state.baseline),
            ("kept before a change", state.origin == "kept"),
            ("with changes", state.clean is False),
        )
        if holds
    ]
    return (
        state.id,
        render.shown(state.name or ""),
        render.shown(state.branch or ""),
        (state.commit or "")[:9],
        render.human_age(now - state.created),
        state.method,
        exclusive,
        ", ".join(marks),
    )


def _value(entry: State | Damaged, sharing: Sharing | None = None) -> dict[str, Any]:
    from cargo_cow.snapshots.state import Damaged

    sizes = (
        {}
        if sharing is None
        else {"exclusive_bytes": sharing.freed([entry.id]), "exact": sharing.exact}
    )
    if isinstance(entry, Damaged):
        return {
            "id": entry.id,
            **render.json_path("path", entry.path),
            "usable": False,
            "reason": entry.reason,
            **sizes,
        }
    return {
        "id": entry.id,
        "usable": True,
        "name": entry.name,
        "baseline": entry.baseline,
        "origin": entry.origin,
        "project": entry.project,
        **render.json_path("path", entry.path),
        **render.json_path("target", entry.target),
        **render.json_path("checkout", entry.checkout),
        **render.json_path("workspace", entry.workspace),
        "branch": entry.branch,
        "commit": entry.commit,
        "tree": entry.tree,
        "clean": entry.clean,
        "compiler": entry.compiler,
        "profiles": list(entry.profiles),
        "created": entry.created,
        "method": entry.method,
        "parent": entry.parent,
        "logical_bytes": entry.logical_bytes,
        **sizes,
    }


def _plan_value(plan: Plan, done: Pruned | None) -> dict[str, Any]:
    return {
        "states": [
            {
                **_value(decision.entry),
                "goes": decision.goes,
                "why": decision.reason,
            }
            for decision in plan.decisions
        ],
        "freed_bytes": plan.freed_bytes,
        "kept_bytes": plan.kept_bytes,
        "exact": plan.exact,
        "done": None if done is None else _pruned_value(done),
    }


def _compaction_value(plan: Compaction, done: Compacted | None) -> dict[str, Any]:
    return {
        **render.json_path("store", plan.store.directory),
        "compresses": plan.compresses,
        "reason": plan.reason or None,
        "bytes": plan.bytes,
        "expected_bytes": plan.expected_bytes,
        "pieces": [
            {
                "users": [
                    {"state": use.state, **render.json_path("name", use.name)}
                    for use in piece.users
                ],
                "bytes": piece.bytes,
                "expected_bytes": piece.expected_bytes,
            }
            for piece in plan.pieces
        ],
        "done": None
        if done is None
        else {**done._asdict(), "states": list(done.states), "stopped": done.stopped or None},
    }


def _show_compaction(plan: Compaction, done: Compacted | None) -> None:
    where = render.shown(plan.store.directory)
    if plan.reason and done is None:
        click.echo(f"{where}: {plan.reason}")
        return
    if done is None:
        by_state: dict[str, list[int]] = {}
        for piece in plan.pieces:
            row = by_state.setdefault(piece.users[0].state, [0, 0, 0])
            for index, count in enumerate((1, piece.bytes, piece.expected_bytes)):
                row[index] += count
        render.table(
            ("state", "files", "uses", "would use"),
            [
                (identity, str(files), render.human_bytes(used), f"~{render.human_bytes(then)}")
                for identity, (files, used, then) in by_state.items()
            ],
            right=(1, 2, 3),
        )
        click.echo(
            f"{render.human_bytes(plan.bytes)} would become about "
            f"{render.human_bytes(plan.expected_bytes)}"
        )
        return
    click.echo(
        f"{len(done.states)} state(s): {render.human_bytes(done.shared_bytes)} shared with older "
        f"ones, {render.human_bytes(done.rewritten_bytes)} compressed"
    )
    if done.stopped:
        render.say(f"stopped early: {done.stopped}")


def _pruned_value(done: Pruned) -> dict[str, Any]:
    return {
        "removed": list(done.removed),
        "refused": [{"id": identity, "reason": why} for identity, why in done.refused],
        "collected": [render.json_path("path", path) for path in done.collected],
    }
