//! The warehouse's door for one call: what was compiled before from the same comes back, and what
//! is compiled now is kept.  `docs/warehouse.md` is the contract.
//!
//! Two levels.  The first key (`key`) is known before any source is read; under it lie entries,
//! each with the files and variables that its compile read.  One whose all are the same here is
//! given out: its files by reflink, under the time of now; its diagnostics once more.  In any
//! doubt there is no hit, and the compiler runs.

mod asked;
mod baked;
mod claim;
mod compiler;
mod entry;
pub mod follow;
mod key;
mod ledger;
mod linking;
mod place;
mod request;
pub mod runs;
mod store;
pub mod surroundings;
mod tidy;
mod trees;
pub mod units;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::args::{Call, Compile};
use super::identity::Places;
use super::identity::restore::Back;
use super::inputs::{Hasher, Identity, Nanoseconds, modified};
use super::process::{CHAIN, Heard};
use super::{Seen, layout, log, observe, variable};
use crate::clone_tree::Mode;
use crate::depinfo;
use claim::{Claim, Turn};
pub use compiler::located;
use entry::{Entry, Job, Made, Moved};
use key::{Context, Key, Surroundings};
use ledger::Ledgers;
use place::Place;
use request::Request;
use store::Store;
pub use store::cache;

/// Entries of one key and place: so many are kept, the ones used last.  Of a unit that is edited in place,
/// the last result and the one before it.
const KEPT: usize = 8;
const KEPT_INCREMENTAL: usize = 2;

/// Where outputs wait until all of them are there; one that is older was left by who died.
const RESTORING: &str = "restoring-";
const ABANDONED: Duration = Duration::from_secs(600);

const NEW: &str = "new";
const ELSEWHERE: &str = "it holds the path of another checkout or target";

/// A call that may be answered from the warehouse.
pub struct Door {
    store: Store,
    program: OsString,
    request: Request,
    context: Context,
    /// Of a path package: it and its target, whose paths its outputs may hold.
    place: Option<Place>,
    ledgers: Ledgers,
    key: Key,
    dep_info: PathBuf,
    opened: Instant,
    /// The call, for those who want to compile it again.
    call: Value,
    asked: asked::Note,
    /// Held from the miss until the result is kept, or will not be.
    claim: Option<Claim>,
    waited: Duration,
    /// What was given out: name, BLAKE3, inode, size and mtime of each file.
    given: Vec<Value>,
    sight: observe::Sight,
    /// As they were before the compile; the second is of everything.
    surroundings: [Option<Result<Surroundings, String>>; 2],
}

impl Door {
    /// `None`: switched off, or the call is the compiler's alone.
    ///
    /// `places`: what the compile sees elsewhere than where it is, if anything.
    pub fn of(call: &Call, compile: &Compile, places: Option<&Places>) -> Option<Self> {
        let opened = Instant::now();
        let profile = layout::profile_directory(&compile.out_dir)?;
        if !profile.is_absolute() {
            return None;
        }
        let store = Store::of(profile)
            .inspect_err(|reason| log(&format!("warehouse: not used: {reason}")))
            .ok()??;
        runs::note(profile);
        if compile
            .crate_name
            .as_encoded_bytes()
            .starts_with(b"build_script_")
        {
            follow::begin(&store);
        }
        let made = Self::made(call, compile, places, profile, &store);
        let (program, request, context, ledgers, key) = match made {
            Ok(made) => made,
            Err(reason) => {
                log(&format!("warehouse: not for this call: {reason}"));
                let told = json!({"time": now(), "what": "passed", "reason": reason,
                    "crate": compile.crate_name.to_string_lossy(),
                    "package": package(), "profile": profile.to_str()});
                asked::Note::of(compile).leave(&told);
                store.tell(&told);
                return None;
            }
        };
        let place = if context.is_dependency {
            None
        } else {
            Some(Place::of(&context.directory, profile)?)
        };
        Some(Self {
            place,
            call: asked::call(call, &context.directory),
            asked: asked::Note::of(compile),
            sight: observe::Sight::of(compile)?,
            surroundings: [None, None],
            store,
            program,
            request,
            context,
            ledgers,
            key,
            dep_info: compile.dep_info.clone()?,
            opened,
            claim: None,
            waited: Duration::ZERO,
            given: Vec::new(),
        })
    }

