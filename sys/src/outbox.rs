//! Messages that a nonblocking channel cannot accept yet.
//!
//! Invariant: messages leave in the order of `send`. While one waits, all later ones wait behind it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use handoff_protocol::frame::{Message, Transport};
use handoff_protocol::ids::HandoffId;
use handoff_protocol::state;

use super::channel::Channel;
use super::errno::Errno;
use super::poll::{PollFlags, poll_one};
use super::wire::{WireError, encode};

/// Maximum size of queued messages, in bytes: one complete state transfer.
const BYTES_MAX: usize = state::CONTENT_MAX as usize;

/// The queued messages of one channel.
#[derive(Debug)]
pub struct Outbox {
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    bytes: usize,
    fds: usize,
    fds_max: usize,
}

impl Outbox {
    /// Creates an empty queue for messages with up to `fds_max` queued descriptors in total.
    pub fn new(fds_max: usize) -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, fds: 0, fds_max }
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Discards the queue, once the channel is gone.
    pub fn clear(&mut self) {
        *self = Self::new(self.fds_max);
    }

    /// Sends a message with copies of `fds`, or queues it for [`Outbox::flush`]. `WouldBlock` if the queue is full.
    pub fn send<M: Message>(
        &mut self,
        channel: &Channel,
        version: u16,
        id: HandoffId,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let frame = encode(channel.transport(), version, id, message, fds.len())?;
        let fds = if channel.transport() == Transport::Stream { &[] } else { fds };
        if self.flush(channel)? {
            match channel.send(&frame, fds) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Ok(sent?),
            }
        }
        if self.bytes + frame.len() > BYTES_MAX || self.fds + fds.len() > self.fds_max {
            return Err(WireError::Io(Errno::EAGAIN.into()));
        }
        let fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<_>>>()?;
        self.bytes += frame.len();
        self.fds += fds.len();
        self.waiting.push_back((frame, fds));
        Ok(())
    }

    /// Sends as many queued messages as the channel accepts. Returns whether the queue is empty.
    pub fn flush(&mut self, channel: &Channel) -> io::Result<bool> {
        while let Some((frame, fds)) = self.waiting.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match channel.send(frame, &borrowed) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            self.bytes -= frame.len();
            self.fds -= fds.len();
            self.waiting.pop_front();
        }
        match channel.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            flushed => flushed.map(|()| true),
        }
    }

    /// Like [`Outbox::flush`], but waits for room until the deadline. Blocks.
    pub fn flush_by(&mut self, channel: &Channel, until: Instant) -> io::Result<bool> {
        while !self.flush(channel)? {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // The only error is EINTR.
            let _ = poll_one(channel, PollFlags::POLLOUT, Some(left));
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::recv_message;
    use handoff_protocol::message::{FromService, Progress};
    use std::time::Duration;

    const COUNT: usize = 5_000;

    fn message(n: usize) -> FromService {
        FromService::Progress(Progress { note: format!("{n:0100}") })
    }

    #[test]
    fn a_burst_arrives_whole_and_in_order_over_both_kinds_of_channel() {
        for is_stream in [false, true] {
            let (ours, theirs) = if is_stream { Channel::stream_pair() } else { Channel::pair() }.unwrap();
            let theirs =
                if is_stream { Channel::from_stream(theirs) } else { Channel::from_fd(theirs) }.unwrap();
            ours.set_nonblocking(true).unwrap();
            let mut outbox = Outbox::new(0);
            for n in 0..COUNT {
                outbox.send(&ours, 1, HandoffId::NIL, &message(n), &[]).unwrap();
            }
            assert!(!outbox.is_empty(), "it is more than there is room for");
            let reader = std::thread::spawn(move || {
                for n in 0..COUNT {
                    let (_, found, _) = recv_message::<FromService>(&theirs, 1).unwrap().unwrap();
                    assert_eq!(found, message(n));
                }
            });
            assert!(outbox.flush_by(&ours, Instant::now() + Duration::from_secs(30)).unwrap());
            reader.join().unwrap();
        }
    }

    #[test]
    fn there_is_an_end_to_what_waits() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut outbox = Outbox::new(0);
        let long = FromService::Progress(Progress { note: "x".repeat(60_000) });
        let refused = (0..2_000).find_map(|_| outbox.send(&ours, 1, HandoffId::NIL, &long, &[]).err());
        assert!(refused.unwrap().would_block());
        assert!(outbox.bytes <= BYTES_MAX && outbox.bytes > BYTES_MAX / 2);
        assert!(!outbox.flush_by(&ours, Instant::now() + Duration::from_millis(20)).unwrap());
        drop(theirs);
        assert!(outbox.flush(&ours).is_err());
        outbox.clear();
        assert!(outbox.is_empty());
    }
}
