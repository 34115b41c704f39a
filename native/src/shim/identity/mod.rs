//! Identity: rustc sees the checkout where the donor's rustc saw it.
//!
//! rustc gives up its incremental state where its working directory or `--out-dir` is another
//! than before.  `<git-dir>/cargo-cow/identity.json` says where this checkout shall be seen; a
//! compile with `-C incremental` then runs in a mount namespace of its own, in which the checkout
//! is bound there too.  What rustc says of those paths is mapped back (`restore`), so that
//! nobody else meets them; values of variables stay real.
//!
//! Whatever stands against it ends in the compiler at the real path, which is right and slower.
//! What could differ inside is refused beforehand: names of things below the identity that are
//! not of this checkout (another checkout mostly is there), and helpers that may hand the work to
//! a process outside.

mod arguments;
mod git;
pub mod macros;
mod places;
pub mod restore;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use rustix::fs::MemfdFlags;

use super::args::{self, Call, Compile};
use super::checkout::Checkout;
use super::observer::{Note, Observer};
use super::process::{self, Ended, Heard};
use super::{layout, log, variable};
use crate::depinfo;
use crate::namespace::{self, View};
use places::Place;
pub use places::Places;
use restore::Back;

const FILE: &str = "identity.json";
const SWITCH: &str = "CARGO_COW_IDENTITY";

/// Variables of shells and editors that tell where somebody was, and of ours.  Any other may be
/// what a macro or a linker goes by.
const IDLE: &[&str] = &["_", "PWD", "OLDPWD", "INIT_CWD", SWITCH, "CARGO_COW_LOG"];
const IDLE_FAMILIES: &[&str] = &["VSCODE_", "DIRENV_"];

/// Variables that lead rustc, the linker and macros to files, symlinks included.
const LEADING: &[&str] = &[
    "CARGO_HOME",
    "COMPILER_PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LIBRARY_PATH",
    "OUT_DIR",
    "PATH",
    "RUSTUP_HOME",
];

/// A compile that shall run at the identity.
pub struct Plan {
    program: OsString,
    arguments: Vec<OsString>,
    view: View,
    places: Places,
    back: Back,
    dep_info: Option<PathBuf>,
    /// Where the compile works, and its checkout, as they really are.
    directory: PathBuf,
    checkout: PathBuf,
    doubt: Option<Doubt>,
    /// Nothing can be made in the working directory.
    framed: bool,
    /// `@FILE` of ours; open until the child has it.
    _argument_file: Option<OwnedFd>,
}

/// A macro may put the identity into what is compiled, or ask for what the identity hides.
struct Doubt {
    /// Which macro.
    object: PathBuf,
    /// Whether it may have met what the identity hides.
    hidden: bool,
    /// Made where one did; as long as the macro is the same, the unit is then compiled at the real
    /// path.
    mark: PathBuf,
    places: Places,
    directory: PathBuf,
    out_dir: PathBuf,
    stem: OsString,
}

impl Plan {
    /// `None`: the compile runs as ever.
    pub fn of(call: &Call, compile: &Compile) -> Option<Self> {
        // Other compiles have no state to lose.
        let incremental = compile.incremental.as_deref()?;
        if variable(SWITCH).is_some_and(|value| value == "off") {
            return None;
        }
        let directory = std::env::current_dir().ok()?;
        let (checkout, text) = asked_for(&directory, &compile.out_dir)?;
        let plan = Self::made(call, compile, &directory, incremental, &checkout, &text);
        plan.inspect_err(|reason| log(&format!("identity: not used: {reason}")))
            .ok()
    }

