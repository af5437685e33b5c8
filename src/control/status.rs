//! The status of a service, as clients see it.

use std::path::PathBuf;

use handoff_protocol::ids::{Generation, ListenerName, ServiceName};
use handoff_protocol::message::Mode;
use serde::{Deserialize, Serialize};

use super::api::{FileStatus, LastLines, Outcome};
use super::state::State;
use super::versions::{Named, Skew, StagedStatus};
use crate::sys::process::Exit;

/// The status of a service at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The service.
    pub service: ServiceName,
    /// What it does.
    pub state: State,
    /// The phase of that, if there is one.
    pub phase: Option<String>,
    /// More about the phase, if there is more to say: one clause.
    #[serde(default)]
    pub detail: Option<String>,
    /// The committed generation; 0 before the first.
    pub generation: Generation,
    /// The process that serves: that of the program, never its shim.
    pub pid: Option<u32>,
    /// The shim that runs the program, if there is one.
    #[serde(default)]
    pub shim: Option<u32>,
    /// The path from which the binary of that process came, or the configured one.
    pub binary: PathBuf,
    /// The file in the store that is started, if there is one.
    #[serde(default)]
    pub stored: Option<PathBuf>,
    /// Its version.
    #[serde(default)]
    pub version: Option<String>,
    /// Whether the file at that path has changed or is gone.
    #[serde(default)]
    pub skew: Option<Skew>,
    /// The binary in the service file, if the running one came from elsewhere.
    #[serde(default)]
    pub named: Option<Named>,
    /// The version that waits for the next start.
    #[serde(default)]
    pub staged: Option<StagedStatus>,
    /// SHA-256 of that binary in hex, if known.
    pub sha256: Option<String>,
    /// When that process was started, in milliseconds since 1970.
    pub started_at: Option<u64>,
    /// Whether it starts when the daemon starts, and what decides that.
    #[serde(default)]
    pub autostart: Autostart,
    /// How often the service had to be started again, because its process died or a start failed.
    pub restarts: u64,
    /// How the last process that served has ended; `null` if none has, or it is not known.
    #[serde(default)]
    pub last_exit: Option<Exit>,
    /// When a failed start is tried again, in milliseconds since 1970.
    #[serde(default)]
    pub next_try_at: Option<u64>,
    /// Whether generations may overlap.
    pub mode: Mode,
    /// Its listeners.
    pub listeners: Vec<ListenerStatus>,
    /// How its service file differs from what it goes by, if it does.
    #[serde(default)]
    pub file: Option<FileStatus>,
    /// How the last operation ended.
    pub last_handoff: Option<Outcome>,
    /// A problem that the user should know about: one sentence.
    pub problem: Option<String>,
    /// What the process that failed wrote at last, while the service has failed or waits for its next start.
    #[serde(default)]
    pub last_lines: Option<LastLines>,
}

/// Whether a service starts when the daemon starts, and what decides that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autostart {
    /// Whether it does.
    pub starts: bool,
    /// What decides that.
    pub decided_by: DecidedBy,
}

/// What decides whether a service starts when the daemon starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// The key `autostart` in its file.
    #[default]
    File,
    /// A person has enabled it.
    Enable,
    /// A person has disabled it.
    Disable,
    /// A person has stopped it.
    Stop,
}

/// A listener of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name within the service.
    pub name: ListenerName,
    /// Its address, written as in the service file.
    pub address: String,
}
