//! Whole units of Cargo's, kept and given out many at a time, with no process for each.
//!
//! A unit is an entry as any other (`entry`), whose `kind` is `unit`, and whose outputs are all the
//! files that are that unit's alone, named relative to the build directory: fingerprint, dep-info,
//! what was compiled, a script's output and `OUT_DIR`.  Which entries fit together, and whether one
//! may stand here, is decided in Python (`cargo_cow/warehouse`); here files are moved.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use memchr::memmem;
use serde_json::{Value, json};

use super::super::inputs::{self, Identity, modified};
use super::super::layout;
use super::entry::{self, Entry, Moved};
use super::ledger::{Kind, Ledgers};
use super::store::{self, Store, create};
use crate::clone_tree::Mode;
use crate::verbs::Failure;

pub const KIND: &str = "unit";

/// What a file says about its unit to those that are built against it.
const SILENT: u64 = 0;
/// Its contents, with the paths of the place left out: a script's output.
const TEXT: u64 = 2;

fn store_of(request: &Value) -> Result<Store, Failure> {
    let root = request["root"].as_str().ok_or_else(malformed)?;
    Ok(Store {
        root: root.into(),
        mode: if request["copies"] == true {
            Mode::Auto
        } else {
            Mode::Reflink
        },
    })
}

fn malformed() -> Failure {
    Failure::usage("malformed request")
}

// -- keeping

/// `{"root", "copies", "paths", "units": [{"key", "most", "name", "value", "dependencies":
/// [[name, digest or null]…], "declares": text, "files": [[path, name, 0|1|2]…], "links": [[name, name]…],
/// "fingerprint": [path, hex], "invoked": [path, ns]}…]}` → `{"kept": [[digest, null] or [null,
/// reason]…], "new", "reflinked", "copied", "copied_reason"}`.
///
/// `declares` counts for those that are built against the unit.  Units come dependencies first: a dependency whose digest is null is one of them.
pub fn keep(request: &Value) -> Result<Value, Failure> {
    let store = store_of(request)?;
    let paths = request["paths"].as_array().ok_or_else(malformed)?;
    let paths: Vec<&str> = paths.iter().filter_map(Value::as_str).collect();
    let mut digests: HashMap<String, String> = HashMap::new();
    let mut ledgers = Ledgers::default();
    let mut all = Moved::default();
    let mut kept = Vec::new();
    let mut new = 0;
    for unit in request["units"].as_array().ok_or_else(malformed)? {
        match keep_one(&store, &paths, unit, &digests, &mut ledgers) {
            Ok((digest, moved)) => {
                if let Some(moved) = moved {
                    new += 1;
                    all.join(&moved);
                }
                if let Some(name) = unit["name"].as_str() {
                    digests.insert(name.to_owned(), digest.clone());
                }
                kept.push(json!([digest, null]));
            }
            Err(reason) => kept.push(json!([null, reason])),
        }
    }
    Ok(json!({
        "kept": kept,
        "new": new,
        "reflinked": all.reflinked,
        "copied": all.copied,
        "copied_reason": all.reason,
    }))
}

