//! How another binary gets to run: it is taken into the store, verified, tried by the commands of the service file,
//! and only then given to the machine. A failure before that changes nothing, and is reported as a refusal.
//!
//! A service has one such upgrade at a time: a later request waits for its turn, or is refused because the service is
//! busy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use handoff_protocol::ids::{HandoffId, ServiceName};
use handoff_protocol::record::Binary;
use handoff_protocol::supervisor::Phase;
use tokio::sync::OwnedMutexGuard;

use super::binary::hex;
use super::first::{check_claims, check_owner, remember};
use super::hooks::{HookVariables, afterwards, must_pass};
use super::phases::Phases;
use super::preparation::Preparation;
use super::staging;
use super::versions::{collect, unfinished};
use crate::config;
use crate::control::{Caller, Error, Kind, ProgressSink, api};
use crate::history::{self, Operation};
use crate::store::{self, Import, ImportStep, Imported, Version};
use crate::supervisor::daemon::Daemon;
use crate::supervisor::monitor::check_queue;
use crate::supervisor::operations::{OperationRequest, RequestedOperation, UpgradeLimits};
use crate::supervisor::requests::check;
use crate::supervisor::service::{Handle, Service};

/// The version to upgrade to.
#[derive(Debug)]
pub(in crate::supervisor) enum RequestedVersion {
    /// The version at a path, with the claims about it and its name.
    Path(PathBuf, api::Claims, Option<String>),
    /// A version in the store.
    Kept(Box<Version>),
}

impl RequestedVersion {
    /// The path that was given.
    fn given(&self) -> Option<PathBuf> {
        match self {
            Self::Path(path, ..) => Some(path.clone()),
            Self::Kept(_) => None,
        }
    }
}

/// An upgrade before the machine is asked.
pub(in crate::supervisor) struct Pipeline {
    /// Identifies the upgrade while there is no handoff.
    pub(super) id: HandoffId,
    pub(super) handle: Handle,
    config: config::Service,
    pub(super) requested: RequestedOperation,
    pub(super) phases: Phases,
    progress: Option<ProgressSink>,
    _import_guard: OwnedMutexGuard<()>,
}

impl Daemon {
    /// Upgrades to a new version at a path, unless it already runs. Waits for its turn, and for an upgrade in
    /// progress. An error of kind [`Kind::Rejected`] means that nothing was changed.
    pub(in crate::supervisor) async fn install(
        &self,
        wanted: api::Install,
        by: Caller,
        progress: Option<ProgressSink>,
    ) -> Result<api::Outcome, Error> {
        let asked = RequestedOperation::new(Operation::Install, by);
        let (handle, _) = self.find_fresh(&wanted.service).await?;
        let phases = Phases::new(&wanted.service, &progress);
        phases.enter("waiting");
        let turn = handle.import_lock().lock_owned().await;
        handle.settled().await;
        handle.job_over().await;
        // The service file may have changed meanwhile.
        let (handle, config) = self.find_fresh(&wanted.service).await?;
        handle.compacted().await;
        let pipeline = Pipeline { phases, ..Pipeline::begin(handle, config, asked, progress, turn) };
        let api::Install { path, claims, version, .. } = wanted;
        pipeline.run(RequestedVersion::Path(path, claims, version), true, UpgradeLimits::default()).await
    }

    /// Upgrades to a version that ran before.
    pub(in crate::supervisor) async fn rollback(
        &self,
        wanted: api::Rollback,
        asked: RequestedOperation,
        progress: Option<ProgressSink>,
    ) -> Result<api::Outcome, Error> {
        let (handle, config) = self.find_fresh(&wanted.service).await?;
        handle.compacted().await;
        let version = handle.read(|service| service.to_go_back_to(wanted.generation))?;
        let pipeline = Pipeline::now(handle, config, asked, progress)?;
        pipeline.run(RequestedVersion::Kept(Box::new(version)), false, UpgradeLimits::default()).await
    }
}

impl Pipeline {
    /// Begins at once. An error says what the service is busy with.
    pub(in crate::supervisor) fn now(
        handle: Handle,
        config: config::Service,
        asked: RequestedOperation,
        progress: Option<ProgressSink>,
    ) -> Result<Self, Error> {
        handle.read(Service::check_no_job)?;
        let turn = handle.import_lock().try_lock_owned();
        let busy = |_| handle.read(Service::is_at_work);
        let turn = turn.map_err(busy)?;
        Ok(Self::begin(handle, config, asked, progress, turn))
    }

    /// Begins in this turn.
    pub(in crate::supervisor) fn begin(
        handle: Handle,
        config: config::Service,
        asked: RequestedOperation,
        progress: Option<ProgressSink>,
        turn: OwnedMutexGuard<()>,
    ) -> Self {
        let (id, phases) = (HandoffId::from_uuid(uuid::Uuid::now_v7()), Phases::new(&config.name, &progress));
        Self { id, handle, config, requested: asked, phases, progress, _import_guard: turn }
    }

