//! Entries: what one compile read, said and made.
//!
//! `units/<2 digits>/<key>/<id>/` holds `entry.json` (one line, and its BLAKE3 as a second), the
//! outputs by number, and `seen`, which tells that they were found whole.  A directory is made
//! aside and renamed into place, complete; nothing in it is changed after that but the time of
//! `entry.json`, which is that of the last use.  Nothing is synced: what a crash tore apart fails
//! its digest at the first use after it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::inputs::{self, Identity};
use super::store::{Store, create};
use crate::clone_tree::Mode;
use crate::clone_tree::file::{self, Method};

const META: &str = "entry.json";
const SEEN: &str = "seen";

#[derive(Debug)]
pub struct Entry {
    pub directory: PathBuf,
    pub value: Value,
}

/// How the data of several files came.
#[derive(Default)]
pub struct Moved {
    pub reflinked: u64,
    pub copied: u64,
    pub reason: Option<&'static str>,
}

impl Moved {
    pub fn add(&mut self, method: Method, size: u64) {
        match method {
            Method::Reflinked => self.reflinked += size,
            Method::Copied(reason) => {
                self.copied += size;
                self.reason = reason.or(self.reason);
            }
        }
    }
}

pub struct Output<'a> {
    pub name: &'a str,
    pub size: u64,
    pub digest: &'a str,
    pub executable: bool,
}

impl Entry {
    /// All that are kept under a key, the one used last first.  Damaged ones are removed.
    pub fn all(store: &Store, key: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(store.key(key)) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for directory in entries.flatten().map(|entry| entry.path()) {
            let meta = directory.join(META);
            let used = fs::metadata(&meta).map_or(0, |stat| inputs::modified(&stat));
            match Self::read(&meta) {
                Some(value) => found.push((used, Self { directory, value })),
                None => remove(store, &directory),
            }
        }
        found.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        found.into_iter().map(|(_, entry)| entry).collect()
    }

    fn read(meta: &Path) -> Option<Value> {
        let stat = fs::symlink_metadata(meta).ok()?;
        if !stat.is_file() || stat.uid() != rustix::process::geteuid().as_raw() {
            return None;
        }
        let text = fs::read_to_string(meta).ok()?;
        let (line, check) = text.split_once('\n')?;
        (blake3::hash(line.as_bytes()).to_hex().as_str() == check.trim_end()).then_some(())?;
        serde_json::from_str(line).ok()
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.value.get(name)?.as_str()
    }

    pub fn list(&self, name: &str) -> &[Value] {
        self.value
            .get(name)
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }

    pub fn is_bound(&self) -> bool {
        self.value.get("bound") != Some(&Value::Bool(false))
    }

    pub fn outputs(&self) -> Option<Vec<Output<'_>>> {
        self.list("outputs").iter().map(output).collect()
    }

    /// Whether every output is what was put here.  Where a file is still the one that was found
    /// whole since this machine was started, it is not read again.
    pub fn is_whole(&self) -> bool {
        let Some(outputs) = self.outputs() else {
            return false;
        };
        let now = self.looks(outputs.len());
        if now.is_some() && fs::read_to_string(self.directory.join(SEEN)).ok() == now {
            return true;
        }
        let whole = outputs.iter().enumerate().all(|(index, output)| {
            File::open(self.file(index))
                .and_then(|mut file| inputs::digest(&mut file))
                .is_ok_and(|(size, digest)| size == output.size && digest == output.digest)
        });
        if whole {
            self.mark_seen(outputs.len());
        }
        whole
    }

    fn mark_seen(&self, count: usize) {
        let Some(text) = self.looks(count) else {
            return;
        };
        let aside = self
            .directory
            .join(format!(".{SEEN}-{}", std::process::id()));
        let written = create(&aside)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&aside, self.directory.join(SEEN)));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
    }

    fn looks(&self, count: usize) -> Option<String> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let mut text = boot;
        for index in 0..count {
            let stat = fs::symlink_metadata(self.file(index)).ok()?;
            text.push_str(&format!("{:?}\n", Identity::of(&stat)));
        }
        Some(text)
    }

    pub fn file(&self, index: usize) -> PathBuf {
        self.directory.join(index.to_string())
    }

    /// Open and locked against removal, and used now.  `None`: it is being removed.
    pub fn hold(&self) -> Option<File> {
        let file = File::open(self.directory.join(META)).ok()?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).ok()?;
        // Not renamed away before we had the lock.
        fs::metadata(self.directory.join(META)).ok()?;
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        let _ = rustix::fs::futimens(&file, &times);
        Some(file)
    }
}

