//! Starts and stops in the order of the dependencies.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use handoff_protocol::dependency::{Condition, Need, awaited};
use handoff_protocol::ids::ServiceName;
use handoff_protocol::supervisor::{Incumbent, Phase};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::daemon::Daemon;
use super::operations::{OperationRequest, RequestedOperation, StoppedBy, progress};
use super::process::Token;
use super::service::{Handle, Service};
use crate::config::{Dependency, ServiceKind};
use crate::control::{Error, Kind, ProgressSink};
use crate::history::Operation;

/// The pause before a service that is not known is looked for again.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(1);

impl Service {
    /// Its condition, for those that depend on it.
    pub(super) fn condition(&self) -> Condition {
        let is_job = self.config.kind == ServiceKind::Oneshot;
        match (self.machine.phase(), self.machine.incumbent()) {
            (Phase::Stopped, _) if self.is_to_start || self.has_pending_start() => Condition::Coming,
            (Phase::Stopped, _) if self.is_first_imported() => Condition::Coming,
            (Phase::Stopped, _) if is_job && self.is_exited() => Condition::Ready,
            (Phase::Stopped, _) => Condition::Down,
            (Phase::Stopping | Phase::Recovering | Phase::Backoff, _) | (_, Incumbent::Absent) => {
                Condition::Coming
            }
            (_, _) if is_job => Condition::Coming,
            (_, _) => Condition::Ready,
        }
    }

    /// The services that it requires or wants, without those that it only comes after.
    fn needed(&self) -> Vec<Dependency> {
        self.config.dependencies.iter().filter(|it| it.need != Need::After).cloned().collect()
    }

    fn depends_on(&self, name: &ServiceName) -> bool {
        self.config.dependencies.iter().any(|it| it.name == *name)
    }

    fn requires(&self, name: &ServiceName) -> bool {
        self.config.dependencies.iter().any(|it| it.name == *name && it.need == Need::Requires)
    }
}

impl Daemon {
    /// Starts the services that are to start with the daemon, each when what it depends on is ready. Those that do not
    /// depend on each other start side by side.
    pub(super) fn start_in_order(self: &Rc<Self>) {
        let all: Vec<Handle> = self.services.borrow().values().cloned().collect();
        for handle in all {
            let token = handle
                .with(|service| std::mem::take(&mut service.is_to_start).then(|| service.begin_awaited()));
            if let Some(token) = token {
                let this = Rc::clone(self);
                spawn_local(async move { this.start_when_ready(&handle, token).await });
            }
        }
    }

    async fn start_when_ready(&self, handle: &Handle, token: Token) {
        loop {
            let dependencies = handle.read(|service| service.config.dependencies.clone());
            let awaited = awaited(dependencies.into_iter().map(|it| (it.need, self.condition(&it.name), it)));
            if !handle.read(|service| service.awaits(token)) {
                return;
            }
            let Some((condition, first)) = awaited.first() else {
                return handle.with(|service| {
                    service.problems.start_waits_no_longer();
                    service.start_when_imported();
                });
            };
            let names: Vec<&str> = awaited.iter().map(|(_, it)| it.name.as_str()).collect();
            let text = waits_for(&names, *condition, first);
            handle.with(|service| service.problems.waits_for_others(text));
            self.changed(&first.name, *condition).await;
        }
    }

    fn condition(&self, name: &ServiceName) -> Condition {
        match self.services.borrow().get(name) {
            Some(handle) => handle.read(Service::condition),
            None if self.not_taken_in.borrow().contains_key(name) => Condition::Coming,
            None => Condition::Missing,
        }
    }

    /// Completes when a service is no longer in this condition.
    async fn changed(&self, name: &ServiceName, from: Condition) {
        let handle = self.services.borrow().get(name).cloned();
        match handle {
            Some(handle) => handle.until(|service| service.condition() != from).await,
            None => sleep(UNKNOWN_PAUSE).await,
        }
    }

