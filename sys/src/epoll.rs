//! Waiting for many descriptors at once: epoll(7).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::epoll::{self, EpollCreateFlags, EpollEvent, EpollTimeout};

pub use nix::sys::epoll::EpollFlags;

use super::errno::{ByNumber, Errno};

/// A set of descriptors that is readable once something is to be told of one of them; close-on-exec.
#[derive(Debug)]
pub struct Epoll(epoll::Epoll);

impl Epoll {
    /// An empty one.
    pub fn new() -> Result<Self, Errno> {
        epoll::Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Self).by_number()
    }

    /// Takes a descriptor in. `data` is told with what happens to it.
    pub fn add(&self, fd: impl AsFd, what: EpollFlags, data: u64) -> Result<(), Errno> {
        self.0.add(fd, EpollEvent::new(what, data)).by_number()
    }

    /// Changes what is to be told of a descriptor. ENOENT if it is not there.
    pub fn modify(&self, fd: impl AsFd, what: EpollFlags, data: u64) -> Result<(), Errno> {
        self.0.modify(fd, &mut EpollEvent::new(what, data)).by_number()
    }

    /// Takes all that is to be told, for whoever looks at everything anew. Does not block.
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
