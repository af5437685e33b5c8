//! Wraps the service for each request: records it, and ends its connection or stream.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::http::{HeaderValue, Version, header};
use hyper::service::Service;
use hyper::{Method, Request, Response};
use tokio::sync::watch;

use super::traffic::{ConnectionEntry, RequestEntry};
use super::{Gate, HttpRequest, RequestPolicy};
use crate::BoxError;

/// Bytes. The client may take long to receive a longer body.
const SHORT_BODY: u64 = 1024 * 1024;

/// A hyper service that can answer on many connections at once. Implemented for every [`hyper::service::Service`] for
/// `Request<Incoming>` that is `Clone` and `Send`.
pub trait HttpService:
    Service<Request<Incoming>, Response = Response<Self::Body>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + 'static
{
    /// The response body.
    type Body: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> HttpService for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// Answers the requests of one connection.
pub(super) struct Handler<S> {
    pub(super) service: S,
    pub(super) policy: RequestPolicy,
    pub(super) entry: Arc<ConnectionEntry>,
    pub(super) gate: watch::Receiver<Gate>,
}

impl<S: HttpService> Service<HttpRequest> for Handler<S> {
    type Response = Response<Answer<S::Body>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: HttpRequest) -> Self::Future {
        let (version, is_get) = (request.version(), request.method() == Method::GET);
        let (parts, body) = request.into_parts();
        let is_coming =
            !body.is_end_stream() && body.size_hint().upper().is_none_or(|bytes| bytes > SHORT_BODY);
        let entry = Arc::new(self.entry.request(is_coming, (self.policy.is_long)(&parts)));
        let (answer, held) = (self.service.call(Request::from_parts(parts, body)), entry.clone());
        let answer = async move {
            let _held = held;
            answer.await.map_err(Into::into)
        };
        let (gate, finishes) = (self.gate.clone(), self.policy.finishes);
        Box::pin(async move {
            let mut response = if finishes { tokio::spawn(answer).await?? } else { answer.await? };
            let is_draining = *gate.borrow() != Gate::Open;
            if is_draining && version < Version::HTTP_2 && !is_switch(&response) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            entry.answered(response.body().size_hint().upper().is_none_or(|bytes| bytes > SHORT_BODY));
            // EventSource clients reconnect after a GET. For other methods the response would be cut.
            let ends = (is_get && is_event_stream(&response)).then(|| drained(gate));
            Ok(response.map(|body| Answer { body: Box::pin(body), ends, _entry: entry }))
        })
    }
}

/// Whether the connection switches to another protocol.
fn is_switch<B>(response: &Response<B>) -> bool {
    response.status() == hyper::StatusCode::SWITCHING_PROTOCOLS
}

fn is_event_stream<B>(response: &Response<B>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/event-stream")
}

/// Completes when the server drains or seals.
fn drained(mut gate: watch::Receiver<Gate>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        // The server is gone and drains no more.
        if gate.wait_for(|gate| *gate != Gate::Open).await.is_err() {
            std::future::pending().await
        }
    })
}

/// A response body. Its request is in progress until this is dropped.
pub(super) struct Answer<B> {
    body: Pin<Box<B>>,
    /// For an event stream: completes when the stream must end.
    ends: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _entry: Arc<RequestEntry>,
}

impl<B: Body> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        // Sends the available data before it ends.
        if let Poll::Ready(frame) = self.body.as_mut().poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let Some(ends) = &mut self.ends else { return Poll::Pending };
        ready!(ends.as_mut().poll(cx));
        self.ends = None;
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
