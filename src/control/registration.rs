//! `register`, `unregister`, `remove` and `destroy`: services that are added and removed by requests.

use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;
use serde::{Deserialize, Serialize};

/// The parameters of `register`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Register {
    /// The service.
    pub service: ServiceName,
    /// The text of its service file.
    pub text: String,
    /// Whether it is gone after a restart of the machine.
    pub ephemeral: bool,
}

/// The answer to `unregister`, `remove` and `destroy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Whether there was anything to remove.
    pub was_there: bool,
    /// Whether the service ran, and was stopped.
    pub stopped: bool,
    /// Where its service file is now; `None` if it was deleted or there was none.
    pub kept: Option<PathBuf>,
    /// What was deleted.
    pub deleted: Vec<PathBuf>,
    /// What is in the directories of the service and does not come from handoff. It stays.
    pub foreign: Vec<PathBuf>,
}
