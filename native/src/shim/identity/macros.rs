//! Procedural macros that may tell their working directory to what they make.
//!
//! They run inside rustc, and so at the identity: a macro that puts `current_dir()` into its output
//! would put the identity there.  Variables are the real ones, so that hardly any macro does.  Which
//! could is told by the symbols they import: who asks neither the system nor the standard library
//! for the directory, and starts no program, cannot know it.  Where a macro could that this compile
//! may load, what is compiled is held back, looked through, and compiled again at the real path
//! if it holds the identity.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::strip_prefix;
use super::places::Place;
use crate::elf;

/// In every procedural macro's shared object (rustc_session's `proc_macro_decls_symbol`).
const MACRO: &[u8] = b"rustc_proc_macro_decls";

/// Parts of mangled names of the standard library (legacy and v0): length and name.
const PATHS: &[&[u8]] = &[
    b"11current_dir",
    b"12canonicalize",
    b"8absolute",
    b"8readlink",
    b"9read_link",
    b"7Command",
];

/// Symbols of libc, whole.
const CALLS: &[&[u8]] = &[
    b"__getcwd_chk",
    b"__realpath_chk",
    b"canonicalize_file_name",
    b"dlopen",
    b"dlsym",
    b"execv",
    b"execve",
    b"execvp",
    b"fork",
    b"get_current_dir_name",
    b"getcwd",
    b"getwd",
    b"popen",
    b"posix_spawn",
    b"posix_spawnp",
    b"readlink",
    b"readlinkat",
    b"realpath",
    b"syscall",
    b"system",
    b"vfork",
];

/// The first macro among those that the compile may load which may know its working directory.
/// `arguments` are those given.
pub fn knowing<'a>(arguments: impl Iterator<Item = &'a OsStr>) -> Option<PathBuf> {
    let mut previous: &OsStr = OsStr::new("");
    let mut directories = Vec::new();
    for word in arguments {
        let value = match strip_prefix(word, "-L") {
            Some(value) if !value.is_empty() => Some(value),
            _ if previous == "-L" => Some(word),
            _ => None,
        };
        if let Some(value) = value {
            let bytes = value.as_bytes();
            let path = match bytes.iter().position(|byte| *byte == b'=') {
                Some(at) if !bytes.starts_with(b"/") => OsStr::from_bytes(&bytes[at + 1..]),
                _ => value,
            };
            // Nothing of Cargo's: libraries of C.
            if !bytes.starts_with(b"native=") && !bytes.starts_with(b"framework=") {
                directories.push(PathBuf::from(path));
            }
        } else if word.as_bytes().ends_with(b".so") {
            let bytes = word.as_bytes();
            let at = bytes
                .iter()
                .position(|byte| *byte == b'=')
                .map_or(0, |at| at + 1);
            let path = PathBuf::from(OsStr::from_bytes(&bytes[at..]));
            if may_know(&path) {
                return Some(path);
            }
        }
        previous = word;
    }
    directories.dedup();
    directories.iter().find_map(|directory| {
        let entries = fs::read_dir(directory).ok()?.flatten();
        let mut objects = entries.filter(|entry| entry.file_name().as_bytes().ends_with(b".so"));
        objects
            .find(|entry| may_know(&entry.path()))
            .map(|entry| entry.path())
    })
}

