//! What has to be known and done at the end of a stream connection.

use std::io;
use std::os::fd::AsFd;

use super::descriptor;
use super::socket::{Shutdown, shutdown};

/// How many bytes have arrived that were not read: `FIONREAD` of ioctl_tcp(7). Does not block.
pub fn unread(stream: impl AsFd) -> io::Result<u64> {
    Ok(descriptor::unread(stream)?)
}

/// Tells the peer that no more data will come: shutdown(2) of the writing half. What was written is still delivered.
pub fn finish_writing(stream: impl AsFd) -> io::Result<()> {
    Ok(shutdown(stream, Shutdown::Write)?)
}

/// Ends the connection in both directions, for all who have it: shutdown(2).
pub fn cut(stream: impl AsFd) -> io::Result<()> {
    Ok(shutdown(stream, Shutdown::Both)?)
}
