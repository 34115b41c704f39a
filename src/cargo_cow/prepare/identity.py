"""Identity: at which path rustc shall see a checkout, so that incremental state goes on counting.

rustc gives up its incremental state where its working directory or ``--out-dir`` is another than
before.  The shim therefore runs it where the state was made, if ``<git-dir>/cargo-cow/
identity.json`` says so (docs/architecture.md, "Identity").  Here is decided what that file says.

Where the state was made is noted in the target itself (``.cargo-cow/seen.json``), so that it
travels with every clone and state: the first identity stays the identity of all that is cloned
from it.  A wrong note costs speed only: rustc compares the path itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cargo_cow import git
from cargo_cow.cargo.target import Target, mtime, profile_directories
from cargo_cow.errors import CowError
from cargo_cow.prepare.place import FIXED_PATH, Place, below

SWITCH = "CARGO_COW_IDENTITY"
"""Set to ``off``, identities are neither prepared nor used (the shim asks it, too)."""

FORMAT = 1
NOTE = ".cargo-cow/seen.json"
PREPARED = ".cargo-cow/prepared.json"
FILE = "cargo-cow/identity.json"
OWN = "cargo-cow/seen/checkout"
"""Below the common git directory: an empty directory that a checkout can be bound at."""


class Seen(NamedTuple):
    """Where rustc saw a checkout and its build directory: absolute, physical paths."""

    checkout: str
    build_dir: str


class Identity(NamedTuple):
    """Where rustc shall see a checkout.

    ``here`` is where it lies and ``seen`` where it shall be seen, which is the same where nothing
    is to be done.  ``reason`` says in words why; ``refused`` are places that would have been
    better, each with what stands against it.  ``file`` is the checkout's ``identity.json`` (None
    outside git).
    """

    here: Seen
    seen: Seen
    reason: str
    refused: tuple[tuple[str, str], ...]
    file: str | None

    @property
    def in_use(self) -> bool:
        return self.seen != self.here

    def __str__(self) -> str:
        place = self.seen.checkout if self.in_use else "its own place"
        refused = "".join(f"; not {path}: {why}" for path, why in self.refused)
        return f"{place} ({self.reason}{refused})"

    def as_json(self) -> dict[str, object]:
        return {
            "checkout": self.seen.checkout,
            "build_dir": self.seen.build_dir,
            "in_use": self.in_use,
            "reason": self.reason,
            "refused": [{"path": path, "reason": why} for path, why in self.refused],
        }


def own(place: Place) -> Seen:
    """Where rustc sees the checkout without us."""
    return Seen(place.checkout, place.build_dir)


def seen_in(build_dir: str | os.PathLike[str]) -> Seen | None:
    """Where the incremental state of a target (live, clone or state) was made, by its own note.

    None: there is no note, and so no identity was ever decided for it.
    """
    return _read(os.path.join(build_dir, NOTE), "checkout", "build_dir")


def seen_by(place: Place) -> Seen:
    """The same for the live target of a checkout, which may have no note yet."""
    return seen_in(place.build_dir) or wished(place) or own(place)


def alias(path: str, here: Seen, seen: Seen) -> str:
    """What a path of a checkout that lies ``here`` is called where it is ``seen``."""
    for real, other in ((here.build_dir, seen.build_dir), (here.checkout, seen.checkout)):
        inside = below(path, real)
        if inside is not None:
            return os.path.join(other, inside) if inside else other
    return path


def wished(place: Place) -> Seen | None:
    """What the checkout's ``identity.json`` says; None where it says nothing that is valid."""
    if place.git_dir is None:
        return None
    path = f"{place.git_dir}/{FILE}"
    real = _read(path, "checkout", "checkout")
    seen = _read(path, "identity", "identity")
    if real is None or seen is None or real.checkout != place.checkout:
        return None
    if (outside := _read(path, "build_dir", "build_dir_identity")) is not None:
        return Seen(seen.checkout, outside.build_dir)
    return Seen(seen.checkout, _moved(own(place), seen.checkout))


def is_wished(place: Place) -> bool:
    """Whether the checkout has an identity other than its own place.  One stat."""
    return place.git_dir is not None and os.path.exists(f"{place.git_dir}/{FILE}")


def carry(target: Path, seen: Seen) -> None:
    """Note in a target, a clone that is not published yet for one, where its state was made."""
    _write(f"{target}/{NOTE}", {"format": FORMAT, **seen._asdict()})


