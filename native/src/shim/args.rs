//! rustc's command line, as far as it tells where a unit's files go.
//!
//! Options are read as rustc's getopts reads them: `--name VALUE` or `--name=VALUE`, `-C KEY=VALUE`
//! with or without a space, `--codegen` for `-C`; the last one counts.  `@FILE` stands for the
//! lines of that file (rustc_driver's `args.rs`); Cargo uses it when a line would be too long.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::strip_prefix;

/// One call of the shim: one program word, or two where a workspace wrapper (such as
/// `clippy-driver`) stands before rustc.
pub struct Call<'a> {
    pub programs: &'a [OsString],
    pub arguments: &'a [OsString],
}

/// A compile into a directory of Cargo's.
#[derive(Debug, PartialEq, Eq)]
pub struct Compile {
    pub rustc: PathBuf,
    pub crate_name: OsString,
    /// As given: absolute, or relative to the working directory.
    pub out_dir: PathBuf,
    /// `-0123456789abcdef`; empty where Cargo gives none (a path package's cdylib, for one).
    pub extra_filename: OsString,
    /// `None`: no dep-info was asked for, or to stdout.
    pub dep_info: Option<PathBuf>,
    pub sysroot: Option<PathBuf>,
    /// Where rustc keeps its state from one compile to the next.
    pub incremental: Option<PathBuf>,
    /// As rustc chooses it for this platform where nothing is said.
    pub linker: OsString,
}

impl<'a> Call<'a> {
    pub fn of(command: &'a [OsString]) -> Self {
        // Cargo never passes a source file first, and never a program that ends in `.rs`.
        let wrapped = command.get(1).is_some_and(|second| {
            let bytes = second.as_bytes();
            !bytes.is_empty() && !matches!(bytes[0], b'-' | b'@') && !bytes.ends_with(b".rs")
        });
        let (programs, arguments) = command.split_at(if wrapped { 2 } else { 1 });
        Self {
            programs,
            arguments,
        }
    }

    /// Cargo's first question to a compiler, and nobody else's spelling of it
    /// (`Rustc::new` in Cargo's `src/cargo/util/rustc.rs`).
    pub fn is_version_probe(&self) -> bool {
        matches!(self.arguments, [only] if only == "-vV")
    }

    /// `None`: not a compile, so nothing to observe.
    pub fn compile(&self) -> Option<Compile> {
        let arguments = expand(self.arguments);
        let mut rest = arguments.iter().map(AsRef::as_ref);
        let mut crate_name = None;
        let mut out_dir = None;
        let mut extra_filename = OsString::new();
        let mut emit: Option<OsString> = None;
        let mut sysroot = None;
        let mut incremental = None;
        let mut linker = OsString::from("cc");
        while let Some(argument) = rest.next() {
            let argument: &OsStr = argument;
            if let Some(value) = option(argument, "--crate-name", &mut rest) {
                crate_name = Some(value.to_owned());
            } else if let Some(value) = option(argument, "--out-dir", &mut rest) {
                out_dir = Some(PathBuf::from(value));
            } else if let Some(value) = option(argument, "--emit", &mut rest) {
                // Several --emit add up.
                let all = emit.get_or_insert_default();
                all.push(",");
                all.push(value);
            } else if let Some(value) = option(argument, "--sysroot", &mut rest) {
                sysroot = Some(PathBuf::from(value));
            } else if let Some(value) = codegen(argument, &mut rest) {
                if let Some(extra) = strip_prefix(value, "extra-filename=") {
                    extra_filename = extra.to_owned();
                } else if let Some(path) = strip_prefix(value, "incremental=") {
                    incremental = Some(PathBuf::from(path));
                } else if let Some(program) = strip_prefix(value, "linker=") {
                    linker = program.to_owned();
                }
            }
        }
        let (crate_name, out_dir) = (crate_name?, out_dir?);
        let dep_info = emit.and_then(|emit| {
            let kinds = emit.as_bytes().split(|byte| *byte == b',');
            let wanted = kinds.map(OsStr::from_bytes).find_map(|kind| {
                if kind == "dep-info" {
                    // rustc_session's OutputFilenames: the stem is the crate name and the extra
                    // part; only libraries get the prefix `lib`.
                    let mut name = crate_name.clone();
                    name.push(&extra_filename);
                    name.push(".d");
                    Some(out_dir.join(name))
                } else {
                    strip_prefix(kind, "dep-info=").map(PathBuf::from)
                }
            });
            wanted.filter(|path| path.as_os_str() != "-")
        });
        Some(Compile {
            rustc: PathBuf::from(self.programs.last()?),
            crate_name,
            out_dir,
            extra_filename,
            dep_info,
            sysroot,
            incremental,
            linker,
        })
    }
}

