//! What a package says that it is made from, because nobody can see it read that:
//!
//!     [package.metadata.cow]
//!     inputs = ["queries", "schema/**/*.sql", "env:REGION"]
//!
//! Paths and patterns are relative to the manifest; those of `[workspace.metadata.cow]` are of all
//! packages below the workspace's root.  `src/cargo_cow/prepare/declared.py` reads the same, and
//! tells people of what cannot be understood; here it is left out.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// A pattern that visits more directories than this is not for us.
const MOST: usize = 20_000;
/// Never looked into for `**`.
const PASSED_BY: [&str; 2] = [".git", ".cargo-cow"];

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// A path or pattern, absolute.
    Path(PathBuf),
    Variable(String),
}

/// What is declared for the package in `package`, whose compiles run in `directory`: Cargo runs
/// them in the workspace's root, or in the package where that lies outside of it.
pub fn inputs(package: &Path, directory: &Path) -> Result<BTreeSet<Input>, String> {
    let mut found = BTreeSet::new();
    for (root, table) in [(package, "package"), (directory, "workspace")] {
        if !package.starts_with(root) {
            continue;
        }
        let path = root.join("Cargo.toml");
        let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let has = |word: &[u8]| memchr::memmem::find(&text, word).is_some();
        // Few have any, and to search costs nothing.
        if !(has(b"metadata") && has(b"cow") && has(b"inputs")) {
            continue;
        }
        let said = || format!("{} is malformed", path.display());
        let text = std::str::from_utf8(&text).map_err(|_| said())?;
        let manifest: toml::Table = text.parse().map_err(|_| said())?;
        let list = [table, "metadata", "cow", "inputs"]
            .iter()
            .try_fold(None, |value: Option<&toml::Value>, name| {
                match value {
                    None => manifest.get(*name),
                    Some(value) => value.get(name),
                }
                .map(Some)
            })
            .flatten()
            .and_then(toml::Value::as_array);
        let words = list.into_iter().flatten().filter_map(toml::Value::as_str);
        found.extend(words.filter_map(|word| input(root, word)));
    }
    Ok(found)
}

fn input(root: &Path, word: &str) -> Option<Input> {
    if word.contains('\0') {
        return None;
    }
    match word.strip_prefix("env:") {
        Some(name) => {
            (!name.is_empty() && !name.contains('=')).then(|| Input::Variable(name.to_owned()))
        }
        None => (!word.is_empty()).then(|| Input::Path(root.join(word))),
    }
}

/// The paths that a pattern stands for now; one without wildcards stands for itself, there or not.
///
/// `*` and `?` stay within a name, `**` stands for any number of directories.  Everything below a
/// directory that is found belongs to it.  The target that `profile` lies in is passed by.
pub fn expand(pattern: &Path, profile: &Path) -> Result<Vec<PathBuf>, String> {
    let is_wild = |part: &Component| wild(part.as_os_str());
    let mut parts: Vec<Component> = pattern.components().collect();
    if !parts.iter().any(is_wild) {
        return Ok(vec![pattern.to_owned()]);
    }
    while parts.last().is_some_and(|part| part.as_os_str() == "**") {
        parts.pop();
    }
    let mut found = vec![PathBuf::new()];
    for part in parts {
        let name = part.as_os_str();
        let mut next = Vec::new();
        let mut seen = HashSet::new();
        for path in found {
            if name == "**" {
                below(&path, profile, &mut seen, &mut next)?;
            } else if !wild(name) {
                next.push(path.join(name));
            } else if path.is_dir() {
                let entries = fs::read_dir(&path);
                let entries = entries.map_err(|error| format!("{}: {error}", path.display()))?;
                next.extend(
                    entries
                        .flatten()
                        .filter(|entry| matches(name.as_bytes(), entry.file_name().as_bytes()))
                        .map(|entry| entry.path()),
                );
            }
        }
        found = next;
    }
    found.retain(|path| fs::symlink_metadata(path).is_ok());
    found.sort();
    found.dedup();
    Ok(found)
}

fn wild(name: &OsStr) -> bool {
    name.as_bytes().iter().any(|byte| b"*?".contains(byte))
}

/// A directory and all below it, links followed, each once.
fn below(
    path: &Path,
    profile: &Path,
    seen: &mut HashSet<(u64, u64)>,
    found: &mut Vec<PathBuf>,
) -> Result<(), String> {
    let Ok(stat) = fs::metadata(path) else {
        return Ok(());
    };
    let target = profile.starts_with(path) && path.join("CACHEDIR.TAG").exists();
    if !stat.is_dir() || target || !seen.insert((stat.dev(), stat.ino())) {
        return Ok(());
    }
    if seen.len() > MOST {
        return Err(format!("{} holds too much to be looked at", path.display()));
    }
    found.push(path.to_owned());
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    for entry in fs::read_dir(path).map_err(said)?.flatten() {
        if PASSED_BY.iter().all(|name| entry.file_name() != *name) {
            below(&entry.path(), profile, seen, found)?;
        }
    }
    Ok(())
}

/// Whether a name is of the kind that `*` (any bytes) and `?` (one character) tell.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|taken| matches(rest, &name[taken..])),
        (Some((b'?', rest)), Some(_)) => {
            let next = (1..name.len()).find(|at| name[*at] & 0xc0 != 0x80);
            matches(rest, &name[next.unwrap_or(name.len())..])
        }
        (Some((one, rest)), Some((other, name))) => one == other && matches(rest, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*.sql", "a.sql", true),
            ("*.sql", ".sql", true),
            ("*.sql", "a.sqlx", false),
            ("a*b*c", "a-b-b-c", true),
            ("?.x", "é.x", true),
            ("?.x", ".x", false),
            ("[a]", "a", false),
            ("[a]", "[a]", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn what_is_declared() {
        let root = std::env::temp_dir().join(format!("cow-manifest-{}", std::process::id()));
        let package = root.join("member");
        fs::create_dir_all(&package).unwrap();
        let shared = "[workspace]\nmetadata.cow.inputs = ['shared']\n";
        fs::write(root.join("Cargo.toml"), shared).unwrap();
        let manifest = "[package.metadata]\ncow = { inputs = ['a/*', 'env:X', 'env:', 1, ''] }\n";
        fs::write(package.join("Cargo.toml"), manifest).unwrap();
        let found = inputs(&package, &root).unwrap();
        let expected = [
            Input::Path(package.join("a/*")),
            Input::Path(root.join("shared")),
            Input::Variable("X".to_owned()),
        ];
        assert_eq!(found, BTreeSet::from(expected));
        // Of a package elsewhere the workspace says nothing.
        let other = root.join("other");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("Cargo.toml"), "[package]\n").unwrap();
        assert_eq!(inputs(&other, &package).unwrap(), BTreeSet::new());
        fs::remove_dir_all(root).unwrap();
    }
}
