//! The read end of a log pipe: reads bytes, and passes on complete lines.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::LOG_PREFIX;
use super::writer::Writer;
use crate::sys::descriptor::{read, set_nonblocking};
use crate::sys::errno::{Errno, retry};
use crate::sys::log_pipe::identity;

/// Longer lines are broken after this many bytes.
const LINE_MAX_BYTES: usize = 64 << 10;

/// Bytes per read: the default capacity of a pipe.
const READ_BYTES: usize = 64 << 10;

/// Memory for a partial line is released if it exceeds this.
const SMALL_BYTES: usize = 1 << 10;

/// The output of one process of a service.
#[derive(Debug)]
pub(super) struct Pipe {
    fd: OwnedFd,
    identity: (u64, u64),
    log: Rc<Writer>,
    /// A partial line. Shorter than [`LINE_MAX_BYTES`].
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

/// The buffer for reads. All pipes share it.
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    pub(super) fn new() -> Self {
        Self(vec![0; LINE_MAX_BYTES + READ_BYTES])
    }
}

impl Pipe {
    /// Wraps the read end of a pipe, and makes it nonblocking.
    pub(super) fn new(fd: OwnedFd, log: Rc<Writer>) -> io::Result<Self> {
        set_nonblocking(&fd, true)?;
        Ok(Self { identity: identity(&fd)?, fd, log, begun: Vec::new() })
    }

    /// The identity of the pipe.
    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    pub(super) fn log(&self) -> &Rc<Writer> {
        &self.log
    }

    /// Reads once, and passes complete lines to the log.
    pub(super) fn read(&mut self, buffer: &mut Buffer) -> PipeRead {
        let begun = self.begun.len();
        let room = &mut buffer.0[begun..begun + READ_BYTES];
        let count = match retry(|| read(&self.fd, &mut *room)) {
            Ok(count) if count > 0 => count,
            Err(Errno::EAGAIN) => return PipeRead::Nothing,
            Ok(_) | Err(_) => {
                self.end();
                return PipeRead::End;
            }
        };
        let bytes = &mut buffer.0[..begun + count];
        bytes[..begun].copy_from_slice(&self.begun);
        let length = without_gaps(bytes);
        self.take(&bytes[..length]);
        PipeRead::Bytes(count)
    }

    /// Passes on a partial line as a line.
    pub(super) fn end(&mut self) {
        if self.begun.is_empty() {
            return self.log.report_lost_lines();
        }
        self.begun.push(b'\n');
        self.log.write(&self.begun);
        self.begun = Vec::new();
    }

    fn take(&mut self, bytes: &[u8]) {
        let read_from = self.begun.len();
        let whole =
            bytes[read_from..].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| read_from + at + 1);
        let (lines, mut rest) = bytes.split_at(whole);
        if !lines.is_empty() {
            self.log.write(lines);
        }
        self.begun.clear();
        if let Some((piece, more)) = rest.split_at_checked(LINE_MAX_BYTES) {
            self.begun.extend_from_slice(piece);
            self.begun.push(b'\n');
            self.log.write(&self.begun);
            self.begun.clear();
            rest = more;
        }
        if rest.len() <= SMALL_BYTES && self.begun.capacity() > SMALL_BYTES {
            self.begun = Vec::new();
        }
        self.begun.extend_from_slice(rest);
    }
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
mod tests {
    use super::super::log::RotationLimits;
    use super::*;
    use std::io::{PipeWriter, Write};
    use std::path::Path;

    fn pipe(dir: &Path) -> (Pipe, PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        let log = Writer::new(dir.to_owned(), RotationLimits { max_size_bytes: 10 << 20, files: 2 });
        (Pipe::new(reader.into(), Rc::new(log)).unwrap(), writer)
    }

    fn current(dir: &Path) -> Vec<u8> {
        std::fs::read(dir.join("current")).unwrap_or_default()
    }

    #[test]
    fn only_whole_lines_are_passed_on_and_the_end_ends_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let (mut pipe, mut writer) = pipe(dir.path());
        let mut buffer = Buffer::new();
        assert_eq!(pipe.read(&mut buffer), PipeRead::Nothing);
        writer.write_all(b"one\ntw").unwrap();
        assert_eq!(pipe.read(&mut buffer), PipeRead::Bytes(6));
        assert_eq!(current(dir.path()), b"one\n");
        writer.write_all(b"o\n\nthr").unwrap();
        assert_eq!(pipe.read(&mut buffer), PipeRead::Bytes(6));
        assert_eq!(current(dir.path()), b"one\ntwo\n\n");
        drop(writer);
        assert_eq!(pipe.read(&mut buffer), PipeRead::End);
        assert_eq!(current(dir.path()), b"one\ntwo\n\nthr\n");
    }

    #[test]
    fn a_message_of_a_shim_is_its_own_line_and_leaves_no_gap() {
        let dir = tempfile::tempdir().unwrap();
        let (mut pipe, mut writer) = pipe(dir.path());
        let mut buffer = Buffer::new();
        let said = format!("\n{LOG_PREFIX}it ended\n");
        for before in ["", "whole\n", "torn", "\n\n", "\nhandoff", ""] {
            writer.write_all(before.as_bytes()).unwrap();
            pipe.read(&mut buffer);
            writer.write_all(said.as_bytes()).unwrap();
            pipe.read(&mut buffer);
        }
        let ended = "handoff: it ended\n";
        let expected = format!("{ended}whole\n{ended}torn\n{ended}\n\n{ended}\nhandoff\n{ended}{ended}");
        assert_eq!(String::from_utf8(current(dir.path())).unwrap(), expected);
    }

    #[test]
    fn a_line_that_comes_in_pieces_stays_whole_up_to_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (mut pipe, mut writer) = pipe(dir.path());
        let mut buffer = Buffer::new();
        let mut line = vec![b'x'; LINE_MAX_BYTES - 1];
        for piece in line.chunks(999) {
            writer.write_all(piece).unwrap();
            pipe.read(&mut buffer);
        }
        writer.write_all(b"\n").unwrap();
        pipe.read(&mut buffer);
        line.push(b'\n');
        assert_eq!(current(dir.path()), line);
        assert_eq!(pipe.begun.capacity(), 0);
    }

    #[test]
    fn a_longer_line_is_broken_and_no_byte_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (mut pipe, mut writer) = pipe(dir.path());
        let mut buffer = Buffer::new();
        let text: Vec<u8> = (0..5 * LINE_MAX_BYTES).map(|at| b'a' + (at % 26) as u8).collect();
        for piece in text.chunks(40_000) {
            writer.write_all(piece).unwrap();
            while pipe.read(&mut buffer) != PipeRead::Nothing {}
            assert!(pipe.begun.len() < LINE_MAX_BYTES);
        }
        drop(writer);
        // A process started by another test has the other end too, until its exec.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while pipe.read(&mut buffer) != PipeRead::End {
            assert!(std::time::Instant::now() < until, "it has no end");
            std::thread::yield_now();
        }
        let found = current(dir.path());
        let lines: Vec<&[u8]> = found.split_inclusive(|byte| *byte == b'\n').collect();
        assert!(lines.iter().all(|line| line.len() == LINE_MAX_BYTES + 1), "{} lines", lines.len());
        let joined: Vec<u8> = found.iter().copied().filter(|byte| *byte != b'\n').collect();
        assert!(joined == text);
    }
}
