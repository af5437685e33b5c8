//! `reload`: reads all service files, and applies all that has changed, or nothing.

mod apply;
mod plan;

use std::collections::BTreeMap;
use std::rc::Rc;

use handoff_protocol::ids::ServiceName;
use handoff_protocol::supervisor::Phase;

use super::daemon::Daemon;
use super::service::{Handle, Service};
use super::service_files::{ServiceFileContent, ServiceFileStamps, silent};
use crate::config;
use crate::control::{Caller, Error, Kind, ProgressSink, api};
use plan::{FileNow, KnownService, KnownState, Plan, changes};

impl Daemon {
    /// Plans, and applies unless something is in the way. One at a time.
    pub(super) async fn reload(
        &self,
        wanted: api::Reload,
        by: Caller,
        progress: ProgressSink,
    ) -> Result<api::Reloaded, Error> {
        let Ok(_turn) = self.reloading.try_lock() else {
            return Err(Error::new(
                Kind::Busy,
                "Another reload is under way, or a service is being registered or removed.",
                "Wait until it has ended, then ask again.",
            ));
        };
        let plan = self.plan().await;
        let refused = if wanted.dry_run { None } else { refusal(&plan, wanted.allow_stop) };
        if wanted.dry_run || refused.is_some() {
            return Ok(api::Reloaded { applied: false, refused, plan: plan.rows, results: Vec::new() });
        }
        self.refuse_if_at_work(&plan)?;
        let results = self.apply(&plan, &by, progress).await;
        Ok(api::Reloaded { applied: true, refused: None, plan: plan.rows, results })
    }

    /// Reads all files, also those that look as before.
    async fn plan(&self) -> Plan {
        let stamps: ServiceFileStamps =
            self.services.borrow().keys().map(|name| (name.clone(), None)).collect();
        let read = self.read_files(stamps, true).await;
        let mut others = read.errors;
        let mut files: BTreeMap<ServiceName, FileNow> = BTreeMap::new();
        for (name, found) in read.found {
            let file = self.shared.dirs.service_file(&name);
            match found {
                ServiceFileContent::File(_, Ok(service)) => _ = files.insert(name, Ok(*service)),
                ServiceFileContent::File(_, Err((errors, _))) => _ = files.insert(name, Err(errors)),
                ServiceFileContent::Silent(cause) => {
                    files.insert(name, Err(vec![silent(&file, cause)]));
                }
                ServiceFileContent::Absent | ServiceFileContent::Same => {}
            }
        }
        let known: BTreeMap<ServiceName, KnownService> =
            self.services.borrow().iter().map(|(name, handle)| (name.clone(), handle.known())).collect();
        // A directory that is gone is a mount that is missing, and not the end of all services.
        let is_any_gone = known.keys().any(|name| !files.contains_key(name));
        if !read.is_there && is_any_gone && others.is_empty() {
            let directory = self.shared.dirs.config.join("services");
            others.push(silent(&directory, "it does not exist".to_owned()));
        }
        Plan::make(&known, files, others)
    }

    /// Refuses if another operation works on a service that is to change.
    fn refuse_if_at_work(&self, plan: &Plan) -> Result<(), Error> {
        for row in plan.rows.iter().filter(|row| row.change != api::FileChange::Unchanged) {
            let Some(name) = &row.service else { continue };
            self.check_answered(name)?;
            let Some(handle) = self.services.borrow().get(name).cloned() else { continue };
            if handle.read(|service| !service.may_be_changed()) || handle.import_lock().try_lock().is_err() {
                let error = handle.read(|service| Error::busy(name, service.doing()));
                let hint = format!("{} Nothing was reloaded.", error.hint);
                return Err(Error { hint, ..error });
            }
        }
        Ok(())
    }

    /// Reloads for a signal: the log has what a client would be answered.
    pub(super) async fn reload_at_signal(self: Rc<Self>) {
        match self.reload(api::Reload::default(), Caller::own("SIGHUP"), ProgressSink::none()).await {
            Err(error) => tracing::error!("not reloaded: {error}"),
            Ok(reloaded) => log(&reloaded),
        }
    }
}

/// A service file that the service does not go by.
#[derive(Debug)]
pub(super) enum SeenFile {
    /// It says something else.
    Other(Box<config::Service>),
    /// It cannot be used.
    Broken,
    Gone,
}

