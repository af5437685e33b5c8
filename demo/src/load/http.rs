//! One HTTP request at a time on plain connections, so that every failure is visible.
//!
//! Nothing is sent twice. As in every HTTP client, a new connection replaces a keep-alive connection that the server
//! has closed cleanly *before* the client writes the next request. The same holds for a new connection on which the
//! client writes nothing for longer than a server waits. If a byte of the request was sent, that is a cut or a reset,
//! and counts.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{HeaderMap, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::failure::{Failure, Kind};
use super::kept::{KeptConnection, Socket};

/// Time limit of a complete response.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Time that a server that seals waits for the first byte of a new connection before it closes the connection cleanly.
/// A client that a busy machine delays for longer connects again.
const LATE: Duration = Duration::from_millis(250);

/// A complete response.
#[derive(Debug)]
pub struct HttpResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
}

/// The connections of one client to one server.
pub struct Http {
    endpoint: SocketAddr,
    keep_alive: bool,
    open: Option<OpenConnection>,
}

struct OpenConnection {
    sender: SendRequest<Upload>,
    driver: JoinHandle<hyper::Result<()>>,
    connection: Arc<KeptConnection>,
    /// When the client began to connect.
    since: Instant,
}

impl Http {
    /// Creates a client of `endpoint` that reuses its connection, or opens a new one each time.
    pub fn new(endpoint: SocketAddr, keep_alive: bool) -> Self {
        Self { endpoint, keep_alive, open: None }
    }

    /// Sends a request and waits for the complete response.
    ///
    /// # Errors
    ///
    /// Any failure before the last byte of the response. The status is not checked.
    pub async fn exchange(&mut self, mut request: Request<Upload>) -> Result<HttpResponse, Failure> {
        if !self.keep_alive {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        match timeout(TIMEOUT + request.body().takes(), self.attempt(request)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(Kind::Timeout, format!("no answer within {TIMEOUT:?}"))),
        }
    }

    async fn attempt(&mut self, mut request: Request<Upload>) -> Result<HttpResponse, Failure> {
        loop {
            // Taken, not borrowed: a connection is returned only after a complete response.
            let (mut open, fresh) = match self.open.take() {
                Some(open) => (open, false),
                None => (self.connect().await?, true),
            };
            let again = copy_of(&request);
            open.connection.expect_use();
            let response = match open.sender.try_send_request(request).await {
                Ok(response) => response,
                Err(_) if !open.connection.is_used() && (!fresh || open.since.elapsed() >= LATE) => {
                    if !open.connection.had_ended() {
                        ended_in_order(open.driver).await?;
                    }
                    request = again;
                    continue;
                }
                Err(error) => return Err(error.into_error().into()),
            };
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            let close = head.headers.get(CONNECTION).is_some_and(|value| value == "close");
            if self.keep_alive && !close {
                self.open = Some(open);
            }
            return Ok(HttpResponse { status: head.status, headers: head.headers, body });
        }
    }

    async fn connect(&self) -> Result<OpenConnection, Failure> {
        // The server may have accepted it long before this client runs again.
        let (since, kept) = (Instant::now(), Arc::new(KeptConnection::default()));
        let stream = TcpStream::connect(self.endpoint).await?;
        stream.set_nodelay(true)?;
        let socket = Socket::new(stream, Arc::clone(&kept));
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        let driver = tokio::spawn(connection);
        // If the server has ended it, the first request finds that out.
        let _ = sender.ready().await;
        Ok(OpenConnection { sender, driver, connection: kept, since })
    }
}

/// A copy of the request, for another connection.
fn copy_of(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(request.body().again());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Checks that an idle connection was closed, not reset. hyper may have encoded the next request when it reads the end:
/// an incomplete message, of which no byte was written.
async fn ended_in_order(driver: JoinHandle<hyper::Result<()>>) -> Result<(), Failure> {
    match driver.await {
        Ok(Err(error)) if error.is_incomplete_message() => Ok(()),
        Ok(ended) => ended.map_err(|error| Failure::from(error).during("idle connection")),
        Err(panic) => Err(Failure::other(panic.to_string())),
    }
}

/// A request body, sent at once or in pieces with pauses.
pub struct Upload {
    rest: Bytes,
    pace: Option<Pace>,
}

struct Pace {
    piece: usize,
    pause: Duration,
    next: Pin<Box<Sleep>>,
}

impl Upload {
    /// No body.
    pub fn empty() -> Self {
        Self::all(Bytes::new())
    }

    /// The whole body, sent as fast as possible.
    pub fn all(bytes: impl Into<Bytes>) -> Self {
        Self { rest: bytes.into(), pace: None }
    }

    /// The body in `pieces` pieces, spread over the time `over`.
    pub fn paced(bytes: impl Into<Bytes>, pieces: usize, over: Duration) -> Self {
        let rest = bytes.into();
        let piece = rest.len().div_ceil(pieces.max(1)).max(1);
        let next = Box::pin(sleep_until(Instant::now()));
        let pause = over / u32::try_from(pieces.max(1)).unwrap_or(u32::MAX);
        Self { rest, pace: Some(Pace { piece, pause, next }) }
    }

    /// The same body from its start.
    fn again(&self) -> Self {
        let pace = self.pace.as_ref().map(|pace| Pace {
            piece: pace.piece,
            pause: pace.pause,
            next: Box::pin(sleep_until(Instant::now())),
        });
        Self { rest: self.rest.clone(), pace }
    }

    /// Whether it is slow on purpose.
    pub fn is_paced(&self) -> bool {
        self.pace.is_some()
    }

    /// Its intended duration.
    fn takes(&self) -> Duration {
        match &self.pace {
            Some(pace) => {
                pace.pause * u32::try_from(self.rest.len().div_ceil(pace.piece)).unwrap_or(u32::MAX)
            }
            None => Duration::ZERO,
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = match &mut this.pace {
            Some(pace) => {
                ready!(pace.next.as_mut().poll(cx));
                pace.next.as_mut().reset(Instant::now() + pace.pause);
                pace.piece.min(this.rest.len())
            }
            None => this.rest.len(),
        };
        Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
