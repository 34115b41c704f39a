"""Why a unit was compiled although there is a warehouse: what differs in the nearest entry.

The shim leaves what it asked for beside the unit's fingerprint (``docs/warehouse.md``); entries
hold what their key was made of, and what their compile read.  The nearest entry is the one of the
same crate with the fewest differences, among those that were there when the unit was asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cargo_cow.cargo.target import ASKED_NAME
from cargo_cow.prepare.place import below
from cargo_cow.warehouse import store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cargo_cow.cargo.target import Profile

# Cargo's own hash of the unit, which differs with what it is made of.
_FOLLOWS = frozenset({("word", "-C metadata"), ("word", "-C extra-filename")})
_PLACES = ("directory", "package", "profile", "out-dir")
# Options that may be given several times: each is one by itself.
_REPEATED = frozenset(
    "--cfg --check-cfg --extern --warn --allow --deny --forbid --force-warn -l "
    "--remap-path-prefix".split()
)


class Difference(NamedTuple):
    """One thing that differs: ``before`` in the entry, ``after`` in what was asked for.

    None: it is not there.  ``kind`` is that of the key's part, or ``file``, ``new-file``,
    ``variable``, ``diagnostics``, ``bound`` for what a compile read and made.
    """

    kind: str
    name: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        return _WORDS.get(self.kind, _otherwise)(self)


class Miss(NamedTuple):
    """A unit that was asked for in vain.  ``unit``: as `explain` names units.

    ``time``: when, in seconds since the epoch; ``what``: "miss", or "passed" where the warehouse
    is not for such calls; ``reason``: the shim's own.  ``nearest``: the entry that is told of, None
    where there is none of this crate; ``kept``: when it was made.  ``not_kept``: why the unit is
    not in the warehouse even now.
    """

    unit: str
    crate: str
    package: str
    time: float
    what: str
    reason: str
    nearest: Path | None = None
    kept: float = 0.0
    differences: tuple[Difference, ...] = ()
    not_kept: str | None = None


def asked(profiles: Iterable[Profile]) -> list[tuple[str, dict[str, Any]]]:
    """What was asked for in vain in these profiles, by unit; notes that came with a clone aside.

    A compile that failed leaves no fingerprint, so Cargo's units are not what is looked for.
    """
    found = []
    for profile in profiles:
        legacy = profile.layout == "legacy"
        pattern = ".fingerprint/*" if legacy else "build/*/*/fingerprint"
        for path in sorted(Path(profile.directory).glob(f"{pattern}/{ASKED_NAME}")):
            value = _note(path)
            if value is None:
                continue
            if os.path.realpath(str(value.get("profile"))) != os.path.realpath(profile.directory):
                continue
            of = path.parent.name
            if not legacy:
                of = f"{path.parents[2].name}-{path.parents[1].name}"
            found.append((f"{profile.name}/{of}", value))
    return found


def _note(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("time"), (int, float)):
        return None
    return value


def explain(root: Path | None, notes: Sequence[tuple[str, dict[str, Any]]]) -> list[Miss]:
    """What became of each; ``root`` is the store, None where there is none (any more)."""
    wanted = {str(note.get("crate")) for _, note in notes if note.get("what") == "miss"}
    by_crate: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    refused: dict[str, tuple[float, str]] = {}
    if root is not None and wanted:
        for path, value in _entries(root, wanted):
            by_crate.setdefault(str(value["crate"]), []).append((path, value))
        for event in store.events(root):
            if event["what"] == "not-kept":
                refused[str(event.get("key"))] = event.get("time", 0), str(event.get("reason"))
    missed = [_explained(unit, note, by_crate, refused) for unit, note in notes]
    if root is None:
        return missed
    return [
        one._replace(differences=tuple(_compilers(root, each) for each in one.differences))
        for one in missed
    ]


def _compilers(root: Path, one: Difference) -> Difference:
    """Which parts of the compiler are others, where the store remembers that."""
    if one.kind not in ("compiler", "clippy") or one.before is None or one.after is None:
        return one
    before, after = _parts_of_compiler(root, one.before), _parts_of_compiler(root, one.after)
    names = sorted(
        part
        for part in before.keys() | after.keys()
        if before.get(part) != after.get(part) and before and after
    )
    return one._replace(name=", ".join(names))


def _parts_of_compiler(root: Path, identity: str) -> dict[str, set[str]]:
    """What a compiler consists of, in words, with digests of its files."""
    result: dict[str, set[str]] = {}
    try:
        text = (root / "compilers" / f"{identity.rsplit(maxsplit=1)[-1]}.files").read_text()
    except (OSError, ValueError, IndexError):
        return result
    for line in text.splitlines():
        digest, _, name = line.partition(" ")
        result.setdefault(_part_of_compiler(name), set()).add(digest)
    return result


def _part_of_compiler(file: str) -> str:
    for beginning, word in _COMPILER:
        if file.startswith(beginning):
            return word
    names = file.split("/")
    if names[:2] == ["lib", "rustlib"] and names[3:4] == ["lib"]:
        return f"the libraries for {names[2]}"
    return file


_COMPILER = (
    ("bin/rustc", "rustc"),
    ("bin/clippy-driver", "clippy"),
    ("lib/librustc_driver", "rustc's driver"),
    ("lib/libLLVM", "LLVM"),
    ("lib/libstd-", "the compiler's own libraries"),
)


def _entries(root: Path, crates: set[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    needles = [f'"crate":"{crate}"'.encode() for crate in crates]
    for path in root.glob("units/*/*/*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            # Most entries are of other crates: not worth parsing.
            raw = (path / store.META).read_bytes()
            if any(needle in raw for needle in needles):
                value = store.read(path)
                if store.is_foreign(value):
                    continue
                is_call = value.get("kind", "call") == "call"
                if is_call and value.get("crate") in crates and isinstance(value["parts"], list):
                    yield path, value


def _explained(
    unit: str,
    note: dict[str, Any],
    by_crate: dict[str, list[tuple[Path, dict[str, Any]]]],
    refused: dict[str, tuple[float, str]],
) -> Miss:
    miss = Miss(
        unit=unit,
        crate=str(note.get("crate") or ""),
        package=str(note.get("package") or ""),
        time=float(note["time"]),
        what=str(note.get("what")),
        reason=str(note.get("reason")),
    )
    if miss.what != "miss":
        return miss
    key = str(note.get("key"))
    told = refused.get(key)
    if told is not None and told[0] >= miss.time:
        miss = miss._replace(not_kept=told[1])
    name = miss.package.partition(" ")[0]
    own: dict[str, Any] | None = None
    nearest: tuple[int, float, Path, tuple[Difference, ...]] | None = None
    candidates = []
    for path, value in by_crate.get(miss.crate, ()):
        if value.get("package") != name:
            continue
        if float(value["created"]) < miss.time:
            candidates.append((path, value))
        elif path.parent.name == key and value.get("profile") == note.get("profile"):
            own = value  # what the compile made
    for path, value in candidates:
        same = path.parent.name == key
        differences = _inputs(path, value, note, own) if same else _parts(value, note)
        # What was read is known of the same key only: that is nearer than anything else.
        distance = 0 if same else len(differences) + 1
        rank = distance, -float(value["created"]), path, differences
        if nearest is None or rank[:2] < nearest[:2]:
            nearest = rank
    if nearest is None:
        return miss
    _, kept, path, differences = nearest
    return miss._replace(nearest=path, kept=-kept, differences=differences)


# -- the key


def _parts(entry: dict[str, Any], note: dict[str, Any]) -> tuple[Difference, ...]:
    before, after = _named(_moved(entry["parts"], note["parts"])), _named(note["parts"])
    found = []
    for kind, name in sorted(before.keys() | after.keys()):
        then, now = before.get((kind, name)), after.get((kind, name))
        if then != now:
            found.append(Difference(kind, name, then, now))
    return _essential(found, store.package_of(entry), str(note.get("package") or ""))


def _moved(parts: Iterable[Sequence[str]], to: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """The parts as they would be in the other place: what is the same there is no difference."""
    there = {kind: text for kind, text in to if kind in _PLACES}
    ways = [(text, there[kind]) for kind, text in parts if kind in there and text != there[kind]]
    ways.sort(key=lambda way: -len(way[0]))

    def moved(text: str) -> str:
        return next((text.replace(*way) for way in ways if way[0] in text), text)

    return [(kind, text if kind in _PLACES else moved(text)) for kind, text in parts]


def _essential(found: list[Difference], then: str, now: str) -> tuple[Difference, ...]:
    """Without those that follow from others."""
    if then != now:
        found = [one for one in found if not _is_version(one)]
        found.insert(0, Difference("version", "", then, now))
    places = [one for one in found if one.kind in _PLACES]
    found = [one for one in found if one.kind not in _PLACES]
    if places and then == now:
        found.insert(0, Difference("place", places[0].kind, places[0].before, places[0].after))
    rest = [one for one in found if (one.kind, one.name) not in _FOLLOWS]
    return tuple(rest or found)


def _is_version(one: Difference) -> bool:
    return one.kind == "variable" and one.name.startswith("CARGO_PKG_VERSION")


def _named(parts: Iterable[Sequence[str]]) -> dict[tuple[str, str], str]:
    """Parts by what they are about.  What comes twice is numbered."""
    result: dict[tuple[str, str], str] = {}
    for kind, text in parts:
        name, value = _split(kind, text)
        number = 2
        unique = name
        while (kind, unique) in result:
            unique = f"{name} ({number})"
            number += 1
        result[kind, unique] = value
    return result


def _split(kind: str, text: str) -> tuple[str, str]:
    if kind == "word":
        option, _, value = text.partition(" ")
        if option in _REPEATED or not text.startswith("-"):
            return text, ""
        if option == "-C" and "=" in value:
            name, _, value = value.partition("=")
            return f"-C {name}", value
        return (option, value) if option != "-C" else (text, "")
    if kind == "variable":
        ends = [at for at in (text.find("="), text.find("#")) if at > 0]
        end = min(ends, default=len(text))
        return text[:end], text[end:]
    if kind == "extern":
        name, _, rest = text.partition(" ")
        return name, rest
    if kind == "below":
        file, _, _ = text.rpartition(" ")
        return file.partition("-")[0], text
    if kind in ("linker", "library"):
        name, _, rest = text.partition(" ")
        return name, rest
    if " " in text:
        name, _, value = text.rpartition(" ")
        return name, value
    return "", text


# -- what a compile of the same key read


def _inputs(
    kept: Path, entry: dict[str, Any], note: dict[str, Any], own: dict[str, Any] | None
) -> tuple[Difference, ...]:
    """What the entry's compile read, against what this one read (``own``), or what is here now."""
    found: list[Difference] = []
    elsewhere = entry.get("profile") != note.get("profile")
    if elsewhere and (entry.get("bound") or _holds_place(kept)):
        found.append(Difference("bound", "", str(entry.get("profile")), str(note.get("profile"))))
    then, now = _files(entry), None if own is None else _files(own)
    for (base, path), digest in then.items():
        after = _here(base, path, note) if now is None else now.get((base, path))
        if after != digest:
            found.append(Difference("file", path, digest, after))
    if now is not None:
        found += [
            Difference("file", path, None, digest)
            for (base, path), digest in now.items()
            if (base, path) not in then
        ]
    directory = Path(str(note.get("directory")))
    found += [
        Difference("new-file", str(path), None, "")
        for path in entry.get("absent") or ()
        if (directory / str(path)).exists()
    ]
    if own is not None:
        before, after_ = dict(_variables(entry)), dict(_variables(own))
        for name in sorted(before.keys() | after_.keys()):
            if before.get(name) != after_.get(name) and name != "OUT_DIR":
                one = Difference("variable", name, before.get(name), after_.get(name))
                found.append(one)
        if own.get("said") and entry.get("form") != own.get("form"):
            found.append(Difference("diagnostics", "", None, None))
        found += _hidden(_as_there(entry, own), own.get("hidden"))
    return tuple(found)


