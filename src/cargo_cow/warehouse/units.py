"""Whole units as entries of the warehouse: kept after a build, for targets to come.

An entry is a unit as Cargo left it, fingerprint and record included.  Its key is the unit's name,
which holds the package, its features, the profile, the flags and what `rustc -vV` says (but of a
path package's shared object, whose fingerprint alone says that; Cargo compares it), so the
entries of a key differ in what the unit was built *against*: sources of its own (its record),
other builds of its dependencies (named by digests of what they made), and what nobody put into the
name (`needs`: the compiler's contents, linker and system libraries, tools and variables of
scripts, the processor).  `grafting` compares all of it.

Nothing is kept of which that is not known: what was built before the compiler or the linker was
changed, what a variable may have taken part in and that was not built just now, what was built
against something that is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cargo_cow import native
from cargo_cow.cargo.target import ASKED_NAME, RECORD_NAME, Target, Unit, mtime
from cargo_cow.errors import CowError
from cargo_cow.prepare import record
from cargo_cow.prepare.capture import Capturer
from cargo_cow.prepare.contents import Contents, digest_of
from cargo_cow.prepare.lints import is_clippys
from cargo_cow.prepare.packages import Packages
from cargo_cow.prepare.place import Place, below
from cargo_cow.warehouse.runs import Runs
from cargo_cow.warehouse.surroundings import Surroundings, around, codegen

if TYPE_CHECKING:
    from cargo_cow.prepare.record import Record

FORMAT = 1
_MEMO = ".cargo-cow/kept-units.json"
_LOCK = ".cargo-cow/keeping.lock"
_MOST = 8
_MOST_INCREMENTAL = 2
"""Entries of one unit: of one that is edited in place, the last build and the one before it."""

_SILENT, _COUNTS, _TEXT = 0, 1, 2
_NOT_LINKED = (".rlib", ".rmeta")


class Kept(NamedTuple):
    """What was kept: units looked at, entries that are new, and the reasons why others are not."""

    looked_at: int
    new: int
    refused: dict[str, str]
    reflinked_bytes: int
    copied_bytes: int


class _Refused(ValueError):
    """This unit is not kept; the text says why."""


class Memo:
    """Which builds of a target's units are in the warehouse, and what each one's digest is.

    ``units`` are (invoked, digest) by unit key; the digest is None for a build that is not kept.
    The memo lies in the target, and is of one store.
    """

    def __init__(self, build_dir: str, root: Path) -> None:
        self._path = f"{build_dir}/{_MEMO}"
        self._root = str(root)
        self.units: dict[str, tuple[int, str | None]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            value = json.loads(Path(self._path).read_bytes())
            if value["format"] == FORMAT and value["root"] == self._root:
                self.units = {
                    str(key): (int(invoked), digest)
                    for key, (invoked, digest) in value["units"].items()
                }

    def digest(self, unit: Unit) -> str | None:
        """The digest of the build that is in the target, if it was kept."""
        invoked, digest = self.units.get(unit.key, (None, None))
        return digest if invoked is not None and invoked == unit.invoked() else None

    def save(self) -> None:
        value = {"format": FORMAT, "root": self._root, "units": self.units}
        temporary = f"{self._path}.{os.getpid()}.tmp"
        with contextlib.suppress(OSError):
            Path(temporary).write_text(json.dumps(value, separators=(",", ":")))
            os.replace(temporary, self._path)


def key_of(layout: str, key: str) -> str:
    """The store's key (hex) of a unit: one for each layout, because entries name files."""
    from blake3 import blake3

    return str(blake3(json.dumps(["unit", FORMAT, layout, key]).encode()).hexdigest())


