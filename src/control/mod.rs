//! The control socket: how the command line, or anything else, talks to the daemon.
//!
//! JSON-RPC 2.0 over a unix socket, one object a line in both directions. A connection carries one request at a
//! time and answers in order; while a request works, the daemon sends `progress` notifications before the
//! answer. The operations belong to the daemon: a client that hangs up stops nothing.

pub mod api;
mod caller;
mod client;
mod error;
mod params;
// The fuzz targets read lines as the daemon and its clients do.
#[doc(hidden)]
pub mod rpc;
mod server;
mod signals;
mod versions;

pub use caller::Caller;
pub use client::{Client, ClientError};
pub use error::{Error, Kind};
pub use rpc::LINE_MAX_BYTES;
// The side of the daemon, for its tests.
#[doc(hidden)]
pub use server::{BindError, CONNECTIONS_MAX, Handler, Listener, ProgressSink, serve};

pub(crate) use signals::{signal_names, signal_of};

#[cfg(test)]
mod tests;