fn may_know(path: &Path) -> bool {
    match elf::dynamic_names(path) {
        Ok(Some(names)) => names_tell(&names),
        // Of another system, or half written; one that is gone is loaded by nobody.
        Ok(None) => true,
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

fn names_tell(names: &[u8]) -> bool {
    let mut is_macro = false;
    let mut tells = false;
    for name in names.split(|byte| *byte == 0) {
        is_macro |= contains(name, MACRO);
        tells |= CALLS.contains(&name) || PATHS.iter().any(|path| contains(name, path));
    }
    is_macro && tells
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The end of a string in crate metadata, which UTF-8 cannot hold (rustc_serialize's
/// `STR_SENTINEL`).
const END_OF_STRING: u8 = 0xc1;
const BITCODE: &[&[u8]] = &[b"BC\xc0\xde", b"\xde\xc0\x17\x0b"];
const ARCHIVE: &[u8] = b"!<arch>\n";

/// Whether an output holds the seen path of a place other than in debug information and in the
/// source map of crate metadata, which names the working directory and the `files` of the compile.
pub fn holds(output: &Path, places: &[Place], files: &[PathBuf]) -> bool {
    let Ok(data) = fs::read(output) else {
        return true;
    };
    members(&data).into_iter().any(|data| {
        if BITCODE.iter().any(|magic| data.starts_with(magic)) {
            return true;
        }
        let parts = elf::without_debug_information(data);
        parts.into_iter().any(|part| {
            let text = &data[part];
            places.iter().any(|place| is_named(text, place, files))
        })
    })
}

fn is_named(text: &[u8], place: &Place, files: &[PathBuf]) -> bool {
    let path = place.seen.as_os_str().as_bytes();
    let real = place.real.as_os_str().as_bytes();
    let mut from = 0;
    while let Some(found) = memchr(text, path, from) {
        from = found + path.len();
        let rest = &text[from..];
        let of_source_map = rest.first() == Some(&END_OF_STRING)
            || files.iter().any(|file| {
                let file = file.as_os_str().as_bytes();
                file.strip_prefix(path).is_some_and(|inside| {
                    inside.starts_with(b"/")
                        && rest.starts_with(inside)
                        && rest.get(inside.len()) == Some(&END_OF_STRING)
                })
            });
        // The real path may begin as the seen one does.
        if !of_source_map && !text[found..].starts_with(real) {
            return true;
        }
    }
    false
}

/// Where `part` begins in `text`, from `from` on.
fn memchr(text: &[u8], part: &[u8], from: usize) -> Option<usize> {
    // `/` is rare enough outside of paths.
    let mut at = from;
    while let Some(slash) = text.get(at..)?.iter().position(|byte| *byte == part[0]) {
        at += slash;
        if text[at..].starts_with(part) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// The members of an `ar` archive (GNU's form), or the whole file.
fn members(data: &[u8]) -> Vec<&[u8]> {
    if !data.starts_with(ARCHIVE) {
        return vec![data];
    }
    let mut result = Vec::new();
    let mut at = ARCHIVE.len();
    while let Some(header) = data.get(at..at + 60) {
        let size = std::str::from_utf8(&header[48..58]).ok();
        let Some(size) = size.and_then(|text| text.trim().parse::<usize>().ok()) else {
            return vec![data];
        };
        let start = at + 60;
        let end = start.saturating_add(size).min(data.len());
        result.push(&data[start..end]);
        at = end + (size & 1);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_tell() {
        let own = b"\0__rustc_proc_macro_decls_0123__\0".as_slice();
        for name in [
            b"getcwd".as_slice(),
            b"_ZN3std3env11current_dir17h0123456789abcdefE",
            b"_RNvNtCs1_3std3env11current_dir",
            b"_ZN3std7process7Command3new17h0123456789abcdefE",
            b"_ZN3std3sys2fs12canonicalize17h0123456789abcdefE",
        ] {
            assert!(names_tell(&[own, name, b"\0"].concat()));
            // Of a library that rustc does not load nothing is asked.
            assert!(!names_tell(&[b"\0", name, b"\0"].concat()));
        }
        for name in [b"my_getcwd".as_slice(), b"_ZN3std3env7var_os17hE", b"read"] {
            assert!(!names_tell(&[own, name, b"\0"].concat()));
        }
    }

    #[test]
    fn only_the_source_map_may_name_the_identity() {
        let files = [PathBuf::from("/w/a/src/lib.rs")];
        let place = Place {
            real: "/w/a-b".into(),
            seen: "/w/a".into(),
        };
        let named = |text: &[u8]| is_named(text, &place, &files);
        for text in [
            b"x/w/a\xc1y".as_slice(),
            b"/w/a/src/lib.rs\xc1",
            b"/w/b/x\0 /w/",
            b"/w/a-b/x",
            b"",
        ] {
            assert!(!named(text), "{text:?}");
        }
        for text in [
            b"/w/a".as_slice(),
            b"/w/a\0",
            b"/w/a-old",
            b"/w/a/src/lib.rs\0",
            b"/w/a/src/lib.rs2\xc1",
            b"/w/a/data\xc1",
            b"/w/a\xc1/w/a/x",
        ] {
            assert!(named(text), "{text:?}");
        }
    }

    #[test]
    fn archives_have_members() {
        let member =
            |name: &str, text: &str| format!("{name:<16}{:<32}{:<10}`\n{text}", "0", text.len());
        let mut data = b"!<arch>\n".to_vec();
        data.extend(member("a/", "abc").as_bytes());
        data.push(b'\n');
        data.extend(member("b/", "de").as_bytes());
        assert_eq!(members(&data), [b"abc".as_slice(), b"de"]);
        assert_eq!(members(b"no archive"), [b"no archive"]);
    }
}