    /// Starts what a service requires and wants, before a person's start of it. An error if something that it requires
    /// is not ready then.
    pub(super) async fn start_needed(
        &self,
        handle: &Handle,
        asked: &RequestedOperation,
        progress_to: &ProgressSink,
    ) -> Result<(), Error> {
        for Dependency { need, name, .. } in handle.read(Service::needed) {
            if self.condition(&name) == Condition::Ready {
                continue;
            }
            let detail = Some(format!("for {name}"));
            progress_to.send(progress(&handle.name(), None, "waiting", asked.elapsed_us(), detail));
            let started = Box::pin(self.start_dependency(&name, asked)).await;
            if need == Need::Requires && self.condition(&name) != Condition::Ready {
                return Err(not_ready(&handle.name(), &name, started.err()));
            }
        }
        Ok(())
    }

    async fn start_dependency(&self, name: &ServiceName, asked: &RequestedOperation) -> Result<(), Error> {
        if self.condition(name) == Condition::Coming {
            self.changed(name, Condition::Coming).await;
        }
        if self.condition(name) == Condition::Ready {
            return Ok(());
        }
        let asked = RequestedOperation::new(Operation::Start, asked.requester.clone());
        self.start(name, asked, ProgressSink::none()).await.map(drop)
    }

    /// Stops the services that require this one, those that require them first. Returns their names.
    pub(super) async fn stop_dependents(
        &self,
        name: &ServiceName,
        asked: &RequestedOperation,
    ) -> Result<Vec<ServiceName>, Error> {
        let mut stopped = Vec::new();
        for dependent in self.running(|service| service.requires(name)) {
            let of = dependent.name();
            stopped.extend(Box::pin(self.stop_dependents(&of, asked)).await?);
            let asked = RequestedOperation::new(Operation::Stop, asked.requester.clone());
            let order = OperationRequest::Stop(StoppedBy::Dependency);
            match dependent.request_operation(order, Some(asked), None).await {
                Ok(_) => stopped.push(of),
                Err(error) if error.kind == Kind::NotRunning => {}
                Err(error) => {
                    let message = format!(
                        "Service {:?} requires {:?} and cannot be stopped before it: {}",
                        of.as_str(),
                        name.as_str(),
                        error.message
                    );
                    return Err(Error { message, ..error });
                }
            }
        }
        Ok(stopped)
    }

    /// Completes when nothing that depends on this service runs any more.
    pub(super) async fn dependents_stopped(&self, name: &ServiceName) {
        for dependent in self.running(|service| service.depends_on(name)) {
            dependent.until(|service| service.machine.phase() == Phase::Stopped).await;
        }
    }

    fn running(&self, fits: impl Fn(&Service) -> bool) -> Vec<Handle> {
        let runs = |service: &Service| service.machine.phase() != Phase::Stopped && fits(service);
        let services = self.services.borrow();
        services.values().filter(|handle| handle.read(runs)).cloned().collect()
    }
}

/// What a start waits for. Sentences.
fn waits_for(names: &[&str], condition: Condition, first: &Dependency) -> String {
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    let all = unique.into_iter().collect::<Vec<_>>().join(", ");
    let name = &first.name;
    match condition {
        Condition::Down => {
            format!("Its start waits for {all}: {name} does not run. To start it: handoff start {name}")
        }
        Condition::Missing => format!("Its start waits for {all}: there is no service {:?}.", name.as_str()),
        Condition::Ready | Condition::Coming => format!("Its start waits for {all}, until it is ready."),
    }
}

fn not_ready(name: &ServiceName, dependency: &ServiceName, error: Option<Error>) -> Error {
    let cause = error
        .map_or_else(|| "it is not ready".to_owned(), |error| error.message.trim_end_matches('.').to_owned());
    let message = format!(
        "Service {:?} is not started, because it requires {:?}: {cause}.",
        name.as_str(),
        dependency.as_str()
    );
    let hint = format!("See what is wrong with it: handoff status {dependency}");
    Error::new(Kind::DependencyDown, message, hint)
}
