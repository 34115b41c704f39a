//! Claims: who is compiling a unit right now, so that nobody else does.
//!
//! `building/<name>` (the key; of a path package, key and sources) is held by an exclusive `flock`: by the shim that compiles, then by the process
//! that keeps the result (it inherits the open file), until the entry can be had or it is certain
//! that there will be none.  The kernel lets go for whoever dies.  A claim that ended in order is
//! unlinked while it is still held: who waited holds a file without a name, and reads in it
//! what became of the unit.  One with a name was left by somebody who died, and is now theirs.
//!
//! **No deadlock**: who waits holds no claim, and who holds one waits for none.
//!
//! **No slot is lost**: a slot of a build that waits stands for a compile that runs in another
//! build, for another unit each.  So there are always as many compiles running as one build of
//! these would have by itself, though the one that waits keeps its jobserver token.
//!
//! **Nobody waits for ever**: a builder that is stopped (Ctrl-Z), frozen or starved lives, and its
//! claim with it.  So it notes what processor time its compile has had, and who waits goes on by
//! itself where that has become too little for the time that it waited.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::super::log;
use super::store::{Store, make};

const ROOM: &str = "building";
const KEPT: &[u8] = b"kept";
const NOT_KEPT: &[u8] = b"none";
/// How often a builder notes its progress, and who waits looks at it.
const BEAT: Duration = Duration::from_secs(1);
/// So long one waits for a builder that shows no progress at all ...
const GRACE: Duration = Duration::from_secs(10);
/// ... and so many times what its compile should have taken up to now: the processor time that it
/// has had, on a machine with as much work as there is now.  One's own would get no more.
const SHARE: f64 = 4.0;

/// The right to compile a unit, as long as the value lives.
pub struct Claim {
    path: PathBuf,
    file: File,
    /// Whether progress is still noted.
    beats: Arc<Mutex<bool>>,
}

/// What came of asking for a claim.
pub enum Turn {
    /// Nobody else compiles it; others wait for this one.
    Ours(Claim),
    /// It was compiled meanwhile, and kept or not.
    Built { kept: bool },
    /// The builder takes too long, or there can be no claims here.
    Without,
}

/// Asks for the claim of `key`, and waits while somebody else has it.  `waited` is added up.
pub fn take(store: &Store, key: &str, waited: &mut Duration) -> Turn {
    let began = Instant::now();
    let mut had_to_wait = false;
    let turn = turn(store, key, began, &mut had_to_wait);
    if had_to_wait {
        *waited += began.elapsed();
    }
    turn
}

fn turn(store: &Store, key: &str, began: Instant, waited: &mut bool) -> Turn {
    let room = store.root.join(ROOM);
    let path = room.join(key);
    let opened = open(&path).or_else(|_| make(&room).and_then(|()| open(&path)));
    let Ok(file) = opened else {
        return Turn::Without;
    };
    let file = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => file,
        Err(Errno::WOULDBLOCK) => {
            log(&format!("warehouse: waiting for {key}"));
            *waited = true;
            match wait(file, began) {
                Some(file) => file,
                None => return Turn::Without,
            }
        }
        Err(_) => return Turn::Without,
    };
    match file.metadata() {
        Ok(stat) if stat.nlink() == 0 => Turn::Built {
            kept: said(&file) == KEPT,
        },
        // Less what a builder that died had noted.
        Ok(_) if file.set_len(0).is_ok() => Turn::Ours(Claim::new(path, file)),
        _ => Turn::Without,
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// The file, locked; `None` if its builder takes too long.
fn wait(file: File, began: Instant) -> Option<File> {
    let (sender, receiver) = channel();
    let seen = file.try_clone().ok()?;
    // Blocks until the very moment.  Where we no longer listen, it lets go at once.
    std::thread::Builder::new()
        .spawn(move || {
            let locked = loop {
                match flock(&file, FlockOperation::LockExclusive) {
                    Err(Errno::INTR) => {}
                    other => break other.is_ok(),
                }
            };
            let _ = sender.send(locked.then_some(file));
        })
        .ok()?;
    loop {
        match receiver.recv_timeout(BEAT) {
            Ok(file) => return file,
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {
                let text = said(&seen);
                let text = std::str::from_utf8(&text).unwrap_or("");
                let spent = Duration::from_millis(text.trim().parse().unwrap_or(0));
                if began.elapsed() > patience(spent, crowd()) {
                    return None;
                }
            }
        }
    }
}

/// How long one waits for a compile that has had so much processor time, where `crowd` processes
/// want each processor.
fn patience(spent: Duration, crowd: f64) -> Duration {
    GRACE + spent.mul_f64(SHARE * crowd)
}

/// At least 1; bounded, because what waits for a disk that is gone counts as load as well.
fn crowd() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text
        .split(' ')
        .next()
        .map_or(0.0, |it| it.parse().unwrap_or(0.0));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (load / f64::from(u32::try_from(processors).unwrap_or(1))).clamp(1.0, 32.0)
}

