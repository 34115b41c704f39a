//! As much of ELF as it takes to ask who calls what in a shared object, and where debug information
//! lies.  64 bits, little-endian; of everything else nothing is known.

use std::collections::HashMap;
use std::ops::Range;

const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const HEADER: usize = 64;
const MACHINE_X86_64: usize = 62;
const SHT_PROGBITS: usize = 1;
const SHT_SYMTAB: usize = 2;
const SHT_RELA: usize = 4;
const SHT_NOBITS: usize = 8;
const SHT_DYNSYM: usize = 11;
const SHF_EXECINSTR: usize = 4;
const STT_FUNC: usize = 2;
const R_X86_64_RELATIVE: usize = 8;

struct Section<'a> {
    name: &'a [u8],
    kind: usize,
    flags: usize,
    address: usize,
    bytes: Range<usize>,
    link: usize,
}

struct Symbol<'a> {
    name: &'a [u8],
    kind: usize,
    defined: bool,
    addresses: Range<usize>,
}

fn number<const N: usize>(data: &[u8], at: usize) -> Option<usize> {
    let bytes = data.get(at..at.checked_add(N)?)?;
    let value = bytes
        .iter()
        .rev()
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    usize::try_from(value).ok()
}

fn text(data: &[u8], at: usize) -> Option<&[u8]> {
    let rest = data.get(at..)?;
    Some(&rest[..rest.iter().position(|byte| *byte == 0)?])
}

fn sections(data: &[u8]) -> Option<Vec<Section<'_>>> {
    if !data.starts_with(MAGIC) {
        return None;
    }
    let start = number::<8>(data, 0x28)?;
    let (size, count) = (number::<2>(data, 0x3a)?, number::<2>(data, 0x3c)?);
    // More than 65,279 sections are counted elsewhere: unknown.
    if size < HEADER || count == 0 {
        return None;
    }
    let at = |index: usize| start.checked_add(index * size);
    let names = number::<8>(data, at(number::<2>(data, 0x3e)?)?.checked_add(0x18)?)?;
    (0..count)
        .map(|index| {
            let at = at(index)?;
            let offset = number::<8>(data, at + 0x18)?;
            Some(Section {
                name: text(data, names.checked_add(number::<4>(data, at)?)?)?,
                kind: number::<4>(data, at + 4)?,
                flags: number::<8>(data, at + 8)?,
                address: number::<8>(data, at + 0x10)?,
                bytes: offset..offset.checked_add(number::<8>(data, at + 0x20)?)?,
                link: number::<4>(data, at + 0x28)?,
            })
        })
        .collect()
}

fn symbols<'a>(data: &'a [u8], sections: &[Section], kind: usize) -> Option<Vec<Symbol<'a>>> {
    let section = sections.iter().find(|section| section.kind == kind)?;
    let names = sections.get(section.link)?.bytes.start;
    let one = |entry: &[u8]| {
        let start = number::<8>(entry, 8)?;
        Some(Symbol {
            name: text(data, names.checked_add(number::<4>(entry, 0)?)?)?,
            kind: number::<1>(entry, 4)? & 15,
            defined: number::<2>(entry, 6)? != 0,
            addresses: start..start.checked_add(number::<8>(entry, 16)?)?,
        })
    };
    data.get(section.bytes.clone())?
        .chunks_exact(24)
        .map(one)
        .collect()
}

/// A shared object's exported names, and who calls what in it.
pub struct Calls<'a> {
    pub exported: Vec<&'a [u8]>,
    /// Callers of functions that were asked for; an empty name where it is not known who calls.
    pub callers: Vec<&'a [u8]>,
}

