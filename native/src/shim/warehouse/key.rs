//! The first level of the key: everything that is known before any source is read.
//!
//! The second level, the files and variables that a compile turned out to read, is in the
//! entries that were kept under the first (`entry`).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::hidden::{self, is_own_variable};
use super::super::identity::Places;
use super::super::identity::macros::is_pure;
use super::super::inputs::{Nanoseconds, changed, modified};
use super::super::manifest::{self, Input};
use super::super::{observe, variable};
use super::ledger::{Closure, Kind, Ledgers};
use super::request::Request;
use super::store::Store;
use super::trees::{Scope, tree};
use super::{compiler, linking};

/// Version of keys and entries: others are not looked at.
const FORMAT: u32 = 4;

/// Variables that no macro goes by: of shells, terminals, sessions, and of Cargo's own plumbing.
const IDLE: &[&str] = &[
    "_",
    "CARGO_MAKEFLAGS",
    "COLORTERM",
    "COLUMNS",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "GPG_TTY",
    "INIT_CWD",
    "LINES",
    "LS_COLORS",
    "MAKEFLAGS",
    "MFLAGS",
    "OLDPWD",
    "PWD",
    "RUST_RECURSION_COUNT",
    "SHLVL",
    "SSH_AUTH_SOCK",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "TERM",
    "TERM_PROGRAM",
    "TERM_PROGRAM_VERSION",
    "WAYLAND_DISPLAY",
    "WINDOWID",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_ID",
];
const IDLE_FAMILIES: &[&str] = &["CARGO_COW_", "DIRENV_", "TMUX", "VSCODE_"];

const SECRET: &[&str] = &[
    "ACCESS_KEY",
    "API_KEY",
    "APIKEY",
    "AUTH",
    "COOKIE",
    "CREDENTIAL",
    "PASSPHRASE",
    "PASSW",
    "PRIVATE_KEY",
    "SECRET",
    "TOKEN",
];

