//! Serves HTTP so that an upgrade fails no request: for hyper, and for axum and other tower services.
//!
//! [`Server`] accepts from a listener of the service and answers by a service of yours. It knows what its clients are doing, so it can
//! do for you what a drain and a seal ask of a server:
//!
//! - While it drains it goes on accepting. Answers carry `Connection: close`, and HTTP/2 clients get GOAWAY, so clients connect
//!   again and reach the next process. A kept-alive connection on which nothing is asked is closed after it was idle for a while,
//!   and only if no byte of a next request has arrived: closing it then would reset it.
//! - Answers of the type `text/event-stream` to GET end in order, between two events. Their clients come back by themselves.
//! - When it seals it stops accepting and finishes what it has accepted. In overlap mode it first serves what waits in the queue of
//!   the listener, since no other process will.
//! - It serves again when it is told to resume.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use handoff_service::http::{self, Server};
//! use handoff_service::tokio::start;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut starting = start().await?;
//!     let listener = starting.tcp_listener("web", "127.0.0.1:8080")?;
//!     let begun = starting.begin(None).await?;
//!     let app = Router::new().route("/", get(|| async { "hello\n" }));
//!     let mut server = Server::tower(listener, app);
//!     server.serve()?;
//!     begun.ready().await?.run_until(server, http::terminated()).await?;
//!     Ok(())
//! }
//! ```
//!
//! A server that owns data implements [`crate::tokio::Server`] itself. It calls [`Server::drain`] and [`Server::seal`], then closes
//! its data; in `resume` it opens them and calls [`Server::replace`] and [`Server::serve`].

use std::future::Future;
use std::io;
use std::time::Duration;

use ::tokio::sync::watch;
use ::tokio::time::{Instant, timeout};
use handoff_protocol::message::Mode;
use hyper::Request;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper_util::service::TowerToHyperService;

use crate::{BoxError, Drain, Seal};

mod accept;
mod answer;
mod connection;
mod listener;
mod traffic;

#[cfg(test)]
mod tests;

use accept::Acceptor;
pub use answer::HttpService;
pub use listener::Listener;
use traffic::Traffic;

/// How long a drain looks for a moment without any request, once there are only short ones.
const LULL: Duration = Duration::from_millis(50);
/// How long a seal waits for requests that were short when the drain ended and turn out to be long. New connections wait meanwhile.
const SEAL_PATIENCE: Duration = Duration::from_secs(2);
/// How long requests may still take before they are cut, if they may be cut.
const CUT_PATIENCE: Duration = Duration::from_millis(500);

/// How the server treats its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// They stay open for the next request.
    Open,
    /// Each ends with its next answer, or when it has been idle for a while.
    Draining,
    /// As in a drain, but an idle one has less time.
    Sealing,
    /// They end now, whatever they are doing.
    Cut,
}

/// An HTTP server over one listener.
#[derive(Debug)]
pub struct Server<S> {
    listener: Listener,
    service: S,
    gate: watch::Sender<Gate>,
    traffic: Traffic,
    manner: Manner,
    acceptor: Option<Acceptor>,
}

/// How requests are treated.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// Whether a request may keep the server at work for long although it has come in completely.
    is_long: fn(&Parts) -> bool,
    /// Whether the work on a request goes on when its client has left.
    finishes: bool,
}

impl<R> Server<TowerToHyperService<R>>
where
    TowerToHyperService<R>: HttpService,
{
    /// A server that answers by a tower service, for example an axum `Router`. Accepts nothing before [`Server::serve`].
    pub fn tower(listener: impl Into<Listener>, service: R) -> Self {
        Self::new(listener, TowerToHyperService::new(service))
    }
}

impl<S: HttpService> Server<S> {
    /// A server that answers by `service`. Accepts nothing before [`Server::serve`].
    pub fn new(listener: impl Into<Listener>, service: S) -> Self {
        Self {
            listener: listener.into(),
            service,
            gate: watch::Sender::new(Gate::Open),
            traffic: Traffic::default(),
            manner: Manner { is_long: |_| false, finishes: false },
            acceptor: None,
        }
    }

