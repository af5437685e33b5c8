//! The attempts to change a service, their requesters and their results: for people, kept across restarts of the
//! daemon.
//!
//! No decision depends on it, so nothing waits for the disk, and a failed write has no consequences.

mod file;
mod preparing;

use std::path::PathBuf;

use handoff_protocol::ids::{Generation, HandoffId, ServiceName};
use handoff_protocol::message::Mode;
use serde::{Deserialize, Serialize};

use crate::control::Caller;
use crate::control::api::{self, Killed, PhaseTime};
pub use file::{ENTRIES_MAX, History, put};
pub use preparing::{forget, prepare, prepared};

/// One attempt, from the request to the end. A later line with the same id and operation replaces an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The handoff.
    pub id: HandoffId,
    /// The service.
    pub service: ServiceName,
    /// The requested operation.
    pub operation: Operation,
    /// Whether generations may overlap.
    pub mode: Mode,
    /// What ran before; `None` if nothing did.
    #[serde(default)]
    pub from: Option<Version>,
    /// The new version.
    #[serde(default)]
    pub to: Option<Version>,
    /// The requester.
    pub by: Caller,
    /// Time of the request, in milliseconds since 1970.
    pub at: u64,
    /// Time until the decision, in microseconds.
    pub took_us: u64,
    /// The phases, counted from the request.
    #[serde(default)]
    pub phases: Vec<PhaseTime>,
    /// How long no process accepted connections, in microseconds; `None` if there was no gap.
    #[serde(default)]
    pub accept_gap_us: Option<u64>,
    /// Whether the old process was ended and started again.
    #[serde(default)]
    pub restarted: bool,
    /// The connections of the old process when it received its stop signal.
    #[serde(default)]
    pub connections: Option<api::Connections>,
    /// Datagrams that no program has read.
    #[serde(default)]
    pub lost_datagrams: u64,
    /// The result.
    pub outcome: Ending,
    /// The reason for the result: one clause.
    #[serde(default)]
    pub reason: Option<String>,
    /// The generation afterwards.
    pub generation: Generation,
    /// Processes that were killed because they did not end in time.
    #[serde(default)]
    pub killed: Vec<Killed>,
}

/// The requested operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Start a stopped service.
    Start,
    /// Stop it.
    Stop,
    /// Replace the process by one with the same binary.
    Restart,
    /// Replace the binary.
    Upgrade,
    /// Replace the binary by one that was just imported.
    Install,
    /// Return to an earlier binary.
    Rollback,
    /// Written by a later version of the daemon.
    #[serde(other)]
    Other,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It has not ended.
    UnderWay,
    /// The new version serves.
    Committed,
    /// The old version serves.
    RolledBack,
    /// The service serves after it was stopped.
    Started,
    /// The service is stopped.
    Stopped,
    /// It failed, and the service may be down.
    Failed,
    /// The new version was refused before it ran.
    Rejected,
    /// The new version waits for the next start.
    Staged,
    /// Written by a later version of the daemon.
    #[serde(other)]
    Other,
}

/// One version of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its program.
    pub path: PathBuf,
    /// SHA-256 of the program in hex, if known.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Its own version text.
    #[serde(default)]
    pub version: Option<String>,
}

impl Operation {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Upgrade => "upgrade",
            Self::Install => "install",
            Self::Rollback => "rollback",
            Self::Other => "other",
        }
    }
}

impl From<api::Ending> for Ending {
    fn from(ending: api::Ending) -> Self {
        match ending {
            api::Ending::Committed | api::Ending::Unchanged => Self::Committed,
            api::Ending::RolledBack => Self::RolledBack,
            api::Ending::Started | api::Ending::Completed => Self::Started,
            api::Ending::Stopped => Self::Stopped,
            api::Ending::Failed => Self::Failed,
            api::Ending::Staged => Self::Staged,
        }
    }
}

impl Ending {
    /// The words for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::UnderWay => "under way",
            Self::Committed => "committed",
            Self::RolledBack => "rolled back",
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Staged => "staged",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests;
