//! What one call asks the compiler for: its words, taken apart as far as a key needs it.
//!
//! Only words that are understood are let through.  What else may be in a command line can name
//! files or make others, and such a call is the compiler's alone.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::super::args::{self, Call, Compile};

pub const CLIPPY: &str = "clippy-driver";

#[derive(Debug, Default)]
pub struct Request {
    pub crate_name: String,
    pub crate_types: Vec<String>,
    pub test: bool,
    /// `clippy-driver` stands before rustc, and is the compiler.
    pub clippy: bool,
    pub out_dir: PathBuf,
    /// `-0123456789abcdef`
    pub extra_filename: String,
    pub incremental: bool,
    /// Whether a program or shared object comes out, and whether anything else than metadata does.
    pub makes_code: bool,
    /// `--extern`, as (name with its options, file).
    pub externs: Vec<(String, PathBuf)>,
    /// `-L` directories in which native libraries are looked for.
    pub library_paths: Vec<PathBuf>,
    /// Whether rustc tells of each file that it made.
    pub tells_outputs: bool,
    /// How diagnostics are to be said; code does not depend on it.
    pub form: Vec<String>,
    pub target: Option<String>,
    pub linker: Option<String>,
    pub link_arguments: Vec<String>,
    /// Files that options name (`-C profile-use`, a target's specification).
    pub files: Vec<PathBuf>,
    /// Whether code is made for whatever processor this is.
    pub native_cpu: bool,
    /// All that is left, in order.
    pub words: Vec<String>,
}

/// Options with a value that says nothing about files.
const PLAIN: &[&str] = &[
    "--crate-name",
    "--edition",
    "--cap-lints",
    "--check-cfg",
    "--cfg",
    "--remap-path-prefix",
    "--warn",
    "--allow",
    "--deny",
    "--forbid",
    "--force-warn",
    "-l",
];
const LIBRARIES: &[&str] = &["lib", "rlib", "dylib", "staticlib", "cdylib"];
const PROGRAMS: &[&str] = &["bin", "proc-macro"];
const FORM: &[&str] = &["--error-format", "--json", "--color", "--diagnostic-width"];
const FLAGS: &[&str] = &["-g", "-O"];
/// Of `-C`: makes files that nobody tells of, or names such.
const CODEGEN_REFUSED: &[&str] = &[
    "save-temps",
    "llvm-args",
    "remark",
    "dlltool",
    "link-dead-code",
];

impl Request {
    /// Or why the call is the compiler's alone.
    pub fn of(call: &Call, compile: &Compile) -> Result<Self, String> {
        let clippy = match call.programs {
            [_] => false,
            [wrapper, _] if Path::new(wrapper).file_name() == Some(OsStr::new(CLIPPY)) => true,
            _ => return Err("another wrapper".to_owned()),
        };
        let mut result = Self {
            clippy,
            out_dir: compile.out_dir.clone(),
            incremental: compile.incremental.is_some(),
            extra_filename: text(&compile.extra_filename)?.to_owned(),
            crate_name: text(&compile.crate_name)?.to_owned(),
            ..Self::default()
        };
        if compile.sysroot.is_some() {
            return Err("--sysroot".to_owned());
        }
        let given = args::expand(call.arguments);
        let mut rest = given.iter().map(AsRef::as_ref);
        let mut emit = Vec::new();
        let mut sources = 0;
        while let Some(word) = rest.next() {
            let word = text(word)?;
            let (name, value) = split(word, &mut rest)?;
            match (name, value) {
                ("", None) => {
                    sources += 1;
                    result.words.push(word.to_owned());
                }
                ("--test", None) => {
                    result.test = true;
                    result.words.push(word.to_owned());
                }
                (flag, None) if FLAGS.contains(&flag) => result.words.push(word.to_owned()),
                ("--emit", Some(kinds)) => emit.extend(kinds.split(',').map(str::to_owned)),
                ("--crate-type", Some(kinds)) => {
                    result
                        .crate_types
                        .extend(kinds.split(',').map(str::to_owned));
                }
                ("--out-dir", Some(_)) => {}
                ("-L", Some(path)) => result.library_path(path)?,
                ("--extern", Some(value)) => match value.split_once('=') {
                    Some((name, path)) => result.externs.push((name.to_owned(), path.into())),
                    None => result.words.push(format!("--extern {value}")),
                },
                ("--target", Some(target)) => {
                    if target.contains('/') || target.ends_with(".json") {
                        result.files.push(target.into());
                    }
                    result.target = Some(target.to_owned());
                    result.words.push(format!("--target {target}"));
                }
                ("-C", Some(option)) => result.codegen(option)?,
                (name, Some(value)) if FORM.contains(&name) => {
                    result.tells_outputs |=
                        name == "--json" && value.split(',').any(|kind| kind == "artifacts");
                    result.form.push(format!("{name}={value}"));
                }
                // A file of any name.
                ("-l", Some(value)) if value.contains("verbatim") => {
                    return Err(format!("-l {value}"));
                }
                (name, Some(value)) if PLAIN.contains(&name) => {
                    result.words.push(format!("{name} {value}"));
                }
                _ => return Err(format!("the option {word}")),
            }
        }
        if sources != 1 {
            return Err("not one source file".to_owned());
        }
        emit.sort();
        if !emit.iter().any(|kind| kind == "dep-info")
            || !emit
                .iter()
                .all(|kind| matches!(kind.as_str(), "dep-info" | "metadata" | "link"))
        {
            return Err(format!("--emit {}", emit.join(",")));
        }
        if !result.tells_outputs {
            return Err("nobody asks for what it makes".to_owned());
        }
        let makes_code = emit.iter().any(|kind| kind == "link");
        let is_known = |kind: &String| LIBRARIES.contains(&&**kind) || PROGRAMS.contains(&&**kind);
        if let Some(other) = result.crate_types.iter().find(|kind| !is_known(kind)) {
            return Err(format!("the crate type {other}"));
        }
        // Cargo names a path package's shared object as its users know it, and what is made with it.
        // Who is given that goes by its content.
        let is_library = |kind: &String| LIBRARIES.contains(&&**kind);
        let makes_libraries =
            !result.crate_types.is_empty() && result.crate_types.iter().all(is_library);
        if result.extra_filename.is_empty() && !makes_libraries {
            return Err("its files carry no hash".to_owned());
        }
        result.makes_code = makes_code;
        result.words.push(format!("--emit {}", emit.join(",")));
        let kinds = result.crate_types.join(",");
        result.words.push(format!("--crate-type {kinds}"));
        Ok(result)
    }

