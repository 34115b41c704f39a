//! Which compiler it is, by what it is: where it lies does not matter, nor what it calls itself.
//!
//! The digest is over rustc, its driver and LLVM libraries, and the libraries of its targets: half a
//! gigabyte, which takes a quarter of a second.  It is remembered in the store, and for all stores of
//! the user (`toolchains`), for as long as no file of it changes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::inputs::{self, GRANULE, Identity, Nanoseconds, changed, file_clock, modified};
use super::super::variable;
use super::claim::{self, Turn};
use super::store::Store;

const ROOM: &str = "compilers";
/// Directories of a target that a compile or a link takes files from.
const PARTS: [&str; 6] = [
    "lib",
    "lib/self-contained",
    "bin",
    "bin/gcc-ld",
    "bin/self-contained",
    "codegen-backends",
];

/// The identity of `program` compiling for `target`, or why it cannot be told.
pub fn identity(program: &OsStr, target: Option<&str>, store: &Store) -> Result<String, String> {
    let path = located(program).ok_or_else(|| format!("{}: not found", program.display()))?;
    if let Some(sysroot) = sysroot_of(&path)? {
        return of_sysroot(&sysroot, "rustc", target, store);
    }
    // A script, or a compiler that somebody installed in a way of his own: it says where it is.
    let (own, _) = digest_of(&path)?;
    let sysroot = asked(&path, &own, store)?;
    Ok(format!(
        "{own} {}",
        of_sysroot(&sysroot, "rustc", target, store)?
    ))
}

/// The identity of a `clippy-driver`, which is a compiler of its own: it loads the libraries of
/// the toolchain that it lies in, whatever rustc it is called with.
pub fn clippy(program: &OsStr, target: Option<&str>, store: &Store) -> Result<String, String> {
    let path = located(program).ok_or_else(|| format!("{}: not found", program.display()))?;
    let sysroot =
        sysroot_of(&path)?.ok_or_else(|| format!("{} lies in no toolchain", path.display()))?;
    of_sysroot(&sysroot, super::request::CLIPPY, target, store)
}

/// The toolchain that a program belongs to, by where it lies; or that rustup would choose.
fn sysroot_of(path: &Path) -> Result<Option<PathBuf>, String> {
    if path.with_file_name("rustup").exists() {
        return toolchain()
            .map(Some)
            .ok_or_else(|| "rustup would choose the toolchain".to_owned());
    }
    let sysroot = path.parent().and_then(Path::parent);
    Ok(sysroot
        .filter(|sysroot| driver(sysroot).is_some())
        .map(Path::to_owned))
}

/// The file that a name stands for.
pub fn located(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return fs::canonicalize(program).ok().and(Some(program.into()));
    }
    let path = variable("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// All files that a name stands for, the one that is run first.
pub fn all_located(program: &OsStr) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return located(program).into_iter().collect();
    }
    let path = variable("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .filter(|candidate| candidate.is_file())
        .collect();
    found.dedup();
    found
}

/// The toolchain that rustup's own proxies would run: Cargo's told it by name.
fn toolchain() -> Option<PathBuf> {
    let name = variable("RUSTUP_TOOLCHAIN")?;
    let home = rustup_home()?;
    Some(home.join("toolchains").join(name)).filter(|sysroot| driver(sysroot).is_some())
}

