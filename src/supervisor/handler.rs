//! Answers what is asked over the control socket.

use handoff_protocol::ids::ServiceName;
use handoff_protocol::supervisor::{Incumbent, Phase, Request, Target};
use tokio::sync::oneshot;

use super::binary::hex;
use super::daemon::Daemon;
use super::install::{self, Pipeline, Wanted};
use super::recording::{Asked, merged};
use super::running::bound;
use super::service::{Handle, Service};
use super::timeline;
use super::versions::statuses;
use crate::config::{self, BinaryError, check_binary, format_duration_ms, load_others, load_service};
use crate::control::{Caller, Error, Handler, Kind, ProgressSink, api};
use crate::history::{Entry, Operation};

impl Handler for Daemon {
    async fn call(
        &self,
        request: api::Request,
        by: Caller,
        progress: ProgressSink,
    ) -> Result<api::Response, Error> {
        let asked = |what| Asked::new(what, by.clone());
        match request {
            api::Request::Ping => Ok(api::Response::Pong(api::Pong {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
            })),
            api::Request::List => Ok(api::Response::List(statuses(self.all()).await)),
            api::Request::Status(name) => {
                let mut statuses = statuses(vec![self.find(&name)?]).await;
                let status = statuses.pop().ok_or_else(|| Error::internal("a status was lost"))?;
                Ok(api::Response::Status(Box::new(status)))
            }
            api::Request::Start(name) => self.start(&name, asked(Operation::Start), progress).await,
            api::Request::Stop(name) => {
                let handle = self.find(&name)?;
                wait(&handle, Request::Stop, Some(asked(Operation::Stop)), Some(progress)).await.map(answer)
            }
            api::Request::Restart(name) => self.restart(&name, asked(Operation::Restart), progress).await,
            api::Request::Upgrade(upgrade) => {
                self.upgrade(upgrade, asked(Operation::Upgrade), progress).await
            }
            api::Request::Cancel(name) => {
                let handle = self.find(&name)?;
                if let Some(outcome) = handle.with(Service::call_off_preparation) {
                    return Ok(answer(outcome));
                }
                wait(&handle, Request::Cancel, None, Some(progress)).await.map(answer)
            }
            api::Request::Install(install) => self.install(install, by, Some(progress)).await.map(answer),
            api::Request::Rollback(rollback) => {
                self.rollback(rollback, asked(Operation::Rollback), Some(progress)).await.map(answer)
            }
            api::Request::Versions(name) => Ok(api::Response::Versions(self.versions(&self.find(&name)?))),
            api::Request::Pin(pin) => {
                let handle = self.find(&pin.service)?;
                self.pin(&handle, pin).await.map(api::Response::Versions)
            }
            api::Request::Gc(name) => {
                let handles = match name {
                    Some(name) => vec![self.find(&name)?],
                    None => self.all(),
                };
                self.gc(handles).await.map(api::Response::Versions)
            }
            api::Request::History(history) => self.history(&history).await.map(api::Response::History),
        }
    }
}

fn answer(outcome: api::Outcome) -> api::Response {
    api::Response::Outcome(Box::new(outcome))
}

/// Asks the machine of a service, and waits for the end.
pub(super) async fn wait(
    handle: &Handle,
    request: Request,
    asked: Option<Asked>,
    progress: Option<ProgressSink>,
) -> Result<api::Outcome, Error> {
    let (reply, answer) = oneshot::channel();
    let operation = timeline::Operation { reply, progress, asked };
    handle.with(|service| service.ask(request, operation));
    answer.await.unwrap_or_else(|_| Err(Error::internal("an operation was dropped")))
}

impl Daemon {
    /// Takes in the services whose files are new since the daemon started. One that is invalid is not there yet.
    fn discover(&self) {
        let is_known = |name: &ServiceName| self.services.borrow().contains_key(name);
        for config in load_others(&self.shared.dirs.config, is_known).services.into_values() {
            if self.refuse_conflicts(&config).is_ok()
                && let Err(error) = self.add(config)
            {
                tracing::error!("{error}");
            }
        }
    }

