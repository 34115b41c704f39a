//! Entries: what one compile read, said and made.
//!
//! `units/<2 digits>/<key>/<id>/` holds `entry.json` (one line, and its BLAKE3 as a second), the
//! outputs by number, `seen`, which tells that they were found whole, and `holds`, whether they hold
//! the place that they were made at, for who asked.  A directory is made
//! aside and renamed into place, complete; nothing in it is changed after that but the time of
//! `entry.json`, which is that of the last use.  Nothing is synced: what a crash tore apart fails
//! its digest at the first use after it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::super::inputs::{self, Identity};
use super::claim::Claim;
use super::place::{self, Place};
use super::store::{Store, create};
use crate::clone_tree::Mode;
use crate::clone_tree::file::{self, Method};

/// Version of what an entry says of itself.  2: with what was observed (`hidden`).  3: with the place
/// of a path package.
pub const FORMAT: u32 = 3;

/// Why an entry is not ours to use, or to remove.
pub const FOREIGN: &str = "it is an entry of another version";

const META: &str = "entry.json";
const SEEN: &str = "seen";
const HOLDS: &str = "holds";

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
    pub fn join(&mut self, other: &Self) {
        self.reflinked += other.reflinked;
        self.copied += other.copied;
        self.reason = other.reason.or(self.reason);
    }

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
            // One that was put here from another key is as good as damaged.
            let is_own = |value: &Value| value.get("key").is_none_or(|its| its == key);
            match Self::read(&meta).filter(is_own) {
                Some(value) if value["format"] == FORMAT => {
                    found.push((used, Self { directory, value }));
                }
                // Another version's, which goes on using it.
                Some(_) => {}
                None => remove(store, &directory),
            }
        }
        found.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        found.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The entry in `directory`; or why there is none that is ours to use.
    pub fn at(directory: &Path) -> Result<Self, &'static str> {
        let value = Self::read(&directory.join(META)).ok_or("damaged")?;
        if value["format"] != FORMAT {
            return Err(FOREIGN);
        }
        let directory = directory.to_owned();
        Ok(Self { directory, value })
    }

    fn read(meta: &Path) -> Option<Value> {
        let mut file = regular(meta).ok()?;
        if file.metadata().ok()?.uid() != rustix::process::geteuid().as_raw() {
            return None;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
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
        let inside = self.text("kind") == Some(super::units::KIND);
        let outputs = self.list("outputs").iter();
        outputs.map(|value| output(value, inside)).collect()
    }

    /// Whether every output is what was put here.  Where a file is still the one that was found
    /// whole since this machine was started, it is not read again.
    pub fn is_whole(&self) -> bool {
        let Some(outputs) = self.outputs() else {
            return false;
        };
        let now = self.looks(outputs.len());
        let seen = regular(&self.directory.join(SEEN)).and_then(std::io::read_to_string);
        if now.is_some() && seen.ok() == now {
            return true;
        }
        let whole = outputs.iter().enumerate().all(|(index, output)| {
            regular(&self.file(index))
                .and_then(|mut file| inputs::digest(&mut file))
                .is_ok_and(|(size, digest)| size == output.size && digest == output.digest)
        });
        if whole {
            self.mark_seen(outputs.len());
        }
        whole
    }

    /// Writes what is known of it beside its outputs, which are whole.
    pub fn seal(&self) -> std::io::Result<()> {
        let line = self.value.to_string();
        let check = blake3::hash(line.as_bytes()).to_hex();
        let mut file = create(&self.directory.join(META))?;
        file.write_all(format!("{line}\n{check}\n").as_bytes())?;
        self.mark_seen(self.list("outputs").len());
        Ok(())
    }

    fn mark_seen(&self, count: usize) {
        if let Some(text) = self.looks(count) {
            self.mark(SEEN, &text);
        }
    }

    fn mark(&self, name: &str, text: &str) {
        let aside = self
            .directory
            .join(format!(".{name}-{}", std::process::id()));
        let written = create(&aside)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&aside, self.directory.join(name)));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
    }

    /// Whether its outputs, found whole, hold the place that it was compiled at.  That is looked for
    /// when another place asks, and once.
    pub fn holds(&self, place: &Place) -> bool {
        // Of these outputs: nobody else's word.
        let question = blake3::hash(self.value.to_string().as_bytes()).to_hex();
        let answer = |holds: bool| format!("{question} {}\n", if holds { "yes" } else { "no" });
        let known = regular(&self.directory.join(HOLDS)).and_then(std::io::read_to_string);
        for holds in [true, false] {
            if known.as_ref().is_ok_and(|known| *known == answer(holds)) {
                return holds;
            }
        }
        let holds = place::holds(self, place);
        self.mark(HOLDS, &answer(holds));
        holds
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
        let file = regular(&self.directory.join(META)).ok()?;
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

/// Whether a name stays below the directory that it is put into.
pub fn is_inside(name: &str) -> bool {
    let normal = |part| matches!(part, std::path::Component::Normal(_));
    !name.is_empty() && Path::new(name).components().all(normal)
}

/// `inside`: it may lie in directories below.
fn output(value: &Value, inside: bool) -> Option<Output<'_>> {
    let [name, size, digest, executable] = value.as_array()?.as_slice() else {
        return None;
    };
    let name = name.as_str()?;
    // It becomes a file's name below the target.
    (is_inside(name) && (inside || !name.contains('/'))).then_some(())?;
    Some(Output {
        name,
        size: size.as_u64()?,
        digest: digest.as_str()?,
        executable: executable.as_bool()?,
    })
}