    /// Whether everything below it ends up in the output.
    pub fn links(&self) -> bool {
        let whole = |kind: &String| !matches!(kind.as_str(), "lib" | "rlib");
        self.makes_code && (self.test || self.crate_types.iter().any(whole))
    }

    fn library_path(&mut self, value: &str) -> Result<(), String> {
        match value.split_once('=') {
            // What is found there is named by `--extern`, or by what that names.
            Some(("dependency", _)) => {}
            Some(("native" | "all", path)) => self.library_paths.push(path.into()),
            Some(("crate" | "framework", _)) => return Err(format!("-L {value}")),
            _ => self.library_paths.push(value.into()),
        }
        Ok(())
    }

    fn codegen(&mut self, option: &str) -> Result<(), String> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let name = name.replace('_', "-");
        if CODEGEN_REFUSED.contains(&name.as_str()) || (name == "split-debuginfo" && value != "off")
        {
            return Err(format!("-C {option}"));
        }
        match name.as_str() {
            "incremental" => {
                self.words.push("-C incremental".to_owned());
                return Ok(());
            }
            "linker" => self.linker = Some(value.to_owned()),
            "link-arg" | "pre-link-arg" | "post-link-arg" => {
                self.link_arguments.push(value.to_owned());
            }
            "link-args" | "pre-link-args" | "post-link-args" => {
                self.link_arguments
                    .extend(value.split(' ').map(str::to_owned));
            }
            "profile-use" | "profile-sample-use" => self.files.push(value.into()),
            // Names a file, other than as a choice between yes and no.
            "linker-plugin-lto" if value.contains('/') => return Err(format!("-C {option}")),
            "target-cpu" | "tune-cpu" if value == "native" => self.native_cpu = true,
            _ => {}
        }
        self.words.push(format!("-C {option}"));
        Ok(())
    }
}

fn text(word: &OsStr) -> Result<&str, String> {
    word.to_str()
        .ok_or_else(|| "an argument that is not UTF-8".to_owned())
}