    fn all(&self) -> Vec<Handle> {
        self.discover();
        self.services.borrow().values().cloned().collect()
    }

    fn find(&self, name: &ServiceName) -> Result<Handle, Error> {
        if !self.services.borrow().contains_key(name) {
            self.discover();
        }
        let services = self.services.borrow();
        services
            .get(name)
            .cloned()
            .ok_or_else(|| Error::unknown_service(name, services.keys().map(ServiceName::as_str)))
    }

    /// The service with what its file says now; a file that is new since the daemon started is taken in.
    pub(super) fn find_fresh(&self, name: &ServiceName) -> Result<(Handle, config::Service), Error> {
        if !self.shared.dirs.service_file(name).exists() {
            let handle = self.find(name)?;
            let config = handle.with(|service| service.config.clone());
            return Ok((handle, config));
        }
        let config = load_service(&self.shared.dirs.config, name)
            .map_err(|errors| Error::config_invalid(name, &errors))?;
        self.refuse_conflicts(&config)?;
        let known = self.services.borrow().get(name).cloned();
        let handle = match known {
            Some(handle) => handle,
            None => self.add(config.clone())?,
        };
        Ok((handle, config))
    }

    /// Two services cannot listen on one address.
    fn refuse_conflicts(&self, config: &config::Service) -> Result<(), Error> {
        for (name, handle) in self.services.borrow().iter().filter(|(name, _)| **name != config.name) {
            let taken = handle.with(|other| {
                let pairs = config.listeners.iter().flat_map(|ours| {
                    other
                        .config
                        .listeners
                        .iter()
                        .map(move |theirs| (ours.address.clone(), theirs.address.clone()))
                });
                pairs.into_iter().find(|(ours, theirs)| ours.conflicts_with(theirs))
            });
            if let Some((address, _)) = taken {
                let message = format!(
                    "{address} of service {:?} is an address of {:?} too.",
                    config.name.as_str(),
                    name.as_str()
                );
                return Err(Error::new(
                    Kind::ConfigInvalid,
                    message,
                    "Give each service addresses of its own.",
                ));
            }
        }
        Ok(())
    }

    async fn history(&self, wanted: &api::History) -> Result<Vec<Entry>, Error> {
        let limit = wanted.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let handles: Vec<Handle> = match &wanted.service {
            Some(name) => vec![self.find(name)?],
            None => self.services.borrow().values().cloned().collect(),
        };
        let mut histories = Vec::new();
        for recorder in handles.iter().map(|handle| handle.with(|service| service.recorder.clone())) {
            histories.push(recorder.read(limit).await);
        }
        Ok(merged(histories, limit))
    }

    async fn start(
        &self,
        name: &ServiceName,
        asked: Asked,
        progress: ProgressSink,
    ) -> Result<api::Response, Error> {
        let (handle, config) = self.find_fresh(name)?;
        let stopped = handle.with(|service| {
            service.mend_journal();
            service.machine.phase() == Phase::Stopped
        });
        if stopped {
            install::bring_first(&handle, &config).await?;
            handle.with(|service| {
                service.reconfigure(config);
                // What was committed runs, whatever the service file names meanwhile.
                check(&service.name, &service.path_of(Target::Committed))?;
                service.open_listeners()
            })?;
        }
        wait(&handle, Request::Start, Some(asked), Some(progress)).await.map(answer)
    }

    async fn restart(
        &self,
        name: &ServiceName,
        asked: Asked,
        progress: ProgressSink,
    ) -> Result<api::Response, Error> {
        let (handle, config) = self.find_fresh(name)?;
        handle.compacted().await;
        if handle.with(|service| service.machine.phase() == Phase::Stopped) {
            return self.start(name, asked, progress).await;
        }
        handle.with(|service| {
            service.take_over(config)?;
            service.candidate = Some(service.path_of(Target::Committed));
            Ok::<_, Error>(())
        })?;
        let request = Request::Upgrade { target: Target::Candidate, deadline_ms: None, drain_grace_ms: None };
        wait(&handle, request, Some(asked), Some(progress)).await.map(answer)
    }

