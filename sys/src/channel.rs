//! A channel: a unix socket of type `SOCK_SEQPACKET`. A packet arrives whole or not at all, and can carry descriptors.
//!
//! Some languages have no such sockets. For their services a channel can be of type `SOCK_STREAM`: the length in each
//! frame header delimits the packets, and they carry no descriptors.

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

/// One end of a channel. Several threads may use it at once: each packet is sent and received whole.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// Held from reading the length of the next packet until it is received. Otherwise another thread could take that
    /// packet, and the next, longer one would be truncated.
    receiving: Mutex<()>,
    /// Set for `SOCK_STREAM` only.
    stream: Option<Stream>,
}

/// What arrived with one packet. Its bytes are at the start of the buffer passed to [`Channel::recv`].
#[derive(Debug)]
pub struct Packet {
    /// Number of bytes stored in the buffer.
    pub len: usize,
    /// The received descriptors, all close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The packet was longer than the buffer; the rest is lost (`MSG_TRUNC`).
    pub truncated: bool,
    /// The kernel dropped descriptors (`MSG_CTRUNC`).
    pub fds_lost: bool,
}

impl Channel {
    fn new(socket: OwnedFd, stream: Option<Stream>) -> Channel {
        Channel { socket, receiving: Mutex::default(), stream }
    }

    /// Creates a connected pair, both ends blocking and close-on-exec. The second end is for another process.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = pair(SockType::SeqPacket)?;
        Ok((Channel::new(ours, None), theirs))
    }

    /// Like [`Channel::pair`], of type `SOCK_STREAM`.
    pub fn stream_pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = pair(SockType::Stream)?;
        Ok((Channel::new(ours, Some(Stream::default())), theirs))
    }

    /// Wraps a connected socket. `InvalidInput` unless it is a unix socket of type `SOCK_SEQPACKET`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Channel> {
        check(&fd, SockType::SeqPacket, "SOCK_SEQPACKET")?;
        Ok(Channel::new(fd, None))
    }

    /// Wraps a connected socket. `InvalidInput` unless it is a unix socket of type `SOCK_STREAM`.
    pub fn from_stream(fd: OwnedFd) -> io::Result<Channel> {
        check(&fd, SockType::Stream, "SOCK_STREAM")?;
        Ok(Channel::new(fd, Some(Stream::default())))
    }

    /// Whether the peer process runs as root or as this process's user. Such a peer gains nothing from the channel that
    /// it could not do anyway.
    pub fn has_trusted_peer(&self) -> io::Result<bool> {
        Ok(is_trusted(peer_of(&self.socket)?.user, effective_user()))
    }

    /// How this channel transports frames.
    pub fn transport(&self) -> Transport {
        if self.stream.is_some() { Transport::Stream } else { Transport::Packets }
    }

    /// Sends one packet with copies of `fds`. Blocks while the peer's queue is full; a nonblocking channel returns
    /// `WouldBlock` instead. If a nonblocking stream accepts a part, the rest is kept for [`Channel::flush`].
    ///
    /// `BrokenPipe` if the peer has closed its end; raises no signal. A stream carries no descriptors, and each packet
    /// must be a frame.
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
                // ECONNRESET comes once if the peer closed with unread packets. The retry returns the permanent error,
                // EPIPE.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends the rest of a packet that a nonblocking stream accepted in part. `WouldBlock` while a rest remains.
    pub fn flush(&self) -> io::Result<()> {
        self.stream.as_ref().map_or(Ok(()), |stream| stream.flush(&self.socket))
    }

    /// Receives one packet. `None` once the peer has closed its end and all packets have been received. (An empty
    /// packet looks the same; no frame is empty.) Blocks; a nonblocking channel returns `WouldBlock` instead. Resizes
    /// `buffer` to the packet, at most `FRAME_MAX`.
    ///
    /// From a stream it reads one frame, by the length in its header. An invalid header makes the rest of the stream
    /// unreadable: `recv` returns the bytes read so far (with `truncated` if the announced length is too large), the
    /// peer sees the end, and the next call returns `None`.
    pub fn recv(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Packet>> {
        if let Some(stream) = &self.stream {
            return stream.recv(&self.socket, buffer);
        }
        let _taking = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        // A buffer for the largest packet would cost a new process more page faults than everything else it receives.
        buffer.resize(self.next_len()?.min(FRAME_MAX), 0);
        loop {
            match receive(&self.socket, buffer, FDS_MAX) {
                Ok(Received { bytes: 0, .. }) => return Ok(None),
                Ok(Received { bytes, fds, is_cut, is_stripped, .. }) => {
                    let len = bytes.min(buffer.len());
                    return Ok(Some(Packet { len, fds, truncated: is_cut, fds_lost: is_stripped }));
                }
                // Comes once, ahead of packets still queued, when the peer closed without reading all of ours.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The length of the next packet in bytes; 0 at the end.
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

    /// Makes this end nonblocking or blocking for every holder: the flag belongs to the socket, not to the descriptor.
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
