"""What macros read behind rustc's back is observed, and counts from then on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support.projects import Build, cow, git, repository, settle, write

from cargo_cow import native

_MACRO = """
use proc_macro::TokenStream;
#[proc_macro]
pub fn look(_: TokenStream) -> TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let mut names: Vec<_> = std::fs::read_dir(format!("{root}/data")).unwrap()
        .map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let mut told = String::new();
    for name in names {
        told += &std::fs::read_to_string(name).unwrap();
    }
    told += &std::fs::read_to_string(format!("{root}/extra")).unwrap_or("none".into());
    told += &std::env::var("LOOKED_AT").unwrap_or("unset".into());
    told += if std::path::Path::new(&format!("{root}/mark")).exists() { "marked" } else { "" };
    format!("{told:?}").parse().unwrap()
}
#[proc_macro]
pub fn start(_: TokenStream) -> TokenStream {
    let output = std::process::Command::new("env").output().unwrap().stdout;
    let ours = |line: &&str| line.contains("OBSERVER") || line.contains("PRELOAD");
    let lines: Vec<String> = String::from_utf8(output).unwrap()
        .lines().filter(ours).map(str::to_owned).collect();
    format!("{:?}", lines.join(" ")).parse().unwrap()
}
"""
# Whoever takes all variables may ask unseen.
_PARTLY = """#[proc_macro]
pub fn partly(_: TokenStream) -> TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let _ = std::env::vars().count();
    if std::path::Path::new(&format!("{root}/starts")).exists() {
        std::process::Command::new("true").status().unwrap();
    }
    let text = |name: &str| std::fs::read_to_string(format!("{root}/{name}")).unwrap();
    let set = std::env::var("LOOKED_AT").unwrap_or("unset".into());
    format!("{:?}", format!("{} {} {set}", text("data/a"), text("../outside"))).parse().unwrap()
}
"""


def _package(name: str, more: str = "") -> str:
    return f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n{more}'


def _project(root: Path, main: str, more: str = "") -> Path:
    made = repository(
        root,
        {
            "Cargo.toml": '[workspace]\nmembers = ["app", "looking"]\nresolver = "2"\n',
            "app/Cargo.toml": _package("app", '[dependencies]\nlooking.path = "../looking"\n'),
            "app/src/main.rs": main,
            "app/data/a": "a",
            "app/notes.md": "nobody reads this",
            "looking/Cargo.toml": _package("looking", "[lib]\nproc-macro = true\n"),
            "looking/src/lib.rs": _MACRO + more,
        },
    )
    subprocess.run(["cargo", "generate-lockfile", "--offline", "-q"], cwd=made, check=True)
    git(made, "add", "-A")
    git(made, "commit", "-qm", "lock")
    settle()
    return made


def _build(root: Path, scratch: Path, **extra: str) -> Build:
    shim = {"RUSTC_WRAPPER": str(native.program()), "CARGO_COW_SEEDING": "1"}
    built = cow(root, scratch, "build", "-v", **shim, **extra)
    assert built.status == 0, built.output
    return built


def _told(root: Path) -> str:
    program = root / "target/debug/app"
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.strip()


def _hidden(root: Path) -> dict[str, Any]:
    (observed,) = (root / "target/debug/.fingerprint").glob("app-*/cow-observed.json")
    value: dict[str, Any] = json.loads(observed.read_bytes())["hidden"]
    return value


_LOOKS = 'fn main() { println!("{}", looking::look!()); }\n'


@pytest.fixture
def looks(btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("LOOKED_AT", raising=False)
    root = _project(btrfs / "main", _LOOKS)
    _build(root, tmp_path)
    assert _told(root) == "anoneunset"
    return root


def test_what_was_read_is_named(looks: Path) -> None:
    value = _hidden(looks)
    app = looks / "app"
    assert value["complete"] is True
    assert [path for path, _, _ in value["files"]] == [str(app / "data/a")]
    assert [path for path, _ in value["directories"]] == [str(app / "data")]
    assert value["missing"] == [str(app / "extra"), str(app / "mark")]
    assert ["LOOKED_AT", None] in value["env"]


@pytest.mark.parametrize("where", ["in place", "worktree"])
@pytest.mark.parametrize(
    ("files", "variable", "expected"),
    [
        ({"app/data/a": "b"}, None, "bnoneunset"),
        ({"app/data/b": "b"}, None, "abnoneunset"),
        ({"app/extra": "more"}, None, "amoreunset"),
        ({"app/mark": ""}, None, "anoneunsetmarked"),
        ({}, "set", "anoneset"),
    ],
)
def test_what_was_read_differs(
    looks: Path,
    tmp_path: Path,
    where: str,
    files: dict[str, str],
    variable: str | None,
    expected: str,
) -> None:
    """Plain Cargo sees none of this in place; a clean build here does."""
    root = looks
    if where == "worktree":
        root = looks.parent / "there"
        git(looks, "worktree", "add", "-q", str(root))
    else:
        assert _build(root, tmp_path).rustc == []  # leaves the note of an unchanged checkout
    settle()
    write(root, files)
    extra = {} if variable is None else {"LOOKED_AT": variable}
    assert _build(root, tmp_path, **extra).rustc == ["app"]
    assert _told(root) == expected


@pytest.mark.parametrize("when", ["at once", "before", "after"])
@pytest.mark.parametrize("changed", ["content", "time"])
def test_what_was_read_is_edited_while_cargo_runs(
    looks: Path, tmp_path: Path, changed: str, when: str
) -> None:
    """Cargo would never see it, so that nothing we leave for the next build may hide it.

    ``time``: a file that is as it was, under a newer time; Cargo finds nothing to build, and what
    there is to remember is found out while it runs.  Cargo is started before the target is
    prepared: ``at once`` is while we do that, ``before`` when we have let go of the lock.
    """
    assert _build(looks, tmp_path).rustc == []
    settle()
    source = looks / "app/src/main.rs"
    text = source.read_text()
    source.write_text(text if changed == "time" else text + "// edited\n")
    data = looks / "app/data/a"
    cargo = tmp_path / "cargo"
    edit = f"printf b > {data}; sleep 0.1;"
    if when == "before":
        edit = f"(: >> {looks}/target/debug/.cargo-lock); {edit}"
    edit = f'[ "$1" = build ] && {{ {edit} }}'
    before, after = (":", edit) if when == "after" else (edit, ":")
    cargo.write_text(f'#!/bin/sh\n{before}\ncargo "$@"\nstatus=$?\n{after}\nexit $status\n')
    cargo.chmod(0o755)
    # Edited before, the macro reads the new content, if it runs.
    compiled = _build(looks, tmp_path, CARGO=str(cargo)).rustc == ["app"]
    # At once, our proof may come first or last.
    assert compiled == (changed == "content") or when == "at once"
    assert data.read_text() == "b"
    settle()
    again = _build(looks, tmp_path).rustc
    assert again == ([] if compiled and when != "after" else ["app"])
    assert _told(looks) == "bnoneunset"
    assert _build(looks, tmp_path).rustc == []


def test_a_variable_that_cargos_configuration_sets(looks: Path, tmp_path: Path) -> None:
    """What counts is what Cargo gives to compilers, not what is set where we run."""
    for text in ("one", "two"):
        settle()
        write(looks, {".cargo/config.toml": f'[env]\nLOOKED_AT = "{text}"\n'})
        assert _build(looks, tmp_path).rustc == ["app"]
        assert _told(looks) == f"anone{text}"
        assert _build(looks, tmp_path).rustc == []


def test_what_was_not_read_may_differ(looks: Path, tmp_path: Path) -> None:
    there = looks.parent / "there"
    git(looks, "worktree", "add", "-q", str(there))
    write(there, {"app/notes.md": "nor this"})
    built = _build(there, tmp_path)
    assert built.rustc == [], built.output
    # The same by the rule for what was not observed: any file of the package may have been read.
    write(looks, {"app/src/main.rs": _LOOKS + "// again\n"})
    settle()
    _build(looks, tmp_path, CARGO_COW_OBSERVE="off")
    elsewhere = looks.parent / "elsewhere"
    git(looks, "commit", "-qam", "again")
    git(looks, "worktree", "add", "-q", str(elsewhere))
    write(elsewhere, {"app/notes.md": "nor this"})
    assert _build(elsewhere, tmp_path).rustc == ["app"]


# As dotenv and its like look for a file: here, and in each directory above.
_CLIMBS = """#[proc_macro]
pub fn climb(_: TokenStream) -> TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let mut above = std::path::Path::new(&root).ancestors();
    let told = above.find_map(|at| std::fs::read_to_string(at.join(".cow-note")).ok());
    format!("{:?}", told.unwrap_or("none".into())).parse().unwrap()
}
"""


@pytest.mark.parametrize(
    ("notes", "worktree", "first", "then"),
    [
        ([], "there/w", "none", "none"),
        (["there"], "there/w", "none", "there"),
        (["there"], "there/deep/w", "none", "there"),
        (["here"], "there/w", "here", "none"),
        (["here", "there"], "there/w", "here", "there"),
        (["."], "there/w", ".", "."),
        ([".", "there"], "there/w", ".", "there"),
        (["here"], "here/w", "here", "here"),
        ([], "here/main/trees/w", "none", "none"),
        (["here/main/trees"], "here/main/trees/w", "none", "here/main/trees"),
        (["here/main"], "here/main/trees/w", "here/main", "here/main"),
    ],
)
def test_what_is_looked_for_above_the_checkout(
    btrfs: Path, tmp_path: Path, notes: list[str], worktree: str, first: str, then: str
) -> None:
    """A worktree has other directories above it."""
    main = 'fn main() { println!("{}", looking::climb!()); }\n'
    root = _project(btrfs / "here/main", main, _CLIMBS)
    write(btrfs, {f"{place}/.cow-note": place for place in notes})
    _build(root, tmp_path)
    assert _told(root) == first
    assert _hidden(root)["complete"] is True
    there = btrfs / worktree
    git(root, "worktree", "add", "-q", str(there))
    built = _build(there, tmp_path)
    assert _told(there) == then, built.output
    if not notes or worktree == "here/w" or then == ".":
        assert built.rustc == [], built.output


@pytest.mark.parametrize("worktree", ["there", "main/trees/there"])
def test_where_the_compiler_ran_apart_the_paths_are_real(
    looks: Path, tmp_path: Path, worktree: str
) -> None:
    there = looks.parent / worktree
    git(looks, "worktree", "add", "-q", str(there))
    write(there, {"app/data/a": "c"})
    log = tmp_path / "log"
    assert _build(there, tmp_path, CARGO_COW_LOG=str(log)).rustc == ["app"]
    assert "identity: ran in" in log.read_text()
    assert _hidden(there)["files"][0][0] == str(there / "app/data/a")
    assert f"{looks}/app" not in json.dumps(_hidden(there))
    settle()
    write(there, {"app/data/a": "d"})
    assert _build(there, tmp_path).rustc == ["app"]
    assert _told(there) == "dnoneunset"


def test_a_program_reads_what_nobody_sees(
    btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then all files of the package stand for it; and it finds its environment as it was."""
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    root = _project(btrfs / "main", 'fn main() { println!("<{}>", looking::start!()); }\n')
    _build(root, tmp_path)
    assert _told(root) == "<>"
    value = _hidden(root)
    told = {name: value[name] for name in ("complete", "reason", "acts")}
    assert told == {"complete": False, "reason": "it starts env", "acts": True}
    there = btrfs / "there"
    git(root, "worktree", "add", "-q", str(there))
    write(there, {"app/notes.md": "read by env, for all we know"})
    assert _build(there, tmp_path).rustc == ["app"]