/// The arguments with every `@FILE` replaced by its lines; one that cannot be read stays, and
/// rustc will say so.
pub fn expand(arguments: &[OsString]) -> Vec<Cow<'_, OsStr>> {
    let mut result = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let contents = strip_prefix(argument, "@").and_then(|file| std::fs::read(file).ok());
        match contents {
            None => result.push(Cow::Borrowed(argument.as_os_str())),
            Some(contents) => {
                let lines = contents.split(|byte| *byte == b'\n');
                let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
                result.extend(
                    lines
                        .filter(|line| !line.is_empty())
                        .map(|line| Cow::Owned(OsStr::from_bytes(line).to_owned())),
                );
            }
        }
    }
    result
}

/// The value of `--name VALUE` or `--name=VALUE`.
pub fn option<'a>(
    argument: &'a OsStr,
    name: &str,
    rest: &mut impl Iterator<Item = &'a OsStr>,
) -> Option<&'a OsStr> {
    if argument == name {
        return rest.next();
    }
    strip_prefix(strip_prefix(argument, name)?, "=")
}

/// The value of `-C VALUE`, `-CVALUE`, `--codegen VALUE` or `--codegen=VALUE`.
pub fn codegen<'a>(
    argument: &'a OsStr,
    rest: &mut impl Iterator<Item = &'a OsStr>,
) -> Option<&'a OsStr> {
    if argument == "-C" {
        return rest.next();
    }
    strip_prefix(argument, "-C").or_else(|| option(argument, "--codegen", rest))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn strings(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    const CARGO: &str = "rustc --crate-name app --edition=2024 src/main.rs \
        --error-format=json --crate-type bin --emit=dep-info,link -C embed-bitcode=no \
        -C metadata=0123 -C extra-filename=-89abcdef01234567 --out-dir /w/target/debug/deps \
        -C incremental=/w/target/debug/incremental -L dependency=/w/target/debug/deps";

    #[test]
    fn a_call_of_cargos() {
        let words = strings(&CARGO.split_whitespace().collect::<Vec<_>>());
        let call = Call::of(&words);
        assert!(!call.is_version_probe());
        let compile = call.compile().unwrap();
        assert_eq!(compile.crate_name, "app");
        assert_eq!(compile.out_dir, Path::new("/w/target/debug/deps"));
        assert_eq!(compile.extra_filename, "-89abcdef01234567");
        assert_eq!(
            compile.dep_info.unwrap(),
            Path::new("/w/target/debug/deps/app-89abcdef01234567.d")
        );
        assert_eq!(compile.rustc, Path::new("rustc"));
        assert_eq!(
            compile.incremental.unwrap(),
            Path::new("/w/target/debug/incremental")
        );
    }

    #[test]
    fn a_workspace_wrapper_stands_before_rustc() {
        let words = strings(&[
            "clippy-driver",
            "/bin/rustc",
            "--crate-name=a",
            "--out-dir=d",
        ]);
        let compile = Call::of(&words).compile().unwrap();
        assert_eq!(compile.rustc, Path::new("/bin/rustc"));
        assert_eq!(compile.crate_name, "a");
        assert!(Call::of(&strings(&["clippy-driver", "rustc", "-vV"])).is_version_probe());
    }

    #[test]
    fn the_probe_is_exact() {
        assert!(Call::of(&strings(&["rustc", "-vV"])).is_version_probe());
        assert!(!Call::of(&strings(&["rustc", "-Vv"])).is_version_probe());
        assert!(!Call::of(&strings(&["rustc", "-vV", "--verbose"])).is_version_probe());
        assert!(!Call::of(&strings(&["rustc"])).is_version_probe());
        let other = strings(&["rustc", "-", "--crate-name", "___", "--print=file-names"]);
        assert_eq!(Call::of(&other).compile(), None);
    }

    #[test]
    fn other_spellings() {
        let words = strings(&[
            "rustc",
            "--crate-name=a",
            "--out-dir=first",
            "--out-dir",
            "d",
            "--codegen=extra-filename=-1",
            "-Cextra-filename=-2",
            "--emit=link",
            "--emit",
            "metadata,dep-info=x.d",
            "--sysroot=/s",
        ]);
        let compile = Call::of(&words).compile().unwrap();
        assert_eq!(compile.out_dir, Path::new("d"));
        assert_eq!(compile.extra_filename, "-2");
        assert_eq!(compile.dep_info.as_deref(), Some(Path::new("x.d")));
        assert_eq!(compile.sysroot.as_deref(), Some(Path::new("/s")));
    }

    #[test]
    fn dep_info_may_be_missing_or_on_stdout() {
        for emit in ["--emit=link", "--emit=dep-info=-"] {
            let words = strings(&["rustc", "--crate-name=a", "--out-dir=d", emit]);
            assert_eq!(Call::of(&words).compile().unwrap().dep_info, None);
        }
    }
}