    /// Tells which requests may keep the server at work for long although they have come in completely. A drain waits for these. For
    /// the others it waits once they take longer than 100 ms.
    #[must_use]
    pub fn long_requests(mut self, is_long: fn(&Parts) -> bool) -> Self {
        self.manner.is_long = is_long;
        self
    }

    /// Works on each request until it is answered, also if its client leaves meanwhile, and has drain and seal wait for that. For
    /// servers that change data. Otherwise the future of a request is dropped when its client leaves.
    #[must_use]
    pub fn finish_requests(mut self) -> Self {
        self.manner.finishes = true;
        self
    }

    /// The service that connections are answered by.
    pub fn service(&self) -> &S {
        &self.service
    }

    /// Answers by `service` from now on, on connections that are accepted after the next [`Server::serve`]. For a server that has
    /// closed its data in a seal and opens them again.
    pub fn replace(&mut self, service: S) {
        self.service = service;
    }

    /// Serves, for the first time or again, whatever was asked of it before. Call it in a tokio runtime, and not before
    /// [`crate::tokio::Starting::begin`] has returned: it makes the listener, which other processes share, non-blocking.
    ///
    /// # Errors
    ///
    /// The listener cannot be polled.
    pub fn serve(&mut self) -> io::Result<()> {
        self.gate.send_replace(Gate::Open);
        if self.acceptor.is_none() {
            let clients = connection::Clients {
                service: self.service.clone(),
                gate: self.gate.clone(),
                traffic: self.traffic.clone(),
                manner: self.manner,
            };
            self.acceptor = Some(Acceptor::start(&self.listener, clients)?);
        }
        Ok(())
    }

    /// Asks the clients to move on, and waits until only short requests of new connections are in progress, or until
    /// `cancelled` is ready ([`Drain::cancelled`]). Accepts all the while, and goes on like this until it is told to seal or to serve.
    pub async fn drain(&mut self, cancelled: impl Future<Output = ()>) {
        self.gate.send_replace(Gate::Draining);
        let traffic = self.traffic.clone();
        ::tokio::select! {
            () = lull(traffic, Instant::now()) => {}
            () = cancelled => {}
        }
    }

    /// Stops accepting and finishes what was accepted. The listener stays open. In exclusive mode clients that were not accepted yet wait
    /// in its queue for the next process; in overlap mode they are served here. With `may_cut` ([`Seal::may_cut`]) connections
    /// that do not end soon are cut.
    ///
    /// # Errors
    ///
    /// A request takes too long. The connections go on: call [`Server::serve`].
    pub async fn seal(&mut self, mode: Mode, may_cut: bool) -> Result<(), BoxError> {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.stop(mode == Mode::Overlap).await;
        }
        self.gate.send_replace(Gate::Sealing);
        let traffic = self.traffic.clone();
        let patience = if may_cut { CUT_PATIENCE } else { SEAL_PATIENCE };
        let mut ended = timeout(patience, traffic.empty()).await;
        if ended.is_err() && may_cut {
            self.gate.send_replace(Gate::Cut);
            ended = timeout(SEAL_PATIENCE, traffic.empty()).await;
        }
        ended.map_err(|_| format!("cannot seal yet: {traffic}").into())
    }
}

/// Waits for a good moment to seal: the first at which only short requests are in progress, or a little later one at which there are none
/// at all.
async fn lull(traffic: Traffic, drain_began: Instant) {
    traffic.quiet(drain_began).await;
    if timeout(LULL, traffic.empty()).await.is_err() {
        traffic.quiet(drain_began).await;
    }
}

impl<S: HttpService> crate::tokio::Server for Server<S> {
    async fn drain(&mut self, drain: Drain) -> Result<(), BoxError> {
        Server::drain(self, drain.cancelled()).await;
        Ok(())
    }

    async fn seal(&mut self, seal: Seal) -> Result<(), BoxError> {
        Server::seal(self, seal.mode(), seal.may_cut()).await
    }

    async fn resume(&mut self) -> Result<(), BoxError> {
        Ok(self.serve()?)
    }
}

/// Completes at SIGTERM and at SIGINT: the end that [`crate::tokio::Serving::run_until`] waits for.
pub fn terminated() -> impl Future<Output = ()> {
    use ::tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else { return std::future::pending().await };
        ::tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// What hyper hands to a service.
type Asked = Request<Incoming>;
