"""A Cargo build directory on disk: its profiles, its units, both layouts behind one adapter.

Legacy layout (default up to 1.99): ``<profile>/.fingerprint/<pkg>-<hash>/``, outputs in
``<profile>/{deps,examples}/`` and ``<profile>/build/<pkg>-<hash>/``.  New layout (default from
1.100, ``-Zbuild-dir-new-layout`` before): ``<profile>/build/<pkg>/<hash>/{fingerprint,out,run}``.
Source: module documentation of ``compiler/layout.rs``; unit hashes are the same in both.

Nothing here writes, and nothing follows a symlink out of the directory.
"""

from __future__ import annotations

import json
import os
import re
from typing import Literal, NamedTuple

from cargo_cow.cargo.depinfo import DepInfo, MakefileDepInfo, parse_encoded, parse_makefile
from cargo_cow.cargo.script import ScriptOutput, parse_output

OBSERVED_NAME = "cow-observed.json"
ASKED_NAME = "cow-asked.json"
"""What the shim asked the warehouse for, and did not get (``docs/warehouse.md``)."""
RECORD_NAME = "cow-record.json"

_UNIT_DIRECTORY = re.compile(r"^(.+)-([0-9a-f]{16})$")
_HASH = re.compile(r"^[0-9a-f]{16}$")
_OUTPUT = re.compile(r"-([0-9a-f]{16})(?:\.[A-Za-z0-9_.]*)?$")
_SKIPPED = ("dep-", "output-", "cow-")
# What Cargo lists as outputs of a rustc unit and compares by mtime (build_runner/
# compilation_files.rs); `.d`, `.dwp`, `.dSYM` and the like are not compared.
_COMPARED = (".rlib", ".rmeta", ".so", ".a", ".wasm", ".exe", "")

Layout = Literal["legacy", "new"]


CACHE_TAG = """\
Signature: 8a477f597d28d172789f06886806bc55
# This file is a cache directory tag created by cargo.
"""
"""First lines of ``CACHEDIR.TAG`` as Cargo writes it into a target that it makes (cargo-util's
``paths.rs``, ``create_dir_all_excluded_from_backups_atomic``)."""


class Fingerprint(NamedTuple):
    """The part of ``<kind>-<name>.json`` that we read.

    ``dependencies`` are the dependencies' own fingerprint hashes: they name units by value
    (``impl Serialize for DepFingerprint``).  ``local`` is kept as Cargo serialised it.
    ``rustflags`` are those of the configuration and of variables.
    """

    dependencies: tuple[int, ...]
    local: tuple[dict[str, object], ...]
    rustc: int
    rustflags: tuple[str, ...]


class Profile:
    """One ``[<triple>/]<profile>`` directory; lists its output files once, by unit hash."""

    __slots__ = ("_outputs", "directory", "layout", "name")

    def __init__(self, directory: str, name: str, layout: Layout) -> None:
        self.directory = directory
        self.name = name
        self.layout = layout
        self._outputs: dict[str, list[str]] | None = None

    def outputs_by_hash(self) -> dict[str, list[str]]:
        """Absolute paths in ``deps/`` and ``examples/`` by unit hash; "" for names without."""
        if self._outputs is None:
            found: dict[str, list[str]] = {}
            for room in ("deps", "examples"):
                try:
                    entries = os.listdir(f"{self.directory}/{room}")
                except OSError:
                    continue
                for entry in entries:
                    match = _OUTPUT.search(entry)
                    key = match[1] if match else ""
                    found.setdefault(key, []).append(f"{self.directory}/{room}/{entry}")
            self._outputs = found
        return self._outputs


