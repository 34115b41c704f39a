//! As much of ELF as it takes to ask what a file imports, and where its debug information lies.
//! 64 bits, little-endian; of everything else nothing is known.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const HEADER: usize = 64;
const SHT_NOBITS: u32 = 8;
const SHT_DYNSYM: u32 = 11;

struct Section {
    name: usize,
    kind: u32,
    bytes: Range<usize>,
    link: usize,
}

fn number<const N: usize>(data: &[u8], at: usize) -> Option<usize> {
    let bytes = data.get(at..at.checked_add(N)?)?;
    let value = bytes
        .iter()
        .rev()
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    usize::try_from(value).ok()
}

/// Offset, length and entry size of the section table, and which of them holds the names.
fn table(header: &[u8]) -> Option<(Range<usize>, usize, usize)> {
    if !header.starts_with(MAGIC) {
        return None;
    }
    let start = number::<8>(header, 0x28)?;
    let (size, count) = (number::<2>(header, 0x3a)?, number::<2>(header, 0x3c)?);
    // More than 65,279 sections are counted elsewhere: unknown.
    if size < HEADER || count == 0 {
        return None;
    }
    Some((
        start..start.checked_add(size * count)?,
        size,
        number::<2>(header, 0x3e)?,
    ))
}

fn sections(table: &[u8], size: usize) -> Option<Vec<Section>> {
    let one = |entry: &[u8]| {
        let start = number::<8>(entry, 0x18)?;
        Some(Section {
            name: number::<4>(entry, 0)?,
            kind: u32::try_from(number::<4>(entry, 4)?).ok()?,
            bytes: start..start.checked_add(number::<8>(entry, 0x20)?)?,
            link: number::<4>(entry, 0x28)?,
        })
    };
    table.chunks_exact(size).map(one).collect()
}

/// The names of the symbols that a shared object has and wants, each ending in a NUL; `None` where
/// the file is of a kind that is not known.
pub fn dynamic_names(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = File::open(path)?;
    let read = |range: &Range<usize>| {
        let mut bytes = vec![0; range.len().min(64 << 20)];
        file.read_exact_at(&mut bytes, range.start as u64)
            .map(|()| bytes)
    };
    let Some((range, size, _)) = table(&read(&(0..HEADER))?) else {
        return Ok(None);
    };
    let Some(sections) = sections(&read(&range)?, size) else {
        return Ok(None);
    };
    let symbols = sections.iter().find(|section| section.kind == SHT_DYNSYM);
    let Some(names) = symbols.and_then(|symbols| sections.get(symbols.link)) else {
        return Ok(None);
    };
    read(&names.bytes).map(Some)
}

/// What of an object file is no debug information; all of it where that cannot be told.
pub fn without_debug_information(data: &[u8]) -> Vec<Range<usize>> {
    let debug = || {
        let (range, size, names) = table(data)?;
        let sections = sections(data.get(range)?, size)?;
        let names = sections.get(names)?.bytes.start;
        let is_debug = |section: &&Section| {
            let name = data.get(names + section.name..).unwrap_or_default();
            section.kind != SHT_NOBITS && name.starts_with(b".debug_")
        };
        let mut found: Vec<_> = sections
            .iter()
            .filter(is_debug)
            .map(|one| one.bytes.clone())
            .collect();
        found.sort_by_key(|range| range.start);
        Some(found)
    };
    let mut result = Vec::new();
    let mut from = 0;
    for range in debug().unwrap_or_default() {
        if range.start > from {
            result.push(from..range.start.min(data.len()));
        }
        from = from.max(range.end);
    }
    if from < data.len() {
        result.push(from..data.len());
    }
    result
}
