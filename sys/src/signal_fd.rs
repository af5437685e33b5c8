//! A signal as a descriptor to wait for, instead of an interruption.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::errno::ByNumber;

/// Blocks a signal in the calling thread and gives a descriptor that is readable once it has come; nonblocking and
/// close-on-exec. For a process of one thread: another thread would still be interrupted.
pub fn signal_fd(signal: Signal) -> io::Result<OwnedFd> {
    let mut set = SigSet::empty();
    set.add(signal);
    set.thread_block().by_number()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).by_number()?.into())
}
