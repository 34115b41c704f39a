"""Errors a user can meet: one class per cause, with a stable exit code and a hint.

They are raised where the cause is known and fall through to ``cli.main``, the only place
that turns them into a message and an exit status.  Nothing else calls ``sys.exit``.
"""

from __future__ import annotations


class CowError(Exception):
    """Base class.  ``str(error)`` is one line; ``hint`` names what to do next."""

    exit_code = 1
    hint = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class UsageError(CowError):
    """The command line cannot be understood."""

    exit_code = 2


class NotACargoProject(CowError):
    """There is no ``Cargo.toml`` here, or Cargo cannot read it."""

    exit_code = 10
    hint = "run the command inside a Cargo package or workspace, or pass --manifest-path"


class CargoFailed(CowError):
    """A Cargo call of ours (metadata, version) failed."""

    exit_code = 11


class UnknownFormat(CowError):
    """A file of Cargo's has a format that this version does not know.  It is left alone."""

    exit_code = 12
    hint = "plain cargo still works here; please report the Cargo version"


class ConfigurationUnusable(CowError):
    """A Cargo configuration file cannot be read, parsed or written.  It is left as it was."""

    exit_code = 13


class GitFailed(CowError):
    """A git call failed, or there is no repository where one is needed."""

    exit_code = 20


class HooksRefused(CowError):
    """git's hooks are where nothing may be written unasked, or something is in the way."""

    exit_code = 21


class FilesystemFailed(CowError):
    """A clone, snapshot, exchange or removal failed; what was there is untouched."""

    exit_code = 30


class NoSpace(FilesystemFailed):
    """The filesystem is full (or over quota)."""

    exit_code = 31
    hint = "free some space and try again; nothing was changed"


class TargetUnusable(CowError):
    """The target directory is a symlink, a foreign mount, somebody else's, or read-only."""

    exit_code = 32


class Locked(CowError):
    """Cargo (or another prepare) holds the lock and we were told not to wait."""

    exit_code = 40
    hint = "wait for the running build to end, then try again"


class NoSuchState(CowError):
    """No state of this project has that name or id, or several ids begin so."""

    exit_code = 60
    hint = "cargo cow snapshot list"


class StateExists(CowError):
    """A state of this project has that name already."""

    exit_code = 61
    hint = "choose another name, or delete that state: cargo cow snapshot delete NAME"


class StateDamaged(CowError):
    """A state is no longer what was published: edited, made writable, moved or half deleted."""

    exit_code = 62
    hint = "nothing is taken from it any more; remove it: cargo cow snapshot delete NAME"


class StoreUnusable(CowError):
    """The store of states belongs to somebody else, is a symlink, or others may write to it."""

    exit_code = 63


class LinkerUnusable(CowError):
    """A linker that was asked for is not installed, or cannot be called by the C compiler here."""

    exit_code = 52


class SandboxRefused(CowError):
    """Sandbox mode cannot be had here, or could not be the same as here.  Nothing was run."""

    exit_code = 51


class WarehouseMissing(CowError):
    """There is no warehouse for builds here: switched off, or nothing was kept yet."""

    exit_code = 70
    hint = "switch it on: cargo cow init --warehouse, or CARGO_COW_WAREHOUSE=on"


class WarehouseUnusable(CowError):
    """The warehouse belongs to somebody else, or others may write to it, or it is none."""

    exit_code = 71


class NativeMissing(CowError):
    """The native program is not where the wheel installs it, or speaks another protocol."""

    exit_code = 50
    hint = "reinstall cargo-cow: pip install --force-reinstall cargo-cow"
