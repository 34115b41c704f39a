//! Filling a target that is not there yet, at Cargo's first probe: from a sibling checkout, and with
//! what the warehouse has.
//!
//! Cargo asks its wrapper for `RUSTC -vV` before it opens the target directory (measured with
//! Cargo 1.95), so what is in the target when the probe returns counts as having been there.
//! Every decision is `cargo-cow prepare --seed`'s.  What happens here is a cheap filter before a
//! Python start: in any doubt Python is asked, and only where there is a sibling checkout or a
//! warehouse, and this one never had a target.
//!
//! Cargo keeps the probe's answer in `target/.rustc_info.json` and does not probe again while
//! that holds, so ordinary compiles set the marker, too.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};

use super::checkout::Checkout;
use super::{log, strip_prefix, variable, warehouse};
use crate::signals::{self, Forwarding};

/// Longer than any clone should take; a build must not hang on us.
const LONGEST: Duration = Duration::from_secs(600);
/// Holds the identity of the Cargo process that was last told "no": Cargo 1.95 probes twice, and
/// the second Python start would find out the same.
const ASKED: &str = "asked";
/// What switches the warehouse on, as a variable or in `[env]` of a configuration file.
const WAREHOUSE: &str = "CARGO_COW_WAREHOUSE";
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Subcommands of Cargo 1.95 that may ask for the compiler's version but build nothing in this
/// workspace.  Everything else (aliases and external subcommands, too) may build.
const NOT_BUILDING: &[&str] = &[
    "add",
    "clean",
    "config",
    "fetch",
    "generate-lockfile",
    "help",
    "info",
    "init",
    "install",
    "locate-project",
    "login",
    "logout",
    "metadata",
    "new",
    "owner",
    "package",
    "pkgid",
    "publish",
    "read-manifest",
    "remove",
    "report",
    "rm",
    "search",
    "tree",
    "uninstall",
    "update",
    "vendor",
    "verify-project",
    "version",
    "yank",
];

/// The Cargo process that called us, as `/proc` shows it.
pub struct Cargo {
    /// Its number and start time, which no other process has; `None` if it is not our parent.
    identity: Option<String>,
    directory: PathBuf,
    /// After the program's name, up to `--`.
    arguments: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Exists,
    Missing,
    /// Somewhere that only Cargo's own configuration rules can tell.
    Unknown,
}

/// On any compile: the target exists.  `out_dir` tells where we are if Cargo is not our parent.
pub fn mark(out_dir: &Path) {
    let cargo = Cargo::calling();
    let project = match &cargo {
        Some(cargo) => Some(cargo.project_directory()),
        None => std::path::absolute(out_dir).ok(),
    };
    let Some(project) = project else { return };
    let Some(checkout) = Checkout::above(&project) else {
        return;
    };
    // `cargo install` compiles below a temporary directory, and says nothing about this target.
    if !checkout.is_marked()
        && cargo.is_none_or(|cargo| {
            cargo.may_build() && cargo.target(&project, &checkout.root) != Target::Missing
        })
    {
        make_marker(&checkout);
    }
}

fn make_marker(checkout: &Checkout) {
    if let Err(error) = checkout.mark() {
        log(&format!("cannot mark the checkout: {error}"));
    }
}

/// On Cargo's probe.
pub fn at_probe() {
    if variable("CARGO_COW_SEEDING").is_some() {
        return;
    }
    let cargo = Cargo::calling().unwrap_or_else(|| Cargo {
        identity: None,
        directory: std::env::current_dir().unwrap_or_default(),
        arguments: Vec::new(),
    });
    let project = cargo.project_directory();
    let Some(checkout) = Checkout::above(&project) else {
        return;
    };
    if !cargo.may_build() || checkout.is_marked() {
        return;
    }
    if cargo.target(&project, &checkout.root) == Target::Exists {
        make_marker(&checkout);
        return;
    }
    let words = cargo.words().filter(|_| cargo.may_have_warehouse());
    if (words.is_none() && !checkout.has_sibling()) || cargo.was_answered(&checkout) {
        return;
    }
    let Some(program) = program() else {
        log("not seeded: cargo-cow is not beside this program");
        return;
    };
    match cargo.seed(&program, words.unwrap_or_default()) {
        Ok(outcome) => log(&format!("seeding: {outcome}")),
        Err(error) => log(&format!("cannot run {}: {error}", program.display())),
    }
    if cargo.target(&project, &checkout.root) == Target::Exists {
        make_marker(&checkout);
    } else if let Some(identity) = &cargo.identity
        && let Err(error) = checkout.write(ASKED, identity)
    {
        log(&format!("cannot remember the answer: {error}"));
    }
}

