//! A version that waits for the next start of its service: it was installed while the service was stopped, or while
//! no daemon ran.
//!
//! It is in the store, and a file beside the journal names it. Both are on disk before the caller gets an answer. The
//! next start uses it. If that start commits, it is the current version, and nothing is staged any more. If the start
//! fails, the staged version is dropped, and the version that was committed before is started, as it would have been
//! anyway.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use handoff_protocol::record::Binary;
use handoff_protocol::supervisor::Phase;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::hooks::must_pass;
use super::install::{Pipeline, RequestedVersion};
use crate::config;
use crate::control::{Caller, Error, Kind, api};
use crate::history::Operation;
use crate::spool::{self, Staged};
use crate::supervisor::operations::{RequestedOperation, UpgradeLimits};
use crate::supervisor::service::{Handle, START_LIMIT, Service};

/// The pause before another attempt to bring in what is staged.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

impl Service {
    /// Makes the next start use what is staged.
    pub(in crate::supervisor) fn try_staged(&mut self) {
        if let Some(staged) = self.versions.staged.as_ref().filter(|_| self.machine.phase() == Phase::Stopped)
        {
            self.versions.trying = Some(staged.binary.clone());
        }
    }

    /// Drops what is staged.
    pub(in crate::supervisor) fn unstage(&mut self) {
        if self.versions.staged.take().is_some() {
            let (directory, name) = (self.shared.dirs.service_state(&self.name), self.name.clone());
            self.lanes.imports.post(move || {
                if let Err(error) = spool::unstage(&directory) {
                    tracing::error!(service = %name, %error, "it looks as if a version were staged still");
                }
            });
        }
    }

    /// Ends the try of a version, after a start that went well or failed. A start that was stopped is no end of a
    /// try. Returns the version that failed.
    pub(in crate::supervisor) fn end_try(&mut self, is_well: bool) -> Option<PathBuf> {
        let tried = self.versions.trying.take()?;
        let is_staged = self.versions.staged.as_ref().is_some_and(|staged| staged.binary == tried);
        if is_staged && !is_well && self.current_binary().is_none() {
            // There is nothing else to start.
            self.versions.trying = Some(tried);
            return None;
        }
        if is_staged {
            self.unstage();
        }
        (!is_well).then_some(tried)
    }

    /// The staged version for the status.
    pub(in crate::supervisor) fn staged_status(&self) -> Option<api::StagedStatus> {
        let staged = self.versions.staged.as_ref()?;
        Some(api::StagedStatus { binary: staged.given.clone(), version: staged.version.clone() })
    }
}

/// Takes in what was staged while no daemon ran. It may have come a moment too late for the start of this one.
pub(in crate::supervisor) async fn recall_staged(handle: &Handle) {
    let (directory, store, lane) = handle.read(|service| {
        let directory = service.shared.dirs.service_state(&service.name);
        (directory, Arc::clone(&service.versions.store), service.lanes.imports.clone())
    });
    let what = directory.display().to_string();
    match lane.run_within(START_LIMIT, what, move || spool::recall(&directory, &store)).await {
        Ok(Ok(staged)) => handle.with(|service| service.versions.staged = staged),
        Ok(Err(error)) => tracing::error!(%error, "what was staged cannot be taken in"),
        Err(error) => tracing::error!(%error, "what was staged cannot be taken in"),
    }
}

/// Checks whether what is staged may be started. What a daemon has staged has passed already.
pub(in crate::supervisor) async fn check_staged(
    handle: &Handle,
    config: &config::Service,
) -> Result<(), Error> {
    let Some(staged) = handle.read(|service| service.versions.staged.clone()) else { return Ok(()) };
    let Some(command) = config.hooks.preflight.as_ref().filter(|_| !staged.is_checked) else { return Ok(()) };
    let variables = handle.read(|service| service.variables(&staged.binary, Operation::Install.as_str()));
    let passed = must_pass(command, &variables, &staged.binary, config, std::future::pending()).await;
    if passed.is_err() {
        handle.with(Service::unstage);
    }
    passed
}

/// Names a version for the next start. The name is on disk when this returns.
pub(in crate::supervisor) async fn stage(handle: &Handle, staged: Staged) -> Result<(), Error> {
    let (directory, lane) = (handle.directory(), handle.lanes().imports);
    let written = staged.clone();
    let what = directory.display().to_string();
    let done = lane.run_within(START_LIMIT, what, move || spool::stage(&directory, &written)).await;
    done.and_then(|done| done).map_err(|error| {
        let message = format!("The new version cannot be kept for the next start: {error}.");
        Error::new(Kind::StorageFailed, message, "Mend that, then ask again.")
    })?;
    handle.with(|service| service.versions.staged = Some(staged));
    Ok(())
}

/// Upgrades to a version that was staged while no daemon ran, if its service runs.
pub(in crate::supervisor) fn import_all_staged(handle: Handle) {
    if !handle.read(|service| service.versions.staged.is_some() && service.machine.phase() != Phase::Stopped)
    {
        return;
    }
    spawn_local(async move {
        if let Err(error) = import_staged(&handle).await {
            tracing::error!("{error}");
            handle.with(|service| service.problems.staged_refused(&error));
        }
    });
}

async fn import_staged(handle: &Handle) -> Result<(), Error> {
    loop {
        let turn = handle.import_lock().lock_owned().await;
        handle.settled().await;
        let (staged, phase, config) = handle.read(|service| {
            (service.versions.staged.clone(), service.machine.phase(), service.config.clone())
        });
        let Some(staged) = staged.filter(|_| phase != Phase::Stopped) else { return Ok(()) };
        let asked = RequestedOperation::new(
            Operation::Install,
            Caller::own("it was installed while there was no daemon"),
        );
        let wanted = match handle.read(|service| service.versions.store.version_at(&staged.binary)) {
            Some(version) => RequestedVersion::Kept(Box::new(version)),
            None => {
                RequestedVersion::Path(staged.given.clone(), api::Claims::default(), staged.version.clone())
            }
        };
        let pipeline = Pipeline::begin(handle.clone(), config, asked, None, turn);
        match pipeline.run(wanted, true, UpgradeLimits::default()).await {
            // Nothing reports when the obstacle is gone.
            Err(error) if error.kind == Kind::Busy => sleep(RETRY_PAUSE).await,
            ended => {
                handle.with(Service::unstage);
                return ended.map(|_| ());
            }
        }
    }
}

/// The record of a version for the next start.
pub(in crate::supervisor) fn staged(binary: &Binary, given: &Path, version: Option<String>) -> Staged {
    let given = given.to_owned();
    Staged { binary: PathBuf::from(&binary.path), given, version, is_checked: true }
}
