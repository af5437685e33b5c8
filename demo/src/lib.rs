//! What `cargo demo` is made of: S3 clients that check every byte, a supervisor to itself, and the report.

pub mod binaries;
pub mod load;
pub mod progress;
pub mod report;
pub mod rig;
pub mod run;

/// The error of the demo itself: its text says what went wrong.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
