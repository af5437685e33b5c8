//! Locks of whole files: flock(2).

use std::os::fd::{AsFd, AsRawFd};

pub use nix::fcntl::FlockArg;

use super::errno::{ByNumber, Errno};

/// Takes or gives up the lock of an open file. All duplicates of the descriptor have it in common, and it ends with the last of them.
/// (The type that nix has for a held lock gives it up when it is dropped, also where a duplicate is to keep it.)
pub fn flock(file: impl AsFd, operation: FlockArg) -> Result<(), Errno> {
    #[expect(deprecated, reason = "the lock is to outlive the descriptor that took it")]
    nix::fcntl::flock(file.as_fd().as_raw_fd(), operation).by_number()
}
