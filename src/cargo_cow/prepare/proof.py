"""The proof: which units of a target are what a build here would give.

Deciding touches nothing: `prove` returns a plan of plain data, which `stamp.apply` carries out and
``--dry-run`` and ``explain`` print.

Two situations differ.  *In place* the target was built here, Cargo's own mtime test is the judge,
and a proof only turns "newer" into "unchanged" where the contents say so.  In a *clone* no mtime
means anything: what is not proven is dropped explicitly, whatever Cargo would think of its times.
A unit that was *grafted* into a target in place is judged as one in a clone.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from typing import Literal, NamedTuple

from cargo_cow.cargo import depinfo
from cargo_cow.cargo.script import relocate_out_dirs, relocate_rerun_lines
from cargo_cow.cargo.target import Target, Unit, incremental_of, mtime, package_mtime
from cargo_cow.errors import UnknownFormat
from cargo_cow.prepare import record
from cargo_cow.prepare.capture import (
    Ledger,
    mentions,
    needs_no_record,
    newest_below,
    read_ledger,
)
from cargo_cow.prepare.contents import MISSING, Contents, digest_of
from cargo_cow.prepare.declared import UNSET
from cargo_cow.prepare.lints import is_clippys, other_configuration
from cargo_cow.prepare.macros import INCBIN
from cargo_cow.prepare.packages import Packages, first_difference
from cargo_cow.prepare.place import Place, asked_above, below, is_made_at, variables
from cargo_cow.prepare.record import ABSOLUTE, CHECKOUT, PACKAGE, PRIMARY, Hidden, Record

Status = Literal["proven", "kept", "unproven", "dirty", "unknown"]


class Reason(NamedTuple):
    """Why a unit is not proven: a stable code, and what it is about."""

    code: str
    subject: str = ""

    def __str__(self) -> str:
        return _TEXTS[self.code].format(self.subject)


_TEXTS = {
    "dirty": "its fingerprint is empty: the build that should have made it did not finish",
    "not-recorded": "there is no record of what it was made from{}",
    "elsewhere": "it was made in {}, and there is no record of what it was made from",
    "newer": "{} is newer, and there is no record to compare it with",
    "content": "{} has other content",
    "missing": "{} is gone",
    "declared-missing": "its script declares {}, which does not exist: Cargo always reruns it",
    "environment": "it was compiled with {}, which differs here",
    "out-dir": "its outputs hold OUT_DIR of the place it was compiled at",
    "written": "its script writes {}, which is not what it was",
    "written-unknown": "its script may have written files that are not here: nothing built after "
    "it is recorded",
    "script-path": "the script's output or generated files hold a path of the place it ran at",
    "git": "its script asks git, which told of {}",
    "macro-path": "it expands {}, and its outputs hold a path of the place it was compiled at",
    "package": "it depends on {}, and the files of its package are not those of its build",
    "hidden-input": "its macros read {}, which is not what it was",
    "hidden-variable": "its macros read the variable {}, which is not what it was",
    "lints": "clippy goes by {} here, or does not any more",
    "input": "{}, which its manifest declares, is not what it was",
    "input-unknown": "its manifest declares {}, and nobody noted what that was",
    "hidden": "it depends on {}, and the files of its package were changed after its build",
    "dependency": "it was built against another {}",
    "dependency-unproven": "{} is not proven",
    "format": "{}",
}

# What positively differs: dropped in place as well, where Cargo would not see it.
_HARD = frozenset(
    {
        "content",
        "elsewhere",
        "environment",
        "out-dir",
        "script-path",
        "macro-path",
        "hidden-input",
        "hidden-variable",
        "input",
        "input-unknown",
    }
)


# What may be a script's work: an input that is not as it was.
_WRITTEN = frozenset({"missing", "content", "hidden-input"})

HOPELESS = frozenset({"declared-missing", "written"})
"""Cargo reruns such a script on every build, and rebuilds what depends on it: no unit helps."""

# What Cargo never sees in place; a first build elsewhere would.
_BLIND = frozenset({"package", "hidden", "git", "written"})


class Verdict(NamedTuple):
    """What is known about one unit; ``reason`` is None for proven and kept ones."""

    key: str
    status: Status
    reason: Reason | None = None


class Rewrite(NamedTuple):
    """A file of the target that names the donor's checkout and must name this one."""

    path: str
    data: bytes


