//! Another version of a service: brought in, verified, tried, kept for the next start, and given to the machine.

mod attempts;
mod binary;
mod busy;
mod first;
mod going_back;
mod hooks;
mod install;
mod origin;
mod path_watch;
mod phases;
mod preparation;
mod staging;
mod versions;

pub(in crate::supervisor) use binary::{Hashes, hex};
pub(crate) use first::check_claims;
pub(in crate::supervisor) use first::{ImportResult, check_running, find, import_first, origin_of};
pub(in crate::supervisor) use hooks::DrainEvent;
pub(crate) use install::import_of;
pub(in crate::supervisor) use install::{Pipeline, RequestedVersion};
pub(in crate::supervisor) use origin::{Origin, read_origins};
pub(in crate::supervisor) use path_watch::{Arrival, PathUpdate, install_arrivals};
pub(in crate::supervisor) use preparation::{CancelCause, CancelledWork, was_called_off};
pub(in crate::supervisor) use staging::{check_staged, import_all_staged, recall_staged};
pub(in crate::supervisor) use versions::{statuses, unfinished};

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use path_watch::PathWatch;
use preparation::Preparation;
use tokio::sync::Mutex;

use crate::spool::Staged;
use crate::store::Store;

/// The versions of a service: those that it has, the one that it is started from, and the one being brought in.
#[derive(Debug)]
pub(in crate::supervisor) struct Versions {
    store: Arc<Store>,
    /// Held while a version is brought in, or versions are removed.
    import_lock: Arc<Mutex<()>>,
    /// The version that is being brought in.
    preparation: Option<Rc<Preparation>>,
    /// What a service without a current version is started from.
    first: Option<FirstProgram>,
    /// What the start in progress tries in place of the current version.
    trying: Option<PathBuf>,
    /// The version that waits for the next start.
    staged: Option<Staged>,
    /// Where the versions came from.
    origins: Vec<Origin>,
    /// The target of the upgrade in progress, or of the last one.
    candidate: Option<PathBuf>,
    /// The watch for new versions at a path.
    path_watch: Option<PathWatch>,
}

/// The copy of what a service file names, or the original itself, without links.
#[derive(Debug)]
struct FirstProgram {
    /// The path that the service file names.
    named: PathBuf,
    /// Whether it is a copy.
    is_stored: bool,
    /// The path that is started.
    path: PathBuf,
}

impl Versions {
    pub(in crate::supervisor) fn new(store: Store, staged: Option<Staged>, origins: Vec<Origin>) -> Self {
        Self {
            store: Arc::new(store),
            import_lock: Arc::default(),
            preparation: None,
            first: None,
            trying: None,
            staged,
            origins,
            candidate: None,
            path_watch: None,
        }
    }

    pub(in crate::supervisor) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Whether a version is being brought in.
    pub(in crate::supervisor) fn are_prepared(&self) -> bool {
        self.preparation.is_some()
    }

    pub(in crate::supervisor) fn import_lock(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.import_lock)
    }

    /// Sets the target of a request to the machine, if it has one. Returns the previous target, which is restored if
    /// the machine refuses.
    pub(in crate::supervisor) fn candidate_for(&mut self, path: Option<PathBuf>) -> Option<PathBuf> {
        let before = self.candidate.clone();
        self.candidate = path.or(self.candidate.take());
        before
    }

    /// Sets the target of an upgrade that continues.
    pub(in crate::supervisor) fn upgrades_to(&mut self, path: Option<PathBuf>) {
        self.candidate = path;
    }

    /// Ends a start that was not tried to its end: what is staged still waits for the next start.
    pub(in crate::supervisor) fn start_was_stopped(&mut self) {
        self.trying = None;
    }
}
