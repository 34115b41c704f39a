"""The warehouse's door: what comes back must be what a compile would give, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cargo_cow.filesystems import usage
from tests.support.projects import _environment, cargo, cow, settle, write

from .conftest import FILES, PACKAGE, Place, told, user

# --- what comes back --------------------------------------------------------------------------


def test_a_removed_target_comes_back_without_a_compiler(place: Place) -> None:
    project = place.project("main", FILES)
    assert place.build(project).rustc == ["app", "build_script_build", "util"]
    subprocess.run(["sync", "-f", project], check=True)
    shutil.rmtree(project / "target")
    again = place.build(project)
    assert again.rustc == []
    assert told(project) == "u1 none"
    assert place.counts() == {"miss": 3, "kept": 3, "hit": 3}
    # By reflink: on the disk once.  (A few small files lie in the metadata.)
    subprocess.run(["sync", "-f", project], check=True)
    used = usage(project / "target/debug/deps")
    assert used.exclusive_bytes < 10_000 < used.shared_bytes
    assert {event["copied"] for event in place.events()} == {0}
    # Cargo finds everything in order; only the script that declares a missing file runs again.
    assert place.build(project).rustc == []
    assert "Fresh util" in place.build(project, "build", "-p", "util").output


def test_another_project_with_the_same_dependencies(place: Place, dependencies: Path) -> None:
    one = place.project("one", user("one", dependencies))
    two = place.project("two", user("two", dependencies))
    place.build(one)
    built = place.build(two)
    # What bakes where it was made is made anew, and what is above it.
    assert built.rustc == ["baked", "two"]
    for project in (one, two):
        shown, where = told(project, project.name).split()
        assert shown == "<7>"
        assert where.startswith(f"{project}/target/debug/build/baked-")
        assert Path(where).is_dir()
    # Cargo was told of the files of here.
    for path in (two / "target/debug/deps").glob("*.d"):
        assert str(one) not in path.read_text()
    assert place.build(two).rustc == []


def test_all_kinds_of_targets_and_commands(place: Place) -> None:
    files = FILES | {
        "app/examples/show.rs": "fn main() {}\n",
        "app/tests/it.rs": '#[test] fn it() { assert!(env!("CARGO_BIN_EXE_app").len() > 1); }\n',
        "app/benches/b.rs": "fn main() {}\n",
    }
    project = place.project("main", files)
    everything = ("build", "--all-targets")
    for words in (everything, ("check", "--all-targets"), ("build", "--release")):
        place.build(project, *words)
    assert place.reasons("not-kept") == []
    misses = place.counts()["miss"]
    shutil.rmtree(project / "target")
    for words in (everything, ("check", "--all-targets"), ("build", "--release")):
        assert place.build(project, *words).rustc == [], place.reasons("miss")[misses:]
    assert place.counts()["hit"] == misses
    assert place.build(project, "test").rustc == []


def test_what_was_said_is_said_again(place: Place) -> None:
    files = FILES | {"util/src/inner.rs": FILES["util/src/inner.rs"] + "fn unused() {}\n"}
    project = place.project("main", files)

    def said(*more: str, wrapper: bool = True) -> tuple[list[str], str]:
        environment = {**os.environ, **(place.environment() if wrapper else {})}
        done = subprocess.run(
            ["cargo", "build", "-p", "util", *more],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        lines = done.stderr.splitlines()
        return sorted(done.stdout.splitlines()), "\n".join(lines[:-1])  # without the time

    for more in ([], ["--message-format=json"]):
        shutil.rmtree(project / "target", ignore_errors=True)
        plain = said(*more, wrapper=False)
        assert "unused" in "".join(plain[0]) + plain[1]
        for _ in range(2):
            shutil.rmtree(project / "target", ignore_errors=True)
            assert said(*more) == plain
            place.wait()
    # Cargo asks rustc for the same form in both.
    assert place.counts() == {"miss": 1, "kept": 1, "hit": 3}


def test_a_script_that_runs_on_every_build_compiles_nothing(place: Place) -> None:
    project = place.project("main", FILES)
    place.build(project)
    again = place.build(project)
    assert (again.rustc, again.scripts) == ([], 1)
    # Another script that does the same; then one that does something else.
    write(project, {"app/build.rs": FILES["app/build.rs"] + "// other\n"})
    assert place.build(project).rustc == ["build_script_build"]
    cfg = 'fn main() { println!("cargo:rerun-if-changed=not-there\\ncargo:rustc-env=MARK=m"); }\n'
    write(project, {"app/build.rs": cfg})
    assert place.build(project).rustc == ["app", "build_script_build"]
    assert told(project) == "u1 m"


def test_back_on_what_was_there_before(place: Place) -> None:
    project = place.project("main", FILES)
    place.build(project)
    write(project, {"util/src/inner.rs": 'pub const MARK: &str = "u2";\n'})
    assert place.build(project).rustc == ["app", "util"]
    assert told(project) == "u2 none"
    write(project, {"util/src/inner.rs": FILES["util/src/inner.rs"]})
    assert place.build(project).rustc == []
    assert told(project) == "u1 none"


# --- what must not come back ------------------------------------------------------------------


def _touched(project: Path) -> None:
    """Every unit is dirty for Cargo: what is restored now is judged by us alone."""
    settle()
    for path in project.rglob("*.rs"):
        if "target" not in path.parts:
            os.utime(path)


def test_variables_and_flags(place: Place) -> None:
    project = place.project("main", FILES)
    place.build(project)
    assert place.build(project, MARK="x").rustc == ["app"]
    assert told(project) == "u1 x"
    assert place.build(project).rustc == []
    assert told(project) == "u1 none"
    assert len(place.build(project, RUSTFLAGS="--cfg other").rustc) == 3
    assert len(place.build(project, "build", CARGO_PROFILE_DEV_OPT_LEVEL="1").rustc) == 2


def test_a_file_that_would_be_found_first(place: Place) -> None:
    """``inner/mod.rs`` beside ``inner.rs`` is an error, and must not be hidden."""
    project = place.project("main", FILES)
    place.build(project)
    write(project, {"util/src/inner/mod.rs": ""})
    _touched(project)
    built = cargo(project, place.scratch, "build", **place.environment())
    assert built.status != 0
    assert "E0761" in built.output


_READER = {
    "Cargo.toml": '[workspace]\nmembers = ["hidden", "app"]\nresolver = "2"\n',
    "hidden/Cargo.toml": PACKAGE.format("hidden", "[lib]\nproc-macro = true\n"),
    "hidden/src/lib.rs": """
