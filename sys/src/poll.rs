//! Waits for several descriptors: poll(2).

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::poll::ppoll;
use nix::sys::time::TimeSpec;

pub use nix::poll::{PollFd, PollFlags};

use super::errno::{ByNumber, Errno, retry};

/// Waits until a descriptor is ready, for up to `limit`, or without limit. Returns the number of ready descriptors.
/// EINTR if this thread handles a signal in the meantime.
pub fn poll(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<usize, Errno> {
    ppoll(fds, limit.map(time_spec), None).map(|count| count as usize).by_number()
}

/// Waits for one descriptor like [`poll`]. Returns its events; empty on timeout.
pub fn poll_one(fd: impl AsFd, wanted: PollFlags, limit: Option<Duration>) -> Result<PollFlags, Errno> {
    let mut fds = [PollFd::new(fd.as_fd(), wanted)];
    poll(&mut fds, limit)?;
    Ok(found(&fds[0]))
}

/// The events of the last call, as far as [`PollFlags`] has names for them.
pub fn found(fd: &PollFd<'_>) -> PollFlags {
    fd.revents().unwrap_or(PollFlags::empty())
}

/// The state of a socket, read without blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketStatus {
    /// It has data, or is at its end.
    pub is_readable: bool,
    /// The peer sends no more data (`POLLRDHUP`).
    pub is_shut: bool,
    /// Both directions are closed (`POLLHUP`).
    pub is_hung_up: bool,
}

/// Reads the state of a socket. Does not block.
pub fn ends_of(socket: impl AsFd) -> Result<SocketStatus, Errno> {
    // nix has no name for POLLRDHUP, and its result hides unknown flags.
    let events = libc::POLLIN | libc::POLLRDHUP;
    let mut asked = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events, revents: 0 };
    // SAFETY: the kernel writes the one structure, which lives until the call returns.
    retry(|| Errno::result(unsafe { libc::poll(&mut asked, 1, 0) }))?;
    let has = |flag| asked.revents & flag != 0;
    Ok(SocketStatus {
        is_readable: has(libc::POLLIN),
        is_shut: has(libc::POLLRDHUP),
        is_hung_up: has(libc::POLLHUP),
    })
}

pub(super) fn time_spec(time: Duration) -> TimeSpec {
    // The kernel rejects seconds that exceed a signed integer.
    TimeSpec::new(time.as_secs().min(i64::MAX as u64) as i64, time.subsec_nanos().into())
}
