"""What macros read behind rustc's back counts as far as it was seen, and for nothing else.

An entry depends on what was seen; where not all was, on everything that may have been read;
and where more came of a macro than its outputs, or where it depends on what no file holds, nothing
is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cargo_cow import native
from tests.support.projects import git, repository, settle, write

from .conftest import PACKAGE, Place, told
from .test_grafting import build as build_with_graft

_MACROS = """
use proc_macro::TokenStream;
use std::{env, fs, path::Path};

fn root() -> String { env::var("CARGO_MANIFEST_DIR").unwrap() }
fn text(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", root())).unwrap_or("none".into()).trim().into()
}
fn shown(text: impl std::fmt::Debug) -> TokenStream { format!("{text:?}").parse().unwrap() }
fn walk(path: &Path, told: &mut Vec<String>) {
    let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|it| it.unwrap().path()).collect();
    names.sort();
    for name in names {
        told.push(name.file_name().unwrap().to_str().unwrap().into());
        if name.is_dir() { walk(&name, told); }
    }
}

#[proc_macro]
pub fn by_file(_: TokenStream) -> TokenStream { shown(text(&text("pointer"))) }
#[proc_macro]
pub fn by_variable(_: TokenStream) -> TokenStream {
    shown(text(&env::var("CHOICE").unwrap_or("one".into())))
}
#[proc_macro]
pub fn by_listing(_: TokenStream) -> TokenStream {
    let mut told = Vec::new();
    walk(Path::new(&format!("{}/data", root())), &mut told);
    shown(told.join(" "))
}
#[proc_macro]
pub fn by_head(_: TokenStream) -> TokenStream {
    let head = text(".git/HEAD");
    let named = head.strip_prefix("ref: ").map(|name| text(&format!(".git/{name}")));
    shown(named.unwrap_or(head))
}
#[proc_macro]
pub fn by_existence(_: TokenStream) -> TokenStream {
    shown(Path::new(&root()).join("mark").exists().to_string())
}
#[proc_macro]
pub fn by_link(_: TokenStream) -> TokenStream {
    let real = fs::canonicalize(format!("{}/current/text", root())).unwrap();
    shown(fs::read_to_string(real).unwrap().trim())
}
#[proc_macro]
pub fn by_link_itself(_: TokenStream) -> TokenStream {
    shown(fs::read_link(format!("{}/current", root())).unwrap().to_str().unwrap())
}
#[proc_macro]
pub fn by_the_kernel(_: TokenStream) -> TokenStream {
    let all = fs::read("/proc/self/environ").unwrap();
    let mut told: Vec<_> = all.split(|it| *it == 0).filter(|it| it.starts_with(b"MY_"))
        .map(|it| String::from_utf8_lossy(it).into_owned()).collect();
    told.sort();
    shown(told.concat())
}
#[proc_macro]
pub fn by_path(_: TokenStream) -> TokenStream { shown(env::var("PATH").unwrap().len().to_string()) }
#[proc_macro]
pub fn by_generated(_: TokenStream) -> TokenStream {
    let out = env::var("OUT_DIR").unwrap();
    shown(fs::read_to_string(format!("{out}/text")).unwrap())
}
#[proc_macro]
pub fn by_time(_: TokenStream) -> TokenStream {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    shown(now.as_nanos().to_string())
}
#[proc_macro]
pub fn by_program(_: TokenStream) -> TokenStream {
    let done = std::process::Command::new("cat").arg(format!("{}/../above", root())).output();
    shown(String::from_utf8(done.unwrap().stdout).unwrap().trim())
}
#[proc_macro]
pub fn by_connection(_: TokenStream) -> TokenStream {
    shown(std::net::TcpStream::connect("127.0.0.1:9").is_ok().to_string())
}
#[proc_macro]
pub fn by_datagram(_: TokenStream) -> TokenStream {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    shown(socket.send_to(b"x", "127.0.0.1:9").is_ok().to_string())
}
#[proc_macro]
pub fn writing(_: TokenStream) -> TokenStream {
    fs::write(format!("{}/written", root()), "x").unwrap();
    shown("wrote")
}
"""
_ALL_VARIABLES = """#[proc_macro]
pub fn by_all_variables(_: TokenStream) -> TokenStream {
    let mut told: Vec<_> = env::vars().filter(|(name, _)| name.starts_with("MY_")).collect();
    told.sort();
    shown(told.iter().map(|(name, value)| format!("{name}={value}")).collect::<String>())
}
"""
_PARTLY = """#[proc_macro]
pub fn partly(_: TokenStream) -> TokenStream {
    let _ = env::vars().count();
    shown(text("../outside"))
}
"""
_MANIFEST = PACKAGE.format("app", '[dependencies]\nlooking.path = "looking"\n')


def _files(*macros: str) -> dict[str, str]:
    bins = {
        f"src/bin/{name}.rs": f'fn main() {{ println!("{{}}", looking::{name}!()); }}\n'
        for name in macros
    }
    return {
        "Cargo.toml": _MANIFEST + "\n[workspace]\nmembers = ['looking']\n",
        "looking/Cargo.toml": PACKAGE.format("looking", "[lib]\nproc-macro = true\n"),
        "looking/src/lib.rs": _MACROS
        + _ALL_VARIABLES * ("by_all_variables" in macros)
        + _PARTLY * ("partly" in macros),
        **bins,
    }


def _hidden(place: Place, name: str) -> list[dict[str, Any]]:
    """What was seen of a crate's compiles that were kept."""
    values = [json.loads((at / "entry.json").read_text().split("\n")[0]) for at in place.entries()]
    return [value for value in values if value["crate"] == name]


