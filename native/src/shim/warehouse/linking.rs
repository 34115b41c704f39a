//! What arguments for the linker name.
//!
//! Those that are understood, and the files in them; one that is not may name anything: a directory
//! with programs in it (`-B`), a script that includes others (`-T`), a file of more arguments.

use std::fs;
use std::io::Read;
use std::path::Path;

/// Arguments of the C compiler that name nothing but a feature of what is linked.
const PLAIN: &[&str] = &[
    "-m32",
    "-m64",
    "-no-pie",
    "-nodefaultlibs",
    "-nolibc",
    "-nostartfiles",
    "-nostdlib",
    "-pie",
    "-pthread",
    "-rdynamic",
    "-s",
    "-shared-libgcc",
    "-static",
    "-static-libgcc",
    "-static-pie",
];
/// Their beginnings.  `-l` takes a library of the directories that count anyway.
const PLAIN_BEGINNINGS: &[&str] = &["-l", "-march=", "-mcpu=", "-mtune="];
/// Of `-fuse-ld`: those of `PATH` that count anyway.  Clang takes a file, and any `ld.NAME`, as well.
const LINKERS_OF_COMPILERS: &[&str] = &["bfd", "gold", "lld", "mold", "wild"];
/// Of the linker itself.
const LINKERS: &[&str] = &[
    "--as-needed",
    "--Bdynamic",
    "--Bstatic",
    "--disable-new-dtags",
    "--emit-relocs",
    "--enable-new-dtags",
    "--end-group",
    "--end-lib",
    "--export-dynamic",
    "--gc-sections",
    "--no-as-needed",
    "--no-gc-sections",
    "--no-undefined",
    "--no-whole-archive",
    "--start-group",
    "--start-lib",
    "--strip-all",
    "--strip-debug",
    "--whole-archive",
    "-Bdynamic",
    "-Bstatic",
    "-Bsymbolic",
    "-E",
    "-S",
    "-q",
    "-s",
];
const LINKERS_BEGINNINGS: &[&str] = &[
    "--build-id",
    "--compress-debug-sections",
    "--defsym=",
    "--hash-style",
    "--icf",
    "--threads",
    "--undefined=",
    "-l",
    "-z",
];
/// Take the next word, which is no file.
const WITH_WORD: &[&str] = &["-h", "-rpath", "--rpath", "-soname", "--soname", "-u", "-z"];
/// Take a file, as the next word or after `=`; it includes no other.
const WITH_FILE: &[&str] = &[
    "--dynamic-list",
    "--retain-symbols-file",
    "--version-script",
];

/// The files that count, or the first argument that is not understood.
pub fn files(arguments: &[String]) -> Result<Vec<&str>, String> {
    let mut files = Vec::new();
    for argument in arguments {
        match argument.strip_prefix("-Wl,") {
            Some(words) => of_linkers(words, &mut files),
            None => of_compilers(argument, &mut files),
        }
        .ok_or_else(|| format!("the link argument {argument}"))?;
    }
    Ok(files)
}

fn begins(word: &str, beginnings: &[&str]) -> bool {
    beginnings
        .iter()
        .any(|beginning| word.strip_prefix(beginning).is_some())
}

fn of_compilers<'a>(word: &'a str, files: &mut Vec<&'a str>) -> Option<()> {
    if let Some(name) = word.strip_prefix("-fuse-ld=") {
        return LINKERS_OF_COMPILERS.contains(&name).then_some(());
    }
    if word.is_empty() || PLAIN.contains(&word) || begins(word, PLAIN_BEGINNINGS) {
        return Some(());
    }
    (!word.starts_with(['-', '@'])).then(|| files.push(word))
}

fn of_linkers<'a>(words: &'a str, files: &mut Vec<&'a str>) -> Option<()> {
    let mut words = words.split(',');
    while let Some(word) = words.next() {
        let (name, value) = word.split_once('=').unzip();
        let name = name.unwrap_or(word);
        if WITH_FILE.contains(&name) {
            files.push(value.or_else(|| words.next())?);
        } else if WITH_WORD.contains(&name) {
            if value.is_none() {
                words.next()?;
            }
        } else if !LINKERS.contains(&word) && !begins(word, LINKERS_BEGINNINGS) {
            (!word.starts_with(['-', '@'])).then(|| files.push(word))?;
        }
    }
    Some(())
}

/// The text of a linker that is a script; `None` where it is a program.
pub fn script(path: &Path) -> Result<Option<String>, String> {
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = fs::File::open(path).map_err(said)?;
    let mut first = [0; 2];
    match file.read_exact(&mut first) {
        Ok(()) if &first == b"#!" => {}
        _ => return Ok(None),
    }
    let mut text = "#!".to_owned();
    let read = file.take(LONGEST_SCRIPT).read_to_string(&mut text);
    // One that is not text is none that is understood.
    Ok(Some(read.map_or_else(|_| String::new(), |_| text)))
}

