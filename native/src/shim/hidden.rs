//! What a compile read behind rustc's back: the observer's notes, less what is rustc's own.
//!
//! rustc's own reads are of its sources (which dep-info names), of the toolchain, of what Cargo
//! built, and of its own files.  Everything else was asked for by a procedural macro, or by the
//! assembler's `.incbin`.  Where that cannot be known in full (a macro that starts a program, asks
//! the network, writes, or reads what changed meanwhile) the answer says so, and the package's
//! files stand for it, as without an observer.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::identity::macros;
use super::identity::restore::Back;
use super::inputs::Hasher;
use super::layout;
use super::observer::{Asked, Note, Outcome};

/// Variables that tell where a program is to look or how it is to print, as rustc asks for them.
const OWN_VARIABLES: [&str; 15] = [
    "CARGO_MAKEFLAGS",
    "COLORTERM",
    "LD_LIBRARY_PATH",
    "LIB",
    "MAKEFLAGS",
    "MFLAGS",
    "NO_COLOR",
    "PATH",
    "SYSROOT",
    "TEMP",
    "TERM",
    "TMP",
    "TMPDIR",
    "VCINSTALLDIR",
    "XDG_RUNTIME_DIR",
];
const OWN_PREFIXES: [&str; 3] = ["RUST_", "RUSTC_", "CARGO_COW_"];
/// What Cargo itself tells a compile, and its fingerprint or the place answers for.  All else that
/// begins with `CARGO_` is the user's.
const CARGOS: [&str; 7] = [
    "CARGO",
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_TARGET_TMPDIR",
    "OUT_DIR",
];
const CARGOS_PREFIXES: [&str; 2] = ["CARGO_PKG_", "CARGO_BIN_EXE_"];
/// Below the profile's directory: what the code of its macros calls.
const MEMORY: &str = ".cow-macros";
/// Directories of a profile that hold what Cargo and rustc made; what a script generated lies in
/// `build`, and the script answers for it.
const MADE: [&str; 5] = ["deps", "examples", "build", "incremental", ".fingerprint"];

/// What rustc, its allocator and its threads ask the kernel for.
const KERNELS: [&str; 7] = [
    "/dev",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
];
const KERNELS_OF_PROCESS: [&str; 9] = [
    "auxv",
    "cgroup",
    "exe",
    "fd",
    "maps",
    "mountinfo",
    "stat",
    "statm",
    "status",
];

/// Why not all is known.
struct Why {
    reason: String,
    /// It did what somebody who only gets the outputs would not see done, or depends on what no
    /// file holds.
    acts: bool,
}

impl From<String> for Why {
    fn from(reason: String) -> Self {
        Self {
            reason,
            acts: false,
        }
    }
}

impl From<&str> for Why {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

fn acts(reason: String) -> Why {
    Why { reason, acts: true }
}

/// Where one compile works.
pub struct Place<'a> {
    /// The working directory, as it really is.
    pub directory: &'a Path,
    /// What dep-info names.
    pub sources: &'a BTreeSet<PathBuf>,
    /// What never changes: the toolchain, unpacked dependencies.
    pub unchanging: &'a [PathBuf],
    /// `target/debug` and the like.
    pub profile: &'a Path,
    /// From the paths that the compiler saw to the real ones.
    pub back: Option<&'a Back>,
    /// The program that links.
    pub linker: &'a OsStr,
    /// The package's directory.
    pub package: &'a Path,
    /// What its script generated.
    pub out: Option<&'a Path>,
}

/// `{"complete":true,…}` with what was read, or `{"complete":false,"reason":…,"acts":…,…}` with what
/// was seen of it and did not change since; `acts`: its outputs are not all that came of it, or not of
/// what files and variables hold.
///
/// `hasher` knows since when an input must be unchanged.
pub fn judge(notes: &[Note], place: &Place<'_>, hasher: &mut Hasher) -> Value {
    let mut seen = Reads::default();
    for note in notes {
        if let Err(why) = seen.add(note, place, hasher) {
            seen.doubt(why);
        }
    }
    seen.finish(place, hasher)
}

#[derive(Default)]
struct Reads {
    files: BTreeMap<String, (u64, String)>,
    directories: BTreeMap<String, String>,
    missing: BTreeSet<String>,
    existing: BTreeSet<String>,
    variables: BTreeMap<String, Option<String>>,
    manifests: Vec<PathBuf>,
    /// The first reason, but what acts before all others: whoever only compares files must not
    /// miss it.
    why: Option<Why>,
}

