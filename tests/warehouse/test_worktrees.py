"""Worktrees whose compiler sees them at one path share what is compiled of their own packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.projects import Build, cargo, cow, git, settle, write

from .conftest import PACKAGE, Place, told

# Reads what no dep-info tells, and puts it into the code.
_MACRO = """
use proc_macro::TokenStream;
fn text(value: String) -> TokenStream { format!("{value:?}").parse().unwrap() }
fn root() -> std::path::PathBuf { std::env::var_os("CARGO_MANIFEST_DIR").unwrap().into() }
#[proc_macro]
pub fn place(_: TokenStream) -> TokenStream { text(root().display().to_string()) }
#[proc_macro]
pub fn directory(_: TokenStream) -> TokenStream {
    text(std::env::current_dir().unwrap().display().to_string())
}
#[proc_macro]
pub fn generated(_: TokenStream) -> TokenStream { text(std::env::var("OUT_DIR").unwrap()) }
#[proc_macro]
pub fn inside(_: TokenStream) -> TokenStream {
    text(std::fs::read_to_string(root().join("../data")).unwrap_or("none".into()))
}
#[proc_macro]
pub fn above(_: TokenStream) -> TokenStream {
    let told = root().ancestors().find_map(|at| std::fs::read_to_string(at.join(".cow-up")).ok());
    text(told.unwrap_or("none".into()))
}
#[proc_macro]
pub fn name(_: TokenStream) -> TokenStream {
    text(root().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned())
}
"""
_SCRIPT = """
fn main() {
    println!("cargo:rerun-if-changed=not-there");
    println!("cargo:rustc-env=FROM_SCRIPT=set");
    let out = std::env::var("OUT_DIR").unwrap();
    std::fs::write(format!("{out}/g.rs"), "pub fn fails(x: Option<u8>) -> u8 { x.unwrap() }")
        .unwrap();
}
"""
_MAIN = """
#[allow(dead_code)]
mod generated {{ include!(concat!(env!("OUT_DIR"), "/g.rs")); }}
fn main() {{
    if std::env::args().count() > 5 {{ generated::fails(None); }}
    println!("{{}} {{}} {{}} {{}}", 1, {}, file!(), env!("FROM_SCRIPT"));
}}
"""


def _files(told: str) -> dict[str, str]:
    return {
        "Cargo.toml": '[workspace]\nmembers = ["app", "told"]\nresolver = "2"\n',
        "told/Cargo.toml": PACKAGE.format("told", "[lib]\nproc-macro = true\n"),
        "told/src/lib.rs": _MACRO,
        "app/Cargo.toml": PACKAGE.format("app", '[dependencies]\ntold = { path = "../told" }\n'),
        "app/build.rs": _SCRIPT,
        "app/src/main.rs": _MAIN.format(told),
        ".gitignore": "/target\n/data\n/trees\n",
    }


def _cow(place: Place, root: Path, *arguments: str, **extra: str) -> Build:
    settle()
    words = arguments or ("build", "-v")
    built = cow(root, place.scratch, *words, **place.environment(**extra))
    assert built.status == 0, built.output
    place.wait()
    return built


def _clean(place: Place, root: Path) -> str:
    """What a clean build by plain Cargo at this very place tells."""
    aside = place.root / "aside"
    (root / "target").rename(aside)
    try:
        built = cargo(root, place.scratch, "build", RUSTC_WRAPPER="")
        assert built.status == 0, built.output
        return told(root)
    finally:
        shutil.rmtree(root / "target")
        aside.rename(root / "target")


@pytest.fixture(params=["there", "main/trees/there"])
def there(place: Place, request: pytest.FixtureRequest) -> Path:
    """Where a worktree of ``main`` is to be."""
    return place.root / str(request.param)


def _pair(place: Place, there: Path, told: str, *, notes: dict[str, str] | None = None) -> Path:
    """The main checkout, built, and a worktree of it that is not."""
    main = place.project("main", _files(told))
    write(place.root, notes or {})
    _cow(place, main)
    git(main, "worktree", "add", "-q", str(there))
    return main


@pytest.mark.parametrize("told_", ['"x"', "told::inside!()", "told::above!()"])
def test_what_the_main_checkout_compiled(place: Place, there: Path, told_: str) -> None:
    """The script runs on every build; what depends on it comes back."""
    _pair(place, there, told_)
    built = _cow(place, there)
    assert (built.rustc, built.scripts) == ([], 1), built.output
    assert told(there) == _clean(place, there)
    for path in (there / "target/debug/deps").glob("*.d"):
        assert f"{place.root}/main/app" not in path.read_text()
    for observed in (there / "target/debug/.fingerprint").glob("app-*/cow-observed.json"):
        hidden = json.loads(observed.read_bytes()).get("hidden")
        assert f"{place.root}/main/data" not in json.dumps(hidden)
    again = _cow(place, there)
    assert (again.rustc, again.scripts) == ([], 1), again.output


def test_what_a_worktree_compiled(place: Place, there: Path) -> None:
    """An edit that was tried in one worktree is there for all others."""
    main = _pair(place, there, '"x"')
    other = place.root / "other"
    git(main, "worktree", "add", "-q", str(other))
    edited = {"app/src/main.rs": _MAIN.format('"y"')}
    for root in (there, other):
        _cow(place, root)
    write(there, edited)
    assert _cow(place, there).rustc == ["app"]
    for root in (main, other):
        write(root, edited)
        built = _cow(place, root)
        assert built.rustc == [], built.output
        assert told(root) == _clean(place, root)


@pytest.mark.parametrize(
    "told_",
    [
        'env!("CARGO_MANIFEST_DIR")',
        'concat!(env!("OUT_DIR"), "/x")',
        "told::place!()",
        "told::directory!()",
        "told::generated!()",
        "std::panic::Location::caller().file()",
    ],
)
def test_what_names_its_place_is_compiled_there(place: Place, there: Path, told_: str) -> None:
    main = _pair(place, there, told_)
    _cow(place, there)
    assert told(there) == _clean(place, there)
    assert told(main) == _clean(place, main)
    _cow(place, main)
    if "directory" in told_:
        # What was compiled at the identity in vain is compiled apart from then on.
        assert _cow(place, there).rustc == ["app"]
    # And once: each place keeps its own.
    for root in (main, there):
        again = _cow(place, root)
        assert again.rustc == [], again.output
        assert told(root) == _clean(place, root)


@pytest.mark.parametrize(
    ("told_", "notes", "here"),
    [
        ("told::inside!()", {}, {"data": "1"}),
        ("told::inside!()", {"main/data": "0"}, {}),
        ("told::inside!()", {"main/data": "0"}, {"data": "1"}),
        ("told::above!()", {}, {".cow-up": "1"}),
        ("told::above!()", {}, {"../.cow-up": "1"}),
        ("told::above!()", {"main/.cow-up": "0"}, {}),
        ("told::above!()", {".cow-up": "0"}, {"../.cow-up": "1"}),
        ("told::above!()", {".cow-up": "0"}, {}),
    ],
)
def test_what_a_macro_finds_here(
    place: Place, there: Path, told_: str, notes: dict[str, str], here: dict[str, str]
) -> None:
    """Below its own checkout, and above."""
    _pair(place, there, told_, notes=notes)
    write(there, here)
    _cow(place, there)
    assert told(there) == _clean(place, there)


def test_panics_in_generated_code_name_a_file_of_a_target(place: Place, there: Path) -> None:
    """The one thing that tells where it was compiled; see docs/warehouse.md."""
    main = _pair(place, there, '"x"')
    _cow(place, there)
    failed = subprocess.run(
        [there / "target/debug/app", *"12345"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 101
    assert "out/g.rs:1:" in failed.stderr
    assert main.is_dir()


def test_without_an_identity_a_worktree_is_on_its_own(place: Place, there: Path) -> None:
    _pair(place, there, '"x"')
    built = _cow(place, there, CARGO_COW_IDENTITY="off")
    assert built.rustc == ["app"], built.output
    assert told(there) == _clean(place, there)
    again = _cow(place, there, CARGO_COW_IDENTITY="off")
    assert again.rustc == []


def test_entries_of_a_place_that_is_gone(place: Place, there: Path) -> None:
    """What a worktree kept is of use after it."""
    main = _pair(place, there, '"x"')
    _cow(place, there)
    edited = {"app/src/main.rs": _MAIN.format('"z"')}
    write(there, edited)
    assert _cow(place, there).rustc == ["app"]
    shutil.rmtree(there)
    git(main, "worktree", "prune")
    write(main, edited)
    assert _cow(place, main).rustc == []
    assert told(main) == _clean(place, main)


def test_two_places_do_not_push_each_other_out(place: Place) -> None:
    """Each keeps its last results, however many others compile the same package."""
    main = _pair(place, place.root / "w0", '"x"')
    roots = [place.root / f"w{index}" for index in range(4)]
    for root in roots[1:]:
        git(main, "worktree", "add", "-q", str(root))
    for index, root in enumerate(roots):
        _cow(place, root)
        write(root, {"app/src/main.rs": _MAIN.format(f'"{index}"')})
        assert _cow(place, root).rustc == ["app"]
    for index, root in enumerate(roots):
        (root / "app/src/main.rs").touch()
        os.utime(root / "app/build.rs")
        built = _cow(place, root)
        assert "app" not in built.rustc, built.output
        assert told(root).split()[1] == str(index)


def test_two_cold_worktrees_at_once(place: Place) -> None:
    """Who builds the same sources at the same time waits for them."""
    main = place.project("main", _files('"x"'))
    roots = [place.root / name for name in ("one", "two")]
    for root in roots:
        git(main, "worktree", "add", "-q", str(root))
    settle()
    with ThreadPoolExecutor() as pool:
        scratches = [place.scratch / root.name for root in roots]
        for scratch in scratches:
            scratch.mkdir()
        environment = place.environment()
        words = ("build", "-v")
        builds = [
            pool.submit(cow, root, scratch, *words, **environment)
            for root, scratch in zip(roots, scratches, strict=True)
        ]
    for root, build in zip(roots, builds, strict=True):
        assert build.result().status == 0, build.result().output
        assert told(root) == _clean(place, root)
    place.wait()
    compiled = Counter(name for build in builds for name in build.result().rustc)
    assert compiled == {"app": 1, "told": 1, "build_script_build": 1}
    # Other sources are nobody's to wait for.
    for root in roots:
        write(root, {"app/src/main.rs": _MAIN.format(f'"{root.name}"')})
        assert _cow(place, root).rustc == ["app"]
    assert sum(event["waited"] for event in place.events()[-2:]) == 0


def test_why_it_did_not_come(place: Place) -> None:
    there = place.root / "there"
    _pair(place, there, "told::place!()")
    assert _cow(place, there).rustc == ["app"]
    told_ = cow(there, place.scratch, "explain", "app", **place.environment())
    assert "its outputs hold the path of another" in told_.output, told_.output
