//! What is written down of a call, so that others can tell of it later: what was asked for and was
//! not there (`cargo cow explain`), and how to compile an entry again (`cargo cow verify`).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::args::{self, Call, Compile};
use super::super::{layout, variable};
use super::key::{READ_BY_LINKERS, READ_BY_RUSTC};

const NAME: &str = "cow-asked.json";

/// Beside the unit's fingerprint, so that it goes with the unit; a unit has one.
pub struct Note(Option<PathBuf>);

impl Note {
    pub fn of(compile: &Compile) -> Self {
        let package = variable("CARGO_PKG_NAME");
        let unit = layout::unit_directory(
            &compile.out_dir,
            &compile.extra_filename,
            package.as_deref(),
        );
        Self(unit.map(|unit| unit.join(NAME)))
    }

    /// The warehouse had nothing for the unit.
    pub fn leave(&self, asked: &Value) {
        if let Some(path) = &self.0 {
            // Torn by a crash it counts as not there.
            let _ = fs::write(path, asked.to_string());
        }
    }

    /// The unit came back: what was said of it holds no more.
    pub fn clear(&self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// The call as Cargo made it, null where it is not UTF-8.  Of the variables only those that Cargo
/// sets for a compile, or that rustc, clippy or a linker go by: others may be secrets.
pub fn call(call: &Call, directory: &Path) -> Value {
    let programs: Option<Vec<&str>> = call.programs.iter().map(|word| word.to_str()).collect();
    let expanded = args::expand(call.arguments);
    let arguments: Option<Vec<&str>> = expanded.iter().map(|word| word.to_str()).collect();
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| counts(name))
        .collect();
    match (programs, arguments, directory.to_str()) {
        (Some(programs), Some(arguments), Some(directory)) => json!({
            "programs": programs,
            "arguments": arguments,
            "environment": environment,
            "directory": directory,
        }),
        _ => Value::Null,
    }
}

const CARGOS: &[&str] = &[
    "CARGO",
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_RUSTC_CURRENT_DIR",
    "CARGO_TARGET_TMPDIR",
    "OUT_DIR",
    "RUSTUP_TOOLCHAIN",
];
const FAMILIES: &[&str] = &["CARGO_BIN_EXE_", "CARGO_MANIFEST_", "CARGO_PKG_", "CLIPPY_"];

fn counts(name: &str) -> bool {
    CARGOS.contains(&name)
        || READ_BY_RUSTC.contains(&name)
        || READ_BY_LINKERS.contains(&name)
        || FAMILIES.iter().any(|family| name.starts_with(family))
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn what_may_be_a_secret_is_not_written_down() {
        for name in ["CARGO_REGISTRY_TOKEN", "GITHUB_TOKEN", "HOME", "PATH"] {
            assert!(!counts(name), "{name}");
        }
        for name in ["CARGO_PKG_NAME", "OUT_DIR", "CARGO_BIN_EXE_app", "CARGO"] {
            assert!(counts(name), "{name}");
        }
    }
}
