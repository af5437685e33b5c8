//! One client connection: HTTP/1.1 over TCP, which can be asked to end without ever cutting an answer.
//!
//! A client learns that it shall move on from the `Connection: close` of a complete answer. Only a
//! connection on which nothing is being asked is closed without one, after it has been idle for a while,
//! and only if no byte of a next request has arrived: closing then would reset it.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::service::S3Service;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::log;
use crate::traffic::{ConnectionEntry, RequestEntry};

/// How the server treats its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// They stay open for the next request.
    Open,
    /// Each ends with its next answer, or when it has been idle for [`DRAIN_IDLE`].
    Draining,
    /// As in a drain, but an idle one has to go after [`SEAL_IDLE`].
    Sealing,
    /// They end now, whatever they are at.
    Cut,
}

const DRAIN_IDLE: Duration = Duration::from_millis(500);
/// What a client gets that has connected and not yet sent its request when the server seals.
const SEAL_IDLE: Duration = Duration::from_millis(250);

/// An answer of more bytes than this may take its client long to receive.
const SHORT_ANSWER: u64 = 1024 * 1024;

/// Serves one connection until it ends. Client errors end the connection and nothing else.
pub(crate) async fn serve(
    stream: TcpStream,
    service: S3Service,
    entry: ConnectionEntry,
    mut gate: watch::Receiver<Gate>,
) {
    // In this order, so that the socket is closed before the entry says so.
    let entry = Arc::new(entry);
    let stream = Arc::new(stream);
    let io = TokioIo::new(Watched { stream: stream.clone(), entry: entry.clone() });
    let handler = Handler { service, entry: entry.clone(), gate: gate.clone() };
    let mut connection = pin!(http1::Builder::new().serve_connection(io, handler));
    loop {
        let allowed = match *gate.borrow_and_update() {
            Gate::Open => None,
            Gate::Draining => Some(DRAIN_IDLE),
            Gate::Sealing => Some(SEAL_IDLE),
            Gate::Cut => return,
        };
        let wait = allowed.map(|allowed| allowed.saturating_sub(entry.idle_for().unwrap_or_default()));
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            Ok(()) = gate.changed() => {}
            () = sleep(wait) => {
                let idle = entry.idle_for().is_some_and(|idle| Some(idle) >= allowed);
                if idle && rustix::io::ioctl_fionread(&stream).is_ok_and(|unread| unread == 0) {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        // Never zero: a connection that is being shut down would be looked at in a loop.
        Some(wait) => tokio::time::sleep(wait.max(Duration::from_millis(1))).await,
        None => std::future::pending().await,
    }
}

/// Answers the requests of one connection.
struct Handler {
    service: S3Service,
    entry: Arc<ConnectionEntry>,
    gate: watch::Receiver<Gate>,
}

impl hyper::service::Service<Request<Incoming>> for Handler {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let entry = Arc::new(self.entry.request());
        let service = self.service.clone();
        let gate = self.gate.clone();
        let what = format!("{} {}", request.method(), request.uri().path());
        let long_work = is_long_work(&request);
        let request = request.map(|body| Question { body, long_work, entry: entry.clone() });
        request.body().tell_if_complete();
        // In a task of its own, because a client that leaves takes this future with it: a change of the
        // store that has begun goes on to its end, and is counted until then.
        let held = entry.clone();
        let work = tokio::spawn(async move {
            let _held = held;
            service.call(request.map(s3s::Body::http_body_unsync)).await
        });
        Box::pin(async move {
            let mut response = match work.await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => failure(&what, &error),
                Err(panic) => failure(&what, &panic),
            };
            if response.status().is_server_error() {
                log!("{what}: answered {}", response.status());
            }
            if *gate.borrow() != Gate::Open {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            entry.busy(response.body().size_hint().upper().is_none_or(|bytes| bytes > SHORT_ANSWER));
            Ok(response.map(|body| Answer { body, _entry: entry }))
        })
    }
}

fn failure(what: &str, error: &dyn std::fmt::Debug) -> Response<s3s::Body> {
    log!("{what}: {error:?}");
    let mut response = Response::new(s3s::Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// Whether the server may be at work on a request for long, although it has all of it. For a GET this is
/// said when the length of its answer is known.
fn is_long_work(request: &Request<Incoming>) -> bool {
    match *request.method() {
        Method::PUT => request.headers().contains_key("x-amz-copy-source"),
        Method::HEAD | Method::DELETE => false,
        _ => true,
    }
}

/// The body of a request, which says when it has come in completely.
struct Question {
    body: Incoming,
    long_work: bool,
    entry: Arc<RequestEntry>,
}

impl Question {
    fn tell_if_complete(&self) {
        if self.body.is_end_stream() {
            self.entry.busy(self.long_work);
        }
    }
}

impl Body for Question {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.tell_if_complete();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer; its request is in progress for as long as this exists.
struct Answer {
    body: s3s::Body,
    _entry: Arc<RequestEntry>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The stream of a connection, shared so that its owner can ask the kernel about unread bytes, and watched
/// so that a half-received request is not taken for an idle connection.
struct Watched {
    stream: Arc<TcpStream>,
    entry: Arc<ConnectionEntry>,
}

impl Watched {
    /// Repeats `attempt` until it does not block.
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

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = |stream: &TcpStream| stream.try_read(buf.initialize_unfilled());
        let count = ready!(self.poll(cx, TcpStream::poll_read_ready, read))?;
        buf.advance(count);
        if count > 0 {
            self.entry.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, TcpStream::poll_write_ready, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, TcpStream::poll_write_ready, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write).map_err(Into::into))
    }
}
