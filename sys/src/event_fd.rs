//! Wakes a thread: eventfd(2).

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::descriptor::{read, write};
use super::errno::Errno;

/// Creates one with counter 0; close-on-exec. It is readable from a [`wake`] until the next [`sleep`]. If it is
/// blocking, [`sleep`] waits for a [`wake`].
pub fn event_fd(nonblocking: bool) -> Result<OwnedFd, Errno> {
    let flags = if nonblocking { EfdFlags::EFD_NONBLOCK } else { EfdFlags::empty() };
    Ok(EventFd::from_flags(flags | EfdFlags::EFD_CLOEXEC)?.into())
}

/// Makes it readable. No effect if it already is.
pub fn wake(event: impl AsFd) {
    let _ = write(event, &1_u64.to_ne_bytes());
}

/// Makes it unreadable. No effect if it already is.
pub fn sleep(event: impl AsFd) {
    let _ = read(event, &mut [0; 8]);
}
