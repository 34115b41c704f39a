"""Grafting before Cargo: what comes back is what a build would give, and Cargo calls it fresh."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from cargo_cow import native
from cargo_cow.cargo.workspace import load
from cargo_cow.cli import passthrough
from cargo_cow.errors import CowError
from cargo_cow.prepare.place import place_of
from cargo_cow.warehouse import building, store
from tests.support.projects import Build, _environment, cargo, cow, git, settle, write

from .conftest import DEPENDENCIES, FILES, PACKAGE, Place, told, user

# As FILES, with a script that has something to say and runs only when it changed.
QUIET = FILES | {
    "app/build.rs": """
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=MARKED");
    println!("cargo:rustc-env=MARK={}", std::env::var("MARKED").unwrap_or("m".into()));
}
""",
}


def build(place: Place, project: Path, *words: str, **extra: str) -> Build:
    """``cargo cow WORDS -v`` (``build``) without the shim, all of it kept when it ends."""
    settle()
    verb, *rest = words or ("build",)
    environment = {"CARGO_COW_WAREHOUSE": str(place.store), "CARGO_COW_KEEP": "wait", **extra}
    built = cow(project, place.scratch, verb, "-v", *rest, **environment)
    assert built.status == 0, built.output
    return built


def graft(place: Place, project: Path, *words: str, **extra: str) -> Any:
    """``cargo cow graft --format json``."""
    settle()
    done = subprocess.run(
        [sys.executable, "-m", "cargo_cow", "graft", "--format", "json", *words],
        cwd=project,
        env={**_environment(place.scratch), "CARGO_COW_WAREHOUSE": str(place.store), **extra},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def locked(project: Path) -> Path:
    """The project with its lock file, as published programs have it."""
    subprocess.run(["cargo", "generate-lockfile", "-q"], cwd=project, check=True)
    git(project, "add", "Cargo.lock")
    git(project, "commit", "-q", "-m", "lock")
    return project


def clean(project: Path) -> None:
    shutil.rmtree(project / "target")


def names(keys: list[str]) -> list[str]:
    """Packages of unit keys, each once for every unit."""
    return sorted(key.rpartition("/")[2].rpartition("-")[0] for key in keys)


def _of_another_version(place: Place, number: int) -> list[Path]:
    """Says of every entry that it is of another format, and so of another name; nothing else."""
    for count, entry in enumerate(place.entries()):
        line = json.loads((entry / "entry.json").read_text().split("\n")[0])
        value = json.dumps(line | {"format": number}).encode()
        (entry / "entry.json").write_bytes(value + b"\n" + blake3(value).hexdigest().encode())
        entry.rename(entry.with_name(f"{count:032x}"))
    return place.entries()


@pytest.mark.parametrize("number", [1, 99])
def test_entries_of_another_version(place: Place, number: int) -> None:
    """They may mean something else by the same words: a miss, and they stay."""
    project = place.project("main", QUIET)
    first = build(place, project)
    foreign = _of_another_version(place, number)
    clean(project)
    planned = graft(place, project, "--dry-run")
    assert planned["chosen"] == []
    assert set(planned["missing"].values()) == {"it was never kept"}
    # By whatever plan it is asked for.
    (unit, *_) = (one for one in foreign if store.read(one).get("kind") == "unit")
    to = place.root / "to"
    to.mkdir()
    request = {"root": str(place.store), "copies": False, "to": str(to), "time": 0}
    asked = {"directory": str(unit), "invoked": ["", 0]}
    answer = native.give_units(request | {"units": [asked]})
    assert answer["given"] == ["it is an entry of another version"]
    assert list(to.iterdir()) == []
    again = build(place, project)
    assert again.rustc == first.rustc
    assert "warning" not in again.output
    assert set(foreign) < set(place.entries())
    clean(project)
    assert build(place, project).rustc == []


# --- what comes back --------------------------------------------------------------------------


def test_a_removed_target_is_there_before_cargo(place: Place) -> None:
    project = place.project("main", QUIET)
    first = build(place, project)
    assert (first.rustc, first.scripts) == (["app", "build_script_build", "util"], 1)
    clean(project)
    again = build(place, project)
    assert (again.rustc, again.scripts) == ([], 0), again.output
    assert "4 units came from the warehouse" in again.output
    assert told(project) == "u1 m"
    assert {path.stat().st_mode & 0o077 for path in place.store.rglob("*")} == {0}
    # Plain Cargo agrees, and an edit is seen.
    assert cargo(project, place.scratch, "build").rustc == []
    write(project, {"util/src/inner.rs": 'pub const MARK: &str = "u2";\n'})
    assert build(place, project).rustc == ["app", "util"]
    assert told(project) == "u2 m"


def test_another_project_with_the_same_dependencies(place: Place, dependencies: Path) -> None:
    one = locked(place.project("one", user("one", dependencies)))
    two = locked(place.project("two", user("two", dependencies)))
    build(place, one)
    asked = graft(place, two, "--dry-run")
    assert not (two / "target").exists()
    assert "gen" in names(asked["chosen"]), asked["missing"]
    built = build(place, two)
    # What bakes where it was made is made anew, and what is above it; no script runs for the rest.
    assert built.rustc == ["baked", "two"], built.output
    assert built.scripts == 0
    for project in (one, two):
        shown, where = told(project, project.name).split()
        assert shown == "<7>"
        assert where.startswith(f"{project}/target/debug/build/baked-")
        assert Path(where).is_dir()
    assert build(place, two).rustc == []
    assert cargo(two, place.scratch, "build").rustc == []


def test_a_declared_variable_that_cargos_configuration_sets(place: Place) -> None:
    config = {".cargo/config.toml": '[env]\nMARKED = "one"\n'}
    project = place.project("main", QUIET | config)
    build(place, project)
    assert told(project) == "u1 one"
    clean(project)
    assert build(place, project).rustc == []
    clean(project)
    write(project, {".cargo/config.toml": '[env]\nMARKED = "two"\n'})
    assert build(place, project).rustc == ["app"]
    assert told(project) == "u1 two"


def test_what_is_built_is_kept_after_the_command(place: Place) -> None:
    project = place.project("main", QUIET)
    build(place, project, CARGO_COW_KEEP="")  # nobody waits
    memo = project / "target/.cargo-cow/kept-units.json"
    until = time.monotonic() + 20
    while not memo.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert len(json.loads(memo.read_text())["units"]) == 4
    clean(project)
    assert build(place, project).rustc == []


def test_what_the_compiler_says_of_itself_is_what_it_says_now(place: Place) -> None:
    """A script whose compiler was exchanged: Cargo asks it where nothing was built."""
    project = locked(place.project("main", QUIET))
    said, compiler = place.scratch / "said", place.scratch / "rustc"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = -vV ] && rustc -vV && exec cat {said}\nexec rustc "$@"\n'
    )
    compiler.chmod(0o755)
    info = project / "target/.rustc_info.json"
    for word, words in (("one", ()), ("two", ("--lib",))):
        said.write_text(f"built: {word}\n")
        build(place, project, "build", *words, RUSTC=str(compiler))
        answers = info.read_text()
        assert [it for it in ("one", "two") if f"built: {it}" in answers] == [word]
        clean(project)


def test_what_an_output_is_counts_and_not_what_its_compile_noted(place: Place) -> None:
    """The shim notes the digest of each output by its stat; one that was written to has another."""
    project = locked(place.project("main", QUIET))
    memory = project / "target/debug/.cargo-cow/units"

    def kept() -> tuple[Path, str, str]:
        """libutil's rlib, the digest that its unit has in the store, and its own."""
        place.wait()
        graft(place, project, "--keep")
        (rlib,) = project.glob("target/debug/deps/libutil-*.rlib")
        for entry in place.entries():
            value = json.loads((entry / "entry.json").read_text().split("\n")[0])
            for index, (name, _, digest, _) in enumerate(value["outputs"]):
                if value.get("kind") == "unit" and name.endswith(f"/{rlib.name}"):
                    return rlib, digest, blake3((entry / str(index)).read_bytes()).hexdigest()
        raise AssertionError("it is not kept")

    def again() -> Path:
        shutil.rmtree(project / "target", ignore_errors=True)
        shutil.rmtree(place.store, ignore_errors=True)
        place.build(project)
        return next(project.glob("target/debug/deps/libutil-*.rlib"))

    again()
    rlib, noted, found = kept()
    assert noted == found == blake3(rlib.read_bytes()).hexdigest()
    rlib = again()
    before, data = rlib.stat(), bytearray(rlib.read_bytes())
    data[-1] ^= 1
    with rlib.open("r+b") as file:
        file.write(data)
    os.utime(rlib, ns=(before.st_atime_ns, before.st_mtime_ns))
    _, noted, found = kept()
    assert noted == found == blake3(data).hexdigest()
    # It is the memory that is asked: one that lies is believed.
    rlib = again()
    true, false = blake3(rlib.read_bytes()).hexdigest(), "0" * 64
    lines = []
    for line in memory.read_text().splitlines():
        body, _, check = line.rpartition("\t")
        body = body.replace(true, false)
        lines.append(f"{body}\t{blake3(body.encode()).hexdigest()[:12]}")
        assert false in body or lines[-1] == f"{body}\t{check}"
    memory.write_text("\n".join(lines) + "\n")
    assert kept()[1:] == (false, true)


