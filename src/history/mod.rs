//! What was attempted with a service, by whom, and how it ended: for people, kept across restarts of the daemon.
//!
//! Nothing is decided by it, so nothing waits for the disk, and an entry that cannot be written is no reason to stop.

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

/// One attempt, from the request to the end. A later line with the same id and operation takes the place of an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The handoff.
    pub id: HandoffId,
    /// The service.
    pub service: ServiceName,
    /// What was asked for.
    pub operation: Operation,
    /// Whether generations may overlap.
    pub mode: Mode,
    /// What ran before, if anything did.
    #[serde(default)]
    pub from: Option<Version>,
    /// What was to run.
    #[serde(default)]
    pub to: Option<Version>,
    /// Who asked.
    pub by: Caller,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// How long it took until it was decided, in microseconds.
    pub took_us: u64,
    /// The phases, counted from the request.
    #[serde(default)]
    pub phases: Vec<PhaseTime>,
    /// How long nobody accepted; nothing where there was no such time.
    #[serde(default)]
    pub accept_gap_us: Option<u64>,
    /// Whether the old process was ended and started again.
    #[serde(default)]
    pub restarted: bool,
    /// What the old process had when it was told to end.
    #[serde(default)]
    pub connections: Option<api::Connections>,
    /// Datagrams that no program has read.
    #[serde(default)]
    pub lost_datagrams: u64,
    /// How it ended.
    pub outcome: Ending,
    /// Why it ended so: one clause.
    #[serde(default)]
    pub reason: Option<String>,
    /// The generation afterwards.
    pub generation: Generation,
    /// What was killed since it had not ended in its time.
    #[serde(default)]
    pub killed: Vec<Killed>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Start a stopped service.
    Start,
    /// Stop it.
    Stop,
    /// Replace the process by one of the same binary.
    Restart,
    /// Replace the binary.
    Upgrade,
    /// Replace the binary by one that was just brought in.
    Install,
    /// Go back to an earlier binary.
    Rollback,
    /// What a later version of the daemon wrote.
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
    /// It did not work, and the service may be down.
    Failed,
    /// The new version was refused before it ran.
    Rejected,
    /// The new version waits for the next start.
    Staged,
    /// What a later version of the daemon wrote.
    #[serde(other)]
    Other,
}

/// One version of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its program.
    pub path: PathBuf,
    /// SHA-256 of the program in hex, where it is known.
    #[serde(default)]
    pub sha256: Option<String>,
    /// What it calls itself.
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
            api::Ending::Started => Self::Started,
            api::Ending::Stopped => Self::Stopped,
            api::Ending::Failed => Self::Failed,
            api::Ending::Staged => Self::Staged,
        }
    }
}

impl Ending {
    /// As people read it.
    pub fn words(self) -> &'static str {
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
