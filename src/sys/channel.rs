//! A channel: a unix socket of type `SOCK_SEQPACKET`, on which a packet is whole or absent, and carries descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use handoff_protocol::frame::{FDS_MAX, FRAME_MAX};
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair, sockopt,
};

const CONTROL_LEN: usize = cmsg_space!(ScmRights(FDS_MAX));

/// One end of a channel. It may be used from several threads at once: each packet is sent and received whole.
#[derive(Debug)]
pub struct Channel(OwnedFd);

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
        Ok((Channel(ours), theirs))
    }

    /// Takes a connected socket. Anything but a unix socket of type `SOCK_SEQPACKET` is `InvalidInput`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Channel> {
        let refused = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        match sockopt::socket_domain(&fd) {
            Ok(AddressFamily::UNIX) => {}
            Ok(_) => return Err(refused("the descriptor is a socket, but not a unix socket")),
            Err(Errno::NOTSOCK) => return Err(refused("the descriptor is not a socket")),
            Err(error) => return Err(error.into()),
        }
        if sockopt::socket_type(&fd)? != SocketType::SEQPACKET {
            return Err(refused("the descriptor is a unix socket, but not of type SOCK_SEQPACKET"));
        }
        Ok(Channel(fd))
    }

    /// Sends one packet with copies of `fds`. Blocks while the peer's queue is full, unless the channel is
    /// nonblocking (`WouldBlock`). A peer that closed its end is `BrokenPipe`; no signal is raised.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "too many descriptors for one packet",
                ));
            }
            match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                // Tells once that the peer closed with packets unread; the next call tells the lasting truth, EPIPE.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives one packet, or `None` when the peer has closed its end and every packet has been taken. (An empty
    /// packet looks the same, and no frame is empty.) Blocks, unless the channel is nonblocking (`WouldBlock`).
    /// `buffer` is made as long as the packet, at most `FRAME_MAX`.
    pub fn recv(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Packet>> {
        // A buffer for the largest packet would cost a new process more page faults than all else that it receives.
        buffer.resize(self.next_len()?.min(FRAME_MAX), 0);
        let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(buffer)];
            match recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
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
            match recv(&self.0, &mut [0; 0], RecvFlags::PEEK | RecvFlags::TRUNC) {
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
        Ok(rustix::io::ioctl_fionbio(&self.0, nonblocking)?)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.0
    }
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
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_getfd};
    use std::fs::File;
    use std::io::Read;

    fn pair() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel::from_fd(theirs).unwrap())
    }

    fn recv(channel: &Channel) -> Option<(Vec<u8>, Packet)> {
        let mut buffer = Vec::new();
        let packet = channel.recv(&mut buffer).unwrap()?;
        Some((buffer[..packet.len].to_vec(), packet))
    }

    #[test]
    fn packets_stay_whole_and_in_order() {
        let (a, b) = pair();
        a.send(b"one", &[]).unwrap();
        a.send(b"two", &[]).unwrap();
        assert_eq!(recv(&b).unwrap().0, b"one");
        assert_eq!(recv(&b).unwrap().0, b"two");
        drop(a);
        assert!(recv(&b).is_none());
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_allows_arrive_close_on_exec() {
        let (a, b) = pair();
        let file = File::open("/proc/self/comm").unwrap();
        a.send(b"x", &vec![file.as_fd(); FDS_MAX]).unwrap();
        let (_, packet) = recv(&b).unwrap();
        assert_eq!(packet.fds.len(), FDS_MAX);
        assert!(!packet.fds_lost && !packet.truncated);
        assert!(packet.fds.iter().all(|fd| fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC)));
        let mut text = String::new();
        File::from(packet.fds.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        assert!(a.send(b"x", &vec![file.as_fd(); FDS_MAX + 1]).is_err());
    }

    #[test]
    fn a_packet_over_the_limit_is_marked() {
        let (a, b) = pair();
        a.send(&vec![7; FRAME_MAX], &[]).unwrap();
        a.send(&vec![7; FRAME_MAX + 1], &[]).unwrap();
        assert!(!recv(&b).unwrap().1.truncated);
        let (bytes, packet) = recv(&b).unwrap();
        assert!(packet.truncated);
        assert_eq!(bytes.len(), FRAME_MAX);
    }

    #[test]
    fn what_a_peer_sent_before_it_closed_is_read_although_it_left_ours_unread() {
        let (a, b) = pair();
        b.send(b"never read", &[]).unwrap();
        a.send(b"last words", &[]).unwrap();
        drop(a);
        assert_eq!(recv(&b).unwrap().0, b"last words");
        assert!(recv(&b).is_none());
        assert_eq!(b.send(b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_peer_that_closed_with_packets_unread_is_a_broken_pipe_at_once() {
        let (a, b) = pair();
        b.send(b"never read", &[]).unwrap();
        drop(a);
        assert_eq!(b.send(b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn nonblocking_says_so() {
        let (a, b) = pair();
        b.set_nonblocking(true).unwrap();
        assert_eq!(b.recv(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        a.set_nonblocking(true).unwrap();
        let full = std::iter::repeat_with(|| a.send(&[0; FRAME_MAX], &[])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn only_a_seqpacket_socket_is_taken() {
        let file = File::open("/dev/null").unwrap();
        assert!(Channel::from_fd(file.into()).unwrap_err().to_string().contains("not a socket"));
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Channel::from_fd(stream.into()).unwrap_err().to_string().contains("SOCK_SEQPACKET"));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(Channel::from_fd(tcp.into()).unwrap_err().to_string().contains("not a unix socket"));
    }
}
