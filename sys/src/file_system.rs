//! Capabilities of a file's file system.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::fcntl::copy_file_range;
use nix::sys::statvfs::{FsFlags, fstatvfs, statvfs};
use nix::unistd::syncfs;

use super::errno::{ByNumber, Errno};

/// Whether executing a file there honors its setuid bits and capabilities: the file system is not mounted with
/// `nosuid`.
pub fn gives_privileges(file: impl AsFd) -> Result<bool, Errno> {
    Ok(!fstatvfs(file)?.flags().contains(FsFlags::ST_NOSUID))
}

/// Whether files there can be executed: the file system is not mounted with `noexec`.
pub fn is_for_programs(path: &Path) -> Result<bool, Errno> {
    Ok(!statvfs(path)?.flags().contains(FsFlags::ST_NOEXEC))
}

/// Flushes the whole file system to disk. Blocks.
pub fn sync(file: impl AsFd) -> Result<(), Errno> {
    syncfs(file).by_number()
}

/// Makes all of `to` share the blocks of `from`: ioctl_ficlone(2).
pub fn share_blocks(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the request takes a descriptor number and no memory of this process.
    unsafe { ioctls::share_blocks(to.as_fd().as_raw_fd(), from.as_fd().as_raw_fd()) }.map(drop).by_number()
}

/// Lets the kernel copy up to `bytes` from one file's position to the other's. Returns the number of bytes copied; 0 at
/// the end.
pub fn copy_range(from: impl AsFd, to: impl AsFd, bytes: usize) -> Result<usize, Errno> {
    copy_file_range(from, None, to, None, bytes).by_number()
}

mod ioctls {
    nix::ioctl_write_int_bad!(share_blocks, libc::FICLONE);
}
