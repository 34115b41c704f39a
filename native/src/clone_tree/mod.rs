//! `--clone-tree`: a directory tree made again elsewhere, sharing extents where it can.
//!
//! What is kept: file contents and holes, symlinks, hard links within the tree, modes, owners
//! where permitted, times to the nanosecond, extended attributes.  Rustc's incremental state and
//! Cargo's uplifted files are hard links within a target, so losing them would double its size.
//!
//! Every name in the destination is created exclusively: nothing is truncated, replaced or
//! removed.  A run that fails leaves what it made so far; the caller cloned into a temporary
//! name and removes that.  Three steps: files, links and directories by parallel workers; then
//! further names of files with several; then the directories' own times and modes, because
//! every entry made in a directory changes its time.

mod attributes;
pub mod file;
mod walk;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, Mode as FileMode, OFlags, RawDir};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::verbs::Failure;
use attributes::Attributes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Reflink; a file that cannot be is copied and counted with the reason.
    Auto,
    /// Reflink; the first file that cannot be ends the run.
    Reflink,
    /// Read and write, so that no extent is shared.
    Copy,
}

#[derive(Debug)]
pub struct Options {
    pub mode: Mode,
    /// Relative to the source; a directory is left out with all below it.
    pub exclude: Vec<PathBuf>,
    /// Nothing but these is taken, and the directories on the way to them.
    pub only: Option<Selection>,
    pub threads: Option<usize>,
    pub source: PathBuf,
    pub destination: PathBuf,
}

/// Parts of a tree: files, and directories with all below them.  Relative to the source.
#[derive(Debug, Default)]
pub struct Selection {
    named: HashSet<PathBuf>,
    on_the_way: HashSet<PathBuf>,
}

impl Selection {
    /// Names that do not exist are no error: a live tree changes.
    pub fn new(names: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut selection = Self::default();
        for name in names {
            let mut above = name.parent();
            while let Some(directory) = above {
                if !selection.on_the_way.insert(directory.to_path_buf()) {
                    break;
                }
                above = directory.parent();
            }
            selection.named.insert(name);
        }
        selection
    }

    fn names(&self, path: &Path) -> bool {
        self.named.contains(path)
    }

    fn leads_on(&self, path: &Path) -> bool {
        self.on_the_way.contains(path)
    }
}

/// What one worker did.
#[derive(Debug, Default)]
struct Tally {
    files: u64,
    directories: u64,
    symlinks: u64,
    hard_links: u64,
    reflinked_files: u64,
    reflinked_bytes: u64,
    copied_files: u64,
    copied_bytes: u64,
    copied_reasons: BTreeMap<&'static str, u64>,
    vanished: u64,
    changed: u64,
    special: u64,
    attributes_dropped: u64,
    excluded: u64,
    pending_links: Vec<PendingLink>,
    pending_directories: Vec<PendingDirectory>,
}

/// A further name of a file that has been cloned under another one.
#[derive(Debug)]
struct PendingLink {
    inode: walk::Inode,
    path: PathBuf,
}

#[derive(Debug)]
struct PendingDirectory {
    path: PathBuf,
    attributes: Attributes,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.directories += other.directories;
        self.symlinks += other.symlinks;
        self.hard_links += other.hard_links;
        self.reflinked_files += other.reflinked_files;
        self.reflinked_bytes += other.reflinked_bytes;
        self.copied_files += other.copied_files;
        self.copied_bytes += other.copied_bytes;
        for (reason, count) in other.copied_reasons {
            *self.copied_reasons.entry(reason).or_default() += count;
        }
        self.vanished += other.vanished;
        self.changed += other.changed;
        self.special += other.special;
        self.attributes_dropped += other.attributes_dropped;
        self.excluded += other.excluded;
        self.pending_links.extend(other.pending_links);
        self.pending_directories.extend(other.pending_directories);
    }
}

pub fn run(options: &Options) -> Result<Value, Failure> {
    let started = Instant::now();
    // Modes are set as they are in the source; the caller's mask has no say.
    rustix::process::umask(FileMode::empty());
    let source = open_directory(&options.source, "open the source")?;
    let destination = make_destination(&options.source, &options.destination)?;
    let walk::Walked {
        mut tally,
        first_names,
    } = walk::clone(options, source, &destination)?;
    finish(&mut tally, &first_names, &destination, &options.destination)?;
    Ok(json!({
        "files": tally.files,
        "directories": tally.directories,
        "symlinks": tally.symlinks,
        "hard_links": tally.hard_links,
        "reflinked_files": tally.reflinked_files,
        "reflinked_bytes": tally.reflinked_bytes,
        "copied_files": tally.copied_files,
        "copied_bytes": tally.copied_bytes,
        "copied_reasons": tally.copied_reasons,
        "vanished": tally.vanished,
        "changed": tally.changed,
        "special": tally.special,
        "attributes_dropped": tally.attributes_dropped,
        "excluded": tally.excluded,
        "seconds": started.elapsed().as_secs_f64(),
    }))
}

fn open_directory(path: &Path, doing: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, FileMode::empty())
        .map_err(|errno| Failure::new(doing, errno, path))
}

/// Makes the destination, or takes an empty directory (a fresh subvolume, say).
fn make_destination(source: &Path, path: &Path) -> Result<OwnedFd, Failure> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if let (Ok(source), Ok(parent)) = (source.canonicalize(), parent.canonicalize())
        && parent.starts_with(source)
    {
        // The walk would meet its own work and never end.
        return Err(Failure::new("clone a tree into itself", Errno::INVAL, path));
    }
    match rustix::fs::mkdirat(CWD, path, FileMode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(Failure::new("make the destination", errno, path)),
    }
    let destination = open_directory(path, "open the destination")?;
    let mut buffer = Vec::with_capacity(1024);
    let mut entries = RawDir::new(&destination, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|errno| Failure::new("read the destination", errno, path))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Err(Failure::new("clone into", Errno::NOTEMPTY, path));
        }
    }
    Ok(destination)
}

/// Further names, then directories from the deepest up (one without `x` would hide those below).
fn finish(
    tally: &mut Tally,
    first_names: &HashMap<walk::Inode, PathBuf>,
    destination: &OwnedFd,
    name: &Path,
) -> Result<(), Failure> {
    for link in std::mem::take(&mut tally.pending_links) {
        let first = &first_names[&link.inode];
        rustix::fs::linkat(
            destination,
            first,
            destination,
            &link.path,
            AtFlags::empty(),
        )
        .map_err(|errno| Failure::new("link", errno, &name.join(&link.path)))?;
        tally.hard_links += 1;
    }
    let mut directories = std::mem::take(&mut tally.pending_directories);
    directories.sort_by_key(|directory| std::cmp::Reverse(directory.path.components().count()));
    for directory in directories {
        let opened = if directory.path.as_os_str().is_empty() {
            destination.try_clone().map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                Failure::new("open", errno, name)
            })?
        } else {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(destination, &directory.path, flags, FileMode::empty())
                .map_err(|errno| Failure::new("open", errno, &name.join(&directory.path)))?
        };
        tally.attributes_dropped += directory
            .attributes
            .apply(&opened)
            .map_err(|errno| Failure::new("set times of", errno, &name.join(&directory.path)))?;
    }
    Ok(())
}

/// A path component as the kernel wants it; names read from a directory hold no NUL.
fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("a directory entry has no NUL")
}
