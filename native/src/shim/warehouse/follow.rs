//! Keeping whole units that plain Cargo built: once it has ended, by `cargo-cow graft --keep`.
//!
//! The shim keeps what rustc made; what build scripts made it never sees.  So where a run of Cargo
//! compiles a build script, a process of our own waits for that Cargo to end (`--follow`), and then has
//! kept what it left, with Cargo's own arguments and variables.  `runs` tells which of it that Cargo made.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};

use super::super::seed::{self, Cargo};
use super::super::{log, variable};
use super::key;
use super::store::Store;

/// One file for each Cargo that is followed, so that it is followed once.
const ROOM: &str = "following";
/// Names the `cargo cow` that keeps by itself what the Cargo it started builds.
const KEEPER: &str = "CARGO_COW_KEEPER";
/// `off`: nothing is kept but what the shim keeps, and what is asked for.
const KEEPING: &str = "CARGO_COW_KEEP";
const OLD: Duration = Duration::from_secs(7 * 24 * 3600);
/// `cargo run` becomes the program that it runs, which may run for days.
const LOOKING: Duration = Duration::from_secs(2);

/// On a compile of a build script; what goes wrong costs what could have been kept.
pub fn begin(store: &Store) {
    if let Err(reason) = begun(store) {
        log(&format!("warehouse: nobody waits for Cargo: {reason}"));
    }
}

fn begun(store: &Store) -> Result<(), String> {
    if keeper().is_some() || variable(KEEPING).is_some_and(|value| value == "off") {
        return Ok(());
    }
    let parent = rustix::process::getppid().ok_or("it has ended")?;
    let program = seed::program().ok_or("cargo-cow is not beside this program")?;
    let run = key::run(parent.as_raw_nonzero().get()).ok_or("/proc does not tell")?;
    let cargo = Cargo::calling().ok_or("it is not Cargo")?;
    let Some(words) = cargo.words() else {
        return Err("its arguments are not understood".to_owned());
    };
    let room = store.root.join(ROOM);
    let said = |error: std::io::Error| error.to_string();
    super::store::make(&room).map_err(said)?;
    let mut name = blake3::hash(run.as_bytes()).to_hex().to_string();
    name.truncate(24);
    let file = room.join(name);
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&file);
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(said(error)),
        Ok(_) => sweep(&room),
    }
    let own = std::env::current_exe().map_err(said)?;
    Command::new(own)
        .arg("--follow")
        .arg(file)
        .arg(parent.to_string())
        .arg(run)
        .arg(program)
        .args(words)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_remove("LD_LIBRARY_PATH")
        // What ends the build from the terminal need not end this.
        .process_group(0)
        .spawn()
        .map(|_| ())
        .map_err(said)
}

/// The `cargo cow` that started the Cargo that calls us, by number.
pub fn keeper() -> Option<String> {
    let named = variable(KEEPER)?.into_string().ok()?;
    let cargo = rustix::process::getppid()?.as_raw_nonzero();
    let stat = fs::read_to_string(format!("/proc/{cargo}/stat")).ok()?;
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
    (parent == named).then_some(named)
}

fn sweep(room: &Path) {
    for entry in fs::read_dir(room).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|stat| stat.modified());
        if modified.is_ok_and(|then| {
            SystemTime::now()
                .duration_since(then)
                .is_ok_and(|age| age > OLD)
        }) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The verb `--follow FILE PID RUN PROGRAM WORD…`: waits for a Cargo, and has kept what it built.
pub fn follow(arguments: &[OsString]) -> Result<(), String> {
    let [file, number, run, program, words @ ..] = arguments else {
        return Err("malformed".to_owned());
    };
    let result = followed(number, run, program, words);
    let _ = fs::remove_file(file);
    result
}

fn followed(
    number: &OsString,
    run: &OsString,
    program: &OsString,
    words: &[OsString],
) -> Result<(), String> {
    let number = number
        .to_str()
        .and_then(|text| text.parse::<i32>().ok())
        .ok_or("malformed")?;
    let pid = Pid::from_raw(number).ok_or("malformed")?;
    let watched = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    let watched = watched.map_err(|error| error.to_string())?;
    let of = |name: &str| format!("/proc/{number}/{name}");
    let directory = fs::read_link(of("cwd")).map_err(|error| error.to_string())?;
    let environment = fs::read(of("environ")).map_err(|error| error.to_string())?;
    let exe = fs::read_link(of("exe")).map_err(|error| error.to_string())?;
    // All of that was of the Cargo that is meant, and not of another one under its number.
    if key::run(number).map(OsString::from).as_ref() != Some(run) {
        return Err("it has ended".to_owned());
    }
    wait(&watched, || {
        fs::read_link(of("exe")).is_ok_and(|now| now == exe)
    })?;
    rustix::process::nice(10).ok();
    let mut command = Command::new(PathBuf::from(program));
    command
        .args(["graft", "--keep", "--"])
        .args(words)
        .current_dir(directory)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    for entry in environment.split(|byte| *byte == 0) {
        if let Some(at) = entry.iter().position(|byte| *byte == b'=') {
            let name = OsString::from_vec(entry[..at].to_vec());
            command.env(name, std::ffi::OsStr::from_bytes(&entry[at + 1..]));
        }
    }
    command.status().map_err(|error| error.to_string())?;
    Ok(())
}

fn wait(watched: &rustix::fd::OwnedFd, is_cargo: impl Fn() -> bool) -> Result<(), String> {
    let limit = rustix::event::Timespec::try_from(LOOKING).map_err(|error| error.to_string())?;
    loop {
        let mut files = [PollFd::new(watched, PollFlags::IN)];
        match rustix::event::poll(&mut files, Some(&limit)) {
            Ok(0) if is_cargo() => {}
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}