@pytest.mark.parametrize("where", ["in place", "worktree"])
@pytest.mark.parametrize("starts", [False, True])
def test_what_was_seen_counts_where_it_is_not_all(
    btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, starts: bool
) -> None:
    """Beside all files of the package: it may lie outside of it, or be a variable."""
    monkeypatch.delenv("LOOKED_AT", raising=False)
    main = 'fn main() { println!("{}", looking::partly!()); }\n'
    root = _project(btrfs / "main", main, _PARTLY)
    write(root, {"outside": "1"} | ({"app/starts": ""} if starts else {}))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "more")
    settle()
    _build(root, tmp_path)
    assert _told(root) == "a 1 unset"
    assert _hidden(root)["complete"] is False
    if where == "in place":
        assert _build(root, tmp_path).rustc == []
    else:
        git(root, "worktree", "add", "-q", str(btrfs / "there"))
        root = btrfs / "there"
    settle()
    write(root, {"outside": "2"})
    assert _build(root, tmp_path).rustc == ["app"]
    assert _told(root) == "a 2 unset"
    assert _build(root, tmp_path).rustc == []
    assert _build(root, tmp_path, LOOKED_AT="set").rustc == ["app"]
    assert _told(root) == "a 2 set"


def test_a_library_that_is_preloaded_already_stays(btrfs: Path, tmp_path: Path) -> None:
    """What a user preloads goes on, in what a macro starts as well."""
    libraries = Path("/proc/self/maps").read_text().split()
    theirs = next(word for word in libraries if Path(word).name.startswith("libm.so"))
    root = _project(btrfs / "main", 'fn main() { println!("<{}>", looking::start!()); }\n')
    _build(root, tmp_path, LD_PRELOAD=theirs)
    assert _told(root) == f"<LD_PRELOAD={theirs}>"


@pytest.mark.parametrize("beside", ["looking::look!()", '"no macro"'])
def test_what_the_assembler_includes(btrfs: Path, tmp_path: Path, beside: str) -> None:
    """rustc's incremental state would bring back the old object: it looks at no such file."""
    main = (
        'std::arch::global_asm!(".globl blob", "blob:", ".incbin \\"app/data/a\\"", ".byte 0");\n'
        'unsafe extern "C" { static blob: u8; }\n'
        "fn main() {\n"
        "    let byte = unsafe { std::ptr::addr_of!(blob).read() };\n"
        f'    println!("{{}} {{}}", byte as char, {beside});\n'
        "}\n"
    )
    root = _project(btrfs / "main", main)
    _build(root, tmp_path)
    assert _told(root).startswith("a ")
    there = btrfs / "there"
    git(root, "worktree", "add", "-q", str(there))
    write(there, {"app/data/a": "z"})
    _build(there, tmp_path)
    assert _told(there).startswith("z ")
    settle()
    write(there, {"app/data/a": "y"})
    _build(there, tmp_path)
    assert _told(there).startswith("y ")
