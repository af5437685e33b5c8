//! A keep-alive connection, which the server may close before the client uses it again.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use handoff::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// State that the client and its connection share.
#[derive(Debug, Default)]
pub struct KeptConnection {
    /// No byte of the next request was written yet.
    is_unused: AtomicBool,
    had_ended: AtomicBool,
}

impl KeptConnection {
    /// Marks the next written byte as the first byte of a new request.
    pub fn expect_use(&self) {
        self.is_unused.store(true, Ordering::SeqCst);
    }

    /// Whether a byte of this request was written.
    pub fn is_used(&self) -> bool {
        !self.is_unused.load(Ordering::SeqCst)
    }

    /// Whether the server had closed the connection cleanly before the first byte was written.
    pub fn had_ended(&self) -> bool {
        self.had_ended.load(Ordering::SeqCst)
    }
}

/// The connection. It queries the kernel for the end of the connection directly before it writes: on a busy machine, a
/// client that queried earlier could wait for a processor in between, and would count the end of an idle connection as a
/// cut request.
pub struct Socket {
    stream: TcpStream,
    connection: Arc<KeptConnection>,
}

impl Socket {
    pub fn new(stream: TcpStream, kept: Arc<KeptConnection>) -> Self {
        Self { stream, connection: kept }
    }

    fn check(&self) -> io::Result<()> {
        if self.connection.is_used() {
            return Ok(());
        }
        let peeked = recv(&self.stream, &mut [0; 1], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        if matches!(peeked, Ok(0)) {
            self.connection.had_ended.store(true, Ordering::SeqCst);
            // For a new connection this is a cut, like any end before the answer.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.connection.is_unused.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
