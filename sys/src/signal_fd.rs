//! Receives a signal through a descriptor instead of a handler.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::errno::ByNumber;

/// Blocks a signal in the calling thread. Returns a descriptor that is readable once the signal arrives; nonblocking
/// and close-on-exec. For a single-threaded process: the signal would still interrupt other threads.
pub fn signal_fd(signal: Signal) -> io::Result<OwnedFd> {
    let mut set = SigSet::empty();
    set.add(signal);
    set.thread_block().by_number()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).by_number()?.into())
}
