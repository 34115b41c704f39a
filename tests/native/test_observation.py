"""The shim notes what a compile read, and never more than it can answer for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import blake3
import pytest

if TYPE_CHECKING:
    from tests.native.conftest import Unit


def observed(unit: Unit) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(unit.observed.read_bytes())
    return content


def names(unit: Unit) -> list[str]:
    return [name for name, _, _ in observed(unit)["files"]]


def tick() -> None:
    """What was written so far is certainly older than what comes next (a tick is 1 to 10 ms)."""
    time.sleep(0.02)


def digest(path: Path) -> str:
    return blake3.blake3(path.read_bytes()).hexdigest()


# --- what is written --------------------------------------------------------------------------


def test_the_whole_of_it(unit: Unit) -> None:
    outside = unit.root.parent / "out side.txt"
    outside.write_bytes(b"x" * 200_000)
    manifest = '[package]\nmetadata.cow.inputs = ["data", "env:DECLARED", "env:NOT_SET"]\n'
    (unit.root / "Cargo.toml").write_text(manifest)
    tick()
    does = (
        unit.writes("src/lib.rs", "src/b.rs", str(outside).replace(" ", "\\ "), "src/lib.rs")
        + f"printf '%s\\n' '' 'src/lib.rs:' '# env-dep:UNSET' >> '{unit.dep_info}'\n"
        + f"printf '%s\\n' '# env-dep:SET=a\\\\b\\nc=d' >> '{unit.dep_info}'\n"
    )
    environment = unit.environment(does) | {"DECLARED": "x"}
    assert unit.call(does, environment=environment).returncode == 0
    lib, b = unit.root / "src/lib.rs", unit.root / "src/b.rs"
    value = observed(unit)
    # What a shell in rustc's place looks at is no matter here (tests/prepare/test_hidden.py).
    del value["hidden"]
    assert value == {
        "format": 1,
        "outputs": None,
        "invoked": unit.stamp.stat().st_mtime_ns,
        "cwd": str(unit.root),
        "files": [
            ["src/lib.rs", 10, digest(lib)],
            ["src/b.rs", 8, digest(b)],
            [str(outside), 200_000, digest(outside)],
        ],
        "env": [["UNSET", None], ["SET", "a\\b\nc=d"]],
        "declared": [["DECLARED", blake3.blake3(b"x").hexdigest()], ["NOT_SET", None]],
    }
    assert {path.name for path in unit.fingerprint.iterdir()} == {
        "cow-observed.json",
        "invoked.timestamp",
    }


def test_it_replaces_the_last_one_whole(unit: Unit) -> None:
    unit.observed.write_text("x" * 10_000)
    unit.call(unit.writes("src/lib.rs"))
    assert names(unit) == ["src/lib.rs"]


@pytest.mark.parametrize(
    ("out_dir", "extra", "directory"),
    [
        ("debug/deps", "-0a", "debug/.fingerprint/app-0a"),
        ("debug/examples", "-0a", "debug/.fingerprint/app-0a"),
        ("debug/build/app-0a", "-0a", "debug/.fingerprint/app-0a"),
        ("some-triple/release/deps", "-0a", "some-triple/release/.fingerprint/app-0a"),
        ("debug/build/app/0a/out", "", "debug/build/app/0a/fingerprint"),
    ],
)
def test_the_unit_is_found(unit: Unit, out_dir: str, extra: str, directory: str) -> None:
    target = unit.root / "target"
    (target / out_dir).mkdir(parents=True, exist_ok=True)
    (target / directory).mkdir(parents=True, exist_ok=True)
    (target / directory / "invoked.timestamp").touch()
    arguments = ["--crate-name=x", "--emit=dep-info", f"--out-dir={target / out_dir}"]
    if extra:
        arguments += [f"-Cextra-filename={extra}"]
    dep_info = target / out_dir / f"x{extra}.d"
    unit.call(f"echo 'x.d: src/lib.rs' > '{dep_info}'", arguments)
    assert (target / directory / "cow-observed.json").exists()


def test_arguments_in_a_file(unit: Unit) -> None:
    """Cargo's way when the command line is too long."""
    file = unit.root / "arguments"
    file.write_text("\n".join(unit.arguments()))
    unit.call(unit.writes("src/lib.rs"), [f"@{file}"])
    assert names(unit) == ["src/lib.rs"]
    assert unit.call("echo ran", ["@/nowhere"]).stdout == b"ran\n"


