//! Mode, owner, times and extended attributes of one file or directory.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Mode, Statx, StatxFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

#[derive(Debug)]
pub struct Attributes {
    mode: u32,
    owner: (u32, u32),
    times: Timestamps,
    pub extended: Vec<(CString, Vec<u8>)>,
}

const SET_ID_BITS: u32 = 0o6000;

pub fn stat(file: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
}

pub fn times(stat: &Statx) -> Timestamps {
    let time = |stamp: &rustix::fs::StatxTimestamp| Timespec {
        tv_sec: stamp.tv_sec,
        tv_nsec: stamp.tv_nsec.into(),
    };
    Timestamps {
        last_access: time(&stat.stx_atime),
        last_modification: time(&stat.stx_mtime),
    }
}

impl Attributes {
    pub fn of(stat: &Statx, extended: Vec<(CString, Vec<u8>)>) -> Self {
        Self {
            mode: u32::from(stat.stx_mode) & 0o7777,
            owner: (stat.stx_uid, stat.stx_gid),
            times: times(stat),
            extended,
        }
    }

    /// Gives `file`, which was created by us, these attributes; the time last, as everything
    /// else could change it.  Returns how many extended attributes found no place here.
    ///
    /// The order follows the kernel: `user.*` needs write permission by mode, which is why the
    /// final mode comes later; `chown` clears the set-id bits and `security.capability`; an ACL
    /// and the mode's group bits are the same bits, the ACL being the exact one.
    pub fn apply(&self, file: impl AsFd) -> Result<u64, Errno> {
        let file = file.as_fd();
        let mut dropped = 0;
        if !self.extended.is_empty() {
            rustix::fs::fchmod(file, Mode::RWXU)?;
        }
        for (name, value) in self.extended.iter().filter(|(name, _)| is_user(name)) {
            dropped += set_extended(file, name, value)?;
        }
        let now = stat(file)?;
        let mut mode = self.mode;
        let mut mode_is_right = u32::from(now.stx_mode) & 0o7777 == mode;
        if (now.stx_uid, now.stx_gid) != self.owner {
            mode_is_right = mode_is_right && mode & SET_ID_BITS == 0;
            let (uid, gid) = self.owner;
            if !change_owner(file, Some(uid), gid)? && !change_owner(file, None, gid)? {
                // As cp does: a set-id bit must not speak for another owner.
                mode &= !SET_ID_BITS;
                mode_is_right = mode_is_right || u32::from(now.stx_mode) & 0o7777 == mode;
            }
        }
        if !mode_is_right {
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        }
        for (name, value) in self.extended.iter().filter(|(name, _)| !is_user(name)) {
            dropped += set_extended(file, name, value)?;
        }
        rustix::fs::futimens(file, &self.times)?;
        Ok(dropped)
    }
}

fn is_user(name: &CStr) -> bool {
    name.to_bytes().starts_with(b"user.")
}

/// `false`: not permitted, or the number has no meaning in this user namespace (EINVAL).
fn change_owner(file: impl AsFd, uid: Option<u32>, gid: u32) -> Result<bool, Errno> {
    let uid = uid.map(Uid::from_raw);
    match rustix::fs::fchown(file, uid, Some(Gid::from_raw(gid))) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Returns 1 where the attribute was dropped: the filesystem has none, or (outside `user.`) it
/// belongs to the system and is not ours to give.
fn set_extended(file: impl AsFd, name: &CStr, value: &[u8]) -> Result<u64, Errno> {
    match rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) {
        Ok(()) => Ok(0),
        Err(Errno::OPNOTSUPP) => Ok(1),
        Err(Errno::PERM | Errno::ACCESS | Errno::INVAL) if !is_user(name) => Ok(1),
        Err(errno) => Err(errno),
    }
}

/// All extended attributes; none where the filesystem has none.
pub fn extended(file: impl AsFd) -> Result<Vec<(CString, Vec<u8>)>, Errno> {
    let file = file.as_fd();
    let mut small = [0_u8; 256];
    let mut large = Vec::new();
    let names: &[u8] = match rustix::fs::flistxattr(file, &mut small) {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Ok(length) => &small[..length],
        Err(Errno::RANGE) => {
            large.resize(LARGEST, 0);
            let length = rustix::fs::flistxattr(file, &mut large[..])?;
            &large[..length]
        }
        Err(errno) => return Err(errno),
    };
    let mut result = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let mut value = vec![0; LARGEST];
        match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                result.push((name.to_owned(), value));
            }
            // Taken away between the two calls, or not ours to read.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(result)
}

/// XATTR_LIST_MAX and XATTR_SIZE_MAX of linux/limits.h are both 64 KiB.
const LARGEST: usize = 65536;
