"""What ``init`` changed, kept below ``$XDG_STATE_HOME`` so that ``uninstall`` can take it back.

A change is noted *before* it is made: killed in between, the note speaks of a change that is not
in the file, which ``configuration.take_back`` recognises by its digests.  The other order could
leave a change that nobody remembers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from cargo_cow.cargo.configuration import Change
from cargo_cow.durable import sync_directory
from cargo_cow.errors import ConfigurationUnusable

_FORMAT = 1


class Notes(NamedTuple):
    """Changes in the order they were made, markers that were set, directories that were made,
    and main checkouts (or bare repositories) whose git hooks run us."""

    changes: tuple[Change, ...] = ()
    markers: tuple[Path, ...] = ()
    directories: tuple[Path, ...] = ()
    hooks: tuple[Path, ...] = ()


def place() -> Path:
    """The file that holds the notes of this user."""
    state = os.environ.get("XDG_STATE_HOME") or ""
    # The XDG specification: a relative value is to be ignored.
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "cargo-cow" / "init.json"


def load() -> Notes:
    """The notes; empty ones if there are none.  Raises ConfigurationUnusable."""
    file = place()
    try:
        value = json.loads(file.read_bytes())
        if value["format"] != _FORMAT:
            raise ConfigurationUnusable(
                f"{file} was written by another version of cargo-cow",
                hint="use that version, or take build.rustc-wrapper out by hand",
            )
        return Notes(
            changes=tuple(_change(entry) for entry in value["changes"]),
            markers=tuple(Path(entry) for entry in value["markers"]),
            directories=tuple(Path(entry) for entry in value["directories"]),
            hooks=tuple(Path(entry) for entry in value.get("hooks", ())),
        )
    except (FileNotFoundError, NotADirectoryError):
        return Notes()
    except OSError as error:
        raise ConfigurationUnusable(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        raise ConfigurationUnusable(
            f"{file} is damaged", hint="move it away; uninstall then looks for itself"
        ) from None


def _change(entry: dict[str, Any]) -> Change:
    return Change(
        file=Path(entry["file"]),
        created=bool(entry["created"]),
        offset=int(entry["offset"]),
        removed=str(entry["removed"]),
        added=str(entry["added"]),
        digest_before=str(entry["digest_before"]),
        digest_after=str(entry["digest_after"]),
    )


def save(notes: Notes) -> None:
    """Replace the notes; empty ones remove the file.  Raises ConfigurationUnusable.

    Only for the user's eyes: a passage of a configuration file may hold a secret.
    """
    file = place()
    if notes == Notes():
        file.unlink(missing_ok=True)
        try:
            file.parent.rmdir()
        except OSError:
            return
        return
    value = {
        "format": _FORMAT,
        "changes": [change._asdict() | {"file": str(change.file)} for change in notes.changes],
        "markers": [str(path) for path in notes.markers],
        "directories": [str(path) for path in notes.directories],
        "hooks": [str(path) for path in notes.hooks],
    }
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as output:
            output.write(json.dumps(value, indent=1) + "\n")
            output.flush()
            os.fsync(output.fileno())
        temporary.replace(file)
        sync_directory(file.parent)
    except OSError as error:
        raise ConfigurationUnusable(
            f"cannot note in {file} what is to be taken back later: {error.strerror}",
            hint="nothing was changed; make it writable, or set XDG_STATE_HOME",
        ) from error
