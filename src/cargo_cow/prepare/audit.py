"""Audit: units that Cargo would call Fresh although their content differs, in any target.

Four witnesses, from strongest to weakest: a record (contents as they were compiled), the source
hashes in the crate metadata, the path the compiler worked at, and a file's ctime, which unlike an
mtime nobody can set back.  Nothing is changed.
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from cargo_cow.cargo import depinfo
from cargo_cow.cargo.target import Target, Unit, mtime
from cargo_cow.errors import UnknownFormat
from cargo_cow.prepare import identity, outputs
from cargo_cow.prepare.capture import Capturer, newest_below
from cargo_cow.prepare.contents import MISSING, Contents
from cargo_cow.prepare.packages import Packages
from cargo_cow.prepare.place import Place
from cargo_cow.prepare.record import CHECKOUT, PACKAGE, Record, load

Finding = Literal["sound", "false-fresh", "suspect", "dirty"]


class Audited(NamedTuple):
    """One local unit: what was found, and the evidence in words."""

    key: str
    finding: Finding
    evidence: str


def audit(target: Target, place: Place) -> tuple[Audited, ...]:
    """Examine every local unit of ``target``; third-party sources are Cargo's to guard."""
    contents = Contents()
    packages = Packages(place.checkout, place.workspace, place.build_dir, contents)
    auditor = _Auditor(target, place, contents, packages)
    found = {}
    for unit in target.units:
        result = auditor.unit(unit)
        if result is not None:
            found[unit.key] = result
    # Whatever was built against a false-fresh unit holds its code as well.
    changed = True
    while changed:
        changed = False
        for unit in target.units:
            entry = found.get(unit.key)
            if entry is None or entry.finding != "sound":
                continue
            for dependency in target.dependencies(unit) or ():
                below = found.get(dependency.key)
                if below is not None and below.finding == "false-fresh":
                    found[unit.key] = Audited(
                        unit.key, "false-fresh", f"it was built against {dependency.key}"
                    )
                    changed = True
                    break
    return tuple(found.values())


class _Auditor:
    def __init__(
        self, target: Target, place: Place, contents: Contents, packages: Packages
    ) -> None:
        self.target = target
        self.place = place
        self.contents = contents
        self.capturer = Capturer(target, place, contents, packages)
        here = identity.own(place)
        seen = identity.wished(place) or here
        # In a target that several checkouts share, a path tells which of them compiled.
        shared = seen.build_dir == here.build_dir
        self.seen = place.workspace if shared else identity.alias(place.workspace, here, seen)

    def unit(self, unit: Unit) -> Audited | None:
        try:
            if unit.is_documentation or not self.capturer.is_local(unit):
                return None
        except UnknownFormat:
            return None
        if unit.fingerprint_hash() is None:
            return Audited(unit.key, "dirty", "Cargo will rebuild it")
        made = load(unit)
        if made is not None:
            return self.recorded(unit, made)
        try:
            root = self.capturer.package_root(unit)
            inputs = self.inputs(unit, root)
        except (ValueError, UnknownFormat, OSError) as error:
            return Audited(unit.key, "suspect", str(error))
        reference = mtime(unit.reference_file)
        if reference is None:
            return Audited(unit.key, "dirty", "Cargo will rebuild it")
        for path in inputs:
            newest = newest_below(path)
            if newest is None or newest > reference:
                return Audited(unit.key, "dirty", f"{path} is newer than the unit")
        wrong = self.contradicted(unit, inputs)
        if wrong is not None:
            return Audited(
                unit.key, "false-fresh", f"the compiled unit holds another content of {wrong}"
            )
        elsewhere = self.compiled_elsewhere(unit)
        if elsewhere is not None:
            return Audited(unit.key, "suspect", elsewhere)
        for path in inputs:
            changed = _ctime(path)
            if changed is not None and changed > reference:
                return Audited(
                    unit.key,
                    "suspect",
                    f"{path} was changed after the unit was made, and its mtime set back",
                )
        return Audited(unit.key, "sound", "no witness speaks against it")

    def recorded(self, unit: Unit, made: Record) -> Audited:
        roots = {PACKAGE: self.root_of(made), CHECKOUT: self.place.checkout}
        reference = mtime(unit.reference_file) or 0
        for wanted in made.inputs:
            base = roots.get(wanted.base)
            path = wanted.path if base is None else os.path.join(base, wanted.path).rstrip("/")
            digest = self.contents.file(path)
            if MISSING in (wanted.digest, digest):
                return Audited(unit.key, "dirty", f"{path} does not exist")
            if digest != wanted.digest:
                if (newest_below(path) or 0) > reference:
                    return Audited(unit.key, "dirty", f"{path} is newer than the unit")
                return Audited(
                    unit.key, "false-fresh", f"{path} has other content than was recorded"
                )
        return Audited(unit.key, "sound", "its inputs are those of its record")

    def root_of(self, made: Record) -> str:
        return os.path.join(self.place.workspace, made.package_root).rstrip("/")

    def inputs(self, unit: Unit, root: str) -> list[str]:
        if unit.is_script_run:
            script = unit.script()
            declared = script.rerun_if_changed if script is not None else ()
            return [os.path.normpath(os.path.join(root, path)) for path in declared]
        info = unit.dep_info()
        paths = []
        for file in info.files if info is not None else ():
            if file.base == depinfo.PACKAGE:
                paths.append(os.path.join(root, file.path))
            elif file.path.startswith("/") and not file.path.startswith(self.place.registry):
                paths.append(file.path)
        return paths

    def contradicted(self, unit: Unit, inputs: list[str]) -> str | None:
        sources = [path for path in inputs if path.endswith(".rs")]
        return None if unit.is_script_run else self.capturer.contradicted(unit, sources)

    def compiled_elsewhere(self, unit: Unit) -> str | None:
        """Whether the outputs name a working directory other than this workspace."""
        if unit.is_script_run:
            try:
                with open(unit.root_output_file, "rb") as file:
                    ran_at = os.fsdecode(file.read())
            except OSError:
                return None
            if ran_at != unit.out_dir:
                return f"its script ran with OUT_DIR {ran_at}"
            return None
        makefile = unit.makefile()
        # Where rustc was made to see this workspace counts as here.
        here = {os.fsencode(self.place.workspace), os.fsencode(self.seen)}
        for path in unit.compared_outputs():
            if not path.endswith(".rmeta") and os.path.splitext(path)[1]:
                continue
            try:
                if os.path.getsize(path) and not any(
                    outputs.names_path(path, name) for name in here
                ):
                    if makefile is not None and unit.stem.startswith("build-script-"):
                        return None  # built without debug information: it names no path at all
                    if not path.endswith(".rmeta") and not outputs.has_debug_information(path):
                        return None
                    return f"{path} does not name {self.place.workspace}: it was compiled elsewhere"
            except OSError:
                continue
        return None


def _ctime(path: str) -> int | None:
    try:
        return os.stat(path).st_ctime_ns
    except OSError:
        return None
