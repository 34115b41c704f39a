//! The verbs: command lines in, one JSON object on stdout out.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::clone_tree::{self, Mode, Options, Selection};
use crate::enter;
use crate::shim::warehouse;

/// Version of the command lines and outputs below.  Python refuses another one.
const PROTOCOL: u32 = 1;

/// Why a verb failed; printed as `{"error", "errno", "path"}` with `null` where unknown.
#[derive(Debug)]
pub struct Failure {
    pub error: String,
    pub errno: Option<i32>,
    pub path: Option<PathBuf>,
}

impl Failure {
    /// `doing` is a verb phrase ("open the directory"); `path` is what it was done to.
    pub fn new(doing: &str, errno: rustix::io::Errno, path: &Path) -> Self {
        let cause = std::io::Error::from(errno);
        Self {
            error: format!("cannot {doing}: {cause}"),
            errno: Some(errno.raw_os_error()),
            path: Some(path.to_path_buf()),
        }
    }

    pub fn usage(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            errno: None,
            path: None,
        }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "error": self.error,
            "errno": self.errno,
            "path": self.path.as_ref().map(|path| path.to_string_lossy()),
        })
    }
}

pub fn run(arguments: &[OsString]) -> ExitCode {
    let verb = arguments.first().map(|verb| verb.to_string_lossy());
    let result = match verb.as_deref() {
        Some("--version") => Ok(json!({
            "name": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": PROTOCOL,
        })),
        Some("--clone-tree") => {
            clone_options(&arguments[1..]).and_then(|options| clone_tree::run(&options))
        }
        Some("--enter") => match enter_options(&arguments[1..]).map(|options| enter::run(&options))
        {
            Ok((_, true)) => return ExitCode::FAILURE,
            Ok((failure, false)) | Err(failure) => Err(failure),
        },
        // The shim's own: what is left to do after a compile.
        Some("--identify") if arguments.len() >= 3 => {
            let target = arguments[2].to_str().filter(|target| !target.is_empty());
            warehouse::identify(Path::new(&arguments[1]), &arguments[3..], target)
                .map_err(Failure::usage)
        }
        Some("--keep") if arguments.len() == 2 => warehouse::finish(Path::new(&arguments[1]))
            .map(|()| json!({}))
            .map_err(Failure::usage),
        Some("--link-arguments") => {
            Ok(json!({"plain": warehouse::are_plain_for_linkers(&arguments[1..])}))
        }
        Some("--environment") => Ok(json!(warehouse::runs::environment())),
        Some("--follow") => warehouse::follow::follow(&arguments[1..])
            .map(|()| json!({}))
            .map_err(Failure::usage),
        Some("--warehouse") => request().and_then(|it| warehouse::surroundings::tell(&it)),
        Some("--keep-units") => request().and_then(|it| warehouse::units::keep(&it)),
        Some("--give-units") => request().and_then(|it| warehouse::units::give(&it)),
        Some(other) => Err(Failure::usage(format!("unknown verb {other}"))),
        None => Err(Failure::usage(
            "a verb (--version, --clone-tree, --enter) or a compiler is needed",
        )),
    };
    let (value, code) = match result {
        Ok(value) => (value, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(), ExitCode::FAILURE),
    };
    // A closed stdout leaves nobody to tell; the exit status still does.
    match writeln!(std::io::stdout(), "{value}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// JSON from stdin.
fn request() -> Result<Value, Failure> {
    let mut text = Vec::new();
    std::io::stdin()
        .lock()
        .read_to_end(&mut text)
        .map_err(|error| Failure::usage(format!("cannot read the request: {error}")))?;
    serde_json::from_slice(&text).map_err(|error| Failure::usage(format!("the request: {error}")))
}

/// `[--mode auto|reflink|copy] [--exclude RELATIVE]... [--only -] [--threads N] [--] SRC DST`
fn clone_options(arguments: &[OsString]) -> Result<Options, Failure> {
    let mut mode = Mode::Auto;
    let mut exclude = Vec::new();
    let mut only = None;
    let mut threads = None;
    let mut positional: Vec<PathBuf> = Vec::new();
    let mut rest = arguments.iter();
    let mut options_end = false;
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if options_end || !text.starts_with("--") {
            positional.push(PathBuf::from(argument));
            continue;
        }
        if text == "--" {
            options_end = true;
            continue;
        }
        let value = rest
            .next()
            .ok_or_else(|| Failure::usage(format!("{text} needs a value")))?;
        match &*text {
            "--mode" => {
                mode = match &*value.to_string_lossy() {
                    "auto" => Mode::Auto,
                    "reflink" => Mode::Reflink,
                    "copy" => Mode::Copy,
                    other => return Err(Failure::usage(format!("unknown mode {other}"))),
                };
            }
            "--exclude" => exclude.push(relative(value)),
            "--only" => {
                if value != "-" {
                    return Err(Failure::usage("--only reads names from stdin: --only -"));
                }
                only = Some(selection()?);
            }
            "--threads" => {
                threads = match value.to_string_lossy().parse() {
                    Ok(count) if count > 0 => Some(count),
                    _ => return Err(Failure::usage("--threads needs a positive number")),
                };
            }
            other => return Err(Failure::usage(format!("unknown option {other}"))),
        }
    }
    let Ok([source, destination]) = <[PathBuf; 2]>::try_from(positional) else {
        return Err(Failure::usage("--clone-tree needs SRC and DST"));
    };
    Ok(Options {
        mode,
        exclude,
        only,
        threads,
        source,
        destination,
    })
}

/// `./a/` and `a` are one name.
fn relative(name: &OsStr) -> PathBuf {
    Path::new(name)
        .components()
        .filter(|part| *part != Component::CurDir)
        .collect()
}

/// Names from stdin, each ended by a NUL.
fn selection() -> Result<Selection, Failure> {
    let mut names = Vec::new();
    std::io::stdin()
        .lock()
        .read_to_end(&mut names)
        .map_err(|error| Failure::usage(format!("cannot read the names: {error}")))?;
    Ok(Selection::new(
        names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| relative(OsStr::from_bytes(name))),
    ))
}