    fn made(
        call: &Call,
        compile: &Compile,
        directory: &Path,
        incremental: &Path,
        checkout: &Checkout,
        text: &str,
    ) -> Result<Self, String> {
        let places = Places::parse(text, &checkout.root)?;
        let physical = |path: &Path| fs::canonicalize(path).is_ok_and(|found| found == path);
        for place in places.all() {
            for path in [&place.real, &place.seen] {
                if !physical(path) {
                    return Err(format!("{} is not there, or a symlink", path.display()));
                }
            }
        }
        let git = git::moved(checkout, &places, incremental)
            .map_err(|error| format!("git cannot be moved: {error}"))?;
        let back = back(&places, git.as_ref()).ok_or("not UTF-8")?;
        check_programs(call.programs)?;
        if rustix::termios::isatty(io::stderr()) {
            return Err("stderr is a terminal".to_owned());
        }
        let given = args::expand(call.arguments);
        let given = given.iter().map(AsRef::as_ref);
        check_words(given.clone(), &back)?;
        let rewritten = arguments::rewrite(given.clone(), &places)?;
        let memory = directory.join(incremental).join(".cow-macros");
        let framed = places.all().iter().any(Place::is_nested);
        let knowing = macros::knowing(given.clone(), &memory);
        let object = knowing.or_else(|| framed.then(|| macros::reading(given)).flatten());
        let doubt = object.map(|object| Doubt::new(object, framed, compile, directory));
        if let Some(doubt) = doubt.as_ref().filter(|doubt| doubt.is_settled()) {
            let object = doubt.object.display();
            return Err(format!("{object} tells, or asks, where it ran"));
        }
        let before = compile.dep_info.as_ref().map(|path| directory.join(path));
        if let Some(file) = leaving(before.as_deref(), directory, &checkout.root) {
            return Err(leaves(&file));
        }
        let package = variable("CARGO_MANIFEST_DIR").map(PathBuf::from);
        for within in [Some(checkout.root.as_path()), package.as_deref()] {
            within.map_or(Ok(()), |within| check_links(within, &places))?;
        }
        let mut arguments = call.programs[1..].to_vec();
        let mut argument_file = None;
        if call
            .arguments
            .iter()
            .any(|word| word.as_bytes().starts_with(b"@"))
        {
            let file = argument_file_of(&rewritten)?;
            arguments.push(format!("@/proc/self/fd/{}", file.as_raw_fd()).into());
            argument_file = Some(file);
        } else {
            arguments.extend(rewritten);
        }
        let moved = |path: &Path| {
            // A frame is not what it frames.
            let framed = |place: &&Place| place.is_nested() && place.real == path;
            let seen = match places.all().iter().find(framed) {
                Some(place) => place.real.clone(),
                None => places.seen(path)?,
            };
            Some((path.to_owned(), seen))
        };
        // git first: what is bound at a place comes along when that is bound elsewhere.
        let mut binds: Vec<_> = git.map_or_else(Vec::new, |git| vec![git.common, git.link]);
        let bind = |place: &Place| (place.real.clone(), place.seen.clone());
        binds.extend(places.all().iter().map(bind));
        Ok(Self {
            program: call.programs[0].clone(),
            arguments,
            view: View {
                binds,
                directory: places.seen(directory).unwrap_or(directory.to_owned()),
                steady: steady(call.programs, compile),
                same: [directory, &compile.out_dir, incremental]
                    .into_iter()
                    .filter_map(moved)
                    .collect(),
            },
            back,
            dep_info: compile.dep_info.as_ref().map(|path| directory.join(path)),
            directory: directory.to_owned(),
            checkout: checkout.root.clone(),
            framed,
            doubt: doubt.map(|doubt| doubt.at(places.clone())),
            places,
            _argument_file: argument_file,
        })
    }

    /// What is seen where.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// From the paths that the compiler sees to the real ones.
    pub fn back(&self) -> Back {
        self.back.clone()
    }

