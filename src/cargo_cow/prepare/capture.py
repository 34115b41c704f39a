"""Capture: derive records from what Cargo left in a target, after the fact.

Cargo's dep-info says which files a unit was made from, not what was in them.  A file's content is
known to be the one that was compiled if the shim observed it, or if Cargo would call the file
unchanged: its mtime is not after the dep-info's.  Where the crate metadata holds source hashes
they must agree as well: a target shared between checkouts, or copied without times, is called
fresh by its mtimes and is not (see ``outputs.other_content``).

Only the dependencies that were there when the unit was made count: each must have been started
before it (``invoked.timestamp``), as a dependency rebuilt later leaves its dependents stale.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cargo_cow.cargo.depinfo import PACKAGE as DEP_PACKAGE
from cargo_cow.cargo.script import without_out_dirs
from cargo_cow.cargo.target import Target, Unit, mtime, package_mtime
from cargo_cow.cargo.workspace import Workspace
from cargo_cow.errors import UnknownFormat
from cargo_cow.filesystems.failures import translated
from cargo_cow.prepare import identity, outputs, record
from cargo_cow.prepare.contents import MEMO, MISSING, UNREADABLE, Contents, walk_below
from cargo_cow.prepare.declared import BY_SCRIPT, UNKNOWN, UNSET
from cargo_cow.prepare.lints import is_clippys
from cargo_cow.prepare.macros import INCBIN, PURE, UNSTATED
from cargo_cow.prepare.packages import Packages, keep_list
from cargo_cow.prepare.place import Place, below, is_made_at, place_of, variables
from cargo_cow.prepare.record import (
    ABSOLUTE,
    CHECKOUT,
    PACKAGE,
    PRIMARY,
    Hidden,
    Input,
    Observation,
    Record,
    Timed,
)

_LEDGER = ".cargo-cow/ledger.json"


class Ledger(NamedTuple):
    """What was found out about units without record: when the build that was examined began (ns),
    by unit key.

    ``needless`` are those that need no record at the registry paths ``registry``, wherever they
    are taken: a proof reads nothing of them.
    """

    units: dict[str, int]
    needless: frozenset[str] = frozenset()
    registry: tuple[str, ...] = ()

    def spares(self, unit: Unit, registry: tuple[str, ...]) -> bool:
        """Whether this very build of ``unit`` is known to need no record."""
        return (
            unit.key in self.needless
            and self.registry == registry
            and self.units.get(unit.key) == unit.invoked()
        )


class Capture(NamedTuple):
    """Records made now, by unit key, and the units that could not be recorded with the reason."""

    records: dict[str, Record]
    refused: dict[str, str]


class _Refused(ValueError):
    """This unit cannot be recorded; the text says why."""


class Capturer:
    """Derives records for the units of one target, as seen from the place it was built at."""

    def __init__(
        self,
        target: Target,
        place: Place,
        contents: Contents,
        packages: Packages,
        since: int | None = None,
    ) -> None:
        self._target = target
        self._place = place
        self._contents = contents
        self._packages = packages
        self._since = since
        self._macros: dict[str, frozenset[str]] = {}
        self._local: dict[str, bool] = {}
        self._stamped: dict[str, bool] = {}
        self._roots: dict[str, str] = {}
        self._observations: dict[str, Observation | None] = {}
        self._out_dirs: dict[str, bool | None] = {}
        self._seen = identity.seen_by(place)

    @functools.cached_property
    def _variables(self) -> dict[str, str]:
        return variables(self._place)

    def run(self) -> Capture:
        """Record every unit that needs a record and has none."""
        ledger = read_ledger(self._target.build_dir)
        registry = self._place.registry
        examined: dict[str, int] = {}
        needless: set[str] = set()
        result = Capture({}, {})
        for unit in self._target.units:
            started = unit.invoked()
            if started is None or unit.is_documentation:
                continue
            if ledger.units.get(unit.key) == started and ledger.registry == registry:
                examined[unit.key] = started
                needless.update({unit.key} & ledger.needless)
                continue
            if record.is_kept(unit, started):
                continue
            if unit.fingerprint_hash() is None:
                continue  # dirty: Cargo will build it, and then it can be recorded
            try:
                made = self._record(unit, started)
            except (_Refused, UnknownFormat) as error:
                result.refused[unit.key] = str(error)
            except OSError as error:
                result.refused[unit.key] = f"{error.strerror}: {error.filename}"
            else:
                if made is not None:
                    if unit.invoked() != started:
                        continue  # rebuilt while we looked at it
                    result.records[unit.key] = made
                    continue
                if needs_no_record(unit, registry, scripted=True):
                    needless.add(unit.key)
            examined[unit.key] = started
        known = Ledger(examined, frozenset(needless), registry)
        if known != ledger:
            _write_ledger(self._target.build_dir, known)
        return result

    # -- what a unit is

    def is_local(self, unit: Unit) -> bool:
        """Whether Cargo watches this unit's own sources: a path package's unit.

        Dep-info of other packages names no package files (``translate_dep_info``,
        ``allow_package``); a script's run is local if its program is.
        """
        known = self._local.get(unit.key)
        if known is None:
            self._local[unit.key] = False  # Cargo's graph has no cycles; a damaged one may
            if unit.is_script_run:
                known = any(
                    self.is_local(dependency)
                    for dependency in self._target.dependencies(unit) or ()
                    if dependency.stem.startswith("build-script-")
                    and dependency.package == unit.package
                )
            else:
                info = unit.dep_info()
                known = info is not None and any(
                    file.base == DEP_PACKAGE and not file.path.startswith("/")
                    for file in info.files
                )
            self._local[unit.key] = known
        return known

    def package_root(self, unit: Unit) -> str:
        """Absolute root of a local unit's package.  Raises _Refused if it cannot be told."""
        known = self._roots.get(unit.key)
        if known is not None:
            return known
        if unit.is_script_run:
            for dependency in self._target.dependencies(unit) or ():
                if (
                    dependency.stem.startswith("build-script-")
                    and dependency.package == unit.package
                ):
                    root = self._roots[unit.key] = self.package_root(dependency)
                    return root
            raise _Refused("the program of this build script is not in the target")
        info = unit.dep_info()
        assert info is not None
        named = next(file.path for file in info.files if file.base == DEP_PACKAGE)
        candidates = set(self._place.members.get(unit.package, ()))
        makefile = unit.makefile()
        if makefile is not None:
            # rustc runs in the workspace root for packages inside it, and is given absolute
            # paths for others (util/workspace.rs::path_args).
            found = set()
            for file in makefile.files:
                full = os.path.normpath(os.path.join(self._place.workspace, file))
                if full.endswith("/" + named):
                    found.add(os.path.realpath(full[: -len(named) - 1]))
            candidates = candidates & found or {
                root for root in found if os.path.exists(f"{root}/Cargo.toml")
            }
        if len(candidates) != 1:
            raise _Refused(f"the root of package {unit.package} cannot be told")
        root = self._roots[unit.key] = candidates.pop()
        return root

    def reachable_macros(self, unit: Unit) -> frozenset[str]:
        """Proc-macro packages not known to be pure that the unit's code can name.

        Macros come through re-exports, too (serde re-exports serde_derive), so the whole closure
        over library dependencies counts.  Programs run by Cargo (build scripts) end it.
        """
        known = self._macros.get(unit.key)
        if known is None:
            self._macros[unit.key] = frozenset()
            found: set[str] = set()
            for dependency in self._target.dependencies(unit) or ():
                if dependency.stem.startswith(("run-build-script", "build-script-")):
                    continue
                if _is_proc_macro(dependency):
                    if dependency.package not in PURE or self.is_local(dependency):
                        found.add(dependency.package)
                    continue  # its own dependencies are its own business
                found |= self.reachable_macros(dependency)
            known = self._macros[unit.key] = frozenset(found)
        return known

    # -- recording

    def _record(self, unit: Unit, started: int) -> Record | None:
        local = self.is_local(unit)
        dependencies = self._dependencies(unit, started)
        if unit.is_script_run:
            return self._script_record(unit, started, dependencies, local)
        if local:
            return self._local_record(unit, started, dependencies)
        baked = self._out_dir_baked(unit)
        if baked is None and not any(self._needs_stamp(other) for other, _ in dependencies):
            return None
        return self._blank(started, "", dependencies, unit)._replace(out_dir_baked=baked)

    def _needs_stamp(self, unit: Unit) -> bool:
        """Whether a proof may move this unit's mtimes, so that its dependents must follow."""
        known = self._stamped.get(unit.key)
        if known is None:
            self._stamped[unit.key] = False  # as in `is_local`
            known = self._stamped[unit.key] = self.is_local(unit) or any(
                self._needs_stamp(other) for other in self._target.dependencies(unit) or ()
            )
        return known

    def _dependencies(self, unit: Unit, started: int) -> list[tuple[Unit, int]]:
        units = self._target.dependencies(unit)
        if units is None:
            raise _Refused("a dependency is no longer the one it was built against")
        found = []
        for dependency in units:
            invoked = dependency.invoked()
            if invoked is None or invoked > started:
                raise _Refused(f"{dependency.key} was rebuilt after it")
            found.append((dependency, invoked))
        return found

    def _blank(
        self, started: int, package_root: str, dependencies: list[tuple[Unit, int]], unit: Unit
    ) -> Record:
        place = self._place
        if not is_made_at(unit, place):
            raise _Refused(f"it was made in {unit.made_in()}")
        return Record(
            invoked=started,
            checkout=place.checkout,
            workspace=place.workspace,
            build_dir=place.build_dir,
            package_root=package_root,
            inputs=(),
            dependencies=tuple((dependency.key, invoked) for dependency, invoked in dependencies),
            env=self._untracked_env(unit),
        )

    def _untracked_env(self, unit: Unit) -> tuple[tuple[str, str], ...]:
        """Values that Cargo set for rustc and does not watch (``translate_dep_info``)."""
        if unit.is_script_run:
            return ()
        makefile = unit.makefile()
        if makefile is None:
            return ()
        info = unit.dep_info()
        tracked = {key for key, _ in info.env} if info is not None else set()
        return tuple(
            (key, value or "")
            for key, value in makefile.env
            if key not in tracked and (value is not None or key == PRIMARY)
        )

    def _out_dir_baked(self, unit: Unit) -> bool | None:
        if unit.key not in self._out_dirs:
            makefile = unit.makefile()
            value = None if makefile is None else dict(makefile.env).get("OUT_DIR")
            self._out_dirs[unit.key] = (
                None if makefile is None or not value else self._bakes(unit, value, makefile.files)
            )
        return self._out_dirs[unit.key]

    def _observation(self, unit: Unit) -> Observation | None:
        if unit.key not in self._observations:
            self._observations[unit.key] = record.load_observation(unit)
        return self._observations[unit.key]

    def _bakes(
        self, unit: Unit, value: str, included: Iterable[str], *, working_directory: bool = False
    ) -> bool:
        """`outputs.bakes_path`, searched once for what the warehouse gives again and again."""
        files = unit.compared_outputs()
        names = sorted({file for file in included if file.startswith(f"{value}/")})

        def search() -> bool:
            return outputs.bakes_path(files, value, names, working_directory=working_directory)

        digests = self._given(unit, files)
        if digests is None:
            return search()
        question = ["bakes", outputs.SEARCH, digests, value, names, working_directory]
        return self._contents.answer(question, search)

    def _given(self, unit: Unit, files: Sequence[str]) -> list[str] | None:
        """Digests of a unit's files, if all of them are as the warehouse gave them."""
        seen = self._observation(unit)
        if seen is None or not seen.outputs:
            return None
        found = []
        for path in files:
            digest, *given = seen.outputs.get(os.path.basename(path), ("",))
            try:
                status = os.stat(path)
            except OSError:
                return None
            # Not the ctime: Cargo gives programs a second name.
            if given != [status.st_ino, status.st_size, status.st_mtime_ns]:
                return None
            found.append(digest)
        return found

    def _relative_root(self, root: str) -> str:
        relative = below(root, self._place.workspace)
        return root if relative is None else relative

    def _based(self, path: str, package_root: str) -> tuple[int, str]:
        relative = below(path, package_root)
        if relative is not None:
            return PACKAGE, relative
        relative = below(path, self._place.checkout)
        if relative is not None:
            return CHECKOUT, relative
        return ABSOLUTE, path

    def _local_record(
        self, unit: Unit, started: int, dependencies: list[tuple[Unit, int]]
    ) -> Record:
        info = unit.dep_info()
        reference = mtime(unit.dep_info_file)
        if info is None or reference is None:
            raise _Refused("its dep-info is missing")
        root = self.package_root(unit)
        seen = self._observation(unit)
        observed = {} if seen is None else _digests(seen)
        inputs = []
        unobserved_sources = []
        doubtful = []
        for file in info.files:
            if file.base == DEP_PACKAGE:
                path = os.path.join(root, file.path)
            elif file.path.startswith("/"):
                path = file.path
                if path.startswith(self._place.registry):
                    continue
            else:
                continue  # in the build directory: the script that made it answers for it
            digest = observed.get(path)
            if digest is None:
                digest, sure = self._unchanged(path, reference)
                if path.endswith(".rs"):
                    unobserved_sources.append(path)
                    if not sure:
                        doubtful.append(path)
                elif not sure:
                    raise _Refused(f"{path} was written after the build, under an older time")
            inputs.append(Input(*self._based(path, root), digest))
        wrong = self.contradicted(unit, unobserved_sources)
        if wrong is not None:
            raise _Refused(f"the compiled unit holds another content of {wrong}")
        if doubtful and not self._evident(unit, doubtful):
            raise _Refused(f"{doubtful[0]} was written after the build, under an older time")
        made = self._blank(started, self._relative_root(root), dependencies, unit)
        macros = set(self.reachable_macros(unit))
        if any(self._includes_binary(root, entry) for entry in inputs):
            macros.add(INCBIN)
        made = made._replace(
            inputs=tuple(sorted(inputs)),
            out_dir_baked=self._out_dir_baked(unit),
            declared=self._declared(unit, root, started, seen),
            linted=is_clippys(unit),
        )
        if seen is not None and seen.hidden is not None:
            hidden = self._hidden(unit, seen.hidden, root)
            made = made._replace(macros=tuple(sorted(macros)), hidden=hidden)
        else:
            made = self._with_hidden(made, root, macros, reference)
            if seen is not None:
                made = made._replace(seen=self._hidden(unit, seen.seen, root))
        return made._replace(bakes_root=bool(macros or made.observed) and self._bakes_root(unit))

    def _declared(
        self, unit: Unit, root: str, started: int, seen: Observation | None = None
    ) -> tuple[tuple[str, str], ...]:
        """What the package's manifest declares, as it was when the unit was made at ``started``.

        What was changed since then is UNKNOWN, and so is a variable of which neither the shim nor
        the beginning of this very build tells.
        """
        declarations = self._packages.declarations
        told = None
        found = []
        for one in declarations.of(root):
            if one.variable is None:
                same = declarations.changed(one) < started
                digest = declarations.digest(one, {}) if same else UNKNOWN
            else:
                if told is None:
                    told = self._told(unit)
                values = {} if seen is None else dict(seen.declared)
                if one.variable in told:
                    digest = BY_SCRIPT
                elif one.variable in values:
                    digest = values[one.variable] or UNSET
                elif self._since is not None and started >= self._since:
                    digest = declarations.digest(one, self._variables)
                else:
                    digest = UNKNOWN
            found.append((one.name, digest))
        return tuple(found)

    def _told(self, unit: Unit) -> set[str]:
        """Variables that the package's own script sets for a unit: its run answers for them."""
        return {
            name
            for dependency in self._target.dependencies(unit) or ()
            if dependency.is_script_run and dependency.package == unit.package
            for name, _ in self._script_env(dependency)
        }

    def _hidden(self, unit: Unit, seen: tuple[Hidden, ...], root: str) -> tuple[Hidden, ...]:
        """What was observed, relative to the package or the checkout.

        Variables that the package's own script sets are left out: its run answers for them.
        """
        told = self._told(unit)
        found = []
        for entry in seen:
            if entry.kind == "variable":
                if entry.path not in told:
                    found.append(entry)
                continue
            base, path = self._based(entry.path, root)
            found.append(entry._replace(base=base, path=path))
        return tuple(found)

    def _script_env(self, unit: Unit) -> tuple[tuple[str, str], ...]:
        script = unit.script()
        return script.env if script is not None else ()

    def _with_hidden(self, made: Record, root: str, macros: set[str], reference: int) -> Record:
        """``made``, for a unit of which not all inputs are known: with the package's files.

        They count only if none of them was changed since the unit was made (``reference``, ns).
        """
        if not macros:
            return made
        names = tuple(sorted(macros))
        made = made._replace(macros=names)
        if self._packages.newest(root) > reference:
            return made
        digests = self._packages.digests(root, names)
        made = made._replace(package_files=self._packages.digest(root, names))
        keep_list(self._target.build_dir, str(made.package_files), digests)
        return made

    def _includes_binary(self, root: str, entry: Input) -> bool:
        """Whether an input tells the assembler to include a file."""
        bases = {PACKAGE: root, CHECKOUT: self._place.checkout}
        path = os.path.join(bases.get(entry.base, ""), entry.path)
        try:
            if os.path.getsize(path) > 1 << 20:
                return False
            with open(path, "rb") as file:
                return b"incbin" in file.read()
        except OSError:
            return False

    def _bakes_root(self, unit: Unit) -> bool:
        """Whether the outputs hold a path of the checkout that is no source file's name.

        For units that expand macros we know nothing about: such a macro may put a path into the
        code without any trace in the dep-info.
        """
        makefile = unit.makefile()
        if makefile is None:
            return True
        place = self._place
        named = {os.path.normpath(os.path.join(place.workspace, path)) for path in makefile.files}
        roots = {place.checkout, place.workspace}
        if below(place.build_dir, place.checkout) is None:
            roots.add(place.build_dir)
        # Compiled at an identity, the source map names that, and nothing else may.
        here, seen = identity.own(place), self._seen
        named |= {identity.alias(path, here, seen) for path in named}
        roots |= {identity.alias(root, here, seen) for root in roots}
        return any(self._bakes(unit, root, named, working_directory=True) for root in sorted(roots))

    def _unchanged(self, path: str, reference: int) -> tuple[str, bool]:
        """Digest of an input that Cargo would call unchanged since ``reference`` (ns).

        Also whether that is sure: an mtime can be set back (``cp -p``, ``tar``, ``touch -r``), a
        ctime cannot.
        """
        newest = newest_below(path)
        if newest is None:
            raise _Refused(f"{path} is gone")
        if newest > reference:
            raise _Refused(f"{path} was changed after the build")
        digest = self._contents.file(path)
        if digest in (MISSING, UNREADABLE):
            raise _Refused(f"{path} cannot be read")
        return digest, (changed_below(path) or 0) <= reference

    def _evident(self, unit: Unit, sources: list[str]) -> bool:
        """Whether the crate metadata holds the hash of every one of ``sources``."""
        metadata = next((path for path in unit.files() if path.endswith(".rmeta")), None)
        return metadata is not None and outputs.holds_hashes(
            metadata, [_md5(path) for path in sources]
        )

    def contradicted(self, unit: Unit, sources: list[str]) -> str | None:
        """The first of ``sources`` whose content the unit's crate metadata contradicts."""
        metadata = next((path for path in unit.files() if path.endswith(".rmeta")), None)
        if metadata is None or not sources:
            return None
        known = []
        for path in sources:
            name = below(path, self._place.workspace) or below(path, self._place.checkout)
            known.append((os.fsencode(f"/{name}" if name else path), _md5(path)))
        wrong = outputs.other_content(metadata, known)
        return None if wrong is None else sources[wrong]

    def _script_record(
        self, unit: Unit, started: int, dependencies: list[tuple[Unit, int]], local: bool
    ) -> Record:
        script = unit.script()
        reference = mtime(unit.script_stdout_file)
        if script is None or reference is None:
            raise _Refused("the script's output is missing")
        made = self._blank(started, "", dependencies, unit)
        made = made._replace(out_dir_baked=self._script_bakes(unit))
        if not local:
            return made
        root = self.package_root(unit)
        made = made._replace(
            package_root=self._relative_root(root), declared=self._declared(unit, root, started)
        )
        program = next(
            (
                path
                for dependency, _ in dependencies
                if dependency.stem.startswith("build-script-")
                for path in dependency.compared_outputs()
            ),
            None,
        )
        made = made._replace(asks_git=() if program is None else self._asks_git(program))
        if self._place.head_changed <= started:
            made = made._replace(head=self._place.head, branch=self._place.branch)
        if script.rerun_if_changed or script.rerun_if_env_changed:
            inputs = []
            for declared in script.rerun_if_changed:
                path = os.path.normpath(os.path.join(root, declared))
                if path.startswith(self._place.registry):
                    continue
                if not os.path.exists(path):
                    # Cargo reruns the script on every build; so be it.
                    inputs.append(Input(*self._based(path, root), MISSING))
                else:
                    digest, sure = self._unchanged(path, reference)
                    if not sure:
                        raise _Refused(f"{path} was written after the build, under an older time")
                    inputs.append(Input(*self._based(path, root), digest))
            made = made._replace(inputs=tuple(sorted(inputs)))
            if all(entry.base == PACKAGE and entry.path.endswith(".rs") for entry in inputs):
                made = self._with_hidden(made, root, {UNSTATED}, reference)
            return made
        return made._replace(timed=self._timed(unit, root, started))

    def _asks_git(self, program: str) -> tuple[str, ...]:
        """`outputs.asks_git`, searched once for a program whose script runs again and again."""

        def search() -> list[str]:
            return list(outputs.asks_git(program))

        digest = self._contents.file(program)
        if digest in (MISSING, UNREADABLE):
            return tuple(search())
        return tuple(self._contents.answer(["asks git", outputs.SEARCH, digest], search))

    def _timed(self, unit: Unit, root: str, started: int) -> tuple[Timed, ...]:
        """All files of a package whose script declares nothing, with the mtimes Cargo hashed."""
        fingerprint = unit.fingerprint()
        text = None
        if fingerprint is not None and len(fingerprint.local) == 1:
            text = fingerprint.local[0].get("Precalculated")
        if not isinstance(text, str):
            raise _Refused("the script's fingerprint is of an unknown kind")
        newest = parse_precalculated(text)
        if newest is None:
            raise _Refused(f"the script's fingerprint is of an unknown kind: {text}")
        when, name = newest
        if mtime(f"{root}/{name}") != when:
            raise _Refused(f"{root}/{name} was changed after the build")
        timed = []
        for file in self._packages.files(root):
            path = f"{root}/{file}"
            at = package_mtime(path)
            try:
                changed = max(changed_below(path) or 0, os.lstat(path).st_ctime_ns)
            except FileNotFoundError:
                changed = started + 1
            if at > when or changed > started:
                raise _Refused(f"{path} was changed after the build")
            timed.append(Timed(file, at, self._contents.file(path)))
        return tuple(timed)

    def _script_bakes(self, unit: Unit) -> bool:
        """Whether a script's output or generated files hold a path of the place it ran at.

        In the output, its own OUT_DIR is rewritten by Cargo (``BuildOutput::parse``), that of
        others and ``rerun-if-changed`` lines by us (``script.relocate_*``).
        Generated sources, objects and libraries are searched; a build system's litter is not.
        """
        place = self._place
        roots = {place.checkout, place.workspace, place.build_dir}
        script = unit.script()
        assert script is not None
        values = [value for _, value in script.env] + list(script.others)
        for value in values:
            text = without_out_dirs(value, place.build_dir)
            if any(mentions(text, root) for root in roots):
                return True
        needles = [os.fsencode(root) for root in roots]
        excused = [os.fsencode(path) for path in place.registry]
        included = self._included(unit.package)
        reachable = self._reaches_out_dir(unit.package)
        for directory, directories, files in os.walk(unit.out_dir):
            for name in (*directories, *files):
                path = f"{directory}/{name}"
                if os.path.islink(path):
                    if any(mentions(os.readlink(path), root) for root in roots):
                        return True
                elif not os.path.isfile(path):
                    continue
                elif (
                    reachable or name.endswith(_GENERATED) or path in included
                ) and outputs.contains_path(path, needles, excused) is not None:
                    return True
        return False

    def _reaches_out_dir(self, package: str) -> bool:
        """Whether a unit of ``package`` knows where OUT_DIR is when it runs, and so may read it."""
        return any(
            self._out_dir_baked(unit)
            for unit in self._target.units
            if unit.package == package and not unit.is_script_run and not unit.is_documentation
        )

    def _included(self, package: str) -> set[str]:
        """All files that units of ``package`` list in their dep-info, as rustc named them."""
        found: set[str] = set()
        for unit in self._target.units:
            if unit.package == package and not unit.is_script_run:
                makefile = unit.makefile()
                found.update(makefile.files if makefile is not None else ())
        return found


