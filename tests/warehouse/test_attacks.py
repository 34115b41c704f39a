"""Inputs that change behind the warehouse's back: what it gives out is what a clean build gives.

Each test builds, changes one thing that no source names, removes the target or touches the sources,
and builds again.  Plain Cargo notices few of these in place; a clean build at that path goes by all
of them.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from cargo_cow import native
from tests.support.projects import cargo, git, repository, settle, write

from .conftest import PACKAGE, Place, told

APP = {
    "Cargo.toml": PACKAGE.format("app", ""),
    "src/main.rs": 'fn main() { println!("app"); }\n',
}


def _script(path: Path, text: str) -> Path:
    write(path.parent, {path.name: f"#!/bin/sh\n{text}\n"})
    path.chmod(0o755)
    return path


def _overwritten(path: Path, data: bytes) -> None:
    """In place, with its old times: nothing but the ctime tells."""
    settle()
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _again(place: Place, project: Path, **extra: str) -> list[str]:
    """The crates that are compiled where there is no target."""
    shutil.rmtree(project / "target")
    return place.build(project, **extra).rustc


# --- linkers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ("-C link-arg=-T{x}/more.ld", "more.ld"),
        ("-C link-arg=-Wl,-T{x}/more.ld", "more.ld"),
        ("-C link-arg=-Wl,-T,{x}/including.ld -L {x}", "more.ld"),
        ("-C link-arg=-B{x}/programs", "programs/ld.lld"),
        ("-C link-arg=-B{x}/programs", "programs/ld"),
        ("-C link-arg=@{x}/arguments", "arguments"),
        ("-C linker={x}/programs/cc", "programs/behind"),
    ],
)
def test_what_link_arguments_lead_to(place: Place, flags: str, changed: str) -> None:
    x = place.root / "x"
    script = "SECTIONS { } INSERT AFTER .text;\n"
    write(x, {"more.ld": script, "including.ld": "INCLUDE more.ld\n", "arguments": "-lm\n"})
    for name in ("ld", "ld.lld"):
        _script(x / "programs" / name, f'exec {name} "$@"')
    _script(x / "programs/behind", 'exec cc "$@"')
    _script(x / "programs/cc", f'exec {x}/programs/behind "$@"')
    project = place.project("app", APP)
    flags = flags.format(x=x)
    place.build(project, RUSTFLAGS=flags)
    assert told(project) == "app"
    comment = {"more.ld": "/* */", "arguments": "-lc"}.get(changed, "# another")
    _overwritten(x / changed, (x / changed).read_bytes() + f"{comment}\n".encode())
    assert _again(place, project, RUSTFLAGS=flags) == ["app"]


def test_link_arguments_that_are_understood_come_back(place: Place) -> None:
    project = place.project("app", APP)
    write(place.root, {"map": "{ global: main; };\n"})
    flags = f"-C link-arg=-Wl,-z,now,--version-script={place.root}/map -C link-arg=-lm"
    place.build(project, RUSTFLAGS=flags)
    assert _again(place, project, RUSTFLAGS=flags) == []
    _overwritten(place.root / "map", b"{ global: main; /* all */ };\n")
    assert _again(place, project, RUSTFLAGS=flags) == ["app"]


def test_a_linker_that_is_a_script_which_starts_another(place: Place) -> None:
    project = place.project("app", APP)
    linker = _script(place.root / "programs/linker", 'exec cc -Wl,-z,now "$@"')
    flags = f"-C linker={linker}"
    place.build(project, RUSTFLAGS=flags)
    assert _again(place, project, RUSTFLAGS=flags) == []
    # By another argument, and then by what nobody can tell before.
    _overwritten(linker, linker.read_bytes().replace(b"now", b"lazy"))
    assert _again(place, project, RUSTFLAGS=flags) == ["app"]
    assert _again(place, project, RUSTFLAGS=flags) == []
    for line in ('exec cc $MORE "$@"', 'exec cc "$@" || exit 1', '. /dev/null\nexec cc "$@"'):
        _overwritten(linker, f"#!/bin/sh\n{line}\n".encode())
        for _ in range(2):
            assert _again(place, project, RUSTFLAGS=flags) == ["app"], line
    assert {reason.endswith("is a script") for reason in place.reasons("passed")} == {True}


def _library(directory: Path, answer: int) -> Path:
    directory.mkdir(exist_ok=True)
    source, made = directory / "given.c", directory / "given.o"
    source.write_text(f"int given(void) {{ return {answer}; }}\n")
    subprocess.run(["cc", "-c", source, "-o", made], check=True)
    library = directory / "libgiven.a"
    if library.exists():
        fresh = directory / "fresh.a"
        subprocess.run(["ar", "crD", fresh, made], check=True)
        _overwritten(library, fresh.read_bytes())
    else:
        subprocess.run(["ar", "crD", library, made], check=True)
    return library


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        ("-L native={x} -l given", {}),
        ("-L {x} -l static=given", {}),
        ("-C link-arg=-lgiven", {"LIBRARY_PATH": "{x}"}),
        ("-L native={x} -l static:+verbatim=given.o", {}),
        ("-C link-arg={x}/libgiven.a", {}),
    ],
)
def test_a_native_library_that_was_built_again(
    place: Place, flags: str, variables: dict[str, str]
) -> None:
    """At the same path with the same times, elsewhere than in the target."""
    main = """unsafe extern "C" { fn given() -> i32; }
