//! A real MCP server (Model Context Protocol, streamable HTTP), built so that its binary can be replaced while clients work with
//! it: no call fails, sessions go on, streams are taken up again.
//!
//! ```text
//! mcp-server --listen 127.0.0.1:8000         without a supervisor
//! ```
//!
//! With one, in overlap mode, by a service file like this:
//!
//! ```toml
//! binary = "/srv/mcp/mcp-server-1.0.0"
//! mode = "overlap"
//!
//! [listen]
//! mcp = "127.0.0.1:8000"
//! ```
//!
//! The protocol comes from the crate `rmcp`; what is here is what a server has to add:
//!
//! - [`server`]: the server itself, with what a handoff asks for: drain, seal, serve again, take over;
//! - `connection`: one client connection, which can be asked to move on without ever cutting an answer;
//! - [`sessions`]: the table of sessions, which is handed over to the next process;
//! - [`tools`]: the tools `echo`, `slow` (which tells of progress) and `version`.
//!
//! What a client notices of an upgrade:
//!
//! - A call that is running is answered by the process that it was sent to, with all its progress notifications.
//! - The next call goes over a new connection to the new process, with the same session. A process that was started a
//!   moment ago holds a request with a session that it does not know until the sessions have been handed over, for 2 s at the most.
//! - A stream for news of the server (GET) ends in order. The client comes back after the time that the server has told it, with
//!   the header `Last-Event-ID`, and reaches the new process.
//! - Protocol versions that have no sessions need none of this.
//!
//! What is not carried over: a cancellation, or an answer to a question of the server, that a client sends over a new connection while
//! the call that it belongs to still runs in the old process; and the subscriptions of a session.
//!
//! `src/main.rs` puts it together and is the part to copy from.

mod connection;
pub mod server;
pub mod sessions;
pub mod tools;

pub use handoff_example_release::{BoxError, log, rehearsal, stamp};
