//! What a compile read: `cow-observed.json` beside the unit's fingerprint.
//!
//! Written after a successful compile of a unit from a path.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::Compile;
use super::inputs::{Hasher, Nanoseconds, earliest_stamp, modified};
use super::layout::{profile_directory, unit_directory};
use super::{Seen, hidden, manifest, variable};
use crate::depinfo::{self, DepInfo};

/// Version of `cow-observed.json`.
const FORMAT: u32 = 1;

/// From Cargo's `invoked.timestamp` to our start, on one clock.
const LONGEST_LAUNCH: Nanoseconds = 1_000_000_000;

/// A compile that shall be observed.
pub struct Plan {
    /// Cargo's fingerprint directory of the unit.
    unit: PathBuf,
    /// mtime of `invoked.timestamp`, which Cargo writes just before it runs us: it tells to
    /// which run of the unit the observation belongs.
    invoked: Nanoseconds,
    dep_info: PathBuf,
    sight: Sight,
}

/// What tells of a compile which of its reads are rustc's own.
pub struct Sight {
    directory: PathBuf,
    package: PathBuf,
    out: Option<PathBuf>,
    /// What lies below these never changes (registry, git dependencies, the toolchain).
    unchanging: Vec<PathBuf>,
    profile: Option<PathBuf>,
    linker: OsString,
}

impl Sight {
    pub fn of(compile: &Compile) -> Option<Self> {
        let mut unchanging = dependency_sources();
        unchanging.extend(sysroots(compile));
        Some(Self {
            directory: std::env::current_dir().ok()?,
            package: PathBuf::from(variable("CARGO_MANIFEST_DIR")?),
            out: variable("OUT_DIR").map(PathBuf::from),
            unchanging,
            profile: profile_directory(&compile.out_dir).map(Path::to_owned),
            linker: compile.linker.clone(),
        })
    }

    /// What was read behind rustc's back.  `None`: it was not observed.
    pub(super) fn hidden(
        &self,
        seen: &Seen,
        dep_info: &DepInfo,
        hasher: &mut Hasher,
    ) -> Option<Value> {
        if seen.known.is_some() {
            return seen.known.clone();
        }
        let notes = seen.observer.as_ref()?.notes()?;
        let named = dep_info.files.iter();
        let place = hidden::Place {
            directory: &self.directory,
            sources: &named.map(|name| self.directory.join(name)).collect(),
            unchanging: &self.unchanging,
            profile: self.profile.as_deref()?,
            back: seen.back.as_ref(),
            linker: &self.linker,
            package: &self.package,
            out: self.out.as_deref(),
        };
        let value = hidden::judge(&notes, &place, hasher);
        if let Some(reason) = value.get("reason").and_then(Value::as_str) {
            let package = self.package.display();
            super::log(&format!("{package}: not all is known: {reason}"));
        }
        Some(value)
    }

    /// Variables that the package declares to be made from, with the BLAKE3 of their values: who
    /// records the unit later does not see them.
    fn declared(&self) -> Vec<Value> {
        let inputs = manifest::inputs(&self.package, &self.directory);
        let inputs = inputs.inspect_err(|reason| super::log(reason));
        let named = inputs
            .into_iter()
            .flatten()
            .filter_map(|input| match input {
                manifest::Input::Variable(name) => Some(name),
                manifest::Input::Path(_) => None,
            });
        named
            .map(|name| {
                let value = std::env::var_os(&name);
                let digest = value.map(|it| blake3::hash(it.as_bytes()).to_hex().to_string());
                json!([name, digest])
            })
            .collect()
    }
}

pub fn cargo_home() -> Option<PathBuf> {
    variable("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cargo")))
}

impl Plan {
    /// `None`: nothing to observe, so the shim need not stay.
    pub fn of(compile: Compile) -> Option<Self> {
        let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
        if dependency_sources()
            .iter()
            .any(|root| package.starts_with(root))
        {
            return None;
        }
        let sight = Sight::of(&compile)?;
        let unit = unit_directory(
            &compile.out_dir,
            &compile.extra_filename,
            variable("CARGO_PKG_NAME").as_deref(),
        )?;
        let invoked = invoked(&unit)?;
        Some(Self {
            unit,
            invoked,
            dep_info: compile.dep_info?,
            sight,
        })
    }

