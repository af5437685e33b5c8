//! Serves HTTP without failed requests during upgrades: for hyper, and for axum and other tower services.
//!
//! [`Server`] accepts from a listener of the service and answers with your service. It tracks its clients, so it
//! implements drain and seal for you:
//!
//! - During a drain it keeps accepting. Responses carry `Connection: close`, and HTTP/2 clients get GOAWAY, so clients
//!   reconnect and reach the next process. It closes an idle keep-alive connection after a while, and only if no byte
//!   of a next request has arrived: closing it then would reset it.
//! - `text/event-stream` responses to GET end cleanly between two events. Their clients reconnect automatically.
//! - At a seal it stops accepting and finishes what it has accepted. In overlap mode it first serves the listener's
//!   queue, since no other process does.
//! - At a resume it serves again.
//!
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
//! A server that owns data implements [`crate::tokio::Server`] itself. It calls [`Server::drain`] and [`Server::seal`],
//! then closes its data. In `resume` it opens the data and calls [`Server::replace`] and [`Server::serve`].

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

/// How long a drain waits for a moment without any request, once only short ones are left.
const IDLE_LIMIT: Duration = Duration::from_millis(50);
/// How long a seal waits for requests that were short when the drain ended but take longer. New connections wait in the
/// meantime.
const SEAL_PATIENCE: Duration = Duration::from_secs(2);
/// Remaining time of requests before a seal cuts them, if it may.
const CUT_PATIENCE: Duration = Duration::from_millis(500);

/// How the server treats its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// They stay open for the next request.
    Open,
    /// Each ends with its next response, or after an idle time.
    Draining,
    /// As in a drain, with a shorter idle time.
    Sealing,
    /// They end now, even with a request in progress.
    Cut,
}

/// An HTTP server on one listener.
#[derive(Debug)]
pub struct Server<S> {
    listener: Listener,
    service: S,
    gate: watch::Sender<Gate>,
    traffic: Traffic,
    policy: RequestPolicy,
    acceptor: Option<Acceptor>,
}

/// How the server treats requests.
#[derive(Debug, Clone, Copy)]
struct RequestPolicy {
    /// Whether a request may take long after it has been received completely.
    is_long: fn(&Parts) -> bool,
    /// Whether a request is processed to its end if its client leaves.
    finishes: bool,
}

impl<R> Server<TowerToHyperService<R>>
where
    TowerToHyperService<R>: HttpService,
{
    /// Creates a server that answers with a tower service, for example an axum `Router`. It accepts nothing before
    /// [`Server::serve`].
    pub fn tower(listener: impl Into<Listener>, service: R) -> Self {
        Self::new(listener, TowerToHyperService::new(service))
    }
}

impl<S: HttpService> Server<S> {
    /// Creates a server that answers with `service`. It accepts nothing before [`Server::serve`].
    pub fn new(listener: impl Into<Listener>, service: S) -> Self {
        Self {
            listener: listener.into(),
            service,
            gate: watch::Sender::new(Gate::Open),
            traffic: Traffic::default(),
            policy: RequestPolicy { is_long: |_| false, finishes: false },
            acceptor: None,
        }
    }

    /// Sets which requests may take long after they have been received completely. A drain waits for these. It waits
    /// for other requests once they take longer than 100 ms.
    #[must_use]
    pub fn long_requests(mut self, is_long: fn(&Parts) -> bool) -> Self {
        self.policy.is_long = is_long;
        self
    }

    /// Processes each request to its end even if its client leaves, and makes drain and seal wait for it. For servers
    /// that change data. By default, the future of a request is dropped when its client leaves.
    #[must_use]
    pub fn finish_requests(mut self) -> Self {
        self.policy.finishes = true;
        self
    }

    /// The current service.
    pub fn service(&self) -> &S {
        &self.service
    }

    /// Sets the service for connections accepted after the next [`Server::serve`]. For a server that closes its data at
    /// a seal and opens them again.
    pub fn replace(&mut self, service: S) {
        self.service = service;
    }

    /// Serves, for the first time or again, and overrides an earlier drain or seal. Call it in a tokio runtime, after
    /// [`crate::tokio::Starting::begin`] has returned: it makes the listener, which other processes share, nonblocking.
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
                policy: self.policy,
            };
            self.acceptor = Some(Acceptor::start(&self.listener, clients)?);
        }
        Ok(())
    }

    /// Asks clients to reconnect. Waits until only short requests on new connections are in progress, or until
    /// `cancelled` completes ([`Drain::cancelled`]). Accepts all the time, and stays in this mode until
    /// [`Server::seal`] or [`Server::serve`].
    pub async fn drain(&mut self, cancelled: impl Future<Output = ()>) {
        self.gate.send_replace(Gate::Draining);
        let traffic = self.traffic.clone();
        ::tokio::select! {
            () = wait_for_quiescence(traffic, Instant::now()) => {}
            () = cancelled => {}
        }
    }

    /// Stops accepting and finishes what was accepted. The listener stays open. In exclusive mode the clients in its
    /// queue wait for the next process; in overlap mode this server serves them. With `may_cut` ([`Seal::may_cut`]) it
    /// cuts connections that do not end soon.
    ///
    /// # Errors
    ///
    /// A request takes too long. The connections stay open: call [`Server::serve`].
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

/// Waits for a good moment to seal: when only short requests are in progress, or shortly afterwards none.
async fn wait_for_quiescence(traffic: Traffic, drain_began: Instant) {
    traffic.quiet(drain_began).await;
    if timeout(IDLE_LIMIT, traffic.empty()).await.is_err() {
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

/// Completes at SIGTERM or SIGINT. For `stop` of [`crate::tokio::Serving::run_until`].
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

/// The request type that hyper passes to a service.
type HttpRequest = Request<Incoming>;
