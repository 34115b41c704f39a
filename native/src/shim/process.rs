//! Running the compiler, behind another wrapper where there is one.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::variable;
use crate::signals::{Forwarding, die_by};

pub const CHAIN: &str = "CARGO_COW_CHAIN";

pub enum Ended {
    Exited(u8),
    Killed(i32),
}

/// The compiler's words, with the wrapper that `CARGO_COW_CHAIN` names in front of them.
///
/// The wrapper no longer sees the variable: one that calls us back must not be called again.
pub fn chained(compiler: &[OsString]) -> Option<Command> {
    let mut command = Command::new(variable(CHAIN)?);
    command.args(compiler).env_remove(CHAIN);
    Some(command)
}

pub fn plain(compiler: &[OsString]) -> Command {
    let mut command = Command::new(&compiler[0]);
    command.args(&compiler[1..]);
    command
}

/// Runs the command with our stdio, environment, process group and signals.
pub fn wait_for(command: &mut Command) -> io::Result<Ended> {
    wait_while(command, |_| {})
}

/// The same, with something to do while the child runs.
pub fn wait_while(command: &mut Command, meanwhile: impl FnOnce(&mut Child)) -> io::Result<Ended> {
    let forwarding = Forwarding::begin();
    let mut child = command.spawn().inspect_err(|_| {
        if let Some(signal) = forwarding.received() {
            die_by(signal);
        }
    })?;
    let number = child.id().cast_signed();
    forwarding.to(number);
    meanwhile(&mut child);
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