fn main() { println!("{}", unsafe { given() }); }
"""
    project = place.project("app", APP | {"src/main.rs": main})
    x = place.root / "x"
    _library(x, 1)
    settings = {name: value.format(x=x) for name, value in variables.items()}
    settings["RUSTFLAGS"] = flags.format(x=x)
    for answer in (1, 2):
        _library(x, answer)
        settle()
        shutil.rmtree(project / "target", ignore_errors=True)
        place.build(project, **settings)
        assert told(project) == str(answer)


def test_a_crate_that_is_found_by_its_name_alone(place: Place) -> None:
    """``-L`` without ``--extern``: rustc takes what lies there."""
    main = 'extern crate found;\nfn main() { println!("{}", found::what()); }\n'
    project = place.project("app", APP | {"src/main.rs": main})
    x = place.root / "x"
    for answer in ("one", "two"):
        write(x, {"found.rs": f'pub fn what() -> &\'static str {{ "{answer}" }}\n'})
        compile_it = ["rustc", "--crate-type=lib", "found.rs"]
        subprocess.run(compile_it, cwd=x, check=True)
        shutil.rmtree(project / "target", ignore_errors=True)
        place.build(project, RUSTFLAGS=f"-L {x}")
        assert told(project) == answer


def _mounted_over(place: Place, project: Path, over: str, with_: Path, **extra: str) -> list[str]:
    """The crates that a build compiles which finds another file there."""
    words = f'mount --bind "{with_}" "{over}" && exec "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", words, "sh"]
    counted = place.scratch / "counted"
    counted.unlink(missing_ok=True)
    environment = {
        **os.environ,
        **place.environment(**extra),
        "RUSTC": str(place.scratch / "counting/rustc"),
        "COUNTED_RUSTC": str(counted),
    }
    shutil.rmtree(project / "target", ignore_errors=True)
    subprocess.run([*argv, "cargo", "build", "-q"], cwd=project, env=environment, check=True)
    place.wait()
    return counted.read_text().split() if counted.exists() else []


def test_a_library_of_the_systems_that_was_overwritten(place: Place) -> None:
    """In place, so that its directory does not change."""
    libm = next(Path("/usr/lib").glob("*-linux-*/libm.so.6")).resolve()
    project = place.project("app", APP)
    place.build(project)
    assert _again(place, project) == []
    same = place.root / "libm"
    shutil.copyfile(libm, same)
    same.chmod(0o755)
    assert _mounted_over(place, project, str(libm), same) == ["app"]


def test_another_processor(place: Place) -> None:
    """``target-cpu=native`` on another machine, or after a change of a virtual one."""
    project = place.project("app", APP)
    native = {"RUSTFLAGS": "-C target-cpu=native"}
    place.build(project, **native)
    assert _again(place, project, **native) == []
    told_by_kernel = Path("/proc/cpuinfo").read_text()
    for word, other in (("flags\t\t:", "flags\t\t: avx9000"), ("model name", "model names")):
        write(place.root, {"cpuinfo": told_by_kernel.replace(word, other)})
        expected = ["app"] if word.startswith("flags") else []
        found = _mounted_over(place, project, "/proc/cpuinfo", place.root / "cpuinfo", **native)
        assert found == expected, word


# --- compilers --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rlib", "self-contained", "driver"])
def test_a_toolchain_that_was_updated_in_place(place: Place, kind: str) -> None:
    """The same path, the same words of ``-vV``, and another library behind them."""
    said = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True)
    real = Path(said.stdout.decode().strip())
    (libraries,) = {path.parent for path in real.glob("lib/rustlib/*/lib/libstd-*.rlib")}
    mine = place.root / "toolchain"
    inner = mine / libraries.relative_to(real)
    inner.mkdir(parents=True)
    for directory in (real / "lib", libraries):
        for file in directory.iterdir():
            if file.is_file():
                (mine / directory.relative_to(real) / file.name).symlink_to(file)
    victim = {
        "rlib": next(inner.glob("libtest-*.rlib")),
        "self-contained": inner / "self-contained/crt1.o",
        "driver": next((mine / "lib").glob("librustc_driver-*.so")),
    }[kind]
    if kind != "driver":
        victim.unlink(missing_ok=True)
        victim.parent.mkdir(exist_ok=True)
        victim.write_bytes(b"one")
    compiler = _script(mine / "bin/rustc", f'exec {real}/bin/rustc --sysroot {mine} "$@"')
    project = place.project("app", APP)
    extra = {"RUSTC": str(compiler)}
    place.build(project, **extra)
    hits = place.counts()["hit"]
    _again(place, project, **extra)
    assert place.counts()["hit"] == hits + 1
    if kind == "driver":
        # Another file of the same name: a byte more does not hurt a shared object.
        data = victim.read_bytes()
        victim.unlink()
        victim.write_bytes(data + b"\0")
    else:
        _overwritten(victim, b"two")
    _again(place, project, **extra)
    assert place.counts()["hit"] == hits + 1


def test_a_toolchain_is_remembered_for_all_stores_until_it_changes(tmp_path: Path) -> None:
    """Stats name what was read: another store believes them, and no other content has the same."""
    toolchain = tmp_path / "toolchain"
    library = toolchain / "lib/rustlib/x86_64-unknown-linux-gnu/lib/libcore-1.rlib"
    files = [toolchain / "bin/rustc", toolchain / "lib/librustc_driver-1.so", library]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"one")
    memory = Path(os.environ["XDG_CACHE_HOME"]) / "cargo-cow/toolchains"
    stores = (tmp_path / f"store-{number}" for number in itertools.count())

    def identity() -> str:
        words: list[str | Path] = [native.program(), "--identify", next(stores), "", files[0]]
        said = subprocess.run(words, check=True, capture_output=True)
        return str(json.loads(said.stdout)["identity"])

    first = identity()  # written this moment: not remembered
    time.sleep(0.05)
    assert (identity(), identity()) == (first, first)
    assert len(list(memory.iterdir())) == 1
    assert (tmp_path / f"store-2/compilers/{first}.files").exists()
    seen = {first}
    for file in files:
        then = file.stat()
        _overwritten(file, b"two")
        assert identity() not in seen
        time.sleep(0.05)
        seen.add(identity())
        other = file.with_name("other")
        other.write_bytes(b"six")
        os.utime(other, ns=(then.st_atime_ns, then.st_mtime_ns))
        other.replace(file)
        seen.add(identity())
    assert len(seen) == 7
    # What somebody else could have written says nothing.
    for word in memory.iterdir():
        word.write_text(word.read_text().replace(identity(), first))
    assert identity() not in {first}


# --- the same names ---------------------------------------------------------------------------


def _dependency(root: Path, told: str, more: str = '""') -> Path:
    return repository(
        root,
        {
            "Cargo.toml": PACKAGE.format("dep", "[features]\nloud = []\n"),
            "src/lib.rs": f'pub fn what() -> String {{ "{told}".to_owned() + {more} }}\n',
        },
    )


_LOUD = 'if cfg!(feature = "loud") { "!" } else { "" }'


def _user(name: str, wanted: str, more: str = "") -> dict[str, str]:
    return {
        "Cargo.toml": PACKAGE.format(name, f"[dependencies]\ndep = {{ {wanted} }}\n{more}"),
        "src/main.rs": 'fn main() { println!("{}", dep::what()); }\n',
    }


def test_one_name_and_version_from_many_places(place: Place) -> None:
    """Two repositories, two paths, two revisions, a patch, and features that differ."""
    one = _dependency(place.root / "deps/one", "one", _LOUD)
    two = _dependency(place.root / "deps/two", "two")
    first = git(one, "rev-parse", "HEAD")
    write(one, {"src/lib.rs": 'pub fn what() -> String { "later".into() }\n'})
    git(one, "commit", "-qam", "later")
    patched = f'[patch."file://{one}"]\ndep = {{ path = "{two}" }}\n'
    users = {
        "a": (_user("a", f'git = "file://{one}", rev = "{first}"'), "one"),
        "b": (_user("b", f'git = "file://{two}"'), "two"),
        "c": (_user("c", f'git = "file://{one}"'), "later"),
        "d": (_user("d", f'path = "{two}"'), "two"),
        "e": (_user("e", f'git = "file://{one}", rev = "{first}", features = ["loud"]'), "one!"),
        "f": (_user("f", f'git = "file://{one}"', patched), "two"),
    }
    for name, (files, expected) in users.items():
        project = place.project(name, files)
        place.build(project)
        assert told(project, name) == expected
    for name, (_, expected) in users.items():
        project = place.root / name
        assert _again(place, project) == []
        assert told(project, name) == expected


def test_profiles_that_are_edited(place: Place) -> None:
    main = """fn main() {
    let most: u8 = std::hint::black_box(255);
    let sum = std::panic::catch_unwind(|| most + std::hint::black_box(1));
    println!("{} {}", cfg!(debug_assertions), sum.is_err());
}
"""
    project = place.project("app", APP | {"src/main.rs": main})
    profiles = {
        "": "true true",
        "[profile.dev]\noverflow-checks = false\n": "true false",
        "[profile.dev]\ndebug-assertions = false\n": "false true",
        "[profile.dev]\nopt-level = 3\n": "true true",
    }
    for _ in range(2):
        for profile, expected in profiles.items():
            write(project, {"Cargo.toml": APP["Cargo.toml"] + profile})
            shutil.rmtree(project / "target", ignore_errors=True)
            place.build(project)
            assert told(project) == expected
    assert place.counts() == {"miss": 4, "kept": 4, "hit": 4}


# --- scripts ----------------------------------------------------------------------------------

_SCRIPT = """fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let what = std::fs::read_to_string("undeclared").unwrap();
    println!("cargo:rustc-env=TOLD={what}");
    if what == "two" { println!("cargo:rustc-cfg=two"); }
    let out = std::env::var("OUT_DIR").unwrap();
    std::fs::write(format!("{out}/made.rs"), format!("const MADE: &str = {what:?};")).unwrap();
    std::fs::write(format!("{out}/text"), &what).unwrap();
}
"""


def test_a_script_that_does_something_else_with_equal_declarations(place: Place) -> None:
    main = """include!(concat!(env!("OUT_DIR"), "/made.rs"));
const TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/text"));
fn main() { println!("{} {MADE} {TEXT} {}", env!("TOLD"), cfg!(two)); }
"""
    files = {**APP, "src/main.rs": main, "build.rs": _SCRIPT, "undeclared": "one"}
    project = place.project("app", files)
    for text in ("one", "two", "one"):
        write(project, {"undeclared": text})
        shutil.rmtree(project / "target", ignore_errors=True)
        place.build(project)
        assert told(project) == f"{text} {text} {text} {str(text == 'two').lower()}"


def test_a_header_of_c(place: Place) -> None:
    """A script that declares its header, and one that does not: as plain Cargo does each."""
    files = {
        "Cargo.toml": PACKAGE.format("app", 'links = "answer"\n'),
        "answer.c": '#include "answer.h"\nint answer(void) { return ANSWER; }\n',
        "answer.h": "#define ANSWER 1\n",
        "build.rs": """use std::process::Command;
fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    let run = |c: &str, a: &[&str]| assert!(Command::new(c).args(a).status().unwrap().success());
    run("cc", &["-c", "answer.c", "-o", &format!("{out}/answer.o")]);
    let _ = std::fs::remove_file(format!("{out}/libanswer.a"));
    run("ar", &["crD", &format!("{out}/libanswer.a"), &format!("{out}/answer.o")]);
    println!("cargo:rustc-link-search=native={out}\\ncargo:rustc-link-lib=static=answer");
    println!("cargo:rerun-if-changed=answer.c");
    if std::path::Path::new("declared").exists() {
        println!("cargo:rerun-if-changed=answer.h");
    }
}
""",
        "src/main.rs": 'unsafe extern "C" { fn answer() -> i32; }\n'
        'fn main() { println!("{}", unsafe { answer() }); }\n',
    }
    for name, more in (("with", {"declared": ""}), ("without", {})):
        project = place.project(name, {**files, **more})
        plain = repository(place.root / f"plain-{name}", {**files, **more})
        for answer in (1, 2):
            for root in (project, plain):
                write(root, {"answer.h": f"#define ANSWER {answer}\n"})
            place.build(project)
            assert cargo(plain, place.scratch, "build").status == 0
            assert told(project) == told(plain)
        # What nobody declared shows where the script runs again.
        assert _again(place, project) == ([] if more else ["app"])
        expected = told(project)
        shutil.rmtree(plain / "target")
        assert cargo(plain, place.scratch, "build").status == 0
        assert expected == told(plain) == "2"


def test_what_the_assembler_includes_of_a_script(place: Place) -> None:
    """Nobody tells of it: neither in a project nor in a dependency."""
    files = {
        "Cargo.toml": PACKAGE.format("dep", ""),
        "build.rs": """fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").unwrap();
    let byte = std::env::var("MADE").unwrap();
    std::fs::write(format!("{out}/a.s"), format!(".byte {byte}\\n")).unwrap();
}
""",
        "src/lib.rs": """std::arch::global_asm!(
    ".section .rodata", ".globl blob", "blob:",
    concat!(".include \\"", env!("OUT_DIR"), "/a.s\\""), ".text");
