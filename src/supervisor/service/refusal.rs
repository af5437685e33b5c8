//! A start that was refused before a process existed.

use handoff_protocol::supervisor::Phase;

use super::Service;
use crate::config;
use crate::control::{Error, Kind};
use crate::supervisor::rollout::was_called_off;

impl Service {
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
