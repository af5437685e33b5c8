//! Notices, reports and restores what is removed while the daemon runs.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use handoff_protocol::ids::ServiceName;
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::Phase;
use tokio::task::spawn_local;

use super::{Handle, Service};
use crate::config::Dirs;
use crate::journal::{Journal, JournalError};
use crate::store::{Store, Version};
use crate::supervisor::input::Input;
use crate::supervisor::lane::Lane;
use crate::supervisor::state::{STATE_TIMEOUT, open_journal};

impl Service {
    /// Checks whether the journal is in its place. At rest nothing is recorded, so this happens on requests.
    pub(in crate::supervisor) fn maintain_journal(&mut self) {
        // If a damaged journal was moved away, as its problem advises, a new one is begun without a message.
        if self.journal.refused().is_some() {
            let path = self.shared.dirs.journal(&self.name);
            let what = path.display().to_string();
            if self.lanes.journal.wait(STATE_TIMEOUT, &what, move || !path.exists()).unwrap_or(false) {
                self.repair_journal_at_rest(false);
            }
        }
        // One that could not be read is taken up again as soon as it can, also while the service runs.
        if self.journal.refused().is_some() && self.machine.phase() == Phase::Serving {
            let opened = self.reopened_journal();
            if opened.and_then(|opened| self.journal.take_file(opened)).is_ok() {
                self.records_again(true);
            }
        }
        if let Err(error) = self.journal.keep_in_place() {
            tracing::error!(%error, "it cannot be written again");
            self.problems.journal_not_in_place(&error);
        }
        self.report_restored_journal();
    }

    /// Makes the journal take records again, for example after the disk was full, and records the current state.
    pub(in crate::supervisor) fn repair_journal(&mut self) {
        let was_refused = self.journal.refused().is_some();
        let mended = match self.journal.refused() {
            Some(_) => {
                self.reopened_journal().and_then(|opened| self.journal.take_file(opened)).map(|()| true)
            }
            None => self.journal.repair(),
        };
        match mended {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => {
                self.problems.not_recorded(&error);
                return tracing::error!(%error, "still not mended");
            }
        }
        self.records_again(was_refused);
    }

    /// Records the current state in a journal that takes records again.
    fn records_again(&mut self, was_refused: bool) {
        tracing::info!("the journal takes records again");
        self.problems.journal_repaired();
        // A machine that has not begun anything knows less than a journal that was not read before.
        if self.handoff().is_some() && self.machine.is_wanted() != self.journal.standing().wanted {
            self.note(Fact::Wanted { up: self.machine.is_wanted() });
        }
        if was_refused {
            let is_under_way = !matches!(self.machine.phase(), Phase::Serving | Phase::Stopped);
            self.recall_entries(self.handoff().filter(|_| is_under_way));
        }
        let generation = self.journal.standing().generation().next();
        let known = self.journal.standing().current.as_ref().and_then(|current| current.process.as_ref());
        let Some(process) = self.processes.incumbent().filter(|process| known != Some(&process.identity))
        else {
            return;
        };
        // The handoff that started it, by which it is reached: there may have been others since.
        let handoff = process.handoff;
        let facts = [
            Fact::Intent { handoff, generation, binary: process.binary.clone() },
            Fact::Spawned { handoff, process: process.identity.clone() },
            Fact::Committed { handoff },
        ];
        for fact in facts {
            self.note(fact);
        }
    }

    /// Does the same for a service that is not known to be running: its journal may now say that it runs, or did.
    /// `wanted`: starts what has ended again.
    pub(in crate::supervisor) fn repair_journal_at_rest(&mut self, wanted: bool) {
        let was_refused = self.journal.refused().is_some();
        let problem = self.problems.last().map(str::to_owned);
        self.repair_journal();
        if self.journal.refused().is_some() {
            self.problems.journal_still_refused(problem);
        }
        if was_refused && self.journal.refused().is_none() && self.machine.phase() == Phase::Stopped {
            self.take_over_late(wanted && self.is_known_to_be_wanted());
        }
    }