    fn made(
        call: &Call,
        compile: &Compile,
        places: Option<&Places>,
        profile: &Path,
        store: &Store,
    ) -> Result<(OsString, Request, Context, Ledgers, Key), String> {
        if variable(CHAIN).is_some() {
            return Err("another wrapper".to_owned());
        }
        if rustix::termios::isatty(io::stderr()) {
            return Err("stderr is a terminal".to_owned());
        }
        let request = Request::of(call, compile)?;
        let context = Context::of(profile, places).ok_or("not called by Cargo")?;
        let mut ledgers = Ledgers::default();
        let stem = format!("lib{}{}", request.crate_name, request.extra_filename);
        if !request.extra_filename.is_empty() {
            ledgers
                .note_unit(profile, &stem, context.kind(&request), &request.externs)
                .ok_or("its unit cannot be noted")?;
        }
        let program = call.programs[0].clone();
        let key = key::of(&program, &request, &context, &mut ledgers, store)?;
        Ok((program, request, context, ledgers, key))
    }

    /// Gives out what was compiled from the same, or is being compiled by another build right now.
    /// Returns what that compile read behind rustc's back, null where that was not observed.
    /// `None`: the compiler has to run.
    ///
    /// `since`: what was changed from then on is not what Cargo wants compiled.
    pub fn restore(&mut self, since: Nanoseconds) -> Option<Value> {
        let mut asks = !self.key.tied;
        let reason = loop {
            let reason = match self.look(&mut Hasher::new(since)) {
                Ok(hidden) => return Some(hidden),
                Err(reason) => reason,
            };
            // An output that tells its place is made for each place.  And who edits a package
            // compiles what nobody else does.
            if !asks || reason == ELSEWHERE || (self.place.is_some() && reason != NEW) {
                break reason;
            }
            let Some(name) = self.claimed() else {
                break reason;
            };
            match claim::take(&self.store, &name, &mut self.waited) {
                Turn::Ours(claim) => {
                    // Others build as long as nobody looked again.
                    self.claim = Some(claim);
                    asks = false;
                }
                Turn::Built { kept: true } => asks = false,
                Turn::Built { kept: false } | Turn::Without => break reason,
            }
        };
        log(&format!("warehouse: {}: {reason}", self.request.crate_name));
        self.tell("miss", &reason, &Moved::default(), 0.0);
        self.leave_word(&reason);
        if let Some(claim) = &self.claim {
            claim.show_progress();
        }
        if self.key.closure.macros {
            // To be compared after the compile, in case that it cannot be observed.
            for everything in [false, true] {
                let _ = self.surroundings(everything);
            }
        }
        None
    }

    /// The files that `restore` gave out: name, BLAKE3, inode, size and mtime (ns) of each.
    pub fn given(&self) -> Value {
        json!(self.given)
    }

    /// The name of the claim on the unit.  Who compiles other sources of a path package compiles
    /// something else.
    fn claimed(&mut self) -> Option<String> {
        if self.context.is_dependency {
            return Some(self.key.digest.clone());
        }
        let sources = self.context.sources(&mut self.ledgers).ok()?;
        let both = format!("{} {sources}", self.key.digest);
        Some(blake3::hash(both.as_bytes()).to_hex().to_string())
    }

    /// Looks through what is kept; the reason why nothing is given out is that of the last entry.
    fn look(&mut self, hasher: &mut Hasher) -> Result<Value, String> {
        let mut reason = NEW.to_owned();
        for entry in Entry::all(&self.store, &self.key.digest) {
            let hidden = self
                .matches(&entry)
                .and_then(|()| self.hidden_here(&entry, hasher))
                .and_then(|hidden| self.is_surrounded_as(&entry).map(|()| hidden));
            let hidden = match hidden {
                Ok(hidden) => hidden,
                Err(why) => {
                    reason = why;
                    continue;
                }
            };
            if !entry.is_whole() {
                "damaged".clone_into(&mut reason);
                entry::remove(&self.store, &entry.directory);
                continue;
            }
            if self
                .is_elsewhere(&entry)
                .is_some_and(|there| entry.holds(&there))
            {
                ELSEWHERE.clone_into(&mut reason);
                continue;
            }
            let Some(_held) = entry.hold() else { continue };
            // Who waits for this unit can have it from here on.
            if let Some(claim) = self.claim.take() {
                claim.end(true);
            }
            match self.give_out(&entry) {
                Ok(moved) => {
                    let saved = entry.value.get("seconds").and_then(Value::as_f64);
                    self.tell("hit", "", &moved, saved.unwrap_or(0.0));
                    self.asked.clear();
                    log(&format!("warehouse: {} restored", self.request.crate_name));
                    return Ok(hidden);
                }
                Err(error) => {
                    reason = format!("not restored: {error}");
                    self.forget_if_apart(&error);
                }
            }
        }
        Err(reason)
    }

    /// Whether a compile behind this door has to be observed, whoever else wants it.
    pub fn is_watched(&self) -> bool {
        self.key.closure.impure
    }