fn output(value: &Value) -> Option<Output<'_>> {
    let [name, size, digest, executable] = value.as_array()?.as_slice() else {
        return None;
    };
    let name = name.as_str()?;
    // It becomes a file's name below the target.
    (!name.is_empty() && !name.contains('/') && name != "." && name != "..").then_some(())?;
    Some(Output {
        name,
        size: size.as_u64()?,
        digest: digest.as_str()?,
        executable: executable.as_bool()?,
    })
}

/// Puts an entry into the store.  `files` are (path, name, whether it is a program), `value` all
/// that is known besides.  Returns what was kept, with each file's digest.
pub fn keep(
    store: &Store,
    key: &str,
    id: &str,
    mut value: Value,
    files: &[(PathBuf, String, bool)],
) -> Result<(Moved, Vec<String>), String> {
    let (directory, _lock) = store
        .workshop()
        .map_err(|error| format!("{}: {error}", store.root.display()))?;
    let result = fill(store, &directory, &mut value, files).and_then(|kept| {
        let entry = Entry {
            directory: directory.clone(),
            value,
        };
        let line = entry.value.to_string();
        let check = blake3::hash(line.as_bytes()).to_hex();
        create(&directory.join(META))
            .and_then(|mut file| file.write_all(format!("{line}\n{check}\n").as_bytes()))
            .map_err(|error| error.to_string())?;
        entry.mark_seen(files.len());
        let place = store.key(key);
        super::store::make(&place).map_err(|error| error.to_string())?;
        match fs::rename(&directory, place.join(id)) {
            Ok(()) => Ok(kept),
            // The same, kept by another build meanwhile.
            Err(_) if place.join(id).is_dir() => {
                let _ = fs::remove_dir_all(&directory);
                Ok(kept)
            }
            Err(error) => Err(error.to_string()),
        }
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&directory);
    }
    result
}

fn fill(
    store: &Store,
    directory: &Path,
    value: &mut Value,
    files: &[(PathBuf, String, bool)],
) -> Result<(Moved, Vec<String>), String> {
    let mut moved = Moved::default();
    let mut digests = Vec::new();
    let mut outputs = Vec::new();
    for (index, (path, name, executable)) in files.iter().enumerate() {
        let said = |error: std::io::Error| format!("{}: {error}", path.display());
        let from = File::open(path).map_err(said)?;
        let size = from.metadata().map_err(said)?.size();
        let kept = directory.join(index.to_string());
        let to = create(&kept).map_err(said)?;
        let method = transfer(&from, &to, size, store.mode).map_err(said)?;
        moved.add(method, size);
        // Of what is kept: that is what will be given out.
        let (read, digest) = File::open(&kept)
            .and_then(|mut file| inputs::digest(&mut file))
            .map_err(said)?;
        if read != size {
            return Err(format!("{} is being written", path.display()));
        }
        to.set_permissions(fs::Permissions::from_mode(0o400))
            .map_err(said)?;
        outputs.push(json!([name, size, digest, executable]));
        digests.push(digest);
    }
    value["outputs"] = Value::Array(outputs);
    Ok((moved, digests))
}

pub fn transfer(from: &File, to: &File, size: u64, mode: Mode) -> std::io::Result<Method> {
    file::transfer(from, to, size, mode).map_err(std::io::Error::from)
}

/// Takes an entry out of the store, whole, unless somebody uses it.
pub fn remove(store: &Store, directory: &Path) {
    if let Ok(file) = File::open(directory.join(META))
        && rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
    {
        return;
    }
    let aside = store.root.join("making").join(super::store::unique());
    if super::store::make(&store.root.join("making")).is_ok()
        && fs::rename(directory, &aside).is_ok()
    {
        let _ = fs::remove_dir_all(&aside);
    }
}
