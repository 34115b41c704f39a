"""The shim passes a compiler's call on, unchanged."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.native.conftest import Unit

SHOW = 'for word; do printf "<%s>" "$word"; done'


# --- what every caller sees -------------------------------------------------------------------


@pytest.mark.parametrize("observed", [True, False])
def test_status_and_output_are_the_compilers(unit: Unit, observed: bool) -> None:
    does = "printf 'out\\0put'; printf 'err\\377or' >&2; exit 7"
    done = unit.call(does, None if observed else ["--version"])
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\0put", b"err\xffor")


@pytest.mark.parametrize("extra", [[], ["--crate-name", "a b", "", "*", "\n", "--", "-"]])
def test_arguments_arrive_as_they_are(unit: Unit, extra: list[str]) -> None:
    words = [*unit.arguments(), *extra]
    assert unit.call(SHOW, words).stdout.decode() == "".join(f"<{word}>" for word in words)


def test_arguments_need_not_be_utf8(unit: Unit) -> None:
    words = [*(word.encode() for word in unit.arguments()), b"--cfg=\xff\xfe"]
    done = unit.call(SHOW, words)
    assert done.stdout.endswith(b"<--cfg=\xff\xfe>")
    assert done.returncode == 0


def test_environment_and_directory_are_handed_on(unit: Unit) -> None:
    done = unit.call("env; pwd")
    inner = set(done.stdout.decode().splitlines())
    given = {f"{name}={value}" for name, value in unit.environment("env; pwd").items()}
    assert given | {str(unit.root)} <= inner


@pytest.mark.parametrize("environment", [{}, {"CARGO_MANIFEST_DIR": "", "CARGO_PKG_NAME": ""}])
def test_nothing_of_the_environment_is_needed(unit: Unit, environment: dict[str, str]) -> None:
    unit.compiler.write_text("#!/bin/sh\necho ran\n")
    assert unit.call(environment=environment).stdout == b"ran\n"


def test_stdin_is_the_compilers(unit: Unit) -> None:
    for arguments in (unit.arguments(), ["-", "--crate-name", "___", "--print=file-names"]):
        done = subprocess.run(
            [unit.shim, unit.compiler, *arguments],
            env=unit.environment("cat"),
            input=b"source",
            capture_output=True,
            check=True,
        )
        assert done.stdout == b"source"


def test_descriptors_of_the_jobserver_stay_open(unit: Unit) -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"+")
        for arguments in (unit.arguments(), ["--version"]):
            done = subprocess.run(
                [unit.shim, unit.compiler, *arguments],
                env=unit.environment(f"printf - > /proc/self/fd/{write}"),
                pass_fds=(read, write),
                check=False,
            )
            assert done.returncode == 0
        assert os.read(read, 9) == b"+--"
    finally:
        os.close(read)
        os.close(write)


def test_a_compiler_that_is_not_there_is_named(unit: Unit) -> None:
    done = unit.call(compiler=["/nowhere/rustc"])
    assert done.returncode == 127
    assert b"/nowhere/rustc" in done.stderr
    unit.compiler.chmod(0o644)
    assert unit.call().returncode == 126


# --- processes and signals --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stays"), [(None, True), (["--print=cfg"], False), (["-vV"], False)]
)
def test_it_stays_only_to_observe(unit: Unit, arguments: list[str] | None, stays: bool) -> None:
    process = subprocess.Popen(
        [unit.shim, unit.compiler, *(unit.arguments() if arguments is None else arguments)],
        env=unit.environment("echo $$ $PPID"),
        cwd=unit.root,
        stdout=subprocess.PIPE,
    )
    output, _ = process.communicate(timeout=60)
    compiler, parent = map(int, output.split())
    assert (compiler != process.pid, parent == process.pid) == (stays, stays)


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE]
)
@pytest.mark.parametrize("observed", [True, False])
def test_it_dies_as_the_compiler_died(unit: Unit, number: int, observed: bool) -> None:
    done = unit.call(f"kill -{number} $$; sleep 5", None if observed else ["--version"])
    assert done.returncode == -number
    assert not unit.observed.exists()


@contextmanager
def _started(unit: Unit, does: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [unit.shim, unit.compiler, *unit.arguments()],
        env=unit.environment(f"{does}\necho ready\nwhile :; do sleep 0.02; done"),
        cwd=unit.root,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1]
)
def test_a_signal_to_it_reaches_the_compiler(unit: Unit, number: int) -> None:
    with _started(unit, f"trap 'exit 9' {number}") as process:
        process.send_signal(number)
        assert process.wait(60) == 9
    with _started(unit, "") as process:
        process.send_signal(number)
        assert process.wait(60) == -number


def test_a_signal_to_the_group_ends_both(unit: Unit) -> None:
    with _started(unit, "") as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        with pytest.raises(ProcessLookupError):
            _until_gone(process.pid)


def _until_gone(group: int) -> None:
    for _ in range(500):
        os.killpg(group, 0)
        time.sleep(0.01)


def test_a_signal_that_was_ignored_stays_ignored(unit: Unit) -> None:
    does = "kill -HUP $PPID; kill -HUP $$; echo alive"
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "-", unit.shim, unit.compiler, *unit.arguments()],
        env=unit.environment(does),
        cwd=unit.root,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"alive\n")


# --- other programs in the way ----------------------------------------------------------------


@pytest.fixture
def chain(unit: Unit) -> Path:
    path = unit.root / "another wrapper"
    path.write_text('#!/bin/sh\necho "chain: $1"\nexec "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("observed", [True, False])
def test_a_chained_wrapper_runs_in_front(unit: Unit, chain: Path, observed: bool) -> None:
    does = unit.writes("src/lib.rs") + SHOW
    environment = unit.environment(does) | {"CARGO_COW_CHAIN": str(chain)}
    arguments = unit.arguments() if observed else ["-vV"]
    done = unit.call(arguments=arguments, environment=environment)
    shown = "".join(f"<{word}>" for word in arguments)
    assert done.stdout.decode() == f"chain: {unit.compiler}\n{shown}"
    assert unit.observed.exists() == observed


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("named", ["", "/nowhere/sccache", "itself"])
def test_a_chain_that_leads_nowhere_is_left_out(unit: Unit, observed: bool, named: str) -> None:
    chain = str(unit.shim) if named == "itself" else named
    environment = unit.environment("echo ran; exit 3") | {"CARGO_COW_CHAIN": chain}
    arguments = unit.arguments() if observed else ["--print=cfg"]
    done = unit.call(arguments=arguments, environment=environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"ran\n", b"")


def test_a_chain_that_leads_back_ends(unit: Unit, chain: Path) -> None:
    """Another wrapper may have been told to call us."""
    chain.write_text(f'#!/bin/sh\nexec "{unit.shim}" "$@"\n')
    environment = unit.environment("echo ran") | {"CARGO_COW_CHAIN": str(chain)}
    for arguments in (unit.arguments(), ["-vV"]):
        done = unit.call(arguments=arguments, environment=environment)
        assert (done.returncode, done.stdout) == (0, b"ran\n")


def test_a_workspace_wrapper_gets_the_compiler(unit: Unit) -> None:
    driver = unit.root / "clippy-driver"
    driver.write_text(unit.compiler.read_text())
    driver.chmod(0o755)
    done = unit.call(unit.writes("src/lib.rs") + SHOW, compiler=[driver, "/toolchain/bin/rustc"])
    assert done.stdout.decode().startswith("</toolchain/bin/rustc><--crate-name>")
    assert unit.observed.exists()


# --- silence ----------------------------------------------------------------------------------


def _log_that_cannot_be_written(unit: Unit) -> str:
    return str(unit.root / "no such directory" / "log")


def _log_that_can(unit: Unit) -> str:
    return str(unit.root / "log")


@pytest.mark.parametrize("place", [_log_that_cannot_be_written, _log_that_can])
def test_it_prints_nothing(unit: Unit, place: Callable[[Unit], str]) -> None:
    log = place(unit)
    environment = unit.environment(unit.writes("src/gone.rs")) | {"CARGO_COW_LOG": log}
    for _ in range(2):
        done = unit.call(environment=environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    if Path(log).exists():
        assert Path(log).read_text().count("left out") == 2
