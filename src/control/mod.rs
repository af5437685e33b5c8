//! The control socket, through which the command line and other programs talk to the daemon.
//!
//! JSON-RPC 2.0 over a unix socket, one object per line in both directions. A connection carries one request at a
//! time, and answers come in order. During a request the daemon sends `progress` notifications before the answer.
//! Operations belong to the daemon: a client that hangs up does not stop them.

mod access;
pub mod api;
mod caller;
mod changes;
mod client;
mod error;
mod listener;
mod params;
mod progress;
mod registration;
mod reload;
// The fuzz targets read lines like the daemon and its clients.
#[doc(hidden)]
pub mod rpc;
mod server;
mod signals;
mod state;
mod status;
mod subscriptions;
mod versions;

pub use access::{Access, PeerIds, Right};
pub use caller::Caller;
pub use client::{Client, ClientError};
pub use error::{Error, Kind};
pub use rpc::LINE_MAX_BYTES;
// The side of the daemon, for its tests.
#[doc(hidden)]
pub use listener::{BindError, Listener};
#[doc(hidden)]
pub use server::{CONNECTIONS_MAX, Handler, ProgressSink, serve};

pub use subscriptions::CHANGES_KEPT;

pub(crate) use signals::{signal_names, signal_of};

#[cfg(test)]
mod tests;
