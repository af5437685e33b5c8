//! What must hold for every input that comes from outside. Each function takes any bytes, and panics when a promise
//! is broken.
//!
//! The fuzz targets call them with inputs that a fuzzer makes up, and `tests/suite/corpus.rs` of the root package with
//! those that are kept: so they are the same checks in both.

mod control;
mod frame;
mod journal;
mod service_file;

/// A target and its name, which is that of its corpus too.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [
    ("frame", frame),
    ("journal_image", journal_image),
    ("journal_damage", journal_damage),
    ("control_request", control_request),
    ("service_file", service_file),
];

pub use control::control_request;
pub use frame::frame;
pub use journal::{journal_damage, journal_image};
pub use service_file::service_file;
