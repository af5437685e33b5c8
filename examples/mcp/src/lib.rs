//! An upgradable MCP server (Model Context Protocol, streamable HTTP): you can replace its binary while clients use it.
//! No call fails, sessions continue, and streams resume.
//!
//! ```text
//! mcp-server --listen 127.0.0.1:8000         without a supervisor
//! ```
//!
//! With a supervisor, in overlap mode, with a service file such as:
//!
//! ```toml
//! binary = "/srv/mcp/mcp-server-1.0.0"
//! mode = "overlap"
//!
//! [listen]
//! mcp = "127.0.0.1:8000"
//! ```
//!
//! The crate `rmcp` implements the protocol. This crate adds what an upgradable server needs:
//!
//! - [`server`]: the server and its handoff callbacks: drain, seal, serve again, take over. The HTTP helper of the
//!   library treats the connections;
//! - [`sessions`]: the table of sessions, which is handed over to the next process;
//! - [`tools`]: the tools `echo`, `slow` (which reports progress) and `version`.
//!
//! An upgrade as a client sees it:
//!
//! - The process that received a running call answers it, with all its progress notifications.
//! - The next call uses a new connection to the new process, with the same session. A new process holds a request with
//!   an unknown session for up to 2 s, until the old process has handed the sessions over.
//! - An event stream (GET) ends cleanly. The client reconnects after the time that the server has sent, with the header
//!   `Last-Event-ID`, and reaches the new process.
//! - Protocol versions without sessions need none of this.
//!
//! Not carried over: a cancellation, or an answer to a request of the server, that a client sends over a new connection
//! while its call still runs in the old process; and the subscriptions of a session.
//!
//! `src/main.rs` combines the parts. Copy from there.

pub mod server;
pub mod sessions;
pub mod tools;

pub use handoff_example_release::{BoxError, log, rehearsal, stamp};
