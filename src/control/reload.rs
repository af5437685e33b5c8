//! `reload`: what would change or has changed, by service.

use handoff_protocol::ids::ServiceName;
use serde::{Deserialize, Serialize};

use super::api::{LastLines, Outcome};
use super::error::{Error, Kind};
use crate::config;
pub use crate::config::Cost;

/// The parameters of `reload`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reload {
    /// Whether nothing is applied.
    pub dry_run: bool,
    /// Whether services may be stopped for it.
    pub allow_stop: bool,
}

/// How the file of a service differs from what the daemon goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Some of its keys have another value.
    Changed,
    /// It says the same.
    Unchanged,
    /// It cannot be used.
    Broken,
}

impl FileChange {
    /// The word in tables and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Broken => "broken",
        }
    }
}

/// One service in the plan of a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedService {
    /// The service; `None` if its file has a name that no service can have.
    pub service: Option<ServiceName>,
    /// How its file differs.
    pub change: FileChange,
    /// The keys that have another value.
    pub keys: Vec<String>,
    /// What the change costs.
    pub cost: Cost,
    /// The mistakes of a broken file.
    pub errors: Vec<config::Error>,
}

/// How the file of a service differs from what the service goes by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// `changed`, `broken` or `removed`.
    pub is: FileChange,
    /// The keys that have another value.
    pub keys: Vec<String>,
    /// What a reload would cost.
    pub cost: Cost,
}

/// The end of the work on one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadResult {
    /// The service.
    pub service: ServiceName,
    /// How its operation ended; `None` if it could not begin.
    pub outcome: Option<Outcome>,
    /// Why it could not begin or failed.
    pub error: Option<ReloadFailure>,
}

/// An error of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadFailure {
    /// The kind of error.
    pub kind: Kind,
    /// A sentence with the cause.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// What the process that failed wrote at last, if one did.
    pub last_lines: Option<Box<LastLines>>,
}

/// The answer to `reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Whether the plan was applied.
    pub applied: bool,
    /// Why it was not applied, if that was not wanted: sentences.
    pub refused: Option<String>,
    /// What differs, by service.
    pub plan: Vec<PlannedService>,
    /// The operations that were necessary, in the order of their end.
    pub results: Vec<ReloadResult>,
}

impl From<Error> for ReloadFailure {
    fn from(Error { kind, message, hint, last_lines }: Error) -> Self {
        Self { kind, message, hint, last_lines }
    }
}

impl Reloaded {
    /// Whether a file is broken.
    pub fn is_broken(&self) -> bool {
        self.plan.iter().any(|row| row.change == FileChange::Broken)
    }
}
