"""Where namespaces are refused, for real: the reason is named, and everything else works."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.support.projects import SOURCE, git, repository

from cargo_cow import native
from cargo_cow.setup.namespaces import Facts, explain

FILES = {
    "Cargo.toml": '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n'
    "[profile.dev]\ndebug = 0\n",
    "src/main.rs": 'fn main() { println!("built"); }\n',
}

_NUMBERS = {"x86_64": (272, 56), "aarch64": (97, 220)}
"""Of unshare and clone."""
_CLONE3 = 435


def _filtered() -> None:
    """Between fork and exec: no new namespace from now on, as in most containers."""
    # seccomp(2), classic BPF: (code, steps if true, steps if false, operand).
    unshare, clone = _NUMBERS[platform.machine()]
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    rules = [
        (load, 0, 0, 0),  # the number of the call
        (equal, 5, 0, unshare),
        (equal, 5, 0, _CLONE3),  # its flags cannot be read: it seems not to be there
        (equal, 0, 2, clone),
        (load, 0, 0, 16),  # its flags
        (any_bit, 1, 0, 0x10020000),  # CLONE_NEWUSER | CLONE_NEWNS
        (answer, 0, 0, 0x7FFF0000),
        (answer, 0, 0, 0x00050000 | errno.EPERM),
        (answer, 0, 0, 0x00050000 | errno.ENOSYS),
    ]
    code = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):  # NO_NEW_PRIVS, SECCOMP
        raise OSError(ctypes.get_errno(), "no filter")


# An ordinary user in a namespace in which no other may be made.
_LIMIT = """echo 0 > /proc/sys/user/max_user_namespaces
exec setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all "$@"
"""
_LIMITED = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--keep-caps"]
_LIMITED += ["sh", "-c", _LIMIT, "sh"]


class Place:
    """A way to run commands where namespaces are refused."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        prefix = _LIMITED if self.name == "limit" else []
        return subprocess.run(
            [*prefix, *command],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "CARGO_TERM_COLOR": "never"},
            preexec_fn=_filtered if self.name == "seccomp" else None,
            capture_output=True,
            text=True,
            check=False,
        )

    def cow(self, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run([sys.executable, "-m", "cargo_cow", *arguments], cwd)


@pytest.fixture(params=["limit", "seccomp"])
def refusing(request: pytest.FixtureRequest, missing: Callable[[str], NoReturn]) -> Place:
    """PROBE: the refusal itself, seen by another program."""
    place = Place(request.param)
    if place.name == "seccomp" and platform.machine() not in _NUMBERS:
        missing("the filter is written for x86-64 and ARM alone")
    if place.name == "limit":
        done = place.run(["id", "-u"], Path("/"))
        if done.stdout != "1000\n":
            missing(f"no user namespace to refuse others in: {done.stderr.strip()}")
    done = place.run(["unshare", "--user", "--mount", "true"], Path("/"))
    assert done.returncode != 0
    return place


@pytest.fixture
def main(btrfs: Path) -> Path:
    """A built main checkout."""
    root = repository(btrfs / "project", FILES)
    subprocess.run(["cargo", "build", "-q"], cwd=root, check=True)
    return root


def test_the_reason_is_named_and_everything_else_works(
    refusing: Place, main: Path, tmp_path: Path
) -> None:
    done = refusing.cow(main, "doctor", "--format", "json")
    checks: dict[str, Any] = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    found = checks["namespaces"]
    assert found["status"] == "warn"
    if refusing.name == "limit":
        assert found["found"] == "user.max_user_namespaces is 0"
        assert "sysctl -w user.max_user_namespaces=" in found["mend"]
    else:
        assert "seccomp" in found["found"]
        assert "seccomp=unconfined" in found["mend"]
    assert "first edit" in found["lost"]
    assert "sandbox mode" in found["lost"]

    there = main.parent / "there"
    git(main, "worktree", "add", "-q", str(there))
    refused = refusing.cow(there, "build", "--sandbox")
    assert refused.returncode == 51, refused.stderr
    assert "cargo cow doctor" in refused.stderr
    assert not (there / "target").exists()

    built = refusing.cow(there, "build", "-v")
    assert built.returncode == 0, built.stderr
    assert "target cloned from" in built.stderr
    assert "Running `" not in built.stderr
    # The first edit: at the real path, as without us.
    (there / "src/main.rs").write_text('fn main() { println!("edited"); }\n')
    ran = refusing.cow(there, "run", "-q")
    assert (ran.returncode, ran.stdout) == (0, "edited\n"), ran.stderr


def test_where_they_are_allowed(main: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "true"] if os.geteuid() == 0 else ["unshare", "-Um", "true"],
        check=False,
    )
    failed = native.try_view(main)
    assert (failed is None) == (done.returncode == 0)


@pytest.mark.parametrize(
    ("facts", "reason", "mend"),
    [
        (Facts(28, "x", False, user_limit=0), "max_user_namespaces is 0", "sysctl"),
        (Facts(28, "x", False, 100, mount_limit=0), "max_mnt_namespaces is 0", "sysctl"),
        (Facts(28, "x", False, user_limit=7), "is 7 here", "around us"),
        (Facts(1, "x", False, 7, 7, 0), "unprivileged_userns_clone is 0", "clone=1"),
        (Facts(13, "x", False, 7, 7, None, 1), "apparmor_restrict", "userns,"),
        (Facts(1, "x", False, 7, 7, 1, 0, True), "seccomp", "seccomp=unconfined"),
        (Facts(1, "x", True, 7, 7, 0, 1, True), "root", "SYS_ADMIN"),
        (Facts(22, "x", False, None), "kernel has no", "CONFIG_USER_NS"),
        (Facts(1, "x", False, 7, 7, 1, 0), "x", "CLONE_NEWUSER"),
    ],
)
def test_the_reason_that_fits(facts: Facts, reason: str, mend: str) -> None:
    found = explain(facts)
    assert reason in found.reason
    assert mend in found.mend


def test_bubblewrap_may_what_we_may_not(
    refusing: Place, main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bubblewrap that is set-user-id, or has a profile of its own; here a program that stands
    for it: then sandbox mode is not lost."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "bwrap").write_text("#!/bin/sh\nexit 0\n")
    (programs / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    done = refusing.cow(main, "doctor", "--format", "json")
    lost = next(
        check["lost"]
        for check in json.loads(done.stdout)["checks"]
        if check["name"] == "namespaces"
    )
    assert "sandbox mode" not in lost
    assert shutil.which("bwrap") == str(programs / "bwrap")