const LONGEST_SCRIPT: u64 = 4096;

/// The program that a script starts, if it does nothing else: `exec PROGRAM ARGUMENT… "$@"` for the
/// system's shell, each word as it stands there, the arguments such that are understood and name no
/// file.  Whatever else stands in a script may read or start anything.
pub fn started_by(script: &str) -> Option<&str> {
    // What else separates words here is part of a word for the shell.
    let is_plain = |byte: &u8| byte.is_ascii_graphic() || b" \t\n".contains(byte);
    script.as_bytes().iter().all(is_plain).then_some(())?;
    let mut lines = script.lines();
    matches!(
        lines.next()?.trim_end(),
        "#!/bin/sh" | "#! /bin/sh" | "#!/bin/sh -e"
    )
    .then_some(())?;
    let mut lines = lines
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut words = lines.next()?.split_ascii_whitespace();
    (lines.next().is_none() && words.next() == Some("exec")).then_some(())?;
    let program = words.next()?;
    let is_plain = |word: &str| {
        word.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_./+,:-=".contains(&byte))
    };
    (is_plain(program) && !program.starts_with('-') && !program.contains('=')).then_some(())?;
    // What lies below the working directory is another one for each package.
    (program.starts_with('/') || !program.contains('/')).then_some(())?;
    let (given, own): (Vec<&str>, Vec<&str>) = words.partition(|word| *word == "\"$@\"");
    let own: Vec<String> = own.into_iter().map(str::to_owned).collect();
    let understood = given.len() == 1
        && own.iter().all(|word| is_plain(word))
        && files(&own).is_ok_and(|files| files.is_empty());
    understood.then_some(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_only_starts_another() {
        let of = |line: &str| {
            let text = format!("#!/bin/sh\n# ours\n\n{line}\n");
            started_by(&text).map(str::to_owned)
        };
        for line in [
            "exec clang -fuse-ld=mold \"$@\"",
            "  exec clang \"$@\" -Wl,-z,now -lm",
            "exec /opt/x/bin/clang \"$@\"",
        ] {
            assert!(
                of(line).is_some_and(|found| found.ends_with("clang")),
                "{line}"
            );
        }
        for line in [
            "clang \"$@\"",
            "exec clang $@",
            "exec clang",
            "exec clang \"$@\" \"$@\"",
            "exec clang \"$@\" || exit 1",
            "exec clang \"$@\"; touch x",
            "exec clang -fuse-ld=$LD \"$@\"",
            "exec $CC \"$@\"",
            "exec ~/clang \"$@\"",
            "exec ./clang \"$@\"",
            "exec -a x clang \"$@\"",
            "exec X=1 clang \"$@\"",
            "exec sccache clang \"$@\"",
            "exec clang -T/x \"$@\"",
            "exec clang -B/x \"$@\"",
            "exec clang \"$@\" 2>/x",
            "exec clang `cat x` \"$@\"",
            "exec clang *.o \"$@\"",
            "exec clang \"$@\"\u{a0}",
            "exec clang \r-s \"$@\"",
            "X=1\nexec clang \"$@\"",
            "exec clang \\\n-lm \"$@\"",
            "exec clang \"$@\"\nexec gcc \"$@\"",
            "",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
        for first in [
            "#!/bin/bash",
            "#!/usr/bin/env sh",
            "#!/bin/sh -x",
            "#!/usr/bin/python3",
        ] {
            let text = format!("{first}\nexec clang \"$@\"\n");
            assert_eq!(started_by(&text), None, "{first}");
        }
    }

    fn of(words: &str) -> Result<Vec<String>, String> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        files(&words).map(|files| files.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn files_that_are_named_count() {
        assert_eq!(
            of("-Wl,-z,now,-rpath,/x -pie -lm -fuse-ld=mold"),
            Ok(vec![])
        );
        assert_eq!(
            of("-Wl,--version-script=v.map,--dynamic-list,d /x/a.o"),
            Ok(["v.map", "d", "/x/a.o"].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn what_is_not_understood_may_name_anything() {
        for words in [
            "-Tlink.x",
            "-T link.x",
            "-Wl,-T,link.x",
            "-Wl,-Tlink.x",
            "-Wl,--script=link.x",
            "-B/x",
            "@more",
            "-Wl,@more",
            "-L/x",
            "-Wl,-L/x",
            "-specs=x",
            "-Wl,-plugin,x",
            "--ld-path=/x",
            "-Wl,-rpath",
            "-Xlinker",
            "-fuse-ld=/x/ld",
            "-fuse-ld=other",
        ] {
            assert!(of(words).is_err(), "{words}");
        }
    }
}
