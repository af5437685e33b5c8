//! A number to wake a thread by: eventfd(2).

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::descriptor::{read, write};
use super::errno::Errno;

/// Makes one that is zero; close-on-exec. It is readable from a [`wake`] to the next [`sleep`]. If it is not nonblocking, to sleep is to
/// wait for that.
pub fn event_fd(nonblocking: bool) -> Result<OwnedFd, Errno> {
    let flags = if nonblocking { EfdFlags::EFD_NONBLOCK } else { EfdFlags::empty() };
    Ok(EventFd::from_flags(flags | EfdFlags::EFD_CLOEXEC)?.into())
}

/// Makes it readable. That it is already is no error.
pub fn wake(event: impl AsFd) {
    let _ = write(event, &1_u64.to_ne_bytes());
}

/// Makes it unreadable. That it is already is no error.
pub fn sleep(event: impl AsFd) {
    let _ = read(event, &mut [0; 8]);
}