    /// Runs the compiler, observed; `heard` gets what it said, for who wants it.  `None`: the
    /// compiler has still to be run at the real path.
    pub fn run(
        self,
        observer: Option<&Observer>,
        heard: Option<&mut Option<Heard>>,
    ) -> Option<Ended> {
        let mut command = Command::new(&self.program);
        if let Some(observer) = observer {
            observer.attach(&mut command);
        }
        command.args(&self.arguments);
        let inside = self.view.directory.display().to_string();
        namespace::confine(&mut command, self.view, log);
        let back = self.back.clone();
        let mut said = Said::new(self.doubt.is_some());
        if let Some(doubt) = &self.doubt {
            log(&format!(
                "identity: held back: {} may know where it is",
                doubt.object.display()
            ));
        }
        let ended = if let Some(heard) = heard {
            let relay = |from, to: &mut _| back.relay(from, to);
            process::overhear(&mut command, &mut said, relay).map(|(ended, all)| {
                *heard = Some(all);
                ended
            })
        } else {
            command.stderr(std::process::Stdio::piped());
            process::wait_while(&mut command, |child| {
                if let Some(stderr) = child.stderr.take() {
                    back.relay(stderr, &mut said);
                }
            })
        };
        let ended = ended
            .inspect_err(|error| log(&format!("identity: not used: {error}")))
            .ok()?;
        log(&format!("identity: ran in {inside}"));
        let restored = self
            .dep_info
            .as_deref()
            .map_or(Ok(()), |path| self.back.restore_dep_info(path));
        let asked = observer.and_then(Observer::notes);
        let leaving = leaving(self.dep_info.as_deref(), &self.directory, &self.checkout)
            .or_else(|| asked_beyond(asked.as_deref()?, &self.directory, &self.checkout));
        let given_up = match (&ended, restored, &self.doubt) {
            (Ended::Exited(0), ..) if leaving.is_some() => leaving.as_deref().map(leaves),
            // Cargo would take the paths in it for real ones.
            (Ended::Exited(0), Err(error), _) => Some(format!("dep-info: {error}")),
            (Ended::Exited(0), _, Some(doubt)) => {
                doubt.is_right(&said.held, self.dep_info.as_deref(), asked)
            }
            // Something was to be made beside the sources; at the real path it can.
            (Ended::Exited(_), ..) if self.framed && said.read_only => {
                Some("it wrote into its working directory".to_owned())
            }
            _ => None,
        };
        if let Some(reason) = given_up {
            log(&format!("identity: given up: {reason}"));
            return None;
        }
        said.release();
        Some(ended)
    }
}

/// A file of the dep-info that is named by a relative path which leads out of the checkout: seen from
/// the identity, that is another file than the one that Cargo will look at.
fn leaving(dep_info: Option<&Path>, directory: &Path, checkout: &Path) -> Option<String> {
    let text = fs::read_to_string(dep_info?).ok()?;
    let mut files = depinfo::parse(&text)?.files.into_iter();
    files.find(|file| leads_out(Path::new(file), directory, checkout))
}

/// The same of what a macro asked for.
fn asked_beyond(asked: &[Note], directory: &Path, checkout: &Path) -> Option<String> {
    let found = asked.iter().find(|note| {
        note.what.is_of_files() && leads_out(Path::new(&note.name), directory, checkout)
    })?;
    Some(found.name.display().to_string())
}

fn leads_out(path: &Path, directory: &Path, checkout: &Path) -> bool {
    // A package beside the checkout is where it is, and all around it.
    path.is_relative()
        && directory.starts_with(checkout)
        && !without_dots(&directory.join(path)).starts_with(checkout)
}

fn leaves(file: &str) -> String {
    format!("{file} lies outside of the checkout")
}

impl Doubt {
    fn new(object: PathBuf, hidden: bool, compile: &Compile, directory: &Path) -> Self {
        let mut stem = compile.crate_name.clone();
        stem.push(&compile.extra_filename);
        let mut mark = OsString::from(".cow-apart-");
        mark.push(&stem);
        let incremental = compile.incremental.as_deref().unwrap_or(Path::new(""));
        Self {
            object,
            hidden,
            mark: directory.join(incremental).join(mark),
            places: Places::none(),
            directory: directory.to_owned(),
            out_dir: directory.join(&compile.out_dir),
            stem,
        }
    }

    fn at(self, places: Places) -> Self {
        Self { places, ..self }
    }

    fn is_settled(&self) -> bool {
        let time = |path: &Path| fs::metadata(path).and_then(|stat| stat.modified()).ok();
        time(&self.mark).is_some_and(|mark| time(&self.object).is_none_or(|made| made <= mark))
    }

    /// `None`: nothing that was made holds the identity, or comes of what it hides.  `said`: what the
    /// compiler said, mapped; `asked`: what was seen of its questions.
    fn is_right(
        &self,
        said: &[u8],
        dep_info: Option<&Path>,
        asked: Option<Vec<Note>>,
    ) -> Option<String> {
        let reason = self
            .other_answer(asked)
            .or_else(|| self.told(said, dep_info))?;
        if let Err(error) = fs::write(&self.mark, "") {
            log(&format!("{}: {error}", self.mark.display()));
        }
        Some(reason)
    }

