//! The read end of a log pipe: reads bytes, and passes on complete lines with their label.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use super::LOG_PREFIX;
use super::writer::Writer;
use crate::journal::unix_ms;
use crate::log_record::{Label, append, time_text};
use crate::sys::descriptor::{read, set_nonblocking};
use crate::sys::errno::{Errno, retry};
use crate::sys::log_pipe::{PID_MARK_BYTES, identity, marked_pid};

/// Longer lines are broken after this many bytes.
const LINE_MAX_BYTES: usize = 64 << 10;

/// Bytes per read: the default capacity of a pipe.
const READ_BYTES: usize = 64 << 10;

/// Memory for a partial line is released if it exceeds this.
const SMALL_BYTES: usize = 1 << 10;

/// Lines are passed on when they have this length together, since short lines grow much by their labels.
const PASSED_ON_BYTES: usize = 256 << 10;

/// One output stream of a process of a service.
#[derive(Debug)]
pub(super) struct Pipe {
    fd: OwnedFd,
    identity: (u64, u64),
    log: Rc<Writer>,
    label: Label,
    /// The text of the label.
    prefix: String,
    /// Whether nothing was read yet, so that a pid mark may come.
    is_unread: bool,
    /// A partial line. At most [`LINE_MAX_BYTES`].
    begun: Vec<u8>,
}

/// The result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PipeRead {
    /// Number of bytes.
    Bytes(usize),
    /// No data at the moment.
    Nothing,
    /// All writers are gone, or the pipe is broken.
    End,
}

/// The memory for reads. All pipes share it.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// Lines with their labels.
    lines: Vec<u8>,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; LINE_MAX_BYTES + READ_BYTES], lines: Vec::new() }
    }
}

impl Pipe {
    /// Wraps the read end of a pipe, and makes it nonblocking.
    pub(super) fn new(fd: OwnedFd, log: Rc<Writer>, label: Label) -> io::Result<Self> {
        set_nonblocking(&fd, true)?;
        let prefix = label.to_text();
        Ok(Self { identity: identity(&fd)?, fd, log, label, prefix, is_unread: true, begun: Vec::new() })
    }

    /// The identity of the pipe.
    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    pub(super) fn log(&self) -> &Rc<Writer> {
        &self.log
    }

    /// Adds what is known now and was not before.
    pub(super) fn learn(&mut self, label: &Label) {
        let known = &mut self.label;
        known.generation = known.generation.or(label.generation);
        known.pid = known.pid.or(label.pid);
        known.stream = known.stream.or(label.stream);
        self.prefix = known.to_text();
    }

    /// Reads once, and passes complete lines to the log.
    pub(super) fn read(&mut self, buffer: &mut Buffer) -> PipeRead {
        let begun = self.begun.len();
        let Buffer { bytes, lines } = buffer;
        let room = &mut bytes[begun..begun + READ_BYTES];
        let count = match retry(|| read(&self.fd, &mut *room)) {
            Ok(count) if count > 0 => count,
            Err(Errno::EAGAIN) => return PipeRead::Nothing,
            Ok(_) | Err(_) => {
                self.end();
                return PipeRead::End;
            }
        };
        let bytes = &mut bytes[..begun + count];
        bytes[..begun].copy_from_slice(&self.begun);
        let marked = if std::mem::take(&mut self.is_unread) { self.take_mark(bytes) } else { 0 };
        let bytes = &mut bytes[marked..];
        let length = without_gaps(bytes);
        self.take(&bytes[..length], lines);
        PipeRead::Bytes(count)
    }

    /// Passes on a partial line as a line.
    pub(super) fn end(&mut self) {
        if self.begun.is_empty() {
            return self.log.report_lost_lines();
        }
        let text = std::mem::take(&mut self.begun);
        let mut lines = LineBuffer::new(self, Vec::new());
        lines.push(&text, false);
        lines.pass_on();
    }

    /// Learns the pid from the mark at the start of a pipe. Returns the length of the mark.
    fn take_mark(&mut self, bytes: &[u8]) -> usize {
        let Some(pid) = marked_pid(bytes).filter(|pid| self.label.pid.is_none_or(|known| known == *pid))
        else {
            return 0;
        };
        self.label.pid = Some(pid);
        self.prefix = self.label.to_text();
        PID_MARK_BYTES
    }

    fn take(&mut self, bytes: &[u8], lines: &mut Vec<u8>) {
        let mut buffer = LineBuffer::new(self, std::mem::take(lines));
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (ended, mut rest) = bytes.split_at(whole);
        for line in ended.split_inclusive(|byte| *byte == b'\n') {
            let mut text = &line[..line.len() - 1];
            while let Some((piece, more)) = first_piece(text) {
                buffer.push(piece, true);
                text = more;
            }
            buffer.push(text, false);
        }
        while let Some((piece, more)) = first_piece(rest) {
            buffer.push(piece, true);
            rest = more;
        }
        *lines = buffer.pass_on();
        self.begun.clear();
        if rest.len() <= SMALL_BYTES && self.begun.capacity() > SMALL_BYTES {
            self.begun = Vec::new();
        }
        self.begun.extend_from_slice(rest);
    }
}

/// Lines of one pipe on their way to the log.
struct LineBuffer<'a> {
    pipe: &'a Pipe,
    time: String,
    now: Instant,
    lines: Vec<u8>,
}

impl<'a> LineBuffer<'a> {
    fn new(pipe: &'a Pipe, mut lines: Vec<u8>) -> Self {
        lines.clear();
        Self { pipe, time: time_text(unix_ms()), now: Instant::now(), lines }
    }

    fn push(&mut self, text: &[u8], continues: bool) {
        if self.pipe.log.admit(text.len() as u64 + 1, self.now, &mut self.lines) {
            append(&mut self.lines, &self.time, &self.pipe.prefix, text, continues);
        }
        if self.lines.len() >= PASSED_ON_BYTES {
            self.pipe.log.write(&self.lines);
            self.lines.clear();
        }
    }

    /// Passes the lines to the log, and returns the memory.
    fn pass_on(mut self) -> Vec<u8> {
        if !self.lines.is_empty() {
            self.pipe.log.write(&self.lines);
            self.lines.clear();
        }
        self.lines
    }
}

/// Splits off the first part of a line that is too long, between two characters.
fn first_piece(text: &[u8]) -> Option<(&[u8], &[u8])> {
    if text.len() <= LINE_MAX_BYTES {
        return None;
    }
    let begins_character = |at: &usize| text[*at] & 0xc0 != 0x80;
    let end = (LINE_MAX_BYTES - 3..=LINE_MAX_BYTES).rev().find(begins_character).unwrap_or(LINE_MAX_BYTES);
    Some(text.split_at(end))
}

/// Removes the empty lines that a shim writes before its own messages, in case its program has ended within a line.
/// `bytes` start at the start of a line. Returns the number of bytes that are left.
fn without_gaps(bytes: &mut [u8]) -> usize {
    let (mut kept, mut begins) = (0, true);
    for at in 0..bytes.len() {
        let byte = bytes[at];
        if begins && byte == b'\n' && bytes[at + 1..].starts_with(LOG_PREFIX.as_bytes()) {
            continue;
        }
        bytes[kept] = byte;
        kept += 1;
        begins = byte == b'\n';
    }
    kept
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
#[path = "pipe_tests.rs"]
mod tests;
