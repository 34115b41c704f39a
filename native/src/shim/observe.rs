//! What a compile read: `cow-observed.json` beside the unit's fingerprint.
//!
//! Written after a successful compile of a unit from a path.  An input counts only if what lies
//! there now is certainly what rustc read: its times are older than the start of the compile,
//! and stayed so while we hashed it.  A kernel stamps files with a clock that stands still for a
//! tick, so the start is read from that same clock (`CLOCK_REALTIME_COARSE`), and "older" is
//! strict: an edit after the start can never look older than the start.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::args::Compile;
use super::variable;
use crate::depinfo;

/// Nanoseconds since the epoch, of the clock that stamps files.
type Nanoseconds = i128;

/// Version of `cow-observed.json`.
const FORMAT: u32 = 1;

/// From Cargo's `invoked.timestamp` to our start, on one clock.
const LONGEST_LAUNCH: Nanoseconds = 1_000_000_000;

/// A compile that shall be observed.
pub struct Plan {
    /// Cargo's fingerprint directory of the unit.
    unit: PathBuf,
    /// mtime of `invoked.timestamp`, which Cargo writes just before it runs us: it tells to
    /// which run of the unit the observation belongs.
    invoked: Nanoseconds,
    dep_info: PathBuf,
    directory: PathBuf,
    /// What lies below these never changes (registry, git dependencies, the toolchain).
    unchanging: Vec<PathBuf>,
}

pub fn cargo_home() -> Option<PathBuf> {
    variable("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cargo")))
}

impl Plan {
    /// `None`: nothing to observe, so the shim need not stay.
    pub fn of(compile: Compile) -> Option<Self> {
        let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
        let mut unchanging = dependency_sources();
        if unchanging.iter().any(|root| package.starts_with(root)) {
            return None;
        }
        let unit = unit_directory(
            &compile.out_dir,
            &compile.extra_filename,
            variable("CARGO_PKG_NAME").as_deref(),
        )?;
        let invoked = invoked(&unit)?;
        unchanging.extend(sysroots(&compile));
        Some(Self {
            unit,
            invoked,
            dep_info: compile.dep_info?,
            directory: std::env::current_dir().ok()?,
            unchanging,
        })
    }

