//! A private mount namespace: for one child, entered between `fork` and `exec`, or for this process.
//!
//! Root may unshare mounts alone; anybody else gets a user namespace around them, in which the
//! own numbers stand for themselves (user_namespaces(7)); `exec` takes its capabilities away
//! again.  The namespace dies with the last process in it, so nothing is left to unmount.

#![expect(unsafe_code, reason = "pre_exec and unshare have no safe form")]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::frame;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What the child's view shall be.
pub struct View {
    /// What lies at the first path shall also be seen at the second, which may be a directory
    /// around it; in this order.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// The working directory, as it is called inside.
    pub directory: PathBuf,
    /// Names that shall mean inside what they mean outside.
    pub steady: Vec<PathBuf>,
    /// Names outside, and what they are called inside.
    pub same: Vec<(PathBuf, PathBuf)>,
}

type Inode = Option<(u64, u64)>;

/// `command` will run in its own view; where that cannot be made, `spawn` fails, and `report` is
/// told why (in the child).
pub fn confine(command: &mut Command, view: View, report: fn(&str)) {
    let enter = move || {
        view.enter().map_err(|(what, error)| {
            report(&format!("identity: {what}: {error}"));
            // Only a number reaches the parent.
            io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EINVAL))
        })
    };
    // SAFETY: the closure runs in a child forked from a process without other threads (the shim
    // starts none before it spawns), so that it may allocate and lock.
    unsafe {
        command.pre_exec(enter);
    }
}

impl View {
    fn enter(&self) -> Result<(), (String, io::Error)> {
        let steady: Vec<Inode> = self.steady.iter().map(|path| inode(path)).collect();
        let same: Vec<Inode> = self.same.iter().map(|(path, _)| inode(path)).collect();
        separate(Separation::Mounts).map_err(|error| ("no namespace".to_owned(), error))?;
        // Nothing of ours may appear outside.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)
            .map_err(|error| ("no private mounts".to_owned(), error.into()))?;
        for (real, seen) in &self.binds {
            let bound = if real.starts_with(seen) {
                frame::mount_over(real, seen)
            } else {
                mount_bind_recursive(real, seen).map_err(io::Error::from)
            };
            bound.map_err(|error| (format!("cannot bind at {}", seen.display()), error))?;
        }
        std::env::set_current_dir(&self.directory)
            .map_err(|error| (self.directory.display().to_string(), error))?;
        let hidden = |path: &Path| {
            let what = format!("{} would be something else inside", path.display());
            Err((what, io::Error::from_raw_os_error(libc::ESTALE)))
        };
        for (path, before) in self.steady.iter().zip(steady) {
            if inode(path) != before {
                return hidden(path);
            }
        }
        for ((real, seen), before) in self.same.iter().zip(same) {
            if inode(seen) != before || inode(real) != before {
                return hidden(real);
            }
        }
        Ok(())
    }
}

fn inode(path: &Path) -> Inode {
    let stat = fs::metadata(path).ok()?;
    Some((stat.dev(), stat.ino()))
}

/// What is private.
#[derive(Clone, Copy)]
pub enum Separation {
    Mounts,
    MountsAndNetwork,
}

/// This process, which has one thread, gets namespaces of its own.
pub fn separate(kind: Separation) -> io::Result<()> {
    let wanted = match kind {
        Separation::Mounts => UnshareFlags::NEWNS,
        Separation::MountsAndNetwork => UnshareFlags::NEWNS | UnshareFlags::NEWNET,
    };
    // SAFETY: no flag touches descriptors, and the process has one thread.
    match unsafe { unshare_unsafe(wanted) } {
        // Root without the privilege is a container's; in a namespace of its own it could not
        // even write the files of others that it may write now.
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => {}
        other => return Ok(other?),
    }
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | wanted) }?;
    // Without this a group cannot be mapped (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Mounts made from now on stay here; those made outside still arrive.
pub fn detach_mounts() -> Result<(), Errno> {
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
}
