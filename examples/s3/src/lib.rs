//! An upgradable S3 server on a directory: you can replace its binary while it serves.
//!
//! The crates `s3s` and `s3s-fs` implement the S3 protocol and the storage. This crate adds what a server needs so that
//! an upgrade drops nothing:
//!
//! - [`server`]: the server and its handoff callbacks: drain, seal, serve again; `handoff_service::http` handles the
//!   connections;
//! - `store`: the durable file store: everything acknowledged is on disk;
//! - [`stamp`] and [`rehearsal`], shared by all examples: the release number that packaging appends to the executable,
//!   and releases that fail on purpose.
//!
//! `src/main.rs` combines the parts. Copy from there.

pub mod server;
mod store;

pub use handoff_example_release::{BoxError, log, rehearsal, stamp};