def test_only_what_is_asked_for(place: Place) -> None:
    project = place.project("main", QUIET)
    build(place, project)
    build(place, project, "test", "--no-run")
    clean(project)
    asked = graft(place, project, "build", "-p", "util")
    assert names(asked["chosen"]) == ["util"]
    assert asked["missing"] == {}
    built = build(place, project, "test", "--no-run")
    assert (built.rustc, built.scripts) == ([], 0), built.output


def _tells_git(*words: str) -> dict[str, str]:
    """A script that tells what git tells, and declares only itself: Cargo never asks it again."""
    asked = ", ".join(f'"{word}"' for word in words)
    script = f"""
fn main() {{
    println!("cargo:rerun-if-changed=build.rs");
    let told = std::process::Command::new("git").args([{asked}]).output().unwrap();
    println!("cargo:rustc-env=TOLD={{}}", String::from_utf8(told.stdout).unwrap().trim());
}}
"""
    return {
        ".gitignore": "/target\n",
        "Cargo.toml": '[workspace]\nmembers = ["app"]\nresolver = "2"\n',
        "app/Cargo.toml": PACKAGE.format("app", ""),
        "app/build.rs": script,
        "app/src/main.rs": 'fn main() { println!("{}", env!("TOLD")); }\n',
        "notes": "1",
    }


