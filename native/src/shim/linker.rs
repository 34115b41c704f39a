//! A linker that was chosen with `cargo cow init --linker`: `CARGO_COW_LINKER=mold|lld|wild`.
//!
//! It is named to the compiler driver by a link argument that Cargo never sees, so no fingerprint
//! and no unit changes; what is linked already stays as it is until it is linked anew.  Who sets a
//! linker of their own, or arguments that another linker may read otherwise, keeps it.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::args::{Call, codegen, expand, option};
use super::warehouse::located;
use super::{log, strip_prefix, variable};

pub const VARIABLE: &str = "CARGO_COW_LINKER";

const KNOWN: &[&str] = &["lld", "mold", "wild"];

/// Codegen options that say which linker, or which kind of it.
const OWN: &[&str] = &[
    "link-self-contained",
    "linker",
    "linker-features",
    "linker-flavor",
    "linker-plugin-lto",
];

const LINKED: &[&str] = &["bin", "cdylib", "dylib", "proc-macro"];

/// The call's words, with the chosen linker where it links and leaves the choice to us.
pub fn choose(words: Vec<OsString>) -> Vec<OsString> {
    let Some(name) = variable(VARIABLE) else {
        return words;
    };
    let Some(known) = KNOWN.iter().find(|known| name == **known) else {
        log(&format!("linker: {} is not known", name.display()));
        return words;
    };
    let call = Call::of(&words);
    let expanded = expand(call.arguments);
    match is_ours_to_choose(&expanded) {
        Ok(false) => words,
        // Without it the compiler driver would fail, where rustc's own choice does not.
        Ok(true) if located(OsStr::new(&format!("ld.{known}"))).is_none() => {
            log(&format!("linker: not {known}: ld.{known} is not on PATH"));
            words
        }
        Ok(true) => {
            let mut words = words;
            words.push("-C".into());
            words.push(format!("link-arg=-fuse-ld={known}").into());
            words
        }
        Err(reason) => {
            log(&format!("linker: not {known}: {reason}"));
            words
        }
    }
}

/// `false`: nothing is linked.
fn is_ours_to_choose(arguments: &[Cow<OsStr>]) -> Result<bool, String> {
    let mut rest = arguments.iter().map(AsRef::as_ref);
    let mut links = false;
    let mut test = false;
    let mut emits = true;
    let mut own = None;
    while let Some(argument) = rest.next() {
        let argument: &OsStr = argument;
        if argument == "--test" {
            test = true;
        } else if let Some(kinds) = option(argument, "--crate-type", &mut rest) {
            links |= words_of(kinds).any(|kind| LINKED.contains(&kind));
        } else if let Some(kinds) = option(argument, "--emit", &mut rest) {
            emits = words_of(kinds).any(|kind| kind == "link" || kind.starts_with("link="));
        } else if let Some(target) = option(argument, "--target", &mut rest) {
            let here = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
            if target != OsStr::new(&here) {
                own = Some(format!("--target {}", target.display()));
            }
        } else if let Some(value) = codegen(argument, &mut rest)
            && sets_linker(value)
        {
            own = Some(format!("-C {}", value.display()));
        }
    }
    if !(emits && (links || test)) {
        return Ok(false);
    }
    own.map_or(Ok(true), Err)
}

fn words_of(list: &OsStr) -> impl Iterator<Item = &str> {
    list.as_bytes()
        .split(|byte| *byte == b',')
        .filter_map(|word| std::str::from_utf8(word).ok())
}

/// Whether a codegen option chooses the linker, or gives it what linkers read differently.
fn sets_linker(option: &OsStr) -> bool {
    let bytes = option.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'=');
    let name = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).replace('_', "-");
    if OWN.contains(&name.as_str()) {
        return true;
    }
    if !name.ends_with("link-arg") && !name.ends_with("link-args") {
        return false;
    }
    let value = end.map_or(&bytes[..0], |end| &bytes[end + 1..]);
    value
        .split(|byte| matches!(byte, b' ' | b','))
        .map(OsStr::from_bytes)
        .any(|word| {
            [
                "-fuse-ld",
                "--ld-path",
                "-B",
                "-T",
                "--script",
                "-plugin",
                "@",
            ]
            .iter()
            .any(|prefix| strip_prefix(word, prefix).is_some())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(words: &str) -> Result<bool, String> {
        let words: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        let words: Vec<Cow<OsStr>> = words
            .iter()
            .map(|word| Cow::Borrowed(word.as_os_str()))
            .collect();
        is_ours_to_choose(&words)
    }

    #[test]
    fn what_links() {
        for words in [
            "--crate-type bin --emit=dep-info,link",
            "--crate-type=proc-macro --emit=dep-info,link",
            "--crate-type lib,cdylib --emit=dep-info,metadata,link",
            "--test --emit=dep-info,link",
            "--crate-type bin",
        ] {
            assert_eq!(verdict(words), Ok(true), "{words}");
        }
        for words in [
            "--crate-type lib --emit=dep-info,metadata,link",
            "--crate-type bin --emit=dep-info,metadata",
            "--crate-type staticlib",
            "-vV",
            "",
        ] {
            assert_eq!(verdict(words), Ok(false), "{words}");
        }
    }

    #[test]
    fn who_sets_a_linker_keeps_it() {
        for option in [
            "-C linker=clang",
            "-Clinker=clang",
            "--codegen=linker_flavor=gcc",
            "-C link-arg=-fuse-ld=gold",
            "-C link-args=-Wl,--as-needed -C link-arg=--ld-path=/x",
            "-C link-arg=-Wl,-T,script.ld",
            "-C link-arg=-Tlink.x",
            "-C linker-plugin-lto",
            "--target wasm32-unknown-unknown",
        ] {
            let words = format!("--crate-type bin {option}");
            assert!(verdict(&words).is_err(), "{words}");
            let words = format!("--crate-type lib {option}");
            assert_eq!(verdict(&words), Ok(false), "{words}");
        }
        for option in [
            "-C link-arg=-Wl,-rpath,/x",
            "-C link-arg=-lm",
            "-C opt-level=3",
        ] {
            assert_eq!(
                verdict(&format!("--crate-type bin {option}")),
                Ok(true),
                "{option}"
            );
        }
    }
}
