//! A checkout seen over a directory that it lies in, as `.worktrees/x` at the path of the checkout
//! around it.
//!
//! A bind would hide the checkout itself, and its real path has to go on leading to it: variables
//! and some arguments name it.  So an empty filesystem is put there instead, with one mount for
//! each name in the checkout's root, and the whole of it once more at its real path.  Nothing can
//! be made in that root (through the real path it can): it is read-only, so that nothing is lost.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_remount, move_mount, open_tree,
};

/// One name in the frame.
enum Entry {
    Directory,
    Link(PathBuf),
    Mount { tree: OwnedFd, directory: bool },
}

/// In a private mount namespace: lets `real` be seen at `seen`, a directory that it lies in.
pub fn mount_over(real: &Path, seen: &Path) -> io::Result<()> {
    let way: Vec<&OsStr> = match real.strip_prefix(seen) {
        Ok(way) => way.iter().collect(),
        Err(_) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    // All of it is taken hold of before it is hidden.
    let whole = taken(real)?;
    let mut entries = Vec::new();
    collect(real, Path::new(""), &way, &mut entries)?;
    mount(
        "cargo-cow",
        seen,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=0755",
    )?;
    let mut place = seen.to_owned();
    for name in way {
        place.push(name);
        fs::create_dir(&place)?;
    }
    put(&whole, real)?;
    for (name, entry) in entries {
        let place = seen.join(name);
        match entry {
            // The way to the real path may be there already.
            Entry::Directory => fs::create_dir_all(&place)?,
            Entry::Link(target) => std::os::unix::fs::symlink(target, &place)?,
            Entry::Mount { tree, directory } => {
                if directory {
                    fs::create_dir(&place)?;
                } else {
                    fs::File::create_new(&place)?;
                }
                put(&tree, &place)?;
            }
        }
    }
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount_remount(seen, flags, c"")?)
}

/// The names in `real/inside`; those on the way to the real path are taken apart.
fn collect(
    real: &Path,
    inside: &Path,
    way: &[&OsStr],
    entries: &mut Vec<(PathBuf, Entry)>,
) -> io::Result<()> {
    let (first, rest) = way.split_first().ok_or(io::ErrorKind::AlreadyExists)?;
    for entry in fs::read_dir(real.join(inside))? {
        let entry = entry?;
        let name: OsString = entry.file_name();
        let kind = entry.file_type()?;
        let place = inside.join(&name);
        if name == *first {
            if !kind.is_dir() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            entries.push((place.clone(), Entry::Directory));
            collect(real, &place, rest, entries)?;
        } else if kind.is_symlink() {
            entries.push((place, Entry::Link(fs::read_link(entry.path())?)));
        } else {
            let tree = taken(&entry.path())?;
            let directory = kind.is_dir();
            entries.push((place, Entry::Mount { tree, directory }));
        }
    }
    Ok(())
}

fn taken(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    Ok(open_tree(CWD, path, flags)?)
}

fn put(tree: &OwnedFd, place: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(tree, "", CWD, place, flags)?)
}
