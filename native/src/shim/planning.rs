//! The compiler that answers questions and compiles nothing: how Cargo is asked for the names of
//! its units.
//!
//! Cargo plans every unit before it runs the first (and writes their names to its log).  So where
//! `CARGO_COW_PLANNING` names a file, a question is answered by the real compiler, whose path and
//! toolchain are written to that file, and a compile fails at once: by then all is said, and who asked ends
//! Cargo.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use super::args::Call;
use super::variable;

pub const NOTES: &str = "CARGO_COW_PLANNING";

/// `None`: a question, which the compiler answers.
pub fn answer(notes: &OsString, call: &Call) -> Option<ExitCode> {
    let compiles = call.compile().is_some();
    if (compiles || call.is_version_probe())
        && let Some(compiler) = call.programs.last()
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(notes)
    {
        let mut line = compiler.as_bytes().to_vec();
        line.push(b'\t');
        line.extend(variable("RUSTUP_TOOLCHAIN").unwrap_or_default().as_bytes());
        line.push(b'\n');
        let _ = file.write_all(&line);
    }
    if !compiles {
        return None;
    }
    Some(ExitCode::FAILURE)
}
