//! What the shim remembers of a profile's directory from one call to the next.
//!
//! `<profile>/.cargo-cow/units`, lines that are only ever appended, each with a check of its own,
//! so that one that a crash tore apart counts as not there:
//!
//!     U <name> <kind> <dependency>…      a unit: what it is and what it was given by --extern
//!     D <identity> <digest>              a file's content
//!     T <root> <identity> <digest>       a tree's content
//!
//! separated by tabs.  A unit's name is the stem of its file, which holds Cargo's hash of the unit, and
//! with it of all units below it: its line never changes its meaning, whoever compiles the unit
//! again.  Where the file carries no hash (a path package's shared object, and the rlib beside it) the
//! same name is another unit from one build to the next, and Cargo gives the file further links after
//! the compile: there the name is `=` and the digest of what was made, so that the line speaks of
//! this content, wherever it lies.  It names what was loaded from below it, so that two compiles
//! that made the same have the same below them.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::super::inputs::{self, Identity};
use super::super::layout;

const DIRECTORY: &str = ".cargo-cow";
const FILE: &str = "units";
/// Beyond this size everything is forgotten: units built since count as unknown until rebuilt.
const LARGEST: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Library,
    /// Also, or only, as a shared object that is linked to by Rust.
    Dylib,
    /// What it expands to depends on its tokens alone.
    PureMacro,
    Macro,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Library => "library",
            Self::Dylib => "dylib",
            Self::PureMacro => "pure-macro",
            Self::Macro => "macro",
        }
    }

    pub fn of(word: &str) -> Option<Self> {
        let all = [Self::Library, Self::Dylib, Self::PureMacro, Self::Macro];
        all.into_iter().find(|kind| kind.word() == word)
    }
}

/// What is below a unit.
#[derive(Debug, Default)]
pub struct Closure {
    /// The files of all libraries, direct ones included, that a linker may be given.
    pub libraries: Vec<PathBuf>,
    pub macros: bool,
    /// A macro that may read what nobody tells of, or a unit that nobody knows.
    pub impure: bool,
    /// A unit that nobody knows: what is below it is not known, either.
    pub unknown: Option<PathBuf>,
}

/// The ledgers of all profiles that a unit has to do with (its own, and that of its macros).
#[derive(Default)]
pub struct Ledgers(HashMap<PathBuf, Ledger>);

struct Ledger {
    file: PathBuf,
    lines: HashMap<String, String>,
}

impl Ledgers {
    /// What is below a unit that is given `externs`.
    pub fn closure(&mut self, externs: &[(String, PathBuf)]) -> Closure {
        let mut closure = Closure::default();
        let mut seen = std::collections::BTreeSet::new();
        let mut open: Vec<PathBuf> = externs.iter().map(|(_, path)| path.clone()).collect();
        while let Some(path) = open.pop() {
            if !seen.insert(path.with_extension("")) {
                continue;
            }
            match self.unit(&path) {
                Some((Kind::Library, below)) => {
                    closure.libraries.push(path.with_extension("rlib"));
                    open.extend(below);
                }
                // Which of the two is linked, rustc decides for the whole program.
                Some((Kind::Dylib, below)) => {
                    let both = ["so", "rlib"].map(|kind| path.with_extension(kind));
                    closure
                        .libraries
                        .extend(both.into_iter().filter(|file| file.exists()));
                    open.extend(below);
                }
                Some((Kind::PureMacro, _)) => closure.macros = true,
                Some((Kind::Macro, _)) => {
                    closure.macros = true;
                    closure.impure = true;
                }
                None => {
                    closure.macros = true;
                    closure.impure = true;
                    closure.unknown = Some(path.clone());
                }
            }
        }
        closure.libraries.sort();
        closure
    }

    /// What was noted of the unit that an artefact is of.
    pub fn unit(&mut self, artefact: &Path) -> Option<(Kind, Vec<PathBuf>)> {
        let directory = artefact.parent()?;
        let profile = layout::profile_directory(directory)?.to_owned();
        let name = self.name(artefact)?;
        let line = self.of(&profile)?.lines.get(&format!("U\t{name}"))?.clone();
        let mut words = line.split('\t');
        let kind = Kind::of(words.next()?)?;
        Some((kind, words.map(|word| profile.join(word)).collect()))
    }

