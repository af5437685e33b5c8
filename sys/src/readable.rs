//! Waits until a descriptor is readable, as a task or as a thread.

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

/// A type that owns one descriptor, always the same one, until it is dropped.
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

/// Registers `descriptor` with the runtime of this thread. It should be nonblocking if the caller reads from it.
pub fn readable<T: OwnsOne>(descriptor: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `descriptor` owns its descriptor. The result owns `descriptor` and drops it only after deregistration.
    // `OwnsOne` is sealed, and its types never close or change their descriptor before they drop.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Waits until `descriptor` is readable or at its end, or until the deadline. Returns whether it is. Blocks; signals do
/// not shorten the wait.
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
