//! The tools. They do nothing useful, but take time and tell of progress as real ones do.

use std::sync::Arc;
use std::time::Duration;

use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{Implementation, ProgressNotificationParam, ServerCapabilities, ServerConfig};
use rmcp::schemars::{self, JsonSchema};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler, tool, tool_handler, tool_router};
use serde::Deserialize;

/// The handler of one session, or of one request of a protocol version without sessions.
#[derive(Debug, Clone)]
pub struct Tools {
    version: Arc<str>,
}

/// What `echo` is given.
#[derive(Debug, Deserialize, JsonSchema)]
struct Echo {
    /// The text to give back.
    text: String,
}

/// What `slow` is given.
#[derive(Debug, Deserialize, JsonSchema)]
struct Slow {
    /// How many steps to take.
    steps: u32,
    /// How long each takes, in milliseconds.
    step_ms: u64,
}

#[tool_router]
impl Tools {
    /// Those of the release `version`.
    pub fn new(version: Arc<str>) -> Self {
        Self { version }
    }

    #[tool(description = "Gives the text back")]
    async fn echo(&self, Parameters(Echo { text }): Parameters<Echo>) -> String {
        text
    }

    #[tool(description = "Tells which release of the server answers")]
    async fn version(&self) -> String {
        self.version.to_string()
    }

    #[tool(description = "Takes its time, and tells of each step if it is asked to")]
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
                // A client that is gone needs no news.
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