/// Who calls the functions that `is_wanted` names: `(name, whether it is another library's)`.
///
/// `None` where that cannot be told: another machine's code, no table of symbols, a function whose
/// address is kept in data.
pub fn calls<'a>(data: &'a [u8], is_wanted: impl Fn(&[u8], bool) -> bool) -> Option<Calls<'a>> {
    if number::<2>(data, 0x12)? != MACHINE_X86_64 {
        return None;
    }
    let sections = sections(data)?;
    let dynamic = symbols(data, &sections, SHT_DYNSYM)?;
    let exported = dynamic.iter().map(|symbol| symbol.name).collect();
    let mut functions = symbols(data, &sections, SHT_SYMTAB)?;
    functions.retain(|symbol| symbol.kind == STT_FUNC && symbol.defined);
    functions.sort_by_key(|symbol| symbol.addresses.start);

    let mut wanted: HashMap<usize, ()> = functions
        .iter()
        .filter(|symbol| is_wanted(symbol.name, false))
        .map(|symbol| (symbol.addresses.start, ()))
        .collect();
    // Places that hold the address of one.
    let mut slots = Vec::new();
    for section in sections.iter().filter(|one| one.kind == SHT_RELA) {
        for entry in data.get(section.bytes.clone())?.chunks_exact(24) {
            let (place, info, value) = (
                number::<8>(entry, 0)?,
                number::<8>(entry, 8)?,
                number::<8>(entry, 16)?,
            );
            let of_another = dynamic
                .get(info >> 32)
                .is_some_and(|symbol| info >> 32 != 0 && is_wanted(symbol.name, true));
            if of_another || info & 0xffff_ffff == R_X86_64_RELATIVE && wanted.contains_key(&value)
            {
                let in_table = |one: &Section| {
                    one.name.starts_with(b".got")
                        && (one.address..one.address + one.bytes.len()).contains(&place)
                };
                sections.iter().find(|section| in_table(section))?;
                slots.push((place, ()));
            }
        }
    }
    wanted.extend(slots);
    // Stubs of the linker's that jump through such a place.
    let code =
        |section: &&Section| section.kind == SHT_PROGBITS && section.flags & SHF_EXECINSTR != 0;
    let is_stubs = |section: &Section| section.name.starts_with(b".plt");
    for section in sections.iter().filter(code).filter(|one| is_stubs(one)) {
        let found = references(data, section, &wanted)?;
        wanted.extend(found.into_iter().map(|at| (at & !15, ())));
    }
    let mut callers = Vec::new();
    for section in sections.iter().filter(code).filter(|one| !is_stubs(one)) {
        for at in references(data, section, &wanted)? {
            let after = functions.partition_point(|symbol| symbol.addresses.start <= at);
            let function = after.checked_sub(1).map(|index| &functions[index]);
            let known = function.filter(|symbol| symbol.addresses.contains(&at));
            callers.push(known.map_or(b"".as_slice(), |symbol| symbol.name));
        }
    }
    Some(Calls { exported, callers })
}

/// Where instructions name one of the addresses, as they do on this machine: by the distance from
/// the end of the four bytes that hold it.  Bytes that only look so do no harm.
fn references(data: &[u8], section: &Section, wanted: &HashMap<usize, ()>) -> Option<Vec<usize>> {
    let (low, high) = match (wanted.keys().min(), wanted.keys().max()) {
        (Some(low), Some(high)) => (*low, *high),
        _ => return Some(Vec::new()),
    };
    let code = data.get(section.bytes.clone())?;
    let mut found = Vec::new();
    for (index, bytes) in code.windows(4).enumerate() {
        let distance = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let at = section.address + index;
        let target = (at + 4).wrapping_add_signed(distance as isize);
        if (low..=high).contains(&target) && wanted.contains_key(&target) {
            found.push(at);
        }
    }
    Some(found)
}

/// What of an object file is no debug information; all of it where that cannot be told.
pub fn without_debug_information(data: &[u8]) -> Vec<Range<usize>> {
    let mut debug: Vec<Range<usize>> = sections(data)
        .unwrap_or_default()
        .into_iter()
        .filter(|one| one.kind != SHT_NOBITS && one.name.starts_with(b".debug_"))
        .map(|one| one.bytes)
        .collect();
    debug.sort_by_key(|range| range.start);
    let mut result = Vec::new();
    let mut from = 0;
    for range in debug {
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
