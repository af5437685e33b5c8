//! A channel: a unix socket of type `SOCK_SEQPACKET`, on which a packet is whole or absent, and carries descriptors. For
//! services in languages that have no such sockets it may be of type `SOCK_STREAM`: then packets are cut by the length in
//! their header, and carry no descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use handoff_protocol::frame::{FDS_MAX, FRAME_MAX, Transport};

use super::descriptor::set_nonblocking;
use super::errno::Errno;
use super::message::{Received, receive, send};
use super::socket::{AddressFamily, MsgFlags, SockType, family_of, kind_of, pair, peer_of, recv};
use super::stream::Stream;
use super::user::effective_user;

/// One end of a channel. It may be used from several threads at once: each packet is sent and received whole.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// Held from the look at the length of a packet until that packet is taken: another thread would take it, and the next
    /// one would be cut.
    receiving: Mutex<()>,
    /// Only for a stream.
    stream: Option<Stream>,
}

/// What came with one packet. Its bytes stand at the start of the buffer that was given to [`Channel::recv`].
#[derive(Debug)]
pub struct Packet {
    /// Number of bytes that were stored.
    pub len: usize,
    /// The descriptors that travelled along, all close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The packet was longer than the buffer; the rest is lost (`MSG_TRUNC`).
    pub truncated: bool,
    /// Descriptors were dropped by the kernel (`MSG_CTRUNC`).
    pub fds_lost: bool,
}

impl Channel {
    fn new(socket: OwnedFd, stream: Option<Stream>) -> Channel {
        Channel { socket, receiving: Mutex::default(), stream }
    }

    /// Makes a connected pair, both ends blocking and close-on-exec. The second is for another process.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = pair(SockType::SeqPacket)?;
        Ok((Channel::new(ours, None), theirs))
    }

    /// Like [`Channel::pair`], of type `SOCK_STREAM`.
    pub fn stream_pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = pair(SockType::Stream)?;
        Ok((Channel::new(ours, Some(Stream::default())), theirs))
    }

    /// Takes a connected socket. Anything but a unix socket of type `SOCK_SEQPACKET` is `InvalidInput`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Channel> {
        check(&fd, SockType::SeqPacket, "SOCK_SEQPACKET")?;
        Ok(Channel::new(fd, None))
    }

    /// Takes a connected socket. Anything but a unix socket of type `SOCK_STREAM` is `InvalidInput`.
    pub fn from_stream(fd: OwnedFd) -> io::Result<Channel> {
        check(&fd, SockType::Stream, "SOCK_STREAM")?;
        Ok(Channel::new(fd, Some(Stream::default())))
    }

    /// Whether the process that made the other end is of this user or of root, and so could do all that the peer is let do anyway.
    pub fn has_trusted_peer(&self) -> io::Result<bool> {
        Ok(is_trusted(peer_of(&self.socket)?.user, effective_user()))
    }

    /// How frames travel here.
    pub fn transport(&self) -> Transport {
        if self.stream.is_some() { Transport::Stream } else { Transport::Packets }
    }

    /// Sends one packet with copies of `fds`. Blocks while the peer's queue is full, unless the channel is
    /// nonblocking (`WouldBlock`; what a stream takes in part is sent, and its rest kept for [`Channel::flush`]). A peer that closed its end is `BrokenPipe`; no signal is raised. A stream carries no
    /// descriptors, and each packet must be a frame.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if let Some(stream) = &self.stream {
            return match fds {
                [] => stream.send(&self.socket, bytes),
                _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a stream carries no descriptors")),
            };
        }
        if fds.len() > FDS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
        }
        loop {
            match send(&self.socket, bytes, fds, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                // Tells once that the peer closed with packets unread; the next call tells the lasting truth, EPIPE.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends the rest of a packet of which a nonblocking stream took a part; `WouldBlock` if there still is a rest.
    pub fn flush(&self) -> io::Result<()> {
        self.stream.as_ref().map_or(Ok(()), |stream| stream.flush(&self.socket))
    }

    /// Receives one packet, or `None` when the peer has closed its end and every packet has been taken. (An empty
    /// packet looks the same, and no frame is empty.) Blocks, unless the channel is nonblocking (`WouldBlock`).
    /// `buffer` is made as long as the packet, at most `FRAME_MAX`. From a stream comes one frame, by the length in its
    /// header. After a header that cannot be right nothing can be found in the stream any more: it is given as it is (with
    /// `truncated` if it announces too much), the peer sees the end, and so does the next call.
    pub fn recv(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Packet>> {
        if let Some(stream) = &self.stream {
            return stream.recv(&self.socket, buffer);
        }
        let _taking = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        // A buffer for the largest packet would cost a new process more page faults than all else that it receives.
        buffer.resize(self.next_len()?.min(FRAME_MAX), 0);
        loop {
            match receive(&self.socket, buffer, FDS_MAX) {
                Ok(Received { bytes: 0, .. }) => return Ok(None),
                Ok(Received { bytes, fds, is_cut, is_stripped, .. }) => {
                    let len = bytes.min(buffer.len());
                    return Ok(Some(Packet { len, fds, truncated: is_cut, fds_lost: is_stripped }));
                }
                // Comes once, before packets that are still queued, when the peer closed without reading all of ours.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The length of the next packet; 0 at the end.
    fn next_len(&self) -> io::Result<usize> {
        loop {
            match recv(&self.socket, &mut [0; 0], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
                Ok(length) => return Ok(length),
                // See `recv`.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes every holder of this end nonblocking, or blocking again: the flag belongs to the socket, not to the
    /// descriptor.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(set_nonblocking(&self.socket, nonblocking)?)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.socket
    }
}

fn check(fd: &OwnedFd, wanted: SockType, name: &str) -> io::Result<()> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what);
    match family_of(fd) {
        Ok(Some(AddressFamily::Unix)) => {}
        Ok(_) => return Err(refused("the descriptor is a socket, but not a unix socket")),
        Err(Errno::ENOTSOCK) => return Err(refused("the descriptor is not a socket")),
        Err(error) => return Err(error.into()),
    }
    if kind_of(fd)? != Some(wanted) {
        return Err(refused(&format!("the descriptor is a unix socket, but not of type {name}")));
    }
    Ok(())
}

fn is_trusted(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
