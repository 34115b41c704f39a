"""A small workspace that meets the traps of freshness: one member for each."""

from __future__ import annotations

_MANIFEST = """[package]
name = "{name}"
version = "0.1.0"
edition = "2021"
{more}
"""


def _member(name: str, more: str = "") -> str:
    return _MANIFEST.format(name=name, more=more)


FILES = {
    "Cargo.toml": """[workspace]
members = ["app", "util", "gen", "place", "old", "hidden", "reader", "absolute"]
resolver = "2"
[profile.dev]
debug = "line-tables-only"
""",
    "shared.txt": "shared 1\n",
    # util: a library with generics, and a file from outside its package.
    "util/Cargo.toml": _member("util"),
    "util/src/lib.rs": """
mod inner;
pub fn generic<T: std::fmt::Display>(value: T) -> String { format!("<{value}{}>", inner::MARK) }
pub const SHARED: &str = include_str!("../../shared.txt");
""",
    "util/src/inner.rs": 'pub const MARK: &str = "u1";\n',
    # gen: a script that declares a file and a directory, generates code that is only included.
    "gen/Cargo.toml": _member("gen"),
    "gen/build.rs": """
fn main() {
    println!("cargo::rerun-if-changed=schema.txt");
    println!("cargo::rerun-if-changed=parts");
    let schema = std::fs::read_to_string("schema.txt").unwrap();
    let mut parts: Vec<_> = std::fs::read_dir("parts").unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    parts.sort();
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
    std::fs::write(out.join("gen.rs"),
        format!("pub const SCHEMA: &str = {:?}; pub const PARTS: &str = {:?};", schema.trim(),
            parts.join(","))).unwrap();
}
""",
    "gen/src/lib.rs": 'include!(concat!(env!("OUT_DIR"), "/gen.rs"));\n',
    "gen/schema.txt": "schema 1\n",
    "gen/parts/a.txt": "a\n",
    # place: bakes the path of its package.
    "place/Cargo.toml": _member("place"),
    "place/src/lib.rs": 'pub const DIR: &str = env!("CARGO_MANIFEST_DIR");\n',
    # old: a script that declares nothing: Cargo hashes the newest mtime of the package.
    "old/Cargo.toml": _member("old"),
    "old/build.rs": """
fn main() {
    let text = std::fs::read_to_string("data.txt").unwrap();
    println!("cargo:rustc-env=OLD_DATA={}", text.trim());
}
""",
    "old/src/lib.rs": 'pub const DATA: &str = env!("OLD_DATA");\n',
    "old/data.txt": "old 1\n",
    # hidden: a proc macro that reads a file of the calling package.
    "hidden/Cargo.toml": _member("hidden", "[lib]\nproc-macro = true"),
    "hidden/src/lib.rs": """
use proc_macro::TokenStream;
#[proc_macro]
pub fn read(_: TokenStream) -> TokenStream {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let text = std::fs::read_to_string(format!("{root}/secret.txt")).unwrap();
    format!("{:?}", text.trim()).parse().unwrap()
}
""",
    "reader/Cargo.toml": _member("reader", '[dependencies]\nhidden = { path = "../hidden" }'),
    "reader/src/lib.rs": "pub fn secret() -> &'static str { hidden::read!() }\n",
    "reader/secret.txt": "secret 1\n",
    # absolute: a script that declares an absolute path, as many do.
    "absolute/Cargo.toml": _member("absolute"),
    "absolute/build.rs": """
fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    println!("cargo:rerun-if-changed={root}/table.txt");
    let out = std::env::var("OUT_DIR").unwrap();
    let text = std::fs::read_to_string(format!("{root}/table.txt")).unwrap();
    std::fs::write(format!("{out}/table.rs"),
        format!("pub const TABLE: &str = {:?};", text.trim())).unwrap();
}
""",
    "absolute/src/lib.rs": 'include!(concat!(env!("OUT_DIR"), "/table.rs"));\n',
    "absolute/table.txt": "table 1\n",
    "app/Cargo.toml": _member(
        "app",
        """[dependencies]
util = { path = "../util" }
gen = { path = "../gen" }
place = { path = "../place" }
old = { path = "../old" }
reader = { path = "../reader" }
absolute = { path = "../absolute" }
""",
    ),
    "app/src/main.rs": """
fn main() {
    println!("{} {}", util::generic(1), util::SHARED.trim());
    println!("{} [{}]", gen::SCHEMA, gen::PARTS);
    println!("{}", place::DIR);
    println!("{} {} {}", old::DATA, reader::secret(), absolute::TABLE);
}
""",
    "app/tests/it.rs": """
#[test]
fn runs() {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_app")).output().unwrap();
    assert!(out.status.success());
    assert!(env!("CARGO_BIN_EXE_app").starts_with(env!("CARGO_MANIFEST_DIR").trim_end_matches("/app")));
}
""",
}

BAKED = ["app", "app", "it", "place", "place"]
"""Crates compiled in a new worktree, unit tests included: ``place`` bakes its directory, so ``app``
follows, and ``it`` bakes the program's path."""
