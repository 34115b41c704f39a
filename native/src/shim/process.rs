//! Running the compiler, behind another wrapper where there is one.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, Command, Stdio};

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
pub struct Heard {
    pub stderr: Vec<u8>,
    /// All of it is here, and there was nothing on stdout.
    pub complete: bool,
}

/// More than any compile should say; beyond it nothing more is remembered.
const MOST_SAID: usize = 8 << 20;

/// Passes on what is written to it, and remembers it.
pub struct Recorder<W> {
    to: W,
    said: Vec<u8>,
    complete: bool,
}

impl<W: Write> Recorder<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            said: Vec::new(),
            complete: true,
        }
    }
}

impl<W: Write> Write for Recorder<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.to.write_all(data).and_then(|()| self.to.flush()) {
            self.complete = false;
            return Err(error);
        }
        self.complete &= self.said.len() + data.len() <= MOST_SAID;
        if self.complete {
            self.said.extend_from_slice(data);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs the command as `wait_for` does, and hears what it says, which is passed on as it comes:
/// stderr by `relay`, which returns at its end, or where nobody listens any more.
pub fn overhear<W: Write>(
    command: &mut Command,
    to: W,
    relay: impl FnOnce(ChildStderr, &mut Recorder<W>),
) -> io::Result<(Ended, Heard)> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut errors = Recorder::new(to);
    let mut others = Recorder::new(io::stdout());
    let ended = wait_while(command, |child| {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            scope.spawn(|| stdout.map(|from| pass_on(from, &mut others)));
            if let Some(from) = stderr {
                relay(from, &mut errors);
            }
        });
    })?;
    Ok((
        ended,
        Heard {
            complete: errors.complete && others.complete && others.said.is_empty(),
            stderr: errors.said,
        },
    ))
}

/// Copies to the end; where nobody listens any more, returns: `from` is then closed, as `to` is.
pub fn pass_on(mut from: impl Read, to: &mut Recorder<impl Write>) {
    let mut buffer = [0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                to.complete = false;
                return;
            }
        }
    }
}