    /// What a line calls the unit that an artefact is of.
    pub fn name(&mut self, artefact: &Path) -> Option<String> {
        let stem = artefact.file_stem()?.to_str()?;
        if carries_hash(stem) {
            return Some(stem.to_owned());
        }
        self.digest(artefact).map(|digest| name_of_content(&digest))
    }

    /// Notes a unit by its name: before it is compiled where that holds a hash, so that its
    /// dependents find it.
    pub fn note_unit(
        &mut self,
        profile: &Path,
        name: &str,
        kind: Kind,
        externs: &[(String, PathBuf)],
    ) -> Option<()> {
        let mut value = kind.word().to_owned();
        for (_, path) in externs {
            // Relative, because a target may be cloned; another profile's (of macros) as it is.
            let path = path.strip_prefix(profile).unwrap_or(path).to_str()?;
            if path.contains(['\t', '\n']) {
                return None;
            }
            value.push('\t');
            value.push_str(path);
        }
        self.of(profile)?.add(format!("U\t{name}"), value)
    }

    /// BLAKE3 of an artefact, from memory where the file is the one that was read.
    pub fn digest(&mut self, path: &Path) -> Option<String> {
        let mut file = File::open(path).ok()?;
        let identity = Identity::of(&file.metadata().ok()?);
        if let Some(digest) = self.known(path, &identity) {
            return Some(digest);
        }
        let (size, digest) = inputs::digest(&mut file).ok()?;
        let after = Identity::of(&file.metadata().ok()?);
        if after != identity || size != identity.size {
            return None;
        }
        if let Some(profile) = path.parent().and_then(layout::profile_directory) {
            self.note(profile, &identity, &digest);
        }
        Some(digest)
    }

    /// BLAKE3 of a file that a script made, somewhere below `profile`, from memory where it is the
    /// one that was read.
    ///
    /// Unlike an artefact it is written by whoever likes: what is so young that it may be written
    /// again in the same tick is not remembered.
    pub fn digest_below(&mut self, profile: &Path, path: &Path) -> Option<String> {
        let identity = Identity::of(&fs::metadata(path).ok()?);
        let name = format!("D\t{}", words_of(&identity));
        if let Some(digest) = self.of(profile)?.lines.get(&name) {
            return Some(digest.clone());
        }
        let mut file = File::open(path).ok()?;
        let before = inputs::file_clock();
        let (size, digest) = inputs::digest(&mut file).ok()?;
        if Identity::of(&file.metadata().ok()?) != identity || size != identity.size {
            return None;
        }
        if identity.modified.max(identity.changed) + inputs::GRANULE < before {
            self.note(profile, &identity, &digest);
        }
        Some(digest)
    }

    /// The digest of the artefact at `path`, if it was read before in this very version.
    pub fn known(&mut self, path: &Path, identity: &Identity) -> Option<String> {
        let profile = path.parent().and_then(layout::profile_directory)?;
        let name = format!("D\t{}", words_of(identity));
        self.of(profile)?.lines.get(&name).cloned()
    }

    /// The caller knows the content of a file that nobody writes to.
    pub fn note(&mut self, profile: &Path, identity: &Identity, digest: &str) {
        if let Some(ledger) = self.of(profile) {
            ledger.add(format!("D\t{}", words_of(identity)), digest.to_owned());
        }
    }

    pub fn tree(&mut self, profile: &Path, root: &str, identity: &str) -> Option<String> {
        let name = format!("T\t{root}\t{identity}");
        self.of(profile)?.lines.get(&name).cloned()
    }

    pub fn note_tree(&mut self, profile: &Path, root: &str, identity: &str, digest: &str) {
        if root.contains(['\t', '\n']) {
            return;
        }
        if let Some(ledger) = self.of(profile) {
            ledger.add(format!("T\t{root}\t{identity}"), digest.to_owned());
        }
    }

    fn of(&mut self, profile: &Path) -> Option<&mut Ledger> {
        if !self.0.contains_key(profile) {
            let ledger = Ledger::read(profile.join(DIRECTORY).join(FILE));
            self.0.insert(profile.to_owned(), ledger);
        }
        self.0.get_mut(profile)
    }
}

