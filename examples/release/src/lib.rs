//! What the example servers have in common: the release number that packaging writes behind an executable, and
//! releases that go wrong on purpose.

/// Writes a line to the log, which is the standard error stream. Unlike `eprintln!` it does not panic when
/// nobody reads that stream any more.
#[macro_export]
macro_rules! log {
    ($($line:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

pub mod rehearsal;
pub mod stamp;

/// The error of everything that a handoff may ask of a server: its text says what went wrong.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
