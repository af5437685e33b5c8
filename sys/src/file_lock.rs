//! Whole-file locks: flock(2).

use std::os::fd::{AsFd, AsRawFd};

pub use nix::fcntl::FlockArg;

use super::errno::{ByNumber, Errno};

/// Takes or releases the lock of an open file. All duplicates of the descriptor share it; it ends when the last one
/// closes. (nix's lock type unlocks on drop, even if a duplicate should keep the lock.)
pub fn flock(file: impl AsFd, operation: FlockArg) -> Result<(), Errno> {
    #[expect(deprecated, reason = "the lock must outlive the descriptor that took it")]
    nix::fcntl::flock(file.as_fd().as_raw_fd(), operation).by_number()
}
