//! Shared parts of the example servers: the release number that packaging appends to an executable, and releases that
//! fail on purpose.

/// Writes a line to standard error. Unlike `eprintln!`, it does not panic when the stream has no reader.
#[macro_export]
macro_rules! log {
    ($($line:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

pub mod rehearsal;
pub mod stamp;

/// The error of a handoff callback: its text is the reason.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
