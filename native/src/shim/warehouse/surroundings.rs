//! What a unit depends on beside its sources and dependencies, as it is on this machine now.
//!
//! The shim puts these into the key of each call (`key`), of what the call names.  For whole units,
//! of which nobody sees the calls, they are told as one digest for each kind of unit.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::inputs::{Nanoseconds, changed, modified};
use super::super::{linker, variable};
use super::store::Store;
use super::{compiler, key};
use crate::clone_tree::Mode;
use crate::verbs::Failure;

/// Programs that build scripts start.
const TOOLS: &[&str] = &[
    "ar",
    "as",
    "autoconf",
    "automake",
    "c++",
    "cc",
    "clang",
    "clang++",
    "cmake",
    "g++",
    "gcc",
    "libtool",
    "llvm-config",
    "m4",
    "make",
    "nasm",
    "ninja",
    "nm",
    "perl",
    "pkg-config",
    "protoc",
    "python3",
    "ranlib",
    "yasm",
];
/// Where their C compilers look by themselves.
const HEADERS: &[&str] = &[
    "/usr/include",
    "/usr/local/include",
    "/usr/lib/pkgconfig",
    "/usr/local/lib/pkgconfig",
    "/usr/share/pkgconfig",
];
/// Variables that they go by, declared or not.
const SUFFIXES: &[&str] = &[
    "FLAGS",
    "_PATH",
    "_DIR",
    "_LIBDIR",
    "_SYSROOT_DIR",
    "_TOOLCHAIN",
];
const NAMES: &[&str] = &[
    "AR", "AS", "CC", "CMAKE", "CPATH", "CXX", "LD", "NM", "RANLIB",
];
const FAMILIES: &[&str] = &[
    "AR_",
    "CC_",
    "CMAKE_",
    "CXX_",
    "HOST_",
    "PKG_CONFIG",
    "TARGET_",
];

struct Digest {
    hasher: blake3::Hasher,
    newest: Nanoseconds,
}