@pytest.mark.parametrize("then", ["reverted", "committed"])
def test_what_git_said_of_the_working_tree(place: Place, then: str) -> None:
    """In the same checkout, too, that is another answer by now."""
    project = locked(place.project("main", _tells_git("status", "--porcelain")))
    write(project, {"notes": "2"})
    build(place, project)
    assert told(project) == "M notes"
    clean(project)
    if then == "reverted":
        write(project, {"notes": "1"})
    else:
        git(project, "commit", "-qam", "noted")
    built = build(place, project)
    assert (built.scripts, told(project)) == (1, ""), built.output


def test_what_git_said_of_the_commit_before(place: Place) -> None:
    """What came from the warehouse is no better known for having come to where it was made."""
    project = locked(place.project("main", _tells_git("rev-parse", "HEAD")))
    build(place, project)
    clean(project)
    assert build(place, project).scripts == 0
    assert told(project) == git(project, "rev-parse", "HEAD")
    write(project, {"notes": "2"})
    git(project, "commit", "-qam", "noted")
    built = build(place, project)
    assert told(project) == git(project, "rev-parse", "HEAD"), built.output
    assert built.scripts == 1
    # From then on Cargo is the judge, as ever.
    git(project, "commit", "-q", "--allow-empty", "-m", "more")
    assert build(place, project).scripts == 0


def test_a_checkout_elsewhere(place: Place) -> None:
    """A fresh clone is another project to git, with the same files."""
    project = locked(place.project("main", QUIET))
    build(place, project)
    clone = place.root / "clone"
    subprocess.run(["git", "clone", "-q", project, clone], check=True)
    built = build(place, clone)
    assert (built.rustc, built.scripts) == ([], 0), built.output
    assert told(clone) == "u1 m"
    write(clone, {"app/src/main.rs": 'fn main() { println!("{}", util::util()); }\n'})
    assert build(place, clone).rustc == ["app"]
    assert told(clone) == "u1"
    assert told(project) == "u1 m"


