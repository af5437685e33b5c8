//! A start that was refused before a process existed.

use handoff_protocol::supervisor::Phase;

use super::Service;
use crate::config;
use crate::control::{Error, Kind};
use crate::supervisor::requests::unusable;
use crate::supervisor::rollout::was_called_off;

impl Service {
    /// The error of an operation that needs a running service. While the state cannot be used, a start does not help.
    pub(in crate::supervisor) fn not_running(&self) -> Error {
        let error = Error::not_running(&self.name);
        match self.journal.refused() {
            None if self.has_failed() => {
                let hint = format!(
                    "It has failed. To run another version: handoff installed {0} PATH, then handoff start {0}",
                    self.name
                );
                Error { hint, ..error }
            }
            None => error,
            Some(cause) => {
                let Error { message, hint, .. } = unusable(&self.name, cause, self.journal.is_damaged());
                Error { message: format!("{} {message}", error.message), hint, ..error }
            }
        }
    }

    /// Records why a start was refused. A start that the machine has accepted reports its failures itself.
    pub(in crate::supervisor) fn note_refused_start(&mut self, error: &Error, file: &str) {
        // A state that cannot be used is a problem of its own, and a caller who cancels a start knows about it.
        let is_told =
            self.journal.refused().is_some() || error.kind == Kind::Busy || was_called_off(&self.name, error);
        if self.machine.phase() == Phase::Stopped && !is_told {
            self.problems.start_refused(error, file);
        }
    }

    /// The service file was read; `None` if it is wrong.
    pub(in crate::supervisor) fn compare_refused_start(&mut self, read: Option<&config::Service>) {
        self.problems.file_was_read(read.map(|config| config.text.as_str()));
    }
}
