"""Targets as the real Cargo leaves them: units, graph, outputs, in both layouts; damage; locks."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from tests.support.projects import cargo, repository

from cargo_cow.cargo.lock import build_lock
from cargo_cow.cargo.target import Target
from cargo_cow.errors import Locked

_FILES = {
    "Cargo.toml": """[workspace]
members = ["app", "util", "shared"]
resolver = "2"
[profile.fast]
inherits = "release"
""",
    "util/Cargo.toml": '[package]\nname = "util"\nversion = "0.1.0"\nedition = "2021"\n',
    "util/build.rs": 'fn main() { println!("cargo:rerun-if-changed=build.rs"); }\n',
    "util/src/lib.rs": "pub fn f() {}\n",
    "shared/Cargo.toml": '[package]\nname = "shared"\nversion = "0.1.0"\nedition = "2021"\n'
    '[lib]\ncrate-type = ["cdylib", "staticlib"]\n',
    "shared/src/lib.rs": '#[no_mangle] pub extern "C" fn f() {}\n',
    "app/Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
    '[dependencies]\nutil = { path = "../util" }\n',
    "app/src/main.rs": "fn main() { util::f() }\n",
    "app/examples/show.rs": "fn main() { util::f() }\n",
    "app/tests/it.rs": "#[test] fn t() {}\n",
    "app/benches/b.rs": "fn main() {}\n",
}


@pytest.fixture(params=["legacy", "new"])
def built(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = repository(tmp_path / "main", _FILES)
    flags = []
    if request.param == "new":
        monkeypatch.setenv("__CARGO_TEST_CHANNEL_OVERRIDE_DO_NOT_USE_THIS", "nightly")
        flags = ["-Zbuild-dir-new-layout"]
    result = cargo(root, tmp_path, "build", "--workspace", "--all-targets", *flags)
    assert result.status == 0, result.output
    return root / "target"


def test_every_unit_has_its_files_and_its_dependencies(built: Path) -> None:
    target = Target(str(built))
    assert target.unknown == []
    assert sorted({unit.stem for unit in target.units}) == [
        "bin-app",
        "build-script-build-script-build",
        "example-show",
        "lib-shared",
        "lib-util",
        "run-build-script-build-script-build",
        "test-bench-b",
        "test-bin-app",
        "test-integration-test-it",
        "test-lib-shared",
        "test-lib-util",
    ]
    for unit in target.units:
        assert unit.fingerprint_hash() is not None
        assert unit.invoked() is not None
        assert unit.compared_outputs(), unit
        assert all(Path(path).is_file() for path in unit.compared_outputs()), unit
        dependencies = target.dependencies(unit)
        assert dependencies is not None, unit
        if unit.stem in ("bin-app", "example-show"):
            assert "lib-util" in {dependency.stem for dependency in dependencies}
        if not unit.is_script_run:
            assert unit.dep_info() is not None
            assert unit.makefile() is not None
    shared = next(unit for unit in target.units if unit.stem == "lib-shared")
    assert {Path(path).suffix for path in shared.compared_outputs()} == {".so", ".a"}


def test_a_custom_profile_and_a_triple(tmp_path: Path) -> None:
    root = repository(tmp_path / "main", _FILES)
    triple = f"{os.uname().machine}-unknown-linux-gnu"
    for arguments in (["--profile", "fast"], ["--target", triple]):
        result = cargo(root, tmp_path, "build", "-p", "util", *arguments)
        assert result.status == 0, result.output
    names = {profile.name for profile in Target(str(root / "target")).profiles}
    assert {"fast", f"{triple}/debug"} <= names


def test_an_interrupted_unit_has_no_fingerprint(built: Path) -> None:
    unit = Target(str(built)).units[0]
    for damage in (b"", b"0123", b"not hexadecimal!"):
        Path(unit.hash_file).write_bytes(damage)
        fresh = next(one for one in Target(str(built)).units if one.key == unit.key)
        assert fresh.fingerprint_hash() is None


def test_two_fingerprints_in_one_directory_are_left_alone(built: Path) -> None:
    unit = Target(str(built)).units[0]
    Path(unit.directory, "lib-another").write_text("0" * 16)
    target = Target(str(built))
    assert target.unknown == [unit.directory]
    assert unit.key not in {one.key for one in target.units}


def test_what_is_no_target_has_no_units(tmp_path: Path) -> None:
    (tmp_path / "debug/deps").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    target = Target(str(tmp_path))
    assert (target.profiles, target.units) == ([], [])
    assert Target(str(tmp_path / "missing")).units == []


def test_the_lock_is_cargos(built: Path) -> None:
    with build_lock(built):
        descriptor = os.open(built / "debug/.cargo-lock", os.O_RDWR)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    with build_lock(built, wait=False):
        pass


def _hold(path: str, seconds: float) -> None:
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    time.sleep(seconds)
    os.close(descriptor)


def test_a_held_lock_is_refused_or_waited_for(built: Path) -> None:
    context = multiprocessing.get_context("spawn")
    holder = context.Process(target=_hold, args=(str(built / "debug/.cargo-lock"), 4))
    holder.start()
    try:
        deadline = time.monotonic() + 3
        refused = False
        while not refused and time.monotonic() < deadline:
            try:
                with build_lock(built, wait=False):
                    time.sleep(0.01)
            except Locked:
                refused = True
        assert refused
        said: list[str] = []
        with build_lock(built, waiting=said.append):
            pass
        assert len(said) == 1
    finally:
        holder.join()


def _wait_for(path: str) -> None:
    with Path(path).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def test_who_waits_for_a_held_lock_is_seen(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built / "debug/.cargo-lock"
    context = multiprocessing.get_context("spawn")
    waiter = context.Process(target=_wait_for, args=(str(path),))
    with build_lock(built) as held:
        assert not held.awaited()
        with path.open() as _reader:  # has it open, and waits for nothing
            assert not held.awaited()
        waiter.start()
        deadline = time.monotonic() + 30
        while not held.awaited() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held.awaited()
        # Without leases (a filesystem that has none, a file of somebody else) the list tells.
        monkeypatch.setattr(fcntl, "F_SETLEASE", -1)
        assert held.awaited()
    waiter.join(30)
    assert waiter.exitcode == 0
    with build_lock(built) as held:
        assert not held.awaited()


def test_who_opens_a_lock_while_it_is_looked_at_gets_it(built: Path) -> None:
    """A lease that was given back is in nobody's way, and no signal of it ends us."""
    path = built / "debug/.cargo-lock"
    opened = 0
    with build_lock(built) as held:
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                held.awaited()

        looking = threading.Thread(target=look)
        looking.start()
        try:
            for _ in range(200):
                os.close(os.open(path, os.O_RDWR))
                opened += 1
        finally:
            stop.set()
            looking.join()
    assert opened == 200
