"""Compilers are counted where they start, and counting changes nothing for Cargo."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cargo_cow.bench import counting, processes


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A library with a build script that starts a compiler of its own."""
    root = tmp_path / "package"
    (root / "src").mkdir(parents=True)
    (root / "Cargo.toml").write_text(
        '[package]\nname = "counted"\nversion = "0.1.0"\nedition = "2021"\n\n[workspace]\n'
    )
    (root / "src" / "lib.rs").write_text("pub fn one() -> u32 { 1 }\n")
    (root / "build.rs").write_text(
        "use std::{env, process::Command};\n"
        "fn main() {\n"
        '    println!("cargo::rerun-if-changed=build.rs");\n'
        '    let out = env::var("OUT_DIR").unwrap();\n'
        '    let run = |words: &[&str]| Command::new(env::var("RUSTC").unwrap())\n'
        '        .args(words).arg("--out-dir").arg(&out).output().unwrap();\n'
        '    run(&["--crate-name=probe", "--crate-type=lib", "--emit=metadata", "src/lib.rs"]);\n'
        '    run(&["--version"]);\n'
        "}\n"
    )
    return root


def _build(root: Path, counter: counting.Counter | None, *words: str) -> counting.Count | str:
    env = processes.environment(None if counter is None else counter.environment())
    if counter is not None:
        counter.forget()
    done = processes.run(["cargo", "build", "--verbose", *words], cwd=root, env=env)
    return done.stderr if counter is None else counter.take(done.stderr)


@pytest.fixture
def counter(package: Path, tmp_path: Path) -> counting.Counter:
    compiler = counting.real_compiler(package, processes.environment())
    return counting.Counter(tmp_path / "a counter's place", compiler)


def test_everything_that_runs_is_counted_once(package: Path, counter: counting.Counter) -> None:
    count = _build(package, counter)
    assert isinstance(count, counting.Count)
    assert sorted(count.compiled) == ["build_script_build", "counted"]
    assert [unit.rpartition("-")[0] for unit in count.scripts] == ["counted"]
    assert count.from_scripts == 1
    assert _build(package, counter) == counting.Count((), 0, ())


def test_counted_and_uncounted_builds_are_the_same_to_cargo(
    package: Path, counter: counting.Counter
) -> None:
    _build(package, counter)
    output = _build(package, None)
    assert isinstance(output, str)
    assert "Fresh counted" in output
    assert "Running" not in output
    shutil.rmtree(package / "target")
    _build(package, None)
    assert _build(package, counter) == counting.Count((), 0, ())


def test_a_wrapper_that_does_not_call_the_compiler_is_not_a_compiler(
    package: Path, counter: counting.Counter, tmp_path: Path
) -> None:
    """Counted is what starts, not what Cargo asked for."""
    log = tmp_path / "called"
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(
        '#!/bin/sh\ncase "$*" in *"--crate-name counted"*)\n'
        f'  echo "$@" >>{log}; exit 7;;\nesac\nexec "$@"\n'
    )
    wrapper.chmod(0o755)
    counter.forget()
    env = processes.environment({**counter.environment(), "RUSTC_WRAPPER": str(wrapper)})
    done = processes.run(["cargo", "build", "--verbose"], cwd=package, env=env, check=False)
    assert done.status != 0
    assert log.exists()
    assert counter.take(done.stderr).compiled == ("build_script_build",)


@pytest.mark.parametrize(
    ("words", "crate"),
    [
        ("-vV", None),
        ("--version", None),
        ("--print sysroot", None),
        ("- --crate-name ___ --print=file-names --crate-type bin", None),
        ("- --crate-name ___ --crate-type bin", None),
        ("", None),
        ("--crate-name serde --edition=2021 src/lib.rs --emit=metadata,link", "serde"),
        ("--crate-name=serde src/lib.rs", "serde"),
        ("src/main.rs -o main", "?"),
        ("--crate-name serde src/lib.rs --emit dep-info -o serde.d", None),
        ("--crate-name serde src/lib.rs --emit=dep-info", None),
        ("--crate-name serde src/lib.rs --emit=dep-info,metadata", "serde"),
    ],
)
def test_questions_are_no_compilations(words: str, crate: str | None) -> None:
    assert counting.compiled_crate(words.split()) == crate


def test_script_runs_are_read_in_both_layouts() -> None:
    lines = [
        "   Compiling app v0.1.0 (/w/app)",
        "     Running `/bin/rustc --crate-name build_script_build --edition=2021 build.rs`",
        "     Running `/w/target/debug/build/app-0123456789abcdef/build-script-build`",
        "     Running `'/w 2/target/debug/build/b-c-00/build-script-main'`",
        "     Running `FOO='a b' /w/target/debug/build/env-11/build-script-build`",
        "     Running `/w/target/debug/build/app/0123456789abcdef/out/build-script-build`",
        "     Running `/usr/bin/cargo-cow-native /bin/rustc --crate-name app src/main.rs`",
        "       Dirty app v0.1.0 (/w/app): the file `Running` has changed",
        "     Running `broken 'quote`",
    ]
    assert counting.script_runs("\n".join(lines)) == (
        "app-0123456789abcdef",
        "b-c-00",
        "env-11",
        "app-0123456789abcdef",
    )
