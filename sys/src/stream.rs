//! Frames on a byte stream, delimited by the length in their headers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use handoff_protocol::frame::{self, FRAME_MAX, HEADER_LEN, MAGIC};

use super::channel::Packet;
use super::errno::Errno;
use super::socket::{MsgFlags, Shutdown, recv, send, shutdown};

/// The received part of an incomplete frame, and whether the stream is unreadable from here on.
#[derive(Debug, Default)]
struct PartialFrame {
    bytes: Vec<u8>,
    is_lost: bool,
}

/// The state of one end of a stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    partial: Mutex<PartialFrame>,
    /// The unsent rest of a frame that the peer's queue accepted in part.
    unsent: Mutex<Vec<u8>>,
}

/// What the received bytes of a frame say about the rest.
enum FrameProgress {
    /// Number of bytes to read before the next decision.
    Missing(usize),
    /// The frame is complete.
    Whole,
    /// It does not begin like a frame.
    Foreign,
    /// Its announced length exceeds the maximum of a frame.
    TooLong,
}

fn next(bytes: &[u8]) -> FrameProgress {
    if bytes.len() < HEADER_LEN {
        return FrameProgress::Missing(HEADER_LEN - bytes.len());
    }
    if bytes[..MAGIC.len()] != MAGIC {
        return FrameProgress::Foreign;
    }
    match HEADER_LEN.saturating_add(frame::announced(bytes)) {
        whole if whole > FRAME_MAX => FrameProgress::TooLong,
        whole if whole > bytes.len() => FrameProgress::Missing(whole - bytes.len()),
        _ => FrameProgress::Whole,
    }
}

