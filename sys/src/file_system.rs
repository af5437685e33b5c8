//! What the file system of a file can do.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::fcntl::copy_file_range;
use nix::sys::statvfs::{FsFlags, fstatvfs, statvfs};
use nix::unistd::syncfs;

use super::errno::{ByNumber, Errno};

/// Whether a file there gives the privileges that it is marked with to who executes it: it is not mounted with `nosuid`.
pub fn gives_privileges(file: impl AsFd) -> Result<bool, Errno> {
    Ok(!fstatvfs(file)?.flags().contains(FsFlags::ST_NOSUID))
}

/// Whether a file there can be executed: it is not mounted with `noexec`.
pub fn is_for_programs(path: &Path) -> Result<bool, Errno> {
    Ok(!statvfs(path)?.flags().contains(FsFlags::ST_NOEXEC))
}

/// Writes all of it to the disk. Blocks.
pub fn sync(file: impl AsFd) -> Result<(), Errno> {
    syncfs(file).by_number()
}

/// Makes all of `to` share the blocks of `from`: ioctl_ficlone(2).
pub fn share_blocks(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the request takes the number of a descriptor and no memory of this process.
    unsafe { ioctls::share_blocks(to.as_fd().as_raw_fd(), from.as_fd().as_raw_fd()) }.map(drop).by_number()
}

/// Has the kernel copy as much from the position of one file to that of the other; the number of bytes, 0 at the end.
pub fn copy_range(from: impl AsFd, to: impl AsFd, bytes: usize) -> Result<usize, Errno> {
    copy_file_range(from, None, to, None, bytes).by_number()
}

mod ioctls {
    nix::ioctl_write_int_bad!(share_blocks, libc::FICLONE);
}
