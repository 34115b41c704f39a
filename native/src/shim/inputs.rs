//! Whether what lies in a file now is certainly what rustc read.
//!
//! An input counts only if its times are older than the start of the compile, and stayed so while
//! we hashed it.  A kernel stamps files with a clock that stands still for a tick, so the start
//! is read from that same clock (`CLOCK_REALTIME_COARSE`), and "older" is strict: an edit after
//! the start can never look older than the start.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::variable;

/// Nanoseconds since the epoch, of the clock that stamps files.
pub type Nanoseconds = i128;

/// Between two stamps of one clock, with room to spare.
pub const GRANULE: Nanoseconds = 20_000_000;

/// The start of a compile.  Where a build script may have written into `OUT_DIR` a moment ago, its
/// files could not be told from later edits, because the clock that stamps files lags behind by a
/// tick (4 ms at 250 Hz) and more: under load every tenth file was stamped later than the next
/// tick said it was.  So wait until that clock has passed the present.
pub fn start() -> Nanoseconds {
    if variable("OUT_DIR").is_some() {
        let present = clock(ClockId::Realtime);
        for _ in 0..100 {
            if file_clock() > present {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    file_clock()
}

fn nanoseconds(seconds: i64, rest: i64) -> Nanoseconds {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

pub fn modified(stat: &Metadata) -> Nanoseconds {
    nanoseconds(stat.mtime(), stat.mtime_nsec())
}

pub fn changed(stat: &Metadata) -> Nanoseconds {
    nanoseconds(stat.ctime(), stat.ctime_nsec())
}

fn clock(id: ClockId) -> Nanoseconds {
    let now = clock_gettime(id);
    nanoseconds(now.tv_sec, now.tv_nsec)
}

pub fn file_clock() -> Nanoseconds {
    clock(ClockId::RealtimeCoarse)
}

/// The smallest stamp that something done at `started` or later can have, given that `stamp` is
/// one of that filesystem's: a stamp of whole seconds may come from a filesystem that keeps no
/// more (at worst two seconds, as FAT does).
pub fn earliest_stamp(stamp: Nanoseconds, started: Nanoseconds) -> Nanoseconds {
    if stamp % 1_000_000_000 == 0 {
        started - 2_000_000_000
    } else {
        started
    }
}

/// Which file, in which version: equal for two looks means that nobody wrote to it in between,
/// given that its times lie behind the clock at the first look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub modified: Nanoseconds,
    pub changed: Nanoseconds,
}

impl Identity {
    pub fn of(stat: &Metadata) -> Self {
        Self {
            device: stat.dev(),
            inode: stat.ino(),
            size: stat.size(),
            modified: modified(stat),
            changed: changed(stat),
        }
    }
}

/// BLAKE3 (hex) of what is left to read, and its length.
pub fn digest(file: &mut impl Read) -> std::io::Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = [0; 64 * 1024];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, hasher.finalize().to_hex().to_string())),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a compile read from one file.
#[derive(Clone, Debug)]
pub struct Input {
    pub digest: String,
    pub identity: Identity,
}

/// Hashes inputs of one compile, each once.
pub struct Hasher {
    started: Nanoseconds,
    known: HashMap<PathBuf, Result<Input, String>>,
    /// Directory → whether it, or one above it, was moved since the start.
    moved: HashMap<PathBuf, bool>,
}

impl Hasher {
    /// For a compile that began at `started`.
    pub fn new(started: Nanoseconds) -> Self {
        Self {
            started,
            known: HashMap::new(),
            moved: HashMap::new(),
        }
    }

    /// What the compile read from `path`, or why the file counts as unknown.
    pub fn hash(&mut self, path: &Path) -> Result<Input, String> {
        if let Some(known) = self.known.get(path) {
            return known.clone();
        }
        let result = self.read(path);
        self.known.insert(path.to_owned(), result.clone());
        result
    }

    /// BLAKE3 (hex) of the sorted names in a directory, each followed by a zero, as the compile
    /// found them; or why they count as unknown.
    pub fn names(&mut self, directory: &Path) -> Result<String, String> {
        let said = |error: std::io::Error| error.to_string();
        let before = Identity::of(&fs::metadata(directory).map_err(said)?);
        let entries = fs::read_dir(directory).map_err(said)?;
        let names: Result<Vec<_>, _> = entries
            .map(|entry| entry.map(|it| it.file_name()))
            .collect();
        let mut names = names.map_err(said)?;
        names.sort();
        let mut hasher = blake3::Hasher::new();
        for name in names {
            hasher.update(name.as_bytes());
            hasher.update(b"\0");
        }
        let after = Identity::of(&fs::metadata(directory).map_err(said)?);
        if before != after || self.is_since(after.modified) || self.was_moved(directory) {
            return Err("changed since the compile began".to_owned());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn read(&mut self, path: &Path) -> Result<Input, String> {
        let said = |error: std::io::Error| error.to_string();
        // NONBLOCK: a tracked path may be a pipe, and opening it must not wait.
        let mut file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(said)?;
        let before = file.metadata().map_err(said)?;
        if !before.is_file() {
            return Err("not a file".to_owned());
        }
        let (size, digest) = digest(&mut file).map_err(said)?;
        // By name this time: what the name stands for now must be what was read.
        let identity = Identity::of(&fs::metadata(path).map_err(said)?);
        if Identity::of(&before) != identity || size != identity.size {
            return Err("changed while it was read".to_owned());
        }
        if self.is_since(identity.modified) || self.is_since(identity.changed) {
            return Err("changed since the compile began".to_owned());
        }
        let moved = path.parent().is_some_and(|parent| self.was_moved(parent));
        if moved || self.is_new_link(path) {
            return Err("its name stands for something else since the compile began".to_owned());
        }
        Ok(Input { digest, identity })
    }

    fn is_since(&self, stamp: Nanoseconds) -> bool {
        stamp >= earliest_stamp(stamp, self.started)
    }

    /// A directory renamed into place brings files with old times.  The rename shows in its
    /// ctime alone; making or removing an entry shows in both of its times.
    fn was_moved(&mut self, directory: &Path) -> bool {
        if let Some(known) = self.moved.get(directory) {
            return *known;
        }
        let renamed = fs::metadata(directory).map_or(true, |stat| {
            self.is_since(changed(&stat)) && changed(&stat) != modified(&stat)
        });
        let moved = renamed
            || self.is_new_link(directory)
            || directory
                .parent()
                .is_some_and(|parent| self.was_moved(parent));
        self.moved.insert(directory.to_owned(), moved);
        moved
    }

    /// A symlink made since the start may lead to old files.
    fn is_new_link(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).map_or(true, |stat| {
            stat.is_symlink() && self.is_since(changed(&stat))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_are_distrusted() {
        let second = 1_000_000_000;
        assert_eq!(earliest_stamp(5 * second, 6 * second + 5), 4 * second + 5);
        assert_eq!(earliest_stamp(5 * second + 1, 6 * second), 6 * second);
    }
}