/// What rustc itself, or a linker below it, goes by.
pub const READ_BY_RUSTC: &[&str] = &[
    "LD_AUDIT",
    "LD_PRELOAD",
    "RUSTC_BOOTSTRAP",
    "RUSTC_FORCE_RUSTC_VERSION",
    "RUSTC_OVERRIDE_VERSION_STRING",
];
pub const READ_BY_LINKERS: &[&str] = &[
    "LDEMULATION",
    "LD_RUN_PATH",
    "LIBRARY_PATH",
    "SOURCE_DATE_EPOCH",
];
/// Name directories in which programs or target specifications are looked for: who sets one of
/// these compiles.
const REFUSED: &[&str] = &["RUST_TARGET_PATH"];
pub const REFUSED_LINKING: &[&str] = &["COMPILER_PATH", "GCC_EXEC_PREFIX"];
pub const LINKERS: &[&str] = &[
    "ld", "ld.bfd", "ld.gold", "ld.lld", "lld", "ld.mold", "mold", "wild",
];
/// Where linkers look by themselves.
const SYSTEM_LIBRARIES: &[&str] = &["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];

/// Where the call is made, and for what.  Paths are real.
pub struct Context {
    pub directory: PathBuf,
    pub profile: PathBuf,
    pub package: PathBuf,
    /// A package from a registry or a git dependency, the same wherever it is built.
    pub is_dependency: bool,
    pub out: Option<PathBuf>,
    /// What the compiler sees elsewhere than where it is.
    places: Places,
}

impl Context {
    pub fn of(profile: &Path, places: Option<&Places>) -> Option<Self> {
        let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
        let roots = observe::dependency_sources();
        Some(Self {
            directory: std::env::current_dir().ok()?,
            profile: profile.to_owned(),
            is_dependency: roots.iter().any(|root| package.starts_with(root)),
            package,
            out: variable("OUT_DIR").map(PathBuf::from),
            places: places.cloned().unwrap_or_else(Places::none),
        })
    }

    /// A path as the compiler sees it: what checkouts that are seen at one place have in common.
    fn seen(&self, path: &Path) -> String {
        let path = hidden::plain(path);
        let seen = self.places.seen(&path);
        seen.unwrap_or(path).display().to_string()
    }

    /// The files of the package, as it is here.
    pub fn sources(&self, ledgers: &mut Ledgers) -> Result<String, String> {
        let found = tree(&self.package, Scope::Package, &self.profile, ledgers)?;
        Ok(found.digest)
    }

    /// What the unit is for those that are given its output.
    pub fn kind(&self, request: &Request) -> Kind {
        let makes = |wanted: &str| request.crate_types.iter().any(|kind| kind == wanted);
        if !makes("proc-macro") {
            // Metadata is linked by nobody.
            return if request.makes_code && makes("dylib") {
                Kind::Dylib
            } else {
                Kind::Library
            };
        }
        let name = variable("CARGO_PKG_NAME");
        let listed = name.is_some_and(|name| name.to_str().is_some_and(is_pure));
        if listed && self.is_dependency {
            Kind::PureMacro
        } else {
            Kind::Macro
        }
    }
}

pub struct Key {
    pub digest: String,
    /// (kind, value), in order; kept in the entry, so that a miss can be explained.
    pub parts: Vec<(String, String)>,
    /// Newest change of any file that counts as a whole.
    pub newest: Nanoseconds,
    /// Only for this target.
    pub tied: bool,
    pub closure: Closure,
}

/// What stands for what macros read where that was not observed: much more than they do.
#[derive(PartialEq, Eq)]
pub struct Surroundings {
    pub parts: Vec<(String, String)>,
    pub newest: Nanoseconds,
}

struct Parts {
    parts: Vec<(String, String)>,
    newest: Nanoseconds,
}

impl Parts {
    fn add(&mut self, kind: &str, value: impl Into<String>) {
        self.parts.push((kind.to_owned(), value.into()));
    }

    fn variable(&mut self, name: &str) {
        if let Some(value) = std::env::var_os(name) {
            self.value(name, &value.display().to_string());
        }
    }

    /// Entries keep their parts: of what may be a secret, the digest.
    fn value(&mut self, name: &str, value: &str) {
        if is_secret(name, value) {
            let digest = blake3::hash(value.as_bytes()).to_hex();
            self.add("variable", format!("{name}#{digest}"));
        } else {
            self.add("variable", format!("{name}={value}"));
        }
    }

    /// Cargo puts the target's own directories first, where only macros are found.
    fn search_path(&mut self, name: &str, context: &Context) {
        let value = std::env::var_os(name).unwrap_or_default();
        let elsewhere = |path: &PathBuf| !path.starts_with(&context.profile);
        let paths: Vec<_> = std::env::split_paths(&value).filter(elsewhere).collect();
        self.add("variable", format!("{name}={paths:?}"));
    }

    /// Those of the names that are there.
    fn trees(
        &mut self,
        kind: &str,
        directory: &Path,
        names: &[&str],
        context: &Context,
        ledgers: &mut Ledgers,
    ) -> Result<(), String> {
        for name in names {
            let file = directory.join(name);
            if file.exists() {
                self.tree(kind, &file, Scope::All, context, ledgers)?;
            }
        }
        Ok(())
    }

    fn tree(
        &mut self,
        kind: &str,
        root: &Path,
        scope: Scope,
        context: &Context,
        ledgers: &mut Ledgers,
    ) -> Result<(), String> {
        let found = tree(root, scope, &context.profile, ledgers)?;
        self.newest = self.newest.max(found.newest);
        self.add(kind, format!("{} {}", context.seen(root), found.digest));
        Ok(())
    }
}

/// Or why the call is the compiler's alone.
pub fn of(
    program: &std::ffi::OsStr,
    request: &Request,
    context: &Context,
    ledgers: &mut Ledgers,
    store: &Store,
) -> Result<Key, String> {
    if let Some(name) = REFUSED.iter().find(|name| variable(name).is_some()) {
        return Err(format!("the variable {name}"));
    }
    let closure = ledgers.closure(&request.externs);
    let tied = context.is_dependency && closure.impure && context.out.is_some();
    let mut parts = Parts {
        parts: Vec::new(),
        newest: 0,
    };
    parts.add("format", FORMAT.to_string());
    if request.clippy {
        let identity = compiler::clippy(program, request.target.as_deref(), store)?;
        parts.add("clippy", identity);
    } else {
        let identity = compiler::identity(program, request.target.as_deref(), store)?;
        parts.add("compiler", identity);
    }
    parts.add("crate", &request.crate_name);
    for word in &request.words {
        parts.add("word", word);
    }
    parts.add("directory", context.seen(&context.directory));
    parts.add("package", context.seen(&context.package));
    if tied || !context.is_dependency {
        parts.add("profile", context.seen(&context.profile));
        parts.add("out-dir", context.seen(&request.out_dir));
    }
    for (name, path) in &request.externs {
        let digest = ledgers
            .digest(path)
            .ok_or_else(|| format!("{} cannot be read", path.display()))?;
        let file = path.file_name().unwrap_or_default();
        parts.add("extern", format!("{name} {} {digest}", file.display()));
    }
    for path in &request.files {
        let contents = fs::read(context.directory.join(path));
        let contents = contents.map_err(|error| format!("{}: {error}", path.display()))?;
        let digest = blake3::hash(&contents).to_hex();
        parts.add("file", format!("{} {digest}", path.display()));
    }
    for name in READ_BY_RUSTC {
        parts.variable(name);
    }
    for (name, value) in sorted_variables() {
        if name.starts_with("CARGO_PKG_") || name == "CARGO_CRATE_NAME" || name == "CARGO_BIN_NAME"
        {
            parts.value(&name, &value);
        }
    }
    if request.clippy {
        clippy(&mut parts, request, context, ledgers)?;
    }
    libraries(&mut parts, &request.library_paths, context, ledgers)?;
    if request.native_cpu {
        parts.add("processor", processor()?);
    }
    if request.links() {
        for_linkers(&mut parts, request, context, ledgers, &closure)?;
    }
    if closure.impure {
        unattributed(&mut parts, context, ledgers)?;
    }
    declared(&mut parts, context, ledgers)?;
    inputs(&mut parts, context, ledgers)?;

    let mut hasher = blake3::Hasher::new();
    for (kind, value) in &parts.parts {
        hasher.update(&(kind.len() as u64).to_le_bytes());
        hasher.update(kind.as_bytes());
        hasher.update(&(value.len() as u64).to_le_bytes());
        hasher.update(value.as_bytes());
    }
    Ok(Key {
        digest: hasher.finalize().to_hex().to_string(),
        parts: parts.parts,
        newest: parts.newest,
        tied,
        closure,
    })
}

/// Passwords, tokens and the like, by how they are called; addresses that hold one.
fn is_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_uppercase();
    SECRET.iter().any(|word| name.contains(word))
        || value.split_once("://").is_some_and(|(_, rest)| {
            rest.split('/')
                .next()
                .is_some_and(|host| host.contains('@'))
        })
}

