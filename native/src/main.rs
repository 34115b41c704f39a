//! `cargo-cow-native`: what must start in a millisecond or touch ten thousand files.
//!
//! The first argument decides.  One that starts with `--` is a verb of ours (no compiler is
//! named so); anything else is a compiler, and this program is then the shim that Cargo calls as
//! `RUSTC_WRAPPER`.  Verbs print one JSON object on stdout; the contract is in
//! `docs/architecture.md`.

mod clone_tree;
mod depinfo;
mod elf;
mod enter;
mod frame;
mod namespace;
mod shim;
mod signals;
mod verbs;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first() {
        Some(first) if !first.as_bytes().starts_with(b"--") => shim::run(arguments),
        _ => verbs::run(&arguments),
    }
}
