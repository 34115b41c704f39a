//! A compile's arguments as they read where rustc sees the checkout at its identity.
//!
//! Changed, where it is a path inside the checkout: `--out-dir`, `-o`, `--emit KIND=PATH`,
//! `-C incremental`, `--extern NAME=PATH` (with options before the name), `-L KIND=PATH`; `@FILE`
//! is read.  These are what rustc's incremental state depends on.
//!
//! Left: relative paths, which go with the working directory, and everything else, because the
//! checkout is at its real path inside as well.  That matters for what goes into outputs: a
//! library given to the linker by its path (`-C link-arg`) may be looked for there at run time,
//! an `-rpath` certainly is, and so is `-C profile-generate`.
//!
//! Refused, because the outputs would not be those of a build here: an absolute source file in
//! the checkout (`file!()` would name the identity; Cargo names no unit alike in two checkouts
//! that has one), `-C instrument-coverage` and `-C split-debuginfo=unpacked` (whose readers look
//! for files at the paths that rustc saw), `--remap-path-prefix` of a path that is called
//! something else inside.  Also what is not Cargo's way to build a unit: `--print`, output to
//! stdout.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::super::strip_prefix;
use super::places::Places;

/// Options of rustc 1.95 whose value is no concern of ours (rustc_session's `rustc_optgroups`).
const WITH_VALUE: &[&str] = &[
    "--allow",
    "--cap-lints",
    "--cfg",
    "--check-cfg",
    "--color",
    "--crate-name",
    "--crate-type",
    "--deny",
    "--diagnostic-width",
    "--edition",
    "--env-set",
    "--error-format",
    "--explain",
    "--forbid",
    "--force-warn",
    "--json",
    "--remap-path-scope",
    "--sysroot",
    "--target",
    "--warn",
    "-A",
    "-D",
    "-F",
    "-W",
    "-Z",
    "-l",
];

/// Values of these are mapped: a path, or one after the first `=`.
const PATH: &[&str] = &["--out-dir", "-o"];
const NAMED_PATH: &[&str] = &["--extern", "-L"];

/// `arguments` are those after the compiler, none of them `@FILE`.
pub fn rewrite<'a>(
    arguments: impl Iterator<Item = &'a OsStr>,
    places: &Places,
) -> Result<Vec<OsString>, String> {
    let mut result = Vec::new();
    let mut rest = arguments;
    while let Some(argument) = rest.next() {
        let (name, value, separate) = match split(argument) {
            Some((name, Some(value))) => (name, value, false),
            Some((name, None)) => match rest.next() {
                Some(value) => (name, value, true),
                None => return Err(format!("{name} without a value")),
            },
            None => {
                if !is_option(argument) && places.seen(Path::new(argument)).is_some() {
                    return Err(format!("{} is an absolute source", argument.display()));
                }
                result.push(argument.to_owned());
                continue;
            }
        };
        let Some(mapped) = map(name, value, places)? else {
            result.push(argument.to_owned());
            if separate {
                result.push(value.to_owned());
            }
            continue;
        };
        if separate {
            result.push(argument.to_owned());
            result.push(mapped);
        } else {
            let head = argument.len() - value.len();
            let mut whole = argument.as_bytes()[..head].to_vec();
            whole.extend_from_slice(mapped.as_bytes());
            result.push(OsString::from_vec(whole));
        }
    }
    Ok(result)
}

fn is_option(argument: &OsStr) -> bool {
    argument.as_bytes().starts_with(b"-") && argument != "-"
}

/// An option that takes a value, and the value if it is in the same word.
fn split(argument: &OsStr) -> Option<(&'static str, Option<&OsStr>)> {
    const OURS: &[&str] = &[
        "--codegen",
        "-C",
        "--emit",
        "--print",
        "--remap-path-prefix",
    ];
    let names = [WITH_VALUE, PATH, NAMED_PATH, OURS];
    for name in names.iter().flat_map(|names| names.iter()) {
        let Some(value) = strip_prefix(argument, name) else {
            continue;
        };
        if value.is_empty() {
            return Some((name, None));
        }
        if !name.starts_with("--") {
            return Some((name, Some(value)));
        }
        if let Some(value) = strip_prefix(value, "=") {
            return Some((name, Some(value)));
        }
    }
    None
}

