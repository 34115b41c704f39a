//! Running the compiler, behind another wrapper where there is one.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

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

/// What a compiler said while it ran.
pub struct Said {
    pub stderr: Vec<u8>,
    /// All of it is here, and there was nothing on stdout.
    pub complete: bool,
}

/// More than any compile should say; beyond it nothing more is remembered.
const MOST_SAID: usize = 8 << 20;

/// Runs the command as `wait_for` does, and hears what it says, which is passed on as it comes.
pub fn overhear(command: &mut Command) -> io::Result<(Ended, Said)> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let (mut errors, mut others) = (None, None);
    let ended = wait_while(command, |child| {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            let stdout = scope.spawn(|| stdout.map(|from| pass_on(from, io::stdout())));
            errors = stderr.map(|from| pass_on(from, io::stderr()));
            others = stdout.join().ok().flatten();
        });
    })?;
    let complete =
        matches!((&errors, &others), (Some((_, true)), Some((said, true))) if said.is_empty());
    let stderr = errors.map(|(said, _)| said).unwrap_or_default();
    Ok((ended, Said { stderr, complete }))
}

/// Returns what came, and whether that is all.
fn pass_on(mut from: impl Read, mut to: impl Write) -> (Vec<u8>, bool) {
    let mut said = Vec::new();
    let mut complete = true;
    let mut buffer = [0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return (said, complete),
            Ok(count) => {
                // Where nobody listens any more: `from` is closed, as `to` is.
                if to
                    .write_all(&buffer[..count])
                    .and_then(|()| to.flush())
                    .is_err()
                {
                    return (said, false);
                }
                complete &= said.len() + count <= MOST_SAID;
                if complete {
                    said.extend_from_slice(&buffer[..count]);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return (said, false),
        }
    }
}