def test_what_is_there_already_stays(place: Place) -> None:
    project = place.project("main", QUIET)
    build(place, project)
    build(place, project, "build", "--release")
    shutil.rmtree(project / "target/release")
    before = (project / "target/debug/app").stat().st_ino
    assert build(place, project, "build", "--release").rustc == []
    assert (project / "target/debug/app").stat().st_ino == before
    assert build(place, project).rustc == []


# --- what must not come back ------------------------------------------------------------------


def test_what_changed_is_built(place: Place) -> None:
    project = place.project("main", QUIET)
    build(place, project)
    clean(project)
    write(project, {"util/src/inner.rs": 'pub const MARK: &str = "u2";\n'})
    asked = graft(place, project, "--dry-run")
    assert names(asked["chosen"]) == ["app", "app"]  # the script and its run
    assert build(place, project).rustc == ["app", "util"]
    assert told(project) == "u2 m"
    # Both are kept, and each comes back to its own.
    for mark in ("u1", "u2", "u1"):
        clean(project)
        write(project, {"util/src/inner.rs": f'pub const MARK: &str = "{mark}";\n'})
        assert build(place, project).rustc == []
        assert told(project) == f"{mark} m"


def test_a_variable_that_the_script_declares(place: Place) -> None:
    project = place.project("main", QUIET)
    build(place, project)
    for value in ("x", "y"):
        clean(project)
        built = build(place, project, MARKED=value)
        assert (built.rustc, built.scripts) == (["app"], 1)
        assert told(project) == f"u1 {value}"
    clean(project)
    built = build(place, project, MARKED="x")
    assert (built.rustc, built.scripts) == ([], 0)
    assert told(project) == "u1 x"


def test_tools_and_variables_that_scripts_go_by(place: Place, dependencies: Path) -> None:
    one = place.project("one", user("one", dependencies))
    build(place, one)
    clean(one)
    asked = graft(place, one, "--dry-run", CFLAGS="-O3")
    reasons = " ".join(asked["missing"].values())
    assert "tools, headers or variables that scripts go by are others" in reasons
    assert "leaf" in names(asked["chosen"])
    tools = place.root / "tools"
    write(tools, {"cmake": "#!/bin/sh\n"})
    (tools / "cmake").chmod(0o755)
    asked = graft(place, one, "--dry-run", PATH=f"{tools}:{os.environ['PATH']}")
    assert "tools, headers" in " ".join(asked["missing"].values())


def test_another_linker(place: Place) -> None:
    project = place.project("main", QUIET)
    build(place, project)
    clean(project)
    tools = place.root / "tools"
    write(tools, {"cc": '#!/bin/sh\nexec /usr/bin/cc "$@"\n'})
    (tools / "cc").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    asked = graft(place, project, "--dry-run", PATH=path)
    assert names(asked["chosen"]) == ["util"]
    assert "the linker or a system library is another one" in asked["missing"].values()


