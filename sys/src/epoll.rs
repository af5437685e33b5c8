//! Waits for many descriptors at once: epoll(7).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::epoll::{self, EpollCreateFlags, EpollEvent, EpollTimeout};

pub use nix::sys::epoll::EpollFlags;

use super::errno::{ByNumber, Errno};

/// An epoll instance, close-on-exec. It is readable while one of its descriptors has an event.
#[derive(Debug)]
pub struct Epoll(epoll::Epoll);

impl Epoll {
    /// Creates an empty set.
    pub fn new() -> Result<Self, Errno> {
        epoll::Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Self).by_number()
    }

    /// Adds a descriptor. Its events carry `data`.
    pub fn add(&self, fd: impl AsFd, what: EpollFlags, data: u64) -> Result<(), Errno> {
        self.0.add(fd, EpollEvent::new(what, data)).by_number()
    }

    /// Changes the events of a descriptor. ENOENT if the set lacks it.
    pub fn modify(&self, fd: impl AsFd, what: EpollFlags, data: u64) -> Result<(), Errno> {
        self.0.modify(fd, &mut EpollEvent::new(what, data)).by_number()
    }

    /// Discards all pending events, for callers that recheck everything. Does not block.
    pub fn drain(&self) {
        let mut found = [EpollEvent::empty(); 16];
        while self.0.wait(&mut found, EpollTimeout::ZERO).is_ok_and(|count| count > 0) {}
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