    /// What the compile that just ran read behind rustc's back, if that was observed.
    pub(super) fn hidden(&self, seen: &Seen, hasher: &mut Hasher) -> Option<Value> {
        let dep_info = fs::read_to_string(&self.dep_info).ok()?;
        self.sight.hidden(seen, &depinfo::parse(&dep_info)?, hasher)
    }

    fn surroundings(&mut self, everything: bool) -> Result<&Surroundings, String> {
        let Self {
            surroundings,
            context,
            ledgers,
            ..
        } = self;
        surroundings[usize::from(everything)]
            .get_or_insert_with(|| key::surroundings(context, ledgers, everything))
            .as_ref()
            .map_err(Clone::clone)
    }

    /// Where what an entry's compile read was not seen, or not all of it: whether all that it may
    /// have read is the same here.
    fn is_surrounded_as(&mut self, entry: &Entry) -> Result<(), String> {
        let then = entry.value.get("surroundings").ok_or("malformed")?;
        if then.is_null() {
            return Ok(());
        }
        let everything = then["everything"] != false;
        let here = json!(self.surroundings(everything)?.parts);
        if then["parts"] == here {
            return Ok(());
        }
        let parts = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let other = parts(&here)
            .into_iter()
            .zip(parts(&then["parts"]))
            .find(|(one, other)| one != other);
        let name = other.map_or("parts".to_owned(), |(one, _)| {
            let name = one[1].as_str().unwrap_or_default();
            let end = name.find(['=', '#', ' ']).unwrap_or(name.len());
            format!("{} {}", one[0].as_str().unwrap_or_default(), &name[..end])
        });
        Err(format!("what macros may read: {name}"))
    }

    /// What has to be compared of a compile of which `hidden` is known.
    fn stands_for_hidden(
        &mut self,
        hidden: Option<&Value>,
        since: Nanoseconds,
    ) -> Result<Value, String> {
        let closure = &self.key.closure;
        let everything = match hidden {
            Some(value) if value["complete"] == true => return Ok(Value::Null),
            Some(value) if value["acts"] == true => {
                let reason = value["reason"].as_str().unwrap_or_default();
                return Err(format!("more than its outputs came of it: {reason}"));
            }
            // Of itself rustc reads nothing that is not told; what it went through was in doubt.
            Some(_) if !closure.macros => return Ok(Value::Null),
            Some(_) => true,
            None if !closure.macros => return Ok(Value::Null),
            None => closure.impure,
        };
        let now = key::surroundings(&self.context, &mut Ledgers::default(), everything)?;
        let same = match &self.surroundings[usize::from(everything)] {
            Some(Ok(before)) => *before == now,
            _ => false,
        };
        if !same || now.newest >= super::inputs::earliest_stamp(now.newest, since) {
            return Err("what its macros may have read changed meanwhile".to_owned());
        }
        Ok(json!({"everything": everything, "parts": now.parts}))
    }

    /// What was asked for and is not there.
    fn leave_word(&self, reason: &str) {
        let out = self.context.out.as_ref().and_then(|out| out.to_str());
        self.asked.leave(&json!({
            "time": now(),
            "what": "miss",
            "reason": reason,
            "crate": self.request.crate_name,
            "package": package(),
            "profile": self.context.profile.to_str(),
            "directory": self.context.directory.to_str(),
            "out": out,
            "key": self.key.digest,
            "parts": self.key.parts,
        }));
    }

    fn tell(&self, what: &str, reason: &str, moved: &Moved, saved: f64) {
        self.store.tell(&self.event(what, reason, moved, saved));
    }

    fn event(&self, what: &str, reason: &str, moved: &Moved, saved: f64) -> Value {
        json!({
            "time": now(),
            "what": what,
            "reason": reason,
            "crate": self.request.crate_name,
            "package": package(),
            "profile": self.context.profile.to_str(),
            "key": self.key.digest,
            "seconds": (self.opened.elapsed() - self.waited).as_secs_f64(),
            "waited": self.waited.as_secs_f64(),
            "reflinked": moved.reflinked,
            "copied": moved.copied,
            "copied_reason": moved.reason,
            "compile_seconds": saved,
        })
    }

    fn forget_if_apart(&self, error: &io::Error) {
        if self.store.mode == Mode::Reflink && error.raw_os_error() == Some(libc::EXDEV) {
            Store::forget(&self.context.profile);
        }
    }

    /// The place that the entry of a path package was compiled at, where that is another one.
    fn is_elsewhere(&self, entry: &Entry) -> Option<Place> {
        let there = Place::of_entry(entry)?;
        (self.place.as_ref() != Some(&there)).then_some(there)
    }