/// `[--room DIR] [--bind REAL SEEN]... [--read-only DIR]... [--keep DIR]... [--no-network]
/// [--directory DIR] [--signal N]... [--status FD] [--] COMMAND...`
fn enter_options(arguments: &[OsString]) -> Result<enter::Options, Failure> {
    let mut options = enter::Options::default();
    let mut rest = arguments.iter();
    let number = |text: &OsString| {
        let parsed = text.to_str().and_then(|text| text.parse::<i32>().ok());
        parsed.filter(|number| *number > 0)
    };
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if !text.starts_with("--") {
            options.command.push(argument.clone());
            break;
        }
        match &*text {
            "--" => break,
            "--no-network" => {
                options.no_network = true;
                continue;
            }
            _ => {}
        }
        let value = rest
            .next()
            .ok_or_else(|| Failure::usage(format!("{text} needs a value")))?;
        match &*text {
            "--room" => options.room = Some(value.into()),
            "--bind" => {
                let seen = rest
                    .next()
                    .ok_or_else(|| Failure::usage("--bind needs two paths"))?;
                options.binds.push((value.into(), seen.into()));
            }
            "--read-only" => options.read_only.push(value.into()),
            "--keep" => options.keep.push(value.into()),
            "--directory" => options.directory = Some(value.into()),
            "--signal" | "--status" => {
                let number = number(value)
                    .ok_or_else(|| Failure::usage(format!("{text} needs a positive number")))?;
                if text == "--signal" {
                    options.signals.push(number);
                } else {
                    options.status = Some(number);
                }
            }
            other => return Err(Failure::usage(format!("unknown option {other}"))),
        }
    }
    options.command.extend(rest.cloned());
    if options.command.is_empty() {
        return Err(Failure::usage("--enter needs a command"));
    }
    Ok(options)
}