impl Digest {
    fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            newest: 0,
        }
    }

    fn add(&mut self, text: &str) {
        self.hasher.update(&(text.len() as u64).to_le_bytes());
        self.hasher.update(text.as_bytes());
    }

    /// A program, by where it really lies and its stat.
    fn program(&mut self, name: &str, real: &Path) {
        if let Ok(stat) = fs::metadata(real) {
            self.newest = self.newest.max(changed(&stat));
            self.add(&format!("{name} {} {}", real.display(), key::looks(&stat)));
        }
    }

    fn directory(&mut self, path: &Path) {
        if let Ok(stat) = fs::metadata(path) {
            self.newest = self.newest.max(modified(&stat));
            self.add(&format!("{} {}", path.display(), modified(&stat)));
        }
    }

    fn finish(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

/// `{"beside": directory, "rustc": program, "targets": [triple…], "linkers": [program…]}` →
/// `{"root", "copies", "compilers": {triple: digest}, "linking", "tools", "variables", "processor",
/// "changed": ns}`; of the host the triple is empty.
///
/// `linking` is null where it cannot be told what a linker goes by.  `root` is null where the
/// warehouse is off.  `changed` is when any of the programs, directories and compilers was changed
/// last.  With `"target": false` in the request `beside` is no target directory, and nothing is
/// written down in it.
pub fn tell(request: &Value) -> Result<Value, Failure> {
    let malformed = || Failure::usage("malformed request");
    let beside = Path::new(request["beside"].as_str().ok_or_else(malformed)?);
    let store = if request["target"].as_bool() == Some(false) {
        Store::near(beside)
    } else {
        Store::of(beside)
    };
    let Some(store) = store.map_err(Failure::usage)? else {
        return Ok(json!({"root": null}));
    };
    let place = json!({
        "root": store.root.to_str().ok_or_else(malformed)?,
        "copies": store.mode == Mode::Auto,
    });
    let Some(rustc) = request["rustc"].as_str() else {
        return Ok(place);
    };
    let names = |name: &str| -> Vec<&str> {
        let list = request[name].as_array();
        list.map_or(Vec::new(), |list| {
            list.iter().filter_map(Value::as_str).collect()
        })
    };
    let mut newest = 0;
    let mut compilers = Map::new();
    for triple in std::iter::once("").chain(names("targets")) {
        let target = Some(triple).filter(|triple| !triple.is_empty());
        let digest = compiler::identity(rustc.as_ref(), target, &store).map_err(Failure::usage)?;
        compilers.insert(triple.to_owned(), json!(digest));
    }
    if let Some(stat) = compiler::located(rustc.as_ref()).and_then(|path| fs::metadata(path).ok()) {
        newest = newest.max(changed(&stat));
    }

    let mut linking = Digest::new();
    let linkable = links(&mut linking, &names("linkers"));
    let mut tools = Digest::new();
    tools.add(&linking.finish());
    for name in TOOLS {
        for path in compiler::all_located(name.as_ref()) {
            tools.program(name, &fs::canonicalize(&path).unwrap_or(path));
        }
    }
    for directory in headers() {
        tools.directory(&directory);
    }
    for (name, value) in key::sorted_variables() {
        let counts = NAMES.contains(&name.as_str())
            || FAMILIES.iter().any(|family| name.starts_with(family))
            || SUFFIXES.iter().any(|end| name.ends_with(end));
        if counts
            && !key::is_idle(&name)
            && name != "LD_LIBRARY_PATH"
            && !name.starts_with("CARGO_")
        {
            tools.add(&format!("{name}={value}"));
        }
    }

    let mut variables = Digest::new();
    for (name, value) in key::sorted_variables() {
        if !key::is_idle(&name) && name != "LD_LIBRARY_PATH" {
            variables.add(&format!("{name}={value}"));
        }
    }
    newest = newest.max(linking.newest).max(tools.newest);
    let mut answer = place;
    answer["compilers"] = Value::Object(compilers);
    answer["linking"] = json!(linkable.ok().map(|()| linking.finish()));
    answer["tools"] = json!(tools.finish());
    answer["variables"] = json!(variables.finish());
    answer["processor"] = json!(key::processor().map_err(Failure::usage)?);
    answer["changed"] = json!(i64::try_from(newest).unwrap_or(i64::MAX));
    Ok(answer)
}

/// What a linker is, starts, reads and goes by; an error where that cannot be told.
fn links(digest: &mut Digest, named: &[&str]) -> Result<(), String> {
    if let Some(name) = key::REFUSED_LINKING
        .iter()
        .find(|name| variable(name).is_some())
    {
        return Err((*name).to_owned());
    }
    for name in key::READ_BY_LINKERS
        .iter()
        .copied()
        .chain([linker::VARIABLE])
    {
        let value = std::env::var_os(name).unwrap_or_default();
        digest.add(&format!("{name}={}", value.display()));
    }
    for name in named.iter().copied().chain(["cc"]) {
        for (name, real) in key::linker_files(name)? {
            digest.program(&name, &real);
        }
    }
    let searched = variable("LIBRARY_PATH").unwrap_or_default();
    let searched: Vec<PathBuf> = std::env::split_paths(&searched)
        .filter(|path| path.is_dir())
        .collect();
    for directory in searched.into_iter().chain(key::system_directories()) {
        let (libraries, newest) = key::system_libraries(&directory)?;
        digest.newest = digest.newest.max(newest);
        digest.add(&format!("{} {libraries}", directory.display()));
    }
    Ok(())
}

/// The directories of headers, and those right below them.
fn headers() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = HEADERS.iter().map(PathBuf::from).collect();
    for root in HEADERS.iter().take(2) {
        found.extend(key::directories_of(Path::new(root)));
    }
    found.retain(|path| fs::metadata(path).is_ok_and(|stat| stat.mode() & libc::S_IFDIR != 0));
    found
}
