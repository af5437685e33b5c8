//! The state of a service, as clients see it.

use serde::{Deserialize, Serialize};

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does not run, and its listeners are closed.
    Stopped,
    /// A new daemon is finding out what its processes do.
    Recovering,
    /// Its start waits for services that it depends on.
    Waiting,
    /// Its first process is starting.
    Starting,
    /// It serves.
    Serving,
    /// Its job runs.
    Running,
    /// It serves, and a successor is starting.
    Upgrading,
    /// Its last process is ending.
    Stopping,
    /// It died, and is started again after a pause.
    Backoff,
    /// It died too often, or could not be started. The user must act.
    Failed,
    /// Its program has done what it should, and is not started again.
    Exited,
}

impl State {
    /// Whether the service has no process, and none follows by itself.
    pub fn is_at_rest(self) -> bool {
        matches!(self, State::Stopped | State::Failed | State::Exited)
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Stopped => "stopped",
            State::Recovering => "recovering",
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Serving => "serving",
            State::Running => "running",
            State::Upgrading => "upgrading",
            State::Stopping => "stopping",
            State::Backoff => "backoff",
            State::Failed => "failed",
            State::Exited => "exited",
        }
    }
}
