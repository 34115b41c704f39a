//! The contents of one file.

use std::os::fd::AsFd;

use rustix::fs::{IFlags, SeekFrom};
use rustix::io::Errno;

use super::Mode;

/// How the contents came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Reflinked,
    /// With the name of the errno that FICLONE gave; `None` where copying was asked for.
    Copied(Option<&'static str>),
}

/// The errno of FICLONE that permit a copy; all others are errors.
///
/// From ioctl_ficlonerange(2) and the filesystems: EOPNOTSUPP, ENOTTY and ENOSYS where the
/// filesystem (or sandbox) does not know the call, EXDEV between filesystems, EINVAL where
/// these two files cannot share (block size, Btrfs' NODATASUM against checksummed), EAGAIN where
/// OpenZFS has not yet written the source out.  ETXTBSY (an active swap file) is an error.
fn permits_copy(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::NOTTY => "ENOTTY",
        Errno::NOSYS => "ENOSYS",
        Errno::XDEV => "EXDEV",
        Errno::INVAL => "EINVAL",
        Errno::AGAIN => "EAGAIN",
        _ => return None,
    })
}

/// Attempts and pause while OpenZFS says EAGAIN, after the source was synced.
const AGAIN_ATTEMPTS: u32 = 20;
const AGAIN_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// Fills the empty file `to` with the `size` bytes of `from`.
///
/// Every file is asked for anew: some filesystems refuse single files (XFS those on its realtime
/// device), and a refused ioctl costs a microsecond.
pub fn transfer(from: impl AsFd, to: impl AsFd, size: u64, mode: Mode) -> Result<Method, Errno> {
    let (from, to) = (from.as_fd(), to.as_fd());
    if mode == Mode::Copy {
        copy(from, to, size, false)?;
        return Ok(Method::Copied(None));
    }
    let Err(errno) = reflink(from, to) else {
        return Ok(Method::Reflinked);
    };
    let reason = permits_copy(errno).filter(|_| mode == Mode::Auto);
    let reason = reason.ok_or(errno)?;
    copy(from, to, size, true)?;
    Ok(Method::Copied(Some(reason)))
}

fn reflink(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let mut attempts = 0;
    loop {
        match rustix::fs::ioctl_ficlone(to, from) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if attempts < AGAIN_ATTEMPTS => {
                if attempts == 0 {
                    rustix::fs::fdatasync(from)?;
                } else {
                    std::thread::sleep(AGAIN_PAUSE);
                }
                attempts += 1;
            }
            Err(Errno::INVAL) if attempts == 0 && agree_on_cow(from, to) => attempts += 1,
            result => return result,
        }
    }
}

/// Btrfs shares extents only between files that are both checksummed or both not
/// (`btrfs_remap_file_range_prep`), so a tree below `chattr +C` clones into an ordinary one only
/// when the new, still empty file takes the flag over.  `true`: it was changed, try again.
fn agree_on_cow(from: impl AsFd, to: impl AsFd) -> bool {
    let (Ok(theirs), Ok(ours)) = (
        rustix::fs::ioctl_getflags(from),
        rustix::fs::ioctl_getflags(&to),
    ) else {
        return false;
    };
    if (theirs ^ ours) & IFlags::NOCOW == IFlags::empty() {
        return false;
    }
    let flags = (ours - IFlags::NOCOW) | (theirs & IFlags::NOCOW);
    rustix::fs::ioctl_setflags(to, flags).is_ok()
}

/// Copies the data between holes, then sets the size, so that holes stay holes.
///
/// `by_kernel` lets `copy_file_range` do it, which may itself share extents; without it every
/// byte is read and written.
fn copy(from: impl AsFd, to: impl AsFd, size: u64, by_kernel: bool) -> Result<(), Errno> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let mut copier = Copier {
        by_kernel,
        buffer: Vec::new(),
    };
    let mut offset = 0;
    while offset < size {
        let data = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            // No notion of holes: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => offset,
            Err(errno) => return Err(errno),
        };
        let hole = match rustix::fs::seek(from, SeekFrom::Hole(data)) {
            Ok(hole) => hole,
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => size,
            Err(errno) => return Err(errno),
        };
        let end = hole.min(size);
        if data >= end || !copier.copy(from, to, data, end)? {
            break;
        }
        offset = end;
    }
    rustix::fs::ftruncate(to, size)
}

struct Copier {
    by_kernel: bool,
    buffer: Vec<u8>,
}

impl Copier {
    const BUFFER: usize = 256 * 1024;

    /// `false`: the source ended early, as it can when someone truncates it meanwhile.
    fn copy(
        &mut self,
        from: impl AsFd,
        to: impl AsFd,
        mut offset: u64,
        end: u64,
    ) -> Result<bool, Errno> {
        let (from, to) = (from.as_fd(), to.as_fd());
        while offset < end {
            let wanted = usize::try_from(end - offset).unwrap_or(usize::MAX);
            if self.by_kernel {
                let (mut read_at, mut write_at) = (offset, offset);
                let result = rustix::fs::copy_file_range(
                    from,
                    Some(&mut read_at),
                    to,
                    Some(&mut write_at),
                    wanted.min(1 << 30),
                );
                match result {
                    Ok(count) if count > 0 => offset += count as u64,
                    Err(Errno::INTR) => {}
                    // copy_file_range(2): not for these files; and 0 where there is data
                    // (seen on special filesystems).  Reading says which.
                    Ok(_)
                    | Err(
                        Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM,
                    ) => self.by_kernel = false,
                    Err(errno) => return Err(errno),
                }
                continue;
            }
            self.buffer.resize(Self::BUFFER, 0);
            let part = &mut self.buffer[..wanted.min(Self::BUFFER)];
            let count = match rustix::io::pread(from, &mut *part, offset) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            let mut written = 0;
            while written < count {
                match rustix::io::pwrite(to, &part[written..count], offset + written as u64) {
                    Ok(0) => return Err(Errno::IO),
                    Ok(more) => written += more,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            offset += count as u64;
        }
        Ok(true)
    }
}