    /// Runs the whole upgrade. `once`: unless the version already runs. The limits are those of the machine: deadline
    /// and drain grace.
    pub(in crate::supervisor) async fn run(
        mut self,
        wanted: RequestedVersion,
        once: bool,
        limits: UpgradeLimits,
    ) -> Result<api::Outcome, Error> {
        let limit_ms = limits.deadline_ms.unwrap_or(self.config.deadline_ms);
        let preparation = Preparation::begin(Some(Duration::from_millis(limit_ms)));
        let handle = self.handle.clone();
        let prepared = preparation.guard(&handle, self.prepare_all(&wanted, once, &preparation)).await;
        self.requested.before = self.phases.ended();
        let outcome = match prepared {
            // If the service was stopped meanwhile, the machine refuses the upgrade.
            Ok(Some((path, variables, binary))) => match binary.filter(|_| self.may_stage()) {
                Some(binary) => self.stage(&binary, &wanted).await,
                None => {
                    let limits = UpgradeLimits { deadline_ms: preparation.left_ms(), ..limits };
                    self.upgrade(&path, variables, limits).await
                }
            },
            Ok(None) => {
                self.forget_steps();
                return Ok(self.unchanged());
            }
            Err(error) => {
                if error.kind == Kind::Rejected {
                    self.record_refusal(&wanted, &error);
                }
                Err(error)
            }
        };
        self.forget_steps();
        if let Err(error) = collect(&self.handle).await {
            tracing::warn!("{error}");
        }
        outcome
    }

    /// Does everything before the machine is asked. Returns the file to start, the variables for commands, and the
    /// binary; `None` if it already runs.
    async fn prepare_all(
        &mut self,
        wanted: &RequestedVersion,
        once: bool,
        preparation: &Preparation,
    ) -> Result<Option<(PathBuf, HookVariables, Option<Binary>)>, Error> {
        let Some((path, variables)) = self.prepare(wanted, once, preparation).await? else { return Ok(None) };
        let binary = self.identify(&path).await;
        if let Some(binary) = binary.clone() {
            remember(&self.handle, binary, wanted.given(), &self.config).await;
        }
        Ok(Some((path, variables, binary)))
    }

    async fn prepare(
        &mut self,
        wanted: &RequestedVersion,
        once: bool,
        preparation: &Preparation,
    ) -> Result<Option<(PathBuf, HookVariables)>, Error> {
        self.handle.read(|service| {
            match service.machine.phase() {
                // The version is kept for the next start.
                Phase::Stopped if self.requested.operation == Operation::Install => Ok(()),
                Phase::Stopped => Err(service.not_running()),
                _ => service.may_take_over(&self.config),
            }
        })?;
        // This is checked again at the end. Turning back here is cheaper if commands would run, and for an install,
        // which may be repeated.
        let hooks = &self.config.hooks;
        if self.requested.operation == Operation::Install
            || hooks.preflight.is_some()
            || hooks.pre_upgrade.is_some()
        {
            check_queue(&self.handle).await?;
        }
        let path = match wanted {
            RequestedVersion::Kept(version) => {
                self.handle.read(|service| service.versions.store.path_of(version))
            }
            RequestedVersion::Path(path, claims, version) => {
                self.record_step(wanted, "it took in the new version");
                self.import_claimed(path, claims, version.as_deref(), preparation.flag()).await?
            }
        };
        if once && self.runs(&path).await {
            return Ok(None);
        }
        let variables =
            self.handle.read(|service| service.variables(&path, self.requested.operation.as_str()));
        if let Some(command) = &self.config.hooks.preflight {
            self.phases.enter("preflight");
            self.record_step(wanted, "the preflight ran");
            must_pass(command, &variables, &path, &self.config, preparation.called_off()).await?;
        }
        if let Some(command) = self.config.hooks.pre_upgrade.as_ref().filter(|_| !self.is_stopped()) {
            self.phases.enter("hook");
            self.record_step(wanted, "the hook before the upgrade ran");
            must_pass(command, &variables, &path, &self.config, preparation.called_off()).await?;
        }
        check_queue(&self.handle).await?;
        Ok(Some((path, variables)))
    }

    async fn import_claimed(
        &mut self,
        path: &Path,
        claims: &api::Claims,
        version: Option<&str>,
        called_off: Arc<AtomicBool>,
    ) -> Result<PathBuf, Error> {
        if path == self.config.binary {
            check_owner(&self.handle, &self.config).await?;
        }
        check_claims(&self.config, claims)?;
        if !self.config.update.store {
            let given = path.to_owned();
            let lane = self.handle.lanes().imports;
            // Without a thread, nothing is started from it either.
            let path = lane.run(move || config::resolve(&given)).await.unwrap_or_else(|_| path.to_owned());
            let checked = check(&self.handle, path.clone()).await;
            return checked.map(|()| path).map_err(|error| Error { kind: Kind::Rejected, ..error });
        }
        let import = Import { called_off, ..import_of(&self.config, path, claims, version) };
        let imported = import_into(&self.handle, import, self.phases.clone()).await?;
        self.requested.version = imported.version.name().map(str::to_owned);
        Ok(imported.path)
    }

