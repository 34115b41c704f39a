//! Files and directories whose content counts as a whole: what a script declares, what a macro may
//! read.
//!
//! A tree is looked at by the stats of all that is in it; the contents are read where these are
//! new, and the answer is remembered.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::inputs::{self, GRANULE, Identity, Nanoseconds, changed, file_clock};
use super::ledger::Ledgers;

/// A tree of more files costs more than it saves.
const LARGEST: usize = 20_000;

pub struct Tree {
    pub digest: String,
    /// Newest ctime in it.
    pub newest: Nanoseconds,
}

/// What is below a directory, or a file, or nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of it, as Cargo takes a declared directory; the target that lies in it aside.
    All,
    /// The files of a package: without packages nested in it, caches, and git's own.
    Package,
}

/// The content of `root`; what is not there has one, too.
pub fn tree(
    root: &Path,
    scope: Scope,
    profile: &Path,
    ledgers: &mut Ledgers,
) -> Result<Tree, String> {
    let mut found = Vec::new();
    walk(root, scope, profile, &mut found)?;
    found.sort_by(|one, other| one.0.cmp(&other.0));
    let mut looks = blake3::Hasher::new();
    let mut newest = 0;
    for (path, stat) in &found {
        looks.update(path.as_os_str().as_bytes());
        if stat.is_dir() {
            // Its entries are here by name; its times tell nothing more.
            looks.update(b"\0directory");
        } else {
            newest = newest.max(changed(stat));
            looks.update(format!("\0{:?}", Identity::of(stat)).as_bytes());
        }
    }
    let looks = looks.finalize().to_hex();
    let name = format!("{} {}", scope as u8, root.to_str().ok_or("not UTF-8")?);
    if let Some(digest) = ledgers.tree(profile, &name, &looks) {
        return Ok(Tree { digest, newest });
    }
    let before = file_clock();
    let mut hasher = blake3::Hasher::new();
    for (path, stat) in &found {
        let relative = path.strip_prefix(root).unwrap_or(path);
        hasher.update(relative.as_os_str().as_bytes());
        if stat.is_dir() {
            hasher.update(b"\0directory\n");
            continue;
        }
        if !stat.is_file() {
            hasher.update(b"\0special\n");
            continue;
        }
        let said = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut file = fs::File::open(path).map_err(said)?;
        let (size, digest) = inputs::digest(&mut file).map_err(said)?;
        if size != stat.len() || Identity::of(&file.metadata().map_err(said)?) != Identity::of(stat)
        {
            return Err(format!("{} is being written", path.display()));
        }
        hasher.update(format!("\0{size} {digest}\n").as_bytes());
    }
    if found.is_empty() {
        hasher.update(b"missing");
    }
    let digest = hasher.finalize().to_hex().to_string();
    // Else a write in the same tick could look like what was read.
    if newest + GRANULE < before {
        ledgers.note_tree(profile, &name, &looks, &digest);
    }
    Ok(Tree { digest, newest })
}

fn walk(
    path: &Path,
    scope: Scope,
    profile: &Path,
    found: &mut Vec<(PathBuf, Metadata)>,
) -> Result<(), String> {
    // A link counts as what it leads to.
    let Ok(stat) = fs::metadata(path) else {
        return Ok(());
    };
    if found.len() >= LARGEST {
        return Err(format!("{} holds too much to be looked at", path.display()));
    }
    let is_directory = stat.is_dir();
    let nested = !found.is_empty();
    found.push((path.to_owned(), stat));
    if !is_directory {
        return Ok(());
    }
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut names: Vec<PathBuf> = fs::read_dir(path)
        .map_err(said)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    names.sort();
    let has = |name: &str| names.contains(&path.join(name));
    let package = scope == Scope::Package;
    let cache = has("CACHEDIR.TAG") && (package || profile.starts_with(path));
    if nested && (cache || (package && has("Cargo.toml"))) {
        found.pop();
        return Ok(());
    }
    if package {
        names.retain(|name| {
            let last = name.file_name().map_or(b"".as_slice(), OsStr::as_bytes);
            // Cargo.lock reaches a unit through its dependencies.
            last != b".git" && last != b"Cargo.lock"
        });
    }
    for name in names {
        let link = fs::symlink_metadata(&name).is_ok_and(|stat| stat.is_symlink());
        if link && name.is_dir() {
            // It may lead back here.
            let target = fs::read_link(&name).map_err(said)?;
            return Err(format!(
                "{} leads to the directory {}",
                name.display(),
                target.display()
            ));
        }
        walk(&name, scope, profile, found)?;
    }
    Ok(())
}