impl Ledger {
    fn read(file: PathBuf) -> Self {
        let mut lines = HashMap::new();
        let text = fs::read(&file).unwrap_or_default();
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            let Some((body, check)) = line.rsplit_once('\t') else {
                continue;
            };
            if check != check_of(body) {
                continue;
            }
            let names = if body.starts_with("T\t") { 3 } else { 2 };
            let Some((at, _)) = body.match_indices('\t').nth(names - 1) else {
                continue;
            };
            lines.insert(body[..at].to_owned(), body[at + 1..].to_owned());
        }
        Self { file, lines }
    }

    fn add(&mut self, name: String, value: String) -> Option<()> {
        if self.lines.get(&name) == Some(&value) {
            return Some(());
        }
        let body = format!("{name}\t{value}");
        let line = format!("{body}\t{}\n", check_of(&body));
        fs::create_dir_all(self.file.parent()?).ok()?;
        let too_large = fs::metadata(&self.file).is_ok_and(|stat| stat.len() > LARGEST);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .truncate(false)
            .open(&self.file)
            .ok()?;
        if too_large {
            file.set_len(0).ok()?;
        }
        // One write: lines of parallel calls stay whole.
        file.write_all(line.as_bytes()).ok()?;
        self.lines.insert(name, value);
        Some(())
    }
}

/// A crate's name has no dash, so that one stands before a hash alone.
fn carries_hash(stem: &str) -> bool {
    stem.contains('-')
}

/// The name of the unit that made this, where its file tells none.
pub fn name_of_content(digest: &str) -> String {
    format!("={digest}")
}

fn check_of(body: &str) -> String {
    let mut check = blake3::hash(body.as_bytes()).to_hex().to_string();
    check.truncate(12);
    check
}

