//! Messages over a channel: one message is one frame is one packet.
//!
//! A stream carries no descriptors: there, those of a message are the ones that the process has inherited.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use handoff_protocol::frame::{self, FrameError, Message, Transport};
use handoff_protocol::ids::HandoffId;

use super::channel::Channel;

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed. `WouldBlock` on a nonblocking channel: try later.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are not a valid frame of this direction and version.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl WireError {
    /// Whether a nonblocking channel was not ready. Nothing was sent or received.
    pub fn would_block(&self) -> bool {
        matches!(self, WireError::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Sends one message with copies of `fds`, as many as the message declares. Blocks like [`Channel::send`].
pub fn send_message<M: Message>(
    channel: &Channel,
    version: u16,
    id: HandoffId,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    let frame = encode(channel.transport(), version, id, message, fds.len())?;
    let fds = if channel.transport() == Transport::Stream { &[] } else { fds };
    Ok(channel.send(&frame, fds)?)
}

/// Encodes a message that travels with `fds` descriptors.
pub(super) fn encode<M: Message>(
    transport: Transport,
    version: u16,
    id: HandoffId,
    message: &M,
    fds: usize,
) -> Result<Vec<u8>, FrameError> {
    let expected = message.fd_count();
    if fds != expected {
        return Err(FrameError::FdCount { expected, found: fds });
    }
    match transport {
        Transport::Packets => frame::encode(version, id, message),
        Transport::Stream => frame::encode_for_stream(version, id, message),
    }
}

/// Receives one message. `None` when the peer has closed its end. `agreed` is the agreed version, or
/// [`handoff_protocol::version::UNAGREED`] before the agreement. Blocks like [`Channel::recv`]. After a frame error the
/// packet is discarded, and its descriptors are closed.
pub fn recv_message<M: Message>(
    channel: &Channel,
    agreed: u16,
) -> Result<Option<(HandoffId, M, Vec<OwnedFd>)>, WireError> {
    let mut buffer = Vec::new();
    let Some(packet) = channel.recv(&mut buffer)? else { return Ok(None) };
    if packet.truncated {
        return Err(FrameError::TooLong.into());
    }
    if packet.fds_lost {
        return Err(FrameError::FdsLost.into());
    }
    let bytes = &buffer[..packet.len];
    let (id, message) = match channel.transport() {
        Transport::Packets => frame::decode(bytes, packet.fds.len(), agreed)?,
        Transport::Stream => frame::decode_from_stream(bytes, agreed)?,
    };
    Ok(Some((id, message, packet.fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_protocol::ids::Generation;
    use handoff_protocol::message::{Done, FromService, Mode, ToService, Welcome};
    use std::os::fd::AsFd;

    fn welcome(names: &[&str]) -> ToService {
        ToService::Welcome(Welcome {
            version: 1,
            service: "s3".parse().unwrap(),
            generation: Generation(7),
            mode: Mode::Exclusive,
            listeners: names.iter().map(|name| name.parse().unwrap()).collect(),
            lease_ms: 1000,
        })
    }

    #[test]
    fn a_message_travels_with_its_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let b = Channel::from_fd(b).unwrap();
        let sent = welcome(&["main", "admin"]);
        let id = HandoffId::from_bytes([9; 16]);
        send_message(&a, 1, id, &sent, &[a.as_fd(), a.as_fd()]).unwrap();
        let (found, message, fds) = recv_message::<ToService>(&b, 0).unwrap().unwrap();
        assert_eq!((found, message, fds.len()), (id, sent, 2));
        drop((a, fds));
        assert!(recv_message::<ToService>(&b, 0).unwrap().is_none());
    }

    #[test]
    fn errors_have_names() {
        let (a, b) = Channel::pair().unwrap();
        let b = Channel::from_fd(b).unwrap();
        let unsent = send_message(&a, 1, HandoffId::NIL, &welcome(&["main"]), &[]).unwrap_err();
        assert!(matches!(unsent, WireError::Frame(FrameError::FdCount { expected: 1, found: 0 })));

        let receive = || recv_message::<FromService>(&b, 1).unwrap_err();
        a.send(&[0; frame::FRAME_MAX + 1], &[]).unwrap();
        assert!(matches!(receive(), WireError::Frame(FrameError::TooLong)));
        a.send(b"GET / HTTP/1.1\r\n\r\nand some more bytes", &[]).unwrap();
        assert!(matches!(receive(), WireError::Frame(FrameError::Magic)));
        let prepared = frame::encode(1, HandoffId::NIL, &FromService::Prepared(Done {})).unwrap();
        a.send(&prepared, &[a.as_fd()]).unwrap();
        assert!(matches!(receive(), WireError::Frame(FrameError::FdCount { expected: 0, found: 1 })));
        b.set_nonblocking(true).unwrap();
        assert!(receive().would_block());
    }
}
