//! Lets tasks wait until a descriptor is readable.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::channel::Channel;

/// A type that owns one descriptor for as long as it lives, always the same one.
pub trait OwnsOne: AsRawFd + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for OwnedFd {}
impl sealed::Sealed for Channel {}
impl OwnsOne for OwnedFd {}
impl OwnsOne for Channel {}

/// Registers `descriptor` with the runtime of this thread. It should be nonblocking, if it is to be read.
pub fn readable<T: OwnsOne>(descriptor: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor is owned by `descriptor`, which the result owns in turn and drops only after it has
    // deregistered it; `OwnsOne` is sealed, and the types that have it never close or change theirs before they drop.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}
