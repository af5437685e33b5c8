//! The pidfd system calls, which nix lacks.

use std::ffi::{c_int, c_long, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::Signal;

use super::errno::Errno;

const NO_FLAGS: c_uint = 0;

/// pidfd_open(2); close-on-exec. EINVAL or ESRCH if `pid` is not a process.
pub(super) fn open(pid: c_int, flags: c_uint) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and no memory of this process.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })
}

/// pidfd_getfd(2); close-on-exec.
pub(super) fn get(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes three integers and no memory of this process.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, NO_FLAGS) })
}

/// pidfd_send_signal(2).
pub(super) fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    let nothing_more = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the call takes integers and a null pointer instead of a siginfo.
    let returned = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as c_int, nothing_more, NO_FLAGS)
    };
    Errno::result(returned).map(drop)
}

fn new_descriptor(returned: c_long) -> Result<OwnedFd, Errno> {
    let number = Errno::result(returned)?;
    // SAFETY: the kernel has just created the descriptor for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}