/// What clippy goes by beside the sources: its variables, its configuration (searched upwards,
/// clippy_config's `lookup_conf_file`, 1.95), the manifests.
fn clippy(
    parts: &mut Parts,
    request: &Request,
    context: &Context,
    ledgers: &mut Ledgers,
) -> Result<(), String> {
    for (name, value) in sorted_variables() {
        if name.starts_with("CLIPPY_") || matches!(&*name, "SYSROOT" | "CARGO_PRIMARY_PACKAGE") {
            if asks_for_all_manifests(value.as_bytes()) {
                return Err(ALL_MANIFESTS.to_owned());
            }
            parts.value(&name, &value);
        }
    }
    if request
        .words
        .iter()
        .any(|word| asks_for_all_manifests(word.as_bytes()))
    {
        return Err(ALL_MANIFESTS.to_owned());
    }
    let from = variable("CLIPPY_CONF_DIR").map_or_else(|| context.package.clone(), PathBuf::from);
    let from = fs::canonicalize(context.directory.join(from)).map_err(|error| error.to_string())?;
    for directory in from.ancestors() {
        let names = ["clippy.toml", ".clippy.toml"];
        parts.trees("clippy-configuration", directory, &names, context, ledgers)?;
    }
    manifests(parts, context, ledgers)
}