    /// From which stamp on an input may have been changed since the compile began.
    ///
    /// Cargo compares inputs with `invoked.timestamp`, both stamped by the filesystem.  Where that
    /// is a server whose clock lags behind ours, our own start would make us blinder than Cargo;
    /// so where the two are far apart, the earlier one counts.
    pub fn since(&self, started: Nanoseconds) -> Nanoseconds {
        if started - self.invoked > LONGEST_LAUNCH {
            self.invoked
        } else {
            started
        }
    }

    /// After the compile succeeded.  `since` is when it began (see there), as `hasher` was told.
    /// `seen`: what was observed of it.  Returns a line for the log, and what it read behind
    /// rustc's back, where that was observed.
    pub fn write(
        &self,
        since: Nanoseconds,
        hasher: &mut Hasher,
        seen: Option<&Seen>,
    ) -> Result<(String, Option<Value>), String> {
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        let stat = fs::metadata(&self.dep_info).map_err(failed(&self.dep_info))?;
        if modified(&stat) < earliest_stamp(modified(&stat), since) {
            return Err(format!("{}: not of this run", self.dep_info.display()));
        }
        let text = fs::read_to_string(&self.dep_info).map_err(failed(&self.dep_info))?;
        let dep_info = depinfo::parse(&text)
            .ok_or_else(|| format!("{}: malformed", self.dep_info.display()))?;
        let directory = self
            .sight
            .directory
            .to_str()
            .ok_or("the working directory is not UTF-8")?;
        let mut files = Vec::new();
        for name in &dep_info.files {
            let path = self.sight.directory.join(name);
            if self
                .sight
                .unchanging
                .iter()
                .any(|root| path.starts_with(root))
            {
                continue;
            }
            match hasher.hash(&path) {
                Ok(input) => files.push(json!([name, input.identity.size, input.digest])),
                Err(reason) => super::log(&format!("left out {}: {reason}", path.display())),
            }
        }
        let hidden = seen.and_then(|seen| self.sight.hidden(seen, &dep_info, hasher));
        if invoked(&self.unit) != Some(self.invoked) {
            return Err(format!("{}: invoked again", self.unit.display()));
        }
        let observation = json!({
            "format": FORMAT,
            "invoked": i64::try_from(self.invoked).map_err(|error| error.to_string())?,
            "cwd": directory,
            "files": &files,
            "env": dep_info.environment,
            "hidden": hidden,
            "declared": self.sight.declared(),
            "outputs": seen.map(|seen| &seen.given),
        });
        // Written aside and renamed, so that a reader sees all or nothing.  Not synced: after a
        // crash a torn file does not parse, and a missing one only means "unknown".
        let aside = self
            .unit
            .join(format!(".cow-observed.{}", std::process::id()));
        let result = File::create_new(&aside)
            // One write: a value is formatted by pieces of a few bytes.
            .and_then(|mut file| file.write_all(format!("{observation}\n").as_bytes()))
            .and_then(|()| fs::rename(&aside, self.unit.join("cow-observed.json")));
        result.map_err(|error| {
            let _ = fs::remove_file(&aside);
            failed(&aside)(error)
        })?;
        let unit = self.unit.display();
        let summary = format!(
            "observed {unit}: {} of {} files",
            files.len(),
            dep_info.files.len()
        );
        Ok((summary, hidden))
    }
}

/// Where Cargo unpacks dependencies, as named and as resolved.
pub fn dependency_sources() -> Vec<PathBuf> {
    let Some(home) = cargo_home() else {
        return Vec::new();
    };
    let mut roots: Vec<PathBuf> = ["registry", "git"].map(|part| home.join(part)).into();
    if let Ok(resolved) = home.canonicalize()
        && resolved != home
    {
        roots.extend(["registry", "git"].map(|part| resolved.join(part)));
    }
    roots
}

/// The toolchain's own files: `--sysroot`, or two levels above rustc where that looks like one.
fn sysroots(compile: &Compile) -> Vec<PathBuf> {
    let beside = compile.rustc.parent().and_then(Path::parent);
    compile
        .sysroot
        .as_deref()
        .into_iter()
        .chain(beside.filter(|root| root.join("lib/rustlib").is_dir()))
        .filter(|root| root.is_absolute())
        .map(Path::to_owned)
        .collect()
}

fn invoked(unit: &Path) -> Option<Nanoseconds> {
    let stat = fs::metadata(unit.join("invoked.timestamp")).ok()?;
    Some(modified(&stat))
}