fn words_of(identity: &Identity) -> String {
    let Identity {
        device,
        inode,
        size,
        modified,
        changed,
    } = identity;
    format!("{device}:{inode}:{size}:{modified}:{changed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cow-ledger-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("t/debug/deps")).unwrap();
        path
    }

    fn externs(profile: &Path, names: &[&str]) -> Vec<(String, PathBuf)> {
        let file = |name: &&str| ((*name).to_owned(), profile.join("deps").join(name));
        names.iter().map(file).collect()
    }

    #[test]
    fn what_is_below_a_unit() {
        let root = scratch("closure");
        let profile = root.join("t/debug");
        let mut ledgers = Ledgers::default();
        let mut note = |stem, kind, names: &[&str]| {
            ledgers
                .note_unit(&profile, stem, kind, &externs(&profile, names))
                .unwrap();
        };
        note("liba-1", Kind::Library, &["libb-2.rmeta", "libm-3.so"]);
        note("libb-2", Kind::Library, &[]);
        note("libm-3", Kind::PureMacro, &["libhidden-9.rlib"]);
        // Another process, later.
        let mut ledgers = Ledgers::default();
        let closure = ledgers.closure(&externs(&profile, &["liba-1.rlib"]));
        let files = ["liba-1.rlib", "libb-2.rlib"].map(|file| profile.join("deps").join(file));
        assert_eq!(closure.libraries, files);
        assert!(closure.macros && !closure.impure && closure.unknown.is_none());
        let closure = ledgers.closure(&externs(&profile, &["liba-1.rlib", "libx-7.rlib"]));
        assert!(closure.impure && closure.unknown.is_some());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_file_without_a_hash_is_what_it_holds() {
        let root = scratch("content");
        let profile = root.join("t/debug");
        let file = profile.join("deps/libboth.rlib");
        let note = |text: &str, names: &[&str]| {
            fs::write(&file, text).unwrap();
            let mut ledgers = Ledgers::default();
            let name = ledgers.name(&file).unwrap();
            ledgers
                .note_unit(&profile, &name, Kind::Library, &externs(&profile, names))
                .unwrap();
        };
        note("with a", &["liba-1.rlib"]);
        note("plain", &[]);
        let mut ledgers = Ledgers::default();
        ledgers.note_unit(&profile, "liba-1", Kind::Library, &[]);
        let below = |text: &str| {
            fs::write(&file, text).unwrap();
            let closure = Ledgers::default().closure(&externs(&profile, &["libboth.rlib"]));
            (closure.libraries.len(), closure.unknown.is_some())
        };
        assert_eq!(below("with a"), (2, false));
        assert_eq!(below("plain"), (1, false));
        // What nobody noted, whatever lay there before.
        assert_eq!(below("other"), (0, true));
        // Cargo links it to a second place.
        below("with a");
        fs::hard_link(&file, profile.join("libboth.rlib")).unwrap();
        let closure = Ledgers::default().closure(&externs(&profile, &["libboth.rlib"]));
        assert_eq!(closure.libraries.len(), 2);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn of_a_dylib_both_files_count() {
        let root = scratch("dylib");
        let profile = root.join("t/debug");
        let mut ledgers = Ledgers::default();
        ledgers.note_unit(
            &profile,
            "liba-1",
            Kind::Dylib,
            &externs(&profile, &["libb-2.rlib"]),
        );
        ledgers.note_unit(&profile, "libb-2", Kind::Library, &[]);
        let mut files = |ends: &[&str]| {
            for end in ends {
                fs::write(profile.join(format!("deps/liba-1.{end}")), end).unwrap();
            }
            let closure = ledgers.closure(&externs(&profile, &["liba-1.so"]));
            assert!(closure.unknown.is_none() && !closure.macros);
            closure.libraries.len()
        };
        assert_eq!(files(&["so"]), 2);
        assert_eq!(files(&["rlib"]), 3);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_torn_line_is_none() {
        let root = scratch("torn");
        let profile = root.join("t/debug");
        let mut ledgers = Ledgers::default();
        let below = externs(&profile, &["libb-2.rmeta", "libc-3.rmeta"]);
        ledgers.note_unit(&profile, "liba-1", Kind::Library, &below);
        ledgers.note_unit(&profile, "libb-2", Kind::Library, &[]);
        let file = profile.join(".cargo-cow/units");
        let text = fs::read_to_string(&file).unwrap();
        let (first, second) = text.split_once('\n').unwrap();
        fs::write(&file, format!("{}{second}", &first[..first.len() / 2])).unwrap();
        let mut ledgers = Ledgers::default();
        let closure = ledgers.closure(&externs(&profile, &["liba-1.rlib"]));
        assert!(closure.unknown.is_some());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_a_script_made_is_read_once() {
        let root = scratch("generated");
        let profile = root.join("t/debug");
        let file = profile.join("build/z-1/out/deps/libz.a");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let of = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
        let lines = || fs::read_to_string(profile.join(".cargo-cow/units")).unwrap_or_default();
        let wait = || std::thread::sleep(std::time::Duration::from_millis(60));
        fs::write(&file, "one").unwrap();
        // As young as this it may be written again under the same times.
        assert_eq!(
            Ledgers::default().digest_below(&profile, &file),
            Some(of("one"))
        );
        assert_eq!(lines(), "");
        wait();
        for _ in 0..2 {
            let found = Ledgers::default().digest_below(&profile, &file);
            assert_eq!(found, Some(of("one")));
            assert_eq!(lines().lines().count(), 1);
        }
        // The same length and time, in place.
        let then = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "two").unwrap();
        let times = fs::FileTimes::new().set_modified(then);
        OpenOptions::new()
            .write(true)
            .open(&file)
            .and_then(|file| file.set_times(times))
            .unwrap();
        let found = Ledgers::default().digest_below(&profile, &file);
        assert_eq!(found, Some(of("two")));
        // Nothing of ours lies among what the script made.
        assert!(!profile.join("build/z-1/out/.cargo-cow").exists());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_digest_is_of_the_file_that_is_there() {
        let root = scratch("digest");
        let file = root.join("t/debug/deps/liba-1.rlib");
        let of = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
        fs::write(&file, "one").unwrap();
        assert_eq!(Ledgers::default().digest(&file), Some(of("one")));
        assert_eq!(Ledgers::default().digest(&file), Some(of("one")));
        fs::write(&file, "two!").unwrap();
        assert_eq!(Ledgers::default().digest(&file), Some(of("two!")));
        fs::remove_dir_all(root).unwrap();
    }
}