def capture_of(workspace: Workspace, *, since: int | None = None) -> Capture:
    """Record what the units of a target were made from, as far as that can still be known.

    Needs no lock: a unit that is rebuilt meanwhile is recognised by its ``invoked.timestamp``.
    Records are written beside the fingerprints where that is permitted, and returned in any case.
    ``since`` (ns) is when the build began whose variables are those of now.
    """
    place = place_of(workspace)
    with translated("recording", Path(place.build_dir)):
        return capture_at(Target(place.build_dir), place, since=since)


def capture_at(target: Target, place: Place, *, since: int | None = None) -> Capture:
    """As `capture_of`, for a target and place that are known already."""
    contents = Contents(f"{place.build_dir}/{MEMO}")
    packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
    result = Capturer(target, place, contents, packages, since).run()
    units = {unit.key: unit for unit in target.units}
    for key, made in result.records.items():
        try:
            record.save(units[key], made)
        except OSError:
            break  # a read-only donor: the caller has the records
    contents.save()
    identity.keep(place)
    return result


# Generated code and what is linked; other files of OUT_DIR count where a unit includes them.
_GENERATED = (".rs", ".inc", ".in", ".a", ".o", ".so")


def _md5(path: str) -> bytes:
    import hashlib  # only where rustc's own hashes are asked

    with open(path, "rb") as file:
        return hashlib.md5(file.read(), usedforsecurity=False).digest()