impl Reads {
    fn doubt(&mut self, why: Why) {
        if self
            .why
            .as_ref()
            .is_none_or(|known| why.acts && !known.acts)
        {
            self.why = Some(why);
        }
    }

    fn add(&mut self, note: &Note, place: &Place<'_>, hasher: &mut Hasher) -> Result<(), Why> {
        let name = note.name.to_str().ok_or("a name that is not UTF-8")?;
        match note.what {
            Asked::Macro => {
                if macros::may_ask_unseen(Path::new(name), &place.profile.join(MEMORY)) {
                    return Err(format!("{name} may ask for what cannot be noted").into());
                }
                return Ok(());
            }
            Asked::Variable => {
                if !is_own_variable(name) {
                    self.variables.insert(name.to_owned(), value_of(name)?);
                }
                return Ok(());
            }
            Asked::Program => return self.start(name, place),
            Asked::Network => return Err(acts("it asks the network".to_owned())),
            Asked::Time => return Err(acts("it asks for the time".to_owned())),
            Asked::Other => return Err("it asks for what cannot be noted".into()),
            Asked::Read | Asked::Write | Asked::List | Asked::Exists => {}
        }
        let path = place.real(name);
        let text = path.to_str().ok_or("a path that is not UTF-8")?.to_owned();
        match place.is_own(&path) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(_) if note.what == Asked::Write => {}
            Err(reason) => return Err(reason.into()),
        }
        match (note.what, note.outcome) {
            (Asked::Write, _) => return Err(acts(format!("it writes {text}"))),
            (_, Outcome::Missing) => {
                self.missing.insert(text);
            }
            (_, Outcome::Failed) => return Err(format!("{text} cannot be read").into()),
            (Asked::List, _) => {
                let names = hasher
                    .names(&path)
                    .map_err(|why| format!("{text}: {why}"))?;
                self.directories.insert(text, names);
            }
            (Asked::Read, _) if path.is_file() => self.read(&path, text, hasher)?,
            (what, _) => {
                if what == Asked::Exists && place.leads_elsewhere(&path) {
                    return Err(format!("it may ask where {text} leads").into());
                }
                self.existing.insert(text);
            }
        }
        Ok(())
    }

    fn read(&mut self, path: &Path, text: String, hasher: &mut Hasher) -> Result<(), Why> {
        let input = hasher.hash(path).map_err(|why| format!("{text}: {why}"))?;
        self.files.insert(text, (input.identity.size, input.digest));
        Ok(())
    }

    fn start(&mut self, name: &str, place: &Place<'_>) -> Result<(), Why> {
        let (program, first) = name.split_once('\0').unwrap_or((name, ""));
        let stem = Path::new(program).file_name();
        if stem == Path::new(place.linker).file_name() {
            return Ok(());
        }
        if stem.is_some_and(|stem| stem == "cargo") && first == "locate-project" {
            // What it reads is known.
            for above in place.package.ancestors() {
                self.manifests.push(above.join("Cargo.toml"));
            }
            return Ok(());
        }
        Err(acts(format!("it starts {program}")))
    }

    fn finish(mut self, place: &Place<'_>, hasher: &mut Hasher) -> Value {
        for path in std::mem::take(&mut self.manifests) {
            if place.unchanging.iter().any(|root| path.starts_with(root)) {
                continue;
            }
            let read = match path.to_str().map(str::to_owned) {
                None => Err("a path that is not UTF-8".into()),
                Some(text) if path.is_file() => self.read(&path, text, hasher),
                Some(text) => {
                    self.missing.insert(text);
                    Ok(())
                }
            };
            if let Err(why) = read {
                self.doubt(why);
            }
        }
        if let Some(both) = self.missing.iter().find(|path| Path::new(path).exists()) {
            let why = format!("{both} came while it was compiled");
            self.doubt(why.into());
        }
        let Self {
            files,
            directories,
            mut missing,
            mut existing,
            variables,
            why,
            ..
        } = self;
        existing.retain(|path| !files.contains_key(path) && !directories.contains_key(path));
        if why.is_some() {
            // What somebody makes for a moment is never the same again.
            missing.retain(|path| !Path::new(path).exists());
            existing.retain(|path| Path::new(path).exists());
        }
        let files: Vec<_> = files
            .into_iter()
            .map(|(path, (size, digest))| json!([path, size, digest]))
            .collect();
        let mut value = json!({
            "complete": why.is_none(),
            "files": files,
            "directories": directories.into_iter().collect::<Vec<_>>(),
            "missing": missing,
            "existing": existing,
            "env": variables.into_iter().collect::<Vec<_>>(),
        });
        if let Some(why) = why {
            value["reason"] = json!(why.reason);
            value["acts"] = json!(why.acts);
        }
        value
    }
}

