//! The MCP server and its handoff callbacks.
//!
//! In overlap mode the successor already serves while this process drains, and gets all new connections. So a drain
//! must make clients reconnect, and hand over the state that they expect there.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use handoff_service::tokio::{Drain, Seal, State};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::connection::{self, Gate, Traffic};
use crate::sessions::Sessions;
use crate::tools::Tools;
use crate::{BoxError, log};

/// When a client reconnects after the end of its stream.
const RETRY: Duration = Duration::from_millis(200);
/// How often a drain ends streams that clients have reopened on a connection of this process.
const END_STREAMS_EVERY: Duration = Duration::from_millis(100);
/// How long a seal waits for work in progress.
const SEAL_PATIENCE: Duration = Duration::from_secs(2);
/// The same, if it may be cut.
const CUT_PATIENCE: Duration = Duration::from_millis(500);
/// Pause after the system has run out of a resource, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An MCP server on one listener. The path is `/mcp`; `/healthz` returns the version.
pub struct McpServer {
    listener: TcpListener,
    router: Router,
    gate: watch::Sender<Gate>,
    traffic: Traffic,
    manager: Arc<LocalSessionManager>,
    sessions: Arc<Sessions>,
    acceptor: Option<Acceptor>,
}

impl McpServer {
    /// Creates a server of the release `version`. It accepts nothing before [`serve`](Self::serve).
    pub fn new(version: &str, listener: TcpListener) -> Self {
        let (manager, sessions) = (Arc::new(manager()), Arc::new(Sessions::default()));
        let version: Arc<str> = version.into();
        let mut config = StreamableHttpServerConfig::default().with_sse_retry(Some(RETRY));
        config.session_store = Some(sessions.clone());
        let tools = Tools::new(version.clone());
        let mcp = StreamableHttpService::new(move || Ok(tools.clone()), manager.clone(), config);
        let used = sessions.clone();
        let router = Router::new()
            .nest_service("/mcp", mcp)
            .layer(middleware::from_fn(move |request: Request, next: Next| {
                if let Some(id) = request.headers().get("mcp-session-id").and_then(|id| id.to_str().ok()) {
                    used.used(id);
                }
                next.run(request)
            }))
            .route("/healthz", axum::routing::get(async move || version.to_string()));
        let gate = watch::Sender::new(Gate::Open);
        Self { listener, router, gate, traffic: Traffic::default(), manager, sessions, acceptor: None }
    }

    /// The address for clients.
    ///
    /// # Errors
    ///
    /// The listener has no address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves, for the first time or again, and overrides an earlier drain or seal.
    ///
    /// # Errors
    ///
    /// The listener cannot be polled.
    pub fn serve(&mut self) -> io::Result<()> {
        self.gate.send_replace(Gate::Open);
        if self.acceptor.is_none() {
            // Not earlier: the flag belongs to the open file, and another process may be accepting from it.
            self.listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(self.listener.try_clone()?)?;
            let (stop, stopped) = oneshot::channel();
            let clients = Clients {
                router: self.router.clone(),
                gate: self.gate.clone(),
                traffic: self.traffic.clone(),
            };
            self.acceptor = Some(Acceptor { stop, task: tokio::spawn(accept(listener, clients, stopped)) });
        }
        Ok(())
    }

    /// Hands the sessions over, and waits until every client has left, so all running calls are answered; or until
    /// the drain is cancelled. Ends streams that only wait for events: their clients reconnect to the successor with
    /// the session and the id of their last event.
    ///
    /// # Errors
    ///
    /// The sessions cannot be handed over.
    pub async fn drain(&self, drain: &Drain) -> Result<(), BoxError> {
        self.gate.send_replace(Gate::Draining);
        let mut changes = self.sessions.changes();
        drain.hand_over(&self.sessions.state()?)?;
        loop {
            self.end_streams().await;
            tokio::select! {
                () = self.traffic.empty() => return Ok(()),
                () = drain.cancelled() => return Ok(()),
                _ = changes.changed() => drain.hand_over(&self.sessions.state()?)?,
                () = sleep(END_STREAMS_EVERY) => {}
            }
        }
    }

    async fn end_streams(&self) {
        let sessions: Vec<_> = self.manager.sessions.read().await.values().cloned().collect();
        for session in sessions {
            // A session that has ended in the meantime has no stream.
            let _ = session.close_standalone_sse_stream(None).await;
        }
    }

    /// Accepts only what is in the listener's queue, serves it, and hands the sessions over once more. With `may_cut`
    /// of `seal`, cuts what does not end soon.
    ///
    /// # Errors
    ///
    /// A call takes too long, or the sessions cannot be handed over: call [`serve`](Self::serve).
    pub async fn seal(&mut self, seal: &Seal) -> Result<(), BoxError> {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.stop().await;
        }
        self.gate.send_replace(Gate::Draining);
        self.end_streams().await;
        let patience = if seal.may_cut() { CUT_PATIENCE } else { SEAL_PATIENCE };
        let mut ended = timeout(patience, self.traffic.empty()).await;
        if ended.is_err() && seal.may_cut() {
            log!("cuts what is left: {} connections", self.traffic.count());
            self.gate.send_replace(Gate::Cut);
            ended = timeout(SEAL_PATIENCE, self.traffic.empty()).await;
        }
        if ended.is_err() {
            return Err(format!("cannot seal yet: {} connections are open", self.traffic.count()).into());
        }
        Ok(seal.hand_over(&self.sessions.state()?)?)
    }

    /// Takes over the sessions of the predecessor.
    ///
    /// # Errors
    ///
    /// Their format is not supported.
    pub fn take_over(&self, state: &State) -> Result<(), BoxError> {
        self.sessions.take_over(state)
    }
}

fn manager() -> LocalSessionManager {
    let mut manager = LocalSessionManager::default();
    manager.session_config.sse_retry = Some(RETRY);
    manager
}

/// The parameters for accepted connections.
struct Clients {
    router: Router,
    gate: watch::Sender<Gate>,
    traffic: Traffic,
}

impl Clients {
    fn welcome(&self, stream: tokio::net::TcpStream) {
        // Fails only if the connection is already gone; its own task detects that.
        let _ = stream.set_nodelay(true);
        let (router, gate) = (self.router.clone(), self.gate.subscribe());
        tokio::spawn(connection::serve(stream, router, gate, self.traffic.enter()));
    }
}

/// The accept task.
struct Acceptor {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Acceptor {
    /// Stops accepting. Returns when the task has ended.
    async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            log!("the accept task failed: {error}");
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, clients: Clients, mut stopped: oneshot::Receiver<()>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => break,
        };
        match accepted {
            Ok((stream, _)) => clients.welcome(stream),
            // Usually there are no descriptors left, or the client has left.
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
    // No other process serves the clients in the queue.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, _)) = listener.accept() {
        if let Ok(stream) =
            stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream))
        {
            clients.welcome(stream);
        }
    }
}