use proc_macro::TokenStream;
#[proc_macro]
pub fn read(_: TokenStream) -> TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let text = std::fs::read_to_string(format!("{root}/secret.txt")).unwrap();
    let variable = std::env::var("SECRET").unwrap_or_default();
    format!("{:?}", text.trim().to_owned() + &variable).parse().unwrap()
}
""",
    "app/Cargo.toml": PACKAGE.format("app", '[dependencies]\nhidden = { path = "../hidden" }\n'),
    "app/src/main.rs": 'fn main() { println!("{}", hidden::read!()); }\n',
    "app/secret.txt": "one\n",
}


def test_what_a_macro_reads_behind_the_compilers_back(place: Place) -> None:
    project = place.project("main", _READER)
    place.build(project)
    _touched(project)
    assert place.build(project).rustc == []
    write(project, {"app/secret.txt": "two\n"})
    _touched(project)
    assert place.build(project).rustc == ["app"]
    assert told(project) == "two"
    _touched(project)
    assert place.build(project, SECRET="!").rustc == ["app"]
    assert told(project) == "two!"
    # What it was not seen to read may change.
    write(project, {".env": "A=1\n", "app/notes": "new"})
    _touched(project)
    assert place.build(project, SECRET="!").rustc == []
    assert told(project) == "two!"


def test_what_a_macro_reads_outside_of_its_package(place: Place) -> None:
    """No rule about packages covers that: it is observed."""
    source = _READER["hidden/src/lib.rs"].replace("{root}/secret.txt", "{root}/../secret.txt")
    project = place.project("main", _READER | {"hidden/src/lib.rs": source, "secret.txt": "one\n"})
    place.build(project)
    _touched(project)
    assert place.build(project).rustc == []
    write(project, {"secret.txt": "two\n"})
    _touched(project)
    assert place.build(project).rustc == ["app"]
    assert told(project) == "two"
    write(project, {"secret.txt": "one\n"})
    _touched(project)
    again = place.build(project)
    assert (again.rustc, told(project)) == ([], "one")


def test_what_a_script_declares_counts_for_the_whole_package(place: Place) -> None:
    """Such scripts print nothing new: they are there to have Cargo compile again."""
    files = _READER | {
        "app/build.rs": 'fn main() { println!("cargo:rerun-if-changed=../migrations"); }\n',
        "app/src/main.rs": "fn main() {}\n",
        "migrations/1.sql": "one",
    }
    project = place.project("main", files)
    assert "app" in place.build(project).rustc
    write(project, {"migrations/2.sql": "two"})
    assert place.build(project).rustc == ["app"]
    (project / "migrations/2.sql").unlink()
    assert place.build(project).rustc == []


_NATIVE = {
    "Cargo.toml": PACKAGE.format("app", 'links = "answer"\n'),
    "answer.c": "int answer(void) { return 1; }\n",
    "build.rs": """
