//! `--enter`: becomes a command that sees some directories at other paths, and perhaps no network.
//!
//! No process of ours remains: the namespaces are made around this very process, which then is the
//! command.  So signals, terminal, exit status and process number are what they are without us,
//! and nothing is left to unmount.

#![expect(
    unsafe_code,
    reason = "mount_setattr, interface flags and descriptors have no safe form"
)]

use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind_recursive, mount_remount,
    move_mount, open_tree,
};
use rustix::net::{AddressFamily, SocketType, socket};

use crate::namespace::{self, Separation};
use crate::verbs::Failure;

/// What the command shall see.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// A directory whose contents are replaced by an empty, and then read-only, one.
    pub room: Option<PathBuf>,
    /// What lies at the first path is also seen at the second, which is made below `room`.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Directories in which nothing can be written, except below `keep`.
    pub read_only: Vec<PathBuf>,
    pub keep: Vec<PathBuf>,
    pub no_network: bool,
    /// The working directory, as it is called inside.
    pub directory: Option<PathBuf>,
    /// Signals that get their default action back.
    pub signals: Vec<i32>,
    /// Where a line is written once all is as it shall be, and another one if that fails or the
    /// command cannot be run; each is a JSON object.
    pub status: Option<i32>,
    pub command: Vec<OsString>,
}

/// Returns only where the command cannot be run.  `true`: the failure was told to `status`.
pub fn run(options: &Options) -> (Failure, bool) {
    // SAFETY: the caller hands us this descriptor, and nobody else here knows it.
    let mut status = options
        .status
        .map(|number| File::from(unsafe { OwnedFd::from_raw_fd(number) }));
    if let Some(status) = &status {
        let _ = rustix::io::fcntl_setfd(status, rustix::io::FdFlags::CLOEXEC);
    }
    let mut tell = |text: &str| {
        let told = status.as_mut().map(|status| writeln!(status, "{text}"));
        told.is_some_and(|result| result.is_ok())
    };
    let failure = match view(options) {
        Ok(()) => {
            tell(r#"{"entered":true}"#);
            become_command(options)
        }
        Err(failure) => failure,
    };
    let told = tell(&failure.to_json().to_string());
    (failure, told)
}

fn become_command(options: &Options) -> Failure {
    for signal in &options.signals {
        crate::signals::reset(*signal);
    }
    let mut command = Command::new(&options.command[0]);
    let error = command.args(&options.command[1..]).exec();
    let program = Path::new(&options.command[0]);
    Failure::new("run", errno(&error), program)
}

fn view(options: &Options) -> Result<(), Failure> {
    if options.is_separate() {
        separate(options)?;
    }
    if let Some(directory) = &options.directory {
        std::env::set_current_dir(directory)
            .map_err(|error| Failure::new("enter", errno(&error), directory))?;
    }
    Ok(())
}

impl Options {
    /// Without a wish for another view the command runs where it is.
    fn is_separate(&self) -> bool {
        self.room.is_some()
            || !self.binds.is_empty()
            || !self.read_only.is_empty()
            || self.no_network
    }
}

fn separate(options: &Options) -> Result<(), Failure> {
    let root = Path::new("/");
    let kind = if options.no_network {
        Separation::MountsAndNetwork
    } else {
        Separation::Mounts
    };
    namespace::separate(kind)
        .map_err(|error| Failure::new("make a namespace", errno(&error), root))?;
    // Nothing of ours may appear outside; what is mounted outside later appears here.
    namespace::detach_mounts().map_err(|error| Failure::new("detach the mounts", error, root))?;
    if options.no_network {
        loopback_up().map_err(|error| Failure::new("use the loopback device", error, root))?;
    }
    // Taken before anything is read-only, and put back over it.
    let mut kept = Vec::new();
    if !options.read_only.is_empty() {
        for path in options.keep.iter().filter(|path| path.exists()) {
            let tree = open_tree(
                rustix::fs::CWD,
                path,
                OpenTreeFlags::OPEN_TREE_CLONE
                    | OpenTreeFlags::AT_RECURSIVE
                    | OpenTreeFlags::OPEN_TREE_CLOEXEC,
            )
            .map_err(|error| Failure::new("keep", error, path))?;
            kept.push((tree, path));
        }
    }
    for path in &options.read_only {
        mount_bind_recursive(path, path)
            .and_then(|()| make_read_only(path))
            .map_err(|error| Failure::new("make read-only", error, path))?;
    }
    for (tree, path) in &kept {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(tree, c"", rustix::fs::CWD, *path, flags)
            .map_err(|error| Failure::new("keep writable", error, path))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    if let Some(room) = &options.room {
        mount(c"tmpfs", room, c"tmpfs", flags, c"mode=0755")
            .map_err(|error| Failure::new("mount an empty directory at", error, room))?;
    }
    for (real, seen) in &options.binds {
        if options
            .room
            .as_ref()
            .is_some_and(|room| seen.starts_with(room))
        {
            place_for(real, seen).map_err(|error| Failure::new("make", errno(&error), seen))?;
        }
        mount_bind_recursive(real, seen).map_err(|error| Failure::new("bind at", error, seen))?;
    }
    if let Some(room) = &options.room {
        // What a relative path leads to beside the checkout would be lost with the namespace:
        // better that it cannot be written at all.
        mount_remount(room, flags | MountFlags::BIND | MountFlags::RDONLY, c"")
            .map_err(|error| Failure::new("close", error, room))?;
    }
    Ok(())
}

/// An empty directory or file, for what is bound over it.
fn place_for(real: &Path, seen: &Path) -> io::Result<()> {
    if fs::metadata(real)?.is_dir() {
        return fs::create_dir_all(seen);
    }
    if seen.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = seen.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(seen)
        .map(drop)
}

/// The mount at `path` and all below it (`mount_setattr(2)`, Linux 5.12).
fn make_read_only(path: &Path) -> Result<(), Errno> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: both pointers are to live values, and the size is that of the second.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            name.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    last_error(result == 0)
}

/// A network namespace begins with a loopback device that is down: nothing could connect to
/// itself, as tests do.
fn loopback_up() -> Result<(), Errno> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all-zero is a valid ifreq; both calls get a live one, and the name ends in zeros.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
        last_error(libc::ioctl(number, libc::SIOCGIFFLAGS, &raw mut request) == 0)?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        last_error(libc::ioctl(number, libc::SIOCSIFFLAGS, &raw const request) == 0)
    }
}

fn last_error(good: bool) -> Result<(), Errno> {
    if good {
        Ok(())
    } else {
        Err(errno(&io::Error::last_os_error()))
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EINVAL))
}
