//! Procedural macros that may tell their working directory to what they make.
//!
//! They run inside rustc, and so at the identity: a macro that puts `current_dir()` into its output
//! would put the identity there.  Variables are the real ones, so that hardly any macro does.  Which
//! could is told by what its code calls: who asks neither the system nor the standard library for
//! the directory, and starts no program, cannot know it.  (The standard library is in every macro,
//! and calls all of this itself, for backtraces.)  Where a macro could that this compile may load,
//! what is compiled is held back, looked through, and compiled again at the real path if it holds
//! the identity.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::strip_prefix;
use super::places::Place;
use crate::elf;

/// Of the memory: of what is asked, and how.
const FORMAT: u32 = 2;

/// Package names, one list for Python and for us.
const PURE: &str = include_str!("../../../../src/cargo_cow/prepare/pure_macros.txt");

/// In every procedural macro's shared object (rustc_session's `proc_macro_decls_symbol`).
const MACRO: &[u8] = b"rustc_proc_macro_decls";

/// Ends of the standard library's paths, mangled (legacy and v0): length and name.
const PATHS: &[&[u8]] = &[
    b"11current_dir",
    b"12canonicalize",
    b"7Command",
    b"8absolute",
    b"8readlink",
    b"9read_link",
];
const STANDARD: &[u8] = b"3std";

/// Symbols of libc, whole.
const CALLS: &[&[u8]] = &[
    b"__getcwd_chk",
    b"__realpath_chk",
    b"canonicalize_file_name",
    b"dlopen",
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
    b"system",
    b"vfork",
];

/// The same of what the observer cannot see asked: all variables at once, and the kernel itself.
const PATHS_UNSEEN: &[&[u8]] = &[b"4vars", b"7vars_os"];
const CALLS_UNSEEN: &[&[u8]] = &[b"__environ", b"_environ", b"environ", b"syscall"];

/// Whether the macro in a shared object may ask for what the observer does not see.
pub fn may_ask_unseen(path: &Path, memory: &Path) -> bool {
    let judge = |data: &[u8]| judge(data, PATHS_UNSEEN, CALLS_UNSEEN);
    Known::read(memory).may("unseen", path, judge)
}

/// The first macro among those that the compile may load which may know its working directory.
/// `arguments` are those given; `memory` is a file to remember answers in.
pub fn knowing<'a>(arguments: impl Iterator<Item = &'a OsStr>, memory: &Path) -> Option<PathBuf> {
    let mut known = Known::read(memory);
    first(arguments, |object| known.may_know(object))
}

/// The first macro among those that the compile may load which is not known to go by its tokens
/// alone.
pub fn reading<'a>(arguments: impl Iterator<Item = &'a OsStr>) -> Option<PathBuf> {
    first(arguments, |object| {
        let stem = object.file_stem().and_then(OsStr::to_str);
        let name = stem.and_then(|stem| stem.strip_prefix("lib"));
        let name = name.map(|name| name.rsplit_once('-').map_or(name, |(name, _)| name));
        name.is_none_or(|name| {
            !PURE
                .lines()
                .any(|package| package.replace('-', "_") == name)
        })
    })
}

/// Whether the macros of a registry's package are known to go by their tokens alone.
pub fn is_pure(package: &str) -> bool {
    PURE.lines().any(|line| line == package)
}

/// The first shared object among those that the compile may load that is `wanted`.
fn first<'a>(
    arguments: impl Iterator<Item = &'a OsStr>,
    mut wanted: impl FnMut(&Path) -> bool,
) -> Option<PathBuf> {
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
            if wanted(&path) {
                return Some(path);
            }
        }
        previous = word;
    }
    directories.dedup();
    directories.iter().find_map(|directory| {
        let entries = fs::read_dir(directory).ok()?.flatten();
        let objects = entries.filter(|entry| entry.file_name().as_bytes().ends_with(b".so"));
        objects
            .map(|entry| entry.path())
            .find(|object| wanted(object))
    })
}

/// Answers by name, size and time: to read a macro's code takes milliseconds.
struct Known<'a> {
    memory: &'a Path,
    answers: String,
}

impl<'a> Known<'a> {
    /// Beyond this it is begun anew.
    const MOST: usize = 1 << 18;

    fn read(memory: &'a Path) -> Self {
        let answers = fs::read_to_string(memory).unwrap_or_default();
        if answers.len() > Self::MOST {
            let _ = fs::remove_file(memory);
        }
        Self { memory, answers }
    }

    fn may_know(&mut self, path: &Path) -> bool {
        self.may("directory", path, |data| judge(data, PATHS, CALLS))
    }