fn manifests(parts: &mut Parts, context: &Context, ledgers: &mut Ledgers) -> Result<(), String> {
    for directory in [&context.package, &context.directory] {
        let file = directory.join("Cargo.toml");
        parts.tree("manifest", &file, Scope::All, context, ledgers)?;
    }
    Ok(())
}

pub const ALL_MANIFESTS: &str = "clippy looks at the manifests of all packages";

/// The lints of the group `clippy::cargo` ask Cargo for all packages that there are.
pub fn asks_for_all_manifests(text: &[u8]) -> bool {
    [
        "clippy::cargo",
        "cargo_common_metadata",
        "multiple_crate_versions",
        "negative_feature_names",
        "redundant_feature_names",
        "wildcard_dependencies",
    ]
    .iter()
    .any(|name| memchr::memmem::find(text, name.as_bytes()).is_some())
}

pub fn sorted_variables() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = std::env::vars_os()
        .map(|(name, value)| (name.display().to_string(), value.display().to_string()))
        .collect();
    found.sort();
    found
}

/// Whether a variable says nothing that code is made of.
pub fn is_idle(name: &str) -> bool {
    IDLE.contains(&name) || IDLE_FAMILIES.iter().any(|family| name.starts_with(family))
}

/// What is in the directories that native libraries come from.
fn libraries(
    parts: &mut Parts,
    directories: &[PathBuf],
    context: &Context,
    ledgers: &mut Ledgers,
) -> Result<(), String> {
    for directory in directories {
        let inside = directory.strip_prefix(&context.profile).ok();
        let shown = inside.map_or_else(
            || context.seen(directory),
            |inside| inside.display().to_string(),
        );
        parts.add("libraries", shown);
        let Ok(entries) = fs::read_dir(context.directory.join(directory)) else {
            continue;
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| is_library(path));
        files.sort();
        for file in files {
            let name = file.file_name().unwrap_or_default().display();
            let Ok(stat) = fs::metadata(&file) else {
                continue;
            };
            parts.newest = parts.newest.max(changed(&stat));
            if inside.is_some() {
                let digest = ledgers
                    .digest_below(&context.profile, &file)
                    .ok_or_else(|| format!("{} cannot be read", file.display()))?;
                parts.add("library", format!("{name} {digest}"));
            } else {
                parts.add("library", format!("{name} {}", looks(&stat)));
            }
        }
    }
    Ok(())
}

/// What a linker, or rustc, may take from a directory that it searches by names without suffixes.
fn is_library(path: &Path) -> bool {
    const ENDS: [&str; 6] = [".a", ".so", ".o", ".lib", ".rlib", ".rmeta"];
    let name = path.file_name().map_or(b"".as_slice(), OsStr::as_bytes);
    ENDS.iter().any(|end| name.ends_with(end.as_bytes()))
        || memchr::memmem::find(name, b".so.").is_some()
}

/// A file of the system's, on this machine: by its stat.
pub fn looks(stat: &fs::Metadata) -> String {
    format!("{} {} {}", stat.size(), modified(stat), changed(stat))
}

/// Programs, shared objects and static libraries hold everything below them, and what the linker
/// brings.
fn for_linkers(
    parts: &mut Parts,
    request: &Request,
    context: &Context,
    ledgers: &mut Ledgers,
    closure: &Closure,
) -> Result<(), String> {
    if let Some(unknown) = &closure.unknown {
        return Err(format!("what is below {} is not known", unknown.display()));
    }
    for path in &closure.libraries {
        let digest = ledgers
            .digest(path)
            .ok_or_else(|| format!("{} cannot be read", path.display()))?;
        let file = path.file_name().unwrap_or_default();
        parts.add("below", format!("{} {digest}", file.display()));
    }
    if let Some(name) = REFUSED_LINKING.iter().find(|name| variable(name).is_some()) {
        return Err(format!("the variable {name}"));
    }
    for name in READ_BY_LINKERS {
        parts.variable(name);
    }
    if let Some(searched) = variable("LIBRARY_PATH") {
        let directories: Vec<PathBuf> = std::env::split_paths(&searched).collect();
        libraries(parts, &directories, context, ledgers)?;
    }
    parts.search_path("LD_LIBRARY_PATH", context);
    linkers(parts, request)?;
    for line in system(context)?.lines() {
        parts.add("system", line);
    }
    for path in linking::files(&request.link_arguments)? {
        let path = context.directory.join(path);
        let said = |error: std::io::Error| format!("{}: {error}", path.display());
        let stat = fs::metadata(&path).map_err(said)?;
        let contents = fs::read(&path).map_err(said)?;
        parts.newest = parts.newest.max(changed(&stat));
        let digest = blake3::hash(&contents).to_hex();
        parts.add("link-file", format!("{} {digest}", path.display()));
    }
    Ok(())
}

