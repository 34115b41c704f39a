"""Baked paths in what the real rustc makes: constants, panics, includes, archives, debug info."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cargo_cow.prepare import outputs

_GENERATED = "pub fn generated(x: usize) -> usize { x + 1 }\n"
_PANICS = "pub fn generated(x: usize) -> usize { [1usize, 2][x] }\n"


def _compile(
    root: Path, source: str, generated: str, kind: str = "lib", *flags: str
) -> tuple[list[str], str, list[str]]:
    out_dir = root / "out"
    out_dir.mkdir(exist_ok=True)
    (out_dir / "gen.rs").write_text(generated)
    (root / "lib.rs").write_text(source)
    made = root / f"made-{kind}"
    made.mkdir(exist_ok=True)
    subprocess.run(
        ["rustc", "--edition=2021", "--crate-type", kind, "--crate-name", "made", "lib.rs",
         "--emit=link,metadata" if kind == "lib" else "--emit=link", "-Cdebuginfo=2",
         "--out-dir", made, *flags],
        cwd=root, env={**os.environ, "OUT_DIR": str(out_dir)}, check=True,
    )  # fmt: skip
    return [str(path) for path in made.iterdir()], str(out_dir), [str(out_dir / "gen.rs")]


_INCLUDE = 'include!(concat!(env!("OUT_DIR"), "/gen.rs"));\n'


@pytest.mark.parametrize(
    ("source", "generated", "baked"),
    [
        (_INCLUDE, _GENERATED, False),
        (_INCLUDE + "pub fn g<T>(_: T) -> usize { generated(1) }\n", _GENERATED, False),
        (_INCLUDE, _PANICS, False),  # the location of a panic names the file
        (_INCLUDE + 'pub const O: &str = env!("OUT_DIR");\n', _GENERATED, True),
        (_INCLUDE + 'pub fn o() -> &\'static str { env!("OUT_DIR") }\n', _GENERATED, True),
        # The path of an included file, as a constant that lives in the metadata alone.
        (_INCLUDE + 'pub const O: &str = concat!(env!("OUT_DIR"), "/gen.rs");\n', _GENERATED, True),
        (_INCLUDE + 'pub fn o() -> &\'static str { concat!(env!("OUT_DIR"), "/other") }\n',
         _GENERATED, True),
        (_INCLUDE + 'pub fn o() -> &\'static str { concat!(env!("OUT_DIR"), "/gen.rs") }\n',
         _GENERATED, True),
        ("pub fn nothing() {}\n", _GENERATED, False),
    ],
)  # fmt: skip
def test_libraries(tmp_path: Path, source: str, generated: str, baked: bool) -> None:
    files, out_dir, included = _compile(tmp_path, source, generated)
    assert outputs.bakes_path(files, out_dir, included) is baked


def test_programs(tmp_path: Path) -> None:
    main = _INCLUDE + 'fn main() { println!("{}", generated(1)); }\n'
    files, out_dir, included = _compile(tmp_path, main, _GENERATED, "bin")
    assert any(out_dir.encode() in Path(path).read_bytes() for path in files), "no debug info?"
    assert not outputs.bakes_path(files, out_dir, included)
    files, out_dir, included = _compile(tmp_path, main, _PANICS, "bin")
    assert not outputs.bakes_path(files, out_dir, included)
    opens = _INCLUDE + 'fn main() { println!("{}", concat!(env!("OUT_DIR"), "/gen.rs")); }\n'
    files, out_dir, included = _compile(tmp_path, opens, _GENERATED, "bin")
    assert outputs.bakes_path(files, out_dir, included)


def test_bitcode_cannot_be_decided(tmp_path: Path) -> None:
    source = _INCLUDE + 'pub fn o() -> &\'static str { env!("OUT_DIR") }\n'
    files, out_dir, included = _compile(
        tmp_path, source, _GENERATED, "lib", "-Clinker-plugin-lto", "-Copt-level=2"
    )
    assert outputs.bakes_path(files, out_dir, included)


def test_constants_stand_side_by_side(tmp_path: Path) -> None:
    """What follows a path says nothing about where it ends, unless it is known to go elsewhere."""
    file = tmp_path / "file"
    file.write_bytes(b"x/w/p-old/y")
    assert outputs.contains_path(str(file), [b"/w/p"]) == b"/w/p"
    assert outputs.contains_path(str(file), [b"/w/p"], [b"/w/p-old/"]) is None
    file.write_bytes(b"x/w/p/y/w/p-old/")
    assert outputs.contains_path(str(file), [b"/w/p"], [b"/w/p-old/"]) == b"/w/p"


def test_metadata_contradicts_other_content(tmp_path: Path) -> None:
    import hashlib

    files, _, _ = _compile(tmp_path, "pub fn one() {}\n", _GENERATED)
    metadata = next(path for path in files if path.endswith(".rmeta"))
    same = hashlib.md5(b"pub fn one() {}\n").digest()
    other = hashlib.md5(b"pub fn two() {}\n").digest()
    assert outputs.other_content(metadata, [(b"/lib.rs", same)]) is None
    assert outputs.other_content(metadata, [(b"/lib.rs", other)]) == 0
    assert outputs.other_content(metadata, [(b"/not-there.rs", other)]) is None


def test_scripts_that_ask_git(tmp_path: Path) -> None:
    asks = """fn main() {
        std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().unwrap();
    }"""
    files, _, _ = _compile(tmp_path, asks, _GENERATED, "bin")
    assert outputs.asks_git(files[0])
    files, _, _ = _compile(
        tmp_path, 'fn main() { println!("cargo:rerun-if-changed=build.rs"); }', _GENERATED, "bin"
    )
    assert not outputs.asks_git(files[0])