def note_prepared(
    target: Path, donor: Path, method: str, *, proven: int, kept: int, dropped: int
) -> None:
    """Leave word in a clone of what it was made from, and how.  Raises OSError."""
    value = {
        "format": 1,
        "donor": str(donor),
        "time": time.time(),
        "method": method,
        "proven": proven,
        "kept": kept,
        "dropped": dropped,
    }
    path = target / PREPARED
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8", errors="surrogateescape")


def keep(place: Place) -> None:
    """Note where a live target's state was made, if it has no note: it may be cloned soon."""
    if seen_in(place.build_dir) is None:
        with contextlib.suppress(OSError):  # a read-only donor: its clone is told by `carry`
            carry(Path(place.build_dir), seen_by(place))


# ---------------------------------------------------------------------------------------------
# Deciding


def refusal(here: Seen, seen: Seen, is_directory: Callable[[str], bool]) -> str | None:
    """What stands against seeing a checkout that lies ``here`` at ``seen``; None if nothing.

    ``is_directory`` tells whether a path is that of a directory, without a symlink in it.
    """
    if not is_directory(seen.checkout):
        return "it is gone, or a symlink"
    if here.checkout != seen.checkout:
        if below(seen.checkout, here.checkout) is not None:
            return "it lies inside this checkout"
        # The checkout itself may: the shim keeps it there (native/src/frame.rs).
        if (
            below(here.build_dir, here.checkout) is None
            and below(here.build_dir, seen.checkout) is not None
        ):
            return f"the target {here.build_dir} lies inside of it"
    if here.build_dir == seen.build_dir:
        return None
    inside = below(here.build_dir, here.checkout)
    if (inside is None) != (below(seen.build_dir, seen.checkout) is None):
        return f"its target was {seen.build_dir}, here it is {here.build_dir}"
    if inside is not None:
        if inside == below(seen.build_dir, seen.checkout):
            return None
        return f"its target was {seen.build_dir}, here it is {here.build_dir}"
    if not is_directory(seen.build_dir):
        return f"its target {seen.build_dir} is gone, or a symlink"
    moved = [(real, other) for real, other in zip(here, seen, strict=True) if real != other]
    for real, _ in moved:
        for _, other in moved:
            if below(real, other) is not None or below(other, real) is not None:
                return f"{real} and {other} lie in each other"
    return None


def decide(
    here: Seen,
    candidates: Iterable[tuple[Seen, str]],
    is_directory: Callable[[str], bool],
    otherwise: str,
) -> tuple[Seen, str, tuple[tuple[str, str], ...]]:
    """The first candidate that nothing stands against, why, and those that something did.

    ``candidates`` are (where, why); without one it is ``here``, for the reason ``otherwise``.
    """
    refused: list[tuple[str, str]] = []
    for seen, why in candidates:
        if seen == here:
            return here, why, tuple(refused)
        against = refusal(here, seen, is_directory)
        if against is None:
            return seen, why, tuple(refused)
        refused.append((seen.checkout, against))
    return here, otherwise, tuple(refused)


def plan(place: Place, target: Target | None = None) -> Identity:
    """The identity that a checkout's target is to have from now on.  Touches nothing.

    ``target`` is that target, if it was read before.
    """
    here = own(place)
    if place.git_dir is None:
        return Identity(here, here, "it is no git checkout", (), None)
    file = f"{place.git_dir}/{FILE}"
    if os.environ.get(SWITCH) == "off":
        return Identity(here, here, f"switched off ({SWITCH}=off)", (), file)
    if _is_sandboxed(place):
        return Identity(here, here, "sandbox mode: all checkouts have this path", (), file)
    if profile_directories(place.build_dir):
        noted = seen_by(place)
        if noted == here:
            return Identity(here, here, "its target was built here", (), file)
        if _compiled_plainly(place, target):
            reason = "plain Cargo compiles here as well, without the shim: cargo cow init"
            return Identity(here, here, reason, (), file)
        inherited = [(noted, "its target was built there")]
    else:
        inherited = []
    seen, reason, refused = decide(
        here, _candidates(place, inherited), _is_directory, "there is no place that serves"
    )
    return Identity(here, seen, reason, refused, file)


def _candidates(place: Place, inherited: list[tuple[Seen, str]]) -> Iterator[tuple[Seen, str]]:
    """What is inherited, then the project's; git is asked only where that is not enough."""
    yield from inherited
    here = own(place)
    main = _main_checkout(place)
    if main == place.checkout:
        yield here, "it is the main checkout"
    elif main is not None:
        yield Seen(main, _moved(here, main)), "it is the main checkout's path"
    if place.common_dir is not None:
        fixed = f"{place.common_dir}/{OWN}"
        yield Seen(fixed, _moved(here, fixed)), "a place of its own, for all worktrees"


