//! Resource limits of a process: prlimit(2).

use std::io;

pub use nix::sys::resource::Resource;

use nix::sys::resource::getrlimit;

use super::errno::{ByNumber, Errno};

/// No limit.
pub const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// The soft and the hard limit of this process.
pub fn limits(of: Resource) -> io::Result<(u64, u64)> {
    Ok(getrlimit(of).by_number()?)
}

/// Sets both limits of another process of the same user.
pub fn set_limits(pid: u32, of: Resource, soft: u64, hard: u64) -> io::Result<()> {
    // nix sets limits of the calling process only.
    let limits = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads the structure, which lives until the call returns, and writes nothing.
    let returned =
        unsafe { libc::prlimit(pid.cast_signed(), of as _, &raw const limits, std::ptr::null_mut()) };
    Ok(Errno::result(returned).map(drop)?)
}