class Unit:
    """One unit on disk.  Files are read when first asked for, and then kept."""

    __slots__ = (
        "_dep_info",
        "_fingerprint",
        "_hash",
        "_makefile",
        "_script",
        "directory",
        "hash",
        "package",
        "profile",
        "stem",
    )

    def __init__(
        self, profile: Profile, package: str, unit_hash: str, directory: str, stem: str
    ) -> None:
        self.profile = profile
        self.package = package
        self.hash = unit_hash
        self.directory = directory
        self.stem = stem
        self._hash: Literal[False] | int | None = False
        self._fingerprint: Literal[False] | Fingerprint | None = False
        self._dep_info: Literal[False] | DepInfo | None = False
        self._makefile: Literal[False] | MakefileDepInfo | None = False
        self._script: Literal[False] | ScriptOutput | None = False

    def __repr__(self) -> str:
        return f"<Unit {self.key}>"

    @property
    def key(self) -> str:
        """``<profile>/<pkg>-<hash>``: unique in one build directory, the same in every clone."""
        return f"{self.profile.name}/{self.package}-{self.hash}"

    @property
    def is_script_run(self) -> bool:
        return self.stem.startswith("run-build-script")

    @property
    def is_documentation(self) -> bool:
        return self.stem.startswith("doc-")

    @property
    def hash_file(self) -> str:
        return f"{self.directory}/{self.stem}"

    @property
    def dep_info_file(self) -> str:
        return f"{self.directory}/dep-{self.stem}"

    @property
    def record_file(self) -> str:
        return f"{self.directory}/{RECORD_NAME}"

    @property
    def observed_file(self) -> str:
        return f"{self.directory}/{OBSERVED_NAME}"

    @property
    def run_directory(self) -> str:
        """Where a build-script run keeps stdout, ``root-output`` and ``invoked.timestamp``."""
        if self.profile.layout == "new":
            return f"{os.path.dirname(self.directory)}/run"
        return f"{self.profile.directory}/build/{self.package}-{self.hash}"

    @property
    def out_dir(self) -> str:
        """``OUT_DIR`` of a build-script run."""
        if self.profile.layout == "new":
            return f"{os.path.dirname(self.directory)}/out"
        return f"{self.run_directory}/out"

    @property
    def script_stdout_file(self) -> str:
        name = "stdout" if self.profile.layout == "new" else "output"
        return f"{self.run_directory}/{name}"

    @property
    def root_output_file(self) -> str:
        return f"{self.run_directory}/root-output"

    @property
    def invoked_file(self) -> str:
        """Its mtime is the start of the compile or run: it names this very build of the unit."""
        base = self.run_directory if self.is_script_run else self.directory
        return f"{base}/invoked.timestamp"

    @property
    def reference_file(self) -> str:
        """The file whose mtime Cargo compares the inputs with (``find_stale_file``)."""
        return self.script_stdout_file if self.is_script_run else self.dep_info_file

    def invoked(self) -> int | None:
        """Start of the compile or run, ns since the epoch; None if unknown."""
        return mtime(self.invoked_file)

    def fingerprint_hash(self) -> int | None:
        """The stored fingerprint; None where Cargo would call the unit dirty (empty or missing)."""
        if self._hash is False:
            self._hash = None
            data = _read(self.hash_file)
            if data is not None and len(data) == 16:
                try:
                    # util/hex.rs::to_hex: little endian bytes of the u64.
                    self._hash = int.from_bytes(bytes.fromhex(data.decode("ascii")), "little")
                except ValueError:
                    self._hash = None
        return self._hash

    def fingerprint(self) -> Fingerprint | None:
        """The JSON beside the hash; None if missing or not of the known shape."""
        if self._fingerprint is False:
            self._fingerprint = None
            # `with_extension` replaces what follows the last dot of a target name, too.
            stem = self.stem.rsplit(".", 1)[0] if "." in self.stem else self.stem
            data = _read(f"{self.directory}/{stem}.json")
            if data is not None:
                try:
                    value = json.loads(data)
                    self._fingerprint = Fingerprint(
                        tuple(int(entry[3]) for entry in value["deps"]),
                        tuple(value["local"]),
                        int(value["rustc"]),
                        tuple(map(str, value["rustflags"])),
                    )
                except (ValueError, KeyError, TypeError, IndexError):
                    self._fingerprint = None
        return self._fingerprint

    def dep_info(self) -> DepInfo | None:
        """Cargo's dep-info; None if missing.  Raises UnknownFormat."""
        if self._dep_info is False:
            data = _read(self.dep_info_file)
            self._dep_info = None if data is None else parse_encoded(data, self.dep_info_file)
        return self._dep_info

    def makefile(self) -> MakefileDepInfo | None:
        """rustc's own dep-info; None if it is not there."""
        if self._makefile is False:
            self._makefile = None
            for path in self.files():
                if path.endswith(".d"):
                    data = _read(path)
                    if data is not None:
                        self._makefile = parse_makefile(data)
                        break
        return self._makefile

    def made_in(self) -> str | None:
        """The build directory that the compiler or script wrote into, by its own words.

        None where nothing tells.  It is the name that Cargo used, which may be a symlink.
        """
        if self.is_script_run:
            data = _read(self.root_output_file)
            named, here = os.fsdecode(data or b""), self.out_dir
        else:
            makefile = self.makefile()
            named = os.path.dirname(makefile.output) if makefile is not None else ""
            file = next((path for path in self.files() if path.endswith(".d")), "")
            here = os.path.dirname(file)
        build_dir = self.profile.directory.removesuffix(f"/{self.profile.name}")
        inside = here[len(build_dir) :] if here.startswith(f"{build_dir}/") else ""
        if not inside or not named.startswith("/") or not named.endswith(inside):
            return None
        return named[: -len(inside)]

    def script(self) -> ScriptOutput | None:
        """A build-script run's directives; None if its stdout is not there."""
        if self._script is False:
            data = _read(self.script_stdout_file)
            self._script = None if data is None else parse_output(data)
        return self._script

    def files(self) -> list[str]:
        """Every file rustc made for this unit (absolute); a script run has only its stdout."""
        if self.is_script_run:
            return [self.script_stdout_file]
        if self.profile.layout == "new":
            out = f"{os.path.dirname(self.directory)}/out"
            return [entry.path for entry in _entries(out) if entry.is_file(follow_symlinks=False)]
        outputs = self.profile.outputs_by_hash()
        if self.stem.startswith("build-script-"):
            directory = f"{self.profile.directory}/build/{self.package}-{self.hash}"
            return [
                entry.path for entry in _entries(directory) if entry.is_file(follow_symlinks=False)
            ]
        hashed = outputs.get(self.hash)
        if hashed is not None:
            return hashed
        # Libraries whose file names carry no hash (cdylib, dylib; `should_use_metadata`).
        if not self.stem.startswith("lib-"):
            return []
        crate = crate_of(self)
        names = {
            f"lib{crate}.so",
            f"lib{crate}.rlib",
            f"lib{crate}.rmeta",
            f"lib{crate}.a",
            f"{crate}.d",
            f"{crate}.wasm",
            crate,
        }
        room = f"{self.profile.directory}/deps"
        return [
            path
            for path in outputs.get("", ())
            if os.path.split(path)[0] == room and os.path.basename(path) in names
        ]

    def parts(self) -> list[str]:
        """Everything on disk that is this unit's alone (absolute): the fingerprint directory last.

        Directories count with all below them.  Hard links that Cargo makes again even for a fresh
        unit (``<profile>/<program>``) and rustc's incremental state are not among them.
        """
        if self.profile.layout == "new":
            return [os.path.dirname(self.directory)]
        if self.is_script_run or self.stem.startswith("build-script-"):
            return [f"{self.profile.directory}/build/{self.package}-{self.hash}", self.directory]
        return [*self.files(), self.directory]

    @property
    def shares_names(self) -> bool:
        """Whether the unit's outputs have names without its hash, which other units have, too.

        A path package's dynamic library in the legacy layout (``should_use_metadata``).  Its
        fingerprint's directory is the same for all features and flags as well (``pkg_dir``): only
        another package, or another kind of the same name, has one of its own.
        """
        return (
            self.profile.layout == "legacy"
            and not self.is_script_run
            and not self.stem.startswith("build-script-")
            and self.hash not in self.profile.outputs_by_hash()
        )

    def may_write_for(self, other: Unit) -> bool:
        """Whether this unit, of the same target or another, may have written, or may write, what is
        taken for an output of ``other``, which shares its names."""
        return (
            self.key != other.key
            and self.profile.name == other.profile.name
            and self.shares_names
            and crate_of(self) == crate_of(other)
        )

    def compared_outputs(self) -> list[str]:
        """The outputs whose mtimes Cargo compares with those of the dependencies."""
        if self.is_script_run:
            return [self.script_stdout_file]
        return [path for path in self.files() if os.path.splitext(path)[1] in _COMPARED]