    /// What an entry's compile was seen to read behind rustc's back, by the paths of here, if it is
    /// the same; where that is not all, its surroundings are compared as well.
    fn hidden_here(&self, entry: &Entry, hasher: &mut Hasher) -> Result<Value, String> {
        let hidden = &entry.value["hidden"];
        if hidden.is_null() {
            return Ok(Value::Null);
        }
        let (hidden, absent) = match (self.is_elsewhere(entry), &self.place) {
            (Some(there), Some(here)) => there
                .moved(here)
                .ok_or("not UTF-8")?
                .hidden(hidden)
                .ok_or("what a macro asked for above another checkout")?,
            _ => (hidden.clone(), Vec::new()),
        };
        if let Some(other) = absent.iter().find(|path| path.exists()) {
            return Err(format!("file {}", other.display()));
        }
        is_same_hidden(&hidden, hasher).map(|()| hidden)
    }

    /// Whether all that an entry's compile read is the same here, or the first that is not.
    fn matches(&self, entry: &Entry) -> Result<(), String> {
        // Somebody may have moved it.
        if entry.text("key") != Some(&self.key.digest) {
            return Err("it is another key's".to_owned());
        }
        let profile = self.context.profile.to_str().ok_or("not UTF-8")?;
        if entry.is_bound() && entry.text("profile") != Some(profile) {
            return Err(ELSEWHERE.to_owned());
        }
        if entry.value.get("said") != Some(&Value::Bool(false))
            && entry.value.get("form") != Some(&json!(self.request.form))
        {
            return Err("its diagnostics are of another form".to_owned());
        }
        for variable in entry.list("variables") {
            let name = variable[0].as_str().ok_or("malformed")?;
            let value = variable[1].as_str();
            let here = std::env::var_os(name).map(|value| value.into_string());
            let here = here.transpose().map_err(|_| format!("variable {name}"))?;
            // Where the outputs hold it, the entry is bound.
            let moved = name == "OUT_DIR" && here.is_some() && value.is_some();
            if here.as_deref() != value && !moved {
                let names_place = self
                    .is_elsewhere(entry)
                    .is_some_and(|there| value.is_some_and(|value| there.is_named(value)));
                return Err(if names_place {
                    ELSEWHERE.to_owned()
                } else {
                    format!("variable {name}")
                });
            }
        }
        for path in entry.list("absent") {
            let path = path.as_str().ok_or("malformed")?;
            if self.context.directory.join(path).exists() {
                return Err(format!("new file {path}"));
            }
        }
        for file in entry.list("files") {
            let [base, path, digest, looks] = file.as_array().map_or(&[][..], Vec::as_slice) else {
                return Err("malformed".to_owned());
            };
            let name = path.as_str().ok_or("malformed")?;
            let path = if base == "out" {
                self.context.out.as_ref().ok_or("no OUT_DIR")?.join(name)
            } else {
                self.context.directory.join(name)
            };
            if !is_same(&path, digest.as_str(), looks.as_str()) {
                return Err(format!("file {name}"));
            }
        }
        Ok(())
    }

    /// The way from the paths of an entry's compile to those of here.
    fn way(&self, entry: &Entry) -> Option<Back> {
        let mut pairs = vec![(
            entry.text("out_dir")?.to_owned(),
            self.request.out_dir.to_str()?.to_owned(),
        )];
        if let (Some(there), Some(here)) = (entry.text("out"), &self.context.out) {
            pairs.push((there.to_owned(), here.to_str()?.to_owned()));
        }
        if let (Some(there), Some(here)) = (self.is_elsewhere(entry), &self.place) {
            pairs.extend(there.moved(here)?.pairs);
        }
        pairs.retain(|(there, here)| there != here);
        Some(Back::new(pairs))
    }

