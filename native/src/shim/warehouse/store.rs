//! Where entries are kept, and the small files beside them.
//!
//! `CARGO_COW_WAREHOUSE` switches it on: a directory (absolute), or `on` for the one that is found
//! for the target's filesystem.  Found means: a file was reflinked from the target into it, because
//! nothing else tells (two subvolumes of one Btrfs have two device numbers).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::variable;
use crate::clone_tree::{Mode, file};

const SETTING: &str = "CARGO_COW_WAREHOUSE";
/// Below the profile's directory: the store that was found for it, or `-`.
const FOUND: &str = ".cargo-cow/warehouse";
/// So long a failed search is not repeated.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # Units that cargo-cow compiled. They can be removed at any time.\n";

pub struct Store {
    pub root: PathBuf,
    /// A store that somebody named may copy where it cannot share; one that was found shares.
    pub mode: Mode,
}

impl Store {
    /// The store that serves the target directory `profile`.  `Ok(None)`: switched off.
    pub fn of(profile: &Path) -> Result<Option<Self>, String> {
        Self::chosen(|| Self::found(profile))
    }

    /// The store that would serve a target below `directory`, where nothing is written down.
    pub fn near(directory: &Path) -> Result<Option<Self>, String> {
        Self::chosen(|| {
            let root = search(directory, directory).ok_or_else(|| none(directory))?;
            let mode = Mode::Reflink;
            Ok(Self { root, mode })
        })
    }

    fn chosen(found: impl FnOnce() -> Result<Self, String>) -> Result<Option<Self>, String> {
        let Some(setting) = variable(SETTING) else {
            return Ok(None);
        };
        let named = PathBuf::from(&setting);
        if named.is_absolute() {
            open(&named)?;
            return Ok(Some(Self {
                root: named,
                mode: Mode::Auto,
            }));
        }
        match setting.to_str() {
            Some("off" | "0") => Ok(None),
            Some("on" | "1") => found().map(Some),
            _ => Err(format!("{SETTING}={}: not understood", setting.display())),
        }
    }

    fn found(profile: &Path) -> Result<Self, String> {
        let note = profile.join(FOUND);
        if let Ok(text) = fs::read_to_string(&note) {
            let root = PathBuf::from(text.trim_end());
            if root.is_absolute() && open(&root).is_ok() {
                let mode = Mode::Reflink;
                return Ok(Self { root, mode });
            }
            let recent = fs::metadata(&note)
                .and_then(|stat| stat.modified())
                .is_ok_and(|then| then.elapsed().is_ok_and(|age| age < PATIENCE));
            if text == "-" && recent {
                return Err(none(profile));
            }
        }
        let found = search(profile, profile.parent().unwrap_or(profile));
        let text = found.as_ref().and_then(|root| root.to_str()).unwrap_or("-");
        let _ = note.parent().map(fs::create_dir_all);
        let _ = fs::write(&note, text);
        let root = found.ok_or_else(|| none(profile))?;
        let mode = Mode::Reflink;
        Ok(Self { root, mode })
    }

    /// The store no longer shares with this target (one of them was moved).
    pub fn forget(profile: &Path) {
        let _ = fs::remove_file(profile.join(FOUND));
    }

    pub fn key(&self, key: &str) -> PathBuf {
        self.root.join("units").join(&key[..2]).join(key)
    }

    /// A small file of the store's own memory; any trouble is "not known".
    pub fn remembered(&self, room: &str, name: &str) -> Option<String> {
        fs::read_to_string(self.root.join(room).join(name)).ok()
    }

    pub fn remember(&self, room: &str, name: &str, text: &str) -> Option<()> {
        let directory = self.root.join(room);
        make(&directory).ok()?;
        publish(&directory, name, text)
    }

