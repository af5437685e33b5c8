//! Applies a plan: first what costs nothing, then what frees addresses, then what needs them.

use handoff_protocol::ids::ServiceName;
use handoff_protocol::supervisor::Phase;
use tokio::task::spawn_local;

use super::plan::Plan;
use crate::config::{self, Cost};
use crate::control::{Caller, Error, Handler, Kind, ProgressSink, api};
use crate::history::Operation;
use crate::supervisor::daemon::Daemon;
use crate::supervisor::operations::{OperationRequest, RequestedOperation, UpgradeLimits};
use crate::supervisor::rollout::{Pipeline, RequestedVersion, check_running};
use crate::supervisor::service::{Handle, Service};
use crate::supervisor::service_files::ServiceFileContent;

/// How the operation of a service ended.
type Ended = (ServiceName, Result<Option<api::Outcome>, Error>);

impl Daemon {
    pub(super) async fn apply(
        &self,
        plan: &Plan,
        by: &Caller,
        progress: ProgressSink,
    ) -> Vec<api::ReloadResult> {
        let run = Run { by: by.clone(), progress };
        let mut ended: Vec<Ended> = self.adopt(plan);
        let mut removed = Vec::new();
        for name in names(plan, |row| row.change == api::FileChange::Removed) {
            let stopped = self.stop_for(&name, &run).await;
            removed.push(name.clone());
            ended.extend(stopped.transpose().map(|stopped| (name, stopped.map(Some))));
        }
        for name in &removed {
            self.learn(name, ServiceFileContent::Absent, true);
        }
        let mut starts = Vec::new();
        for name in plan.that_cost(Cost::Restart) {
            match self.stop_for(&name, &run).await {
                Ok(_) => starts.push(name),
                Err(error) => ended.push((name, Err(error))),
            }
        }
        for name in &starts {
            // All give up their addresses before one of them gets a new one.
            if let (Some(handle), Some(file)) = (self.known(name), plan.files.get(name)) {
                handle.with(|service| service.reconfigure(file.clone()));
            }
        }
        for name in names(plan, |row| row.change == api::FileChange::Added) {
            let Some(file) = plan.files.get(&name) else { continue };
            self.broken.borrow_mut().remove(&name);
            if self.known(&name).is_none() {
                self.add(file.clone());
            }
            if file.autostart {
                starts.push(name);
            }
        }
        ended.extend(self.start_all(starts, &run).await);
        for name in plan.that_cost(Cost::Handoff) {
            let (Some(handle), Some(file)) = (self.known(&name), plan.files.get(&name)) else { continue };
            let handed_over = hand_over(&handle, file, &run).await;
            ended.push((name, handed_over.map(Some)));
        }
        ended.into_iter().filter_map(result).collect()
    }

    fn known(&self, name: &ServiceName) -> Option<Handle> {
        self.services.borrow().get(name).cloned()
    }

    /// Lets the services whose change costs nothing go by their files.
    fn adopt(&self, plan: &Plan) -> Vec<Ended> {
        let mut ended = Vec::new();
        for row in plan.rows.iter().filter(|row| row.cost == Cost::Nothing) {
            let Some((name, handle)) = row.service.as_ref().and_then(|name| Some((name, self.known(name)?)))
            else {
                continue;
            };
            let Some(file) = plan.files.get(name) else { continue };
            if handle.read(|service| service.config.text == file.text) {
                continue;
            }
            if !handle.read(Service::may_be_changed) {
                // It has just become busy. What only its comments say can wait.
                if row.change == api::FileChange::Changed {
                    ended.push((name.clone(), Err(handle.read(|it| Error::busy(name, it.doing())))));
                }
                continue;
            }
            handle.with(|service| {
                service.reconfigure(file.clone());
                service.renew_watchdog();
            });
        }
        ended
    }

    async fn stop_for(&self, name: &ServiceName, run: &Run) -> Result<Option<api::Outcome>, Error> {
        self.stop_and_settle(name, run.by.clone(), run.progress.clone()).await
    }