    /// What was asked for by its whole path, and is something else outside: somebody went from the
    /// checkout upwards, where it lies inside of its identity.
    fn other_answer(&self, asked: Option<Vec<Note>>) -> Option<String> {
        if !self.hidden {
            return None;
        }
        let Some(asked) = asked else {
            return Some("nobody saw what its macros asked for".to_owned());
        };
        // What rustc itself asks for by whole paths, outputs and dependencies.
        let own = layout::profile_directory(&self.out_dir)
            .and_then(layout::target_directory)
            .and_then(|target| self.places.seen(target));
        let other = asked.iter().find(|note| {
            let path = Path::new(&note.name);
            note.what.is_of_files()
                && self.places.hides(path)
                && !own.as_ref().is_some_and(|own| path.starts_with(own))
        })?;
        Some(format!(
            "{} is something else outside",
            other.name.display()
        ))
    }

    fn told(&self, said: &[u8], dep_info: Option<&Path>) -> Option<String> {
        let seen = |path: &str| {
            let path = self.directory.join(path);
            self.places.seen(&path).unwrap_or(path)
        };
        let text = dep_info.and_then(|path| fs::read_to_string(path).ok());
        let files: Vec<PathBuf> = text
            .and_then(|text| depinfo::parse(&text))
            .map(|info| info.files.iter().map(|file| seen(file)).collect())
            .unwrap_or_default();
        let wrong = self
            .outputs(said)
            .into_iter()
            .find(|output| macros::holds(output, self.places.all(), &files))?;
        let (wrong, object) = (wrong.display(), self.object.display());
        Some(format!("{wrong} tells where {object} ran"))
    }

    fn outputs(&self, said: &[u8]) -> Vec<PathBuf> {
        let lines = said.split(|byte| *byte == b'\n');
        let named = lines.filter_map(|line| {
            let value: serde_json::Value = serde_json::from_slice(line).ok()?;
            Some(PathBuf::from(value.get("artifact")?.as_str()?))
        });
        let mut result: Vec<PathBuf> = named.collect();
        for entry in fs::read_dir(&self.out_dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let bytes = name.as_bytes();
            let stem = bytes.strip_prefix(b"lib").unwrap_or(bytes);
            if stem.starts_with(self.stem.as_bytes()) && !bytes.ends_with(b".d") {
                result.push(entry.path());
            }
        }
        result.sort();
        result.dedup();
        result
    }
}

/// What the compiler says: passed on at once, or held back until it is known to be right.
struct Said {
    holding: bool,
    held: Vec<u8>,
    /// Whether something could not be made because of where it was to be made.
    read_only: bool,
}

impl Said {
    fn new(holding: bool) -> Self {
        Self {
            holding,
            held: Vec::new(),
            read_only: false,
        }
    }

    fn release(self) {
        let _ = io::stderr().lock().write_all(&self.held);
    }
}

