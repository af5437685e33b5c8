//! The log of a service: its pipes and its files.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use handoff_protocol::ids::{Generation, HandoffId};

use super::Service;
use crate::supervisor::keeper::{LogGuard, LogSource};
use crate::sys::log_pipe::{Stream, log_pipes_of};

impl Service {
    /// The log pipes of a process. The keeper is asked to read them, since it may be another keeper than before.
    pub(super) fn log_of(&self, handoff: HandoffId, pid: u32) -> LogGuard {
        match log_pipes_of(pid) {
            Ok(pipes) => self.log(self.journal.standing().generation_of(handoff), Some(pid), pipes),
            Err(error) => {
                tracing::warn!(pid, %error, "another keeper would not read its log");
                LogGuard::default()
            }
        }
    }

    /// Where the files of its log are.
    pub(in crate::supervisor) fn log_directory(&self) -> PathBuf {
        self.config.log.dir.clone().unwrap_or_else(|| self.shared.dirs.log_dir(&self.name))
    }

    /// Has log pipes of this service read.
    pub(in crate::supervisor) fn log(
        &self,
        generation: Option<Generation>,
        pid: Option<u32>,
        pipes: impl IntoIterator<Item = (Option<Stream>, OwnedFd)>,
    ) -> LogGuard {
        let source = LogSource { service: &self.name, settings: &self.config.log, generation, pid };
        self.shared.keeper.log(&source, pipes)
    }
}