/// One output of a compile, as it was when it was looked at.
pub struct Made {
    pub path: PathBuf,
    pub name: String,
    pub executable: bool,
    pub digest: String,
    pub looks: String,
}

/// An entry that is to be put into the store.
///
/// A reflink waits until the data of a new file is on the disk.  A build shall not: so the work is
/// written down in a directory of the store and done by a process of its own (`--keep`), which
/// ends when it is done.
pub struct Job<'a> {
    pub key: &'a str,
    pub id: &'a str,
    /// All that is known of the entry but its outputs.
    pub value: Value,
    pub made: &'a [Made],
    /// For the diary, when it is done.
    pub event: Value,
    /// How many entries the key may have.
    pub most: usize,
}

const JOB: &str = "job.json";

impl Job<'_> {
    /// Hands the work over; where no process can be started, it is done at once.
    ///
    /// The claim goes with it; where it stays, the work was not taken over.
    pub fn hand_over(self, store: &Store, claim: &mut Option<Claim>) -> Result<(), String> {
        let said = |error: std::io::Error| format!("{}: {error}", store.root.display());
        let (directory, lock) = store.workshop().map_err(said)?;
        let made: Vec<Value> = self
            .made
            .iter()
            .map(|made| {
                let path = made.path.to_str().ok_or("not UTF-8")?;
                Ok(json!([
                    path,
                    made.name,
                    made.executable,
                    made.digest,
                    made.looks
                ]))
            })
            .collect::<Result<_, &str>>()?;
        let job = json!({
            "root": store.root.to_str().ok_or("not UTF-8")?,
            "copies": store.mode == Mode::Auto,
            "key": self.key,
            "id": self.id,
            "value": self.value,
            "made": made,
            "claim": claim.as_ref().and_then(Claim::name),
            "event": self.event,
            "most": self.most,
        });
        let written = create(&directory.join(JOB))
            .and_then(|mut file| file.write_all(job.to_string().as_bytes()));
        if let Err(error) = written {
            let _ = fs::remove_dir_all(&directory);
            return Err(said(error));
        }
        drop(lock);
        let started = std::env::current_exe().and_then(|program| {
            let stdin = claim.as_ref().map(Claim::handle).transpose()?;
            Command::new(program)
                .arg("--keep")
                .arg(&directory)
                .current_dir("/")
                .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // Where Cargo has macros looked for; nothing of ours is there.
                .env_remove("LD_LIBRARY_PATH")
                // What ends the build from the terminal need not end this.
                .process_group(0)
                .spawn()
        });
        match started {
            Ok(_) => {
                drop(claim.take());
                Ok(())
            }
            Err(_) => finish(&directory, claim.take()),
        }
    }
}

/// Does what a `Job` wrote down in `directory`; whatever comes of it, the directory is gone then.
///
/// `claim`: that on the unit; else the one that came as stdin, if any.
pub fn finish(directory: &Path, mut claim: Option<Claim>) -> Result<(), String> {
    let result = carry_out(directory, &mut claim);
    if let Some(claim) = claim {
        claim.end(result.is_ok());
    }
    let _ = fs::remove_dir_all(directory);
    result
}