    /// One line of JSON to the store's diary, from which `cargo cow stats` counts.
    pub fn tell(&self, event: &serde_json::Value) {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.root.join("events"));
        if let Ok(mut file) = file {
            let _ = file.write_all(format!("{event}\n").as_bytes());
        }
    }

    /// An empty directory to make an entry in, locked while its maker lives.
    pub fn workshop(&self) -> std::io::Result<(PathBuf, File)> {
        let parent = self.root.join("making");
        make(&parent)?;
        let path = parent.join(unique());
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = File::open(&path)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok((path, lock))
    }
}

/// A small file, whole or not there.
pub fn publish(directory: &Path, name: &str, text: &str) -> Option<()> {
    let aside = directory.join(format!(".{}", unique()));
    let mut file = create(&aside).ok()?;
    file.write_all(text.as_bytes())
        .and_then(|()| fs::rename(&aside, directory.join(name)))
        .inspect_err(|_| drop(fs::remove_file(&aside)))
        .ok()
}

/// A name that nobody else has.
pub fn unique() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds = now.map_or(0, |now| now.as_nanos());
    format!("{}-{nanoseconds:x}", std::process::id())
}

pub fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

pub fn make(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The store at `root`, made where there is none; refused where others could write to it.
fn open(root: &Path) -> Result<(), String> {
    own(root)?;
    let tag = root.join("CACHEDIR.TAG");
    if let Ok(mut file) = create(&tag) {
        let _ = file.write_all(TAG.as_bytes());
    }
    Ok(())
}

/// A directory of this user's alone, made where there is none.
pub fn own(root: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", root.display());
    if fs::symlink_metadata(root).is_err() {
        make(root).map_err(failed)?;
    }
    let stat = fs::symlink_metadata(root).map_err(failed)?;
    if !stat.is_dir() {
        return Err(format!("{}: not a directory", root.display()));
    }
    if stat.uid() != rustix::process::geteuid().as_raw() || stat.mode() & 0o077 != 0 {
        return Err(format!("{}: others could write to it", root.display()));
    }
    Ok(())
}

/// What is remembered for a user, whatever store asks; not made by asking.
pub fn cache() -> Option<PathBuf> {
    let cache = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))?;
    Some(cache.join("cargo-cow"))
}

fn none(beside: &Path) -> String {
    format!("no place shares data with {}", beside.display())
}

/// The user's cache, where it shares data with `beside`; else `.cargo-cow/warehouse` in the
/// highest directory, from `lowest` upwards, that is the user's and shares data with it.
fn search(beside: &Path, lowest: &Path) -> Option<PathBuf> {
    if let Some(cache) = cache() {
        let root = cache.join("warehouse");
        // Not made where it would be of no use.
        let existing = root.ancestors().find(|path| path.is_dir())?;
        if shares(beside, existing) && open(&root).is_ok() {
            return Some(root);
        }
    }
    let user = rustix::process::geteuid().as_raw();
    let mine = |path: &&Path| fs::metadata(path).is_ok_and(|stat| stat.uid() == user);
    let above: Vec<&Path> = lowest.ancestors().take_while(mine).collect();
    above.iter().rev().find_map(|directory| {
        let root = directory.join(".cargo-cow/warehouse");
        (shares(beside, directory) && open(&root).is_ok()).then_some(root)
    })
}

/// Whether a file in `from` can be reflinked into `to`: by doing it.
fn shares(from: &Path, to: &Path) -> bool {
    let name = format!(".cow-probe-{}", unique());
    let (source, dest) = (from.join(&name), to.join(format!("{name}-copy")));
    let result = (|| {
        let mut file = create(&source).ok()?;
        // More than Btrfs keeps inside its metadata.
        file.write_all(&[7; 8192]).ok()?;
        let made = create(&dest).ok()?;
        file::transfer(File::open(&source).ok()?, made, 8192, Mode::Reflink).ok()
    })();
    let _ = fs::remove_file(&source);
    let _ = fs::remove_file(&dest);
    result.is_some()
}
