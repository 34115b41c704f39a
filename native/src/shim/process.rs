//! Running the compiler: becoming it, or waiting for it.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::variable;
use crate::signals::{Forwarding, die_by};

pub enum Ended {
    Exited(u8),
    Killed(i32),
}

/// The command with the wrapper that `CARGO_COW_CHAIN` names in front of it.
pub fn with_chain(compiler: &[OsString]) -> Vec<OsString> {
    let chain = variable("CARGO_COW_CHAIN").filter(|chain| !is_ourselves(Path::new(chain)));
    chain.into_iter().chain(compiler.iter().cloned()).collect()
}

/// A chain that leads back here would never reach the compiler.
fn is_ourselves(program: &Path) -> bool {
    let file = |path: &Path| {
        let stat = path.metadata().ok()?;
        Some((stat.dev(), stat.ino()))
    };
    file(program).is_some_and(|it| file(Path::new("/proc/self/exe")) == Some(it))
}

fn command(words: &[OsString]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// Returns only when the program cannot be run.
pub fn exec(words: &[OsString]) -> io::Error {
    command(words).exec()
}

/// Runs the command with our stdio, environment, process group and signals.
pub fn wait_for(words: &[OsString]) -> io::Result<Ended> {
    let forwarding = Forwarding::begin();
    let mut child = command(words).spawn().inspect_err(|_| {
        if let Some(signal) = forwarding.received() {
            die_by(signal);
        }
    })?;
    let number = child.id().cast_signed();
    forwarding.to(number);
    // First learn of the end, then stop forwarding, then reap: a number that has been reaped may
    // belong to another process.
    if let Some(pid) = Pid::from_raw(number) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(
            rustix::process::waitid(WaitId::Pid(pid), options),
            Err(rustix::io::Errno::INTR)
        ) {}
    }
    forwarding.end();
    let status = child.wait()?;
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exited(u8::try_from(code).unwrap_or(1)),
        (None, Some(signal)) => Ended::Killed(signal),
        (None, None) => Ended::Exited(1),
    })
}