    fn give_out(&mut self, entry: &Entry) -> io::Result<Moved> {
        let malformed = || io::Error::other("malformed");
        let outputs = entry.outputs().ok_or_else(malformed)?;
        let way = self.way(entry).ok_or_else(malformed)?;
        let dep_info = entry.text("dep_info").ok_or_else(malformed)?;
        let stderr = entry.text("stderr").ok_or_else(malformed)?;
        let dep_info = self.dep_info_here(&way, dep_info);
        let out_dir = self.request.out_dir.clone();
        let room = self.context.profile.join(".cargo-cow");
        sweep(&room);
        let staging = room.join(format!("{RESTORING}{}", store::unique()));
        fs::create_dir_all(&staging)?;
        let moved: io::Result<Moved> = (|| {
            let mut moved = Moved::default();
            for (index, output) in outputs.iter().enumerate() {
                // Modes as rustc and the linker leave them.
                let mode = if output.executable { 0o777 } else { 0o666 };
                let to = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(staging.join(output.name))?;
                let from = entry::regular(&entry.file(index))?;
                let method = entry::transfer(&from, &to, output.size, self.store.mode)?;
                moved.add(method, output.size);
            }
            let aside = staging.join("dep-info");
            fs::write(&aside, dep_info)?;
            for output in &outputs {
                fs::rename(staging.join(output.name), out_dir.join(output.name))?;
            }
            fs::rename(aside, &self.dep_info)?;
            Ok(moved)
        })();
        let _ = fs::remove_dir_all(&staging);
        let moved = moved?;
        self.given.clear();
        for output in &outputs {
            if let Ok(stat) = fs::metadata(out_dir.join(output.name)) {
                let profile = self.context.profile.clone();
                let identity = Identity::of(&stat);
                self.ledgers.note(&profile, &identity, output.digest);
                let Identity { inode, size, .. } = identity;
                let time = i64::try_from(identity.modified).unwrap_or(-1);
                self.given
                    .push(json!([output.name, output.digest, inode, size, time]));
            }
            if self.request.extra_filename.is_empty() {
                self.note_by(&ledger::name_of_content(output.digest));
            }
        }
        let mut said = Vec::new();
        way.relay(stderr.as_bytes(), &mut said);
        // Whoever listened is gone otherwise, and what was asked for is there.
        let _ = io::stderr().lock().write_all(&said);
        Ok(moved)
    }

    fn dep_info_here(&self, way: &Back, text: &str) -> String {
        let text = way.dep_info(text).unwrap_or_else(|| text.to_owned());
        let Some(out) = self.context.out.as_ref().and_then(|out| out.to_str()) else {
            return text;
        };
        let own = |line: &str| {
            if line.starts_with("# env-dep:OUT_DIR=") {
                let escaped = out
                    .replace('\\', "\\\\")
                    .replace('\n', "\\n")
                    .replace('\r', "\\r");
                format!("# env-dep:OUT_DIR={escaped}\n")
            } else {
                line.to_owned()
            }
        };
        text.split_inclusive('\n').map(own).collect()
    }

    /// Keeps what the compile that began at `since` made.
    ///
    /// `hidden`: what it read behind rustc's back, as `hidden::judge` tells it.
    pub fn keep(
        &mut self,
        since: Nanoseconds,
        hasher: &mut Hasher,
        said: &Heard,
        hidden: Option<Value>,
        seconds: f64,
    ) {
        let began = Instant::now();
        let name = self.request.crate_name.clone();
        self.note_what_it_is(said);
        match self.kept(since, hasher, said, hidden, seconds) {
            Ok(()) => {
                let took = began.elapsed().as_secs_f64() * 1e3;
                log(&format!("warehouse: {name} is kept ({took:.1} ms)"));
            }
            Err(reason) => {
                log(&format!("warehouse: {name} not kept: {reason}"));
                self.tell("not-kept", &reason, &Moved::default(), seconds);
                self.give_up();
            }
        }
    }