fn said(file: &File) -> Vec<u8> {
    let mut text = [0; 20];
    let count = file.read_at(&mut text, 0).unwrap_or(0);
    text[..count].to_vec()
}

impl Claim {
    fn new(path: PathBuf, file: File) -> Self {
        let beats = Arc::new(Mutex::new(true));
        Self { path, file, beats }
    }

    /// Notes from now on how the compile that this process waits for gets on.
    pub fn show_progress(&self) {
        let Ok(file) = self.file.try_clone() else {
            return;
        };
        let beats = Arc::clone(&self.beats);
        let _ = std::thread::Builder::new().spawn(move || {
            loop {
                std::thread::sleep(BEAT);
                let spent = spent(std::process::id()).as_millis();
                let goes_on = beats.lock().unwrap_or_else(PoisonError::into_inner);
                // Of one width, so that one replaces the other.
                let text = format!("{spent:<16}");
                if !*goes_on || file.write_all_at(text.as_bytes(), 0).is_err() {
                    return;
                }
            }
        });
    }

    fn stop(&self) {
        *self.beats.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// For the process that goes on with it, as its stdin.
    pub fn handle(&self) -> io::Result<File> {
        self.stop();
        self.file.try_clone()
    }

    /// What the unit is called here.
    pub fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    /// The claim of that name, if this process was given it as stdin.
    pub fn inherited(store: &Store, name: &str) -> Option<Self> {
        let file = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
        let path = store.root.join(ROOM).join(name);
        let (ours, named) = (file.metadata().ok()?, fs::symlink_metadata(&path).ok()?);
        let is_claim = ours.dev() == named.dev() && ours.ino() == named.ino();
        is_claim.then(|| Self::new(path, file))
    }

    /// The work is done: whoever waits goes on.  Without this, as if we had died.
    pub fn end(self, kept: bool) {
        self.stop();
        // Said before the name goes, for who waits looks once only.
        let word = if kept { KEPT } else { NOT_KEPT };
        let _ = self.file.set_len(0);
        let _ = self.file.write_all_at(word, 0);
        let _ = fs::remove_file(&self.path);
    }
}

/// The processor time that `process` and all that come from it have had.
fn spent(process: u32) -> Duration {
    let mut ticks = 0;
    let mut open = vec![process];
    while let Some(one) = open.pop() {
        ticks += ticks_of(one);
        let tasks = fs::read_dir(format!("/proc/{one}/task"))
            .into_iter()
            .flatten();
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            open.extend(
                children
                    .split_whitespace()
                    .filter_map(|it| it.parse::<u32>().ok()),
            );
        }
    }
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_millis(ticks * 1000 / per_second)
}