    /// The start of the compile.  Where a build script may have written into `OUT_DIR` a moment
    /// ago, its files could not be told from later edits, because the clock that stamps files
    /// lags behind by a tick (4 ms at 250 Hz) and more: under load every tenth file was stamped
    /// later than the next tick said it was.  So wait until that clock has passed the present.
    pub fn start(&self) -> Nanoseconds {
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

    /// From which stamp on an input may have been changed since the compile began.
    ///
    /// Cargo compares inputs with `invoked.timestamp`, both stamped by the filesystem.  Where that
    /// is a server whose clock lags behind ours, our own start would make us blinder than Cargo;
    /// so where the two are far apart, the earlier one counts.
    fn since(&self, started: Nanoseconds) -> Nanoseconds {
        if started - self.invoked > LONGEST_LAUNCH {
            self.invoked
        } else {
            started
        }
    }

    /// After the compile that began at `started` succeeded.  Returns a line for the log.
    pub fn write(&self, started: Nanoseconds) -> Result<String, String> {
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        let stat = fs::metadata(&self.dep_info).map_err(failed(&self.dep_info))?;
        let since = self.since(started);
        if modified(&stat) < earliest_stamp(modified(&stat), since) {
            return Err(format!("{}: not of this run", self.dep_info.display()));
        }
        let text = fs::read_to_string(&self.dep_info).map_err(failed(&self.dep_info))?;
        let dep_info = depinfo::parse(&text)
            .ok_or_else(|| format!("{}: malformed", self.dep_info.display()))?;
        let directory = self
            .directory
            .to_str()
            .ok_or("the working directory is not UTF-8")?;
        let mut hasher = Hasher {
            started: since,
            moved: HashMap::new(),
        };
        let mut files = Vec::new();
        for name in &dep_info.files {
            let path = self.directory.join(name);
            if self.unchanging.iter().any(|root| path.starts_with(root)) {
                continue;
            }
            match hasher.hash(&path) {
                Ok((size, digest)) => files.push(json!([name, size, digest])),
                Err(reason) => super::log(&format!("left out {}: {reason}", path.display())),
            }
        }
        if invoked(&self.unit) != Some(self.invoked) {
            return Err(format!("{}: invoked again", self.unit.display()));
        }
        let observation = json!({
            "format": FORMAT,
            "invoked": i64::try_from(self.invoked).map_err(|error| error.to_string())?,
            "cwd": directory,
            "files": &files,
            "env": dep_info.environment,
        });
        // Written aside and renamed, so that a reader sees all or nothing.  Not synced: after a
        // crash a torn file does not parse, and a missing one only means "unknown".
        let aside = self
            .unit
            .join(format!(".cow-observed.{}", std::process::id()));
        let result = File::create_new(&aside)
            .and_then(|mut file| writeln!(file, "{observation}"))
            .and_then(|()| fs::rename(&aside, self.unit.join("cow-observed.json")));
        result.map_err(|error| {
            let _ = fs::remove_file(&aside);
            failed(&aside)(error)
        })?;
        let unit = self.unit.display();
        Ok(format!(
            "observed {unit}: {} of {} files",
            files.len(),
            dep_info.files.len()
        ))
    }
}

/// Where Cargo unpacks dependencies, as named and as resolved.
fn dependency_sources() -> Vec<PathBuf> {
    let Some(home) = cargo_home() else {
        return Vec::new();
    };
    let mut roots: Vec<PathBuf> = ["registry", "git"].map(|part| home.join(part)).into();
    if let Ok(resolved) = home.canonicalize()
        && resolved != home
    {
        roots.extend(["registry", "git"].map(|part| resolved.join(part)));
    }
    roots
}

/// The toolchain's own files: `--sysroot`, or two levels above rustc where that looks like one.
fn sysroots(compile: &Compile) -> Vec<PathBuf> {
    let beside = compile.rustc.parent().and_then(Path::parent);
    compile
        .sysroot
        .as_deref()
        .into_iter()
        .chain(beside.filter(|root| root.join("lib/rustlib").is_dir()))
        .filter(|root| root.is_absolute())
        .map(Path::to_owned)
        .collect()
}

/// Cargo's fingerprint directory of the unit that compiles into `out_dir`.
///
/// Layouts of Cargo 1.95 (`src/cargo/core/compiler/layout.rs` and `compilation_files.rs`).  In
/// the old one a unit without `-C extra-filename` (a path package's cdylib or dylib) does not
/// tell its hash, and is not observed.
fn unit_directory(
    out_dir: &Path,
    extra_filename: &OsStr,
    package_name: Option<&OsStr>,
) -> Option<PathBuf> {
    let parent = out_dir.parent()?;
    let name = out_dir.file_name()?;
    if name == "out" {
        // <profile>/build/<package>/<hash>/out
        let build = parent.parent()?.parent()?;
        return (build.file_name()? == "build").then(|| parent.join("fingerprint"));
    }
    let hash = super::strip_prefix(extra_filename, "-").filter(|hash| !hash.is_empty())?;
    if name == "deps" || name == "examples" {
        let mut unit = package_name?.to_owned();
        unit.push("-");
        unit.push(hash);
        return Some(parent.join(".fingerprint").join(unit));
    }
    // A build script: <profile>/build/<package>-<hash>
    (parent.file_name()? == "build" && name.as_bytes().ends_with(extra_filename.as_bytes()))
        .then(|| parent.parent().map(|p| p.join(".fingerprint").join(name)))?
}

fn invoked(unit: &Path) -> Option<Nanoseconds> {
    let stat = fs::metadata(unit.join("invoked.timestamp")).ok()?;
    Some(modified(&stat))
}

fn nanoseconds(seconds: i64, rest: i64) -> Nanoseconds {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

fn modified(stat: &Metadata) -> Nanoseconds {
    nanoseconds(stat.mtime(), stat.mtime_nsec())
}

fn changed(stat: &Metadata) -> Nanoseconds {
    nanoseconds(stat.ctime(), stat.ctime_nsec())
}

fn clock(id: ClockId) -> Nanoseconds {
    let now = clock_gettime(id);
    nanoseconds(now.tv_sec, now.tv_nsec)
}

fn file_clock() -> Nanoseconds {
    clock(ClockId::RealtimeCoarse)
}

/// The smallest stamp that something done at `started` or later can have, given that `stamp` is
/// one of that filesystem's: a stamp of whole seconds may come from a filesystem that keeps no
/// more (at worst two seconds, as FAT does).
fn earliest_stamp(stamp: Nanoseconds, started: Nanoseconds) -> Nanoseconds {
    if stamp % 1_000_000_000 == 0 {
        started - 2_000_000_000
    } else {
        started
    }
}

struct Hasher {
    started: Nanoseconds,
    /// Directory → whether it, or one above it, was moved since the start.
    moved: HashMap<PathBuf, bool>,
}

impl Hasher {
    /// Size and BLAKE3, or why the file counts as unknown.
    fn hash(&mut self, path: &Path) -> Result<(u64, String), String> {
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
        let mut hasher = blake3::Hasher::new();
        let mut buffer = [0; 64 * 1024];
        let mut size = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    size += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        // By name this time: what the name stands for now must be what was read.
        let after = fs::metadata(path).map_err(said)?;
        let identity = |stat: &Metadata| {
            let times = (modified(stat), changed(stat));
            (stat.dev(), stat.ino(), stat.size(), times)
        };
        if identity(&before) != identity(&after) || size != after.size() {
            return Err("changed while it was read".to_owned());
        }
        let stamps = [modified(&after), changed(&after)];
        if stamps
            .iter()
            .any(|stamp| *stamp >= earliest_stamp(*stamp, self.started))
        {
            return Err("changed since the compile began".to_owned());
        }
        let moved = path.parent().is_some_and(|parent| self.was_moved(parent));
        if moved || self.is_new_link(path) {
            return Err("its name stands for something else since the compile began".to_owned());
        }
        Ok((size, hasher.finalize().to_hex().to_string()))
    }

    /// A directory renamed into place brings files with old times.  The rename shows in its
    /// ctime alone; making or removing an entry shows in both of its times.
    fn was_moved(&mut self, directory: &Path) -> bool {
        if let Some(known) = self.moved.get(directory) {
            return *known;
        }
        let renamed = fs::metadata(directory).map_or(true, |stat| {
            changed(&stat) >= earliest_stamp(changed(&stat), self.started)
                && changed(&stat) != modified(&stat)
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
            stat.is_symlink() && changed(&stat) >= earliest_stamp(changed(&stat), self.started)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(out_dir: &str, extra: &str, package: &str) -> Option<PathBuf> {
        unit_directory(
            Path::new(out_dir),
            OsStr::new(extra),
            Some(OsStr::new(package)),
        )
    }

    #[test]
    fn the_unit_follows_from_the_output() {
        let found = |path: &str| Some(PathBuf::from(path));
        assert_eq!(
            unit("/t/debug/deps", "-0a", "app"),
            found("/t/debug/.fingerprint/app-0a")
        );
        assert_eq!(
            unit("/t/x86_64-unknown-linux-gnu/release/examples", "-0a", "app"),
            found("/t/x86_64-unknown-linux-gnu/release/.fingerprint/app-0a")
        );
        assert_eq!(
            unit("/t/debug/build/my-app-0a", "-0a", "my-app"),
            found("/t/debug/.fingerprint/my-app-0a")
        );
        assert_eq!(
            unit("/t/debug/build/app/0a/out", "-0a", "app"),
            found("/t/debug/build/app/0a/fingerprint")
        );
    }

    #[test]
    fn other_directories_are_no_units() {
        assert_eq!(unit("/t/debug/deps", "", "app"), None);
        assert_eq!(unit("/tmp", "-0a", "app"), None);
        assert_eq!(unit("/t/debug/build/app-0b", "-0a", "app"), None);
        assert_eq!(unit("/somewhere/out", "-0a", "app"), None);
    }

    #[test]
    fn whole_seconds_are_distrusted() {
        let second = 1_000_000_000;
        assert_eq!(earliest_stamp(5 * second, 6 * second + 5), 4 * second + 5);
        assert_eq!(earliest_stamp(5 * second + 1, 6 * second), 6 * second);
    }
}