class Drop(NamedTuple):
    """A unit that Cargo must rebuild.

    An empty fingerprint alone makes Cargo rebuild the unit but call its dependents Fresh in the
    same run, because they look at its files only (``check_filesystem``: ``fs_status`` of the
    dependency).  So the reference file goes as well: then the unit is stale for them, too.
    """

    hash_file: str
    reference_file: str


class SourceTime(NamedTuple):
    """A source file whose recorded mtime (ns) is put back, because Cargo hashed it (law 4)."""

    path: str
    mtime: int
    digest: str


class Plan(NamedTuple):
    """What to do to a target, as plain data.

    ``settled`` are records to write: (path, unit key, record).  ``stamp`` are files to give the
    time T0 (outputs before their reference file, dependencies before dependents).
    ``forget`` are directories with incremental state to remove.
    """

    verdicts: tuple[Verdict, ...]
    drop: tuple[Drop, ...]
    stamp: tuple[str, ...]
    rewrites: tuple[Rewrite, ...]
    source_times: tuple[SourceTime, ...]
    settled: tuple[tuple[str, str, Record], ...]
    forget: tuple[str, ...] = ()

    @property
    def changes_nothing(self) -> bool:
        return not (
            self.drop
            or self.stamp
            or self.rewrites
            or self.source_times
            or self.settled
            or self.forget
        )

    def count(self, status: Status) -> int:
        return sum(verdict.status == status for verdict in self.verdicts)