def mentions(text: str, root: str) -> bool:
    """Whether ``text`` holds ``root`` as whole path components."""
    at = text.find(root)
    while at >= 0:
        after = text[at + len(root) : at + len(root) + 1]
        if not after or not (after.isalnum() or after in "._-+~@%"):
            return True
        at = text.find(root, at + 1)
    return False


def parse_precalculated(text: str) -> tuple[int, str] | None:
    """``"<seconds>.<nanoseconds>s (<path>)"`` → (ns since the epoch, path); None if other.

    Source: ``sources/path.rs::fingerprint`` (``format!("{} ({})", max, max_path)``) with filetime's
    Display, which pads the nanoseconds to nine digits.
    """
    time, separator, path = text.partition(" (")
    if not separator or not path.endswith(")") or not time.endswith("s"):
        return None
    seconds, dot, nanoseconds = time[:-1].partition(".")
    if not dot or len(nanoseconds) != 9 or not (seconds + nanoseconds).isdigit():
        return None
    return int(seconds) * 1_000_000_000 + int(nanoseconds), path[:-1]


def _is_proc_macro(unit: Unit) -> bool:
    """A library that is nothing but a shared object; a cdylib that is depended on has an rlib."""
    if not unit.stem.startswith("lib-"):
        return False
    files = unit.files()
    return any(path.endswith(".so") for path in files) and not any(
        path.endswith(".rlib") for path in files
    )


