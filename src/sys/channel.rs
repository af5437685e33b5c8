//! A channel: a unix socket of type `SOCK_SEQPACKET`, on which a packet is whole or absent, and carries descriptors. For
//! services in languages that have no such sockets it may be of type `SOCK_STREAM`: then packets are cut by the length in
//! their header, and carry no descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use handoff_protocol::frame::{FDS_MAX, FRAME_MAX, Transport};
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair, sockopt,
};

use super::stream::Stream;

const CONTROL_LEN: usize = cmsg_space!(ScmRights(FDS_MAX));

/// One end of a channel. It may be used from several threads at once: each packet is sent and received whole.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
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
    /// Makes a connected pair, both ends blocking and close-on-exec. The second is for another process.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel { socket: ours, stream: None }, theirs))
    }

    /// Like [`Channel::pair`], of type `SOCK_STREAM`.
    pub fn stream_pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        Ok((Channel { socket: ours, stream: Some(Stream::default()) }, theirs))
    }

    /// Takes a connected socket. Anything but a unix socket of type `SOCK_SEQPACKET` is `InvalidInput`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Channel> {
        check(&fd, SocketType::SEQPACKET, "SOCK_SEQPACKET")?;
        Ok(Channel { socket: fd, stream: None })
    }

    /// Takes a connected socket. Anything but a unix socket of type `SOCK_STREAM` is `InvalidInput`.
    pub fn from_stream(fd: OwnedFd) -> io::Result<Channel> {
        check(&fd, SocketType::STREAM, "SOCK_STREAM")?;
        Ok(Channel { socket: fd, stream: Some(Stream::default()) })
    }

    /// How frames travel here.
    pub fn transport(&self) -> Transport {
        if self.stream.is_some() { Transport::Stream } else { Transport::Packets }
    }

    /// Sends one packet with copies of `fds`. Blocks while the peer's queue is full, unless the channel is
    /// nonblocking (`WouldBlock`). A peer that closed its end is `BrokenPipe`; no signal is raised. A stream carries no
    /// descriptors, and each packet must be a frame.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if let Some(stream) = &self.stream {
            return match fds {
                [] => stream.send(&self.socket, bytes),
                _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a stream carries no descriptors")),
            };
        }
        let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "too many descriptors for one packet",
                ));
            }
            match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                // Tells once that the peer closed with packets unread; the next call tells the lasting truth, EPIPE.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
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
        // A buffer for the largest packet would cost a new process more page faults than all else that it receives.
        buffer.resize(self.next_len()?.min(FRAME_MAX), 0);
        let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(buffer)];
            match recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes == 0 => return Ok(None),
                Ok(received) => {
                    return Ok(Some(Packet {
                        len: received.bytes.min(buffer.len()),
                        fds: take_fds(&mut control),
                        truncated: received.flags.contains(ReturnFlags::TRUNC),
                        fds_lost: received.flags.contains(ReturnFlags::CTRUNC),
                    }));
                }
                // Comes once, before packets that are still queued, when the peer closed without reading all of ours.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The length of the next packet; 0 at the end.
    fn next_len(&self) -> io::Result<usize> {
        loop {
            match recv(&self.socket, &mut [0; 0], RecvFlags::PEEK | RecvFlags::TRUNC) {
                Ok((_, length)) => return Ok(length),
                // See `recv`.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes every holder of this end nonblocking, or blocking again: the flag belongs to the socket, not to the
    /// descriptor.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.socket, nonblocking)?)
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

fn check(fd: &OwnedFd, wanted: SocketType, name: &str) -> io::Result<()> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what);
    match sockopt::socket_domain(fd) {
        Ok(AddressFamily::UNIX) => {}
        Ok(_) => return Err(refused("the descriptor is a socket, but not a unix socket")),
        Err(Errno::NOTSOCK) => return Err(refused("the descriptor is not a socket")),
        Err(error) => return Err(error.into()),
    }
    if sockopt::socket_type(fd)? != wanted {
        return Err(refused(&format!("the descriptor is a unix socket, but not of type {name}")));
    }
    Ok(())
}

fn take_fds(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    fds
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
