//! What a process may have of something: prlimit(2).

use std::io;

pub use nix::sys::resource::Resource;

use nix::sys::resource::getrlimit;

use super::errno::{ByNumber, Errno};

/// No limit.
pub const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// How much this process may have, and how far it may raise that itself.
pub fn limits(of: Resource) -> io::Result<(u64, u64)> {
    Ok(getrlimit(of).by_number()?)
}

/// Sets both for another process, of the same user.
pub fn set_limits(pid: u32, of: Resource, soft: u64, hard: u64) -> io::Result<()> {
    // nix sets those of the calling process only.
    let limits = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads the structure that it is given, which lives until the call returns, and writes nothing.
    let returned =
        unsafe { libc::prlimit(pid.cast_signed(), of as _, &raw const limits, std::ptr::null_mut()) };
    Ok(Errno::result(returned).map(drop)?)
}