    /// Whether the service is to run. After a crash of the daemon, its journal decides, which is readable now.
    pub(in crate::supervisor) fn is_known_to_be_wanted(&self) -> bool {
        !self.shared.was_lost || self.journal.is_new() || self.journal.standing().wanted
    }

    /// The journal, opened again in its lane.
    fn reopened_journal(&self) -> Result<Journal, JournalError> {
        self.wait_for_journal(|dirs, name, lane| open_journal(&dirs, &name, &lane))?
    }

    /// Works on the file of the journal, in its lane. Blocks only for a moment.
    pub(in crate::supervisor) fn wait_for_journal<T: Send + 'static>(
        &self,
        work: impl FnOnce(Dirs, ServiceName, Lane) -> T + Send + 'static,
    ) -> Result<T, JournalError> {
        let (dirs, name, lane) = (self.shared.dirs.clone(), self.name.clone(), self.lanes.journal.clone());
        let path = dirs.journal(&name);
        let done = self
            .lanes
            .journal
            .wait(STATE_TIMEOUT, &path.display().to_string(), move || work(dirs, name, lane));
        done.map_err(|source| JournalError::Storage { path, what: "open it", source })
    }

    /// Reports that the journal was written again, if it was. Another thread waits for the disk.
    pub(in crate::supervisor) fn report_restored_journal(&mut self) {
        let Some(found) = self.journal.take_restoration() else { return };
        tracing::error!("{found}");
        let is_under_way = !matches!(self.machine.phase(), Phase::Serving | Phase::Stopped);
        self.problems.journal_written_again(&found, is_under_way);
        let (storage, inputs) = (self.journal.storage(), self.inputs.clone());
        let synced = self.lanes.journal.run(move || storage.sync());
        spawn_local(async move {
            inputs.send(Input::Restored(synced.await.and_then(|synced| synced)));
        });
    }

    /// Handles the answer of the disk about a journal that was written again.
    pub(in crate::supervisor) fn journal_restored(&mut self, synced: io::Result<()>) {
        if let Err(error) = self.journal.restored(synced) {
            tracing::error!(%error, "not durable");
            self.problems.journal_not_in_place(&error);
        }
    }

    /// The means to restore versions that were removed.
    pub(in crate::supervisor) fn restorer(&self) -> Restorer {
        let pid = self.processes.incumbent().map(|process| process.pid());
        let pid = pid.filter(|_| !self.config.adapter.is_foreign());
        Restorer { store: Arc::clone(self.versions.store()), lane: self.lanes.imports.clone(), pid }
    }
}

/// Restores the current version, which is not in the store any more, while its content is still available. Returns a
/// sentence about it.
pub(in crate::supervisor) async fn restore_current_version(handle: &Handle) -> String {
    let version = handle.read(|service| {
        let path = service.current_binary().map(|binary| binary.path.clone())?;
        service.versions.store().version_at(Path::new(&path))
    });
    let Some(version) = version else { return String::new() };
    let restorer = handle.read(|service| service.restorer());
    let text = match restorer.restore_version(version).await {
        Ok(text) => text,
        Err(error) => format!("{error}; it runs, and could not be started again."),
    };
    handle.with(|service| {
        tracing::error!(service = %service.name, "{text}");
        service.problems.version_taken_away(&text);
    });
    text
}

/// Restores versions in a store. The serving process may run one of them.
pub(in crate::supervisor) struct Restorer {
    store: Arc<Store>,
    lane: Lane,
    pid: Option<u32>,
}

impl Restorer {
    /// The error is a clause.
    pub(in crate::supervisor) async fn restore_version(&self, version: Version) -> Result<String, String> {
        let (store, pid, at) = (Arc::clone(&self.store), self.pid, self.store.path_of(&version));
        let done = self.lane.run(move || {
            if store.is_whole(&version) {
                return Ok("another who was faster".to_owned());
            }
            let running = pid.and_then(|pid| File::open(format!("/proc/{pid}/exe")).ok());
            store.restore(&version, running)
        });
        let done = done.await.map_err(|error| error.to_string())?;
        let from = done.map_err(|error| format!("{error}; {}", error.hint()))?;
        Ok(format!("{}: it was taken away, and was put back from {from}.", at.display()))
    }
}
