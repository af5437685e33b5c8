//! Who this process is.

use nix::unistd::{getegid, geteuid, getuid};

use super::errno::Errno;

/// By which user's rights it acts. 0 is root.
pub fn effective_user() -> u32 {
    geteuid().as_raw()
}

/// By which group's rights it acts.
pub fn effective_group() -> u32 {
    getegid().as_raw()
}

/// Who has started it.
pub fn real_user() -> u32 {
    getuid().as_raw()
}

/// Has the calling thread act by the rights of this user, for good, and no other thread. (The function of the C library is for all
/// threads.)
pub fn become_on_this_thread(user: u32) -> Result<(), Errno> {
    // SAFETY: the call takes a number and no memory of this process.
    Errno::result(unsafe { libc::syscall(libc::SYS_setuid, user) }).map(drop)
}
