//! The asynchronous API, for servers on tokio. States and meaning are the same as in [the blocking API](crate).

use std::future::Future;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use handoff_protocol::message::Mode;
use tokio::sync::mpsc;

use super::driver::DriverRequest;
use super::start::{self, Link};
use super::state::SuccessorLink;
use super::work::{self, Done};
pub use super::{BoxError, Drain, Ended, Error, Origin, Seal, State, StateError};
use super::{log_result, untaken};
use handoff_crash_points::crash_point;

/// The callbacks of a server; see [`crate::Server`]. The task that called [`Serving::run`] makes all calls, one at a
/// time.
pub trait Server: Send {
    /// See [`crate::Server::drain`].
    fn drain(&mut self, drain: Drain) -> impl Future<Output = Result<(), BoxError>> + Send;
    /// See [`crate::Server::seal`].
    fn seal(&mut self, seal: Seal) -> impl Future<Output = Result<(), BoxError>> + Send;
    /// See [`crate::Server::resume`].
    fn resume(&mut self) -> impl Future<Output = Result<(), BoxError>> + Send;
    /// See [`crate::Server::take_over`].
    fn take_over(&mut self, state: State) -> impl Future<Output = Result<(), BoxError>> + Send {
        std::future::ready(Err(untaken(&state)))
    }
}

/// See [`crate::start`]. Blocks for one round trip to the supervisor.
pub async fn start() -> Result<Starting, Error> {
    let (requests, inbox) = mpsc::unbounded_channel();
    let link = start::link(move |request| drop(requests.send(request)))?;
    Ok(Starting { link, requests: inbox })
}

/// See [`crate::Starting`].
#[derive(Debug)]
pub struct Starting {
    link: Link,
    requests: mpsc::UnboundedReceiver<DriverRequest>,
}

impl Starting {
    /// What started the process.
    pub fn origin(&self) -> Origin {
        self.link.origin()
    }

    /// See [`crate::Starting::version`].
    #[must_use]
    pub fn version(self, version: &str) -> Self {
        self.link.version(version);
        self
    }

    /// See [`crate::Starting::tcp_listener`]. Make it nonblocking for tokio only after [`Starting::begin`].
    pub fn tcp_listener(&mut self, name: &str, address: &str) -> Result<TcpListener, Error> {
        self.link.tcp_listener(name, address)
    }

    /// See [`crate::Starting::unix_listener`].
    pub fn unix_listener(&mut self, name: &str, path: &Path) -> Result<UnixListener, Error> {
        self.link.unix_listener(name, path)
    }

    /// See [`crate::Starting::udp_socket`].
    pub fn udp_socket(&mut self, name: &str, address: &str) -> Result<UdpSocket, Error> {
        self.link.udp_socket(name, address)
    }

    /// See [`crate::Starting::mode`].
    pub fn mode(&self) -> Mode {
        self.link.mode()
    }

    /// See [`crate::Starting::begin`].
    pub async fn begin(mut self, data: Option<&Path>) -> Result<Begun, Error> {
        self.link.started(data)?;
        let state = match self.link.origin() {
            Origin::Standalone => None,
            Origin::Supervised => start::await_open(self.requests.recv().await)?,
        };
        Ok(Begun { link: self.link, requests: self.requests, state })
    }

    /// See [`crate::Starting::unhealthy`].
    pub async fn unhealthy(self, reason: &str) -> Error {
        unhealthy(&self.link, self.requests, reason).await
    }
}

/// See [`crate::Begun`].
#[derive(Debug)]
pub struct Begun {
    link: Link,
    requests: mpsc::UnboundedReceiver<DriverRequest>,
    state: Option<State>,
}

impl Begun {
    /// See [`crate::Begun::state`].
    pub fn state(&mut self) -> Option<State> {
        self.state.take()
    }

    /// See [`crate::Begun::ready`].
    pub async fn ready(self) -> Result<Serving, Error> {
        self.link.opened(Ok(()));
        Ok(Serving { link: self.link, requests: self.requests })
    }