    /// Tells those that will be given what carries no hash what is below it (see `ledger`), whether
    /// it is kept or not.
    fn note_what_it_is(&mut self, said: &Heard) {
        if !self.request.extra_filename.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&said.stderr);
        for (path, _, _) in self
            .made_files(&text)
            .map_or(Vec::new(), |(files, _)| files)
        {
            if let Some(name) = self.ledgers.name(&path) {
                self.note_by(&name);
            }
        }
    }

    fn note_by(&mut self, name: &str) {
        let kind = self.context.kind(&self.request);
        let (profile, externs) = (&self.context.profile, &self.request.externs);
        let _ = self.ledgers.note_unit(profile, name, kind, externs);
    }

    /// Nothing will be kept: who waits for it compiles by himself.
    pub fn give_up(&mut self) {
        if let Some(claim) = self.claim.take() {
            claim.end(false);
        }
    }

    fn kept(
        &mut self,
        since: Nanoseconds,
        hasher: &mut Hasher,
        said: &Heard,
        hidden: Option<Value>,
        seconds: f64,
    ) -> Result<(), String> {
        if !said.complete {
            return Err("it said too much, or on stdout".to_owned());
        }
        let stderr = std::str::from_utf8(&said.stderr).map_err(|error| error.to_string())?;
        let (files, diagnostics) = self.made_files(stderr)?;
        let stat = fs::metadata(&self.dep_info).map_err(|error| error.to_string())?;
        if modified(&stat) < super::inputs::earliest_stamp(modified(&stat), since) {
            return Err("its dep-info is not of this run".to_owned());
        }
        let dep_info = fs::read_to_string(&self.dep_info).map_err(|error| error.to_string())?;
        let read = depinfo::parse(&dep_info).ok_or("its dep-info is malformed")?;
        let (inputs, absent) = self.inputs(&read, hasher)?;
        // Everything else that counts must be what it was before, and not younger.
        let mut ledgers = Ledgers::default();
        let Self {
            program,
            request,
            context,
            store,
            ..
        } = self;
        if request.links() {
            key::forget_system(context);
        }
        let again = key::of(program, request, context, &mut ledgers, store)?;
        if again.digest != self.key.digest {
            return Err("what it was given changed meanwhile".to_owned());
        }
        if again.newest >= super::inputs::earliest_stamp(again.newest, since) {
            return Err("a file that counts was changed meanwhile".to_owned());
        }
        let surroundings = self.stands_for_hidden(hidden.as_ref(), since)?;
        let place = self
            .place
            .as_ref()
            .map(|place| place.value().ok_or("not UTF-8"));
        let place = json!(place.transpose()?);
        let (made, bound) = self.looked_at(&read, &files)?;
        let profile = self.context.profile.to_str().ok_or("not UTF-8")?;
        let mut id = blake3::Hasher::new();
        let form = json!(self.request.form);
        for part in [
            // Another version's is another entry, which stays where it is.
            json!(entry::FORMAT),
            json!(
                inputs
                    .iter()
                    .map(|input| &input.as_array().map_or(&[][..], Vec::as_slice)[..3])
                    .collect::<Vec<_>>()
            ),
            json!(read.environment),
            json!(hidden),
            json!(surroundings),
            place.clone(),
            if bound { json!(profile) } else { Value::Null },
            if diagnostics {
                form.clone()
            } else {
                Value::Null
            },
        ] {
            id.update(part.to_string().as_bytes()).update(b"\n");
        }
        let id = id.finalize().to_hex().to_string();
        let value = json!({
            "format": entry::FORMAT,
            "created": now(),
            "seconds": seconds,
            "key": self.key.digest,
            "crate": self.request.crate_name,
            "package": variable("CARGO_PKG_NAME").map(|name| name.to_string_lossy().into_owned()),
            "version": variable("CARGO_PKG_VERSION").map(|name| name.to_string_lossy().into_owned()),
            "incremental": self.request.incremental,
            "parts": self.key.parts,
            "profile": profile,
            "out_dir": self.request.out_dir.to_str().ok_or("not UTF-8")?,
            "out": self.context.out.as_ref().and_then(|out| out.to_str()),
            "bound": bound,
            "place": place,
            "directory": self.context.directory.to_str().ok_or("not UTF-8")?,
            "form": form,
            "said": diagnostics,
            "variables": read.environment,
            "absent": absent,
            "files": inputs,
            "hidden": hidden,
            "surroundings": surroundings,
            "call": self.call,
            "stderr": stderr,
            "dep_info": dep_info,
        });
        for (made, identity) in &made {
            self.ledgers.note(profile.as_ref(), identity, &made.digest);
        }
        let made: Vec<Made> = made.into_iter().map(|(made, _)| made).collect();
        let job = Job {
            key: &self.key.digest,
            id: &id,
            value,
            made: &made,
            event: self.event("kept", "", &Moved::default(), seconds),
            most: if self.request.incremental {
                KEPT_INCREMENTAL
            } else {
                KEPT
            },
        };
        job.hand_over(&self.store, &mut self.claim)
    }

    /// The files that rustc told of, and whether it said anything else.
    #[expect(clippy::type_complexity, reason = "a list, and a word about it")]
    fn made_files(&self, stderr: &str) -> Result<(Vec<(PathBuf, String, bool)>, bool), String> {
        let mut files = Vec::new();
        let mut linked = 0;
        let mut diagnostics = false;
        for line in stderr.lines() {
            let value: Option<Value> = serde_json::from_str(line).ok();
            let told = value
                .as_ref()
                .filter(|value| value["$message_type"] == "artifact")
                .and_then(|value| Some((value["artifact"].as_str()?, value["emit"].as_str()?)));
            let Some((path, emit)) = told else {
                diagnostics = true;
                continue;
            };
            let path = self.context.directory.join(path);
            match emit {
                "dep-info" => continue,
                "link" => linked += 1,
                "metadata" => {}
                other => return Err(format!("it made {other}")),
            }
            let name = path.file_name().and_then(|name| name.to_str());
            let stat = fs::symlink_metadata(&path).map_err(|error| error.to_string())?;
            match name {
                Some(name) if path.parent() == Some(&self.request.out_dir) && stat.is_file() => {
                    files.push((path.clone(), name.to_owned(), stat.mode() & 0o111 != 0));
                }
                _ => return Err(format!("it made {}", path.display())),
            }
        }
        let wanted = usize::from(self.request.makes_code) * self.request.crate_types.len().max(1);
        if linked != wanted || files.is_empty() {
            return Err("it did not tell what it made".to_owned());
        }
        Ok((files, diagnostics))
    }

    /// What the dep-info names, as (base, path, digest, looks), and the files that must not
    /// appear: a module is looked for in two places.
    fn inputs(
        &self,
        read: &depinfo::DepInfo,
        hasher: &mut Hasher,
    ) -> Result<(Vec<Value>, Vec<String>), String> {
        let mut inputs = Vec::new();
        let mut absent = Vec::new();
        for name in &read.files {
            let path = self.context.directory.join(name);
            let input = hasher
                .hash(&path)
                .map_err(|reason| format!("{}: {reason}", path.display()))?;
            let generated = self
                .context
                .out
                .as_ref()
                .and_then(|out| path.strip_prefix(out).ok());
            let (base, shown) = match generated.and_then(Path::to_str) {
                Some(relative) => ("out", relative),
                None => ("", name.as_str()),
            };
            inputs.push(json!([base, shown, input.digest, looks(&input.identity)]));
            // A dependency's own files are those of its version, what its script makes is not.
            let is_dependency = self.context.is_dependency;
            if !name.ends_with(".rs") || (is_dependency && self.context.out.is_none()) {
                continue;
            }
            let text = fs::read(&path).map_err(|error| error.to_string())?;
            if may_include(&text) {
                return Err(format!("{name} may include what nobody tells of"));
            }
            if is_dependency {
                continue;
            }
            if self.request.clippy && key::asks_for_all_manifests(&text) {
                return Err(key::ALL_MANIFESTS.to_owned());
            }
            let other = match name.strip_suffix("/mod.rs") {
                Some(module) => format!("{module}.rs"),
                None => format!("{}/mod.rs", name.trim_end_matches(".rs")),
            };
            if self.context.directory.join(&other).exists() {
                if !read.files.contains(&other) {
                    return Err(format!("both {name} and {other} are there"));
                }
            } else {
                absent.push(other);
            }
        }
        Ok((inputs, absent))
    }

    /// The outputs with their digests, and whether they tell where they were made: those of a
    /// dependency, that is; at others who is elsewhere looks (`Entry::holds`).
    fn looked_at(
        &self,
        read: &depinfo::DepInfo,
        files: &[(PathBuf, String, bool)],
    ) -> Result<(Vec<(Made, Identity)>, bool), String> {
        let profile = self.context.profile.to_str().ok_or("not UTF-8")?;
        let out = self.context.out.as_ref().and_then(|out| out.to_str());
        let mut reads_out_dir = false;
        let mut bound = false;
        for (name, value) in &read.environment {
            if value.as_ref().is_some_and(|value| value.contains(profile)) {
                bound |= name != "OUT_DIR";
                reads_out_dir = true;
            }
        }
        let generated = |name: &&String| out.is_some_and(|out| Path::new(name).starts_with(out));
        let generated = read.files.iter().filter(generated).cloned();
        let names: Vec<_> = generated.map(baked::Name::of_generated).collect();
        let mut result = Vec::new();
        for (path, name, executable) in files {
            let said = |error: io::Error| format!("{}: {error}", path.display());
            let mut file = File::open(path).map_err(said)?;
            let stat = file.metadata().map_err(said)?;
            let asks = self.place.is_none() && !self.key.tied && !bound;
            let digest = if asks && reads_out_dir {
                let mut contents = Vec::with_capacity(usize::try_from(stat.len()).unwrap_or(0));
                file.read_to_end(&mut contents).map_err(said)?;
                bound = baked::holds(&contents, profile, &names, None);
                blake3::hash(&contents).to_hex().to_string()
            } else {
                // Where nothing asked for the path, and it is there, nobody knows why.
                let (digest, holds) =
                    baked::digest(&mut file, asks.then_some(profile)).map_err(said)?;
                bound |= holds;
                digest
            };
            if Identity::of(&file.metadata().map_err(said)?) != Identity::of(&stat) {
                return Err(format!("{} is being written", path.display()));
            }
            let made = Made {
                path: path.clone(),
                name: name.clone(),
                executable: *executable,
                digest,
                looks: entry::looks(&stat),
            };
            result.push((made, Identity::of(&stat)));
        }
        Ok((result, bound && self.place.is_none() && !self.key.tied))
    }
}

