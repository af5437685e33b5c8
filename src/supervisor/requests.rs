//! Answers the requests of the control socket.

use std::io;
use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;
use handoff_protocol::supervisor::{Phase, Target};
use tokio::sync::broadcast;
use tokio::task::spawn_local;

use super::daemon::Daemon;
use super::operations::{OperationRequest, RequestedOperation, StoppedBy, UpgradeLimits, merged};
use super::registration::Removal;
use super::rollout::{
    CancelCause, Pipeline, RequestedVersion, check_running, check_staged, import_first, recall_staged,
    statuses, unfinished,
};
use super::running::bound;
use super::service::{Handle, START_LIMIT, Service};
use crate::config::{self, check_binary, format_duration_ms};
use crate::control::{Caller, Error, Handler, Kind, ProgressSink, api};
use crate::history::{Entry, Operation};

impl Handler for Daemon {
    async fn call(
        &self,
        request: api::Request,
        by: Caller,
        progress: ProgressSink,
    ) -> Result<api::Response, Error> {
        let asked = |what| RequestedOperation::new(what, by.clone());
        match request {
            api::Request::Ping => Ok(api::Response::Pong(api::Pong {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
            })),
            api::Request::List => {
                let mut all = statuses(self.all().await).await;
                all.extend(self.broken_statuses());
                all.sort_by(|one, other| one.service.cmp(&other.service));
                Ok(api::Response::List(all))
            }
            api::Request::Status(name) => self.status(&name).await,
            api::Request::Enable(name) => self.enable(&name, true).await,
            api::Request::Disable(name) => self.enable(&name, false).await,
            api::Request::Start(name) => self.start(&name, asked(Operation::Start), progress).await,
            api::Request::Stop(name) => {
                let handle = self.find(&name).await?;
                let asked = asked(Operation::Stop);
                let dependents = self.stop_dependents(&name, &asked).await?;
                let called_off = handle.call_off(CancelCause::Stop).await;
                if let Some((outcome, preparation)) = called_off.preparation {
                    preparation.ended().await;
                    return Ok(answer(handle.kept(outcome).await));
                }
                let order = OperationRequest::Stop(StoppedBy::Person);
                let ended = match handle.request_operation(order, Some(asked.clone()), Some(progress)).await {
                    // The service waited for its start, and was called off: that is the outcome.
                    Err(error) if called_off.waiting_start && error.kind == Kind::NotRunning => {
                        Ok(handle.read(|service| service.stopped_before_start(&asked)))
                    }
                    ended => ended,
                };
                match ended {
                    Ok(outcome) => Ok(answer(with_dependents(handle.kept(outcome).await, &dependents))),
                    Err(error) => {
                        handle.keep_autostart().await?;
                        Err(error)
                    }
                }
            }
            api::Request::Restart(name) => self.restart(&name, asked(Operation::Restart), progress).await,
            api::Request::Upgrade(upgrade) => {
                self.upgrade(upgrade, asked(Operation::Upgrade), progress).await
            }
            api::Request::Cancel(name) => {
                let handle = self.find(&name).await?;
                if let Some((outcome, preparation)) = handle.call_off(CancelCause::Cancel).await.preparation {
                    preparation.ended().await;
                    return Ok(answer(outcome));
                }
                handle.request_operation(OperationRequest::Cancel, None, Some(progress)).await.map(answer)
            }
            api::Request::Kill(kill) => {
                let handle = self.find(&kill.service).await?;
                // Mistakes in the file are no reason to withhold a signal.
                let config = self.find_fresh(&kill.service).await.ok().map(|(_, config)| config);
                handle.read(|service| service.signal_program(&kill, config.as_ref()))?;
                status_of(handle).await
            }
            api::Request::Install(install) => self.install(install, by, Some(progress)).await.map(answer),
            api::Request::Rollback(rollback) => {
                self.rollback(rollback, asked(Operation::Rollback), Some(progress)).await.map(answer)
            }
            api::Request::Versions(name) => {
                Ok(api::Response::Versions(self.versions(&self.find(&name).await?)))
            }
            api::Request::Pin(pin) => {
                let handle = self.find(&pin.service).await?;
                self.pin(&handle, pin).await.map(api::Response::Versions)
            }
            api::Request::Gc(name) => {
                let handles = match name {
                    Some(name) => vec![self.find(&name).await?],
                    None => self.all().await,
                };
                self.gc(handles).await.map(api::Response::Versions)
            }
            api::Request::Subscribe(wanted) => self.subscribe(&wanted).await.map(api::Response::Subscription),
            api::Request::Unsubscribe(_) => Err(Error::internal("a subscription belongs to its connection")),
            api::Request::Reload(reload) => {
                self.reload(reload, by, progress).await.map(Box::new).map(api::Response::Reload)
            }
            api::Request::Register(register) => {
                self.register_service(register, by, progress).await.map(answer)
            }
            api::Request::Unregister(name) => self.remove_by(&name, Removal::Unregister, by, progress).await,
            api::Request::Remove(name) => self.remove_by(&name, Removal::Remove, by, progress).await,
            api::Request::Destroy(name) => self.remove_by(&name, Removal::Destroy, by, progress).await,
            api::Request::History(history) => self.history(&history).await.map(api::Response::History),
        }
    }

