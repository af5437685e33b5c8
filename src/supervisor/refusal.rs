//! A start that was refused before there was a process: why the service does not run, until the next start or another service file.

use handoff_protocol::supervisor::Phase;

use super::preparation::was_called_off;
use super::service::Service;
use crate::config;
use crate::control::{Error, Kind};

#[derive(Debug)]
pub(super) struct RefusedStart {
    /// Sentences.
    told: String,
    /// What the service file said.
    file: String,
}

impl RefusedStart {
    pub(super) fn told(&self) -> &str {
        &self.told
    }
}

impl Service {
    /// Remembers why. A start that the machine has taken on tells its failures itself.
    pub(super) fn note_refused_start(&mut self, error: &Error, file: &str) {
        // A state that cannot be used is a problem of its own, and who calls a start off knows of it.
        let is_told =
            self.journal.refused().is_some() || error.kind == Kind::Busy || was_called_off(&self.name, error);
        if self.machine.phase() == Phase::Stopped && !is_told {
            let told = format!("The last start was refused: {error}");
            self.refused_start = Some(RefusedStart { told, file: file.to_owned() });
        }
    }

    /// Another file may have mended what was in the way.
    pub(super) fn compare_refused_start(&mut self, read: Option<&config::Service>) {
        self.refused_start.take_if(|refused| read.is_none_or(|config| config.text != refused.file));
    }
}