/// The linker, and what it may start.
fn linkers(parts: &mut Parts, request: &Request) -> Result<(), String> {
    let named = request.linker.clone().unwrap_or_else(|| "cc".to_owned());
    for (name, real) in linker_files(&named)? {
        let stat = fs::metadata(&real).map_err(|error| error.to_string())?;
        let what = format!("{name} {} {}", real.display(), looks(&stat));
        parts.add("linker", what);
    }
    Ok(())
}

/// The linker `named` and all that it may start, by name, as they really lie.  One that is a script
/// may start anything: then it is an error, but where all that it does is to start another
/// (`linking::started_by`).
pub fn linker_files(named: &str) -> Result<Vec<(String, PathBuf)>, String> {
    let mut found = Vec::new();
    driver(named, LONGEST_CHAIN, &mut found)?;
    for name in LINKERS {
        for path in compiler::all_located(name.as_ref()) {
            let real = fs::canonicalize(&path).unwrap_or(path);
            if linking::script(&real)?.is_some() {
                return Err(format!("the linker {} is a script", real.display()));
            }
            found.push(((*name).to_owned(), real));
        }
    }
    Ok(found)
}

/// Scripts that start scripts.
const LONGEST_CHAIN: usize = 4;

fn driver(named: &str, left: usize, found: &mut Vec<(String, PathBuf)>) -> Result<(), String> {
    let paths = compiler::all_located(named.as_ref());
    if paths.is_empty() {
        return Err(format!("the linker {named} is not found"));
    }
    // All of them: one may be a cache that starts the next.
    for path in paths {
        let real = fs::canonicalize(&path).unwrap_or(path);
        if let Some(text) = linking::script(&real)? {
            let next = linking::started_by(&text).filter(|_| left > 0);
            let next = next.ok_or_else(|| format!("the linker {} is a script", real.display()))?;
            found.push((
                "sh".to_owned(),
                fs::canonicalize("/bin/sh").unwrap_or_default(),
            ));
            driver(next, left - 1, found)?;
        } else if let Some(directory) = real.parent() {
            // Compilers look beside themselves before they look on `PATH`.
            for name in LINKERS {
                let beside = directory.join(name);
                if beside.is_file() {
                    let real = fs::canonicalize(&beside).unwrap_or(beside);
                    if linking::script(&real)?.is_some() {
                        return Err(format!("the linker {} is a script", real.display()));
                    }
                    found.push(((*name).to_owned(), real));
                }
            }
        }
        found.push((named.to_owned(), real));
    }
    Ok(())
}

/// Below the profile's directory: what one Cargo run found in the system's library directories, a
/// line for each.
const SYSTEM: &str = ".cargo-cow/system";

/// Thousands of stats, so once in a Cargo run; and again before something is kept (`forget_system`).
fn system(context: &Context) -> Result<String, String> {
    let note = context.profile.join(SYSTEM);
    let run = calling();
    if let (Some(run), Ok(text)) = (&run, fs::read_to_string(&note))
        && let Some(lines) = text.strip_prefix(run.as_str())
    {
        return Ok(lines.to_owned());
    }
    let mut lines = String::new();
    for directory in system_directories() {
        let digest = system_libraries(&directory)?.0;
        lines.push_str(&format!("{} {digest}\n", directory.display()));
    }
    if let Some(run) = run {
        let aside = note.with_extension(std::process::id().to_string());
        let _ = note.parent().map(fs::create_dir_all);
        if fs::write(&aside, run + &lines).is_err() || fs::rename(&aside, &note).is_err() {
            let _ = fs::remove_file(&aside);
        }
    }
    Ok(lines)
}

