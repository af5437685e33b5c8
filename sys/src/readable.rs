//! Waiting until a descriptor is readable, as a task or as a thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::channel::Channel;
use super::epoll::Epoll;
use super::errno::Errno;
use super::inotify::Inotify;
use super::poll::{PollFlags, poll_one};

/// A type that owns one descriptor for as long as it lives, always the same one.
pub trait OwnsOne: AsRawFd + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for OwnedFd {}
impl sealed::Sealed for Channel {}
impl sealed::Sealed for Epoll {}
impl sealed::Sealed for Inotify {}
impl OwnsOne for OwnedFd {}
impl OwnsOne for Channel {}
impl OwnsOne for Epoll {}
impl OwnsOne for Inotify {}

/// Registers `descriptor` with the runtime of this thread. It should be nonblocking, if it is to be read.
pub fn readable<T: OwnsOne>(descriptor: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor is owned by `descriptor`, which the result owns in turn and drops only after it has
    // deregistered it; `OwnsOne` is sealed, and the types that have it never close or change theirs before they drop.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Whether `descriptor` is readable, or at its end, by `until`. Blocks until then; a signal that this thread handles meanwhile
/// makes it no shorter.
pub fn is_readable_by(descriptor: impl AsFd, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match poll_one(&descriptor, PollFlags::POLLIN, Some(left)) {
            Ok(found) => return Ok(!found.is_empty()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