/// The Python side: `CARGO_COW_PROGRAM`, else beside our own file.
pub fn program() -> Option<PathBuf> {
    if let Some(program) = variable("CARGO_COW_PROGRAM") {
        return Some(PathBuf::from(program));
    }
    let program = std::env::current_exe().ok()?.with_file_name("cargo-cow");
    program.is_file().then_some(program)
}

impl Cargo {
    /// `None`: our parent is not Cargo, or `/proc` does not say.
    pub fn calling() -> Option<Self> {
        let parent = rustix::process::getppid()?.as_raw_nonzero();
        let line = fs::read(format!("/proc/{parent}/cmdline")).ok()?;
        let line = line.strip_suffix(&[0]).unwrap_or(&line);
        let mut words = line.split(|byte| *byte == 0).map(OsStr::from_bytes);
        let name = Path::new(words.next()?).file_name()?;
        if name != "cargo" {
            return None;
        }
        let directory = fs::read_link(format!("/proc/{parent}/cwd")).ok()?;
        let arguments = words.take_while(|word| *word != "--");
        Some(Self {
            identity: identity(parent.get()),
            directory,
            arguments: arguments.map(OsStr::to_owned).collect(),
        })
    }

    /// Whether this very process has been answered already.
    fn was_answered(&self, checkout: &Checkout) -> bool {
        self.identity.is_some() && checkout.read(ASKED) == self.identity
    }

