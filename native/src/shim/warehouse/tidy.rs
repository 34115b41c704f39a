//! Letting the store shrink by itself.
//!
//! What goes is decided by `cargo cow gc` and the user's settings; here is decided when to ask:
//! seldom, after something was kept, from the process that keeps, for which no build waits.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::seed;

/// In the store: its mtime is when somebody asked last.
const NOTE: &str = "tidied";
const SELDOM: Duration = Duration::from_secs(3600);
/// Where the filesystem is nearly full.
const OFTEN: Duration = Duration::from_secs(300);
const NEARLY_FULL: u64 = 20; // one part in so many is free

pub fn consider(root: &Path) {
    let note = root.join(NOTE);
    let Some(age) = fs::metadata(&note)
        .and_then(|stat| stat.modified())
        .ok()
        .and_then(|then| then.elapsed().ok())
    else {
        // A store that was just made has nothing to let go.
        let _ = super::store::create(&note);
        return;
    };
    if age < OFTEN || (age < SELDOM && !is_nearly_full(root)) {
        return;
    }
    let Some(program) = seed::program() else {
        return;
    };
    // First of all, so that nobody else asks meanwhile.
    let touched = File::create(&note);
    if touched
        .and_then(|file| file.set_modified(std::time::SystemTime::now()))
        .is_err()
    {
        return;
    }
    let _ = Command::new(program)
        .args(["gc", "--automatic", "--store"])
        .arg(root)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
}

fn is_nearly_full(root: &Path) -> bool {
    rustix::fs::statvfs(root)
        .is_ok_and(|told| told.f_bavail.saturating_mul(NEARLY_FULL) < told.f_blocks)
}
