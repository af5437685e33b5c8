//! The phases of an operation.

use handoff_protocol::ids::{HandoffId, ServiceName};
use serde::{Deserialize, Serialize};

/// One phase of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Its name.
    pub phase: String,
    /// When it started, since the start of the operation.
    pub started_us: u64,
    /// How long it lasted.
    pub took_us: u64,
}

/// An event of an operation under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The service.
    pub service: ServiceName,
    /// The handoff; `None` before there is one.
    pub handoff: Option<HandoffId>,
    /// The phase that starts.
    pub phase: String,
    /// The time, since the start of the operation.
    pub at_us: u64,
    /// Details for people: one clause.
    pub detail: Option<String>,
}
