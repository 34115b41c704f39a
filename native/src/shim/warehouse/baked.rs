//! Whether compiled outputs hold a path other than as the name of a generated file they include.
//!
//! The rule is that of `src/cargo_cow/prepare/outputs.py`, where it is argued.  Most crates read `env!("OUT_DIR")` only to include a
//! file below it.  That file's name is then in the source map (ended by a byte that UTF-8 cannot
//! hold), in locations of panics (ended by NUL) and in debug information, and nowhere else.

use std::io::{self, Read};

use memchr::memmem::Finder;

const ARCHIVE: &[u8] = b"!<arch>\n";
const BITCODE: [&[u8]; 2] = [b"BC\xc0\xde", b"\xde\xc0\x17\x0b"];
/// In a source map, and in the location of a panic.
const ENDS_OF_NAME: [u8; 2] = [0xc1, 0];

/// The name of a file that was compiled, which outputs hold and which is no constant.
pub struct Name {
    path: String,
    ends: &'static [u8],
}

impl Name {
    /// Panics in it tell where it is.
    pub fn of_generated(path: String) -> Self {
        Self {
            path,
            ends: &ENDS_OF_NAME,
        }
    }

    /// Where the compiler is given it by a relative path: it is in the source map alone.
    pub fn of_source(path: String) -> Self {
        Self {
            path,
            ends: &ENDS_OF_NAME[..1],
        }
    }

    fn is_at(&self, text: &[u8]) -> bool {
        text.strip_prefix(self.path.as_bytes())
            .and_then(<[u8]>::first)
            .is_some_and(|end| self.ends.contains(end))
    }
}

/// Files that scripts of other packages generated, below `target`; `own` is the package's own
/// OUT_DIR.
pub struct Others<'a> {
    pub target: &'a str,
    pub own: Option<&'a str>,
}

impl Others<'_> {
    /// `…/build/<package>/out/<file>`, or in the new layout `…/build/<package>/<hash>/out/<file>`,
    /// as a whole name.
    fn is_at(&self, text: &[u8]) -> bool {
        let end = text.iter().position(|byte| ENDS_OF_NAME.contains(byte));
        let Some(name) = end.and_then(|end| std::str::from_utf8(&text[..end]).ok()) else {
            return false;
        };
        if self.own.is_some_and(|own| name.starts_with(own)) {
            return false;
        }
        let inside = name.strip_prefix(self.target).unwrap_or_default();
        let mut parts = inside.strip_prefix('/').unwrap_or_default().split('/');
        parts.by_ref().take(3).any(|part| part == "build")
            && parts.by_ref().take(3).any(|part| part == "out")
            && parts.next().is_some_and(|file| !file.is_empty())
    }
}

struct Section {
    start: usize,
    end: usize,
    debug: bool,
}

/// Whether `data` holds the path `needle` other than as the beginning of one of `names` (whole
/// paths, below it), or of a file of `others`.  What cannot be decided counts as held: bitcode, whose
/// strings are packed.
pub fn holds(data: &[u8], needle: &str, names: &[Name], others: Option<&Others<'_>>) -> bool {
    let finder = Finder::new(needle);
    members(data).into_iter().any(|member| {
        let member = &data[member];
        if BITCODE.iter().any(|magic| member.starts_with(magic)) {
            return true;
        }
        if finder.find(member).is_none() {
            return false;
        }
        let sections = sections(member).unwrap_or_default();
        finder.find_iter(member).any(|at| {
            let section = sections.iter().find(|one| one.start <= at && at < one.end);
            if section.is_some_and(|section| section.debug) {
                return false;
            }
            let rest = &member[at..section.map_or(member.len(), |section| section.end)];
            !names.iter().any(|name| name.is_at(rest))
                && !others.is_some_and(|others| others.is_at(rest))
        })
    })
}

/// The members of an ar archive (GNU format), or all of it.
fn members(data: &[u8]) -> Vec<std::ops::Range<usize>> {
    if !data.starts_with(ARCHIVE) {
        return std::iter::once(0..data.len()).collect();
    }
    let mut found = Vec::new();
    let mut at = ARCHIVE.len();
    while at + 60 <= data.len() {
        let size = std::str::from_utf8(&data[at + 48..at + 58])
            .ok()
            .and_then(|text| text.trim().parse::<usize>().ok());
        let Some(size) = size else { break };
        let end = (at + 60 + size).min(data.len());
        found.push(at + 60..end);
        at = end + (size & 1);
    }
    found
}