fn carry_out(directory: &Path, claim: &mut Option<Claim>) -> Result<(), String> {
    let said = |error: std::io::Error| error.to_string();
    let lock = File::open(directory).map_err(said)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| error.to_string())?;
    let text = fs::read_to_string(directory.join(JOB)).map_err(said)?;
    let mut job: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let word = |name: &str| job[name].as_str().ok_or("malformed").map(str::to_owned);
    let (key, id) = (word("key")?, word("id")?);
    let store = Store {
        root: word("root")?.into(),
        mode: if job["copies"] == true {
            Mode::Auto
        } else {
            Mode::Reflink
        },
    };
    if claim.is_none() {
        *claim = job["claim"]
            .as_str()
            .and_then(|name| Claim::inherited(&store, name));
    }
    let most = job["most"].as_u64().map_or(1, |most| most as usize);
    let mut event = job["event"].take();
    let kept = (|| {
        let made: Vec<Made> = job["made"]
            .as_array()
            .and_then(|made| made.iter().map(made_of).collect())
            .ok_or("malformed")?;
        let mut value = job["value"].take();
        let moved = fill(&store, directory, &mut value, &made)?;
        let entry = Entry {
            directory: directory.to_owned(),
            value,
        };
        entry.seal().map_err(said)?;
        fs::remove_file(directory.join(JOB)).map_err(said)?;
        let place = store.key(&key);
        super::store::make(&place).map_err(said)?;
        match fs::rename(directory, place.join(&id)) {
            // The same, kept by another build meanwhile.
            Err(_) if place.join(&id).is_dir() => Ok(moved),
            Err(error) => Err(error.to_string()),
            Ok(()) => Ok(moved),
        }
    })();
    if let Some(claim) = claim.take() {
        claim.end(kept.is_ok());
    }
    match &kept {
        Ok(moved) => {
            event["what"] = json!("kept");
            event["reflinked"] = json!(moved.reflinked);
            event["copied"] = json!(moved.copied);
            event["copied_reason"] = json!(moved.reason);
            prune(&store, &key, most);
        }
        Err(reason) => {
            event["what"] = json!("not-kept");
            event["reason"] = json!(reason);
        }
    }
    store.tell(&event);
    super::tidy::consider(&store.root);
    kept.map(|_| ())
}

/// Lets the entries of a key go that were used longest ago: of each place that it was compiled at
/// `most` stay.
pub fn prune(store: &Store, key: &str, most: usize) {
    let mut places: HashMap<String, usize> = HashMap::new();
    for entry in Entry::all(store, key) {
        let count = places.entry(entry.value["place"].to_string()).or_default();
        *count += 1;
        if *count > most {
            remove(store, &entry.directory);
        }
    }
}

fn made_of(value: &Value) -> Option<Made> {
    let [path, name, executable, digest, looks] = value.as_array()?.as_slice() else {
        return None;
    };
    Some(Made {
        path: path.as_str()?.into(),
        name: name.as_str()?.to_owned(),
        executable: executable.as_bool()?,
        digest: digest.as_str()?.to_owned(),
        looks: looks.as_str()?.to_owned(),
    })
}

fn fill(
    store: &Store,
    directory: &Path,
    value: &mut Value,
    files: &[Made],
) -> Result<Moved, String> {
    let mut moved = Moved::default();
    let mut outputs = Vec::new();
    for (index, made) in files.iter().enumerate() {
        let said = |error: std::io::Error| format!("{}: {error}", made.path.display());
        let from = File::open(&made.path).map_err(said)?;
        let size = from.metadata().map_err(said)?.size();
        let to = create(&directory.join(index.to_string())).map_err(said)?;
        moved.add(transfer(&from, &to, size, store.mode).map_err(said)?, size);
        // Not written to since it was hashed: so that is what was taken.  Cargo sets the mtime
        // of metadata back; then the copy has to say what it is.
        let stat = from.metadata().map_err(said)?;
        let is_same = looks(&stat) == made.looks || {
            let (read, digest) = File::open(directory.join(index.to_string()))
                .and_then(|mut file| inputs::digest(&mut file))
                .map_err(said)?;
            read == size && digest == made.digest
        };
        if !is_same {
            return Err(format!("{} was written to", made.path.display()));
        }
        to.set_permissions(fs::Permissions::from_mode(0o400))
            .map_err(said)?;
        outputs.push(json!([made.name, size, made.digest, made.executable]));
    }
    value["outputs"] = Value::Array(outputs);
    Ok(moved)
}

/// Whether a file was written to in between: another link to it (Cargo makes one for programs)
/// changes its ctime, and nothing else does without its mtime, but who sets that back.
pub fn looks(stat: &fs::Metadata) -> String {
    format!(
        "{}:{}:{}:{}",
        stat.dev(),
        stat.ino(),
        stat.size(),
        inputs::modified(stat)
    )
}

pub fn transfer(from: &File, to: &File, size: u64, mode: Mode) -> std::io::Result<Method> {
    file::transfer(from, to, size, mode).map_err(std::io::Error::from)
}

/// A file of an entry, opened.  Whatever else lies there is an error: to open a pipe would be to wait.
pub fn regular(path: &Path) -> std::io::Result<File> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(std::io::Error::other("not a file"))
    }
}

/// Takes an entry out of the store, whole, unless somebody uses it.
pub fn remove(store: &Store, directory: &Path) {
    if let Ok(file) = regular(&directory.join(META))
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