/// The next who asks looks anew.
pub fn forget_system(context: &Context) {
    let _ = fs::remove_file(context.profile.join(SYSTEM));
}

/// The process that called us.
pub fn calling() -> Option<String> {
    run(rustix::process::getppid()?.as_raw_nonzero().get())
}

/// A process, as no other is or will be: number and start, in this boot.
pub fn run(number: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // The name stands in brackets and may hold anything; the start is proc(5)'s field 22.
    let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{number} {started} {}\n", boot.trim_end()))
}

/// Where linkers look by themselves, each directory once.
pub fn system_directories() -> BTreeSet<PathBuf> {
    let mut directories: Vec<PathBuf> = SYSTEM_LIBRARIES.iter().map(PathBuf::from).collect();
    let of_machines = directories_of(Path::new("/usr/lib"));
    directories.extend(
        of_machines
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("-linux-")),
    );
    for compilers in ["/usr/lib/gcc", "/usr/libexec/gcc"] {
        for machine in directories_of(Path::new(compilers)) {
            directories.extend(directories_of(&machine));
        }
    }
    let real = directories.iter().map(fs::canonicalize);
    real.filter_map(Result::ok).collect()
}

/// What is in a directory of the system's, by the stats of its files: they may be overwritten in
/// place.  Who makes a link in it changes the directory.
pub fn system_libraries(directory: &Path) -> Result<(String, Nanoseconds), String> {
    let said = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut found = Vec::new();
    let stat = fs::metadata(directory).map_err(said)?;
    let mut newest = modified(&stat);
    for entry in fs::read_dir(directory).map_err(said)?.flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        // Of the compiler's own directory, its programs as well.
        if !is_file || !(is_library(&entry.path()) || entry.path().extension().is_none()) {
            continue;
        }
        if let Ok(stat) = entry.metadata() {
            newest = newest.max(changed(&stat));
            found.push(format!("{} {}", entry.file_name().display(), looks(&stat)));
        }
    }
    found.sort();
    let mut hasher = blake3::Hasher::new();
    hasher.update(modified(&stat).to_string().as_bytes());
    for line in found {
        hasher.update(b"\n").update(line.as_bytes());
    }
    Ok((hasher.finalize().to_hex().to_string(), newest))
}

