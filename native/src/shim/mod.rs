//! The shim: what Cargo calls as `RUSTC_WRAPPER`.
//!
//! Called as `RUSTC ARGS...` or `WORKSPACE_WRAPPER RUSTC ARGS...`, it runs exactly that (behind
//! `$CARGO_COW_CHAIN`, where another wrapper is to run in front) and ends as it ended.  Its first
//! duty is to be invisible: it prints nothing, and whatever goes wrong with its own work ends in
//! `exec` of the real compiler.  `CARGO_COW_LOG=FILE` tells what it did.
//!
//! Kinds of call:
//!   * Cargo's first probe (`RUSTC -vV`): the moment to seed a target that is not there (`seed`).
//!   * a compile whose inputs are worth noting: run, waited for, then observed (`observe`).
//!   * a compile that shall see its checkout elsewhere: run there, with a relay (`identity`).
//!   * a compile whose result may be in the warehouse: restored, or run and kept (`warehouse`).
//!   * Cargo asked for its plan alone: questions are answered, nothing is compiled (`planning`).
//!   * everything else: `exec`, so that no process of ours remains.

mod args;
mod checkout;
mod hidden;
mod identity;
mod inputs;
mod layout;
mod linker;
mod manifest;
mod observe;
mod observer;
mod planning;
mod process;
mod seed;
pub mod warehouse;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// `arguments` begin with the compiler.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    // A panic of ours is no business of the build's; the default hook would print.
    std::panic::set_hook(Box::new(|panic| log(&format!("{panic}"))));
    let arguments = linker::choose(arguments);
    let call = args::Call::of(&arguments);
    if let Some(notes) = variable(planning::NOTES) {
        return planning::answer(&notes, &call).unwrap_or_else(|| replace(None, &arguments));
    }
    let plan = guarded(|| {
        if call.is_version_probe() {
            seed::at_probe();
            return None;
        }
        let compile = call.compile()?;
        seed::mark(&compile.out_dir);
        let identity = guarded(|| identity::Plan::of(&call, &compile));
        let places = identity.as_ref().map(identity::Plan::places);
        let door = guarded(|| warehouse::Door::of(&call, &compile, places));
        Some((observe::Plan::of(compile), identity, door))
    });
    let (observation, identity, door) = plan.unwrap_or_default();
    let chained = process::chained(&arguments);
    if observation.is_none() && identity.is_none() && door.is_none() {
        return replace(chained, &arguments);
    }
    stay(chained, &arguments, observation.as_ref(), identity, door)
}

fn stay(
    mut chained: Option<Command>,
    compiler: &[OsString],
    observation: Option<&observe::Plan>,
    identity: Option<identity::Plan>,
    mut door: Option<warehouse::Door>,
) -> ExitCode {
    let mut started = inputs::start();
    if let Some(door) = &mut door {
        let since = since(observation, started);
        if let Some(hidden) = guarded(|| door.restore(since)) {
            let mut hasher = inputs::Hasher::new(since);
            // The inputs were compared after the start, and are observed as after a compile.
            let seen = Seen {
                observer: None,
                back: None,
                known: Some(hidden).filter(|hidden| !hidden.is_null()),
                given: door.given(),
            };
            note(observation, &mut hasher, started, Some(&seen));
            return ExitCode::SUCCESS;
        }
    }
    started = inputs::file_clock().max(started);
    let clock = Instant::now();
    let mut said = None;
    let mut seen = Seen {
        // A wrapper may hand the work to a server, which would go on being observed.
        observer: (chained.is_none()
            && (observation.is_some() || door.as_ref().is_some_and(warehouse::Door::is_watched)))
        .then(|| observer::Observer::of(&compiler[0]))
        .flatten(),
        back: None,
        known: None,
        given: serde_json::Value::Null,
    };
    let at_identity = identity.and_then(|plan| {
        let back = plan.back();
        let heard = door.is_some().then_some(&mut said);
        let ended = plan.run(seen.observer.as_ref(), heard);
        if ended.is_none() {
            // What is made at the real path is something else than was looked for.
            door = None;
        } else {
            seen.back = Some(back);
        }
        ended
    });
    let plain = |seen: &mut Seen| {
        let mut command = process::plain(compiler);
        // What an earlier attempt noted is not what this compile reads.
        seen.observer = seen.observer.as_ref().and_then(observer::Observer::again);
        if let Some(observer) = &seen.observer {
            observer.attach(&mut command);
        }
        command
    };
    let ended = match (at_identity, &mut chained, &door) {
        (Some(ended), _, _) => Ok(ended),
        (None, Some(chained), _) => process::wait_for(chained),
        (None, None, None) => process::wait_for(&mut plain(&mut seen)),
        (None, None, Some(_)) => {
            let heard = process::overhear(&mut plain(&mut seen), io::stderr(), process::pass_on);
            heard.map(|(ended, heard)| {
                said = Some(heard);
                ended
            })
        }
    };
    match ended {
        Ok(process::Ended::Exited(code)) => {
            if code == 0 {
                let since = since(observation, started);
                let mut hasher = inputs::Hasher::new(since);
                let hidden = note(observation, &mut hasher, started, Some(&seen));
                if let (Some(door), Some(said)) = (&mut door, &said) {
                    let seconds = clock.elapsed().as_secs_f64();
                    guarded(|| {
                        let hidden = hidden.or_else(|| door.hidden(&seen, &mut hasher));
                        door.keep(since, &mut hasher, said, hidden, seconds);
                        Some(())
                    });
                }
            }
            give_up(door);
            ExitCode::from(code)
        }
        Ok(process::Ended::Killed(signal)) => {
            give_up(door);
            crate::signals::die_by(signal)
        }
        Err(error) => {
            give_up(door);
            log(&format!("cannot run {}: {error}", compiler[0].display()));
            replace(chained, compiler)
        }
    }
}

