//! Properties of a descriptor, apart from its content.

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};

use super::errno::{ByNumber, Errno};

/// Reads what is available, up to the length of `buffer`. Returns 0 at the end.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    nix::unistd::read(fd, buffer).by_number()
}

/// Writes as much as fits. Returns the number of bytes.
pub fn write(fd: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    nix::unistd::write(fd, bytes).by_number()
}

/// Whether the descriptor is close-on-exec.
pub fn is_close_on_exec(fd: impl AsFd) -> Result<bool, Errno> {
    let flags = fcntl(fd, FcntlArg::F_GETFD)?;
    Ok(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC))
}

/// Sets or clears close-on-exec.
pub fn set_close_on_exec(fd: impl AsFd, closes: bool) -> Result<(), Errno> {
    let flags = if closes { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop).by_number()
}

/// The flags of its open file, from `fcntl(F_GETFL)`. All duplicates share them.
pub fn open_flags(fd: impl AsFd) -> Result<c_int, Errno> {
    fcntl(fd, FcntlArg::F_GETFL).by_number()
}

/// Whether the flags from `/proc/PID/fdinfo` (proc_pid_fdinfo(5)) include close-on-exec.
pub fn closes_on_exec(flags: u32) -> bool {
    flags & libc::O_CLOEXEC.unsigned_abs() != 0
}

/// Whether the descriptor is nonblocking.
pub fn is_nonblocking(fd: impl AsFd) -> Result<bool, Errno> {
    Ok(OFlag::from_bits_retain(open_flags(fd)?).contains(OFlag::O_NONBLOCK))
}

/// Makes the descriptor and all its duplicates nonblocking, or blocking.
pub fn set_nonblocking(fd: impl AsFd, nonblocking: bool) -> Result<(), Errno> {
    let value = c_int::from(nonblocking);
    // SAFETY: the request reads one integer, which lives until the call returns.
    unsafe { ioctls::set_nonblocking(fd.as_fd().as_raw_fd(), &raw const value) }.map(drop).by_number()
}

/// Sets the flags of its open file, as returned by [`open_flags`].
pub fn set_open_flags(fd: impl AsFd, flags: c_int) -> Result<(), Errno> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags))).map(drop).by_number()
}

/// The inode number of its file, unique within the file system while the file is open.
pub fn inode(fd: impl AsFd) -> Result<u64, Errno> {
    fstat(fd).map(|found| found.st_ino).by_number()
}

/// Whether two descriptors certainly share an open file. Detects sockets and pipe ends only.
pub fn is_duplicate(one: impl AsFd, other: impl AsFd) -> bool {
    let (Ok(first), Ok(second)) = (fstat(&one), fstat(&other)) else { return false };
    let has_own_inode = match SFlag::from_bits_truncate(first.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFSOCK => true,
        // Both ends of a pipe have the same inode.
        SFlag::S_IFIFO => open_flags(one).ok() == open_flags(other).ok(),
        _ => false,
    };
    has_own_inode && (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
}

/// Sets the mode of its file. For a unix socket that has no path yet, this becomes the mode of the path.
pub fn set_mode(fd: impl AsFd, mode: u32) -> Result<(), Errno> {
    fchmod(fd, Mode::from_bits_truncate(mode)).by_number()
}

/// Number of bytes available to read (`FIONREAD`).
pub fn unread(fd: impl AsFd) -> Result<u64, Errno> {
    let mut count = 0;
    // SAFETY: the request writes one integer, which lives until the call returns.
    unsafe { ioctls::unread(fd.as_fd().as_raw_fd(), &raw mut count) }?;
    Ok(count.unsigned_abs().into())
}

/// Duplicates to the lowest free number that is at least `least`; close-on-exec.
pub fn duplicate_from(fd: impl AsFd, least: RawFd) -> Result<OwnedFd, Errno> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(least))?;
    // SAFETY: the kernel has just created the descriptor for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

mod ioctls {
    use std::ffi::c_int;

    nix::ioctl_write_ptr_bad!(set_nonblocking, libc::FIONBIO, c_int);
    nix::ioctl_read_bad!(unread, libc::FIONREAD, c_int);
}
