//! One client connection. It can end on request without cutting a response.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use handoff_sys::stream_end::{cut, finish_writing, unread};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{oneshot, watch};

use super::answer::{Handler, HttpService};
use super::listener::Stream;
use super::traffic::{ConnectionEntry, Traffic};
use super::{Gate, RequestPolicy};

/// Idle time after which a drain closes a connection: its client may be about to send a request.
const DRAIN_IDLE: Duration = Duration::from_millis(500);
/// Time for a client that has connected to send its request when the server seals.
const SEAL_IDLE: Duration = Duration::from_millis(250);

/// The parameters for every connection.
#[derive(Debug)]
pub(super) struct Clients<S> {
    pub(super) service: S,
    pub(super) gate: watch::Sender<Gate>,
    pub(super) traffic: Traffic,
    pub(super) policy: RequestPolicy,
}

impl<S: HttpService> Clients<S> {
    /// Serves a connection in its own task.
    pub(super) fn welcome(&self, stream: Stream) {
        let (entry, gate) = (self.traffic.connection(), self.gate.subscribe());
        tokio::spawn(serve(stream, self.service.clone(), self.policy, entry, gate));
    }
}

/// Serves until the connection ends. Client errors end the connection and have no other effect.
async fn serve<S: HttpService>(
    stream: Stream,
    service: S,
    manner: RequestPolicy,
    entry: ConnectionEntry,
    mut gate: watch::Receiver<Gate>,
) {
    let stream = Arc::new(stream);
    let left = Arc::downgrade(&stream);
    let (open, closed) = oneshot::channel();
    // In this order: the socket closes before the entry is removed.
    let watched = Watched { stream, entry: Arc::new(entry), _open: open };
    converse(watched, service, manner, &mut gate).await;
    // After a protocol switch, to WebSocket for example, the service owns the connection.
    tokio::select! {
        _ = closed => {}
        Ok(_) = gate.wait_for(|gate| *gate == Gate::Cut) => {
            if let Some(stream) = left.upgrade() {
                // Failure means that the connection has already ended.
                let _ = cut(&*stream);
            }
        }
    }
}

/// Serves HTTP until the connection ends or switches to another protocol.
async fn converse<S: HttpService>(
    watched: Watched,
    service: S,
    manner: RequestPolicy,
    gate: &mut watch::Receiver<Gate>,
) {
    let (stream, entry) = (watched.stream.clone(), watched.entry.clone());
    let handler = Handler { service, policy: manner, entry: entry.clone(), gate: gate.clone() };
    let builder = Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(watched), handler));
    loop {
        let allowed = match *gate.borrow_and_update() {
            Gate::Open => None,
            Gate::Draining => Some(DRAIN_IDLE),
            Gate::Sealing => Some(SEAL_IDLE),
            Gate::Cut => return,
        };
        // GOAWAY loses nothing: hyper still answers requests that the client sends before it reads the GOAWAY.
        if allowed.is_some() && entry.is_multiplexed() {
            connection.as_mut().graceful_shutdown();
        }
        let wait = allowed.map(|allowed| allowed.saturating_sub(entry.idle_for().unwrap_or_default()));
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            Ok(()) = gate.changed() => {}
            () = sleep(wait) => {
                let idle = entry.idle_for().is_some_and(|idle| Some(idle) >= allowed);
                if idle && unread(&*stream).is_ok_and(|bytes| bytes == 0) {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        // Never zero: a connection that is shutting down would otherwise spin.
        Some(wait) => tokio::time::sleep(wait.max(Duration::from_millis(1))).await,
        None => std::future::pending().await,
    }
}

/// The stream of a connection. Shared, so that its task can query unread bytes from the kernel. Watched, so that a
/// connection with a partial request does not count as idle.
struct Watched {
    stream: Arc<Stream>,
    entry: Arc<ConnectionEntry>,
    /// Dropped after the socket, so its end shows that the socket is closed.
    _open: oneshot::Sender<Infallible>,
}

impl Watched {
    /// Repeats `attempt` while it would block.
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        ready: impl Fn(&Stream, &mut Context<'_>) -> Poll<io::Result<()>>,
        mut attempt: impl FnMut(&Stream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(ready(&self.stream, cx))?;
            match attempt(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = |stream: &Stream| stream.try_read(buf.initialize_unfilled());
        let count = ready!(self.poll(cx, Stream::poll_read_ready, read))?;
        if count > 0 {
            self.entry.received(&buf.initialize_unfilled()[..count]);
        }
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, Stream::poll_write_ready, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(finish_writing(&*self.stream))
    }
}