/// Removes what calls that were killed had begun to restore.
fn sweep(room: &Path) {
    for entry in fs::read_dir(room).into_iter().flatten().flatten() {
        let is_old = || {
            let modified = entry.metadata().and_then(|stat| stat.modified());
            modified.is_ok_and(|then| then.elapsed().is_ok_and(|age| age > ABANDONED))
        };
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(RESTORING.as_bytes())
            && is_old()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The verb `--keep`: what a call handed over.
pub fn finish(directory: &Path) -> Result<(), String> {
    entry::finish(directory, None)
}

/// The verb `--link-arguments`: whether all of them are understood, and name no file.
pub fn are_plain_for_linkers(arguments: &[OsString]) -> bool {
    let words = arguments
        .iter()
        .map(|word| word.to_str().map(str::to_owned));
    let words: Option<Vec<String>> = words.collect();
    words.is_some_and(|words| linking::files(&words).is_ok_and(|files| files.is_empty()))
}

/// Whether a source may have the assembler read files.
fn may_include(text: &[u8]) -> bool {
    let has = |word: &[u8]| memchr::memmem::find(text, word).is_some();
    has(b"incbin") || has(b"asm!") && has(b".include")
}

/// Whether what a compile was seen to read behind rustc's back is the same now.
fn is_same_hidden(hidden: &Value, hasher: &mut Hasher) -> Result<(), String> {
    let list = |name: &str| hidden[name].as_array().ok_or("malformed");
    let text = |value: &Value| value.as_str().ok_or("malformed").map(str::to_owned);
    for file in list("files")? {
        let path = text(&file[0])?;
        if hasher.hash(path.as_ref()).ok().map(|input| input.digest) != Some(text(&file[2])?) {
            return Err(format!("file {path}"));
        }
    }
    for directory in list("directories")? {
        let path = text(&directory[0])?;
        if hasher.names(path.as_ref()).ok() != Some(text(&directory[1])?) {
            return Err(format!("directory {path}"));
        }
    }
    for (name, wanted) in [("missing", false), ("existing", true)] {
        for path in list(name)? {
            let path = text(path)?;
            if Path::new(&path).exists() != wanted {
                return Err(format!("file {path}"));
            }
        }
    }
    for variable in list("env")? {
        let name = text(&variable[0])?;
        let value = std::env::var_os(&name)
            .map(|value| blake3::hash(value.as_encoded_bytes()).to_hex().to_string());
        if value.as_deref() != variable[1].as_str() {
            return Err(format!("variable {name}"));
        }
    }
    Ok(())
}

/// Whether the file has the digest; one that looks as it did then was not written to since.
fn is_same(path: &Path, digest: Option<&str>, then: Option<&str>) -> bool {
    let Ok(mut file) = File::open(path) else {
        return false;
    };
    let Ok(stat) = file.metadata() else {
        return false;
    };
    if Some(looks(&Identity::of(&stat)).as_str()) == then {
        return true;
    }
    stat.is_file()
        && super::inputs::digest(&mut file).is_ok_and(|(_, found)| Some(found.as_str()) == digest)
}

fn looks(identity: &Identity) -> String {
    format!(
        "{}:{}:{}:{}:{}",
        identity.device, identity.inode, identity.size, identity.modified, identity.changed
    )
}

/// The package that is compiled, as its entries name it.
fn package() -> Option<String> {
    let name = variable("CARGO_PKG_NAME")?.into_string().ok()?;
    let version = variable("CARGO_PKG_VERSION").and_then(|version| version.into_string().ok());
    Some(version.map_or(name.clone(), |version| format!("{name} {version}")))
}

/// The verb `--identify`: which compiler a call names, and the libraries that linkers find by
/// themselves, as the key of an entry tells them.
pub fn identify(root: &Path, programs: &[OsString], target: Option<&str>) -> Result<Value, String> {
    let store = Store {
        root: root.to_owned(),
        mode: Mode::Reflink,
    };
    let identity = match programs {
        [rustc] => compiler::identity(rustc, target, &store),
        [clippy, _] => compiler::clippy(clippy, target, &store),
        _ => Err("no compiler is named".to_owned()),
    }?;
    let mut system = Vec::new();
    for directory in key::system_directories() {
        let (libraries, _) = key::system_libraries(&directory)?;
        system.push(format!("{} {libraries}", directory.display()));
    }
    Ok(json!({"identity": identity, "system": system}))
}

/// Seconds since the epoch, to the millisecond.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |now| (now.as_secs_f64() * 1e3).round() / 1e3)
}
