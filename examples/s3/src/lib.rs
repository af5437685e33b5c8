//! A real S3 server over a directory, built so that its binary can be replaced while it serves.
//!
//! The S3 protocol and the storage come from the crates `s3s` and `s3s-fs`; what is here is what a server
//! has to add so that an upgrade drops nothing:
//!
//! - [`server`]: the server itself, with the three things a handoff asks for: drain, seal, serve again;
//! - `connection`: one client connection, which can be asked to move on without ever cutting an answer;
//! - `traffic`: what is in progress at this moment, so that a drain knows when it is over;
//! - `store`: the file store, made durable: what is acknowledged is on the disk;
//! - [`stamp`] and [`rehearsal`]: the release number that packaging writes behind the executable, and releases
//!   that go wrong on purpose.
//!
//! `src/main.rs` puts them together and is the part to copy from.

/// Writes a line to the log, which is the standard error stream. Unlike `eprintln!` it does not panic when
/// nobody reads that stream any more.
#[macro_export]
macro_rules! log {
    ($($line:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

mod connection;
pub mod rehearsal;
pub mod server;
pub mod stamp;
mod store;
mod traffic;

/// The error of everything that a handoff may ask of the server: its text says what went wrong.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