/// (option, its value); the option is empty for the source file.
fn split<'a>(
    word: &'a str,
    rest: &mut impl Iterator<Item = &'a OsStr>,
) -> Result<(&'a str, Option<&'a str>), String> {
    if !word.starts_with('-') || word == "-" {
        return Ok(("", None));
    }
    if let Some((name, value)) = word.split_once('=')
        && name.starts_with("--")
    {
        return Ok((if name == "--codegen" { "-C" } else { name }, Some(value)));
    }
    let name = match word {
        "--test" | "-g" | "-O" => return Ok((word, None)),
        "--codegen" => "-C",
        "-W" => "--warn",
        "-A" => "--allow",
        "-D" => "--deny",
        "-F" => "--forbid",
        _ => word,
    };
    if name.starts_with("--") || word.len() == 2 {
        let value = rest.next().ok_or_else(|| format!("the option {word}"))?;
        return Ok((name, Some(text(value)?)));
    }
    // -Cname=value, -lname, -Lpath, -Wlint
    let name = match word.get(..2) {
        Some("-C") => "-C",
        Some("-L") => "-L",
        Some("-l") => "-l",
        Some("-W") => "--warn",
        Some("-A") => "--allow",
        Some("-D") => "--deny",
        Some("-F") => "--forbid",
        _ => return Err(format!("the option {word}")),
    };
    Ok((name, Some(&word[2..])))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use super::*;

    fn request(more: &str) -> Result<Request, String> {
        let line = format!(
            "rustc --crate-name app --edition=2024 src/main.rs --error-format=json \
             --json=diagnostic-rendered-ansi,artifacts --crate-type bin --emit=dep-info,link \
             -C embed-bitcode=no -C metadata=0123 -C extra-filename=-89abcdef01234567 \
             --out-dir /w/target/debug/deps {more}"
        );
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let call = Call::of(&words);
        Request::of(&call, &call.compile().unwrap())
    }

    #[test]
    fn a_call_of_cargos() {
        let found = request(
            "-C incremental=/w/i -L dependency=/w/target/debug/deps -L native=/n -L/m \
             --extern a=/w/liba.rlib --extern priv:b=/w/libb.so --extern proc_macro \
             --diagnostic-width=80 -Wunused --cap-lints allow",
        )
        .unwrap();
        assert!(found.incremental && found.links() && found.tells_outputs);
        let externs: Vec<_> = found
            .externs
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(externs, ["a", "priv:b"]);
        assert_eq!(found.library_paths, [Path::new("/n"), Path::new("/m")]);
        assert_eq!(found.form.len(), 3);
        assert!(
            !found.words.iter().any(|word| word.contains("/w")),
            "{:?}",
            found.words
        );
        assert!(found.words.contains(&"--extern proc_macro".to_owned()));
    }

    #[test]
    fn what_the_code_depends_on_is_among_the_words() {
        let words = |more: &str| request(more).unwrap().words;
        let plain = words("");
        for more in [
            "-C opt-level=3",
            "-Copt-level=3",
            "--cfg x",
            "--test",
            "-O",
            "-ldl",
        ] {
            assert_ne!(words(more), plain, "{more}");
        }
        for more in ["--diagnostic-width=7", "--color always", "-L dependency=/x"] {
            assert_eq!(words(more), plain, "{more}");
        }
    }

    #[test]
    fn what_is_not_understood_is_the_compilers_alone() {
        for more in [
            "-Zunpretty=expanded",
            "-C save-temps",
            "-C split-debuginfo=packed",
            "-C llvm_args=-x",
            "--emit=asm",
            "-o x",
            "--crate-type sdylib",
            "other.rs",
            "-L crate=/x",
            "--sysroot /s",
            "--print link-args",
        ] {
            assert!(request(more).is_err(), "{more}");
        }
    }

    #[test]
    fn who_may_stand_before_rustc() {
        let call = |wrapper: &str| {
            let line = format!(
                "{wrapper} rustc --crate-name a a.rs --json=artifacts --crate-type lib \
                 --emit=dep-info,metadata -C extra-filename=-0 --out-dir d"
            );
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let call = Call::of(&words);
            Request::of(&call, &call.compile().unwrap())
        };
        assert!(call("/bin/clippy-driver").unwrap().clippy);
        assert!(call("/bin/sccache").is_err());
    }

    #[test]
    fn without_a_hash_libraries_alone() {
        let kind = |kind: &str| {
            let line = format!(
                "rustc --crate-name a a.rs --json=artifacts --crate-type {kind} \
                 --emit=dep-info,link --out-dir d"
            );
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let call = Call::of(&words);
            Request::of(&call, &call.compile().unwrap())
        };
        assert!(kind("cdylib").unwrap().links());
        for library in ["cdylib,staticlib", "cdylib,rlib", "dylib"] {
            assert!(kind(library).unwrap().links(), "{library}");
        }
        for other in ["bin", "proc-macro"] {
            assert!(kind(other).is_err(), "{other}");
        }
    }

    #[test]
    fn who_links() {
        assert!(request("--test --crate-type lib").unwrap().links());
        let library = |emit: &str| {
            let line = format!(
                "rustc --crate-name a a.rs --json=artifacts --crate-type lib --emit={emit} \
                 -C extra-filename=-0 --out-dir d"
            );
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let call = Call::of(&words);
            Request::of(&call, &call.compile().unwrap()).unwrap()
        };
        assert!(!library("dep-info,metadata,link").links());
        assert!(!library("dep-info,metadata").makes_code);
    }
}
