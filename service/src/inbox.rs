//! Messages from the server's threads to the driver.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use handoff_protocol::state::State;

use super::work::Done;
use handoff_sys::event_fd::{event_fd, sleep, wake};
use handoff_sys::lock::DataLock;

/// One event in the server.
#[derive(Debug)]
pub(super) enum Input {
    /// The server's own version text.
    Version(String),
    /// Start-up is complete; the path is the data directory, if there is one.
    Started(Option<PathBuf>),
    /// The data is open and the server accepts, or an error.
    Opened(Done),
    /// The server hands over state, in a file if it is long.
    HandOver(State, Option<OwnedFd>),
    /// The drain code returned.
    Drained(Done),
    /// The seal code returned.
    Sealed(Done),
    /// The resume code returned.
    Resumed(Done),
    /// The wait for the lock ended.
    Locked(io::Result<DataLock>),
}

/// A queue with a descriptor that is readable while the queue is not empty. So the driver waits for it and its channel
/// in one call.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: Mutex<VecDeque<Input>>,
    ready: OwnedFd,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let ready = event_fd(true)?;
        Ok(Self { queue: Mutex::default(), ready })
    }

    pub(super) fn push(&self, input: Input) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(input);
        // Fails only with 2^64 - 2 waiting inputs; the descriptor is readable then anyway.
        wake(&self.ready);
    }

    pub(super) fn drain(&self) -> VecDeque<Input> {
        sleep(&self.ready);
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}