def _holds_place(path: Path) -> bool:
    """Whether the shim found the place in the outputs of an entry that was compiled elsewhere."""
    try:
        return (path / "holds").read_text().endswith(" yes\n")
    except (OSError, ValueError):
        return False


def _as_there(entry: dict[str, Any], own: dict[str, Any]) -> object:
    """What was observed of an entry's compile, by the paths of another compile's place."""
    hidden = entry.get("hidden")
    if not isinstance(hidden, dict):
        return hidden
    ways = list(zip(entry.get("place") or (), own.get("place") or (), strict=False))
    ways.sort(key=lambda way: -len(way[0]))

    def moved(one: object) -> object:
        if isinstance(one, list):
            return [moved(one[0]), *one[1:]]
        for was, here in ways:
            if isinstance(one, str) and (inside := below(one, was)) is not None:
                return str(Path(here, inside))
        return one

    kinds = ("files", "directories", "missing", "existing")
    return hidden | {kind: [moved(one) for one in hidden.get(kind) or ()] for kind in kinds}


def _files(entry: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(str(one[0]), str(one[1])): str(one[2]) for one in entry.get("files") or ()}


def _here(base: str, path: str, note: dict[str, Any]) -> str | None:
    from blake3 import blake3

    root = note.get("out") if base == "out" else note.get("directory")
    try:
        return blake3(Path(str(root), path).read_bytes()).hexdigest()
    except OSError:
        return None