@pytest.mark.parametrize("where", ["variable", "file"])
def test_a_linker_that_flags_name(place: Place, where: str) -> None:
    project = locked(place.project("main", QUIET))
    linker = place.root / "x/cc"
    write(place.root, {"x/cc": '#!/bin/sh\nexec cc -Wl,-z,now "$@"\n'})
    linker.chmod(0o755)
    flags = ["-C", f"linker={linker}", "-Clink-arg=-Wl,--as-needed", "-C", "link-args=-lm -lc"]
    extra = {}
    if where == "file":
        text = f"[build]\nrustflags = {json.dumps(flags)}\n"
        write(place.root, {".cargo/config.toml": text})
    else:
        extra = {"CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags)}
    build(place, project, **extra)
    clean(project)
    again = build(place, project, **extra)
    assert (again.rustc, again.scripts) == ([], 0), again.output
    # The same name, and something else.
    settle()
    linker.write_text('#!/bin/sh\nexec cc -Wl,-z,lazy "$@"\n')
    clean(project)
    asked = graft(place, project, "--dry-run", **extra)
    assert names(asked["chosen"]) == ["util"]


@pytest.mark.parametrize(
    "flags", ["-C linker=x/cc", "-C link-arg=-L{x}", "-L native={x}", "-L{x} -lstatic=given"]
)
def test_flags_that_name_files(place: Place, flags: str) -> None:
    """Cargo compares the flags, and nobody what they name."""
    x = place.root / "x"
    project = locked(place.project("main", QUIET))
    write(x, {"cc": '#!/bin/sh\nexec cc "$@"\n', "given.c": "int given(void) { return 1; }\n"})
    (x / "cc").chmod(0o755)
    shutil.copytree(x, project / "x")
    subprocess.run(["cc", "-c", x / "given.c", "-o", x / "given.o"], check=True)
    subprocess.run(["ar", "cr", x / "libgiven.a", x / "given.o"], check=True)
    extra = {"RUSTFLAGS": flags.format(x=x)}
    build(place, project, **extra)
    clean(project)
    asked = graft(place, project, "--dry-run", **extra)
    programs = [key for key in asked["missing"] if asked["missing"][key] == "it was never kept"]
    # The script's program, and ours; what does not link goes by directories alone.
    assert {"app"} <= set(names(programs)), asked
    assert "app" not in names(asked["chosen"])


def test_a_compiler_that_says_the_same(place: Place, tmp_path: Path) -> None:
    """In place of rustc something else that prints the same version: nothing is given."""
    project = place.project("main", QUIET)
    build(place, project)
    clean(project)
    other = tmp_path / "other" / "rustc"
    write(other.parent, {"rustc": '#!/bin/sh\n# another one\nexec rustc "$@"\n'})
    other.chmod(0o755)
    asked = graft(place, project, "--dry-run", RUSTC=str(other))
    assert asked["chosen"] == []
    assert set(asked["missing"].values()) == {"the compiler is another one, whatever it says"}


def test_what_was_built_before_with_variables_that_nobody_noted(place: Place) -> None:
    project = place.project("main", QUIET)
    assert cargo(project, place.scratch, "build").status == 0
    graft(place, project, "--keep")
    clean(project)
    asked = graft(place, project, "--dry-run")
    # Its script, compiled, and what does not depend on the run of it.
    assert names(asked["chosen"]) == ["app", "util"]


def test_a_macro_that_reads_a_variable(place: Place, dependencies: Path) -> None:
    """Of a package from elsewhere: nobody observes what its macros read."""
    files = DEPENDENCIES | {
        "Cargo.toml": '[workspace]\nmembers = ["*"]\nexclude = ["target"]\nresolver = "2"\n',
        "mac/Cargo.toml": PACKAGE.format("mac", "[lib]\nproc-macro = true\n"),
        "mac/src/lib.rs": """
#[proc_macro]
pub fn word(_: proc_macro::TokenStream) -> proc_macro::TokenStream {
    format!("{:?}", std::env::var("WORD").unwrap_or_default()).parse().unwrap()
}
""",
        "uses/Cargo.toml": PACKAGE.format("uses", '[dependencies]\nmac = { path = "../mac" }\n'),
        "uses/src/lib.rs": "pub const WORD: &str = mac::word!();\n",
    }
    source = place.project("more", files)
    wanted = f'[dependencies]\nuses = {{ git = "file://{source}" }}\n'
    one = place.project(
        "one",
        {
            "Cargo.toml": PACKAGE.format("one", wanted),
            "src/main.rs": 'fn main() { println!("{}", uses::WORD); }\n',
        },
    )
    for word in ("a", "b"):
        shutil.rmtree(one / "target", ignore_errors=True)
        assert "uses" in build(place, one, WORD=word).rustc
        assert told(one, "one") == word
    clean(one)
    assert "uses" not in build(place, one, WORD="a").rustc
    assert told(one, "one") == "a"


def test_a_script_that_is_there_for_what_a_macro_reads(place: Place) -> None:
    """It prints the same whatever it declares: still no unit of the package is the same."""
    files = {
        "Cargo.toml": '[workspace]\nmembers = ["app", "mac"]\nresolver = "2"\n',
        "notes/note.txt": "n1",
        "mac/Cargo.toml": PACKAGE.format("mac", "[lib]\nproc-macro = true\n"),
        "mac/src/lib.rs": """
#[proc_macro]
pub fn note(_: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    format!("{:?}", std::fs::read_to_string(root + "/../notes/note.txt").unwrap()).parse().unwrap()
}
""",
        "app/Cargo.toml": PACKAGE.format("app", '[dependencies]\nmac = { path = "../mac" }\n'),
        "app/build.rs": 'fn main() { println!("cargo:rerun-if-changed=../notes"); }\n',
        "app/src/main.rs": 'fn main() { println!("{}", mac::note!()); }\n',
    }
    project = place.project("main", files)
    for note in ("n1", "n2", "n1", "n2"):
        write(project, {"notes/note.txt": note})
        build(place, project, CARGO_COW_OBSERVE="off")
        assert told(project) == note
        clean(project)


def test_a_script_that_writes_into_its_package(place: Place) -> None:
    """What it wrote is not there, git ignores it: its run alone can make it."""
    files = QUIET | {
        ".gitignore": "/target\nwritten.rs\n",
        "app/word.txt": "one",
        "app/build.rs": """
fn main() {
    println!("cargo:rerun-if-changed=word.txt");
    let word = std::fs::read_to_string("word.txt").unwrap();
    std::fs::write("src/written.rs", format!("pub const WORD: &str = {word:?};")).unwrap();
}
""",
        "app/src/main.rs": 'mod written;\nfn main() { println!("{}", written::WORD); }\n',
    }
    project = locked(place.project("main", files))
    build(place, project)
    clone = place.root / "clone"
    subprocess.run(["git", "clone", "-q", project, clone], check=True)
    built = build(place, clone)
    assert built.scripts == 1, built.output
    assert told(clone) == "one"
    # Where it is there, and right, nothing has to run.
    clean(clone)
    built = build(place, clone)
    assert (built.rustc, built.scripts) == ([], 0), built.output
    write(clone, {"app/src/written.rs": 'pub const WORD: &str = "forged";'})
    clean(clone)
    build(place, clone)
    assert told(clone) == "one"
    # A clone of the target knows the package's units, which are dropped.
    tree = place.root / "tree"
    added = cow(project, place.scratch, "worktree", "add", "--detach", str(tree))
    assert added.status == 0, added.output
    assert build(place, tree).scripts == 1
    assert told(tree) == "one"


def test_damaged_entries_heal(place: Place) -> None:
    project = place.project("main", QUIET)
    build(place, project)
    for harm in (_flip, _truncate, _forget, _scribble):
        for entry in place.entries():
            harm(entry)
        clean(project)
        built = build(place, project)
        assert (built.rustc, built.scripts) == (["app", "build_script_build", "util"], 1), harm
        assert told(project) == "u1 m"
        clean(project)
        assert build(place, project).rustc == [], harm


def _flip(entry: Path) -> None:
    for file in entry.glob("[0-9]*"):
        data = bytearray(file.read_bytes())
        if data:
            data[len(data) // 2] ^= 1
            file.chmod(0o600)
            file.write_bytes(data)


def _truncate(entry: Path) -> None:
    for file in entry.glob("[0-9]*"):
        file.chmod(0o600)
        os.truncate(file, file.stat().st_size // 2)


def _forget(entry: Path) -> None:
    for file in entry.glob("[0-9]*"):
        file.unlink()


def _scribble(entry: Path) -> None:
    with (entry / "entry.json").open("r+b") as file:
        file.seek(20)
        file.write(b"#")


def test_killed_at_any_moment(place: Place) -> None:
    project = place.project("main", QUIET)
    build(place, project)
    clean(project)
    environment = {
        **_environment(place.scratch),
        "CARGO_COW_WAREHOUSE": str(place.store),
        "CARGO_COW_KEEP": "wait",
    }
    words = [sys.executable, "-m", "cargo_cow", "build"]
    for wait in (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
        shutil.rmtree(project / "target", ignore_errors=True)
        settle()
        process = subprocess.Popen(
            words,
            cwd=project,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        write(project, {"util/src/inner.rs": f'pub const MARK: &str = "{wait}";\n'})
        build(place, project)
        assert told(project) == f"{wait} m"
        write(project, {"util/src/inner.rs": QUIET["util/src/inner.rs"]})
        build(place, project)
        assert told(project) == "u1 m"
        assert not list((project / "target/.cargo-cow").glob(".graft*"))


def test_a_target_that_goes_while_it_is_kept_stays_gone(place: Place) -> None:
    project = place.project("main", QUIET)
    build(place, project)
    clean(project)
    assert graft(place, project, "--keep") is None
    assert not (project / "target").exists()


# --- bad input --------------------------------------------------------------------------------


def test_switched_off_it_says_so(place: Place) -> None:
    project = place.project("main", QUIET)
    done = cow(project, place.scratch, "graft", CARGO_COW_WAREHOUSE="off")
    assert done.status == 2
    assert "cargo cow init --warehouse" in done.output


def test_a_command_that_builds_nothing(place: Place) -> None:
    project = place.project("main", QUIET)
    done = cow(project, place.scratch, "graft", "tree", CARGO_COW_WAREHOUSE=str(place.store))
    assert done.status == 2
    assert "name a command that builds" in done.output


@pytest.mark.parametrize("words", [("build", "--features", "none-such"), ("build", "-p", "no")])
def test_a_command_that_fails_fails_as_ever(place: Place, words: tuple[str, ...]) -> None:
    project = place.project("main", QUIET)
    build(place, project)
    clean(project)
    plain = cargo(project, place.scratch, *words)
    ours = cow(project, place.scratch, *words, CARGO_COW_WAREHOUSE=str(place.store))
    assert plain.status == ours.status == 101
    assert ours.output.splitlines()[-1] == plain.output.splitlines()[-1]


def test_a_setting_that_cannot_be_read_does_not_stop_a_build(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    project = place.project("main", QUIET)

    def unreadable(_: Path) -> None:
        raise CowError("not to be read", hint="look into it")

    monkeypatch.setattr(passthrough, "warehouse_is_on", unreadable)
    monkeypatch.chdir(project)
    assert passthrough.run(["build"]) == 0
    assert "not to be read" in capfd.readouterr().err
    assert told(project) == "u1 m"


def test_no_keeper_for_what_cannot_be_planned(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fail where nobody sees it."""
    project = place.project("main", QUIET)
    started: list[int] = []
    workspace = load(project, [])
    ready = building.Ready(None, None, None, 0, {})
    with monkeypatch.context() as patch:

        def fork() -> int:
            started.append(1)
            return 1

        patch.setattr(os, "fork", fork)
        for words, kept in ((["doc"], 0), (["nextest", "run"], 0), (["+stable", "build"], 1)):
            building.after(ready, workspace, place_of(workspace), words)
            assert len(started) == kept


def test_what_links_is_known_after_a_graft(place: Place) -> None:
    """The script declares a file that is not there, so Cargo builds the program every time: what
    came by a graft below it is known, so that the shim can tell that nothing changed."""
    project = place.project("main", FILES)
    build(place, project)
    assert build(place, project).rustc == []
    clean(project)
    again = build(place, project)
    assert "units came from the warehouse" in again.output
    assert again.rustc == []
    assert build(place, project).rustc == []
    write(project, {"util/src/inner.rs": 'pub const MARK: &str = "u2";\n'})
    assert build(place, project).rustc == ["app", "util"]
    assert told(project) == "u2 none"


def test_a_checkout_without_a_target_is_left_as_it_is(place: Place) -> None:
    """The store is looked for before the target is there, and what was found is noted in targets
    alone."""
    project = locked(place.project("main", QUIET))
    on = {"CARGO_COW_WAREHOUSE": "on", "XDG_CACHE_HOME": str(place.scratch / "elsewhere")}
    for words in (("graft", "--dry-run"), ("graft",), ("build",)):
        before = set(project.iterdir())
        assert cow(project, place.scratch, *words, **on).status == 0
        assert set(project.iterdir()) - before <= {project / "target"}


# --- files without a hash ------------------------------------------------------------------------


def _library(name: str, more: str = "") -> str:
    return PACKAGE.format(name, f'[lib]\nname = "both"\ncrate-type = ["cdylib", "rlib"]\n{more}')


# A library that is a shared object as well, and what is above and below it.
SHARED = {
    "Cargo.toml": '[workspace]\nmembers = ["app", "both", "leaf"]\nresolver = "2"\n',
    "leaf/Cargo.toml": PACKAGE.format("leaf", ""),
    "leaf/src/lib.rs": "pub fn leaf() -> u32 { 1 }\n",
    "both/Cargo.toml": _library(
        "both", '[features]\nx = []\n[dependencies]\nleaf = { path = "../leaf" }\n'
    ),
    "both/src/lib.rs": 'const X: u32 = if cfg!(feature = "x") { 10 } else { 0 };\n'
    "pub fn both() -> u32 { leaf::leaf() + X }\n"
    '#[unsafe(no_mangle)] pub extern "C" fn answer() -> u32 { both() }\n',
    "app/Cargo.toml": PACKAGE.format(
        "app", '[features]\nx = ["both/x"]\n[dependencies]\nboth = { path = "../both" }\n'
    ),
    "app/src/main.rs": 'fn main() { println!("{}", both::both()); }\n',
}


def test_a_library_whose_files_carry_no_hash(place: Place) -> None:
    project = place.project("main", SHARED)
    assert build(place, project).rustc == ["app", "both", "leaf"]
    clean(project)
    again = build(place, project)
    assert (again.rustc, told(project)) == ([], "1"), again.output
    assert (project / "target/debug/libboth.so").stat().st_mode & 0o111
    assert cargo(project, place.scratch, "build").rustc == []
    # What is below it has changed: it, and what is above it.
    clean(project)
    write(project, {"leaf/src/lib.rs": "pub fn leaf() -> u32 { 2 }\n"})
    assert build(place, project).rustc == ["app", "both", "leaf"]
    assert told(project) == "2"
    write(project, {"leaf/src/lib.rs": SHARED["leaf/src/lib.rs"]})
    clean(project)
    assert build(place, project).rustc == []
    assert told(project) == "1"


def test_features_in_turn_under_one_name(place: Place) -> None:
    """Cargo gives such a unit one directory for all its features."""
    project = place.project("main", SHARED)
    words = {"1": ("build",), "11": ("build", "--features", "x")}
    for _ in range(2):
        for said, command in words.items():
            build(place, project, *command)
            assert told(project) == said
            clean(project)
            # What was kept last may be the other one: then Cargo builds it.
            build(place, project, *command)
            assert told(project) == said
    # Nor by a graft for the other: Cargo compares.
    for said, command in reversed(words.items()):
        clean(project)
        graft(place, project, *command)
        assert cargo(project, place.scratch, *command).status == 0
        assert told(project) == said


def test_two_packages_whose_files_have_one_name(place: Place) -> None:
    """Who is built last has the files; of none of them anything is kept or given then."""
    files = SHARED | {
        "Cargo.toml": SHARED["Cargo.toml"].replace('"app", ', '"app", "other", '),
        "other/Cargo.toml": _library("other"),
        "other/src/lib.rs": '#[unsafe(no_mangle)] pub extern "C" fn answer() -> u32 { 99 }\n',
    }
    project = place.project("main", files)
    shared = project / "target/debug/deps/libboth.so"

    def alone(package: str) -> bytes:
        assert build(place, project, "build", "-p", package).status == 0
        made = shared.read_bytes()
        clean(project)
        return made

    both, other = alone("both"), alone("other")
    assert both != other
    # Each was kept by itself, and asked for together they are given by nobody.
    planned = graft(place, project, "--dry-run", "build", "-p", "both", "-p", "other")
    assert set(names(planned["missing"])) == {"both", "other"}
    # One of them is there: the other is not put over it.
    assert build(place, project, "build", "-p", "other").rustc == []
    assert shared.read_bytes() == other
    planned = graft(place, project, "--dry-run", "build", "-p", "both")
    assert "both" in names(planned["missing"])
    # Built over it by Cargo, neither is kept: whose the files are, their names do not tell.
    assert cargo(project, place.scratch, "build", "-p", "both").status == 0
    kept = subprocess.run(
        [sys.executable, "-m", "cargo_cow", "graft", "--keep"],
        cwd=project,
        env={**_environment(place.scratch), "CARGO_COW_WAREHOUSE": str(place.store)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "names that other units have" in kept.stdout
    clean(project)
    assert build(place, project, "build", "-p", "other").rustc == []
    assert shared.read_bytes() == other
