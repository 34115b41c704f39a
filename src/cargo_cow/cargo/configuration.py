"""Cargo's configuration files: which ``rustc-wrapper`` counts, and editing one file exactly.

Source: ``util/context/mod.rs`` at 1.95 (``get_file_path``, ``load_global_rustc``,
``ConfigRelativePath``) and the reference's chapter "Configuration".

An edit is planned as a ``Change`` (what is cut out, what is put in, digests of both whole
texts), so that it can be taken back byte by byte later without a second copy of a file in which
people keep tokens.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cargo_cow.cargo.workspace import cargo_home
from cargo_cow.durable import sync_directory
from cargo_cow.errors import ConfigurationUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NATIVE_NAME = "cargo-cow-native"
CHAIN_VARIABLE = "CARGO_COW_CHAIN"
LINKER_VARIABLE = "CARGO_COW_LINKER"
WAREHOUSE_VARIABLE = "CARGO_COW_WAREHOUSE"
REPLACED_VARIABLE = "CARGO_COW_REPLACED"
"""The wrapper that ours stands in the place of.  Nothing reads it but who puts that one back."""
_OURS = (CHAIN_VARIABLE, LINKER_VARIABLE, WAREHOUSE_VARIABLE, REPLACED_VARIABLE)
_REMARK = "  # cargo cow init; cargo cow uninstall takes it back"


class Wrapper(NamedTuple):
    """A ``rustc-wrapper`` and who sets it: a configuration file, or an environment variable.

    ``program`` is absolute, or a bare name for PATH; empty where it is switched off on purpose.
    """

    program: str
    source: str
    file: Path | None


class Change(NamedTuple):
    """One edit of one file: ``before[:offset] + added + before[offset + len(removed):]``.

    ``created`` says that there was no file.  Digests are BLAKE2b of the whole texts.
    """

    file: Path
    created: bool
    offset: int
    removed: str
    added: str
    digest_before: str
    digest_after: str


def user_file() -> Path:
    """The user's configuration: ``$CARGO_HOME/config``, else ``config.toml``: Cargo's order."""
    return _file_in(Path(cargo_home()).absolute())


def project_file(workspace_root: Path) -> Path:
    """The workspace's own configuration file, whether or not it exists."""
    return _file_in(workspace_root / ".cargo")


def _file_in(directory: Path) -> Path:
    # Where both exist, Cargo reads the one without a suffix and warns.
    old = directory / "config"
    return old if _is_file(old) else directory / "config.toml"


def _is_file(path: Path) -> bool:
    """Path.is_file, which raises where a directory on the way may not be looked into: what we may
    not see, the Cargo that we call may not read either, and says so."""
    return os.path.isfile(path)


def files_for(cwd: Path) -> list[Path]:
    """The existing configuration files that count in ``cwd``, the strongest first."""
    result: list[Path] = []
    directory = Path(os.path.realpath(cwd))
    for place in (directory, *directory.parents):
        file = _file_in(place / ".cargo")
        if _is_file(file):
            result.append(file)
    user = user_file()
    if _is_file(user) and not any(user.samefile(file) for file in result):
        result.append(user)
    return result


def read(file: Path) -> str:
    """The text of a configuration file; "" if there is none.  Raises ConfigurationUnusable."""
    try:
        return file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise ConfigurationUnusable(
            f"{file} is not UTF-8", hint="Cargo cannot read it either; mend it and try again"
        ) from None
    except OSError as error:
        raise ConfigurationUnusable(f"cannot read {file}: {error.strerror}") from error


def parse(text: str, file: Path) -> dict[str, Any]:
    """The values in ``text``.  Raises ConfigurationUnusable with the place of the error."""
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationUnusable(
            f"{file} is not valid TOML: {error}",
            hint="Cargo cannot read it either; mend it and try again. It is left as it is",
        ) from None


def wrapper_in(file: Path, key: str = "rustc-wrapper") -> Wrapper | None:
    """The ``build.rustc-wrapper`` that ``file``, or a file it includes, sets."""
    for source, values in _with_includes(file, set()):
        build = values.get("build")
        program = build.get(key) if isinstance(build, dict) else None
        if isinstance(program, str):
            return Wrapper(absolute_program(program, source), str(source), source)
    return None


