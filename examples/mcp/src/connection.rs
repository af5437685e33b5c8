//! One client connection: HTTP/1.1 over TCP. It can end on request without cutting a response.
//!
//! A complete response with `Connection: close` asks the client to reconnect. Only an idle connection is closed
//! without one, after a while, and only if no byte of a next request has arrived.

use std::convert::Infallible;
use std::io;
use std::net::{Shutdown, TcpStream as StdStream};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

/// How the server treats its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// They stay open for the next request.
    Open,
    /// Each ends with its next response, or after it has been idle for [`DRAIN_IDLE`].
    Draining,
    /// They end now, even with a request in progress.
    Cut,
}

const DRAIN_IDLE: Duration = Duration::from_millis(500);

/// The number of connections. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic(watch::Sender<usize>);

impl Traffic {
    /// Counts a new connection.
    pub(crate) fn enter(&self) -> ConnectionGuard {
        self.0.send_modify(|count| *count += 1);
        ConnectionGuard(self.clone())
    }

    /// Waits until there is none.
    pub(crate) async fn empty(&self) {
        // This holds the sender, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    /// The number of connections.
    pub(crate) fn count(&self) -> usize {
        *self.0.borrow()
    }
}

/// Drop it when the connection is closed.
pub(crate) struct ConnectionGuard(Traffic);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Serves one connection until it ends. Client errors end the connection and have no other effect.
pub(crate) async fn serve(
    stream: TcpStream,
    router: Router,
    mut gate: watch::Receiver<Gate>,
    _entered: ConnectionGuard,
) {
    // In this order: the socket closes before the connection is uncounted.
    let stream = Arc::new(stream);
    let activity = Arc::new(Activity::default());
    let io = TokioIo::new(WatchedStream { stream: stream.clone(), activity: activity.clone() });
    let (inner, closing) = (TowerToHyperService::new(router), gate.clone());
    let handler = service_fn(|request: Request<Incoming>| {
        let (answer, closing) = (inner.call(request), closing.clone());
        let busy = ActivityGuard::new(activity.clone());
        async move {
            let mut response = answer.await?;
            if *closing.borrow() != Gate::Open {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<Response<Answer>, Infallible>(response.map(|body| Answer { body, _busy: busy }))
        }
    });
    let mut connection = pin!(http1::Builder::new().serve_connection(io, handler));
    loop {
        let wait = match *gate.borrow_and_update() {
            Gate::Open => None,
            Gate::Draining => Some(DRAIN_IDLE.saturating_sub(activity.idle_for().unwrap_or_default())),
            Gate::Cut => return,
        };
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            Ok(()) = gate.changed() => {}
            () = sleep(wait) => {
                let idle = activity.idle_for().is_some_and(|idle| idle >= DRAIN_IDLE);
                if idle && duplicate(&stream).is_ok_and(|stream| has_nothing_unread(&stream)) {
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

/// Since when no request is in progress; `None` while one is.
#[derive(Debug)]
struct Activity(Mutex<Option<Instant>>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }
}

impl Activity {
    fn set(&self, idle_since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = idle_since;
    }

    fn idle_for(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed())
    }
}

/// A request is in progress until this is dropped.
struct ActivityGuard(Arc<Activity>);

impl ActivityGuard {
    fn new(activity: Arc<Activity>) -> Self {
        activity.set(None);
        Self(activity)
    }
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.0.set(Some(Instant::now()));
    }
}

/// A response body.
struct Answer {
    body: Body,
    _busy: ActivityGuard,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A duplicate of the stream, to query the kernel without waiting.
fn duplicate(stream: &TcpStream) -> io::Result<StdStream> {
    stream.as_fd().try_clone_to_owned().map(StdStream::from)
}

/// Whether all received bytes were read. The stream is nonblocking, so this does not wait.
fn has_nothing_unread(stream: &StdStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// The stream of a connection. Shared, so that its owner can query unread bytes from the kernel. Watched, so that a
/// connection with a partial request does not count as idle.
struct WatchedStream {
    stream: Arc<TcpStream>,
    activity: Arc<Activity>,
}

impl WatchedStream {
    /// Repeats `attempt` while it would block.
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        ready: impl Fn(&TcpStream, &mut Context<'_>) -> Poll<io::Result<()>>,
        mut attempt: impl FnMut(&TcpStream) -> io::Result<T>,
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

impl AsyncRead for WatchedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = |stream: &TcpStream| stream.try_read(buf.initialize_unfilled());
        let count = ready!(self.poll(cx, TcpStream::poll_read_ready, read))?;
        buf.advance(count);
        if count > 0 {
            self.activity.set(None);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, TcpStream::poll_write_ready, |stream| stream.try_write(buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(duplicate(&self.stream).and_then(|stream| stream.shutdown(Shutdown::Write)))
    }
}
