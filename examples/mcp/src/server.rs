//! The MCP server and its handoff callbacks.
//!
//! In overlap mode the successor already serves while this process drains, and gets all new connections. So a drain
//! must make clients reconnect, and hand over the state that they expect there.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use handoff_service::http;
use handoff_service::tokio::{Drain, Seal, Server, State};
use hyper_util::service::TowerToHyperService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};

use crate::BoxError;
use crate::sessions::Sessions;
use crate::tools::Tools;

/// When a client reconnects after the end of its stream.
const RETRY: Duration = Duration::from_millis(200);

/// An MCP server on one listener. The path is `/mcp`; `/healthz` returns the version.
///
/// The HTTP helper of the library drains and seals the connections, and ends event streams. What is left is to hand the
/// sessions over.
pub struct McpServer {
    address: SocketAddr,
    http: http::Server<TowerToHyperService<Router>>,
    sessions: Arc<Sessions>,
}

impl McpServer {
    /// Creates a server of the release `version`. It accepts nothing before [`serve`](Self::serve).
    ///
    /// # Errors
    ///
    /// The listener has no address.
    pub fn new(version: &str, listener: TcpListener) -> io::Result<Self> {
        let (manager, sessions) = (Arc::new(manager()), Arc::new(Sessions::default()));
        let version: Arc<str> = version.into();
        let mut config = StreamableHttpServerConfig::default().with_sse_retry(Some(RETRY));
        config.session_store = Some(sessions.clone());
        let tools = Tools::new(version.clone());
        let mcp = StreamableHttpService::new(move || Ok(tools.clone()), manager, config);
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
        let address = listener.local_addr()?;
        Ok(Self { address, http: http::Server::tower(listener, router), sessions })
    }

    /// The address for clients.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves, for the first time or again, and overrides an earlier drain or seal.
    ///
    /// # Errors
    ///
    /// The listener cannot be polled.
    pub fn serve(&mut self) -> io::Result<()> {
        self.http.serve()
    }
}

impl Server for McpServer {
    /// Hands the sessions over, again with each change, and waits until all running calls are answered, or until the
    /// drain is cancelled. Clients whose event stream ends reconnect to the successor with the session and the id of
    /// their last event.
    async fn drain(&mut self, drain: Drain) -> Result<(), BoxError> {
        let mut changes = self.sessions.changes();
        drain.hand_over(&self.sessions.state()?)?;
        let mut drained = pin!(self.http.drain(drain.cancelled()));
        loop {
            tokio::select! {
                () = &mut drained => return Ok(()),
                _ = changes.changed() => drain.hand_over(&self.sessions.state()?)?,
            }
        }
    }

    /// Ends the connections, and hands the sessions over once more.
    async fn seal(&mut self, seal: Seal) -> Result<(), BoxError> {
        self.http.seal(seal.mode(), seal.may_cut()).await?;
        Ok(seal.hand_over(&self.sessions.state()?)?)
    }

    async fn resume(&mut self) -> Result<(), BoxError> {
        Ok(self.serve()?)
    }

    async fn take_over(&mut self, state: State) -> Result<(), BoxError> {
        self.sessions.take_over(&state)
    }
}

fn manager() -> LocalSessionManager {
    let mut manager = LocalSessionManager::default();
    manager.session_config.sse_retry = Some(RETRY);
    manager
}