/// utime, stime, cutime and cstime of proc_pid_stat(5).
fn ticks_of(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = rest.split_whitespace().skip(11).take(4);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clone_tree::Mode;

    fn store(name: &str) -> Store {
        let root = std::env::temp_dir().join(format!("cow-claim-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        Store {
            root,
            mode: Mode::Auto,
        }
    }

    fn turn_of(store: &Store) -> Turn {
        take(store, "k", &mut Duration::default())
    }

    fn ours(store: &Store) -> Claim {
        match turn_of(store) {
            Turn::Ours(claim) => claim,
            _ => panic!("somebody has it"),
        }
    }

    #[test]
    fn who_waits_learns_what_became_of_it() {
        for kept in [true, false] {
            let store = store("ends");
            let claim = ours(&store);
            std::thread::scope(|scope| {
                let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| turn_of(&store))).collect();
                std::thread::sleep(Duration::from_millis(50));
                claim.end(kept);
                for one in waiting {
                    let Turn::Built { kept: told } = one.join().unwrap() else {
                        panic!("it was not waited for");
                    };
                    assert_eq!(told, kept);
                }
            });
            assert_eq!(fs::read_dir(store.root.join(ROOM)).unwrap().count(), 0);
            fs::remove_dir_all(store.root).unwrap();
        }
    }

    #[test]
    fn who_waits_for_one_that_dies_takes_its_place() {
        let store = store("dies");
        let claim = ours(&store);
        claim.file.write_all_at(b"5000            ", 0).unwrap();
        let wait = || match turn_of(&store) {
            Turn::Ours(claim) => {
                assert!(said(&claim.file).is_empty());
                claim.end(true);
                "ours"
            }
            Turn::Built { kept: true } => "built",
            _ => panic!("neither"),
        };
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(wait)).collect();
            std::thread::sleep(Duration::from_millis(50));
            drop(claim);
            // One of them; the others wait for that one.
            let mut ends: Vec<_> = waiting.into_iter().map(|one| one.join().unwrap()).collect();
            ends.sort_unstable();
            assert_eq!(ends, ["built", "built", "ours"]);
        });
        fs::remove_dir_all(store.root).unwrap();
    }

    #[test]
    fn who_shows_too_little_progress_is_not_waited_for() {
        let store = store("stopped");
        let claim = ours(&store);
        let wait = |long_ago| {
            let file = open(&store.root.join(ROOM).join("k")).unwrap();
            wait(file, Instant::now().checked_sub(long_ago).unwrap())
        };
        assert!(wait(GRACE).is_none());
        claim.file.write_all_at(b"3000            ", 0).unwrap();
        let three = Duration::from_secs(3);
        assert!(wait(patience(three, 40.0)).is_none());
        // Goes on waiting where it has got on, and lets go of what it no longer wants.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(patience(three / 2, 1.0)).is_some());
            std::thread::sleep(BEAT + BEAT / 2);
            assert!(!waiting.is_finished());
            claim.end(true);
            assert!(waiting.join().unwrap());
        });
        ours(&store).end(false);
        fs::remove_dir_all(store.root).unwrap();
    }

    #[test]
    fn patience_follows_the_load() {
        let second = Duration::from_secs(1);
        assert_eq!(patience(Duration::ZERO, 20.0), GRACE);
        assert_eq!(patience(second, 1.0), GRACE + 4 * second);
        assert_eq!(patience(second, 10.0), GRACE + 40 * second);
        assert!((1.0..=32.0).contains(&crowd()));
    }

    #[test]
    fn what_was_ended_says_nothing_of_progress() {
        let store = store("beats");
        let claim = ours(&store);
        let file = claim.file.try_clone().unwrap();
        claim.show_progress();
        let until = Instant::now() + Duration::from_secs(20);
        while said(&file).is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(said(&file).len(), 16);
        claim.end(true);
        std::thread::sleep(BEAT + BEAT / 2);
        assert_eq!(said(&file), KEPT);
        fs::remove_dir_all(store.root).unwrap();
    }

    #[test]
    fn the_time_of_children_is_seen() {
        let before = spent(std::process::id());
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sh -c 'while :; do :; done'; true"])
            .spawn()
            .unwrap();
        let number = child.id();
        let until = Instant::now() + Duration::from_secs(20);
        while spent(number) < Duration::from_millis(50) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (seen, all) = (spent(number), spent(std::process::id()));
        for child in fs::read_to_string(format!("/proc/{number}/task/{number}/children"))
            .unwrap()
            .split_whitespace()
        {
            crate::signals::send(child.parse().unwrap(), libc::SIGKILL);
        }
        child.wait().unwrap();
        assert!(seen >= Duration::from_millis(50));
        assert!(all >= before + Duration::from_millis(50));
    }
}