    async fn upgrade(
        &self,
        wanted: api::Upgrade,
        asked: Asked,
        progress: ProgressSink,
    ) -> Result<api::Response, Error> {
        let (handle, config) = self.find_fresh(&wanted.service)?;
        let deadline_ms = wanted.deadline_ms.unwrap_or(config.deadline_ms);
        if let Some(grace_ms) = wanted.drain_grace_ms.filter(|grace_ms| *grace_ms > deadline_ms) {
            let (grace, deadline) = (format_duration_ms(grace_ms), format_duration_ms(deadline_ms));
            let message = format!("The drain grace ({grace}) is longer than the deadline ({deadline}).");
            let hint = "The drain is one part of the upgrade: shorten it or raise the deadline.";
            return Err(Error::new(Kind::InvalidParams, message, hint));
        }
        handle.compacted().await;
        let api::Upgrade { binary, deadline_ms, drain_grace_ms, claims, .. } = wanted;
        if !handle.with(|service| service.is_open_to_upgrades()) {
            // The machine says why not.
            let request = Request::Upgrade { target: Target::Candidate, deadline_ms, drain_grace_ms };
            return wait(&handle, request, Some(asked), Some(progress)).await.map(answer);
        }
        let binary = binary.unwrap_or_else(|| config.binary.clone());
        let pipeline = Pipeline::now(handle, config, asked, Some(progress))?;
        let wanted = Wanted::Path(binary, claims, None);
        pipeline.run(wanted, false, (deadline_ms, drain_grace_ms)).await.map(answer)
    }
}

pub(super) fn check(name: &ServiceName, binary: &std::path::Path) -> Result<(), Error> {
    check_binary(binary).map_err(|error: BinaryError| {
        let message =
            format!("Service {:?} cannot be started from {}: {error}.", name.as_str(), binary.display());
        Error::new(Kind::SpawnFailed, message, error.hint())
    })
}

impl Service {
    pub(super) fn is_open_to_upgrades(&self) -> bool {
        matches!(self.machine.phase(), Phase::Serving | Phase::Backoff) && self.machine.retiree().is_none()
    }

    /// Takes over a changed service file without a stop, unless it changes what is bound.
    pub(super) fn take_over(&mut self, config: config::Service) -> Result<(), Error> {
        self.may_take_over(&config)?;
        self.reconfigure(config);
        self.mend_journal();
        Ok(())
    }

    /// Whether a changed service file needs no stop.
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

    pub(super) fn status(&self) -> api::ServiceStatus {
        let state = match (self.machine.phase(), self.machine.incumbent()) {
            (Phase::Recovering, _) => api::State::Recovering,
            (Phase::Stopped, _) if self.problem.is_some() => api::State::Failed,
            (Phase::Stopped, _) => api::State::Stopped,
            (Phase::Backoff, _) => api::State::Backoff,
            (Phase::Serving, _) => api::State::Serving,
            (Phase::Stopping, _) => api::State::Stopping,
            (_, Incumbent::Absent) => api::State::Starting,
            (_, _) => api::State::Upgrading,
        };
        let phase = self.phase_name();
        let shown = self.shown();
        api::ServiceStatus {
            service: self.name.clone(),
            state,
            phase: (!matches!(phase, "serving" | "stopped" | "backoff") && phase != state.as_str())
                .then(|| phase.to_owned()),
            detail: self.phase_status(),
            generation: self.journal.standing().generation(),
            pid: self.incumbent.as_ref().map(|party| party.process.pid),
            program: self.pid_of_program(),
            binary: shown.path,
            stored: shown.stored,
            version: shown.version,
            skew: None,
            sha256: self.current_binary().map(|binary| hex(&binary.sha256)),
            started_at: self.incumbent.as_ref().map(|party| party.started_at_unix_ms),
            restarts: self.journal.standing().restarts,
            mode: self.config.mode,
            listeners: self.config.listeners.iter().map(listener_status).collect(),
            last_handoff: self.last.clone(),
            problem: self.problem.clone(),
        }
    }
}

fn listener_status(listener: &config::Listener) -> api::ListenerStatus {
    api::ListenerStatus { name: listener.name.clone(), address: listener.address.to_string() }
}