def with_includes(file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A file and what it includes, the strongest first.  Raises ConfigurationUnusable."""
    return _with_includes(file, set())


def _with_includes(file: Path, seen: set[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A file and what it includes, the strongest first (a file is stronger than its includes)."""
    if file in seen:
        return
    seen.add(file)
    values = parse(read(file), file)
    yield file, values
    included = values.get("include", [])
    for entry in reversed(included if isinstance(included, list) else [included]):
        path = entry.get("path") if isinstance(entry, dict) else entry
        if isinstance(path, str) and (file.parent / path).is_file():
            yield from _with_includes(file.parent / path, seen)


def absolute_program(program: str, file: Path) -> str:
    """A program named in ``file``: a bare name stays, a path is relative to the directory that
    holds ``.cargo`` (``ConfigRelativePath::resolve_program``)."""
    if "/" not in program:
        return program
    return os.path.normpath(file.parent.parent / program)


def wrapper_from_environment() -> Wrapper | None:
    """The wrapper that an environment variable sets, over any file; "" switches wrappers off."""
    for name in ("RUSTC_WRAPPER", "CARGO_BUILD_RUSTC_WRAPPER"):
        value = os.environ.get(name)
        if value is not None:
            return Wrapper(value, f"environment variable {name}", None)
    return None


def effective_wrapper(cwd: Path) -> Wrapper | None:
    """The wrapper that Cargo would use in ``cwd``.  Raises ConfigurationUnusable."""
    found = wrapper_from_environment()
    if found is not None:
        return found
    for file in files_naming(cwd, "rustc-wrapper"):
        found = wrapper_in(file)
        if found is not None:
            return found
    return None


def files_naming(cwd: Path, key: str) -> list[Path]:
    """As `files_for`, without those that cannot set ``key``: they name neither it nor another file.

    On the path of every build: what is left out need not be parsed.  A key with escapes in it
    (``"rustc\\u002dwrapper"``) is not recognised.
    """
    needles = (key.encode(), b"include")
    found = []
    for file in files_for(cwd):
        try:
            text = file.read_bytes()
        except OSError:
            text = needles[0]  # the error is for who parses it
        if any(needle in text for needle in needles):
            found.append(file)
    return found


def workspace_wrapper(cwd: Path) -> Wrapper | None:
    """What Cargo would put around rustc for the workspace's own packages in ``cwd``, behind the
    ``rustc-wrapper``.  Raises ConfigurationUnusable."""
    for name in ("RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER"):
        value = os.environ.get(name)
        if value is not None:
            return Wrapper(value, f"environment variable {name}", None)
    for file in files_for(cwd):
        found = wrapper_in(file, "rustc-workspace-wrapper")
        if found is not None:
            return found
    return None


def effective_chain(cwd: Path) -> str | None:
    """The program that our shim runs rustc through in ``cwd``, if any."""
    return effective_variable(cwd, CHAIN_VARIABLE)


def effective_variable(cwd: Path, name: str) -> str | None:
    """The variable that Cargo's ``[env]`` sets for compilers in ``cwd``, or that is set anyway."""
    if name in os.environ:
        return os.environ[name] or None
    for file in files_for(cwd):
        value = variable_in(file, name)
        if value is not None:
            return value or None
    return None


def environment(cwd: Path) -> dict[str, str]:
    """The variables that Cargo, run in ``cwd``, gives to compilers and scripts beside its own.

    ``[env]`` counts where a variable is not set, or with ``force``; with ``relative`` it is a path
    below the directory that holds ``.cargo`` (``GlobalContext::env_config``, 1.95).  A file that
    does not parse sets nothing: Cargo says it better.
    """
    result = dict(os.environ)
    decided: set[str] = set()
    for file in files_for(cwd):
        try:
            text = file.read_bytes()
            if b"env" not in text and b"include" not in text:
                continue
            tables = list(with_includes(file))
        except (OSError, ConfigurationUnusable):
            continue
        for source, values in tables:
            table = values.get("env")
            for name, value in table.items() if isinstance(table, dict) else ():
                options = value if isinstance(value, dict) else {"value": value}
                text_of = options.get("value")
                if name in decided or not isinstance(text_of, str):
                    continue
                decided.add(name)
                if options.get("relative") is True:
                    text_of = os.path.join(source.parent.parent, text_of)
                if options.get("force") is True or name not in os.environ:
                    result[name] = text_of
    return result


def variable_in(file: Path, name: str) -> str | None:
    """The variable that ``[env]`` of ``file``, or of a file it includes, sets for compilers."""
    for _, values in _with_includes(file, set()):
        environment = values.get("env")
        value = environment.get(name) if isinstance(environment, dict) else None
        if isinstance(value, dict):
            value = value.get("value")
        if isinstance(value, str):
            return value
    return None


def is_ours(program: str) -> bool:
    """Whether a wrapper is the native program, of this installation or of another one."""
    return program.rpartition("/")[2] == NATIVE_NAME


# ---------------------------------------------------------------------------------------------
# Editing


def plan_wrapper(file: Path, program: str, variables: Mapping[str, str]) -> Change | None:
    """The change that makes ``program`` the wrapper in ``file`` and sets variables for it.

    A variable that is "" is taken out, one that is not named stays as it is.  None when there is
    nothing to change.  Raises ConfigurationUnusable for a text that does not parse or cannot be
    edited safely.
    """

    def edit(values: Any) -> None:
        _table(values, "build", file)["rustc-wrapper"] = program
        for name, value in variables.items():
            if value:
                _table(values, "env", file)[name] = value
            elif isinstance(values.get("env"), dict):
                values["env"].pop(name, None)
                if not values["env"]:
                    del values["env"]

    def insert(text: str) -> str:
        present = parse(text, file)
        if present.get("build", {}).get("rustc-wrapper") != program:
            text = _set_line(text, "build", "rustc-wrapper", program)
        for name, value in variables.items():
            if value and present.get("env", {}).get(name) != value:
                text = _set_line(text, "env", name, value)
        return text

    return _plan(file, edit, insert, edit)


def plan_without_wrapper(file: Path) -> Change | None:
    """The change that takes our wrapper out of ``file`` and puts back the one before it.

    For a file whose history is not known, or that was edited since: tables that this leaves empty
    go too, and a wrapper that somebody set instead of ours stays.  None when nothing of ours is in
    the file.
    """

    return _plan(file, _take_out, None, _take_out)


def _take_out(document: Any) -> None:
    """Take our settings out of a document, and put back the wrapper that was there before."""
    build = document.get("build")
    environment = document.get("env")
    former = None
    if isinstance(environment, dict):
        found = {name: environment.pop(name) for name in _OURS if name in environment}
        former = found.get(CHAIN_VARIABLE, found.get(REPLACED_VARIABLE))
        if found and not environment:
            del document["env"]
    if not isinstance(build, dict) or not is_ours(str(build.get("rustc-wrapper", ""))):
        return
    if isinstance(former, dict):
        former = former.get("value")
    if isinstance(former, str) and former:
        build["rustc-wrapper"] = str(former)
    else:
        del build["rustc-wrapper"]
        if not build:
            del document["build"]


def _table(values: Any, name: str, file: Path) -> Any:
    """The table ``name``, made if missing; for plain and for tomlkit's values."""
    if name not in values:
        if type(values) is dict:
            values[name] = {}
        else:
            import tomlkit

            values[name] = tomlkit.table()
    table = values[name]
    if not isinstance(table, dict):
        raise ConfigurationUnusable(
            f"{file}: `{name}` is not a table", hint="Cargo cannot use it either; mend it first"
        )
    return table


def _plan(
    file: Path,
    wanted: Callable[[dict[str, Any]], None],
    insert: Callable[[str], str] | None,
    edit: Callable[[Any], None],
) -> Change | None:
    import tomlkit

    file = Path(os.path.realpath(file))  # a symlink into a dotfiles repository stays one
    before = read(file)
    expected = parse(before, file)
    wanted(expected)
    if expected == parse(before, file):
        return None
    candidates: list[Callable[[], str]] = []
    if insert is not None:
        inserting = insert
        candidates.append(lambda: inserting(before))

    def edited() -> str:
        document = tomlkit.parse(before)
        edit(document)
        return tomlkit.dumps(document)

    candidates.append(edited)
    for candidate in candidates:
        try:
            after = candidate()
            # Whatever wrote it, only a text that means exactly what was meant is used.
            if parse(after, file) == expected:
                return _change(file, before, after)
        except (ConfigurationUnusable, _NotByLine, tomlkit.exceptions.TOMLKitError):
            continue
    raise ConfigurationUnusable(
        f"{file} is written in a way that cannot be edited safely; it is left as it is",
        hint="set build.rustc-wrapper in it by hand",
    )


class _NotByLine(Exception):
    """The text needs more than one line put in."""


def _set_line(text: str, table: str, key: str, value: str) -> str:
    """Put ``key = value`` as a line of its own at the head of ``[table]``, made if missing.

    tomlkit would put it at the table's end, below a comment that belongs to the next table.
    Raises _NotByLine where the key is there already or the table is written otherwise.
    """
    import tomlkit

    values = parse(text, Path())
    newline = "\r\n" if "\r\n" in text else "\n"
    line = f"{key} = {tomlkit.item(value).as_string()}{_REMARK}{newline}"
    if table not in values:
        if text and not text.endswith("\n"):
            text += newline
        return f"{text}{newline if text else ''}[{table}]{newline}{line}"
    if key in values[table]:
        raise _NotByLine
    header = re.search(rf"^[ \t]*\[[ \t]*{table}[ \t]*\][ \t]*(#[^\n]*)?\n", text, re.MULTILINE)
    if header is None:
        raise _NotByLine
    return text[: header.end()] + line + text[header.end() :]


def _digest(text: str) -> str:
    import hashlib

    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _change(file: Path, before: str, after: str) -> Change:
    shorter = min(len(before), len(after))
    start = 0
    while start < shorter and before[start] == after[start]:
        start += 1
    end = 0
    while end < shorter - start and before[-1 - end] == after[-1 - end]:
        end += 1
    return Change(
        file=file,
        created=not file.exists(),
        offset=start,
        removed=before[start : len(before) - end],
        added=after[start : len(after) - end],
        digest_before=_digest(before),
        digest_after=_digest(after),
    )


def apply(change: Change) -> None:
    """Make the change.  Raises ConfigurationUnusable if the file is not what was planned for."""
    before = read(change.file)
    if _digest(before) != change.digest_before:
        raise ConfigurationUnusable(
            f"{change.file} was edited in the meantime; it is left as it is", hint="try again"
        )
    after = before[: change.offset] + change.added + before[change.offset + len(change.removed) :]
    _write(change.file, after)


def take_back(change: Change) -> bool:
    """Undo a change made earlier.

    Byte for byte where nothing else changed the file since, and the file goes if it was created;
    otherwise the same passage is put back where it still stands exactly once.  False if it does
    not, or the change is not in the file any more: nothing was touched.
    """
    now = read(change.file)
    if not change.file.exists():
        return False
    if _digest(now) == change.digest_after:
        if change.created:
            change.file.unlink()
            return True
        before = now[: change.offset] + change.removed + now[change.offset + len(change.added) :]
        _write(change.file, before)
        return True
    if not change.added or now.count(change.added) != 1:
        return False
    before = now.replace(change.added, change.removed)
    try:
        values = parse(before, change.file)
    except ConfigurationUnusable:
        return False
    build = values.get("build")
    if isinstance(build, dict) and is_ours(str(build.get("rustc-wrapper", ""))):
        return False
    if not _is_within(values, parse(now, change.file)):
        # A table of ours into which somebody else wrote: without its head, that would be elsewhere.
        return False
    _write(change.file, before)
    return True


def _is_within(values: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether every name of ``values`` is at the same place in ``others``."""
    return all(
        name in others
        and (not isinstance(value, dict) or _is_within(value, _dictionary(others[name])))
        for name, value in values.items()
    )


def _dictionary(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _write(file: Path, text: str) -> None:
    """Replace ``file``: written aside, synced, renamed; mode and owner kept."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            status: os.stat_result | None = file.stat()
        except FileNotFoundError:
            status = None
        if status is not None and not os.access(file, os.W_OK):
            # A rename would go through all the same; the mode is a wish that we respect.
            raise PermissionError(13, "it is read-only")
        if status is not None and not status.st_mode & 0o222:
            raise PermissionError(13, "it is read-only")
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as output:
                output.write(text.encode())
                output.flush()
                if status is None:
                    os.fchmod(output.fileno(), 0o666 & ~_umask())
                else:
                    os.fchmod(output.fileno(), status.st_mode & 0o7777)
                    if (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()):
                        os.fchown(output.fileno(), status.st_uid, status.st_gid)
                os.fsync(output.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(file.parent)
    except OSError as error:
        raise ConfigurationUnusable(
            f"cannot write {file}: {error.strerror}; it is left as it was",
            hint="make it writable, or set build.rustc-wrapper where it is generated",
        ) from error


def _umask() -> int:
    # There is no call that only reads it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