/// Whether rustc or Cargo go by a variable themselves: who asked for it cannot be told then.
pub fn is_own_variable(name: &str) -> bool {
    OWN_VARIABLES.contains(&name)
        || CARGOS.contains(&name)
        || OWN_PREFIXES
            .iter()
            .chain(&CARGOS_PREFIXES)
            .any(|prefix| name.starts_with(prefix))
}

/// BLAKE3 (hex) of a variable's value: it may be a secret.
fn value_of(name: &str) -> Result<Option<String>, String> {
    if name == "CARGO_PRIMARY_PACKAGE" {
        // Nobody knows it before Cargo runs.
        return Err("it asks whether its package was selected".to_owned());
    }
    let value = std::env::var_os(name);
    Ok(value.map(|value| blake3::hash(value.as_bytes()).to_hex().to_string()))
}

impl Place<'_> {
    fn real(&self, name: &str) -> PathBuf {
        let named = self.back.and_then(|back| back.path(name));
        let path = self.directory.join(named.as_deref().unwrap_or(name));
        plain(&path)
    }

    /// Whether rustc asks for it itself, or something else answers for it.
    fn is_own(&self, path: &Path) -> Result<bool, String> {
        if self.sources.contains(path)
            || self.unchanging.iter().any(|root| path.starts_with(root))
            || is_kernels(path)
            || self.is_of_toolchain(path)
        {
            return Ok(true);
        }
        let temporary = std::env::temp_dir();
        if path == temporary
            || path
                .strip_prefix(&temporary)
                .is_ok_and(|rest| rest.as_os_str().as_bytes().starts_with(b"rustc"))
        {
            return Ok(true);
        }
        let Some(built) = layout::target_directory(self.profile) else {
            return Ok(false);
        };
        let Ok(inside) = path.strip_prefix(built) else {
            return Ok(false);
        };
        if self.is_generated_elsewhere(path, built) {
            return Err(format!("it asks for {}, which was built", path.display()));
        }
        let own = inside
            .components()
            .take(3)
            .any(|part| MADE.iter().any(|made| part.as_os_str() == *made));
        let above = inside.components().count() < 2 && path.is_dir();
        if own || above || inside.as_os_str().is_empty() {
            return Ok(true);
        }
        Err(format!("it asks for {}, which was built", path.display()))
    }

    /// Whether a path lies in what another package's script generated.  Libraries rustc looks for
    /// there itself; the package's own script answers for its own.
    fn is_generated_elsewhere(&self, path: &Path, target: &Path) -> bool {
        let build = self.profile.join("build");
        let below = path.strip_prefix(&build).or(path.strip_prefix(target));
        let library = path.extension().is_some_and(|end| {
            ["a", "so", "lib", "o", "rlib", "rmeta"]
                .iter()
                .any(|it| end == *it)
        });
        path.starts_with(&build)
            && below.is_ok_and(|below| below.components().count() > 2)
            && !self.out.is_some_and(|out| path.starts_with(out))
            && !library
            && !path.is_dir()
    }

    /// Whether a link stands in the way to a path, below the working directory or, outside of it,
    /// anywhere: who asks for the whole path sees where it leads.
    fn leads_elsewhere(&self, path: &Path) -> bool {
        path.ancestors()
            .take_while(|above| !self.directory.starts_with(above))
            .any(Path::is_symlink)
    }

    /// A toolchain is known by its compiler and libraries: who wraps rustc in a script does not say
    /// where they are.  What is in it, Cargo's fingerprint answers for.
    fn is_of_toolchain(&self, path: &Path) -> bool {
        path.ancestors().skip(1).any(|root| {
            root.join("lib/rustlib").is_dir()
                && root.join("bin/rustc").exists()
                && !self.directory.starts_with(root)
        })
    }
}

