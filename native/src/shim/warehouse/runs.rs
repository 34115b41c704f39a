//! Which Cargo built when, and with which variables.
//!
//! What a build script made depends on variables that nothing in the target tells.  So each run of
//! Cargo leaves word in the profiles that it compiles for: `<profile>/.cargo-cow/runs/<run>`, one line
//! of JSON, `{"first": ns, "own": bool, "variables": {name: BLAKE3}, "keeper": number of the `cargo cow`
//! that started it, or null}`.  `first` is the time of the
//! run's first call of us, the mtime of the file that of its last one.  Between the two Cargo held its
//! lock on the profile: what was begun there in that time was begun by this run.
//!
//! Only digests are written down, because variables may hold secrets.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::super::inputs::modified;
use super::super::variable;
use super::{follow, key};

const DIRECTORY: &str = ".cargo-cow/runs";
const MOST: usize = 16;

/// What Cargo and rustup set by themselves for the programs that they start.
const THEIRS: &[&str] = &[
    "CARGO",
    "CARGO_CRATE_NAME",
    "CARGO_HOME",
    "CARGO_BIN_NAME",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_MANIFEST_PATH",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_RUSTC_CURRENT_DIR",
    "CARGO_SBOM_PATH",
    "CARGO_TARGET_TMPDIR",
    "LD_LIBRARY_PATH",
    "OUT_DIR",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUSTUP_TOOLCHAIN_SOURCE",
    // Our own way of being called.
    "RUSTC_WRAPPER",
];
const THEIR_FAMILIES: &[&str] = &["CARGO_PKG_", "CARGO_BIN_EXE_"];

/// Digests of the variables that somebody else than Cargo, rustup, a shell or a terminal set.
pub fn environment() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    // rustup sets these where they are not set.
    for (name, default) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        let home = || Some(PathBuf::from(variable("HOME")?).join(default));
        if let Some(path) = variable(name).map(PathBuf::from).or_else(home) {
            found.insert(name.to_owned(), digest(path.as_os_str().as_bytes()));
        }
    }
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str() else {
            // It counts, under a name that nothing else has.
            found.insert(format!("{name:?}"), digest(value.as_bytes()));
            continue;
        };
        if THEIRS.contains(&name)
            || THEIR_FAMILIES.iter().any(|family| name.starts_with(family))
            || key::is_idle(name)
        {
            continue;
        }
        let digest = if name == "PATH" {
            // rustup puts Cargo's own directory before, if it is not there.
            let own = super::super::observe::cargo_home().map(|home| home.join("bin"));
            let paths = std::env::split_paths(&value).filter(|path| Some(path) != own.as_ref());
            let paths: Vec<String> = paths.map(|path| path.display().to_string()).collect();
            digest(paths.join(":").as_bytes())
        } else {
            digest(value.as_bytes())
        };
        found.insert(name.to_owned(), digest);
    }
    found
}

fn digest(value: &[u8]) -> String {
    blake3::hash(value).to_hex().to_string()
}

/// Leaves word of the Cargo that calls us.  What goes wrong costs what could have been kept.
pub fn note(profile: &Path) {
    let Some(run) = key::calling() else { return };
    let mut name = digest(run.as_bytes());
    name.truncate(24);
    let directory = profile.join(DIRECTORY);
    let path = directory.join(name);
    let _ = match known(&path) {
        // The variables of a package whose script set some are more than Cargo was given.
        Some(value) if value["own"] == true || variable("OUT_DIR").is_some() => touch(&path),
        Some(value) => write(&path, value["first"].as_i64()),
        None => {
            let _ = fs::create_dir_all(&directory);
            forget_oldest(&directory);
            write(&path, None)
        }
    };
}

fn known(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write(path: &Path, first: Option<i64>) -> std::io::Result<()> {
    let aside = path.with_extension(std::process::id().to_string());
    let result = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&aside)?;
        // The clock of the filesystem, as that of what Cargo leaves.
        let now = modified(&file.metadata()?);
        let value = json!({
            "first": first.or_else(|| i64::try_from(now).ok()),
            "own": variable("OUT_DIR").is_none(),
            "variables": environment(),
            "keeper": follow::keeper(),
        });
        file.write_all(value.to_string().as_bytes())?;
        fs::rename(&aside, path)
    })();
    if result.is_err() {
        let _ = fs::remove_file(&aside);
    }
    result
}

fn touch(path: &Path) -> std::io::Result<()> {
    let now = rustix::fs::Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_NOW,
    };
    let times = rustix::fs::Timestamps {
        last_access: now,
        last_modification: now,
    };
    let no_flags = rustix::fs::AtFlags::empty();
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, no_flags)?;
    Ok(())
}

fn forget_oldest(directory: &Path) {
    let mut found: Vec<(SystemTime, PathBuf)> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    let many = found.len().saturating_sub(MOST - 1);
    for (_, path) in &found[..many] {
        let _ = fs::remove_file(path);
    }
}
