"""The gateway finds the program and turns its answers into values and errors of ours."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from cargo_cow import native
from cargo_cow.errors import FilesystemFailed, NativeMissing, NoSpace


def answers(path: Path, answer: object, status: int = 0) -> Path:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\necho trouble >&2\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_it_is_found_and_speaks_our_protocol(native_program: Path) -> None:
    assert native_program.name == native.NAME
    assert native.version() == "0.1.0"


def test_the_environment_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = answers(tmp_path / "mine", {"name": native.NAME, "version": "9", "protocol": 1})
    monkeypatch.setenv("CARGO_COW_NATIVE", str(ours))
    assert native.program() == ours
    assert native.version() == "9"
    monkeypatch.setenv("CARGO_COW_NATIVE", str(tmp_path / "missing"))
    with pytest.raises(NativeMissing, match="missing"):
        native.program()


def test_beside_python_comes_before_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "bin", tmp_path / "path"]
    for place in places:
        place.mkdir()
        answers(place / native.NAME, {})
    monkeypatch.setattr(sys, "executable", str(places[0] / "python"))
    # An installed wheel's own program would be found there.
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(places[0]))
    monkeypatch.setenv("PATH", str(places[1]), prepend=":")
    assert native.program() == places[0] / native.NAME
    (places[0] / native.NAME).chmod(0o644)
    assert native.program() == places[1] / native.NAME


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        ({"error": "cannot write", "errno": 28, "path": "/x"}, 1, NoSpace),
        ({"error": "cannot write", "errno": 122, "path": "/x"}, 1, NoSpace),
        ({"error": "cannot write", "errno": 5, "path": "/x"}, 1, FilesystemFailed),
        ({"error": "cannot write", "errno": None, "path": None}, 1, FilesystemFailed),
        ({"error": "unknown verb --clone-tree", "errno": None, "path": None}, 1, NativeMissing),
        ("no JSON", 0, NativeMissing),
        ("", 127, NativeMissing),
        ("[]", 0, NativeMissing),
    ],
)
def test_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    status: int,
    error: type[Exception],
) -> None:
    program = answers(tmp_path / "program", answer, status)
    monkeypatch.setenv("CARGO_COW_NATIVE", str(program))
    with pytest.raises(error) as raised:
        native.clone_tree(tmp_path, tmp_path / "clone")
    assert type(raised.value) is error
    if error in (NoSpace, FilesystemFailed):
        assert str(raised.value).startswith("cannot write")


def test_another_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = answers(tmp_path / "program", {"name": native.NAME, "version": "2", "protocol": 2})
    monkeypatch.setenv("CARGO_COW_NATIVE", str(program))
    with pytest.raises(NativeMissing, match="protocol 2"):
        native.version()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--no-such-verb"],
        ["--clone-tree"],
        ["--clone-tree", "one"],
        ["--clone-tree", "one", "two", "three"],
        ["--clone-tree", "--mode", "magic", "a", "b"],
        ["--clone-tree", "--mode"],
        ["--clone-tree", "--threads", "0", "a", "b"],
        ["--clone-tree", "--surprise", "x", "a", "b"],
    ],
)
def test_command_lines_that_mean_nothing(
    native_program: Path, arguments: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [native_program, *arguments], cwd=tmp_path, capture_output=True, check=False
    )
    reply = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, b"")
    assert set(reply) == {"error", "errno", "path"}
    assert list(tmp_path.iterdir()) == []


def test_importing_it_starts_nothing() -> None:
    """It is imported on the way of every build."""
    code = (
        "import sys, cargo_cow.native; "
        "print([name for name in ('subprocess', 'dataclasses', 'shutil', 'sysconfig') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {_SOURCE!r}); {code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n"


_SOURCE = str(Path(native.__file__).parents[1])