def _touched(project: Path) -> None:
    settle()
    for path in project.rglob("*.rs"):
        if "target" not in path.parts:
            os.utime(path)


def test_what_was_seen_counts_and_nothing_else(place: Place) -> None:
    names = ("by_file", "by_variable", "by_listing", "by_head", "by_existence")
    files = {"pointer": "one", "one": "1", "two": "2", "data/a": "", "data/sub/b": ""}
    project = place.project("app", _files(*names) | files)
    place.build(project)
    for name in names:
        (value,) = _hidden(place, name)
        assert value["hidden"]["complete"] is True, value["hidden"]
        assert value["surroundings"] is None

    def again(**extra: str) -> list[str]:
        _touched(project)
        return place.build(project, **extra).rustc

    assert again() == []
    # Nothing of the package that nobody read, and no variable that nobody asked for.
    write(project, {"notes": "new", "Cargo.toml": (project / "Cargo.toml").read_text() + "\n"})
    assert again(UNRELATED="x") == []

    def differs(name: str, expected: str, *also: str, **extra: str) -> None:
        assert again(**extra) == sorted([name, *also])
        assert told(project, name) == expected
        assert again(**extra) == []

    write(project, {"pointer": "two"})
    differs("by_file", "2")
    write(project, {"two": "22"})
    differs("by_file", "22")
    write(project, {"data/sub/c": ""})
    differs("by_listing", "a sub b c")
    (project / "data/a").unlink()
    differs("by_listing", "sub b c")
    write(project, {"mark": ""})
    differs("by_existence", "true")
    git(project, "commit", "-q", "--allow-empty", "-m", "more")
    differs("by_head", git(project, "rev-parse", "HEAD"))
    git(project, "checkout", "-q", "-b", "other")
    assert again() == ["by_head"]
    differs("by_variable", "22", CHOICE="two")
    write(project, {"one": "11"})
    assert again(CHOICE="two") == []
    assert again() == ["by_variable"]
    assert told(project, "by_variable") == "11"


def test_what_cannot_be_seen_in_full_counts_with_all_around(place: Place) -> None:
    names = ("by_link", "by_link_itself", "by_the_kernel", "by_path")
    project = place.project("app", _files(*names) | {"v1/text": "1", "v2/text": "2"})
    (project / "current").symlink_to("v1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_ONE", "1")
        # A link to a directory of the package: what is all around cannot be told.
        place.build(project)
        assert [told(project, name) for name in names[:3]] == ["1", "v1", "MY_ONE=1"]
        assert not any(_hidden(place, name) for name in names[:3])
        (project / "current").unlink()
        (project / "current").symlink_to("v2")
        _touched(project)
        assert place.build(project).rustc == sorted(names[:3])
        assert [told(project, name) for name in names[:2]] == ["2", "v2"]
        _touched(project)
        before = int(told(project, "by_path"))
        longer = os.environ["PATH"] + ":/nowhere"
        assert "by_path" in place.build(project, PATH=longer).rustc
        assert int(told(project, "by_path")) == before + len(":/nowhere")