use std::process::Command;
fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    let run = |c: &str, a: &[&str]| assert!(Command::new(c).args(a).status().unwrap().success());
    run("cc", &["-c", "answer.c", "-o", &format!("{out}/answer.o")]);
    let _ = std::fs::remove_file(format!("{out}/libanswer.a"));
    run("ar", &["crD", &format!("{out}/libanswer.a"), &format!("{out}/answer.o")]);
    println!("cargo:rustc-link-search=native={out}");
    println!("cargo:rustc-link-lib=static=answer");
    println!("cargo:rerun-if-env-changed=NOTHING");
}
""",
    "src/lib.rs": 'extern "C" { fn answer() -> i32; }\n'
    "pub fn it() -> i32 { unsafe { answer() } }\n",
    "src/main.rs": 'fn main() { println!("{}", app::it()); }\n',
}


def test_native_libraries(place: Place) -> None:
    project = place.project("main", _NATIVE)
    place.build(project)
    assert told(project) == "1"
    write(project, {"answer.c": "int answer(void) { return 2; }\n"})
    os.utime(project / "build.rs")
    built = place.build(project)
    assert built.rustc == ["app", "app"]
    assert told(project) == "2"
    shutil.rmtree(project / "target")
    assert place.build(project).rustc == []
    assert told(project) == "2"


def test_another_linker(place: Place, tmp_path: Path) -> None:
    project = place.project("main", FILES)
    place.build(project)
    shutil.rmtree(project / "target")
    programs = tmp_path / "bin"
    write(programs, {"cc": '#!/bin/sh\nexec /usr/bin/cc "$@"\n'})
    (programs / "cc").chmod(0o755)
    built = place.build(project, PATH=f"{programs}:{os.environ['PATH']}")
    assert built.rustc == ["app", "build_script_build"]


def test_an_input_that_changes_while_it_is_compiled(place: Place) -> None:
    """What was read is not known then, so nothing is kept."""
    project = place.project("main", FILES)
    slow = place.scratch / "slow-rustc"
    slow.write_text(
        f'#!/bin/sh\ncase "$*" in *"--crate-name util"*) echo "// more" >> '
        f'{project}/util/src/inner.rs;; esac\nexec rustc "$@"\n'
    )
    slow.chmod(0o755)
    settle()
    environment = {**os.environ, **place.environment(), "RUSTC": str(slow)}
    subprocess.run(["cargo", "build", "-q", "-p", "util"], cwd=project, env=environment, check=True)
    place.wait()
    assert place.counts() == {"miss": 1, "not-kept": 1}
    assert "inner.rs" in place.reasons("not-kept")[0]


# --- damage, rivals, kills --------------------------------------------------------------------


def _flip(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _halve(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_flip, _halve, _empty, Path.unlink])
@pytest.mark.parametrize("name", ["0", "entry.json"])
def test_a_damaged_entry_is_a_miss_that_heals(place: Place, name: str, damage: object) -> None:
    assert callable(damage)
    project = place.project("main", FILES)
    place.build(project, "build", "-p", "util")
    (entry,) = place.entries()
    damage(entry / name)
    for expected in (["util"], []):
        shutil.rmtree(project / "target")
        assert place.build(project, "build", "-p", "util").rustc == expected
    (healed,) = place.entries()
    assert (healed / "0").stat().st_size > 0


def test_what_others_own_or_may_write_is_not_used(place: Place) -> None:
    project = place.project("main", FILES)
    place.build(project, "build", "-p", "util")
    (entry,) = place.entries()
    if os.geteuid() == 0:
        os.chown(entry / "entry.json", 65_534, -1)
        shutil.rmtree(project / "target")
        assert place.build(project, "build", "-p", "util").rustc == ["util"]
    for mode, expected in ((0o777, ["util"]), (0o700, [])):
        place.store.chmod(mode)
        shutil.rmtree(project / "target")
        assert place.build(project, "build", "-p", "util").rustc == expected
    modes = {path.stat().st_mode & 0o077 for path in place.store.rglob("*")}
    assert modes == {0}, [p for p in place.store.rglob("*") if p.stat().st_mode & 0o077]


def test_two_builds_at_once(place: Place, dependencies: Path) -> None:
    projects = [place.project(name, user(name, dependencies)) for name in ("one", "two")]
    environment = {**_environment(place.scratch), **place.environment()}
    running = [
        subprocess.Popen(["cargo", "build", "-q"], cwd=project, env=environment)
        for project in projects
    ]
    assert [child.wait() for child in running] == [0, 0]
    place.wait()
    for project in projects:
        shown, where = told(project, project.name).split()
        assert shown == "<7>"
        assert where.startswith(f"{project}/")
        assert place.build(project).rustc == []
    for project in projects:
        shutil.rmtree(project / "target")
        # Below it may now be what the other one made, with other names in it.
        assert place.build(project).rustc in ([], [project.name])
        shutil.rmtree(project / "target")
        assert place.build(project).rustc == []


def test_killed_at_any_moment_the_store_works(place: Place) -> None:
    project = place.project("main", FILES)
    environment = {**_environment(place.scratch), **place.environment()}
    for moment in (0.1, 0.25, 0.4, 0.6):
        shutil.rmtree(project / "target", ignore_errors=True)
        child = subprocess.Popen(
            ["cargo", "build", "-q"], cwd=project, env=environment, start_new_session=True
        )
        time.sleep(moment)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        # Those who keep are in groups of their own.
        for directory in place.store.glob("making/*"):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if os.fsencode(directory) in (process / "cmdline").read_bytes().split(b"\0"):
                        os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(place.store / "making", ignore_errors=True)
    shutil.rmtree(project / "target", ignore_errors=True)
    place.build(project)
    assert told(project) == "u1 none"
    shutil.rmtree(project / "target")
    assert place.build(project).rustc == []
    for entry in place.entries():
        assert {"entry.json", "0", "seen"} <= {path.name for path in entry.iterdir()}


def test_no_space_in_the_store(place: Place, small_filesystem: object) -> None:
    assert callable(small_filesystem)
    mount = small_filesystem("ext4", 8 << 20)
    (mount / "filler").write_bytes(b"x" * (3 << 20))
    small = place._replace(store=mount / "store")
    project = place.project("main", FILES)
    small.build(project)
    assert told(project) == "u1 none"
    assert small.counts()["not-kept"] > 0
    assert not list((small.store / "making").iterdir())
    shutil.rmtree(project / "target")
    small.build(project)
    assert told(project) == "u1 none"


# --- which store ------------------------------------------------------------------------------


def test_off_unless_asked_for(place: Place) -> None:
    project = place.project("main", FILES)
    for setting in ("", "off", "0"):
        place.build(project, CARGO_COW_WAREHOUSE=setting)
    assert not place.store.exists()
    assert not (project / "target/debug/.cargo-cow").exists()


def test_the_store_is_found_where_data_can_be_shared(place: Place, ext4: Path) -> None:
    project = place.project("main", FILES)
    cache = place.root / "cache"
    cache.mkdir()
    setting = {"CARGO_COW_WAREHOUSE": "on", "XDG_CACHE_HOME": str(cache)}
    place.build(project, **setting)
    found = cache / "cargo-cow/warehouse"
    assert (found / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f0688")
    assert found.stat().st_mode & 0o077 == 0
    shutil.rmtree(project / "target")
    # Where the cache is on another filesystem, beside what is built.
    setting["XDG_CACHE_HOME"] = str(ext4)
    place.build(project, **setting)
    note = Path((project / "target/debug/.cargo-cow/warehouse").read_text())
    assert note.name == "warehouse"
    assert note.parent.name == ".cargo-cow"
    assert project.is_relative_to(note.parent.parent)
    # What is known of toolchains is of use to every store.
    assert {path.name for path in ext4.rglob("*") if path.is_dir()} <= {"cargo-cow", "toolchains"}
    for _ in range(100):
        # Keeping goes on after the build, and may still add to it.
        shutil.rmtree(note.parent, ignore_errors=True)
        if not note.parent.exists():
            break
        time.sleep(0.1)


def test_without_reflinks_nothing_is_kept_unless_a_place_is_named(ext4: Path, place: Place) -> None:
    there = place._replace(root=ext4, store=ext4 / "store")
    project = there.project("main", FILES)
    there.build(project, CARGO_COW_WAREHOUSE="on")
    assert (project / "target/debug/.cargo-cow/warehouse").read_text() == "-"
    shutil.rmtree(project / "target")
    there.build(project)
    shutil.rmtree(project / "target")
    assert there.build(project).rustc == []
    (reason,) = {event["copied_reason"] for event in there.events() if event["what"] == "hit"}
    assert reason == "EOPNOTSUPP"


def test_a_compiler_that_was_replaced_in_place(place: Place) -> None:
    """The same path and the same words, and other code."""
    project = place.project("main", FILES)
    place.build(project)
    shutil.rmtree(project / "target")
    counter = place.scratch / "counting" / "rustc"
    counter.write_text(counter.read_text().replace("exec rustc", "exec rustc "))
    assert len(place.build(project).rustc) == 3


def test_events_are_lines_of_json(place: Place) -> None:
    project = place.project("main", FILES)
    place.build(project)
    assert len(place.events()) == 6


def test_a_worktree_whose_compiler_sees_it_elsewhere(place: Place, tmp_path: Path) -> None:
    """A worktree's incremental compiles run at its identity, and are kept for it alone."""
    project = place.project("main", FILES)
    place.build(project)
    there = place.root / "there"
    log = tmp_path / "log"
    environment = place.environment(CARGO_COW_LOG=str(log))
    assert cow(project, place.scratch, "worktree", "add", str(there), **environment).status == 0
    write(there, {"app/src/main.rs": FILES["app/src/main.rs"].replace("{} {}", "{}-{}")})
    settle()
    built = cow(there, place.scratch, "build", "-v", **environment)
    place.wait()
    assert built.rustc == ["app"], built.output
    assert "identity: ran in" in log.read_text()
    assert told(there) == "u1-none"
    # The script runs again.
    settle()
    again = cow(there, place.scratch, "build", "-v", **environment)
    assert (again.rustc, again.scripts) == ([], 1), again.output
    # What is made at the real path is something else.
    settle()
    os.utime(there / "app/src/main.rs")
    real = place.build(there, CARGO_COW_IDENTITY="off")
    assert real.rustc == ["app"]
    assert told(there) == "u1-none"
