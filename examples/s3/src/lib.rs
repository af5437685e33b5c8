//! A real S3 server over a directory, built so that its binary can be replaced while it serves.
//!
//! The S3 protocol and the storage come from the crates `s3s` and `s3s-fs`; what is here is what a server
//! has to add so that an upgrade drops nothing:
//!
//! - [`server`]: the server itself, with the three things a handoff asks for: drain, seal, resume;
//! - `connection`: one client connection, which can be asked to move on without ever cutting an answer;
//! - `traffic`: what is in progress at this moment, so that a drain knows when it is over;
//! - `store`: the file store, made durable: what is acknowledged is on the disk;
//! - [`stamp`]: the release number that packaging writes behind the executable.
//!
//! `src/main.rs` puts them together and is the part to copy from.

mod connection;
pub mod server;
pub mod stamp;
mod store;
mod traffic;

/// The error of everything that a handoff may ask of the server: its text says what went wrong.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
