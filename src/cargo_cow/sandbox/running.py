"""Running a command in a view: by bubblewrap where it is installed, else by our native program."""

# ruff: noqa: PTH103, PTH112, PTH113, PTH120, PTH123
from __future__ import annotations

import json
import os
import signal
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cargo_cow import native, processes
from cargo_cow.errors import SandboxRefused
from cargo_cow.sandbox.view import View

Method = Literal["auto", "bubblewrap", "own"]

_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by cargo.\n"
    "# For information about cache directory tags see https://bford.info/cachedir/\n"
)


class CommandNotRun(SandboxRefused):
    """The command is not there, or is no program."""

    exit_code = 127


class _Refused(Exception):
    """This way in is closed; the text says why.  Nothing was run."""


def run(
    view: View,
    command: Sequence[str],
    *,
    method: Method = "auto",
    own_work: bool = False,
    left_out: Container[str] = (),
) -> int:
    """Run ``command`` in the view with our stdio; returns its exit status as `processes.run` does.

    ``own_work``: it is ours, without the variables that are for the user's command alone.
    ``left_out``: real paths that are not bound.  Raises SandboxRefused where the view
    cannot be made; then nothing was run.
    """
    _write(view)
    environment = {**os.environ, **view.common, **({} if own_work else view.environment)}
    binds = [(real, seen) for real, seen in view.binds if real not in left_out]
    for real, _ in view.targets:
        if real not in left_out:
            _make_target(real)
    refused: list[str] = []
    if method != "own":
        bubblewrap = _found("bwrap")
        if bubblewrap is not None:
            try:
                return _by_bubblewrap(bubblewrap, view, binds, command, environment)
            except _Refused as reason:
                refused.append(f"bubblewrap: {reason}")
        elif method == "bubblewrap":
            raise SandboxRefused(
                "bubblewrap is not installed", hint="install bubblewrap, or use --with own"
            )
    if method != "bubblewrap":
        try:
            return _by_native(view, binds, command, environment)
        except _Refused as reason:
            refused.append(str(reason))
    raise SandboxRefused(
        f"the view of sandbox mode cannot be made: {'; '.join(refused)}",
        hint="cargo cow doctor says what refuses namespaces here, and how to allow them",
    )


def _write(view: View) -> None:
    """The room, and the files that stand over others inside."""
    try:
        os.makedirs(view.room, mode=0o700, exist_ok=True)
        for path, text in view.files:
            data = os.fsencode(text)
            try:
                with open(path, "rb") as file:
                    if file.read() == data:
                        continue
            except OSError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            # In place, not renamed: a command that is inside has this very file.
            with open(path, "wb") as file:
                file.write(data)
    except OSError as error:
        raise SandboxRefused(
            f"cannot write {error.filename}: {error.strerror}", hint="make it writable"
        ) from error


def _make_target(real: str) -> None:
    if os.path.isdir(real):
        return
    from cargo_cow import filesystems

    os.makedirs(os.path.dirname(real), exist_ok=True)
    filesystems.create_target(Path(real))
    # Cargo does that only for a target that it makes itself.
    with open(f"{real}/CACHEDIR.TAG", "w", encoding="utf-8") as file:
        file.write(_TAG)


def _found(name: str) -> str | None:
    for directory in os.get_exec_path():
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


class _Line:
    """A pipe on which a program says what became of it: one JSON object a line."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_inheritable(self.writing, True)
        self._rest = b""

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        os.close(self._reading)

    def hang_up(self) -> None:
        """Our own end for writing: without this, nobody would ever hear the last word."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def next(self) -> dict[str, Any] | None:
        """The next object; None if there will be none."""
        while b"\n" not in self._rest:
            data = os.read(self._reading, 4096)
            if not data:
                return None
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\n")
        value = json.loads(text)
        assert isinstance(value, dict)
        return value


def _judge(line: _Line, command: Sequence[str], status: int) -> int:
    """The exit status of a command, by what `--enter` said of it.

    Raises _Refused where it was not run, so that another way may be tried; CommandNotRun where
    that cannot help.
    """
    line.hang_up()
    said = line.next()
    entered = said is not None and "entered" in said
    if entered:
        said = line.next()
        if said is None:
            return status
    if said is None:
        raise _Refused(f"it ended with status {status}")
    text, path = str(said["error"]), said.get("path")
    if path not in (None, "/"):
        text = f"{text}: {path}"
    if entered:
        raise CommandNotRun(text, hint=f"install {command[0]}, or put it on PATH")
    raise _Refused(text)


def _by_native(
    view: View,
    binds: Sequence[tuple[str, str]],
    command: Sequence[str],
    environment: Mapping[str, str],
) -> int:
    with _Line() as line:
        words = [os.fspath(native.program()), "--enter", "--status", str(line.writing)]
        words += ["--room", view.room]
        for real, seen in binds:
            words += ["--bind", real, seen]
        for path in view.read_only:
            words += ["--read-only", path]
        for path in view.keep:
            words += ["--keep", path]
        if not view.network:
            words.append("--no-network")
        words += ["--directory", view.directory, "--", *command]
        return _judge(line, command, processes.run(words, environment))


def _by_bubblewrap(
    program: str,
    view: View,
    binds: Sequence[tuple[str, str]],
    command: Sequence[str],
    environment: Mapping[str, str],
) -> int:
    with _Line() as own, _Line() as line:
        words = [program, "--json-status-fd", str(own.writing), "--dev-bind", "/", "/"]
        if os.geteuid() == 0:
            words += ["--cap-add", "ALL"]  # what root may do outside it may do inside
        for path in view.read_only:
            words += ["--ro-bind", path, path]
        for path in view.keep if view.read_only else ():
            words += ["--dev-bind-try", path, path]
        words += ["--perms", "0755", "--tmpfs", view.room]
        for real, seen in binds:
            words += ["--dev-bind", real, seen]
        words += ["--remount-ro", view.room, "--chdir", view.directory]
        if not view.network:
            words.append("--unshare-net")
        # bubblewrap watches over the command, and would die of a signal that is meant for the
        # command.  So it ignores them, and our native program takes that back.
        words += ["--", os.fspath(native.program()), "--enter", "--status", str(line.writing)]
        for number in (*processes.FROM_TERMINAL, *processes.HANDED_ON):
            if signal.getsignal(number) is not signal.SIG_IGN:
                words += ["--signal", str(int(number))]

        def watched() -> int:
            own.hang_up()
            said = own.next()
            return int(said["child-pid"]) if said is not None and "child-pid" in said else 0

        status = processes.run([*words, "--", *command], environment, watched=watched)
        return _judge(line, command, status)