    /// The value of `--name VALUE` or `--name=VALUE`.
    fn option(&self, name: &str) -> Option<&OsStr> {
        let mut rest = self.arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == name {
                return rest.next().map(OsString::as_os_str);
            }
            let value = strip_prefix(argument, name).and_then(|rest| strip_prefix(rest, "="));
            if value.is_some() {
                return value;
            }
        }
        None
    }

    fn subcommand(&self) -> Option<&OsStr> {
        let mut rest = self.arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_bytes() {
                b"-C" | b"-Z" | b"--config" | b"--color" | b"--explain" => {
                    rest.next();
                }
                [b'-' | b'+', ..] | [] => {}
                _ => return Some(argument),
            }
        }
        None
    }

    /// The subcommand and what follows it up to `--`, for those who ask Cargo what it builds.
    ///
    /// `None`: what stands before it says more than how much is to be told.
    pub fn words(&self) -> Option<&[OsString]> {
        let told = |word: &&OsString| {
            let word = word.as_bytes();
            matches!(word, b"-q" | b"--quiet" | b"--verbose") || word.starts_with(b"-v")
        };
        let first = self.arguments.iter().take_while(told).count();
        let words = &self.arguments[first..];
        let verb = words.first()?;
        (!verb.as_bytes().starts_with(b"-") && !verb.as_bytes().starts_with(b"+")).then_some(words)
    }

    fn may_build(&self) -> bool {
        let Some(subcommand) = self.subcommand() else {
            return true;
        };
        // `install --path` builds in the workspace's own target.
        subcommand == "install" && self.option("--path").is_some()
            || !NOT_BUILDING.iter().any(|name| subcommand == *name)
    }

    /// Where Cargo looks for the package: its own directory, the manifest's, or what it is told
    /// to install.
    fn project_directory(&self) -> PathBuf {
        if self.subcommand().is_some_and(|name| name == "install")
            && let Some(path) = self.option("--path")
        {
            return self.directory.join(path);
        }
        let manifest = self
            .option("--manifest-path")
            .map(|manifest| self.directory.join(manifest));
        manifest
            .as_deref()
            .and_then(Path::parent)
            .unwrap_or(&self.directory)
            .to_owned()
    }

    /// Cargo's order (`GlobalContext::target_dir`): `--target-dir`, `CARGO_TARGET_DIR`, the
    /// configuration's `build.target-dir`, then `target` beside the workspace's manifest.
    fn target(&self, project: &Path, checkout: &Path) -> Target {
        if variable("CARGO_BUILD_BUILD_DIR").is_some() || self.configuration_decides() {
            return Target::Unknown;
        }
        let given = self.option("--target-dir").map(OsStr::to_owned);
        let given = given
            .or_else(|| variable("CARGO_TARGET_DIR"))
            .or_else(|| variable("CARGO_BUILD_TARGET_DIR"));
        if let Some(given) = given {
            return if exists(&self.directory.join(given)) {
                Target::Exists
            } else {
                Target::Missing
            };
        }
        beside_manifest(project, checkout)
    }

    /// Whether the configuration mentions a directory for build output, or includes another that
    /// might.
    fn configuration_decides(&self) -> bool {
        self.is_configured(&[b"target-dir", b"build-dir", b"include"])
    }

    /// Whether there may be a warehouse here with something in it: a Python start, and Cargo asked
    /// for its plan, are more than a small project's first build should pay for nothing.
    fn may_have_warehouse(&self) -> bool {
        let setting = variable(WAREHOUSE);
        match &setting {
            Some(value) if value == "off" || value == "0" => return false,
            Some(value) if value != "on" => return has_units(Path::new(value)),
            Some(_) => {}
            None if self.is_configured(&[WAREHOUSE.as_bytes(), b"include"]) => {}
            None => return false,
        }
        // A store that a file names, or one beside a target elsewhere, only Python finds.
        let elsewhere = (setting.is_none() && self.names_store()) || self.configuration_decides();
        let targets = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"].map(variable);
        let given = self.option("--target-dir").map(OsStr::to_owned);
        elsewhere
            || given.is_some()
            || targets.iter().any(Option::is_some)
            || warehouse::cache().is_some_and(|cache| has_units(&cache.join("warehouse")))
            || self
                .project_directory()
                .ancestors()
                .any(|above| has_units(&above.join(".cargo-cow/warehouse")))
    }

    /// Whether configuration files may set the warehouse to anything else than `on`.
    fn names_store(&self) -> bool {
        let on = format!("{WAREHOUSE} = \"on\"");
        self.configurations().any(|text| {
            let text = String::from_utf8_lossy(&text);
            text.matches(WAREHOUSE).count() != text.matches(&on).count()
        })
    }

    /// Whether a configuration file (or `--config`) holds one of the words.
    fn is_configured(&self, words: &[&[u8]]) -> bool {
        let mentions = |text: &[u8]| words.iter().any(|word| contains(text, word));
        if let Some(value) = self.option("--config") {
            // Its value may also be the path of a file.
            let file = fs::read(self.directory.join(value)).unwrap_or_default();
            if mentions(value.as_bytes()) || mentions(&file) {
                return true;
            }
        }
        self.configurations().any(|text| mentions(&text))
    }

    /// What is in the configuration files.
    fn configurations(&self) -> impl Iterator<Item = Vec<u8>> {
        let above = self
            .directory
            .ancestors()
            .map(|directory| directory.join(".cargo"));
        let files = above.chain(super::observe::cargo_home());
        files
            .flat_map(|directory| ["config.toml", "config"].map(|name| directory.join(name)))
            .filter_map(|file| fs::read(file).ok())
    }

    /// `words`: the command whose units the warehouse may have.
    fn seed(&self, program: &Path, words: &[OsString]) -> io::Result<String> {
        let mut command = Command::new(program);
        command
            .args(["prepare", "--seed"])
            .env("CARGO_COW_SEEDING", "1")
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(io::stderr().as_fd().try_clone_to_owned()?)
            // Its own group, so that all of it can be ended; signals are handed on.
            .process_group(0);
        for name in ["--target-dir", "--manifest-path"] {
            if let Some(value) = self.option(name) {
                command.arg(name).arg(value);
            }
        }
        if !words.is_empty() {
            command.arg("--").args(words);
        }
        let forwarding = Forwarding::begin();
        let mut child = command.spawn().inspect_err(|_| {
            if let Some(signal) = forwarding.received() {
                signals::die_by(signal);
            }
        })?;
        let group = -child.id().cast_signed();
        forwarding.to(group);
        let mut outcome = String::new();
        if !ended_within(&mut child, LONGEST) {
            outcome.push_str("ended after its time limit, ");
            signals::send(group, libc::SIGTERM);
            if !ended_within(&mut child, GRACE) {
                signals::send(group, libc::SIGKILL);
            }
        }
        let status = child.wait()?;
        forwarding.end();
        if let Some(signal) = forwarding.received() {
            signals::die_by(signal);
        }
        Ok(outcome + &status.to_string())
    }
}

/// `starttime` is the 22nd field of `/proc/<pid>/stat` (proc_pid_stat(5)); the second is a name
/// in parentheses that may hold anything.
fn identity(process: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let started = fields.split_whitespace().nth(22 - 3)?;
    Some(format!("{process} {started}"))
}