    /// Stops a service, until its last process has left. `None` if it does not run.
    pub(in crate::supervisor) async fn stop_and_settle(
        &self,
        name: &ServiceName,
        by: Caller,
        progress: ProgressSink,
    ) -> Result<Option<api::Outcome>, Error> {
        let Some(handle) = self.known(name).filter(|handle| !handle.read(Service::is_at_rest)) else {
            return Ok(None);
        };
        let stop = api::Request::Stop(name.clone());
        let stopped = outcome(Box::pin(self.call(stop, by, progress)).await);
        let stopped = match stopped {
            Err(error) if error.kind == Kind::NotRunning => None,
            stopped => stopped?,
        };
        // Its addresses are free when its last process has left.
        handle.settled().await;
        Ok(stopped)
    }

    /// All at the same time: one that takes long holds up no other.
    async fn start_all(&self, names: Vec<ServiceName>, run: &Run) -> Vec<Ended> {
        let begin = |name: ServiceName| {
            let (this, run) = (self.this.upgrade(), run.clone());
            spawn_local(async move {
                let Some(this) = this else { return (name, Err(Error::internal("the daemon ends"))) };
                let started = this.call(api::Request::Start(name.clone()), run.by, run.progress).await;
                (name, outcome(started))
            })
        };
        let tasks: Vec<_> = names.into_iter().map(begin).collect();
        let mut ended = Vec::with_capacity(tasks.len());
        for task in tasks {
            ended.extend(task.await.ok());
        }
        ended
    }
}

/// On whose behalf the work is done, and who hears of its progress.
#[derive(Clone)]
struct Run {
    by: Caller,
    progress: ProgressSink,
}

impl Run {
    fn asked(&self, what: Operation) -> RequestedOperation {
        RequestedOperation::new(what, self.by.clone())
    }
}

fn names(plan: &Plan, which: impl Fn(&api::PlannedService) -> bool) -> Vec<ServiceName> {
    plan.rows.iter().filter(|row| which(row)).filter_map(|row| row.service.clone()).collect()
}

fn outcome(answer: Result<api::Response, Error>) -> Result<Option<api::Outcome>, Error> {
    match answer? {
        api::Response::Outcome(outcome) => Ok(Some(*outcome)),
        _ => Ok(None),
    }
}

/// Replaces the process by one that goes by `file`. If that fails, the service goes by what it went by before.
async fn hand_over(handle: &Handle, file: &config::Service, run: &Run) -> Result<api::Outcome, Error> {
    let before = handle.config();
    handle.compacted().await;
    let is_other_binary = before.binary != file.binary;
    let ended = match handle.phase() {
        Phase::Serving if is_other_binary => {
            let asked = run.asked(Operation::Upgrade);
            let pipeline = Pipeline::now(handle.clone(), file.clone(), asked, Some(run.progress.clone()))?;
            let wanted = RequestedVersion::Path(file.binary.clone(), api::Claims::default(), None);
            pipeline.run(wanted, false, UpgradeLimits::default()).await
        }
        _ => {
            check_running(handle, file).await?;
            let order = OperationRequest::Restart(Box::new(file.clone()));
            let asked = run.asked(Operation::Restart);
            handle.request_operation(order, Some(asked), Some(run.progress.clone())).await
        }
    };
    let failed = match &ended {
        Ok(outcome) => matches!(outcome.outcome, api::Ending::RolledBack | api::Ending::Failed),
        Err(_) => true,
    };
    // A later request may have come with another file.
    if failed && handle.read(|service| service.config.text == file.text) {
        handle.with(|service| service.reconfigure(before));
    }
    ended
}

fn result((service, ended): Ended) -> Option<api::ReloadResult> {
    let (outcome, error) = match ended {
        Ok(outcome) => (Some(outcome?), None),
        Err(error) => (None, Some(error.into())),
    };
    Some(api::ReloadResult { service, outcome, error })
}