class Target:
    """A build directory: all profiles, all units, the dependency graph among them."""

    def __init__(self, build_dir: str, profiles: list[Profile] | None = None) -> None:
        self.build_dir = build_dir
        self.profiles = _profiles(build_dir) if profiles is None else profiles
        self.units: list[Unit] = []
        self.unknown: list[str] = []
        """Unit directories that are not of a shape we know; they are left alone."""
        for profile in self.profiles:
            self._scan(profile)
        self._by_hash: dict[int, list[Unit]] | None = None

    def _scan(self, profile: Profile) -> None:
        if profile.layout == "legacy":
            root = f"{profile.directory}/.fingerprint"
            for entry in _entries(root):
                match = _UNIT_DIRECTORY.match(entry.name)
                if match and entry.is_dir(follow_symlinks=False):
                    self._add(profile, match[1], match[2], entry.path)
            return
        for package in _entries(f"{profile.directory}/build"):
            if not package.is_dir(follow_symlinks=False) or _UNIT_DIRECTORY.match(package.name):
                continue
            for entry in _entries(package.path):
                if _HASH.match(entry.name) and os.path.isdir(f"{entry.path}/fingerprint"):
                    self._add(profile, package.name, entry.name, f"{entry.path}/fingerprint")

    def _add(self, profile: Profile, package: str, unit_hash: str, directory: str) -> None:
        stems = [
            entry
            for entry in os.listdir(directory)
            if not entry.startswith(_SKIPPED)
            and not entry.endswith((".json", ".tmp"))
            and entry != "invoked.timestamp"
        ]
        if len(stems) == 1:
            self.units.append(Unit(profile, package, unit_hash, directory, stems[0]))
        elif stems:
            self.unknown.append(directory)

    def by_fingerprint(self) -> dict[int, list[Unit]]:
        """Units by stored fingerprint hash: how dependents name their dependencies."""
        if self._by_hash is None:
            table: dict[int, list[Unit]] = {}
            for unit in self.units:
                value = unit.fingerprint_hash()
                if value is not None:
                    table.setdefault(value, []).append(unit)
            self._by_hash = table
        return self._by_hash

    def dependencies(self, unit: Unit) -> list[Unit] | None:
        """The units that ``unit`` was built against; None if one of them is not to be found.

        Two units with the same fingerprint hash cannot be told apart: both are named.
        """
        fingerprint = unit.fingerprint()
        if fingerprint is None:
            return None
        table = self.by_fingerprint()
        found: list[Unit] = []
        for value in fingerprint.dependencies:
            units = table.get(value)
            if units is None:
                return None
            found.extend(units)
        return found


