//! Keeps the status file up to date: what changes within a moment is written together, on another thread.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use handoff_protocol::ids::{Generation, ServiceName};
use handoff_protocol::supervisor::Phase;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::daemon::Daemon;
use super::lane::Lane;
use super::service::Service;
use super::state::STATE_TIMEOUT;
use crate::control::api::{Autostart, ServiceStatus};
use crate::journal::unix_ms;
use crate::status_file::StatusFile;

/// The pause between two writes.
const PAUSE: Duration = Duration::from_millis(200);

/// What the next write has to renew.
#[derive(Debug)]
pub(super) struct StatusWriter {
    changed: RefCell<BTreeSet<ServiceName>>,
    wake: Notify,
    lane: Lane,
    /// What the file says.
    known: RefCell<BTreeMap<ServiceName, ServiceStatus>>,
}

/// What is compared to notice a change. It is cheap to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StatusKey {
    phase: Phase,
    autostart: Autostart,
    /// Why it rests, if it does: a start is awaited or imported for, it has exited, or it has failed.
    rest: [bool; 4],
    pid: Option<u32>,
    generation: Generation,
    restarts: u64,
}

impl Default for StatusWriter {
    fn default() -> Self {
        let (changed, wake, known) = (RefCell::default(), Notify::new(), RefCell::default());
        Self { changed, wake, lane: Lane::for_files("status"), known }
    }
}

impl StatusWriter {
    fn mark(&self, service: &ServiceName) {
        self.changed.borrow_mut().insert(service.clone());
        self.wake.notify_one();
    }
}

impl Service {
    /// Has the status file renewed if something of it has changed.
    pub(super) fn note_status(&mut self) {
        let key = StatusKey {
            phase: self.machine.phase(),
            autostart: self.autostart(),
            rest: [
                self.is_start_awaited(),
                self.is_first_imported(),
                self.is_exited(),
                self.problems.keeps_it_down() || self.has_failed(),
            ],
            pid: self.processes.incumbent().map(|process| process.pid()),
            generation: self.journal.standing().generation(),
            restarts: self.journal.standing().restarts,
        };
        if self.noted_status.as_ref() != Some(&key) {
            self.noted_status = Some(key);
            self.shared.status.mark(&self.name);
        }
    }
}

/// Writes the file whenever something has changed, and sleeps otherwise.
pub(super) async fn keep_status_file(daemon: Rc<Daemon>) -> Infallible {
    // The file of an earlier daemon must not stay.
    daemon.shared.status.wake.notify_one();
    loop {
        daemon.shared.status.wake.notified().await;
        sleep(PAUSE).await;
        daemon.write_status_file().await;
    }
}

impl Daemon {
    /// Writes the file as things are now. A disk that fails or does not answer costs only the file.
    pub(super) async fn write_status_file(&self) {
        let (services, dirs) = (self.renewed_statuses(), self.shared.dirs.clone());
        let what = "the status file".to_owned();
        let written = self.shared.status.lane.run_within(STATE_TIMEOUT, what, move || {
            StatusFile::of_this_process(unix_ms(), services).and_then(|file| file.write(&dirs))
        });
        if let Err(error) = written.await.and_then(|written| written) {
            tracing::warn!(%error, "without a daemon, `handoff status` will show an earlier state");
        }
    }

    /// The statuses of all services, of which only the changed ones are read again.
    fn renewed_statuses(&self) -> Vec<ServiceStatus> {
        let writer = &self.shared.status;
        let (services, mut known) = (self.services.borrow(), writer.known.borrow_mut());
        for name in &writer.changed.take() {
            if let Some(handle) = services.get(name) {
                known.insert(name.clone(), handle.read(Service::status));
            }
        }
        known.retain(|name, _| services.contains_key(name));
        let mut all: Vec<ServiceStatus> = known.values().cloned().chain(self.broken_statuses()).collect();
        all.sort_by(|one, other| one.service.cmp(&other.service));
        all
    }
}
