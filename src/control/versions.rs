//! What is asked and answered about the versions of a service.

use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;
use serde::{Deserialize, Serialize};

use crate::store::{Evidence, Kind};

/// What is said of a new binary: how it can be verified, and what of it is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// How it can be verified.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// Which member of an archive, or which file of a directory; without it, what the service file says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Whether an archive is taken as a whole; without it, what the service file says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tree: Option<bool>,
}

/// A new version was put at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Install {
    /// Of which service.
    pub service: ServiceName,
    /// Absolute path of a program, an archive or a directory.
    pub path: PathBuf,
    /// What is said of it.
    #[serde(flatten)]
    pub claims: Claims,
    /// Its version; it is not asked for it then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Go back to a version that ran before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rollback {
    /// Which service.
    pub service: ServiceName,
    /// The generation as which it ran; without it, the last one of another version than the current.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Keep a version, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// Of which service.
    pub service: ServiceName,
    /// The beginning of its hash, or what it says its version is.
    pub version: String,
    /// Whether it is kept whatever comes.
    pub pinned: bool,
}

/// A version that is kept, or was until now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStatus {
    /// Of which service.
    pub service: ServiceName,
    /// SHA-256 of its content in hex.
    pub sha256: String,
    /// What it says its version is.
    pub version: Option<String>,
    /// Whether it is a file or a tree.
    pub kind: Kind,
    /// Where it came from last.
    pub binary: Option<PathBuf>,
    /// The file in the store that is started.
    pub stored: PathBuf,
    /// All of it.
    pub size_bytes: u64,
    /// When it came, in milliseconds since 1970.
    pub added_at: u64,
    /// The generations that it ran as, the newest last.
    pub generations: Vec<u64>,
    /// Whether it is the current one.
    pub current: bool,
    /// Whether it is kept whatever comes.
    pub pinned: bool,
}

/// What the service file names, where what runs came from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The path in the file.
    pub binary: PathBuf,
    /// Which of the two is newer.
    pub is: NamedIs,
}

/// How what the service file names stands to what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedIs {
    /// The file was edited, or what it names was written, after what runs was brought in.
    Newer,
    /// What runs was brought in later, by another way than the file.
    Older,
}

/// A version that waits for the next start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedStatus {
    /// The path that was given.
    pub binary: PathBuf,
    /// What it says its version is.
    pub version: Option<String>,
}

/// How the file at the path that was given differs from what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skew {
    /// Another file is there.
    Changed,
    /// Nothing is there; what runs is in the store.
    Gone,
    /// Nothing is there, and what runs is kept nowhere: it cannot be started again.
    Deleted,
}