def keep(
    place: Place,
    cwd: Path,
    *,
    rustc: str,
    toolchain: str | None,
    since: int,
    keeper: int | None = None,
) -> Kept | None:
    """Keep every unit of the place's target that is not kept yet; None where the warehouse is off.

    Records must have been captured.  ``since`` (ns) is when the build began whose variables and
    tools are those of now: of units that were built before it, what such may have changed is
    kept only where the shim noted the variables.  ``keeper`` is the process that started that build
    (see ``runs``).  Needs no lock of Cargo's: what is built again
    meanwhile is recognised.
    Raises CowError.
    """
    with contextlib.suppress(OSError):
        # Not with what is above it: who removed the target meanwhile does not get it back.
        os.mkdir(f"{place.build_dir}/.cargo-cow")
    try:
        lock = os.open(f"{place.build_dir}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return None  # nothing was built there, or it is not ours to write
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _keep(place, cwd, rustc, toolchain, since, keeper)
    finally:
        os.close(lock)


def _keep(
    place: Place, cwd: Path, rustc: str, toolchain: str | None, since: int, keeper: int | None
) -> Kept | None:
    target = Target(place.build_dir)
    profiles = [profile.name for profile in target.profiles]
    found = around(place.build_dir, cwd, rustc, toolchain, profiles)
    if found is None:
        return None
    memo = Memo(place.build_dir, found.root)
    described = _Keeper(target, place, found, memo, Runs(place, target.profiles, since, keeper))
    pending = described.pending()
    if not pending:
        return Kept(0, 0, {}, 0, 0)
    answer = native.keep_units(
        {
            "root": str(found.root),
            "copies": found.copies,
            "paths": [place.build_dir, place.checkout],
            "units": [request for _, request in pending],
        }
    )
    refused = dict(described.refused)
    for (unit, request), (digest, reason) in zip(pending, answer["kept"], strict=True):
        memo.units[unit.key] = (int(request["invoked"][1]), digest)
        if reason is not None:
            refused[unit.key] = str(reason)
    memo.save()
    return Kept(
        len(pending), answer["new"], refused, int(answer["reflinked"]), int(answer["copied"])
    )


class _Keeper:
    """Describes the units of one target as entries, dependencies first."""

    def __init__(
        self, target: Target, place: Place, found: Surroundings, memo: Memo, runs: Runs
    ) -> None:
        self._target = target
        self._place = place
        self._found = found
        self._memo = memo
        self._runs = runs
        self.refused: dict[str, str] = {}
        self._contents = Contents.of(place.build_dir)
        packages = Packages(place.checkout, place.workspace, place.build_dir, self._contents)
        self._capturer = Capturer(target, place, self._contents, packages)

    def pending(self) -> list[tuple[Unit, dict[str, Any]]]:
        """Units that are to be kept, with what the native program is asked for."""
        found: list[tuple[Unit, dict[str, Any]]] = []
        done: set[str] = set()

        def visit(unit: Unit) -> None:
            if unit.key in done:
                return
            done.add(unit.key)
            for dependency in self._target.dependencies(unit) or ():
                visit(dependency)
            invoked = unit.invoked()
            known = self._memo.units.get(unit.key)
            if invoked is None or (known is not None and known[0] == invoked):
                return
            try:
                found.append((unit, self._request(unit, invoked)))
            except (_Refused, CowError) as error:
                self.refused[unit.key] = str(error)
                self._memo.units[unit.key] = (invoked, None)
            except OSError as error:
                self.refused[unit.key] = f"{error.filename}: {error.strerror}"

        for unit in self._target.units:
            visit(unit)
        return found

    def _request(self, unit: Unit, invoked: int) -> dict[str, Any]:
        if unit.is_documentation:
            raise _Refused("documentation is not kept")
        if unit.fingerprint_hash() is None:
            raise _Refused("it is not finished")
        if unit.shares_names and not self._is_alone(unit):
            raise _Refused("its files have names that other units have, too")
        local = self._capturer.is_local(unit)
        if local and is_clippys(unit):
            raise _Refused("clippy goes by configuration that nobody notes")
        dependencies = self._dependencies(unit, invoked)
        made = record.load(unit)
        if made is None and (local or unit.is_script_run or _names_out_dir(unit)):
            raise _Refused("it is not recorded")
        files, links, directories = self._files(unit)
        bound = bool(
            made is not None
            and (made.out_dir_baked or (made.out_dir_baked is None and _names_out_dir(unit)))
        )
        value = {
            "unit_format": FORMAT,
            "created": time.time(),
            "seconds": _seconds(unit, invoked),
            "crate": unit.stem,
            "package": unit.package,
            "version": None,
            "incremental": local,
            "unit": unit.key,
            "hash": unit.hash,
            "stem": unit.stem,
            "layout": unit.profile.layout,
            "invoked": invoked,
            "local": local,
            "build_dir": self._place.build_dir if made is None else made.build_dir,
            "bound": bound,
            "needs": self._needs(unit, made, invoked),
            "variables": _variables(unit),
            "declared": [] if local else self._declared(unit),
            "shares_names": unit.shares_names,
            "record": None if made is None else made._asdict(),
            "directories": directories,
        }
        named = ("stem", "local", "build_dir" if bound else "bound", "needs", "variables")
        identity: dict[str, object] = {name: value[name] for name in named}
        identity["declared"] = value["declared"]
        identity["fingerprint"] = unit.fingerprint_hash()
        identity["record"] = _identity(made)
        return {
            "key": key_of(unit.profile.layout, unit.key),
            "id": json.dumps(identity, sort_keys=True, default=str),
            "most": _MOST_INCREMENTAL if local else _MOST,
            "name": unit.key,
            "value": value,
            "dependencies": dependencies,
            "declares": _declares(made, value) if unit.is_script_run else "",
            "files": files,
            "links": links,
            "fingerprint": [unit.hash_file, Path(unit.hash_file).read_text()],
            "invoked": [unit.invoked_file, invoked],
        }

    def _is_alone(self, unit: Unit) -> bool:
        """Whether nothing else here can have made the files that its names stand for."""
        return (
            any(not path.endswith(".d") for path in unit.files())
            and not any(other.may_write_for(unit) for other in self._target.units)
            # Units that nobody can tell apart.
            and not any(
                path.startswith(f"{unit.profile.directory}/") for path in self._target.unknown
            )
        )

    def _dependencies(self, unit: Unit, invoked: int) -> list[list[str | None]]:
        units = self._target.dependencies(unit)
        if units is None:
            raise _Refused("a dependency is no longer the one it was built against")
        found: list[list[str | None]] = []
        for dependency in units:
            at = dependency.invoked()
            if at is None or at > invoked:
                raise _Refused(f"{dependency.key} was built after it")
            if dependency.key in self.refused:
                raise _Refused(f"{dependency.key} is not kept")
            # None: it is among those that are kept now.
            found.append([dependency.key, self._memo.digest(dependency)])
        return sorted(found, key=str)

    def _needs(self, unit: Unit, made: Record | None, invoked: int) -> dict[str, str]:
        """What is not in the unit's name and not in its record, as it is here."""
        found = self._found
        if found.changed >= invoked:
            raise _Refused("the compiler, a linker or a system directory was changed after it")
        triple = unit.profile.name.rpartition("/")[0]
        needs = {"compiler": found.compilers[triple]}
        fingerprint = unit.fingerprint()
        if fingerprint is None:
            raise _Refused("its fingerprint cannot be read")
        flags = " ".join(fingerprint.rustflags)
        if not unit.is_script_run and _names_files(fingerprint.rustflags):
            raise _Refused("its flags name files or directories, which nobody compares")
        if "native" in flags:
            needs["processor"] = found.processor
        if unit.is_script_run:
            needs["tools"] = found.tools
            needs["processor"] = found.processor
            self._just_now(unit, made, invoked)
            return needs
        if any(os.path.splitext(path)[1] not in _NOT_LINKED for path in unit.compared_outputs()):
            if found.linking is None:
                raise _Refused("it cannot be told what the linker goes by")
            needs["linking"] = found.linking
            if not self._links_plainly(tuple(fingerprint.rustflags)):
                raise _Refused("its flags name a linker or arguments for it, which may name files")
        unseen = made is None or made.hidden is None
        if unseen and self._capturer.reachable_macros(unit):
            needs["variables"] = found.variables
            self._just_now(unit, made, invoked)
        return needs

    @functools.cache  # noqa: B019 - a keeper lives as long as one command
    def _links_plainly(self, flags: tuple[str, ...]) -> bool:
        """Whether what flags have the linker do depends on nothing but them and what is around."""
        arguments: list[str] = []
        for name, value in codegen(flags):
            if name == "linker":
                # By a relative path it is another one for each working directory.
                if value not in self._found.linkers or ("/" in value and value[0] != "/"):
                    return False
            elif name.removeprefix("pre-").removeprefix("post-") == "link-arg":
                arguments.append(value)
            elif name.removeprefix("pre-").removeprefix("post-") == "link-args":
                arguments += value.split(" ")
            elif "link" in name and name != "link-dead-code":
                return False
        return not arguments or native.are_plain_for_linkers(arguments)

    def _just_now(self, unit: Unit, made: Record | None, invoked: int) -> None:
        """It was made by this very command, or by one that left word of the same variables."""
        is_made_here = made is not None and made.build_dir == self._place.build_dir
        name = unit.profile.name
        if not self._runs.is_of_now(name, invoked, made_here=is_made_here):
            raise _Refused("it was built before, with variables that nobody noted")

    def _declared(self, unit: Unit) -> list[list[str]]:
        """What the script of a package from elsewhere declares outside of it, with contents.

        Its own files are those of its version.  Cargo goes by their times, which a graft changes.
        """
        script = unit.script() if unit.is_script_run else None
        found = []
        for name in script.rerun_if_changed if script is not None else ():
            if not name.startswith("/"):
                if name.startswith("../") or "/../" in name:
                    raise _Refused(f"its script declares {name}")
                continue
            path = os.path.normpath(name)
            if path.startswith(self._place.registry) or below(path, unit.run_directory) is not None:
                continue
            if below(path, self._place.checkout) is not None:
                raise _Refused(f"its script declares {path}")
            reference = mtime(unit.script_stdout_file) or 0
            if not self._unchanged(path, reference):
                raise _Refused(f"{path} was changed after its script ran")
            found.append([path, self._contents.file(path)])
        return sorted(found)

    @staticmethod
    def _unchanged(path: str, reference: int) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            return False  # such a script runs on every build
        return stat.S_ISREG(status.st_mode) and max(status.st_mtime_ns, status.st_ctime_ns) <= (
            reference
        )

    def _files(self, unit: Unit) -> tuple[list[list[Any]], list[list[str]], list[str]]:
        """(path, name, what it says) of each file; further names of the same; directories."""
        root = len(self._place.build_dir) + 1
        files: list[list[Any]] = []
        links: list[list[str]] = []
        directories: list[str] = []
        first: dict[tuple[int, int], str] = {}
        compared = set(unit.compared_outputs())
        out = f"{unit.out_dir}/" if unit.is_script_run else None
        for path, status in _walk(unit.parts()):
            name = path[root:]
            if stat.S_ISDIR(status.st_mode):
                directories.append(name)
                continue
            if not stat.S_ISREG(status.st_mode):
                raise _Refused(f"{name} is no file")
            base = os.path.basename(name)
            if base in (RECORD_NAME, ASKED_NAME) or base.endswith(".tmp"):
                continue
            inode = (status.st_dev, status.st_ino)
            if inode in first:
                links.append([name, first[inode]])
                continue
            first[inode] = name
            says = _SILENT
            if path == unit.script_stdout_file and unit.is_script_run:
                says = _TEXT
            elif path in compared or (out is not None and path.startswith(out)):
                says = _COUNTS
            files.append([path, name, says])
        return files, links, directories


def _walk(parts: Sequence[str]) -> Iterator[tuple[str, os.stat_result]]:
    for part in sorted(set(parts)):
        status = os.lstat(part)
        yield part, status
        if stat.S_ISDIR(status.st_mode):
            yield from _walk([f"{part}/{name}" for name in os.listdir(part)])


def _names_files(flags: Sequence[str]) -> bool:
    """Whether flags of rustc's name what it reads: libraries, profiles, another sysroot, flags."""
    words = ("profile-use", "profile-sample-use", "--extern", "--sysroot", "--target")
    return any(
        flag.startswith(("-L", "-l", "@")) or any(word in flag for word in words) for flag in flags
    )


def _names_out_dir(unit: Unit) -> bool:
    if unit.is_script_run:
        return False
    makefile = unit.makefile()
    return makefile is None or any(name == "OUT_DIR" for name, _ in makefile.env)


def _seconds(unit: Unit, invoked: int) -> float:
    """What the unit took: until its last file was written."""
    newest = max((mtime(path) or 0 for path in unit.compared_outputs()), default=0)
    # A stamped unit carries the time of its proof.
    return max(0.0, min(3600.0, (newest - invoked) / 1e9))


def _variables(unit: Unit) -> list[list[str | None]]:
    """What its script declares of the environment, with what Cargo found then (digests)."""
    fingerprint = unit.fingerprint()
    found: list[list[str | None]] = []
    for entry in fingerprint.local if fingerprint is not None else ():
        declared = entry.get("RerunIfEnvChanged")
        if isinstance(declared, Mapping):
            value = declared.get("val")
            text = None if value is None else digest_of(os.fsencode(str(value)))
            found.append([str(declared.get("var")), text])
    return sorted(found, key=str)


def _declares(made: Record | None, value: Mapping[str, object]) -> str:
    """All that a script declares, with contents.

    It is often there only to have Cargo compile the package again when something changes that a
    macro reads: what was built against another run of it is another build, whatever it printed.
    """
    inputs = [] if made is None else [list(entry) for entry in made.inputs]
    timed = None if made is None or made.timed is None else [entry[::2] for entry in made.timed]
    return json.dumps([inputs, timed, value["declared"], value["variables"]])


def variable_now(name: str, values: Mapping[str, str]) -> str | None:
    """The digest of a variable's value, as entries have it; None if it is not set."""
    value = values.get(name)
    return None if value is None else digest_of(os.fsencode(value))


def _identity(made: Record | None) -> object:
    """What tells two records of equal units apart: not when they were made, and on what builds."""
    if made is None:
        return None
    plain = made._replace(
        invoked=0,
        dependencies=tuple((key, 0) for key, _ in made.dependencies),
        settled_checkout=None,
        settled_build_dir=None,
    )
    if made.out_dir_baked is False and not made.bakes_root and not made.env:
        plain = plain._replace(checkout="", workspace="", build_dir="")
    return list(plain)