def newest_below(path: str) -> int | None:
    """``paths::mtime_recursive``: newest mtime (ns) of a path, directories and all below."""
    return _newest(path, lambda status: status.st_mtime_ns)


def changed_below(path: str) -> int | None:
    """Newest ctime (ns) of a path and all below: when it was really written, at the latest."""
    return _newest(path, lambda status: status.st_ctime_ns)


def _newest(path: str, time: Callable[[os.stat_result], int]) -> int | None:
    """Newest ``time`` of a path and all below; links count themselves and are followed, too."""
    try:
        newest = time(os.stat(path))
    except OSError:
        return None
    for entry in walk_below(path):
        with contextlib.suppress(OSError):
            newest = max(newest, time(os.stat(entry, follow_symlinks=False)))
            newest = max(newest, time(os.stat(entry)))
    return newest


def needs_no_record(unit: Unit, registry: tuple[str, ...], *, scripted: bool) -> bool:
    """Whether a unit without record is the same wherever it is taken: its package's sources are the
    registry's, and nothing that a script made is in it.

    ``scripted``: a script of its package may have run.  Raises UnknownFormat.
    """
    if unit.is_script_run:
        return False
    info = unit.dep_info()
    if info is None:
        return False
    for file in info.files:
        if file.base == DEP_PACKAGE or (
            file.path.startswith("/") and not file.path.startswith(registry)
        ):
            return False
    if not scripted:
        return True
    makefile = unit.makefile()
    return makefile is not None and all(key != "OUT_DIR" for key, _ in makefile.env)


def read_ledger(build_dir: str) -> Ledger:
    """What the last capture left in a target; an empty ledger where nothing can be read."""
    try:
        with open(f"{build_dir}/{_LEDGER}", "rb") as file:
            value = json.loads(file.read())
        if value["format"] != record.FORMAT:
            return Ledger({})
        needless = frozenset(value.get("needless", ()))
        return Ledger(dict(value["units"]), needless, tuple(value.get("registry", ())))
    except (OSError, ValueError, KeyError, TypeError):
        return Ledger({})


def _write_ledger(build_dir: str, known: Ledger) -> None:
    path = f"{build_dir}/{_LEDGER}"
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            value = {
                "format": record.FORMAT,
                "units": known.units,
                "needless": sorted(known.needless),
                "registry": known.registry,
            }
            file.write(json.dumps(value, separators=(",", ":")))
        os.replace(temporary, path)
    except OSError:
        return


def _digests(seen: Observation) -> dict[str, str]:
    """Digests of a unit's observed sources, by absolute path."""
    return {
        os.path.normpath(os.path.join(seen.cwd, path)): digest
        for path, digest in seen.files.items()
    }