/// The unit's digest, and how its data came, or `None` where the store had it already.
fn keep_one(
    store: &Store,
    paths: &[&str],
    unit: &Value,
    known: &HashMap<String, String>,
    ledgers: &mut Ledgers,
) -> Result<(String, Option<Moved>), String> {
    let list = |name: &str| unit[name].as_array().ok_or("malformed");
    let mut dependencies = Vec::new();
    for dependency in list("dependencies")? {
        let name = dependency[0].as_str().ok_or("malformed")?;
        let digest = dependency[1]
            .as_str()
            .or_else(|| known.get(name).map(String::as_str))
            .ok_or_else(|| format!("{name} is not kept"))?;
        dependencies.push(json!([name, digest]));
    }
    let (directory, _lock) = store.workshop().map_err(|error| error.to_string())?;
    let result = (|| {
        let mut moved = Moved::default();
        let mut outputs = Vec::new();
        let mut said = blake3::Hasher::new();
        said.update(unit["declares"].as_str().unwrap_or("").as_bytes());
        for (index, file) in list("files")?.iter().enumerate() {
            let path = Path::new(file[0].as_str().ok_or("malformed")?);
            let name = file[1].as_str().ok_or("malformed")?;
            let failed = |error: io::Error| format!("{}: {error}", path.display());
            let copy = directory.join(index.to_string());
            let (taken, unchanged) = take(store, path, &copy, &mut moved).map_err(failed)?;
            let (size, mode) = (taken.size(), taken.mode());
            // Its compile noted what it made; to read all of it again would be most of the work.
            let remembered = unchanged.then(|| ledgers.known(path, &Identity::of(&taken)));
            let digest = match remembered.flatten() {
                Some(digest) => digest,
                None => {
                    let (read, digest) = File::open(&copy)
                        .and_then(|mut file| inputs::digest(&mut file))
                        .map_err(failed)?;
                    if read != size {
                        return Err(format!("{} was written to", path.display()));
                    }
                    digest
                }
            };
            match file[2].as_u64() {
                Some(SILENT) => {}
                Some(TEXT) => {
                    let text = fs::read(&copy).map_err(failed)?;
                    let text = without(text, paths);
                    said.update(format!("{name}\0{}\n", blake3::hash(&text).to_hex()).as_bytes());
                }
                _ => {
                    said.update(format!("{name}\0{digest}\n").as_bytes());
                }
            }
            outputs.push(json!([name, size, digest, mode & 0o111 != 0]));
        }
        // It is still the build that was spoken of, and whole.
        let fingerprint = fs::read_to_string(unit["fingerprint"][0].as_str().ok_or("malformed")?);
        if fingerprint.ok().as_deref() != unit["fingerprint"][1].as_str() {
            return Err("it was built again meanwhile".to_owned());
        }
        let invoked = fs::metadata(unit["invoked"][0].as_str().ok_or("malformed")?)
            .map_err(|error| error.to_string())?;
        if i128::from(unit["invoked"][1].as_i64().ok_or("malformed")?) != modified(&invoked) {
            return Err("it was built again meanwhile".to_owned());
        }
        let digest = said.finalize().to_hex().to_string();
        let mut id = blake3::Hasher::new();
        for part in [
            // Another version's is another entry, which stays where it is.
            entry::FORMAT.to_string(),
            unit["id"].to_string(),
            json!(dependencies).to_string(),
            digest.clone(),
        ] {
            id.update(&(part.len() as u64).to_le_bytes());
            id.update(part.as_bytes());
        }
        let mut id = id.finalize().to_hex().to_string();
        id.truncate(32);
        let key = unit["key"].as_str().filter(|key| key.len() > 2);
        let key = key.ok_or("malformed")?;
        let place = store.key(key);
        match Entry::at(&place.join(&id)) {
            Ok(there) => {
                drop(there.hold());
                return Ok((digest, None));
            }
            Err(entry::FOREIGN) => return Err(entry::FOREIGN.to_owned()),
            Err(_) => entry::remove(store, &place.join(&id)),
        }
        let mut value = unit["value"].clone();
        value["format"] = json!(entry::FORMAT);
        value["kind"] = json!(KIND);
        value["outputs"] = Value::Array(outputs);
        value["links"] = unit["links"].clone();
        value["dependencies"] = Value::Array(dependencies);
        value["digest"] = json!(digest);
        let target = Path::new(paths.first().ok_or("malformed")?);
        value["ledger"] = noted(ledgers, target, list("files")?);
        let made = Entry {
            directory: directory.clone(),
            value,
        };
        made.seal().map_err(|error| error.to_string())?;
        store::make(&place).map_err(|error| error.to_string())?;
        match fs::rename(&directory, place.join(&id)) {
            Err(error) if !place.join(&id).is_dir() => Err(error.to_string()),
            _ => {
                let most = unit["most"].as_u64().map_or(1, |most| most as usize);
                entry::prune(store, key, most);
                Ok((digest, Some(moved)))
            }
        }
    })();
    let _ = fs::remove_dir_all(&directory);
    result
}