def unit_at(build_dir: str, layout: Layout, key: str, stem: str) -> Unit:
    """The unit ``key`` (``Unit.key``) as it lies, or would lie, in a build directory."""
    name, _, directory = key.rpartition("/")
    package, _, digits = directory.rpartition("-")
    profile = Profile(f"{build_dir}/{name}", name, layout)
    if layout == "new":
        path = f"{profile.directory}/build/{package}/{digits}/fingerprint"
    else:
        path = f"{profile.directory}/.fingerprint/{directory}"
    return Unit(profile, package, digits, path, stem)


def unit_times(build_dir: str) -> dict[str, int]:
    """When each unit was made (mtime of its ``invoked.timestamp``, ns), by its directory.

    Reads no unit: some three system calls for each.  It differs as soon as Cargo compiled or ran
    anything, or a unit was dropped or cleaned.
    """
    found: dict[str, int] = {}
    for profile in _profiles(build_dir):
        if profile.layout == "legacy":
            for entry in _entries(f"{profile.directory}/.fingerprint"):
                times = mtime(f"{entry.path}/invoked.timestamp")
                if times is None:
                    times = mtime(f"{profile.directory}/build/{entry.name}/invoked.timestamp")
                found[entry.path] = times or 0
            continue
        for package in _entries(f"{profile.directory}/build"):
            for entry in _entries(package.path):
                for room in ("fingerprint", "run"):
                    times = mtime(f"{entry.path}/{room}/invoked.timestamp")
                    if times is not None:
                        found[f"{entry.path}/{room}"] = times
    return found


def profile_directories(build_dir: str) -> list[str]:
    """The ``[<triple>/]<profile>`` directories of a build directory, whatever their layout."""
    return sorted({profile.directory for profile in _profiles(build_dir)})


