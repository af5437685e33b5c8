//! The parts of `cargo demo`: S3 clients that check every byte, a supervisor of its own, and the report.

pub mod binaries;
pub mod load;
pub mod progress;
pub mod report;
pub mod rig;
pub mod run;

/// An error of the demo itself, with a text for people.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
