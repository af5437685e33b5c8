//! Waiting for several descriptors: poll(2).

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::poll::ppoll;
use nix::sys::time::TimeSpec;

pub use nix::poll::{PollFd, PollFlags};

use super::errno::{ByNumber, Errno, retry};

/// Waits until one of them is ready, as long as `limit` at the most, or without end. Says how many are. A signal that this thread
/// handles meanwhile is EINTR.
pub fn poll(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<usize, Errno> {
    ppoll(fds, limit.map(time_spec), None).map(|count| count as usize).by_number()
}

/// Waits for one descriptor, as [`poll`] does, and gives what there is; nothing once the time is over.
pub fn poll_one(fd: impl AsFd, wanted: PollFlags, limit: Option<Duration>) -> Result<PollFlags, Errno> {
    let mut fds = [PollFd::new(fd.as_fd(), wanted)];
    poll(&mut fds, limit)?;
    Ok(found(&fds[0]))
}

/// What the last call found. The kernel tells what it was asked for, and what [`PollFlags`] has a name for.
pub fn found(fd: &PollFd<'_>) -> PollFlags {
    fd.revents().unwrap_or(PollFlags::empty())
}

/// What a socket has to tell without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// It can be read, or is at its end.
    pub is_readable: bool,
    /// Nothing more can come (`POLLRDHUP`).
    pub is_shut: bool,
    /// Nothing more can come, or go (`POLLHUP`).
    pub is_hung_up: bool,
}

/// Looks at a socket. Does not block.
pub fn ends_of(socket: impl AsFd) -> Result<Ends, Errno> {
    // nix has no name for POLLRDHUP, and tells nothing of a descriptor that has it.
    let events = libc::POLLIN | libc::POLLRDHUP;
    let mut asked = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events, revents: 0 };
    // SAFETY: the kernel writes into the one structure that it is given, which lives until the call returns.
    retry(|| Errno::result(unsafe { libc::poll(&mut asked, 1, 0) }))?;
    let has = |flag| asked.revents & flag != 0;
    Ok(Ends { is_readable: has(libc::POLLIN), is_shut: has(libc::POLLRDHUP), is_hung_up: has(libc::POLLHUP) })
}

pub(super) fn time_spec(time: Duration) -> TimeSpec {
    // The kernel takes no time that is longer than a signed number can tell.
    TimeSpec::new(time.as_secs().min(i64::MAX as u64) as i64, time.subsec_nanos().into())
}
