//! The system calls about a process by its pidfd. nix has none of them.

use std::ffi::{c_int, c_long, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::Signal;

use super::errno::Errno;

const NO_FLAGS: c_uint = 0;

/// pidfd_open(2); close-on-exec. No number but that of a process is EINVAL or ESRCH.
pub(super) fn open(pid: c_int, flags: c_uint) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two numbers and no memory of this process.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })
}

/// pidfd_getfd(2); close-on-exec.
pub(super) fn get(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes three numbers and no memory of this process.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, NO_FLAGS) })
}

/// pidfd_send_signal(2).
pub(super) fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    let nothing_more = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the call takes numbers, and no description of the signal that it would read.
    let returned = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as c_int, nothing_more, NO_FLAGS)
    };
    Errno::result(returned).map(drop)
}

fn new_descriptor(returned: c_long) -> Result<OwnedFd, Errno> {
    let number = Errno::result(returned)?;
    // SAFETY: the kernel has just made the descriptor for the caller of this.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}