/// The new value, or `None` where the old one stays.
fn map(name: &str, value: &OsStr, places: &Places) -> Result<Option<OsString>, String> {
    let whole = |value: &OsStr| places.seen(Path::new(value)).map(PathBuf::into_os_string);
    let named = |value: &OsStr| {
        let at = value.as_bytes().iter().position(|byte| *byte == b'=')? + 1;
        let (name, path) = value.as_bytes().split_at(at);
        let mut result = name.to_vec();
        result.extend_from_slice(whole(OsStr::from_bytes(path))?.as_bytes());
        Some(OsString::from_vec(result))
    };
    Ok(match name {
        "-o" | "--out-dir" if value == "-" => return Err("output to stdout".to_owned()),
        "-o" | "--out-dir" => whole(value),
        // `-L PATH` has no kind, and a path may hold a `=`.
        "-L" => whole(value).or_else(|| named(value)),
        "--extern" => named(value),
        "--emit" => {
            let mut changed = false;
            let mut kinds = Vec::new();
            for kind in value.as_bytes().split(|byte| *byte == b',') {
                let kind = OsStr::from_bytes(kind);
                if kind.as_bytes().ends_with(b"=-") {
                    return Err("output to stdout".to_owned());
                }
                let mapped = named(kind);
                changed |= mapped.is_some();
                kinds.push(mapped.unwrap_or_else(|| kind.to_owned()));
            }
            changed.then(|| kinds.join(OsStr::new(",")))
        }
        "-C" | "--codegen" => {
            if let Some(path) = strip_prefix(value, "incremental=") {
                return Ok(whole(path).map(|path| {
                    let mut result = OsString::from("incremental=");
                    result.push(path);
                    result
                }));
            }
            let coverage = strip_prefix(value, "instrument-coverage").is_some_and(|how| {
                !["=no", "=n", "=off", "=false", "=0"]
                    .iter()
                    .any(|off| how == *off)
            });
            if coverage || value == "split-debuginfo=unpacked" {
                return Err(format!("-C {}", value.display()));
            }
            None
        }
        "--print" => return Err("--print".to_owned()),
        "--remap-path-prefix" => {
            let bytes = value.as_bytes();
            // rustc splits at the last one.
            let at = bytes.iter().rposition(|byte| *byte == b'=');
            let from = Path::new(OsStr::from_bytes(&bytes[..at.unwrap_or(bytes.len())]));
            let differs = |place: &super::places::Place| {
                from.starts_with(&place.real)
                    || place.real.starts_with(from)
                        && (place.is_nested() || !place.seen.starts_with(from))
            };
            if places.all().iter().any(differs) {
                return Err(format!("--remap-path-prefix={}", value.display()));
            }
            None
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::places::Place;
    use super::*;

    fn rewritten(line: &str) -> Result<String, String> {
        let place = |real: &str, seen: &str| Place {
            real: real.into(),
            seen: seen.into(),
        };
        let places = Places::of(vec![place("/w/b", "/w/a"), place("/out/b", "/out/a")]).unwrap();
        let words = line.split_whitespace().map(OsStr::new);
        let words = rewrite(words, &places)?;
        Ok(words.join(OsStr::new(" ")).into_string().unwrap())
    }

    #[test]
    fn a_call_of_cargos() {
        let line = |root: &str| {
            format!(
                "--crate-name app --edition=2021 src/main.rs --error-format=json \
                --json=diagnostic-rendered-ansi --crate-type bin --emit=dep-info,link \
                -C embed-bitcode=no -C debuginfo=2 --check-cfg cfg(docsrs) -C metadata=0123 \
                -C extra-filename=-4567 --out-dir {root}/target/debug/deps \
                -C incremental={root}/target/debug/incremental \
                -L dependency={root}/target/debug/deps --extern util={root}/target/libutil.rlib \
                --extern priv,noprelude:core={root}/target/libcore.rlib \
                -L native={root}/target/debug/build/n/out -l static=n"
            )
        };
        let one_space = |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(rewritten(&line("/w/b")).unwrap(), one_space(line("/w/a")));
        assert_eq!(
            rewritten(&line("/out/b")).unwrap(),
            one_space(line("/out/a"))
        );
        for other in ["/w/b-old", "/w", "/x/w/b", "target"] {
            assert_eq!(rewritten(&line(other)).unwrap(), one_space(line(other)));
        }
    }

    #[test]
    fn other_spellings() {
        for (line, expected) in [
            ("--out-dir=/w/b", "--out-dir=/w/a"),
            ("-o /w/b/x -o/w/b/y", "-o /w/a/x -o/w/a/y"),
            ("-Cincremental=/w/b/i", "-Cincremental=/w/a/i"),
            (
                "--codegen incremental=/w/b/i",
                "--codegen incremental=/w/a/i",
            ),
            (
                "--codegen=incremental=/w/b/i",
                "--codegen=incremental=/w/a/i",
            ),
            ("-L/w/b/x -L /w/b/y=z", "-L/w/a/x -L /w/a/y=z"),
            ("-Lall=/w/b/x", "-Lall=/w/a/x"),
            ("--extern=a=/w/b/x", "--extern=a=/w/a/x"),
            ("--extern a", "--extern a"),
            (
                "--emit dep-info=/w/b/x.d,link,obj=/w/b/x.o",
                "--emit dep-info=/w/a/x.d,link,obj=/w/a/x.o",
            ),
        ] {
            assert_eq!(rewritten(line).unwrap(), expected);
        }
    }

    #[test]
    fn what_reaches_outputs_stays() {
        for line in [
            "-C link-arg=/w/b/libx.so -Clink-arg=-Wl,-rpath,/w/b -C link-args=/w/b/x",
            "-C linker=/w/b/ld -C profile-generate=/w/b/prof -C profile-use=/w/b/p",
            "--sysroot /w/b/s --target /w/b/t.json --cfg a=\"/w/b\" -Z self-profile=/w/b",
            "--remap-path-prefix=/w=/x --remap-path-prefix /w/a=/x",
            "-C instrument-coverage=off -C split-debuginfo=packed",
            "-l /w/b/x -",
        ] {
            assert_eq!(rewritten(line).unwrap(), line);
        }
    }

    #[test]
    fn what_is_refused() {
        for line in [
            "/w/b/src/lib.rs",
            "--unknown /w/b/src",
            "-C instrument-coverage",
            "-Cinstrument-coverage=all",
            "-C split-debuginfo=unpacked",
            "--remap-path-prefix=/w/b=/x",
            "--remap-path-prefix /w/b/src=/x",
            "--print link-args",
            "--print=cfg",
            "--emit=dep-info,asm=-",
            "-o -",
            "--out-dir",
        ] {
            assert!(rewritten(line).is_err(), "{line}");
        }
    }
}