    fn changes(&self) -> Option<broadcast::Receiver<api::Change>> {
        Some(self.shared.changes.subscribe())
    }
}

/// The end of a stop, with the services that were stopped before.
fn with_dependents(outcome: api::Outcome, stopped: &[ServiceName]) -> api::Outcome {
    if stopped.is_empty() {
        return outcome;
    }
    let names = stopped.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(", ");
    let which = if stopped.len() == 1 { "requires" } else { "require" };
    let told = format!("{names}, which {which} it, was stopped first");
    let reason = outcome.reason.iter().cloned().chain([told]).collect::<Vec<_>>().join("; ");
    api::Outcome { reason: Some(reason), ..outcome }
}

async fn status_of(handle: Handle) -> Result<api::Response, Error> {
    let status = statuses(vec![handle]).await.pop();
    let status = status.ok_or_else(|| Error::internal("a status was lost"))?;
    Ok(api::Response::Status(Box::new(status)))
}

fn answer(outcome: api::Outcome) -> api::Response {
    api::Response::Outcome(Box::new(outcome))
}

impl Daemon {
    async fn history(&self, wanted: &api::History) -> Result<Vec<Entry>, Error> {
        let limit = wanted.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let handles: Vec<Handle> = match &wanted.service {
            Some(name) => vec![self.find(name).await?],
            None => self.services.borrow().values().cloned().collect(),
        };
        // All at the same time: a disk that hangs only holds up its own service.
        let read = |handle: &Handle| {
            let recorder = handle.recorder();
            spawn_local(async move { recorder.read(limit).await })
        };
        let reads: Vec<_> = handles.iter().map(read).collect();
        let mut histories = Vec::with_capacity(reads.len());
        for read in reads {
            histories.push(read.await.map_err(Error::internal)?);
        }
        Ok(merged(histories, limit))
    }

    async fn status(&self, name: &ServiceName) -> Result<api::Response, Error> {
        let found = self.find(name).await;
        if let (Err(_), Some(broken)) = (&found, self.broken.borrow().get(name)) {
            return Ok(api::Response::Status(Box::new(broken.status(name))));
        }
        status_of(found?).await
    }

    pub(super) async fn start(
        &self,
        name: &ServiceName,
        asked: RequestedOperation,
        progress: ProgressSink,
    ) -> Result<api::Response, Error> {
        let (handle, config) = self.find_fresh(name).await?;
        let file = config.text.clone();
        self.start_needed(&handle, &asked, &progress).await?;
        let prepared = prepare_start(&handle, config).await;
        prepared.inspect_err(|error| handle.with(|service| service.note_refused_start(error, &file)))?;
        let started = handle.request_operation(OperationRequest::Start, Some(asked), Some(progress)).await?;
        let started = handle.kept(started).await;
        Ok(answer(handle.done(started).await))
    }

    /// Enables or disables a service for the start of the daemon.
    async fn enable(&self, name: &ServiceName, enabled: bool) -> Result<api::Response, Error> {
        let handle = self.find(name).await?;
        handle.enable(enabled).await?;
        self.status(name).await
    }