impl Stream {
    /// See [`super::channel::Channel::send`]. Keeps what a nonblocking stream does not accept of a frame and sends it
    /// before the next frame; otherwise the peer would lose the frame boundaries.
    pub(super) fn send(&self, socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        let mut rest = locked(&self.unsent);
        send_unsent(socket, &mut rest)?;
        let sent = send_some(socket, bytes)?;
        if sent == 0 && !bytes.is_empty() {
            return Err(Errno::EAGAIN.into());
        }
        rest.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// See [`super::channel::Channel::flush`].
    pub(super) fn flush(&self, socket: &OwnedFd) -> io::Result<()> {
        send_unsent(socket, &mut locked(&self.unsent))
    }

    /// See [`super::channel::Channel::recv`]. Never reads beyond the frame: the socket stays readable if data is left.
    /// Returns a frame that the end cuts short as it is, so that decoding reports a specific error.
    pub(super) fn recv(&self, socket: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<Option<Packet>> {
        let mut partial = locked(&self.partial);
        loop {
            let (truncated, is_lost) = match next(&partial.bytes) {
                _ if partial.is_lost => return Ok(None),
                FrameProgress::Whole => (false, false),
                FrameProgress::Foreign => (false, true),
                FrameProgress::TooLong => (true, true),
                FrameProgress::Missing(missing) => match fill(socket, &mut partial.bytes, missing)? {
                    0 if partial.bytes.is_empty() => return Ok(None),
                    0 => (false, true),
                    _ => continue,
                },
            };
            if is_lost {
                partial.is_lost = true;
                let _ = shutdown(socket, Shutdown::Both);
            }
            *buffer = std::mem::take(&mut partial.bytes);
            return Ok(Some(Packet { len: buffer.len(), fds: Vec::new(), truncated, fds_lost: false }));
        }
    }
}

fn send_unsent(socket: &OwnedFd, rest: &mut Vec<u8>) -> io::Result<()> {
    let sent = send_some(socket, rest)?;
    rest.drain(..sent);
    if rest.is_empty() { Ok(()) } else { Err(Errno::EAGAIN.into()) }
}

/// Sends as much as the peer's queue accepts.
fn send_some(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match send(socket, &bytes[sent..], MsgFlags::MSG_NOSIGNAL) {
            Ok(more) => sent += more,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(Errno::ECONNRESET) => return Err(Errno::EPIPE.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

/// Reads up to `count` more bytes; 0 at the end. The kernel closes descriptors that the peer sends.
fn fill(socket: &OwnedFd, bytes: &mut Vec<u8>, count: usize) -> io::Result<usize> {
    let before = bytes.len();
    bytes.resize(before + count, 0);
    let read = loop {
        match recv(socket, &mut bytes[before..], MsgFlags::empty()) {
            // Comes once, when the peer closed without reading all of ours; earlier data from the peer can still be
            // read.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            read => break read,
        }
    };
    bytes.truncate(before + *read.as_ref().unwrap_or(&0));
    Ok(read?)
}

/// Ignores poisoning: the data is consistent after every statement, even if another thread has panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::channel::Channel;
    use super::super::wire::{WireError, recv_message, send_message};
    use super::*;
    use handoff_protocol::frame::FrameError;
    use handoff_protocol::ids::{Generation, HandoffId};
    use handoff_protocol::message::{Done, FromService, Mode, Progress, ToService, Welcome};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Channel, Channel) {
        let (ours, theirs) = Channel::stream_pair().unwrap();
        (ours, Channel::from_stream(theirs).unwrap())
    }

    /// The supervisor's end, nonblocking, and the raw socket of a peer.
    fn bare() -> (Channel, UnixStream) {
        let (ours, theirs) = Channel::stream_pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs.into())
    }

    fn progress(note: &str) -> (FromService, Vec<u8>) {
        let message = FromService::Progress(Progress { note: note.to_owned() });
        let bytes = frame::encode(1, HandoffId::NIL, &message).unwrap();
        (message, bytes)
    }

    /// The next message of a peer that has just closed. Until a child of another test executes its program, it holds the peer open.
    fn last_of(channel: &Channel) -> Result<bool, WireError> {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            assert!(std::time::Instant::now() < until, "the peer has not closed");
            match recv_message::<FromService>(channel, 1) {
                Err(error) if error.would_block() => {}
                found => return found.map(|message| message.is_some()),
            }
        }
    }

    #[test]
    fn frames_that_come_together_or_in_pieces_are_cut_by_their_length() {
        use std::io::Write;
        let (ours, mut theirs) = bare();
        let (long, bytes) = progress(&"x".repeat(60_000));
        let (short, more) = progress("");
        let receive = || recv_message::<FromService>(&ours, 1);
        for piece in [&bytes[..1], &bytes[1..36], &bytes[36..20_000]] {
            theirs.write_all(piece).unwrap();
            assert!(receive().unwrap_err().would_block());
        }
        theirs.write_all(&bytes[20_000..]).unwrap();
        theirs.write_all(&[more.clone(), more[..30].to_vec()].concat()).unwrap();
        assert_eq!(receive().unwrap().unwrap().1, long);
        assert_eq!(receive().unwrap().unwrap().1, short);
        assert!(receive().unwrap_err().would_block());
        drop(theirs);
        assert!(matches!(last_of(&ours).unwrap_err(), WireError::Frame(FrameError::Short { length: 30 })));
        assert!(receive().unwrap().is_none());
    }

    #[test]
    fn a_welcome_tells_names_and_no_descriptors() {
        let (a, b) = pair();
        let message = ToService::Welcome(Welcome {
            version: 1,
            service: "s3".parse().unwrap(),
            generation: Generation(7),
            mode: Mode::Overlap,
            listeners: vec!["main".parse().unwrap()],
            lease_ms: 1000,
        });
        send_message(&a, 1, HandoffId::NIL, &message, &[a.as_fd()]).unwrap();
        let (_, found, fds) = recv_message::<ToService>(&b, 0).unwrap().unwrap();
        assert_eq!((found, fds.len()), (message.clone(), 0));
        send_message(&a, 1, HandoffId::NIL, &message, &[a.as_fd()]).unwrap();
        let mut buffer = Vec::new();
        b.recv(&mut buffer).unwrap().unwrap();
        assert_eq!(buffer[8..10], [0, 0]);
    }

    #[test]
    fn after_a_header_that_cannot_be_right_the_stream_is_closed() {
        use std::io::{Read, Write};
        let too_long = [&b"hoff\x01\x00\x03\0\0\0\0\0"[..], &65_501u32.to_le_bytes(), &[0; 20]].concat();
        let huge = [&b"hoff\x01\x00\x03\0\0\0\0\0"[..], &u32::MAX.to_le_bytes(), &[0; 20]].concat();
        let foreign = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n".to_vec();
        for (bytes, expected) in
            [(too_long, FrameError::TooLong), (huge, FrameError::TooLong), (foreign, FrameError::Magic)]
        {
            let (ours, mut theirs) = bare();
            theirs.write_all(&bytes).unwrap();
            theirs.write_all(&progress("").1).unwrap();
            match recv_message::<FromService>(&ours, 1).unwrap_err() {
                WireError::Frame(found) => assert_eq!(found, expected),
                other => panic!("{other}"),
            }
            assert!(recv_message::<FromService>(&ours, 1).unwrap().is_none());
            assert!(matches!(theirs.read(&mut [0; 1]), Ok(0) | Err(_)), "the peer sees the end");
        }
    }

    #[test]
    fn a_peer_that_is_slow_to_read_is_not_sent_half_a_frame_and_then_another() {
        use std::io::Read;
        let (ours, mut theirs) = bare();
        let (message, bytes) = progress(&"x".repeat(50_000));
        let send = || send_message(&ours, 1, HandoffId::NIL, &message, &[]);
        let sent = std::iter::repeat_with(send).take_while(Result::is_ok).count();
        assert!(send().unwrap_err().would_block() && ours.flush().is_err());
        let mut read = vec![0; bytes.len()];
        for _ in 0..sent {
            let _ = ours.flush();
            theirs.read_exact(&mut read).unwrap();
            assert_eq!(read, bytes);
        }
        ours.flush().unwrap();
        send().unwrap();
        theirs.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
    }

    #[test]
    fn the_end_is_the_end_and_descriptors_are_refused() {
        let (a, b) = pair();
        assert_eq!(a.send(b"x", &[b.as_fd()]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        send_message(&a, 1, HandoffId::NIL, &FromService::Drained(Done {}), &[]).unwrap();
        drop(a);
        assert!(recv_message::<FromService>(&b, 1).unwrap().is_some());
        assert!(recv_message::<FromService>(&b, 1).unwrap().is_none());
        assert_eq!(b.send(b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (_, packets) = Channel::pair().unwrap();
        assert!(Channel::from_stream(packets).unwrap_err().to_string().contains("SOCK_STREAM"));
    }
}
