//! Compiles the observer (`observer/lib.rs`), which `src/shim/observer.rs` embeds: a library that
//! rustc can preload, for the same target as this program, without the standard library.
//!
//! Not a package of its own, because Cargo has no stable way to build one artefact into another.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = "observer/lib.rs";
    println!("cargo::rerun-if-changed={source}");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"));
    let library = out.join("observer.so");
    let mut compile = Command::new(env::var_os("RUSTC").expect("Cargo sets RUSTC"));
    compile
        .args(["--crate-name", "observer", "--edition", "2024"])
        .args(["--crate-type", "cdylib", "-C", "panic=abort"])
        .args([
            "-C",
            "opt-level=3",
            "-C",
            "strip=symbols",
            "-C",
            "link-arg=-lc",
        ])
        .args(["--target", &env::var("TARGET").expect("Cargo sets TARGET")])
        .arg("-o")
        .arg(&library)
        .arg(source);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut argument = std::ffi::OsString::from("linker=");
        argument.push(linker);
        compile.arg("-C").arg(argument);
    }
    let status = compile.status().expect("rustc can be started");
    assert!(status.success(), "the observer does not compile");
}