    async fn restart(
        &self,
        name: &ServiceName,
        asked: RequestedOperation,
        progress: ProgressSink,
    ) -> Result<api::Response, Error> {
        let (handle, config) = self.find_fresh(name).await?;
        handle.compacted().await;
        match handle.phase() {
            Phase::Stopped => return self.start(name, asked, progress).await,
            Phase::Backoff => import_first_again(&handle, config.clone()).await?,
            _ => {}
        }
        handle.read(Service::check_no_job)?;
        check_running(&handle, &config).await?;
        let order = OperationRequest::Restart(Box::new(config));
        handle.request_operation(order, Some(asked), Some(progress)).await.map(answer)
    }

    async fn upgrade(
        &self,
        wanted: api::Upgrade,
        asked: RequestedOperation,
        progress: ProgressSink,
    ) -> Result<api::Response, Error> {
        let (handle, config) = self.find_fresh(&wanted.service).await?;
        let deadline_ms = wanted.deadline_ms.unwrap_or(config.deadline_ms);
        if let Some(grace_ms) = wanted.drain_grace_ms.filter(|grace_ms| *grace_ms > deadline_ms) {
            let (grace, deadline) = (format_duration_ms(grace_ms), format_duration_ms(deadline_ms));
            let message = format!("The drain grace ({grace}) is longer than the deadline ({deadline}).");
            let hint = "The drain is one part of the upgrade: shorten it or raise the deadline.";
            return Err(Error::new(Kind::InvalidParams, message, hint));
        }
        handle.compacted().await;
        let api::Upgrade { binary, deadline_ms, drain_grace_ms, claims, .. } = wanted;
        let limits = UpgradeLimits { deadline_ms, drain_grace_ms };
        let refusal = OperationRequest::Refusal(limits);
        if let Some(refused) =
            handle.try_request_operation(refusal, Some(asked.clone()), Some(progress.clone())).await
        {
            return refused.map(answer);
        }
        let binary = match binary {
            Some(binary) => binary,
            None => {
                refuse_step_back(&handle, &config).await?;
                config.binary.clone()
            }
        };
        let pipeline = Pipeline::now(handle, config, asked, Some(progress))?;
        let wanted = RequestedVersion::Path(binary, claims, None);
        pipeline.run(wanted, false, limits).await.map(answer)
    }
}

/// Does everything before the start of a process that can be refused.
async fn prepare_start(handle: &Handle, config: config::Service) -> Result<(), Error> {
    let phase = handle.with(|service| {
        service.problems.start_refused_no_longer();
        service.maintain_journal();
        // The start is up to this request.
        service.repair_journal_at_rest(false);
        service.machine.phase()
    });
    if phase == Phase::Recovering {
        // The service has just become known, and its running processes are asked what they are doing.
        handle.settled().await;
    }
    let phase = handle.read(|service| match service.journal.refused() {
        Some(cause) => Err(unusable(&service.name, cause, service.journal.is_damaged())),
        None => Ok(service.machine.phase()),
    })?;
    if phase == Phase::Stopped {
        recall_staged(handle).await;
        check_staged(handle, &config).await?;
        import_first(handle, &config).await?;
        // The committed version runs, whatever the service file names now.
        let path = handle.with(|service| {
            service.reconfigure(config);
            service.try_staged();
            service.path_of(Target::Committed)
        });
        check(handle, path).await?;
        handle.with(|service| {
            service.open_listeners()?;
            // An attempt that is due at this moment must not come before this start.
            service.call_off_start();
            Ok::<_, Error>(())
        })?;
    } else if phase == Phase::Backoff {
        import_first_again(handle, config).await?;
    }
    Ok(())
}

/// Brings in the first version again for a service that never ran and waits for its next start: what its file names
/// may have changed since.
async fn import_first_again(handle: &Handle, config: config::Service) -> Result<(), Error> {
    if handle.read(|service| service.current_binary().is_some()) {
        return Ok(());
    }
    import_first(handle, &config).await?;
    handle.with(|service| service.take_over(config))
}