/// What the shim noted of a unit (see `ledger`): `[name, profile, kind, dependency…]`, relative to the
/// target; null where no shim compiled it, or what it was given lies elsewhere.
fn noted(ledgers: &mut Ledgers, target: &Path, files: &[Value]) -> Value {
    let of = |file: &Value| {
        let path = target.join(file[1].as_str()?);
        let profile = layout::profile_directory(path.parent()?)?.strip_prefix(target);
        let profile = profile.ok()?.to_str()?.to_owned();
        // A fingerprint is none.
        if !matches!(path.extension()?.to_str()?, "rlib" | "rmeta" | "so") {
            return None;
        }
        let (kind, below) = ledgers.unit(&path)?;
        let name = ledgers.name(&path)?;
        let mut words = vec![name, profile, kind.word().to_owned()];
        for path in below {
            words.push(path.strip_prefix(target).ok()?.to_str()?.to_owned());
        }
        Some(json!(words))
    };
    files.iter().find_map(of).unwrap_or(Value::Null)
}

/// Notes it in the target that the unit is given to.  What is told is of all units of this name,
/// whoever compiled them, so that it is true before and after the unit is there.
fn note(ledgers: &mut Ledgers, target: &Path, noted: &Value) -> Option<()> {
    let words: Option<Vec<&str>> = noted.as_array()?.iter().map(Value::as_str).collect();
    let words = words?;
    let [name, profile, kind, below @ ..] = words.as_slice() else {
        return None;
    };
    let kind = Kind::of(kind)?;
    if name.contains(['\t', '\n', '/']) || !words[1..].iter().all(|name| entry::is_inside(name)) {
        return None;
    }
    let externs: Vec<(String, PathBuf)> = below
        .iter()
        .map(|name| (String::new(), target.join(name)))
        .collect();
    ledgers.note_unit(&target.join(profile), name, kind, &externs)
}

/// A regular file into the store; which one it was, and whether it stayed so meanwhile.
fn take(
    store: &Store,
    path: &Path,
    copy: &Path,
    moved: &mut Moved,
) -> io::Result<(fs::Metadata, bool)> {
    let from = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let stat = from.metadata()?;
    if !stat.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let to = create(copy)?;
    let size = stat.size();
    if size > 0 {
        moved.add(entry::transfer(&from, &to, size, store.mode)?, size);
    }
    to.set_permissions(fs::Permissions::from_mode(0o400))?;
    let unchanged = Identity::of(&from.metadata()?) == Identity::of(&stat);
    Ok((stat, unchanged))
}

fn without(mut text: Vec<u8>, paths: &[&str]) -> Vec<u8> {
    for path in paths {
        let mut result = Vec::with_capacity(text.len());
        let mut at = 0;
        for found in memmem::find_iter(&text, path.as_bytes()) {
            result.extend_from_slice(&text[at..found]);
            at = found + path.len();
        }
        result.extend_from_slice(&text[at..]);
        text = result;
    }
    text
}

// -- giving out

/// `{"root", "copies", "target", "to", "time", "units": [{"directory", "invoked": [name, ns]}…]}` →
/// `{"given": [null or reason…], "files", "reflinked", "copied", "copied_reason"}`.
///
/// Every file gets the time `time` (ns), but the one that tells when the unit was built.
pub fn give(request: &Value) -> Result<Value, Failure> {
    let store = store_of(request)?;
    let to = PathBuf::from(request["to"].as_str().ok_or_else(malformed)?);
    let time = request["time"].as_i64().ok_or_else(malformed)?;
    let target = request["target"].as_str().map(Path::new);
    let units = request["units"].as_array().ok_or_else(malformed)?;
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut done = Vec::new();
        let mut all = Moved::default();
        let mut files = 0;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(unit) = units.get(index) else { break };
            match give_one(&store, &to, time, unit) {
                Ok((moved, count, noted)) => {
                    all.join(&moved);
                    files += count;
                    done.push((index, Ok(noted)));
                }
                Err(reason) => done.push((index, Err(reason))),
            }
        }
        (done, all, files)
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect()
    });
    let mut given = vec![json!("not looked at"); units.len()];
    let mut all = Moved::default();
    let mut files = 0;
    let mut ledgers = Ledgers::default();
    for part in parts {
        let Ok((done, moved, count)) = part else {
            continue;
        };
        all.join(&moved);
        files += count;
        for (index, outcome) in done {
            given[index] = json!(outcome.as_ref().err());
            if let (Some(target), Ok(noted)) = (target, outcome) {
                let _ = note(&mut ledgers, target, &noted);
            }
        }
    }
    Ok(json!({
        "given": given,
        "files": files,
        "reflinked": all.reflinked,
        "copied": all.copied,
        "copied_reason": all.reason,
    }))
}