/// Where nothing was kept, nobody shall wait for it.
fn give_up(door: Option<warehouse::Door>) {
    guarded(|| {
        door?.give_up();
        Some(())
    });
}

/// What was observed of a compile that ran, and how paths that it saw are mapped to real ones.
struct Seen {
    observer: Option<observer::Observer>,
    back: Option<identity::restore::Back>,
    /// What the compile of an entry of the warehouse read, found the same here.
    known: Option<serde_json::Value>,
    /// The outputs, where they are those of an entry of the warehouse (`Door::given`); else null.
    given: serde_json::Value,
}

fn since(observation: Option<&observe::Plan>, started: inputs::Nanoseconds) -> inputs::Nanoseconds {
    observation.map_or(started, |plan| plan.since(started))
}

fn note(
    observation: Option<&observe::Plan>,
    hasher: &mut inputs::Hasher,
    started: inputs::Nanoseconds,
    seen: Option<&Seen>,
) -> Option<serde_json::Value> {
    let plan = observation?;
    guarded(|| {
        plan.write(plan.since(started), hasher, seen)
            .inspect(|(summary, _)| log(summary))
            .inspect_err(|reason| log(&format!("not observed: {reason}")))
            .ok()?
            .1
    })
}

/// Becomes the compiler.  Where the chained wrapper cannot be run, the compiler itself still can.
fn replace(chained: Option<Command>, compiler: &[OsString]) -> ExitCode {
    if let Some(mut chained) = chained {
        let error = chained.exec();
        let program = chained.get_program().display().to_string();
        log(&format!("cannot run {program}: {error}"));
    }
    let error = process::plain(compiler).exec();
    // There is no compiler; whoever called must learn why, as a shell would say it.
    let program = compiler[0].display();
    let _ = writeln!(std::io::stderr(), "error: cannot run {program}: {error}");
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        126
    })
}

fn guarded<T>(work: impl FnOnce() -> Option<T>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(None)
}

/// An environment variable that is set and not empty.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// One line to the file that `CARGO_COW_LOG` names; nothing without it.
fn log(text: &str) {
    let Some(path) = variable("CARGO_COW_LOG") else {
        return;
    };
    let line = format!("cargo-cow-native {}: {text}\n", std::process::id());
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path);
    if let Ok(mut file) = file {
        // One write, so that lines of parallel compiles stay whole.
        let _ = file.write_all(line.as_bytes());
    }
}

/// The part of `text` after `prefix`, as bytes are compared.
fn strip_prefix<'a>(text: &'a OsStr, prefix: &str) -> Option<&'a OsStr> {
    use std::os::unix::ffi::OsStrExt;
    text.as_bytes()
        .strip_prefix(prefix.as_bytes())
        .map(OsStr::from_bytes)
}
