//! One output stream of a command: everything is read, so that the command never blocks, and the end is kept.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use crate::sys::descriptor::{read, set_nonblocking};
use crate::sys::errno::Errno;
use crate::sys::readable::readable;

/// Maximum number of bytes to keep.
const KEPT_MAX_BYTES: usize = 16 << 10;
const CHUNK_BYTES: usize = 64 << 10;
/// Maximum capacity of a pipe without privilege (pipe(7)), so the most that a writer can leave behind.
const LEFT_MAX_BYTES: usize = 1 << 20;

/// The end of a pipe's data.
pub(super) struct Tail {
    pipe: AsyncFd<OwnedFd>,
    end: Vec<u8>,
    chunk: Vec<u8>,
}

impl Tail {
    /// Creates a pipe. Returns the reader, and the write end for the command.
    pub(super) fn pipe() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = io::pipe()?;
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        set_nonblocking(&reader, true)?;
        Ok((Self { pipe: readable(reader)?, end: Vec::new(), chunk: vec![0; CHUNK_BYTES] }, writer))
    }

    /// Reads forever. Cancel-safe.
    pub(super) async fn fill(&mut self) -> Infallible {
        while let Ok(mut ready) = self.pipe.readable().await {
            match ready.try_io(|pipe| Ok(read(pipe, &mut self.chunk)?)) {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(length)) => keep(&mut self.end, &self.chunk[..length]),
                Err(_) => {}
            }
            // A command that floods the pipe must not block other tasks of this thread.
            yield_now().await;
        }
        std::future::pending().await
    }

    /// Reads only what a finished command has left: other processes may still have the pipe open. Does not block.
    pub(super) fn finish(mut self) -> String {
        let mut left = LEFT_MAX_BYTES;
        while left > 0 {
            match read(self.pipe.get_ref(), &mut self.chunk) {
                Ok(0) => break,
                Ok(length) => {
                    keep(&mut self.end, &self.chunk[..length]);
                    left = left.saturating_sub(length);
                }
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        let start = self.end.len().saturating_sub(KEPT_MAX_BYTES);
        String::from_utf8_lossy(&self.end[start..]).into_owned()
    }
}

/// Never holds more than twice the kept size plus one chunk.
fn keep(kept: &mut Vec<u8>, chunk: &[u8]) {
    kept.extend_from_slice(chunk);
    if kept.len() > 2 * KEPT_MAX_BYTES {
        kept.drain(..kept.len() - KEPT_MAX_BYTES);
    }
}
