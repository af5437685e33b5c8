//! The log of the daemon on its standard error, which never waits for a reader.
//!
//! If there is no room for a line, it is dropped and counted. The next line that fits is preceded by the number of
//! missing lines.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::sys::descriptor::write;
use crate::sys::errno::Errno;
use crate::sys::poll::{PollFlags, poll_one};
use crate::sys::socket::{MsgFlags, send};

/// Time limit for a slow reader, once.
const READER_TIMEOUT: Duration = Duration::from_millis(20);
/// A ready pipe accepts this many bytes without blocking: `PIPE_BUF`, pipe(7).
const PIECE_BYTES: usize = 4096;

/// The standard error of this process.
#[derive(Debug, Default)]
pub(super) struct StandardError(Mutex<WriterState>);

#[derive(Debug, Default)]
struct WriterState {
    lost_lines: u64,
    /// Whether the last line was cut.
    is_torn: bool,
}

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// The writer of one line, which comes in one write.
pub(super) struct Line<'a>(&'a Mutex<WriterState>);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = if state.lost_lines == 0 { READER_TIMEOUT } else { Duration::ZERO };
        if state.lost_lines > 0 {
            let note = format!(
                "{}handoff: {} lines of this log are missing here: they were not read in time\n",
                if state.is_torn { "\n" } else { "" },
                state.lost_lines
            );
            if put(note.as_bytes(), patience) == note.len() {
                *state = WriterState::default();
            }
        }
        if state.lost_lines == 0 {
            let stored = put(line, patience);
            state.is_torn = 0 < stored && stored < line.len();
            state.lost_lines += u64::from(stored < line.len());
        } else {
            state.lost_lines += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes as much as there is room for. Returns the number of bytes.
fn put(bytes: &[u8], patience: Duration) -> usize {
    let mut stored = 0;
    for piece in bytes.chunks(PIECE_BYTES) {
        let written = match send(io::stderr(), piece, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::ENOTSOCK) => write_when_ready(piece, patience),
            sent => sent.unwrap_or_default(),
        };
        stored += written;
        if written < piece.len() {
            break;
        }
    }
    stored
}

fn write_when_ready(piece: &[u8], patience: Duration) -> usize {
    match poll_one(io::stderr(), PollFlags::POLLOUT, Some(patience)) {
        Ok(found) if !found.is_empty() => write(io::stderr(), piece).unwrap_or_default(),
        Ok(_) | Err(_) => 0,
    }
}
