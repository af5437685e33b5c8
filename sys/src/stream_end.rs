//! Operations at the end of a stream connection.

use std::io;
use std::os::fd::AsFd;

use super::descriptor;
use super::socket::{Shutdown, shutdown};

/// Number of received bytes that are unread: `FIONREAD` of ioctl_tcp(7). Does not block.
pub fn unread(stream: impl AsFd) -> io::Result<u64> {
    Ok(descriptor::unread(stream)?)
}

/// Signals the end of data to the peer: shutdown(2) of the writing half. The kernel still delivers what was written.
pub fn finish_writing(stream: impl AsFd) -> io::Result<()> {
    Ok(shutdown(stream, Shutdown::Write)?)
}

/// Ends both directions of the connection for all holders: shutdown(2).
pub fn cut(stream: impl AsFd) -> io::Result<()> {
    Ok(shutdown(stream, Shutdown::Both)?)
}