def test_dep_info_at_a_place_of_its_own(unit: Unit) -> None:
    place = unit.root / "mine.d"
    arguments = [*unit.arguments(), f"--emit=dep-info={place}"]
    arguments.remove("--emit=dep-info,metadata,link")
    unit.call(f"echo 'x: src/b.rs' > '{place}'", arguments)
    assert names(unit) == ["src/b.rs"]


# --- what is left out -------------------------------------------------------------------------

EDITS = {
    "written": "echo new > src/b.rs",
    "rewritten the same": "cat src/b.rs > copy; cat copy > src/b.rs",
    "replaced": "echo new > n; mv n src/b.rs",
    "replaced by an older file": "mv old.rs src/b.rs",
    "with its time put back": "touch -r src/b.rs r; echo new > src/b.rs; touch -r r src/b.rs",
    "gone": "rm src/b.rs",
    "now a directory": "rm src/b.rs; mkdir src/b.rs",
    "now a pipe": "rm src/b.rs; mkfifo src/b.rs",
    "from the future": "touch -d 2100-01-01 src/b.rs",
    "a link to elsewhere": "ln -sf ../old.rs src/b.rs",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_input_edited_meanwhile(unit: Unit, edit: str) -> None:
    (unit.root / "old.rs").write_text("older")
    os.utime(unit.root / "old.rs", ns=(1, 1))
    tick()
    does = unit.writes("src/lib.rs", "src/b.rs") + edit
    assert unit.call(does).returncode == 0
    assert names(unit) == ["src/lib.rs"]


def test_a_directory_moved_into_place_meanwhile(unit: Unit) -> None:
    """Its files are as old as before, but they are not what was compiled."""
    shutil.copytree(unit.root / "src", unit.root / "new" / "sub")
    does = unit.writes("src/lib.rs", "Cargo.toml", "src/b.rs") + "mv src old; mv new/sub src"
    (unit.root / "Cargo.toml").touch()
    os.utime(unit.root / "Cargo.toml", ns=(1, 1_600_000_000_000_000_001))
    tick()
    unit.call(does)
    assert names(unit) == ["Cargo.toml"]


def test_an_entry_made_beside_an_input_meanwhile(unit: Unit) -> None:
    unit.call(unit.writes("src/lib.rs", "src/b.rs") + "touch src/.swap; rm src/.swap")
    assert names(unit) == ["src/lib.rs", "src/b.rs"]


def test_a_file_that_the_build_script_has_just_written(unit: Unit) -> None:
    """Its stamp may be of the same tick as the start; the shim waits that out."""
    out = unit.root / "out"
    out.mkdir()
    for _ in range(20):
        (out / "generated.rs").write_text("fn generated() {}")
        environment = unit.environment(unit.writes("out/generated.rs")) | {"OUT_DIR": str(out)}
        unit.call(environment=environment)
        assert names(unit) == ["out/generated.rs"]


def test_a_clock_that_lags_behind_ours(unit: Unit) -> None:
    """The filesystem stamped Cargo's start an hour ago: what it stamped since may be an edit."""
    hour_ago = unit.stamp.stat().st_mtime_ns - 3_600_000_000_000
    os.utime(unit.stamp, ns=(hour_ago, hour_ago))
    unit.call(unit.writes("src/lib.rs"), announced=False)
    assert observed(unit)["invoked"] == hour_ago
    assert names(unit) == []


def test_sources_that_never_change(unit: Unit, tmp_path: Path) -> None:
    home, sysroot = tmp_path / "home" / "cargo", tmp_path / "toolchain"
    (sysroot / "lib/rustlib").mkdir(parents=True)
    (sysroot / "bin").mkdir()
    shutil.copy2(unit.compiler, sysroot / "bin/rustc")
    listed = [
        home / "registry/src/index/serde-1/src/lib.rs",
        home / "git/checkouts/a/b/lib.rs",
        sysroot / "lib/rustlib/src/core.rs",
    ]
    for path in listed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    tick()
    does = unit.writes(*map(str, listed), "src/lib.rs")
    unit.call(
        environment=unit.environment(does) | {"CARGO_HOME": str(home)},
        compiler=[sysroot / "bin/rustc"],
    )
    assert names(unit) == ["src/lib.rs"]


# --- what is not observed at all --------------------------------------------------------------


def _without(unit: Unit, option: str) -> list[str]:
    arguments = unit.arguments()
    at = arguments.index(option)
    return arguments[:at] + arguments[at + 2 :]


def test_a_failed_compile(unit: Unit) -> None:
    unit.observed.write_text("earlier")
    assert unit.call(unit.writes("src/lib.rs") + "exit 101").returncode == 101
    assert unit.observed.read_text() == "earlier"


def test_a_dep_info_of_an_earlier_compile(unit: Unit) -> None:
    unit.dep_info.write_text("x: src/lib.rs\n")
    tick()
    unit.call("true")
    assert not unit.observed.exists()


@pytest.mark.parametrize(
    "text", [b"x: src/lib.rs\\\n", b"# env-dep:A=\\q\nx: src/lib.rs\n", b"x: \xff\n"]
)
def test_a_dep_info_that_cargo_would_refuse(unit: Unit, text: bytes) -> None:
    (unit.root / "prepared").write_bytes(text)
    assert unit.call(f"cat prepared > '{unit.dep_info}'").returncode == 0
    assert not unit.observed.exists()


def test_a_unit_that_cargo_did_not_announce(unit: Unit) -> None:
    unit.stamp.unlink()
    unit.call(unit.writes("src/lib.rs"))
    assert not unit.observed.exists()


def test_a_unit_announced_again_meanwhile(unit: Unit) -> None:
    unit.call(unit.writes("src/lib.rs") + f"touch '{unit.stamp}'")
    assert not unit.observed.exists()


def test_packages_from_the_registry_and_git(unit: Unit, tmp_path: Path) -> None:
    home = tmp_path / "cargo"
    (tmp_path / "link").symlink_to(home)
    for part in ("registry/src/index/serde-1", "git/checkouts/a/b"):
        (home / part).mkdir(parents=True)
        for named in (home, tmp_path / "link"):
            environment = unit.environment(unit.writes("src/lib.rs")) | {
                "CARGO_MANIFEST_DIR": str(home / part),
                "CARGO_HOME": str(named),
            }
            unit.call(environment=environment)
    del environment["CARGO_HOME"]
    environment["CARGO_MANIFEST_DIR"] = f"{environment['HOME']}/.cargo/registry/src/i/a-1"
    unit.call(environment=environment)
    assert not unit.observed.exists()


@pytest.mark.parametrize("option", ["--crate-name", "--out-dir"])
def test_calls_that_are_no_compile(unit: Unit, option: str) -> None:
    unit.call(unit.writes("src/lib.rs"), _without(unit, option))
    assert not unit.observed.exists()


def test_a_compile_by_nobody_in_particular(unit: Unit) -> None:
    environment = unit.environment(unit.writes("src/lib.rs"))
    for name in ("CARGO_MANIFEST_DIR", "CARGO_PKG_NAME"):
        lesser = {key: value for key, value in environment.items() if key != name}
        unit.call(environment=lesser)
    assert not unit.observed.exists()


# --- with the real cargo ----------------------------------------------------------------------

LAYOUTS = {
    "legacy": ([], {}),
    # Affects Cargo alone, unlike RUSTC_BOOTSTRAP.
    "new": (
        ["-Zbuild-dir-new-layout"],
        {"__CARGO_TEST_CHANNEL_OVERRIDE_DO_NOT_USE_THIS": "nightly"},
    ),
}


def _package(root: Path) -> None:
    files = {
        "Cargo.toml": '[package]\nname = "my-app"\nversion = "0.1.0"\nedition = "2021"\n',
        "build.rs": 'fn main() { let out = std::env::var("OUT_DIR").unwrap();\n'
        'std::fs::write(out + "/made.rs", "const MADE: u8 = 1;").unwrap(); }\n',
        "src/lib.rs": "pub mod sub;\n",
        "src/sub.rs": 'pub const TEXT: &str = include_str!("my text.txt");\n',
        "src/my text.txt": "text\n",
        "src/main.rs": 'include!(concat!(env!("OUT_DIR"), "/made.rs"));\nfn main() {\n'
        'println!("{} {:?} {}", my_app::sub::TEXT, option_env!("NOT_SET"), MADE); }\n',
        "examples/show.rs": "fn unused() {}\nfn main() {}\n",
        "tests/it.rs": "#[test] fn it() {}\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_unit_of_a_real_build(native_program: Path, tmp_path: Path, layout: str) -> None:
    _package(tmp_path)
    tick()
    options, variables = LAYOUTS[layout]
    environment = dict(os.environ) | variables

    def cargo(*words: str, wrapper: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["cargo", *words, "--offline", *options],
            cwd=tmp_path,
            env=environment | {"RUSTC_WRAPPER": wrapper},
            capture_output=True,
            check=True,
        )

    build = ("build", "--all-targets", "--message-format=json", "--quiet")
    plain = cargo(*build, "--target-dir=plain", wrapper="")
    ours = cargo(*build, wrapper=str(native_program))
    where = (b"/plain/", b"/target/")
    assert sorted(ours.stdout.splitlines()) == sorted(plain.stdout.replace(*where).splitlines())
    assert ours.stderr == plain.stderr

    found: dict[tuple[str, ...], list[dict[str, str | None]]] = {}
    for path in (tmp_path / "target").rglob("cow-observed.json"):
        content = json.loads(path.read_bytes())
        stamp = (path.parent / "invoked.timestamp").stat().st_mtime_ns
        assert (content["invoked"], content["cwd"]) == (stamp, str(tmp_path))
        for name, size, known in content["files"]:
            read = tmp_path / name
            assert (size, known) == (read.stat().st_size, digest(read))
        key = tuple(sorted(Path(name).name for name, _, _ in content["files"]))
        found.setdefault(key, []).append(dict(content["env"]))
    assert {key: len(units) for key, units in found.items()} == {
        ("build.rs",): 1,
        ("lib.rs", "my text.txt", "sub.rs"): 2,  # the library and its unit tests
        ("made.rs", "main.rs"): 2,
        ("show.rs",): 1,
        ("it.rs",): 1,
    }
    for environment_of_main in found["made.rs", "main.rs"]:
        assert environment_of_main["NOT_SET"] is None
        assert Path(environment_of_main["OUT_DIR"] or "").is_dir()

    again = cargo("build", "--all-targets", "-v", wrapper=str(native_program))
    assert b"Running" not in again.stderr
    assert b"Fresh my-app" in again.stderr


def test_check_and_clippy(
    native_program: Path, tmp_path: Path, missing: Callable[[str], NoReturn]
) -> None:
    if shutil.which("cargo-clippy") is None:
        missing("clippy is not installed")
    _package(tmp_path)
    tick()
    # With a workspace wrapper members have hashes of their own, the build script among them.
    for command, units in (("check", 3), ("clippy", 3 + 3)):
        subprocess.run(
            ["cargo", command, "--offline", "--quiet"],
            cwd=tmp_path,
            env=dict(os.environ) | {"RUSTC_WRAPPER": str(native_program)},
            check=True,
        )
        assert len(list((tmp_path / "target").rglob("cow-observed.json"))) == units