def _is_sandboxed(place: Place) -> bool:
    return os.environ.get(FIXED_PATH) == place.checkout


def _main_checkout(place: Place) -> str | None:
    """The project's main checkout, if it has one."""
    try:
        found = git.checkouts(Path(place.checkout))
    except CowError:
        return None
    main = next((checkout for checkout in found if checkout.is_main), None)
    return None if main is None or main.bare else os.path.realpath(main.root)


def _moved(here: Seen, checkout: str) -> str:
    """The build directory of ``here`` as it is called where the checkout is called ``checkout``."""
    inside = below(here.build_dir, here.checkout)
    return here.build_dir if inside is None else os.path.join(checkout, inside)


def _compiled_plainly(place: Place, target: Target | None) -> bool:
    """Whether something was compiled here without the shim, which is not installed.

    At two paths in turn every compile would lose the state of the one before.
    """
    from cargo_cow.cargo import configuration
    from cargo_cow.prepare import record

    try:
        wrapper = configuration.effective_wrapper(Path(place.workspace))
    except CowError:
        return False
    if wrapper is not None:
        return False
    cloned = mtime(f"{place.build_dir}/{PREPARED}") or 0
    for unit in (target or Target(place.build_dir)).units:
        if unit.is_script_run or unit.is_documentation or (unit.invoked() or 0) < cloned:
            continue
        made = record.load(unit)
        if made is None or not made.inputs or made.settled_checkout is not None:
            continue
        # Without a dep-info by its name a unit cannot be observed.
        known = unit.makefile() is None or record.load_observation(unit) is not None
        if made.checkout == place.checkout and not known:
            return True
    return False


def _is_directory(path: str) -> bool:
    if path.endswith(f"/{OWN}"):
        # Ours: made where it is missing.
        path = path.removesuffix(f"/{OWN}")
    return os.path.isdir(path) and os.path.realpath(path) == path


# ---------------------------------------------------------------------------------------------
# Acting


def settle(place: Place, target: Target | None = None) -> Identity:
    """Decide the identity of a checkout, and leave word of it in its git directory and target.

    ``target`` as in `plan`.  Where nothing can be written, the checkout has none: that is right,
    and slower.
    """
    found = _written(plan(place, target), place)
    if log := os.environ.get("CARGO_COW_LOG"):
        with contextlib.suppress(OSError), open(log, "a", errors="surrogateescape") as file:
            file.write(f"cargo-cow {os.getpid()}: identity of {place.checkout}: {found}\n")
    return found


def _written(found: Identity, place: Place) -> Identity:
    if found.file is None:
        return found
    try:
        if found.in_use:
            if found.seen.checkout.endswith(f"/{OWN}"):
                os.makedirs(found.seen.checkout, mode=0o700, exist_ok=True)
            _replace(found.file, value(found))
        elif not _is_sandboxed(place):
            # There, what the file says is of the checkout outside, and not used.
            forget(found.file)
        if profile_directories(place.build_dir) and os.environ.get(SWITCH) != "off":
            _replace(f"{place.build_dir}/{NOTE}", {"format": FORMAT, **found.seen._asdict()})
    except OSError as error:
        with contextlib.suppress(OSError):
            forget(found.file)
        reason = f"{error.filename}: {error.strerror}"
        return found._replace(seen=found.here, reason=reason)
    return found


def value(identity: Identity) -> dict[str, object]:
    """The content of ``identity.json`` (docs/architecture.md)."""
    here, seen = identity.here, identity.seen
    result: dict[str, object] = {
        "format": FORMAT,
        "checkout": here.checkout,
        "identity": seen.checkout,
    }
    if below(here.build_dir, here.checkout) is None and here.build_dir != seen.build_dir:
        result |= {"build_dir": here.build_dir, "build_dir_identity": seen.build_dir}
    return result


def forget(file: str) -> None:
    """Remove an ``identity.json``; absent is fine.  Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file)


def _replace(path: str, content: dict[str, object]) -> None:
    """Write a file, unless it says the same already."""
    text = json.dumps(content)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            if file.read() == text:
                return
    except (OSError, ValueError):
        pass
    _write(path, content)


def _write(path: str, content: dict[str, object]) -> None:
    """Aside, then rename.  Not synced: one that is lost or torn is an identity that is not used."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(json.dumps(content))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _read(path: str, checkout: str, build_dir: str) -> Seen | None:
    """Two absolute paths out of a file of ours; None where it does not say them."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
        if content["format"] != FORMAT:
            return None
        found = Seen(content[checkout], content[build_dir])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    plain = all(isinstance(path, str) and path.startswith("/") for path in found)
    return found if plain else None