pub fn directories_of(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

/// `native` is another processor on another machine, and after a change of a virtual one.
pub fn processor() -> Result<String, String> {
    let text = fs::read_to_string("/proc/cpuinfo").map_err(|error| error.to_string())?;
    let wanted = [
        "vendor_id",
        "cpu family",
        "model",
        "flags",
        "Features",
        "CPU architecture",
        "CPU implementer",
        "CPU part",
        "CPU variant",
    ];
    let first = text.split("\n\n").next().unwrap_or(&text);
    let lines: Vec<&str> = first
        .lines()
        .filter(|line| {
            let name = line.split(':').next().unwrap_or("").trim();
            wanted.contains(&name)
        })
        .collect();
    Ok(blake3::hash(lines.join("\n").as_bytes())
        .to_hex()
        .to_string())
}

/// What macros may read, and the observer cannot tell from what rustc reads: variables that rustc
/// asks for itself, and what the package's script generated.
fn unattributed(parts: &mut Parts, context: &Context, ledgers: &mut Ledgers) -> Result<(), String> {
    for (name, value) in sorted_variables() {
        if name == "LD_LIBRARY_PATH" {
            parts.search_path(&name, context);
        } else if is_place(&name) {
            // Where the outputs hold it, they come back there alone.
            parts.value(&name, &context.seen(Path::new(&value)));
        } else if is_own_variable(&name) && !is_idle(&name) {
            parts.value(&name, &value);
        }
    }
    if let Some(out) = &context.out {
        parts.tree("generated", out, Scope::All, context, ledgers)?;
    }
    Ok(())
}

/// Variables by which Cargo says where a package and its target are.
fn is_place(name: &str) -> bool {
    matches!(
        name,
        "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH" | "CARGO_TARGET_TMPDIR" | "OUT_DIR"
    ) || name.starts_with("CARGO_BIN_EXE_")
}

/// What counts where nobody saw what macros read; `everything`: not all of them are known to be
/// pure.
pub fn surroundings(
    context: &Context,
    ledgers: &mut Ledgers,
    everything: bool,
) -> Result<Surroundings, String> {
    let mut parts = Parts {
        parts: Vec::new(),
        newest: 0,
    };
    if !context.is_dependency {
        // Even pure ones look up how a crate is called here (proc-macro-crate).
        for manifest in [&context.package, &context.directory] {
            let manifest = manifest.join("Cargo.toml");
            parts.tree("manifest", &manifest, Scope::All, context, ledgers)?;
        }
    }
    if everything {
        all_around(&mut parts, context, ledgers)?;
    }
    Ok(Surroundings {
        parts: parts.parts,
        newest: parts.newest,
    })
}

fn all_around(parts: &mut Parts, context: &Context, ledgers: &mut Ledgers) -> Result<(), String> {
    for (name, value) in sorted_variables() {
        if !is_own_variable(&name) && !is_idle(&name) {
            parts.value(&name, &value);
        }
    }
    if context.is_dependency {
        return Ok(()); // its files are those of its version
    }
    parts.tree(
        "package-files",
        &context.package,
        Scope::Package,
        context,
        ledgers,
    )?;
    for directory in context.package.ancestors().skip(1) {
        let names = [".env", ".env.local"];
        parts.trees("environment-file", directory, &names, context, ledgers)?;
        if directory.starts_with(&context.directory) {
            let names = [".sqlx", "sqlx-data.json"];
            parts.trees("prepared-queries", directory, &names, context, ledgers)?;
        }
        if directory.join(".git").exists() {
            break;
        }
    }
    Ok(())
}

/// What the package's script declares: such a script is often there only to have Cargo compile
/// again when something changes that a macro reads.
fn declared(parts: &mut Parts, context: &Context, ledgers: &mut Ledgers) -> Result<(), String> {
    let Some(out) = &context.out else {
        return Ok(());
    };
    let run = out.parent().ok_or("OUT_DIR has no parent")?;
    // The old layout, and the new one.
    let output = [
        run.join("output"),
        run.join("run/stdout"),
        run.join("stdout"),
    ]
    .into_iter()
    .find_map(|path| fs::read(path).ok())
    .ok_or_else(|| format!("what the script of {} printed is not there", run.display()))?;
    let output = String::from_utf8_lossy(&output);
    let mut any = false;
    for line in output.lines() {
        let line = line.trim();
        let directive = line.strip_prefix("cargo::").or(line.strip_prefix("cargo:"));
        let Some((name, value)) = directive.and_then(|text| text.split_once('=')) else {
            continue;
        };
        let value = value.trim_end();
        match name {
            "rerun-if-changed" => {
                any = true;
                let path = context.package.join(value);
                let own = path.starts_with(run);
                if context.is_dependency && path.starts_with(&context.package) || own {
                    continue; // of its version; or made by the script itself
                }
                parts.tree("declared", &path, Scope::All, context, ledgers)?;
            }
            "rerun-if-env-changed" => {
                any = true;
                parts.variable(value);
            }
            _ => {}
        }
    }
    if !any && !context.is_dependency {
        parts.tree(
            "package-files",
            &context.package,
            Scope::Package,
            context,
            ledgers,
        )?;
    }
    Ok(())
}

/// What the manifests declare of a package that is built here (`cow.inputs`); others are those of
/// their version.
fn inputs(parts: &mut Parts, context: &Context, ledgers: &mut Ledgers) -> Result<(), String> {
    if context.is_dependency {
        return Ok(());
    }
    for input in manifest::inputs(&context.package, &context.directory)? {
        match input {
            Input::Variable(name) => parts.variable(&name),
            Input::Path(pattern) => {
                for path in manifest::expand(&pattern, &context.profile)? {
                    parts.tree("input", &path, Scope::All, context, ledgers)?;
                }
            }
        }
    }
    Ok(())
}
