"""Is an entry what a compile gives?  Entries compiled again, aside, and compared byte by byte.

An entry holds the call that made it; its sources must still be there, as they were, and its
dependencies be in the store.  `plan` says what can be tried, and of the rest why not;
`compile_again` tries, in a directory of its own in the store.

The compiler runs where it ran then, with the same arguments but for the place of outputs,
dependencies and incremental state, which is not in the outputs, and with the variables that Cargo
set and those that the entry's key and record name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cargo_cow import native
from cargo_cow.errors import CowError
from cargo_cow.prepare import outputs
from cargo_cow.warehouse import store
from cargo_cow.warehouse.store import Entry

Verdict = Literal["same", "differs", "not-repeatable", "failed", "not-tried"]

_BLOCK = 4096
# Of the environment of whoever asks: where programs and toolchains are, and nothing else.
_OWN = ("PATH", "HOME", "RUSTUP_HOME", "CARGO_HOME", "TMPDIR", "LANG", "LC_ALL")
# Not a variable's value, but a list of what it holds.
_LISTED = "LD_LIBRARY_PATH"


class Trial(NamedTuple):
    """An entry that can be compiled again.

    ``dependencies``: file name and content (a file of the store) of all that it may be given.
    """

    entry: Entry
    programs: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    dependencies: Mapping[str, Path]


class Outcome(NamedTuple):
    """What became of an entry; ``why`` in words, ``seconds`` what compiling took."""

    entry: Entry
    verdict: Verdict
    why: str = ""
    seconds: float = 0.0


class Plan(NamedTuple):
    """What can be tried, and what not, and why."""

    trials: tuple[Trial, ...]
    refused: tuple[Outcome, ...]


class _Refused(Exception):
    """Why an entry cannot be compiled again."""


def plan(root: Path, entries: Sequence[Entry]) -> Plan:
    """Which of ``entries`` can be compiled again; all of ``root`` may be dependencies.

    Reads sources and what entries say of themselves, and runs no compiler.
    """
    look = _Look(root)
    trials = []
    refused = []
    for entry in entries:
        try:
            trials.append(look.trial(entry))
        except _Refused as why:
            refused.append(Outcome(entry, "not-tried", str(why)))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            refused.append(Outcome(entry, "not-tried", f"it is of an unknown form: {error}"))
    return Plan(tuple(trials), tuple(refused))


class _Look:
    """What is looked up for several entries."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._values: dict[Path, dict[str, Any]] = {}
        self._made: dict[tuple[str, str], tuple[Entry, int]] = {}
        self._compilers: dict[
            tuple[tuple[str, ...], str, str, Path], tuple[str, frozenset[str]]
        ] = {}
        for entry in store.entries(root):
            if entry.trouble is None and entry.kind == "call":
                for index, (name, _, digest) in enumerate(entry.outputs):
                    self._made.setdefault((name, digest), (entry, index))

    def _value(self, entry: Entry) -> dict[str, Any]:
        if entry.path not in self._values:
            self._values[entry.path] = store.read(entry.path)
        return self._values[entry.path]

    def trial(self, entry: Entry) -> Trial:
        if entry.trouble is not None:
            raise _Refused(entry.trouble)
        value = self._value(entry)
        if entry.kind != "call":
            raise _Refused("it is a whole unit of Cargo's: its calls are entries of their own")
        call = value.get("call")
        if not call:
            raise _Refused("it does not hold the call that made it")
        around = (value.get("surroundings") or {}).get("parts") or []
        parts = [(str(kind), str(text)) for kind, text in (*value["parts"], *around)]
        if dict(parts).get("directory") != value["directory"]:
            raise _Refused("the compiler saw its checkout elsewhere than where it is")
        if any(kind == "input" for kind, _ in parts):
            raise _Refused("what its manifest declares is known by a digest only")
        directory = Path(call["directory"])
        if not directory.is_dir():
            raise _Refused(f"{directory} is not there any more")
        _sources(value, directory)
        environment = _environment(value, call, parts)
        programs = tuple(map(str, call["programs"]))
        self._compiler(programs, parts, directory, environment)
        arguments = tuple(map(str, call["arguments"]))
        searched = environment.get("LIBRARY_PATH", "").split(":")
        _native_libraries([*_values(arguments, "-L"), *filter(None, searched)], parts, directory)
        _linkers(parts)
        return Trial(entry, programs, arguments, environment, directory, self._dependencies(parts))

    def _compiler(
        self,
        programs: tuple[str, ...],
        parts: Sequence[tuple[str, str]],
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        target = next((t[9:] for kind, t in parts if kind == "word" and t[:9] == "--target "), "")
        then = next((text for kind, text in parts if kind in ("compiler", "clippy")), "")
        toolchain = environment.get("RUSTUP_TOOLCHAIN", "")
        # Without it rustup goes by the directory.
        key = programs, target, toolchain, directory if not toolchain else Path()
        if key not in self._compilers:
            try:
                told = native.identify(self._root, programs, target, directory, environment)
            except CowError as error:
                told = f"? {error}", frozenset[str]()
            self._compilers[key] = told
        identity, system = self._compilers[key]
        if identity.startswith("? "):
            raise _Refused(f"its compiler is not there: {identity[2:]}")
        if identity != then:
            raise _Refused("the compiler of then is another by now")
        for kind, text in parts:
            if kind == "system" and text not in system:
                where = text.rpartition(" ")[0]
                raise _Refused(f"the system's libraries in {where} are others by now")

    def _dependencies(self, parts: Sequence[tuple[str, str]]) -> dict[str, Path]:
        """All that a compile of these parts may be given: what is above comes first."""
        found: dict[str, Path] = {}
        seen: set[Path] = set()
        wanted = [text.split(" ")[-2:] for kind, text in parts if kind in ("extern", "below")]
        while wanted:
            name, digest = wanted.pop(0)
            made = self._made.get((name, digest))
            if made is None:
                raise _Refused(f"its dependency {name} is not in the warehouse any more")
            entry, index = made
            found.setdefault(name, entry.path / str(index))
            if entry.path in seen or name.endswith(".so"):
                continue
            seen.add(entry.path)
            for number, (other, _, _) in enumerate(entry.outputs):
                found.setdefault(other, entry.path / str(number))
            below = self._value(entry)["parts"]
            wanted += [text.split(" ")[-2:] for kind, text in below if kind == "extern"]
        return found


def _sources(value: Mapping[str, Any], directory: Path) -> None:
    for base, name, digest, *_ in value["files"]:
        generated = base == "out"
        root = value.get("out") if generated else directory
        path = Path(str(root), str(name))
        what = "what its build script generated" if generated else "its source"
        _same(path, str(digest), f"{what} {name}")
    for name in value.get("absent") or ():
        if (directory / str(name)).exists():
            raise _Refused(f"{name} is there now, which was not")
    hidden = value.get("hidden") or {}
    if "files" not in hidden:
        return  # not observed, or not all of it, by an older shim
    for name, _, digest in hidden["files"]:
        _same(Path(name), str(digest), f"{name}, which a macro read,")
    for name, digest in hidden["directories"]:
        # As `directory_names` of the native program's inputs.rs has it.
        with contextlib.suppress(OSError):
            names = b"".join(one + b"\0" for one in sorted(map(os.fsencode, _names(name))))
            if _digest(names) == digest:
                continue
        raise _Refused(f"the directory {name}, which a macro read, is another")
    for wanted, names in ((False, hidden["missing"]), (True, hidden["existing"])):
        for name in names:
            if Path(name).exists() != wanted:
                raise _Refused(f"{name}, which a macro looked for, {'is not ' * wanted}there now")


def _names(directory: Path | str) -> list[str]:
    return [path.name for path in Path(directory).iterdir()]


def _same(path: Path, digest: str, what: str) -> None:
    try:
        found = _digest(path.read_bytes())
    except OSError:
        raise _Refused(f"{what} is not there any more") from None
    if found != digest:
        raise _Refused(f"{what} was changed")


def _digest(data: bytes) -> str:
    from blake3 import blake3

    return blake3(data).hexdigest()


def _environment(
    value: Mapping[str, Any], call: Mapping[str, Any], parts: Sequence[tuple[str, str]]
) -> dict[str, str]:
    result = {name: os.environ[name] for name in _OWN if name in os.environ}
    secrets: list[tuple[str, str]] = []
    for kind, text in parts:
        if kind != "variable":
            continue
        name, mark, rest = _variable(text)
        if name == _LISTED:
            continue
        if mark == "#":
            secrets.append((name, rest))
        else:
            result[name] = rest
    result.update((str(name), str(text)) for name, text in call["environment"])
    for name, text in value.get("variables") or ():
        if text is None:
            result.pop(name, None)
        elif name != "OUT_DIR":
            result[name] = str(text)
    hidden = value.get("hidden") or {}
    secrets += [(n, d) for n, d in hidden.get("env") or () if d is not None]
    for name, digest in secrets:
        for known in (result.get(name), os.environ.get(name)):
            if known is not None and _digest(os.fsencode(known)) == digest:
                result[name] = known
                break
        else:
            raise _Refused(f"the value of {name} is not known: only its digest is kept")
    return result


def _variable(text: str) -> tuple[str, str, str]:
    """``NAME=value``, or ``NAME#digest``."""
    ends = [at for at in (text.find("="), text.find("#")) if at > 0]
    at = min(ends)
    return text[:at], text[at], text[at + 1 :]


def _native_libraries(
    searched: Sequence[str], parts: Sequence[tuple[str, str]], directory: Path
) -> None:
    """Those that are in no system's package: where they were, and as they were."""
    wanted = {text for kind, text in parts if kind == "library"}
    there: set[str] = set()
    for argument in searched:
        kind, _, path = argument.rpartition("=")
        if kind == "dependency":
            continue
        where = directory / path
        if not where.is_dir():
            raise _Refused(f"native libraries were in {path}, which is not there any more")
        there.update(_names(where))
        for text in wanted:
            name, _, digest = text.partition(" ")
            if len(digest) == 64 and (where / name).is_file():
                _same(where / name, digest, f"the native library {name}")
    for text in wanted:
        name = text.partition(" ")[0]
        if name not in there:
            raise _Refused(f"the native library {name} is not there any more")


def _linkers(parts: Sequence[tuple[str, str]]) -> None:
    """As they looked then: ``name path size mtime ctime``."""
    for kind, text in parts:
        if kind != "linker":
            continue
        name, path, *looks = text.split(" ")
        try:
            status = Path(path).stat()
        except OSError:
            raise _Refused(f"the linker {name} is not there any more") from None
        now = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if looks != [str(one) for one in now]:
            raise _Refused(f"the linker {name} is another by now")


def _values(arguments: Sequence[str], option: str) -> Iterator[str]:
    rest = iter(arguments)
    for word in rest:
        if word == option:
            yield next(rest, "")
        elif word.startswith(option) and not word.startswith("--"):
            yield word[len(option) :]


# -- acting


@contextlib.contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """A directory in the store's own workshop: data can be shared with the store, and what is left
    of it, if we are killed, is collected with everything else there."""
    workshop = root / "making"
    workshop.mkdir(mode=0o700, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-again-", dir=workshop))
    lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def compile_again(root: Path, trial: Trial) -> Outcome:
    """Compile an entry again, and compare; once more, where it differs."""
    entry = trial.entry
    with scratch(root) as room:
        first = _run(trial, room / "here")
        if first.failed is not None:
            return Outcome(entry, "failed", first.failed, first.seconds)
        differing = [
            (index, name)
            for index, (name, _, digest) in enumerate(entry.outputs)
            if _digest_of(first.out / name) != digest
        ]
        if not differing:
            return Outcome(entry, "same", "", first.seconds)
        told = "; ".join(
            f"{name}: {_difference(entry.path / str(index), first.out / name)}"
            for index, name in differing
        )
        # At the same place, lest that be the difference.
        first = first._replace(out=room / "first" / first.out.name)
        (room / "here").rename(room / "first")
        second = _run(trial, room / "here")
        seconds = first.seconds + second.seconds
        repeats = second.failed is None and all(
            _digest_of(first.out / name) == _digest_of(second.out / name) for _, name in differing
        )
        if not repeats:
            why = f"two compiles in a row differ (time or chance in a macro): {told}"
            return Outcome(entry, "not-repeatable", why, seconds)
        if entry.incremental:
            why = f"it may have been compiled from an earlier incremental state: {told}"
            return Outcome(entry, "not-repeatable", why, seconds)
        return Outcome(entry, "differs", told, seconds)


class _Ran(NamedTuple):
    out: Path
    seconds: float
    failed: str | None


def _run(trial: Trial, room: Path) -> _Ran:
    out, given = room / "deps", room / "given"
    for path in (out, given):
        path.mkdir(parents=True)
    for name, source in trial.dependencies.items():
        _copy(source, given / name)
    command = [*trial.programs, *_arguments(trial.arguments, out, given, room / "incremental")]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=trial.directory,
            env={**trial.environment, "CARGO_COW_WAREHOUSE": "off"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        return _Ran(out, 0.0, f"{command[0]}: {error.strerror}")
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return _Ran(out, seconds, None)
    return _Ran(out, seconds, _said(done.stderr) or f"status {done.returncode}")


def _said(stderr: bytes) -> str:
    """The first error among rustc's lines."""
    import json

    for line in stderr.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if value.get("level") == "error":
                return str(value.get("message"))
    return stderr.decode("utf-8", "replace").strip().partition("\n")[0]


def _arguments(
    arguments: Sequence[str], out: Path, given: Path, incremental: Path
) -> Iterator[str]:
    """With the places of outputs, dependencies and incremental state changed."""
    rest = iter(arguments)
    for word in rest:
        if word in ("--out-dir", "--extern", "-L", "-C"):
            value = next(rest, "")
            yield word
            yield _placed(word, value, out, given, incremental)
            continue
        for option in ("--out-dir=", "--extern=", "-L", "-C"):
            if word.startswith(option):
                value = word[len(option) :]
                yield option + _placed(option.rstrip("="), value, out, given, incremental)
                break
        else:
            yield word


def _placed(option: str, value: str, out: Path, given: Path, incremental: Path) -> str:
    if option == "--out-dir":
        return os.fspath(out)
    if option == "--extern" and "=" in value:
        name, _, path = value.partition("=")
        return f"{name}={given / Path(path).name}"
    if option == "-L" and value.startswith("dependency="):
        return f"dependency={given}"
    if option == "-C" and value.startswith("incremental="):
        return f"incremental={incremental}"
    return value


def _copy(source: Path, dest: Path) -> None:
    """By reflink where that is possible: the compiler is not to see the store's own files."""
    with source.open("rb") as one, dest.open("xb") as other:
        left = os.fstat(one.fileno()).st_size
        try:
            while left > 0:
                copied = os.copy_file_range(one.fileno(), other.fileno(), left)
                if not copied:
                    break
                left -= copied
        except OSError:
            one.seek(0)
            other.seek(0)
            shutil.copyfileobj(one, other)


def _digest_of(path: Path) -> str | None:
    try:
        return _digest(path.read_bytes())
    except OSError:
        return None


def _difference(kept: Path, made: Path) -> str:
    """How two files differ, as far as can be told."""
    try:
        one, other = kept.read_bytes(), made.read_bytes()
    except OSError:
        return "it is not made any more"
    sizes = f"{len(one)} bytes then, {len(other)} now" if len(one) != len(other) else ""
    offsets = []
    for start in range(0, min(len(one), len(other)), _BLOCK):
        left, right = one[start : start + _BLOCK], other[start : start + _BLOCK]
        if left != right:
            for at, (a, b) in enumerate(zip(left, right, strict=False)):
                if a != b:
                    offsets.append(start + at)
                    break
    names = sorted(outputs.sections_at(os.fspath(kept), offsets)) if offsets else []
    where = ", ".join(name or "outside of sections" for name in names)
    limit = ""
    if names and all(name in _LIMITS or name.startswith(".debug_") for name in names):
        limit = ", which holds what a debugger or a linker's build id tells"
    told = [sizes, f"first at byte {offsets[0]}" if offsets else "", where + limit]
    return ", ".join(text for text in told if text)


_LIMITS = frozenset({".note.gnu.build-id", ".strtab", ".symtab", ".shstrtab"})