fn is_kernels(path: &Path) -> bool {
    let of_process = path
        .strip_prefix("/proc/self")
        .or_else(|_| path.strip_prefix(format!("/proc/{}", std::process::id())));
    KERNELS.iter().any(|known| path.starts_with(known)) && !path.starts_with("/dev/shm")
        || of_process.is_ok_and(|rest| {
            KERNELS_OF_PROCESS
                .iter()
                .any(|known| rest.starts_with(known))
        })
}

/// Without `.` and, where no link can stand in between, without `..`.
pub fn plain(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if !result.is_symlink() => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn note(what: Asked, outcome: Outcome, name: &str) -> Note {
        Note {
            what,
            outcome,
            name: OsString::from(name),
        }
    }

    fn judged(notes: &[Note]) -> Value {
        let place = Place {
            directory: Path::new("/w/app"),
            sources: &BTreeSet::from([PathBuf::from("/w/app/src/lib.rs")]),
            unchanging: &[PathBuf::from("/toolchain")],
            profile: Path::new("/w/app/target/debug"),
            back: None,
            linker: OsStr::new("cc"),
            package: Path::new("/w/app"),
            out: Some(Path::new("/w/app/target/debug/build/app-1/out")),
        };
        judge(notes, &place, &mut Hasher::new(0))
    }

    #[test]
    fn what_is_rustcs_own_is_left_out() {
        use Asked::*;
        use Outcome::*;
        let own = [
            note(Macro, Done, "/w/app/target/debug/deps/libm.so"),
            note(Read, Done, "src/lib.rs"),
            note(Exists, Done, "/toolchain/lib/rustlib"),
            note(Read, Done, "/w/app/target/debug/deps/libx.rmeta"),
            note(
                Write,
                Done,
                "/w/app/target/x86_64-unknown-linux-gnu/debug/deps/a.o",
            ),
            note(List, Done, "/w/app/target/debug/incremental/app-1"),
            note(
                Read,
                Done,
                "/w/app/target/debug/build/app-1/out/generated.rs",
            ),
            note(Variable, Done, "CARGO_PKG_NAME"),
            note(Variable, Missing, "RUSTC_LOG"),
            note(Program, Done, "/usr/bin/cc"),
            note(Read, Failed, "/dev/tty"),
            note(Read, Done, "/proc/self/cgroup"),
            note(Read, Done, "/w/app/target/debug/build/sys-1/out/libx.a"),
        ];
        let value = judged(&own);
        assert_eq!(value["complete"], true, "{value}");
        for kind in ["files", "directories", "missing", "existing", "env"] {
            assert_eq!(value[kind], json!([]), "{kind}");
        }
    }

    #[test]
    fn what_a_macro_asks_is_kept_or_refused() {
        use Asked::*;
        use Outcome::*;
        let value = judged(&[
            note(Read, Missing, "/w/app/.env"),
            note(Exists, Missing, "../other/./x"),
            note(Variable, Missing, "NOBODY_HAS_THIS"),
        ]);
        assert_eq!(value["missing"], json!(["/w/app/.env", "/w/other/x"]));
        assert_eq!(value["env"], json!([["NOBODY_HAS_THIS", null]]));
        for refused in [
            note(Program, Done, "git"),
            note(Other, Done, ""),
            note(Write, Done, "/w/app/cache"),
            note(Read, Failed, "/w/app/secret"),
            note(Read, Done, "/w/app/target/sqlx/query.json"),
            note(Read, Missing, "/w/app/target/schema.json"),
            note(Variable, Done, "CARGO_PRIMARY_PACKAGE"),
            note(Read, Done, "/proc/self/environ"),
            note(Read, Done, "/w/app/target/debug/build/other-1/out/text"),
            note(Program, Done, "/bin/cargo\0metadata"),
            note(Network, Done, ""),
            note(Time, Done, ""),
        ] {
            let value = judged(std::slice::from_ref(&refused));
            assert_eq!(value["complete"], false, "{refused:?}");
            let acts = matches!(refused.what, Program | Write | Network | Time);
            assert_eq!(value["acts"], acts, "{refused:?}");
            let both = [note(Other, Done, ""), refused];
            assert_eq!(judged(&both)["acts"], acts, "{both:?}");
        }
        let located = judged(&[note(Program, Done, "/bin/cargo\0locate-project")]);
        let above = ["/Cargo.toml", "/w/Cargo.toml", "/w/app/Cargo.toml"];
        assert_eq!(located["missing"], json!(above));
    }
}