    fn may(&mut self, what: &str, path: &Path, judge: impl Fn(&[u8]) -> bool) -> bool {
        let Ok(stat) = fs::metadata(path) else {
            return false; // it is loaded by nobody
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (size, time, part) = (stat.size(), stat.mtime(), stat.mtime_nsec());
        let question = format!("{FORMAT} {what} {name} {size} {time}.{part:09} ");
        let answer = |line: &str| Some(line.strip_prefix(&question)? != "no");
        if let Some(known) = self.answers.lines().find_map(answer) {
            return known;
        }
        let may = fs::read(path).map_or(true, |data| judge(&data));
        let line = format!("{question}{}\n", if may { "may" } else { "no" });
        // One write, so that lines of parallel compiles stay whole.
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.memory);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        self.answers.push_str(&line);
        may
    }
}

/// Whether the macro in a shared object may know its directory; no macro does not.
fn judge(data: &[u8], paths: &[&[u8]], calls: &[&[u8]]) -> bool {
    let is_wanted = |name: &[u8], of_another: bool| {
        if of_another {
            calls.contains(&name)
        } else {
            contains(name, STANDARD) && paths.iter().any(|path| contains(name, path))
        }
    };
    let Some(calls) = elf::calls(data, is_wanted) else {
        return contains(data, MACRO);
    };
    let is_macro = calls.exported.iter().any(|name| contains(name, MACRO));
    is_macro
        && !calls
            .callers
            .iter()
            .all(|name| is_of_standard_library(name))
}

/// Whether a function is one of the standard library's own, by its mangled name: the first crate
/// that is named in it.
fn is_of_standard_library(name: &[u8]) -> bool {
    const OWN: &[&[u8]] = &[b"3std", b"4core", b"5alloc", b"12panic_unwind"];
    if let Some(legacy) = name.strip_prefix(b"_ZN") {
        // `<std::…>` or `<std::… as …>` is one name, `_$LT$std..…`.
        let digits = legacy
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let implemented = legacy[digits..].strip_prefix(b"_$LT$");
        return OWN.iter().any(|own| legacy.starts_with(own))
            || implemented.is_some_and(|of| {
                [b"std..".as_slice(), b"core..", b"alloc.."]
                    .iter()
                    .any(|own| of.starts_with(own))
            });
    }
    let Some(path) = name.strip_prefix(b"_R") else {
        return false;
    };
    // `C`, perhaps `s` with a number in base 62 and `_`, then length and name.
    let crates = (0..path.len()).filter(|at| path[*at] == b'C');
    let named = crates.filter_map(|at| {
        let rest = &path[at + 1..];
        match rest.strip_prefix(b"s") {
            Some(number) => {
                let end = number
                    .iter()
                    .position(|byte| !byte.is_ascii_alphanumeric())?;
                number[end..].strip_prefix(b"_")
            }
            None => Some(rest),
        }
        .filter(|rest| rest.first().is_some_and(u8::is_ascii_digit))
    });
    named
        .take(1)
        .any(|rest| OWN.iter().any(|own| rest.starts_with(own)))
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
    fn names_tell_whose_code_it_is() {
        for name in [
            b"_ZN3std2fs4read17h0123456789abcdefE".as_slice(),
            b"_ZN84_$LT$std..sys..backtrace..Lock$u20$as$u20$core..fmt..Display$GT$3fmt17h0E",
            b"_RNvNtCsjrHSEGnQ3l9_3std3env11current_exe",
            b"_RINvNtCsgEmfK2I1SDS_4core3ptr13drop_in_placeNtNtCslx_5other4ThatE",
            b"_RNvMs0_NtNtNtNtCsjrHSEGnQ3l9_3std3sys4sync4once5futexNtB5_4Once4call",
        ] {
            assert!(is_of_standard_library(name), "{}", name.escape_ascii());
        }
        for name in [
            b"".as_slice(),
            b"_ZN7mymacro6expand17h0123456789abcdefE",
            b"_ZN50_$LT$mymacro..X$u20$as$u20$std..Y$GT$1f17h0E",
            b"_RNvCsjrHSEGnQ3l9_7mymacro6expand",
            b"_RNvC7mymacro3std",
            b"main",
        ] {
            assert!(!is_of_standard_library(name), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_object_is_no_macro() {
        let judge = |data| judge(data, PATHS, CALLS);
        assert!(!judge(b""));
        assert!(!judge(b"text"));
        // Of a machine that is not known, it may.
        assert!(judge(
            b"\x7fELF of another kind: __rustc_proc_macro_decls_0__"
        ));
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