unsafe extern "C" { static blob: u8; }
pub fn what() -> u8 { unsafe { std::ptr::addr_of!(blob).read() } }
""",
    }
    dep = repository(place.root / "dep", files)
    project = place.project("app", _user("app", f'git = "file://{dep}"'))
    for made in ("65", "66", "65"):
        shutil.rmtree(project / "target", ignore_errors=True)
        place.build(project, MADE=made)
        assert told(project) == made


# --- variables, and entries that were moved ----------------------------------------------------


def test_a_variable_that_is_no_text(place: Place) -> None:
    """It is an error for the compiler, and must not pass for one that is not set."""
    main = 'fn main() { println!("{}", option_env!("MARK").unwrap_or("none")); }\n'
    project = place.project("app", APP | {"src/main.rs": main})
    place.build(project)
    shutil.rmtree(project / "target")
    environment = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    for name, value in place.environment().items():
        environment[os.fsencode(name)] = os.fsencode(value)
    environment[b"MARK"] = b"\xff"
    plain = {**environment, b"RUSTC_WRAPPER": b""}
    results = [
        subprocess.run(
            ["cargo", "build", "-q"], cwd=project, env=env, check=False, capture_output=True
        ).returncode
        for env in (plain, environment)
    ]
    assert results[0] == results[1]


def test_entries_that_changed_places(place: Place) -> None:
    """Each is whole, and says another thing than it is asked for."""
    main = 'fn main() { println!("{}", cfg!(two)); }\n'
    project = place.project("app", APP | {"src/main.rs": main})
    flags = {"false": "--cfg one", "true": "--cfg two"}
    for flag in flags.values():
        shutil.rmtree(project / "target", ignore_errors=True)
        place.build(project, RUSTFLAGS=flag)
    one, two = place.entries()
    aside = place.root / "aside"
    for old, new in ((one, aside), (two, one.parent / two.name), (aside, two.parent / one.name)):
        old.rename(new)
    for again in (["app"], []):
        for expected, flag in flags.items():
            assert _again(place, project, RUSTFLAGS=flag) == again
            assert told(project) == expected


@pytest.mark.parametrize("name", ["0", "entry.json", "seen"])
def test_a_file_of_an_entry_that_is_a_pipe(place: Place, name: str) -> None:
    """Who opens it waits for ever."""
    project = place.project("app", APP)
    place.build(project)
    (entry,) = place.entries()
    (entry / name).unlink()
    os.mkfifo(entry / name)
    assert _again(place, project) == ([] if name == "seen" else ["app"])
    assert _again(place, project) == []