    /// Whether the serving process was started from the same content, or the next process of a stopped service would
    /// be.
    async fn runs(&self, path: &Path) -> bool {
        let binary = self.identify(path).await;
        self.handle.with(|service| {
            let serves = service.processes.incumbent().is_some() && service.machine.phase() == Phase::Serving;
            let is_stopped = service.machine.phase() == Phase::Stopped;
            let same = binary.is_some() && service.current_binary() == binary.as_ref();
            if is_stopped && same {
                service.unstage();
            }
            same && (serves || is_stopped)
        })
    }

    async fn identify(&self, path: &Path) -> Option<Binary> {
        let hashes = self.handle.read(|service| service.shared.hashes.clone());
        match self.handle.read(|service| service.stored_binary(path)) {
            Some(binary) => Some(binary),
            None => {
                let lane = self.handle.lanes().imports;
                let path = path.to_owned();
                lane.run(move || hashes.identify(&path)).await.ok().and_then(Result::ok)
            }
        }
    }

    fn may_stage(&self) -> bool {
        self.requested.operation == Operation::Install && self.is_stopped()
    }

    fn is_stopped(&self) -> bool {
        self.handle.is_stopped()
    }

    /// Keeps the new version for the next start.
    async fn stage(&self, binary: &Binary, wanted: &RequestedVersion) -> Result<api::Outcome, Error> {
        let path = PathBuf::from(&binary.path);
        let given = wanted.given().unwrap_or_else(|| path.clone());
        let staged = staging::staged(binary, &given, self.requested.version.clone());
        staging::stage(&self.handle, staged).await?;
        let outcome = self.handle.read(|service| {
            let to = history::Version {
                path: given.clone(),
                sha256: Some(hex(&binary.sha256)),
                version: self.requested.version.clone(),
            };
            let entry = self.entry(service, history::Ending::Staged, None, to);
            let took_us = entry.took_us;
            service.operations.recorder().append(entry);
            service.current_outcome(api::Ending::Staged, took_us)
        });
        Ok(api::Outcome {
            binary: given,
            stored: self.config.update.store.then_some(path),
            version: self.requested.version.clone(),
            sha256: Some(hex(&binary.sha256)),
            phases: self.requested.before.clone(),
            ..outcome
        })
    }

    async fn upgrade(
        &self,
        path: &Path,
        variables: HookVariables,
        limits: UpgradeLimits,
    ) -> Result<api::Outcome, Error> {
        if self.requested.operation == Operation::Install {
            self.handle.settled().await;
        }
        let order = OperationRequest::Upgrade(path.to_owned(), Box::new(self.config.clone()), limits);
        let outcome =
            self.handle.request_operation(order, Some(self.requested.clone()), self.progress.clone()).await?;
        if outcome.outcome == api::Ending::Committed {
            // The version just committed is newer than a staged one.
            self.handle.with(Service::unstage);
        }
        afterwards(&self.handle, &self.config, variables, &outcome, path).await;
        Ok(outcome)
    }

    fn unchanged(&self) -> api::Outcome {
        let took_us = self.requested.elapsed_us();
        let outcome = self.handle.read(|service| service.current_outcome(api::Ending::Unchanged, took_us));
        api::Outcome { phases: self.requested.before.clone(), ..outcome }
    }
}

/// The import of a version for a service.
pub(crate) fn import_of(
    config: &config::Service,
    path: &Path,
    claims: &api::Claims,
    version: Option<&str>,
) -> Import {
    let path_of = |name: &str| config.env.get(name).map(Into::into).or_else(|| std::env::var_os(name));
    Import {
        path: path.to_owned(),
        member: claims.member.clone().or_else(|| config.update.member.clone()),
        has_members: claims.member.is_some(),
        tree: claims.tree.unwrap_or(config.update.tree),
        max_size_bytes: config.update.max_size_bytes,
        evidence: claims.evidence.clone(),
        trust: config.update.trust.clone(),
        version: version.map(str::to_owned),
        version_command: config.update.version_command.clone(),
        search: path_of("PATH"),
        called_off: Arc::default(),
    }
}

pub(in crate::supervisor) async fn import_into(
    handle: &Handle,
    import: Import,
    phases: Phases,
) -> Result<Imported, Error> {
    let (name, store, lane) = handle.read(|service| {
        (service.name.clone(), Arc::clone(&service.versions.store), service.lanes.imports.clone())
    });
    let path = import.path.clone();
    let imported = lane.run(move || {
        store.import(&import, &mut |step| {
            phases.enter(match step {
                ImportStep::Copying => "importing",
                ImportStep::Verifying => "verifying",
                ImportStep::Storing => "storing",
            });
        })
    });
    imported.await.map_err(|error| unfinished(&name, &path, &error))?.map_err(|error| rejected(&name, &error))
}

/// The caller's error for a version that the store refused.
pub(in crate::supervisor) fn rejected(name: &ServiceName, error: &store::Error) -> Error {
    Error::rejected(name, error, error.hint())
}