/// Waits without reaping.
fn ended_within(child: &mut Child, limit: Duration) -> bool {
    let started = Instant::now();
    let number = Pid::from_raw(child.id().cast_signed());
    let watched =
        number.and_then(|number| rustix::process::pidfd_open(number, PidfdFlags::empty()).ok());
    loop {
        let Some(left) = limit.checked_sub(started.elapsed()) else {
            return false;
        };
        if let Some(watched) = &watched {
            let left = rustix::event::Timespec::try_from(left).ok();
            let mut files = [PollFd::new(watched, PollFlags::IN)];
            if rustix::event::poll(&mut files, left.as_ref()).is_ok_and(|ready| ready > 0) {
                return true;
            }
        } else {
            // Before Linux 5.3.
            if !matches!(child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// `target` beside the manifest of the workspace that `project` belongs to, as far as a glance
/// tells: the nearest manifest with a `[workspace]` table, else the nearest manifest.  A target
/// beside another manifest on the way up leaves it open (`exclude`, `package.workspace`).
fn beside_manifest(project: &Path, checkout: &Path) -> Target {
    let mut directories = Vec::new();
    for directory in project.ancestors() {
        if let Ok(manifest) = fs::read(directory.join("Cargo.toml")) {
            directories.push(directory);
            if contains(&manifest, b"[workspace]") || contains(&manifest, b"[workspace.") {
                break;
            }
        }
        if directory == checkout {
            break;
        }
    }
    let workspace = directories.iter().position(|directory| {
        fs::read(directory.join("Cargo.toml"))
            .is_ok_and(|text| contains(&text, b"[workspace]") || contains(&text, b"[workspace."))
    });
    let Some(root) = directories.get(workspace.unwrap_or(0)) else {
        // No manifest at all: nothing will be built here.
        return Target::Exists;
    };
    if exists(&root.join("target")) {
        Target::Exists
    } else if directories
        .iter()
        .any(|other| exists(&other.join("target")))
    {
        Target::Unknown
    } else {
        Target::Missing
    }
}

/// Whether a store holds anything; what may not be looked into counts.
fn has_units(store: &Path) -> bool {
    match fs::read_dir(store.join("units")) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// A symlink that leads nowhere counts: it is somebody's arrangement.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cargo(line: &str) -> Cargo {
        Cargo {
            identity: None,
            directory: PathBuf::from("/w"),
            arguments: line.split_whitespace().map(OsString::from).collect(),
        }
    }

    #[test]
    fn what_may_build() {
        for line in [
            "",
            "--locked",
            "build",
            "+nightly -Z unstable-options --config a=1 test",
            "-C sub b",
            "xtask metadata",
            "install --path .",
        ] {
            assert!(cargo(line).may_build(), "{line}");
        }
        for line in [
            "metadata --format-version 1",
            "--color never clean",
            "-q --config build.jobs=1 fetch",
            "install ripgrep",
        ] {
            assert!(!cargo(line).may_build(), "{line}");
        }
    }

    #[test]
    fn what_is_asked_for() {
        let words = |line: &str| {
            let words = cargo(line).words().map(|words| words.join(OsStr::new(" ")));
            words.map(|words| words.into_string().unwrap())
        };
        assert_eq!(words("build -p a").as_deref(), Some("build -p a"));
        assert_eq!(words("-q -vv t --lib").as_deref(), Some("t --lib"));
        for line in ["", "--config a=1 build", "+nightly build", "-C sub b"] {
            assert_eq!(words(line), None, "{line}");
        }
    }

    #[test]
    fn where_the_project_is() {
        assert_eq!(cargo("build").project_directory(), Path::new("/w"));
        let manifest = cargo("build --manifest-path sub/Cargo.toml");
        assert_eq!(manifest.project_directory(), Path::new("/w/sub"));
        let manifest = cargo("build --manifest-path=/x/Cargo.toml");
        assert_eq!(manifest.project_directory(), Path::new("/x"));
        let installed = cargo("install --path tool");
        assert_eq!(installed.project_directory(), Path::new("/w/tool"));
    }

    #[test]
    fn a_child_that_takes_too_long() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!ended_within(&mut child, Duration::from_millis(30)));
        child.kill().unwrap();
        assert!(ended_within(&mut child, Duration::from_secs(30)));
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_itself() {
        let ours = std::process::id().cast_signed();
        assert_eq!(identity(ours), identity(ours));
        assert_ne!(identity(ours), identity(1));
        assert_eq!(identity(-1), None);
    }
}