/// Sections of a 64-bit little-endian ELF file; `None` for others.
fn sections(data: &[u8]) -> Option<Vec<Section>> {
    if !data.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number::<8>(data, 0x28)?).ok()?;
    let entry_size = usize::try_from(number::<2>(data, 0x3a)?).ok()?;
    let mut count = usize::try_from(number::<2>(data, 0x3c)?).ok()?;
    let mut names = usize::try_from(number::<2>(data, 0x3e)?).ok()?;
    let word = |index: usize, offset: usize| -> Option<usize> {
        let at = table.checked_add(index.checked_mul(entry_size)?)?;
        usize::try_from(number::<8>(data, at.checked_add(offset)?)?).ok()
    };
    let half = |index: usize, offset: usize| -> Option<usize> {
        let at = table.checked_add(index.checked_mul(entry_size)?)?;
        usize::try_from(number::<4>(data, at.checked_add(offset)?)?).ok()
    };
    if names == 0xffff {
        names = half(0, 0x28)?; // more than 65,279 sections
    }
    if count == 0 {
        count = word(0, 0x20)?;
    }
    let strings = word(names, 0x18)?;
    let mut found = Vec::new();
    for index in 0..count {
        let (name, kind) = (half(index, 0)?, half(index, 4)?);
        let (offset, size) = (word(index, 0x18)?, word(index, 0x20)?);
        if kind == 8 {
            continue; // takes no room in the file
        }
        let name = data.get(strings.checked_add(name)?..)?;
        found.push(Section {
            start: offset,
            end: offset.checked_add(size)?.min(data.len()),
            debug: name.starts_with(b".debug_"),
        });
    }
    Some(found)
}

fn number<const SIZE: usize>(data: &[u8], at: usize) -> Option<u64> {
    let bytes = data.get(at..at.checked_add(SIZE)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    )
}

/// BLAKE3 (hex) of what is left of a file, and whether `text` is anywhere in it.
///
/// In parts: memory for a whole library costs more than to hash it.
pub fn digest(file: &mut impl Read, text: Option<&str>) -> io::Result<(String, bool)> {
    const PART: usize = 128 * 1024;
    let finder = text.map(Finder::new);
    // What was read last stays in front: the text may lie across.
    let across = text.map_or(0, |text| text.len().saturating_sub(1));
    let mut buffer = vec![0; across + PART];
    let mut hasher = blake3::Hasher::new();
    let mut kept = 0;
    let mut found = false;
    loop {
        let count = match file.read(&mut buffer[kept..]) {
            Ok(0) => return Ok((hasher.finalize().to_hex().to_string(), found)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = kept + count;
        hasher.update(&buffer[kept..end]);
        if let Some(finder) = finder.as_ref().filter(|_| !found) {
            found = finder.find(&buffer[..end]).is_some();
        }
        kept = across.min(end);
        buffer.copy_within(end - kept..end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(data: &[u8]) -> bool {
        let name = Name::of_generated("/t/debug/build/a-1/out/g.rs".to_owned());
        holds(data, "/t/debug", &[name], None)
    }

    #[test]
    fn a_name_is_no_constant() {
        assert!(!held(b"x/t/debug/build/a-1/out/g.rs\xc1y"));
        assert!(!held(b"/t/debug/build/a-1/out/g.rs\0"));
        assert!(!held(b"nothing"));
        for data in [
            &b"/t/debug/build/a-1/out/g.rs"[..],
            b"/t/debug/build/a-1/out/g.rsx\0",
            b"/t/debug/build/a-1/out/other.rs\0",
            b"/t/debug/build/a-1/out\0",
            b"/t/debug/build/a-1/out/g.rs\0 and /t/debug",
        ] {
            assert!(held(data), "{data:?}");
        }
    }

    #[test]
    fn bitcode_cannot_be_decided() {
        assert!(held(b"BC\xc0\xdexyz"));
        let mut archive = ARCHIVE.to_vec();
        archive.extend(format!("{:<48}{:<10}`\n", "a.o/", 5).bytes());
        archive.extend(b"plain\n");
        assert!(!held(&archive));
        archive.extend(format!("{:<48}{:<10}`\n", "b.o/", 6).bytes());
        archive.extend(b"BC\xc0\xde..");
        assert!(held(&archive));
    }

    #[test]
    fn a_damaged_file_is_searched_as_a_whole() {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(0x28, 0);
        file.extend([0xff; 24]);
        assert!(!held(&file));
        file.extend(b"/t/debug\0");
        assert!(held(&file));
    }

    /// Gives out what it has in small pieces.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buffer.len()).min(self.0.len());
            let (part, rest) = self.0.split_at(count);
            buffer[..count].copy_from_slice(part);
            self.0 = rest;
            Ok(count)
        }
    }

    #[test]
    fn a_text_is_found_wherever_reads_end() {
        let mut data: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let wanted = blake3::hash(&data).to_hex().to_string();
        let text = "/home/user/project/target/debug";
        let look = |data: &[u8], step| digest(&mut Trickle(data, step), Some(text)).unwrap();
        assert_eq!(look(&data, usize::MAX), (wanted.clone(), false));
        assert_eq!(digest(&mut &data[..], None).unwrap(), (wanted, false));
        for step in [7, 4096, usize::MAX] {
            for at in [0, 5, 128 * 1024 - 10, data.len() - text.len()] {
                let before = data[at..at + text.len()].to_vec();
                data[at..at + text.len()].copy_from_slice(text.as_bytes());
                let wanted = blake3::hash(&data).to_hex().to_string();
                assert_eq!(look(&data, step), (wanted, true), "{step} {at}");
                assert!(!look(&data[..at + text.len() - 1], step).1);
                data[at..at + text.len()].copy_from_slice(&before);
            }
        }
    }
}