def test_a_macro_that_may_take_all_variables(place: Place) -> None:
    """No function of the C library is called for that: its code tells."""
    names = ("by_all_variables", "by_file", "by_the_kernel")
    files = _files(*names) | {"pointer": "one", "one": "1"}
    project = place.project("app", files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_ONE", "1")
        place.build(project)
        for name in names:
            (value,) = _hidden(place, name)
            assert value["hidden"]["complete"] is False
            assert value["surroundings"]["everything"] is True
        _touched(project)
        assert place.build(project).rustc == []
        _touched(project)
        assert place.build(project, MY_TWO="2").rustc == sorted(names)
        for name in ("by_all_variables", "by_the_kernel"):
            assert told(project, name) == "MY_ONE=1MY_TWO=2"
        write(project, {"one": "2"})
        _touched(project)
        assert place.build(project).rustc == sorted(names)
        assert told(project, "by_file") == "2"


def test_what_was_seen_counts_where_it_is_not_all(place: Place) -> None:
    """What is all around does not reach outside of the package."""
    project = place.project("app", _files("partly"))
    write(place.root, {"outside": "1"})
    place.build(project)
    assert told(project, "partly") == "1"
    (value,) = _hidden(place, "partly")
    assert value["hidden"]["complete"] is False
    _touched(project)
    assert place.build(project).rustc == []
    write(place.root, {"outside": "2"})
    _touched(project)
    assert place.build(project).rustc == ["partly"]
    assert told(project, "partly") == "2"
    # Before Cargo, by whole units.
    build_with_graft(place, project, RUSTC_WRAPPER=str(native.program()))
    for text in ("3", "2"):
        write(place.root, {"outside": text})
        shutil.rmtree(project / "target")
        build_with_graft(place, project, RUSTC_WRAPPER=str(native.program()))
        assert told(project, "partly") == text


def test_what_came_of_more_than_files_is_not_kept(place: Place) -> None:
    names = ("by_time", "by_program", "by_connection", "by_datagram", "writing")
    project = place.project("app", _files(*names))
    write(place.root, {"above": "1"})
    place.build(project)
    assert told(project, "by_program") == "1"
    assert not any(_hidden(place, name) for name in names)
    reasons = " ".join(place.reasons("not-kept"))
    for reason in ("asks for the time", "starts cat", "asks the network", "writes"):
        assert reason in reasons
    before = told(project, "by_time")
    write(place.root, {"above": "2"})
    (project / "written").unlink()
    _touched(project)
    assert place.build(project).rustc == sorted(names)
    assert told(project, "by_program") == "2"
    assert told(project, "by_time") != before
    assert (project / "written").exists()


_SCRIPT = """fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").unwrap();
    let text = std::env::var("UNDECLARED").unwrap_or("none".into());
    std::fs::write(format!("{out}/text"), text).unwrap();
}
"""


def test_what_a_script_generated_for_a_macro(place: Place) -> None:
    project = place.project("app", _files("by_generated") | {"build.rs": _SCRIPT})
    for text in ("1", "2", "1"):
        subprocess.run(["rm", "-rf", project / "target"], check=True)
        place.build(project, UNDECLARED=text)
        assert told(project, "by_generated") == text


def test_a_macro_of_a_dependency_that_reads_the_project(place: Place) -> None:
    """Compiles of dependencies are observed as well, where they can reach such a macro."""
    looking = repository(
        place.root / "looking",
        {
            "Cargo.toml": '[workspace]\nmembers = ["looking", "dep"]\nresolver = "2"\n',
            "looking/Cargo.toml": PACKAGE.format("looking", "[lib]\nproc-macro = true\n"),
            "looking/src/lib.rs": """use proc_macro::TokenStream;
#[proc_macro]
pub fn read(_: TokenStream) -> TokenStream {
    let path = std::env::var("SETTINGS").unwrap();
    format!("{:?}", std::fs::read_to_string(path).unwrap()).parse().unwrap()
}
""",
            "dep/Cargo.toml": PACKAGE.format(
                "dep", '[dependencies]\nlooking.path = "../looking"\n'
            ),
            "dep/src/lib.rs": "pub const SETTINGS: &str = looking::read!();\n",
        },
    )
    files = {
        "Cargo.toml": PACKAGE.format("app", f'[dependencies]\ndep.git = "file://{looking}"\n'),
        "src/main.rs": 'fn main() { println!("{}", dep::SETTINGS); }\n',
        "settings": "1",
    }
    project = place.project("app", files)
    extra = {"SETTINGS": str(project / "settings")}
    place.build(project, **extra)
    (value,) = _hidden(place, "dep")
    assert [path for path, _, _ in value["hidden"]["files"]] == [extra["SETTINGS"]]
    for text in ("2", "1"):
        write(project, {"settings": text})
        subprocess.run(["rm", "-rf", project / "target"], check=True)
        settle()
        place.build(project, **extra)
        assert told(project) == text
    # Another project with the same settings, and variables of its own.
    other = place.project("other", files)
    built = place.build(other, UNRELATED="x", **extra)
    assert built.rustc == ["app"]


@pytest.mark.parametrize("observe", ["on", "off"])
def test_with_and_without_an_observer(place: Place, observe: str) -> None:
    """Without one all around counts, and it is looked at before the compile and after it."""
    project = place.project("app", _files("by_file") | {"pointer": "one", "one": "1"})
    extra = {"CARGO_COW_OBSERVE": observe}
    place.build(project, **extra)
    _touched(project)
    assert place.build(project, **extra).rustc == []
    write(project, {"notes": "new"})
    _touched(project)
    assert place.build(project, **extra).rustc == ([] if observe == "on" else ["by_file"])
    write(project, {"one": "2"})
    _touched(project)
    assert place.build(project, **extra).rustc == ["by_file"]
    assert told(project, "by_file") == "2"
