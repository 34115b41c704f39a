//! What arguments for the linker name.
//!
//! Those that are understood, and the files in them; one that is not may name anything: a directory
//! with programs in it (`-B`), a script that includes others (`-T`), a file of more arguments.

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
/// Their beginnings.  `-fuse-ld` takes a linker of those on `PATH`, `-l` a library of the
/// directories that count anyway.
const PLAIN_BEGINNINGS: &[&str] = &["-fuse-ld=", "-l", "-march=", "-mcpu=", "-mtune="];
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

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert!(of(words).is_err(), "{words}");
        }
    }
}