impl Write for Said {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // Of Rust programs, and of linkers (strerror).
        for sign in [b"os error 30".as_slice(), b"Read-only file system"] {
            self.read_only |= text.windows(sign.len()).any(|part| part == sign);
        }
        if self.holding {
            self.held.extend_from_slice(text);
        } else {
            io::stderr().lock().write_all(text)?;
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn back(places: &Places, git: Option<&git::Moved>) -> Option<Back> {
    let mut pairs = Vec::new();
    for place in places.all() {
        if place.is_nested() {
            // The real path has its name inside as well, below the seen one.
            let real = place.real.to_str()?;
            pairs.push((real.to_owned(), real.to_owned()));
        }
        pairs.push((
            place.seen.to_str()?.to_owned(),
            place.real.to_str()?.to_owned(),
        ));
    }
    if let Some(git::Moved {
        common: (real, seen),
        ..
    }) = git
    {
        for seen in [Some(seen.clone()), places.seen(seen)]
            .into_iter()
            .flatten()
        {
            pairs.push((seen.to_str()?.to_owned(), real.to_str()?.to_owned()));
        }
    }
    Some(Back::new(pairs))
}

/// The checkout of the working directory, or else of the output (a package that lies elsewhere),
/// and its wish.
fn asked_for(directory: &Path, out_dir: &Path) -> Option<(Checkout, String)> {
    let wish = |checkout: Checkout| {
        let text = checkout.read(FILE)?;
        Some((checkout, text))
    };
    Checkout::above(directory).and_then(wish).or_else(|| {
        if out_dir.starts_with(directory) || !out_dir.is_absolute() {
            return None;
        }
        Checkout::above(out_dir).and_then(wish)
    })
}

/// A wrapper, or a compiler that is one, may hand the work to a server, which is not inside.
fn check_programs(programs: &[OsString]) -> Result<(), String> {
    if let Some(chain) = variable(process::CHAIN) {
        return Err(format!("{} may work elsewhere", chain.display()));
    }
    let known = |program: &OsString| {
        let name = Path::new(program).file_name();
        name.is_some_and(|name| name == "rustc" || name == "clippy-driver")
    };
    if let Some(other) = programs.iter().find(|program| !known(program)) {
        return Err(format!("{} may work elsewhere", other.display()));
    }
    // Cargo's own proxy tells which toolchain; else rustup's goes by the directory it is in.
    if variable("RUSTUP_TOOLCHAIN").is_none() && programs.iter().any(|program| is_proxy(program)) {
        return Err("rustup would choose by directory".to_owned());
    }
    Ok(())
}

/// rustup installs its proxies beside itself.
fn is_proxy(program: &OsStr) -> bool {
    let beside = |path: &Path| path.with_file_name("rustup").exists();
    if program.as_bytes().contains(&b'/') {
        return beside(Path::new(program));
    }
    let path = variable("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.exists())
        .is_some_and(|found| beside(&found))
}

/// Whether any argument or variable names something that is not the same inside.
fn check_words<'a>(given: impl Iterator<Item = &'a OsStr>, back: &Back) -> Result<(), String> {
    let mut previous = OsStr::new("");
    for word in given {
        let remaps = previous == "--remap-path-prefix"
            || word.as_bytes().starts_with(b"--remap-path-prefix");
        if !remaps && back.is_named_in(word.as_bytes()) {
            return Err(format!("{} names the identity itself", word.display()));
        }
        previous = word;
    }
    for (name, value) in std::env::vars_os() {
        let idle = IDLE.iter().any(|idle| name == *idle)
            || IDLE_FAMILIES
                .iter()
                .any(|family| name.as_bytes().starts_with(family.as_bytes()));
        if !idle && back.is_named_in(value.as_bytes()) {
            return Err(format!("{} names the identity itself", name.display()));
        }
    }
    Ok(())
}

/// A symlink into what the identity hides would lead to itself inside.  Looked for where they
/// commonly are: in the root and beside the package's manifest.
fn check_links(directory: &Path, places: &Places) -> Result<(), String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            let path = entry.path();
            let target = fs::read_link(&path).map(|target| without_dots(&directory.join(target)));
            let named = target.is_ok_and(|target| places.hides(&target));
            if named || fs::canonicalize(&path).is_ok_and(|target| places.hides(&target)) {
                return Err(format!("{} leads into the identity", path.display()));
            }
        }
    }
    Ok(())
}

/// As a path reads where no symlink is in it.
fn without_dots(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}

/// What rustc and its helpers need, by whatever name it is reached.
fn steady(programs: &[OsString], compile: &Compile) -> Vec<PathBuf> {
    let mut result: Vec<PathBuf> = programs.iter().map(PathBuf::from).collect();
    result.extend(compile.sysroot.clone());
    result.push(std::env::temp_dir());
    for name in LEADING {
        if let Some(value) = variable(name) {
            result.extend(std::env::split_paths(&value));
        }
    }
    result.retain(|path| path.is_absolute());
    result
}

/// A file that only the child's descriptor names: nothing is left of it, whoever is killed.
fn argument_file_of(arguments: &[OsString]) -> Result<OwnedFd, String> {
    let file = rustix::fs::memfd_create("arguments", MemfdFlags::empty())
        .map_err(|error| format!("no file for arguments: {error}"))?;
    let mut text = Vec::new();
    for argument in arguments {
        if argument.as_bytes().contains(&b'\n') {
            return Err("an argument of several lines".to_owned());
        }
        text.extend_from_slice(argument.as_bytes());
        text.push(b'\n');
    }
    let mut file = fs::File::from(file);
    file.write_all(&text).map_err(|error| error.to_string())?;
    Ok(file.into())
}