/// Refuses an upgrade to what the file names if the running version was brought in later.
async fn refuse_step_back(handle: &Handle, config: &config::Service) -> Result<(), Error> {
    let Some(comparison) = handle.read(|service| service.comparison(&config.binary)) else { return Ok(()) };
    let lane = handle.lanes().comparisons;
    let named =
        lane.run_within(START_LIMIT, config.binary.display().to_string(), move || comparison.answer());
    let named = named.await.map_err(|error| unfinished(&config.name, &config.binary, &error))?;
    if named != Some(api::NamedIs::Older) {
        return Ok(());
    }
    let (shown, generation) =
        handle.read(|service| (service.shown(), service.journal.standing().generation()));
    let (name, named) = (&config.name, config.binary.display());
    let message = format!(
        "Service {:?} runs {} (generation {generation}), which was brought in after {named}, which its file names: the \
         upgrade would be a step back.",
        name.as_str(),
        shown.path.display()
    );
    let hint = format!(
        "To go back: handoff upgrade {name} --binary {named}. To stay: name {} in {}. To start the same again: handoff restart {name}",
        shown.path.display(),
        config.file.display()
    );
    Err(Error::new(Kind::StepBack, message, hint))
}

/// The error if the state of a service cannot be used, so that its current binary is unknown.
pub(super) fn unusable(name: &ServiceName, cause: &str, is_damaged: bool) -> Error {
    let message = format!("The state of service {:?} cannot be used: {cause}.", name.as_str());
    // The problem of a damaged journal says what to do.
    let what = if is_damaged { "Do that" } else { "Mend that" };
    let hint = format!("{what}, then: handoff start {name}");
    Error::new(Kind::StorageFailed, message, hint)
}

/// Checks whether a service can be started from `binary`.
pub(super) async fn check(handle: &Handle, binary: PathBuf) -> Result<(), Error> {
    let (name, lane) = (handle.name(), handle.lanes().imports);
    let (path, what) = (binary.clone(), binary.display().to_string());
    let checked = lane.run_within(START_LIMIT, what, move || check_binary(&path)).await;
    let refused = |error: &dyn std::fmt::Display, hint: String| {
        let message =
            format!("Service {:?} cannot be started from {}: {error}.", name.as_str(), binary.display());
        Error::new(Kind::SpawnFailed, message, hint)
    };
    match checked {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(refused(&error, error.hint())),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(refused(&error, "Does its file system answer?".to_owned()))
        }
        // Without a thread for the check, the start itself reports what is wrong.
        Err(_) => Ok(()),
    }
}

impl Service {
    pub(super) fn is_open_to_upgrades(&self) -> bool {
        self.machine.is_open_to_upgrades()
    }

    /// Adopts a changed service file without a stop, unless it changes what is bound.
    pub(super) fn take_over(&mut self, config: config::Service) -> Result<(), Error> {
        self.may_take_over(&config)?;
        self.reconfigure(config);
        self.repair_journal();
        // Nothing could be committed, and what a rollback would start again is not known for sure.
        match self.journal.refused() {
            Some(cause) => Err(self.not_recordable(cause)),
            None => Ok(()),
        }
    }

    fn not_recordable(&self, cause: &str) -> Error {
        let name = self.name.as_str();
        let message = format!("The state of service {name:?} cannot be used: {cause}. It serves on.");
        Error::new(Kind::StorageFailed, message, "Nothing was begun. Mend that, then try again.")
    }

    /// Checks that a changed service file needs no stop.
    pub(super) fn may_take_over(&self, config: &config::Service) -> Result<(), Error> {
        if bound(config) != bound(&self.config) {
            let message = format!("The [listen] table of service {:?} has changed.", self.name.as_str());
            let hint = format!(
                "Addresses change only with a stop: handoff stop {0}, then handoff start {0}",
                self.name
            );
            return Err(Error::new(Kind::ConfigInvalid, message, hint));
        }
        if config.mode != self.config.mode {
            let message = format!("The mode of service {:?} has changed.", self.name.as_str());
            let hint = format!(
                "The mode changes only with a stop: handoff stop {0}, then handoff start {0}",
                self.name
            );
            return Err(Error::new(Kind::ConfigInvalid, message, hint));
        }
        if config.adapter.is_foreign() != self.config.adapter.is_foreign() {
            let message = format!("The adapter of service {:?} has changed.", self.name.as_str());
            let hint = format!(
                "A program that speaks the protocol cannot follow one that does not, or the other way round, without a stop: \
                 handoff stop {0}, then handoff start {0}",
                self.name
            );
            return Err(Error::new(Kind::ConfigInvalid, message, hint));
        }
        Ok(())
    }
}
