//! A real S3 server over a directory, built so that its binary can be replaced while it serves.
//!
//! The S3 protocol and the storage come from the crates `s3s` and `s3s-fs`; what is here is what a server
//! has to add so that an upgrade drops nothing:
//!
//! - [`server`]: the server itself, with the three things a handoff asks for: drain, seal, serve again;
//! - `connection`: one client connection, which can be asked to move on without ever cutting an answer;
//! - `traffic`: what is in progress at this moment, so that a drain knows when it is over;
//! - `store`: the file store, made durable: what is acknowledged is on the disk;
//! - [`stamp`] and [`rehearsal`], of all examples: the release number that packaging writes behind the executable,
//!   and releases that go wrong on purpose.
//!
//! `src/main.rs` puts them together and is the part to copy from.

mod connection;
pub mod server;
mod store;
mod traffic;

pub use handoff_example_release::{BoxError, log, rehearsal, stamp};
