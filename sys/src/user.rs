//! The user of this process.

use nix::unistd::{getegid, geteuid, getuid};

use super::errno::Errno;

/// The effective user id. 0 is root.
pub fn effective_user() -> u32 {
    geteuid().as_raw()
}

/// The effective group id.
pub fn effective_group() -> u32 {
    getegid().as_raw()
}

/// The real user id.
pub fn real_user() -> u32 {
    getuid().as_raw()
}

/// Sets all user ids of the calling thread, permanently, and of no other thread. (The C library's function changes all
/// threads.)
pub fn become_on_this_thread(user: u32) -> Result<(), Errno> {
    // SAFETY: the call takes an integer and no memory of this process.
    Errno::result(unsafe { libc::syscall(libc::SYS_setuid, user) }).map(drop)
}
