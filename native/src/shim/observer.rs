//! The observer's end in the shim: `native/observer` is preloaded into the compiler, and what it
//! noted is read when the compiler has ended.
//!
//! Library and notes are files in memory that the compiler inherits, so that nothing has to be
//! installed and nothing is left over.  Where it cannot be preloaded (another C library, a static
//! compiler, no memory files) there are no notes: the compile is as it would be without.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use super::variable;

const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/observer.so"));
const NAME: &str = "CARGO_COW_OBSERVER";
const PRELOAD: &str = "LD_PRELOAD";

// The buffer, as `native/observer/lib.rs` writes it.
const LENGTH: u64 = 4 << 20;
const HEADER: usize = 32;
const MAGIC: u64 = 0x0031_7765_6976_776f;

/// What was asked for, and what came of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Note {
    pub what: Asked,
    pub outcome: Outcome,
    pub name: OsString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Read,
    Write,
    List,
    Exists,
    Variable,
    /// Its path and, after a zero, its first argument.
    Program,
    Macro,
    Network,
    /// The time of day.
    Time,
    /// Another working directory, or what this program does not know.
    Other,
}

impl Asked {
    /// Whether the name is that of a file.
    pub fn is_of_files(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::List | Self::Exists)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Missing,
    Failed,
}

/// A library and a buffer for one compile.
pub struct Observer {
    library: File,
    notes: File,
}

impl Observer {
    /// `None`: `program` is no compiler that can be observed, or `CARGO_COW_OBSERVE=off`.
    pub fn of(program: &OsStr) -> Option<Self> {
        if variable("CARGO_COW_OBSERVE").is_some_and(|value| value == "off") {
            return None;
        }
        let stem = Path::new(program).file_name()?;
        if stem != "rustc" && stem != "clippy-driver" {
            return None;
        }
        if interpreter(&found(program)?)? != interpreter(Path::new("/proc/self/exe"))? {
            return None;
        }
        let mut library = memory_file("cargo-cow-observer")?;
        library.write_all(LIBRARY).ok()?;
        let notes = memory_file("cargo-cow-notes")?;
        notes.set_len(LENGTH).ok()?;
        Some(Self { library, notes })
    }

    /// The same with an empty buffer.
    pub fn again(&self) -> Option<Self> {
        let notes = memory_file("cargo-cow-notes")?;
        notes.set_len(LENGTH).ok()?;
        let library = self.library.try_clone().ok()?;
        rustix::io::fcntl_setfd(&library, rustix::io::FdFlags::empty()).ok()?;
        Some(Self { library, notes })
    }

    /// Lets `command` inherit both.
    pub fn attach(&self, command: &mut Command) {
        let mut preload = OsString::from(format!("/proc/self/fd/{}", self.library.as_raw_fd()));
        if let Some(theirs) = variable(PRELOAD) {
            preload.push(":");
            preload.push(theirs);
        }
        command
            .env(PRELOAD, preload)
            .env(NAME, self.notes.as_raw_fd().to_string());
    }

    /// What was noted; `None` if the library was not loaded, or not all could be noted.
    pub fn notes(&self) -> Option<Vec<Note>> {
        let mut header = [0; HEADER];
        self.notes.read_exact_at(&mut header, 0).ok()?;
        let word = |index: usize| {
            let bytes = header[index * 8..][..8].try_into();
            bytes.map_or(0, u64::from_le_bytes)
        };
        if word(0) != MAGIC || word(2) != 0 {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(word(1)).ok()?];
        self.notes
            .read_exact_at(&mut bytes, u64::try_from(HEADER).ok()?)
            .ok()?;
        parse(&bytes)
    }
}

fn parse(mut bytes: &[u8]) -> Option<Vec<Note>> {
    let mut notes = Vec::new();
    while let [kind, outcome, low, high, rest @ ..] = bytes {
        let (name, after) = rest.split_at_checked(u16::from_le_bytes([*low, *high]).into())?;
        bytes = after;
        notes.push(Note {
            what: match kind {
                b'F' => Asked::Read,
                b'W' => Asked::Write,
                b'D' => Asked::List,
                b'S' => Asked::Exists,
                b'E' => Asked::Variable,
                b'P' => Asked::Program,
                b'M' => Asked::Macro,
                b'N' => Asked::Network,
                b'T' => Asked::Time,
                _ => Asked::Other,
            },
            outcome: match outcome {
                0 => Outcome::Done,
                1 => Outcome::Missing,
                _ => Outcome::Failed,
            },
            name: OsStr::from_bytes(name).to_owned(),
        });
    }
    bytes.is_empty().then_some(notes)
}

/// A file that a child inherits and may execute from.
fn memory_file(name: &str) -> Option<File> {
    // Before Linux 6.3 no file in memory had to say so.
    let made = memfd_create(name, MemfdFlags::EXEC).or_else(|error| match error {
        Errno::INVAL => memfd_create(name, MemfdFlags::empty()),
        other => Err(other),
    });
    Some(File::from(made.ok()?))
}

/// The file that `execvp` would take.
fn found(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program));
    }
    let directories = variable("PATH")?;
    std::env::split_paths(&directories)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// The dynamic loader that an ELF program of 64 bits asks for; of a script, that of its
/// interpreter.  It tells one C library from another.
fn interpreter(program: &Path) -> Option<Vec<u8>> {
    let mut head = vec![0; 4096];
    let mut file = File::open(program).ok()?;
    let mut length = 0;
    while length < head.len() {
        match file.read(&mut head[length..]).ok()? {
            0 => break,
            count => length += count,
        }
    }
    head.truncate(length);
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        let word = line.trim_ascii().split(|byte| *byte == b' ').next()?;
        let shell = Path::new(OsStr::from_bytes(word));
        return elf_interpreter(&std::fs::read(shell).ok()?);
    }
    elf_interpreter(&head)
}

fn elf_interpreter(head: &[u8]) -> Option<Vec<u8>> {
    const PT_INTERP: u32 = 3;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, size: usize| {
        let bytes = head.get(at..at + size)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        usize::try_from(value).ok()
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let entry = table + index * size;
        if number(entry, 4)? == usize::try_from(PT_INTERP).ok()? {
            let (offset, length) = (number(entry + 8, 8)?, number(entry + 32, 8)?);
            return Some(head.get(offset..offset + length)?.to_vec());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_to_their_end_or_not_at_all() {
        let bytes = b"F\x00\x03\x00a/bE\x01\x01\x00XQ\x02\x00\x00";
        let notes = parse(bytes).unwrap();
        let read = |index: usize| (notes[index].what, notes[index].outcome, &notes[index].name);
        assert_eq!(
            read(0),
            (Asked::Read, Outcome::Done, &OsString::from("a/b"))
        );
        assert_eq!(
            read(1),
            (Asked::Variable, Outcome::Missing, &OsString::from("X"))
        );
        assert_eq!(read(2), (Asked::Other, Outcome::Failed, &OsString::new()));
        assert_eq!(parse(b"F\x00\x04\x00a/b"), None);
        assert_eq!(parse(b"F\x00\x04"), None);
    }

    #[test]
    fn a_program_tells_its_loader() {
        let own = interpreter(Path::new("/proc/self/exe")).unwrap();
        assert!(own.starts_with(b"/"), "{own:?}");
        assert_eq!(interpreter(Path::new("/bin/sh")), Some(own));
        assert_eq!(interpreter(Path::new("/etc/passwd")), None);
    }
}