class Proof:
    """One comparison of a target with a place.  Records are read when first asked for."""

    def __init__(
        self,
        target: Target,
        place: Place,
        contents: Contents,
        packages: Packages,
        cloned: bool,
        records: dict[str, Record],
        grafted: frozenset[str] = frozenset(),
    ) -> None:
        self.target = target
        self.place = place
        self.contents = contents
        self.packages = packages
        self.cloned = cloned
        self.grafted = grafted
        self.units = {unit.key: unit for unit in target.units}
        self._given = records
        self._records: dict[str, Record | None] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.order: list[str] = []
        self._mtimes: dict[str, int | None] = {}
        self._overruled: dict[str, bool] = {}
        self._ledger: Ledger | None = None
        self._scripted = {unit.package for unit in target.units if unit.is_script_run}

    @functools.cached_property
    def variables(self) -> Mapping[str, str]:
        """What compilers would find set here."""
        return variables(self.place)

    def record(self, key: str) -> Record | None:
        """What the unit of that key was made from; None if there is no such unit, or no record."""
        if key not in self._records:
            known = None
            unit = self.units.get(key)
            if unit is not None:
                known = record.load(unit)
                given = self._given.get(key)
                if known is None and given is not None and given.invoked == unit.invoked():
                    known = given
            self._records[key] = known
        return self._records[key]

    # -- paths

    def package_root(self, made: Record) -> str:
        if made.package_root.startswith("/"):
            inside = below(made.package_root, made.checkout)
            return made.package_root if inside is None else _join(self.place.checkout, inside)
        return _join(self.place.workspace, made.package_root)

    def named_package_root(self, made: Record) -> str:
        """The package root in the checkout that script output names."""
        root = _join(made.workspace, made.package_root)
        if made.package_root.startswith("/"):
            root = made.package_root
        inside = below(root, made.checkout)
        return root if inside is None else _join(made.named_checkout, inside)

    def here(self, made: Record, base: int, path: str) -> str:
        if base == PACKAGE:
            return _join(self.package_root(made), path)
        if base == CHECKOUT:
            return _join(self.place.checkout, path)
        assert base == ABSOLUTE
        return path

    def is_settled(self, made: Record) -> bool:
        """Whether the unit was compiled here, or proven here once before."""
        return (made.named_checkout, made.named_build_dir) == (
            self.place.checkout,
            self.place.build_dir,
        )

    def judged_by_cargo(self, made: Record) -> bool:
        """Whether Cargo compiled the unit here: what that did not see Cargo may overlook.

        A unit that came with a clone was never compiled here: plain Cargo's first compile would
        see everything, however many builds of other units there were.
        """
        return not self.cloned and made.settled_checkout is None and self.is_settled(made)

    def moved(self, made: Record) -> bool:
        """Whether the unit was compiled elsewhere."""
        place = self.place
        return (made.checkout, made.workspace, made.build_dir) != (
            place.checkout,
            place.workspace,
            place.build_dir,
        )

    def final(self, path: str) -> str:
        """Where a file of the target will stand once the target is published."""
        inside = below(path, self.target.build_dir)
        return path if inside is None else _join(self.place.build_dir, inside)

    # -- one unit

    def verdict(self, unit: Unit) -> Verdict:
        known = self.verdicts.get(unit.key)
        if known is None:
            self.verdicts[unit.key] = Verdict(unit.key, "unknown", Reason("not-recorded"))
            known = self.verdicts[unit.key] = self.decide(unit)
            self.order.append(unit.key)
        return known

    def decide(self, unit: Unit) -> Verdict:
        if unit.is_documentation:
            return Verdict(unit.key, "unknown", None)
        if unit.fingerprint_hash() is None:
            return Verdict(unit.key, "dirty", Reason("dirty"))
        made = self.record(unit.key)
        if made is None:
            return self.unrecorded(unit)
        try:
            reason = self.reason(unit, made)
        except UnknownFormat as error:
            reason = Reason("format", str(error))
        if reason is not None:
            return Verdict(unit.key, "unproven", reason)
        return Verdict(unit.key, "proven")

    def unrecorded(self, unit: Unit) -> Verdict:
        """A unit without record: third-party ones need none, local ones are not proven."""
        unknown = self.unrecordable(unit)
        if self.cloned or unit.key in self.grafted:
            return Verdict(unit.key, "kept" if unknown is None else "unproven", unknown)
        if unknown is not None and not is_made_at(unit, self.place):
            return Verdict(unit.key, "unproven", Reason("elsewhere", unit.made_in() or ""))
        declared = self.unsure_input(unit)
        if declared is not None:
            return Verdict(unit.key, "unproven", Reason("input-unknown", declared))
        newer = self.newer_input(unit)
        if newer is None:
            return Verdict(unit.key, "kept")
        return Verdict(unit.key, "unproven", Reason("newer", newer))

    def unrecordable(self, unit: Unit) -> Reason | None:
        """Why a unit that comes from elsewhere cannot do without a record; None if it can."""
        registry = self.place.registry
        if self._ledger is None:
            self._ledger = read_ledger(self.target.build_dir)
        if self._ledger.spares(unit, registry):
            return None
        try:
            if needs_no_record(unit, registry, scripted=unit.package in self._scripted):
                return None
        except UnknownFormat as error:
            return Reason("format", str(error))
        return Reason("not-recorded")

    def newer_input(self, unit: Unit) -> str | None:
        """An input that Cargo would call newer than a unit without record; None if there is none.

        Only where the package can be told by its name: this informs people, Cargo decides.
        """
        roots = self.place.members.get(unit.package, ())
        reference = mtime(unit.reference_file)
        if len(roots) != 1 or reference is None or unit.is_script_run:
            return None
        try:
            info = unit.dep_info()
        except UnknownFormat:
            return None
        for file in info.files if info is not None else ():
            if file.base == depinfo.PACKAGE:
                path = _join(roots[0], file.path)
                newest = self.stat(path)
                if newest is None or newest > reference:
                    return path
        return None

    def unsure_input(self, unit: Unit) -> str | None:
        """What the manifest declares, and may have changed since a unit without record was made;
        None if there is nothing, or the package cannot be told by its name."""
        roots = self.place.members.get(unit.package, ())
        started = unit.invoked()
        if len(roots) != 1 or started is None:
            return None
        declarations = self.packages.declarations
        for one in declarations.of(roots[0]):
            if one.variable is None:
                if declarations.changed(one) >= started:
                    return one.path
                continue
            seen = record.load_observation(unit)
            values = {} if seen is None else dict(seen.declared)
            now = declarations.digest(one, self.variables)
            if one.variable not in values or (values[one.variable] or UNSET) != now:
                return one.name
        return None

    def reason(self, unit: Unit, made: Record) -> Reason | None:
        """The first reason why the unit is not proven here; None if it is."""
        for key, invoked in made.dependencies:
            dependency = self.units.get(key)
            if dependency is None or dependency.invoked() != invoked:
                return Reason("dependency", key)
        return self.own_reason(unit, made) or self.dependency_reason(made)

    def own_reason(self, unit: Unit, made: Record) -> Reason | None:
        """As `reason`, but whatever the units are that it depends on."""
        for wanted in made.inputs:
            path = self.here(made, wanted.base, wanted.path)
            if wanted.base == ABSOLUTE and self.moved(made) and _in_git_directory(path):
                return Reason("git", f"{path}, which is of another checkout")
            digest = self.contents.file(path)
            if wanted.digest == MISSING:
                return Reason("declared-missing", path)
            if digest == MISSING:
                return Reason("missing", path)
            if digest != wanted.digest:
                return Reason("content", path)
        reason = self.timed_reason(made)
        if reason is not None:
            return reason
        # In place as well: this is more than Cargo sees.
        reason = self.hidden_reason(made)
        if reason is not None:
            return reason
        reason = self.declared_reason(made)
        if reason is not None:
            return reason
        if self.judged_by_cargo(made) and not self.is_overruled(unit.key):
            # Cargo calls it Fresh, and the contents say nothing else: no more is asked in place.
            return None
        reason = (
            self.added_reason(made)
            or self.environment_reason(unit, made)
            or self.lint_reason(unit, made)
        )
        if reason is not None:
            return reason
        if made.asks_git:
            reason = self.git_reason(made)
            if reason is not None:
                return reason
        return self.package_reason(made) if made.macros and made.hidden is None else None

    def dependency_reason(self, made: Record) -> Reason | None:
        for key, _ in made.dependencies:
            if self.verdict(self.units[key]).status not in ("proven", "kept"):
                return Reason("dependency-unproven", key)
        return None

    def timed_reason(self, made: Record) -> Reason | None:
        """Whether a recorded file of a script without declarations differs."""
        if made.timed is None:
            return None
        root = self.package_root(made)
        for timed in made.timed:
            path = f"{root}/{timed.path}"
            digest = self.contents.file(path)
            if digest == MISSING:
                return Reason("missing", path)
            if digest != timed.digest:
                return Reason("content", path)
        return None

    def added_reason(self, made: Record) -> Reason | None:
        """Whether the package of a script without declarations has a file that is not recorded."""
        if made.timed is None:
            return None
        root = self.package_root(made)
        here = set(self.packages.files(root)) - {timed.path for timed in made.timed}
        return Reason("content", f"{root}/{min(here)}") if here else None

    def environment_reason(self, unit: Unit, made: Record) -> Reason | None:
        if not self.moved(made):
            return None
        if unit.is_script_run:
            return Reason("script-path") if made.out_dir_baked else None
        roots = {made.checkout, made.workspace, made.build_dir}
        for key, value in made.env:
            if key == "OUT_DIR":
                if made.out_dir_baked is not False and value != self.out_dir_here(made):
                    return Reason("out-dir")
            elif key == PRIMARY or any(mentions(value, root) for root in roots):
                return Reason("environment", f"{key}={value}")
        if made.bakes_root:
            return Reason("macro-path", ", ".join(made.macros))
        return None

    def out_dir_here(self, made: Record) -> str | None:
        for key, _ in made.dependencies:
            dependency = self.units.get(key)
            if dependency is not None and dependency.is_script_run:
                return self.final(dependency.out_dir)
        return None

    def git_reason(self, made: Record) -> Reason | None:
        """What git would, or may, tell otherwise; not asked where Cargo would not ask, either."""
        place = self.place
        unknowable = {"refs": "its tags", "clean": "the state of the working tree"}
        for what, text in unknowable.items():
            # Nobody noted that.
            if what in made.asks_git:
                return Reason("git", text)
        if made.head is None or made.head != place.head:
            return Reason("git", f"HEAD {(made.head or 'unknown')[:12]}")
        if "branch" in made.asks_git and made.branch != place.branch:
            return Reason("git", f"branch {made.branch or '(detached)'}")
        return None

    def hidden_reason(self, made: Record) -> Reason | None:
        """Whether anything differs that the compile was seen to read behind rustc's back."""
        for entry in made.observed:
            if entry.kind == "variable":
                value = self.variables.get(entry.path)
                if entry.digest != (None if value is None else digest_of(os.fsencode(value))):
                    return Reason("hidden-variable", entry.path)
                continue
            path = self.here(made, entry.base, entry.path)
            if entry.base == ABSOLUTE and (other := self.other_above(made, entry)):
                return Reason("hidden-input", other)
            if entry.kind == "file":
                same = self.contents.file(path) == entry.digest
            elif entry.kind == "names":
                same = self.contents.names(path) == entry.digest
            else:
                same = os.path.exists(path) == (entry.kind == "existing")
            if not same:
                return Reason("hidden-input", path)
        return None

    def other_above(self, made: Record, entry: Hidden) -> str | None:
        """Something that a macro may find above this place, and did not where it ran; or the other
        way round."""
        place = self.place
        if not self.moved(made) or (
            entry.kind == "existing" and below(made.checkout, entry.path) is not None
        ):
            return None
        moves = [(made.checkout, place.checkout)]
        if below(made.build_dir, made.checkout) is None:
            moves.append((made.build_dir, place.build_dir))
        for was, here in moves:
            if was == here:
                continue
            others = asked_above(entry.path, was, here)
            if others is None:
                if entry.kind != "missing":
                    return entry.path
                continue
            for other in others:
                if os.path.lexists(other):
                    return other
        return None

    def lint_reason(self, unit: Unit, made: Record) -> Reason | None:
        """Whether clippy would go by another configuration here.

        In place Cargo sees an edit of the one that was found, and plain clippy nothing else.
        """
        linted = is_clippys(unit) if made.linted is None else made.linted
        if not linted:
            return None
        root = self.package_root(made)
        other = other_configuration(
            root,
            # Where Cargo runs compilers.
            root if made.package_root.startswith("/") else self.place.workspace,
            self.variables,
            [(self.here(made, entry.base, entry.path), entry.digest) for entry in made.inputs],
        )
        return None if other is None else Reason("lints", other)

    def declared_reason(self, made: Record) -> Reason | None:
        """Whether anything differs that the package's manifest declares; in place as well."""
        if not (made.declared or self.is_local(made)):
            return None
        found = self.packages.declarations.difference(
            self.package_root(made), dict(made.declared), self.variables
        )
        if found is None:
            return None
        return Reason("input" if found.noted else "input-unknown", found.name)

    def package_reason(self, made: Record) -> Reason | None:
        macros = ", ".join(made.macros)
        if made.package_files is None:
            return Reason("hidden", macros)
        root = self.package_root(made)
        if self.packages.digest(root, made.macros) == made.package_files:
            return None
        different = first_difference(
            self.target.build_dir, made.package_files, self.packages.digests(root, made.macros)
        )
        return Reason("package", f"{macros} ({different} differs)" if different else macros)

    # -- times

    def stat(self, path: str) -> int | None:
        if path not in self._mtimes:
            self._mtimes[path] = newest_below(path)
        return self._mtimes[path]

    def stale_by_time(self, unit: Unit, made: Record) -> bool:
        """Whether Cargo would call a unit dirty because of mtimes of its own inputs."""
        if made.timed is not None:
            root = self.package_root(made)
            return any(package_mtime(f"{root}/{timed.path}") != timed.mtime for timed in made.timed)
        reference = mtime(unit.reference_file)
        if reference is None:
            return True
        for wanted in made.inputs:
            newest = self.stat(self.here(made, wanted.base, wanted.path))
            if newest is not None and newest > reference:
                return True
        return False

    def is_overruled(self, key: str) -> bool:
        """Whether Cargo would rebuild the unit, or anything below it, because of times alone.

        Where we say otherwise the full proof is due: that rebuild would have seen everything.
        """
        known = self._overruled.get(key)
        if known is None:
            self._overruled[key] = False
            unit, made = self.units.get(key), self.record(key)
            known = (
                unit is not None
                and made is not None
                and (
                    self.stale_by_time(unit, made)
                    or any(self.is_overruled(dependency) for dependency, _ in made.dependencies)
                )
            )
            self._overruled[key] = known
        return known

    def is_local(self, made: Record) -> bool:
        return bool(made.inputs) or made.timed is not None

    def rerun_writers(self) -> None:
        """Scripts that write into their package run again where what they wrote is not as it was.

        Such a file is no declared input, and git ignores it, so that a new checkout has none: the
        script's run alone can make it.  Elsewhere than where it ran, a script of whose package no
        other unit is recorded may have written anything.
        """
        told: set[str] = set()
        for key in list(self.order):
            verdict, made = self.verdicts[key], self.record(key)
            if made is not None:
                told.update(name for name, _ in made.dependencies if self.is_own_script(key, name))
            reason = verdict.reason
            if made is None or reason is None or reason.code not in _WRITTEN:
                continue
            if not any(self.is_own_script(key, dependency) for dependency, _ in made.dependencies):
                continue
            different = self.written(made)
            if different is None:
                continue
            scripts = [
                dependency
                for dependency, _ in made.dependencies
                if self.is_own_script(key, dependency)
            ]
            for script in scripts:
                self.verdicts[script] = Verdict(script, "unproven", Reason("written", different))
        for key in self.order:
            made = self.record(key)
            if (
                self.units[key].is_script_run
                and key not in told
                and (self.cloned or key in self.grafted)
                and self.verdicts[key].status == "proven"
                and made is not None
                and self.is_local(made)
            ):
                self.verdicts[key] = Verdict(key, "unproven", Reason("written-unknown"))

    def is_own_script(self, key: str, dependency: str) -> bool:
        """Whether a dependency is the run of the package's own script."""
        script = self.units.get(dependency)
        return (
            script is not None
            and script.is_script_run
            and script.package == self.units[key].package
        )

    def written(self, made: Record) -> str | None:
        """An input that is missing or differs, and that git ignores: a script's work, then.

        There may be other differences before it.  What a macro was seen to read counts as well.
        """
        known = [(entry.base, entry.path, entry.digest) for entry in made.inputs]
        known += [
            (entry.base, entry.path, entry.digest or MISSING)
            for entry in made.observed
            if entry.kind == "file"
        ]
        different = []
        for base, name, digest in known:
            path = self.here(made, base, name)
            if below(path, self.place.checkout) and self.contents.file(path) != digest:
                different.append(path)
        if not different:
            return None
        return self.packages.ignored(different)

    def plan(self) -> Plan:
        for unit in self.target.units:
            self.verdict(unit)
        self.rerun_writers()
        drop: list[Drop] = []
        stamp: list[str] = []
        rewrites: list[Rewrite] = []
        source_times: list[SourceTime] = []
        settled: list[tuple[str, str, Record]] = []
        forget: list[str] = []
        moving: set[str] = set()
        for key in self.order:
            unit = self.units[key]
            verdict = self.verdicts[key]
            made = self.record(key)
            if self.must_forget(unit, verdict, made):
                forget.extend(incremental_of(unit))
            if self.must_drop(unit, verdict, made):
                drop.append(Drop(unit.hash_file, unit.reference_file))
            if verdict.status != "proven" or made is None:
                continue
            follows = any(dependency in moving for dependency, _ in made.dependencies)
            relocated: list[Rewrite] = []
            if not self.is_settled(made):
                relocated = self.relocate(unit, made)
                here = made._replace(
                    settled_checkout=self.place.checkout, settled_build_dir=self.place.build_dir
                )
                settled.append((unit.record_file, key, here))
            if follows or (
                self.is_local(made)
                and (
                    self.cloned
                    or relocated
                    or key in self.grafted
                    or self.stale_by_time(unit, made)
                )
            ):
                moving.add(key)
                references = [unit.reference_file] if self.is_local(made) else []
                stamp.extend(path for path in unit.compared_outputs() if path not in references)
                stamp.extend(references)
            rewrites.extend(relocated)
            if made.timed is not None:
                source_times.extend(self.source_times(made))
        ordered = tuple(self.verdicts[unit.key] for unit in self.target.units)
        return Plan(
            ordered,
            tuple(drop),
            tuple(stamp),
            tuple(rewrites),
            tuple(source_times),
            tuple(settled),
            tuple(dict.fromkeys(forget)),
        )

    def must_forget(self, unit: Unit, verdict: Verdict, made: Record | None) -> bool:
        """Whether rustc's incremental state could bring back what the unit must not hold any more.

        Macros are expanded in every compile.  What the assembler includes is not looked at again:
        rustc takes the old object file as long as the sources are the same.
        """
        if unit.is_script_run or verdict.status not in ("unproven", "dirty"):
            return False
        if made is None:
            return self.is_from_elsewhere(unit.key) and self.names_incbin(unit)
        if INCBIN not in made.macros:
            return False
        if self.hidden_reason(made) is not None:
            return True
        if made.hidden is not None:
            return False
        return self.is_from_elsewhere(unit.key) or not self.judged_by_cargo(made)

    def is_from_elsewhere(self, key: str) -> bool:
        return self.cloned or key in self.grafted

    def names_incbin(self, unit: Unit) -> bool:
        makefile = unit.makefile()
        for name in makefile.files if makefile is not None else ():
            path = os.path.join(self.place.workspace, name)
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if b"incbin" in file.read():
                    return True
        return False

    def must_drop(self, unit: Unit, verdict: Verdict, made: Record | None) -> bool:
        if self.is_from_elsewhere(verdict.key):
            # The donor's dirty units as well: here their files may look unchanged.
            return verdict.status in ("unproven", "dirty")
        reason = verdict.reason
        if reason is not None and reason.code in ("elsewhere", "input-unknown"):
            return True
        if reason is None or made is None:
            return False
        if reason.code in _BLIND and not self.judged_by_cargo(made):
            return True
        if reason.code not in _HARD:
            return False
        # Cargo names a better reason itself where it sees the change.
        return not self.stale_by_time(unit, made)

    def relocate(self, unit: Unit, made: Record) -> list[Rewrite]:
        """Dep-info and script output that name the old checkout, rewritten for this one."""
        rewrites = []
        if unit.is_script_run:
            data = relocate_out_dirs(
                _bytes(unit.script_stdout_file),
                made.named_build_dir,
                self.place.build_dir,
                _bytes(unit.root_output_file),
            )
            old = os.fsencode(self.named_package_root(made))
            new = os.fsencode(self.package_root(made))
            if made.inputs and old != new:
                data = relocate_rerun_lines(data, old, new)
            if data != _bytes(unit.script_stdout_file):
                rewrites.append(Rewrite(unit.script_stdout_file, data))
            return rewrites
        info = unit.dep_info()
        if info is None:
            return rewrites
        files = []
        for file in info.files:
            inside = below(file.path, made.named_checkout) if file.path.startswith("/") else None
            if inside is not None:
                file = file._replace(path=_join(self.place.checkout, inside))  # noqa: PLW2901
            files.append(file)
        if tuple(files) != info.files:
            changed = depinfo.encode(info._replace(files=tuple(files)))
            rewrites.append(Rewrite(unit.dep_info_file, changed))
        return rewrites

    def source_times(self, made: Record) -> list[SourceTime]:
        root = self.package_root(made)
        assert made.timed is not None
        times = [
            SourceTime(f"{root}/{timed.path}", timed.mtime, timed.digest) for timed in made.timed
        ]
        # Cargo hashes the newest time alone.  Where that is right already, the others stay as they
        # are: another target of this checkout may have seen another content under the newer time.
        newest = max((entry.mtime for entry in times), default=0)
        if max((package_mtime(entry.path) for entry in times), default=0) == newest:
            return []
        return [entry for entry in times if package_mtime(entry.path) != entry.mtime]


def _in_git_directory(path: str) -> bool:
    """Whether a path outside the checkout lies in a git directory: a linked worktree HEAD."""
    return "/.git/" in path or "/worktrees/" in path


def prove(
    target: Target,
    place: Place,
    contents: Contents,
    packages: Packages,
    *,
    cloned: bool,
    records: dict[str, Record] | None = None,
    grafted: frozenset[str] = frozenset(),
) -> Plan:
    """Compare every unit of ``target`` with the checkout at ``place``.

    ``cloned``: the target comes from elsewhere.
    ``records`` are taken for units that have none on disk, by unit key (a donor that is read-only
    cannot keep them itself).  ``grafted`` are keys of units that came from another target: their
    times mean nothing, as in a clone.  Reads files only.
    """
    return Proof(target, place, contents, packages, cloned, records or {}, grafted).plan()


def _join(root: str, relative: str) -> str:
    return f"{root}/{relative}" if relative else root


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