/// Why a plan is not applied. Sentences.
fn refusal(plan: &Plan, allow_stop: bool) -> Option<String> {
    let broken: Vec<String> =
        plan.rows.iter().flat_map(|row| &row.errors).map(|error| error.file.display().to_string()).fold(
            Vec::new(),
            |mut files, file| {
                if !files.contains(&file) {
                    files.push(file);
                }
                files
            },
        );
    if !broken.is_empty() {
        return Some(format!("Nothing was applied, because of {}.", broken.join(", ")));
    }
    let stops: Vec<String> = plan
        .stops()
        .iter()
        .filter_map(|row| Some(format!("{} ({})", row.service.as_ref()?, row.cost.as_str())))
        .collect();
    (!stops.is_empty() && !allow_stop).then(|| {
        format!(
            "Nothing was applied, because clients would be refused at {}. To apply it all the same: handoff reload --allow-stop",
            stops.join(", ")
        )
    })
}

fn log(reloaded: &api::Reloaded) {
    for error in reloaded.plan.iter().flat_map(|row| &row.errors) {
        tracing::error!("{error}");
    }
    if let Some(refused) = &reloaded.refused {
        return tracing::error!("{refused}");
    }
    for row in reloaded.plan.iter().filter(|row| row.change != api::FileChange::Unchanged) {
        let service = row.service.as_ref().map_or("", ServiceName::as_str);
        let (change, cost, keys) = (row.change.as_str(), row.cost.as_str(), row.keys.join(" "));
        tracing::info!(service, change, cost, keys, "reloaded");
    }
    for result in &reloaded.results {
        match (&result.error, &result.outcome) {
            (Some(error), _) => {
                tracing::error!(service = %result.service, "not reloaded: {} {}", error.message, error.hint);
            }
            (None, Some(outcome)) if outcome.outcome == api::Ending::RolledBack => tracing::error!(
                service = %result.service,
                reason = outcome.reason,
                "not reloaded: the old process serves on with the old settings"
            ),
            (None, _) => {}
        }
    }
}

impl Handle {
    fn known(&self) -> KnownService {
        self.read(|service| {
            // What a person has decided about it stays.
            let is_undecided = service.autostart().decided_by == api::DecidedBy::File;
            let is_new = service.journal.is_new() && service.journal.refused().is_none() && is_undecided;
            let state = match service.machine.phase() {
                Phase::Stopped if service.is_start_awaited() => KnownState::Running,
                Phase::Stopped if is_new => KnownState::New,
                Phase::Stopped => KnownState::Stopped,
                _ => KnownState::Running,
            };
            KnownService { state, in_use: service.settings_in_use(), settings: service.config.clone() }
        })
    }
}

impl Service {
    /// Whether no operation is in progress that another file would disturb.
    fn may_be_changed(&self) -> bool {
        let is_stopped = self.machine.phase() == Phase::Stopped && self.machine.outgoing().is_none();
        (is_stopped || self.is_open_to_upgrades()) && !self.versions.are_prepared()
    }

    /// Keeps a file for [`Service::file_status`] if it says something else.
    pub(super) fn seen(&self, file: &config::Service) -> Option<SeenFile> {
        let is_same = |text: &str| text == file.text;
        let in_use = self.settings_in_use();
        let is_known = is_same(&self.config.text) && in_use.is_none_or(|in_use| is_same(&in_use.text));
        (!is_known).then(|| SeenFile::Other(Box::new(file.clone())))
    }

    /// How the service file that was last read differs from what the service goes by.
    pub(super) fn file_status(&self) -> Option<api::FileStatus> {
        let of = |is| api::FileStatus { is, keys: Vec::new(), cost: api::Cost::Nothing };
        let runs = self.machine.phase() != Phase::Stopped;
        let file = match self.file_seen.as_ref()? {
            SeenFile::Broken => return Some(of(api::FileChange::Broken)),
            SeenFile::Gone => {
                let cost = if runs { api::Cost::Stop } else { api::Cost::Nothing };
                return Some(api::FileStatus { cost, ..of(api::FileChange::Removed) });
            }
            SeenFile::Other(file) => file,
        };
        let changes = changes(self.settings_in_use().as_deref(), &self.config, file);
        let cost = changes.iter().map(|it| it.cost).max().filter(|_| runs).unwrap_or(api::Cost::Nothing);
        let keys = changes.into_iter().map(|it| it.key).collect::<Vec<_>>();
        (!keys.is_empty()).then(|| api::FileStatus { keys, cost, ..of(api::FileChange::Changed) })
    }

    /// Whether nothing of it runs, or waits for a start.
    fn is_at_rest(&self) -> bool {
        self.machine.phase() == Phase::Stopped
            && self.machine.outgoing().is_none()
            && !self.is_start_awaited()
    }

    /// The settings of the process that serves.
    pub(super) fn settings_in_use(&self) -> Option<Rc<config::Service>> {
        self.processes.incumbent().and_then(|process| process.settings.clone())
    }
}