def nested(build_dir: str) -> Target:
    """The units of other Cargo target directories that lie inside a build directory.

    trybuild has one in ``tests/trybuild``, build scripts that call Cargo have theirs in OUT_DIR or
    in ``<profile>/wbuild``, and ``--target-dir target/a/b`` makes one.  Two levels down, as
    ``<triple>/<profile>``, a profile is one of the build directory itself.  Reads every directory
    but those that hold nothing else than units.
    """
    own = {profile.directory for profile in _profiles(build_dir)}
    found: list[Profile] = []
    pending = [build_dir]
    while pending:
        directory = pending.pop()
        entries = [entry for entry in _entries(directory) if entry.is_dir(follow_symlinks=False)]
        names = {entry.name for entry in entries}
        is_profile = directory in own
        if not is_profile and names & {".fingerprint", "build"}:
            here = _profiles_of(directory, os.path.relpath(directory, build_dir))
            found += here
            is_profile = bool(here)
        skipped = _OF_UNITS_ALONE if is_profile else frozenset({".fingerprint"})
        pending += [entry.path for entry in entries if entry.name not in skipped]
    return Target(build_dir, sorted(found, key=lambda profile: (profile.name, profile.layout)))


_OF_UNITS_ALONE = frozenset({".fingerprint", "deps", "examples", "incremental"})


def mtime(path: str) -> int | None:
    """mtime in ns since the epoch; None if the file cannot be stat'ed."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def package_mtime(path: str) -> int:
    """mtime in ns of a package's file as Cargo takes it into a script's fingerprint.

    A file that cannot be stat'ed counts as of time 0, above all a symlink that leads nowhere
    (Cargo 1.95, ``sources/path.rs``, ``last_modified_file``).
    """
    return mtime(path) or 0


class Session(NamedTuple):
    """rustc's incremental state of one crate: its directory, and when its last session began (µs).

    ``directory`` is the name below ``<profile>/incremental``: ``<crate>-<id>``, where the id does
    not follow from anything that Cargo leaves on disk.
    """

    directory: str
    began: int


def crate_of(unit: Unit) -> str:
    """The crate's name, by the unit's stem: ``<kind>-<target>`` with Cargo's words in front."""
    name = unit.stem
    for front in ("test-integration-test-", "test-", "integration-test-"):
        name = name.removeprefix(front)
    for front in ("lib-", "bin-", "example-", "bench-"):
        if name.startswith(front):
            name = name.removeprefix(front)
            break
    return name.replace("-", "_")


def incremental_of(unit: Unit) -> list[str]:
    """Directories with rustc's incremental state of all units of a unit's crate name and profile.

    Which of them is the unit's own, their names do not tell.
    """
    crate = crate_of(unit)
    found = _entries(f"{unit.profile.directory}/incremental")
    return [entry.path for entry in found if entry.name.rpartition("-")[0] == crate]


def sessions(profile: Profile) -> dict[str, list[Session]]:
    """The finished incremental state below a profile, by crate name.

    Source: ``rustc_incremental/persist/fs.rs``: ``s-<microseconds>-<random>-<svh>``, numbers to the
    base of 36; a session that is not finished ends with ``-working``.
    """
    found: dict[str, list[Session]] = {}
    for entry in _entries(f"{profile.directory}/incremental"):
        crate, dash, _ = entry.name.rpartition("-")
        if not dash or not entry.is_dir(follow_symlinks=False):
            continue
        began = 0
        for inner in _entries(entry.path):
            words = inner.name.split("-")
            if len(words) == 4 and words[0] == "s" and words[3] != "working":
                try:
                    began = max(began, int(words[1], 36))
                except ValueError:
                    continue
        if began:
            found.setdefault(crate, []).append(Session(entry.name, began))
    return found


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []


def _profiles_of(directory: str, name: str) -> list[Profile]:
    """What a directory is to Cargo: a profile in one layout, in both, or none."""
    found = []
    if os.path.isdir(f"{directory}/.fingerprint"):
        found.append(Profile(directory, name, "legacy"))
    for package in _entries(f"{directory}/build"):
        if _UNIT_DIRECTORY.match(package.name) or not package.is_dir(follow_symlinks=False):
            continue
        if any(os.path.isdir(f"{unit.path}/fingerprint") for unit in _entries(package.path)):
            found.append(Profile(directory, name, "new"))
            break
    return found


def _profiles(build_dir: str) -> list[Profile]:
    found: list[Profile] = []
    for entry in _entries(build_dir):
        if not entry.is_dir(follow_symlinks=False) or entry.name.startswith("."):
            continue
        here = _profiles_of(entry.path, entry.name)
        found += here
        if not here:
            for inner in _entries(entry.path):
                if inner.is_dir(follow_symlinks=False) and not inner.name.startswith("."):
                    found += _profiles_of(inner.path, f"{entry.name}/{inner.name}")
    return sorted(found, key=lambda profile: (profile.name, profile.layout))
