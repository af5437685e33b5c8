//! A real S3 server over a directory, built so that its binary can be replaced while it serves.
//!
//! The S3 protocol and the storage come from the crates `s3s` and `s3s-fs`; what is here is what a server
//! has to add so that an upgrade drops nothing:
//!
//! - [`server`]: the server itself, with the three things a handoff asks for: drain, seal, serve again; connections are the
//!   business of `handoff_service::http`;
//! - `store`: the file store, made durable: what is acknowledged is on the disk;
//! - [`stamp`] and [`rehearsal`], of all examples: the release number that packaging writes behind the executable,
//!   and releases that go wrong on purpose.
//!
//! `src/main.rs` puts them together and is the part to copy from.

pub mod server;
mod store;

pub use handoff_example_release::{BoxError, log, rehearsal, stamp};
