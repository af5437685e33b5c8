//! The tools. They only take time and report progress, as real ones do.

use std::sync::Arc;
use std::time::Duration;

use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{Implementation, ProgressNotificationParam, ServerCapabilities, ServerConfig};
use rmcp::schemars::{self, JsonSchema};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler, tool, tool_handler, tool_router};
use serde::Deserialize;

/// The handler of one session, or of one request in protocol versions without sessions.
#[derive(Debug, Clone)]
pub struct Tools {
    version: Arc<str>,
}

/// The arguments of `echo`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Echo {
    /// The text to return.
    text: String,
}

/// The arguments of `slow`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Slow {
    /// Number of steps.
    steps: u32,
    /// Duration of each step, in milliseconds.
    step_ms: u64,
}

#[tool_router]
impl Tools {
    /// The tools of the release `version`.
    pub fn new(version: Arc<str>) -> Self {
        Self { version }
    }

    #[tool(description = "Returns the text")]
    async fn echo(&self, Parameters(Echo { text }): Parameters<Echo>) -> String {
        text
    }

    #[tool(description = "Returns the release of the server")]
    async fn version(&self) -> String {
        self.version.to_string()
    }

    #[tool(description = "Takes time, and reports each step on request")]
    async fn slow(
        &self,
        Parameters(Slow { steps, step_ms }): Parameters<Slow>,
        context: RequestContext<RoleServer>,
    ) -> String {
        let token = context.meta.get_progress_token();
        for step in 1..=steps {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(step_ms)) => {}
                () = context.ct.cancelled() => return "cancelled".to_owned(),
            }
            if let Some(token) = &token {
                let progress =
                    ProgressNotificationParam::new(token.clone(), step.into()).with_total(steps.into());
                // A client that has left needs no progress.
                let _ = context.peer.notify_progress(progress).await;
            }
        }
        format!("{steps} steps by {}", self.version)
    }
}

#[tool_handler]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("handoff-example-mcp", &*self.version))
    }
}