fn give_one(
    store: &Store,
    to: &Path,
    time: i64,
    unit: &Value,
) -> Result<(Moved, usize, Value), String> {
    let directory = Path::new(unit["directory"].as_str().ok_or("malformed")?);
    let entry = Entry::at(directory)?;
    let outputs = entry.outputs().ok_or("malformed")?;
    let held = entry.hold().ok_or("it is being removed")?;
    if !entry.is_whole() {
        drop(held);
        entry::remove(store, directory);
        return Err("damaged".to_owned());
    }
    let invoked = (unit["invoked"][0].as_str(), unit["invoked"][1].as_i64());
    let mut moved = Moved::default();
    let mut last: Option<PathBuf> = None;
    let mut room = |path: &Path| -> io::Result<()> {
        let parent = path.parent().unwrap_or(to);
        if last.as_deref() != Some(parent) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o777)
                .create(parent)?;
            last = Some(parent.to_owned());
        }
        Ok(())
    };
    let mut said = (|| -> io::Result<()> {
        for (index, output) in outputs.iter().enumerate() {
            let path = to.join(output.name);
            room(&path)?;
            // Modes as rustc and the linker leave them.
            let made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(if output.executable { 0o777 } else { 0o666 })
                .open(&path)?;
            if output.size > 0 {
                let from = entry::regular(&entry.file(index))?;
                moved.add(
                    entry::transfer(&from, &made, output.size, store.mode)?,
                    output.size,
                );
            }
            let at = match invoked {
                (Some(name), Some(at)) if name == output.name => at,
                _ => time,
            };
            let at = rustix::fs::Timespec {
                tv_sec: at.div_euclid(1_000_000_000),
                tv_nsec: at.rem_euclid(1_000_000_000),
            };
            let times = rustix::fs::Timestamps {
                last_access: at,
                last_modification: at,
            };
            rustix::fs::futimens(&made, &times)?;
        }
        for link in entry.list("links") {
            let (Some(name), Some(of)) = (link[0].as_str(), link[1].as_str()) else {
                continue;
            };
            if !entry::is_inside(name) || !entry::is_inside(of) {
                return Err(io::Error::other("malformed"));
            }
            room(&to.join(name))?;
            fs::hard_link(to.join(of), to.join(name))?;
        }
        for name in entry.list("directories").iter().filter_map(Value::as_str) {
            if entry::is_inside(name) {
                fs::create_dir_all(to.join(name))?;
            }
        }
        Ok(())
    })();
    if let Err(error) = &said
        && error.raw_os_error() == Some(libc::EXDEV)
    {
        said = Err(io::Error::other(
            "the store does not share data with the target any more",
        ));
    }
    said.map_err(|error| error.to_string())?;
    let noted = entry.value["ledger"].clone();
    Ok((moved, entry.list("outputs").len(), noted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scripts_output_says_the_same_in_every_target() {
        let text = |path: &str| {
            let text = format!("cargo:rustc-link-search=native={path}/t/x/out\nb {path}/src");
            without(text.into_bytes(), &[&format!("{path}/t"), path])
        };
        assert_eq!(text("/a"), text("/other/checkout"));
        assert_eq!(without(b"plain".to_vec(), &["/a"]), b"plain");
    }
}
