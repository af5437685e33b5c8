//! The requests and answers about the versions of a service.

use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;
use serde::{Deserialize, Serialize};

use crate::store::{Evidence, VersionKind};

/// The claims about a new binary: how to verify it, and which part of it is the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// How to verify it.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// The member of an archive, or the file of a directory; without it, as in the service file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Whether to take the whole archive; without it, as in the service file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tree: Option<bool>,
}

/// A new version at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Install {
    /// The service.
    pub service: ServiceName,
    /// Absolute path of a program, an archive or a directory.
    pub path: PathBuf,
    /// How to verify it, and which part of it is the program.
    #[serde(flatten)]
    pub claims: Claims,
    /// Its version. With it, `version_command` does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A request to go back to a version that ran before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rollback {
    /// The service.
    pub service: ServiceName,
    /// The generation of that version; without it, the last one that differs from the current version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// A request to keep a version, or to release it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// The service.
    pub service: ServiceName,
    /// The beginning of its hash, or its version.
    pub version: String,
    /// Whether to keep it until it is released.
    pub pinned: bool,
}

/// A version that is stored, or was until now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStatus {
    /// The service.
    pub service: ServiceName,
    /// SHA-256 of its content in hex.
    pub sha256: String,
    /// Its version.
    pub version: Option<String>,
    /// A file or a tree.
    pub kind: VersionKind,
    /// The path that it came from last.
    pub binary: Option<PathBuf>,
    /// The file in the store that is started.
    pub stored: PathBuf,
    /// Size of its whole content.
    pub size_bytes: u64,
    /// When it was stored, in milliseconds since 1970.
    pub added_at: u64,
    /// The generations with this version, the newest last.
    pub generations: Vec<u64>,
    /// Whether its last commit was undone: it was taken back, or did not pass its probation.
    #[serde(default)]
    pub undone: bool,
    /// Whether it is the current version.
    pub current: bool,
    /// Whether it is kept until it is released.
    pub pinned: bool,
}

/// The binary in the service file, if the running one came from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The path in the file.
    pub binary: PathBuf,
    /// Whether it is newer or older.
    pub is: NamedIs,
}

/// The age of the binary in the service file, relative to the running version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedIs {
    /// The file was edited, or its binary written, after the running version came in.
    Newer,
    /// The running version came in later, and not through the file.
    Older,
}

/// A version that waits for the next start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedStatus {
    /// The path from the request.
    pub binary: PathBuf,
    /// Its version.
    pub version: Option<String>,
}

/// How the file at the path of the running version differs from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skew {
    /// Another file is there.
    Changed,
    /// The file is gone. The running version is in the store.
    Gone,
    /// The file is gone, and the running version is not stored: it cannot be started again.
    Deleted,
}