def _variables(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Those that are set, as `_split` gives values."""
    return [(str(n), f"={v}") for n, v in entry.get("variables") or () if v is not None]


def _hidden(before: object, after: object) -> list[Difference]:
    """What a macro was seen to read."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    found = []
    for kind, where in (("files", "file"), ("directories", "directory"), ("env", "variable")):
        then = {str(one[0]): _digest(where, one[-1]) for one in before.get(kind) or ()}
        now = {str(one[0]): _digest(where, one[-1]) for one in after.get(kind) or ()}
        found += [
            Difference(where, name, then.get(name), now.get(name))
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
    return found


def _digest(kind: str, value: object) -> str | None:
    if value is None:
        return None
    return f"#{value}" if kind == "variable" else str(value)


# -- in words


def _otherwise(one: Difference) -> str:
    what = f"{one.kind} {one.name}".strip()
    if one.before is None:
        return f"{what} is new"
    if one.after is None:
        return f"{what} is not there any more"
    return f"{what} has another content"


def _word(one: Difference) -> str:
    value = one.after or ""
    if one.before is None:
        return f"never built with {one.name} {value}".rstrip()
    if one.after is None:
        return (
            f"it was built with {one.name} {one.before}".rstrip() + ", which is not asked for now"
        )
    return f"never built with these arguments: {one.name} {one.after} instead of {one.before}"


def _variable(one: Difference) -> str:
    if "#" in ((one.before or "")[:1], (one.after or "")[:1]):
        # Of what may be a secret only the digest is known.
        if one.before is None:
            return f"variable {one.name} is set, was not"
        if one.after is None:
            return f"variable {one.name} is not set, was"
        return f"variable {one.name} has another value"
    before, after = (text and repr(text[1:]) for text in (one.before, one.after))
    if before is None:
        return f"variable {one.name} is {after}, was not set"
    if after is None:
        return f"variable {one.name} is not set, was {before}"
    return f"variable {one.name} was {before}, is {after}"


def _dependency(one: Difference) -> str:
    before, after = ((text or "").partition(" ")[0] for text in (one.before, one.after))
    if one.before is None:
        return f"dependency {one.name} ({after}) is new"
    if one.after is None:
        return f"dependency {one.name} ({before}) is no dependency any more"
    if before == after:
        return f"dependency {after} is another build"
    return f"dependency {one.name} is {after}, was {before}"


def _linker(one: Difference) -> str:
    if one.before is None:
        return f"linker {one.name} was not there"
    if one.after is None:
        return f"linker {one.name} is not there any more"
    before, after = (text.partition(" ")[0] for text in (one.before, one.after))
    if before != after:
        return f"linker {one.name}: {after}, was {before}"
    return f"linker {one.name}: {after} changed"


_WORDS: dict[str, Callable[[Difference], str]] = {
    "compiler": lambda one: f"another compiler, by its content{one.name and ': '}{one.name}",
    "clippy": lambda one: f"another clippy, by its content{one.name and ': '}{one.name}",
    "format": lambda _: "it was kept by another version of cargo-cow",
    "version": lambda one: f"another version: {one.before} then, {one.after} now",
    "place": lambda one: f"it belongs to another place: {one.before}, not {one.after}",
    "bound": lambda one: f"its outputs hold the path of another target: {one.before}",
    "diagnostics": lambda _: "it said something, in another form than is asked for now",
    "word": _word,
    "variable": _variable,
    "extern": _dependency,
    "below": lambda one: _dependency(one).replace("dependency", "further below,", 1),
    "linker": _linker,
    "system": lambda one: f"libraries of the system in {one.name} changed",
    "processor": lambda _: "another processor (target-cpu=native)",
    "library": lambda one: f"native library {one.name} is another",
    "libraries": lambda one: f"native libraries are looked for in {one.after or one.before}",
    "new-file": lambda one: f"{one.name} is there, which was not",
    "package-files": lambda one: f"a file of the package in {one.name} has another content",
    "declared": lambda one: f"what its build script declares: {one.name} has another content",
    "input": lambda one: f"what the manifest declares: {one.name} has another content",
    "generated": lambda one: f"what its build script generated in {one.name} is another",
}