    /// See [`crate::Begun::unhealthy`].
    pub async fn unhealthy(self, reason: &str) -> Error {
        unhealthy(&self.link, self.requests, reason).await
    }
}

/// See [`crate::Serving`].
#[derive(Debug)]
pub struct Serving {
    link: Link,
    requests: mpsc::UnboundedReceiver<DriverRequest>,
}

impl Serving {
    /// Calls `server` to drain, seal or resume, until the process must leave. Without a supervisor it never completes.
    pub async fn run(self, server: impl Server) -> Result<Ended, Error> {
        self.run_until(server, std::future::pending()).await
    }

    /// Like [`Serving::run`]. When `stop` completes, for example at SIGTERM, the server drains for at most
    /// [`STOP_GRACE`], seals and is released. A supervisor sees that the process ended, and replaces it.
    pub async fn run_until(
        mut self,
        mut server: impl Server,
        stop: impl Future<Output = ()>,
    ) -> Result<Ended, Error> {
        let mut stop = pin!(stop);
        loop {
            let request = tokio::select! {
                biased;
                request = self.requests.recv() => request,
                () = &mut stop => return leave(server, self.link.mode()).await,
            };
            let Some(request) = request else { std::future::pending().await };
            match request {
                DriverRequest::Open(_) => {}
                DriverRequest::TakeOver(state) => {
                    log_result(guard("take_over", || server.take_over(state)).await)
                }
                DriverRequest::Drain(drain) => {
                    self.link.drained(guard("drain", || server.drain(drain)).await)
                }
                DriverRequest::Seal(seal) => self.link.sealed(guard("seal", || server.seal(seal)).await),
                DriverRequest::Resume => self.link.resumed(guard("resume", || server.resume()).await),
                DriverRequest::End(end) => return end,
            }
        }
    }
}

/// Drain time of a server that is stopped from outside.
pub const STOP_GRACE: Duration = Duration::from_secs(30);

async fn leave(mut server: impl Server, mode: Mode) -> Result<Ended, Error> {
    let drain = Drain::new(STOP_GRACE, SuccessorLink::default(), false);
    // Seals even if the drain fails or times out: the process must end.
    if tokio::time::timeout(STOP_GRACE, guard("drain", || server.drain(drain.clone()))).await.is_err() {
        drain.cancel();
    }
    guard("seal", || server.seal(Seal { mode, cut: true, grant: None, successor: SuccessorLink::default() }))
        .await
        .map_err(Error::SealFailed)?;
    Ok(Ended::Released)
}

/// Reports that the process cannot serve, and waits until the supervisor has received the report.
async fn unhealthy(link: &Link, mut requests: mpsc::UnboundedReceiver<DriverRequest>, reason: &str) -> Error {
    link.opened(Err(reason.to_owned()));
    match link.origin() {
        Origin::Standalone => Error::Unhealthy(reason.to_owned()),
        Origin::Supervised => await_report(&mut requests).await,
    }
}

async fn await_report(requests: &mut mpsc::UnboundedReceiver<DriverRequest>) -> Error {
    loop {
        match requests.recv().await {
            Some(DriverRequest::End(Err(error))) => return error,
            Some(_) => {}
            None => return Error::Closed,
        }
    }
}

/// Runs the server's own code. Converts a panic to an error.
async fn guard<F: Future<Output = Result<(), BoxError>>>(what: &str, code: impl FnOnce() -> F) -> Done {
    let code = || {
        crash_point!("library/incumbent/code.{what}.begins");
        let future = code();
        async move {
            let result = future.await;
            crash_point!("library/incumbent/code.{what}.ends");
            result
        }
    };
    let future = match catch_unwind(AssertUnwindSafe(code)) {
        Ok(future) => future,
        Err(payload) => return Err(work::panic_text(&*payload)),
    };
    let mut future = pin!(future);
    std::future::poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(|result| result.map_err(|error| error.to_string())),
        Err(payload) => Poll::Ready(Err(work::panic_text(&*payload))),
    })
    .await
}