fn rustup_home() -> Option<PathBuf> {
    variable("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".rustup")))
}

fn driver(sysroot: &Path) -> Option<PathBuf> {
    named(&sysroot.join("lib"), &["librustc_driver"])
        .into_iter()
        .next()
}

fn named(directory: &Path, prefixes: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let wanted = |path: &PathBuf| {
        let name = path.file_name().map_or(b"".as_slice(), OsStr::as_bytes);
        prefixes
            .iter()
            .any(|prefix| name.starts_with(prefix.as_bytes()))
    };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(wanted)
        .collect();
    found.sort();
    found
}

fn asked(path: &Path, own: &str, store: &Store) -> Result<PathBuf, String> {
    // Whatever a script may go by.
    let mut name = blake3::Hasher::new();
    name.update(own.as_bytes());
    name.update(path.as_os_str().as_bytes());
    for variable in ["PATH", "RUSTUP_TOOLCHAIN", "RUSTUP_HOME", "HOME"] {
        let value = std::env::var_os(variable).unwrap_or_default();
        name.update(value.as_bytes()).update(b"\0");
    }
    if variable("RUSTUP_TOOLCHAIN").is_none() {
        // rustup goes by the directory, and by files above it.
        let directory = std::env::current_dir().map_err(|error| error.to_string())?;
        name.update(directory.as_os_str().as_bytes());
        let mut files: Vec<PathBuf> = rustup_home()
            .map(|home| home.join("settings.toml"))
            .into_iter()
            .collect();
        for above in directory.ancestors() {
            files.extend(["rust-toolchain", "rust-toolchain.toml"].map(|file| above.join(file)));
        }
        for file in files {
            if let Ok(text) = fs::read(&file) {
                name.update(file.as_os_str().as_bytes()).update(&text);
            }
        }
    }
    let name = name.finalize().to_hex();
    if let Some(known) = store.remembered(ROOM, &name) {
        return Ok(PathBuf::from(known));
    }
    let said = Command::new(path)
        .arg("--print=sysroot")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8(said.stdout).map_err(|error| error.to_string())?;
    let sysroot = PathBuf::from(text.trim_end());
    if !said.status.success() || driver(&sysroot).is_none() {
        return Err(format!("{} does not say where it is", path.display()));
    }
    store.remember(ROOM, &name, text.trim_end());
    Ok(sysroot)
}

fn of_sysroot(
    sysroot: &Path,
    program: &str,
    target: Option<&str>,
    store: &Store,
) -> Result<String, String> {
    let mut files = named(&sysroot.join("bin"), &[program]);
    files.extend(named(
        &sysroot.join("lib"),
        &["librustc_driver", "libLLVM", "libstd-"],
    ));
    let libraries = sysroot.join("lib/rustlib");
    for triple in triples(&libraries, target) {
        for part in PARTS {
            files.extend(named(&libraries.join(&triple).join(part), &[""]));
        }
        files.push(libraries.join(&triple).join("target.json"));
    }
    let (looks, _) = looks_of(&files);
    if let Some(known) = store.remembered(ROOM, &looks) {
        return Ok(known);
    }
    if let Some(known) = toolchains::recall(&looks) {
        known.tell(&looks, store);
        return Ok(known.digest);
    }
    // A quarter of a second of work, which all first calls of a build want at once.
    let claim = match claim::take(store, &looks, &mut Duration::default()) {
        Turn::Ours(claim) => Some(claim),
        Turn::Built { .. } | Turn::Without => None,
    };
    let digest = match store.remembered(ROOM, &looks) {
        Some(known) => Ok(known),
        None => digest_of_all(&files, sysroot, &looks, store),
    };
    if let Some(claim) = claim {
        claim.end(digest.is_ok());
    }
    digest
}

/// Which files these are, in which version, and the newest change of any.
fn looks_of(files: &[PathBuf]) -> (String, Nanoseconds) {
    let mut looks = blake3::Hasher::new();
    let mut newest = 0;
    for path in files {
        let Ok(stat) = fs::metadata(path) else {
            continue;
        };
        newest = newest.max(changed(&stat)).max(modified(&stat));
        looks.update(path.as_os_str().as_bytes());
        looks.update(format!("{:?}", Identity::of(&stat)).as_bytes());
    }
    (looks.finalize().to_hex().to_string(), newest)
}

fn digest_of_all(
    files: &[PathBuf],
    sysroot: &Path,
    looks: &str,
    store: &Store,
) -> Result<String, String> {
    let before = file_clock();
    let mut hasher = blake3::Hasher::new();
    let mut told = String::new();
    for path in files {
        if !path.is_file() {
            continue;
        }
        let (digest, size) = digest_of(path)?;
        let name = path.strip_prefix(sysroot).unwrap_or(path);
        hasher.update(name.as_os_str().as_bytes());
        hasher.update(format!("\0{size} {digest}\n").as_bytes());
        told.push_str(&format!("{digest} {}\n", name.display()));
    }
    let digest = hasher.finalize().to_hex().to_string();
    let made = Toolchain { digest, told };
    // What is being written is remembered by nobody: the next write may look like this one.
    let (after, newest) = looks_of(files);
    if after == looks && newest + GRANULE < before {
        made.tell(looks, store);
        toolchains::remember(looks, &made);
    }
    Ok(made.digest)
}

/// What is known of a toolchain that was read once.
#[derive(Debug, PartialEq, Eq)]
struct Toolchain {
    digest: String,
    /// A line for each file, for those who want to know what it is that differs.
    told: String,
}

impl Toolchain {
    fn tell(&self, looks: &str, store: &Store) {
        store.remember(ROOM, looks, &self.digest);
        store.remember(ROOM, &format!("{}.files", self.digest), &self.told);
    }
}

/// The user's memory of toolchains: a store is often new where the toolchain is not.
///
/// `<cache>/cargo-cow/toolchains/<stats of all files>`: the digest, what it is made of, and a check
/// of both, so that a file that was torn or damaged counts as none.
mod toolchains {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::super::store::{cache, own, publish};
    use super::Toolchain;

    /// Toolchains that are remembered; of others the one that was read first is forgotten.
    const MOST: usize = 64;

    fn room() -> Option<PathBuf> {
        Some(cache()?.join("toolchains"))
    }

    pub fn recall(looks: &str) -> Option<Toolchain> {
        recall_in(&room()?, looks)
    }

    pub fn remember(looks: &str, made: &Toolchain) {
        let _ = room().and_then(|room| remember_in(&room, looks, made));
    }

    pub fn recall_in(room: &Path, looks: &str) -> Option<Toolchain> {
        let text = fs::read_to_string(room.join(looks)).ok()?;
        // Who could write here could say that another compiler is this one.
        own(room).ok()?;
        let (check, body) = text.split_once('\n')?;
        (check == check_of(looks, body)).then_some(())?;
        let (digest, told) = body.split_once('\n')?;
        Some(Toolchain {
            digest: digest.to_owned(),
            told: told.to_owned(),
        })
    }

    pub fn remember_in(room: &Path, looks: &str, made: &Toolchain) -> Option<()> {
        own(room).ok()?;
        let body = format!("{}\n{}", made.digest, made.told);
        let text = format!("{}\n{body}", check_of(looks, &body));
        publish(room, looks, &text)?;
        let mut all: Vec<_> = fs::read_dir(room)
            .ok()?
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        all.sort();
        for (_, path) in all.iter().rev().skip(MOST) {
            let _ = fs::remove_file(path);
        }
        Some(())
    }

    /// Of the name as well: a memory that was moved is none.
    fn check_of(looks: &str, body: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(looks.as_bytes()).update(b"\n");
        hasher.update(body.as_bytes());
        hasher.finalize().to_hex().to_string()
    }
}

/// The host's, by the toolchain's own list of components (else all that are there), and `target`.
fn triples(libraries: &Path, target: Option<&str>) -> Vec<String> {
    let components = fs::read_to_string(libraries.join("components")).unwrap_or_default();
    let mut found: Vec<String> = components
        .lines()
        .filter_map(|line| line.strip_prefix("rustc-"))
        .filter(|triple| libraries.join(triple).join("lib").is_dir())
        .map(str::to_owned)
        .collect();
    if found.is_empty() {
        found = named(libraries, &[""])
            .iter()
            .filter(|path| path.join("lib").is_dir())
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect();
    }
    found.extend(target.map(str::to_owned));
    found.sort();
    found.dedup();
    found
}

fn digest_of(path: &Path) -> Result<(String, u64), String> {
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = fs::File::open(path).map_err(said)?;
    let (size, digest) = inputs::digest(&mut file).map_err(said)?;
    Ok((digest, size))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::toolchains::{recall_in, remember_in};
    use super::*;

    #[test]
    fn a_memory_is_whole_and_its_own_or_none() {
        let room = std::env::temp_dir().join(format!("cow-toolchains-{}", std::process::id()));
        let _ = fs::remove_dir_all(&room);
        let made = Toolchain {
            digest: "d".repeat(64),
            told: "e bin/rustc\nf lib/driver\n".to_owned(),
        };
        assert_eq!(recall_in(&room, "one"), None);
        assert!(!room.exists());
        remember_in(&room, "one", &made).unwrap();
        assert_eq!(recall_in(&room, "one").as_ref(), Some(&made));
        fs::copy(room.join("one"), room.join("two")).unwrap();
        assert_eq!(recall_in(&room, "two"), None);
        let text = fs::read_to_string(room.join("one")).unwrap();
        for damaged in [&text[..text.len() - 9], &text.replace("dd", "de"), ""] {
            fs::write(room.join("one"), damaged).unwrap();
            assert_eq!(recall_in(&room, "one"), None);
        }
        fs::write(room.join("one"), &text).unwrap();
        assert_eq!(recall_in(&room, "one").as_ref(), Some(&made));
        fs::set_permissions(&room, fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(recall_in(&room, "one"), None);
        assert_eq!(remember_in(&room, "one", &made), None);
        fs::set_permissions(&room, fs::Permissions::from_mode(0o700)).unwrap();
        for number in 0..70 {
            remember_in(&room, &format!("n{number}"), &made).unwrap();
        }
        assert!(recall_in(&room, "n69").is_some());
        assert_eq!(fs::read_dir(&room).unwrap().count(), 64);
        fs::remove_dir_all(&room).unwrap();
    }
}
