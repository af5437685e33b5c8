//! `handoff upgrade --all`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::interrupt::{ContinuationHint, Interrupt};
use super::output::{Output, note, one_line};
use super::rollout::Rollout;
use super::{list, operation};
use crate::config::{self, Dirs};
use crate::control::api::{Claims, Ending, Outcome, Progress, Request, Response, Upgrade};
use crate::control::{Client, ClientError, Kind};

/// A message of one of the upgrades.
enum UpgradeUpdate {
    Progress(Progress),
    Ended(ServiceName, Box<Result<Outcome, ClientError>>),
}

/// The results of the upgrades.
#[derive(Default)]
struct UpgradeSummary {
    committed: Vec<ServiceName>,
    rolled_back: Vec<ServiceName>,
    failed: Vec<ServiceName>,
    passed_over: Vec<ServiceName>,
    exit: Option<Exit>,
}

/// The limits of each upgrade.
#[derive(Clone, Copy)]
pub(super) struct UpgradeLimits {
    pub(super) deadline_ms: Option<u64>,
    pub(super) drain_grace_ms: Option<u64>,
}

/// Upgrades all running services, in the order of `after`, at most `parallel_max` at once. The first one that does
/// not run its new version in the end stops the rest: the running upgrades are waited for, and no more start.
pub(super) fn run(
    limits: UpgradeLimits,
    parallel_max: usize,
    dirs: &Dirs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let mut sum = UpgradeSummary::default();
    let mut rollout = Rollout::new(order(dirs, &mut sum, out)?, parallel_max);
    let (sender, updates) = channel();
    let under_way = Arc::new(Mutex::new(BTreeSet::new()));
    let shown = Arc::clone(&under_way);
    let watch = Interrupt::hold()
        .print_on_interrupt(out.is_json(), None, move || ContinuationHint::all(&*lock(&shown)));
    while !rollout.is_over() {
        for service in rollout.begin() {
            lock(&under_way).insert(service.clone());
            begin(service, limits, dirs, sender.clone());
        }
        // Each upgrade that has started sends an end. `sender` still exists, so `recv` does not fail.
        let Ok(next) = updates.recv() else { break };
        match next {
            UpgradeUpdate::Progress(progress) => show(&progress, out),
            UpgradeUpdate::Ended(service, result) => {
                lock(&under_way).remove(&service);
                let is_good = sum.add(&service, *result, out);
                rollout.ended(&service, is_good);
            }
        }
    }
    drop(watch);
    Ok(sum.print(&rollout.not_started(), out))
}

/// A thread that panics leaves no name half inserted, so a poisoned lock is usable.
fn lock(names: &Mutex<BTreeSet<ServiceName>>) -> MutexGuard<'_, BTreeSet<ServiceName>> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The running services, each with the ones to upgrade before it.
fn order(
    dirs: &Dirs,
    sum: &mut UpgradeSummary,
    out: &mut Output,
) -> Result<BTreeMap<ServiceName, BTreeSet<ServiceName>>, Failure> {
    let running = list::services(dirs)?;
    let loaded = config::load(&dirs.config);
    if let Some(error) = loaded.errors.first() {
        let message = format!("There are mistakes in the service files: {error}.");
        return Err(Failure::invalid(message, "To see all of them: handoff check"));
    }
    let (stopped, running): (Vec<_>, Vec<_>) =
        running.into_iter().partition(|status| status.state.is_at_rest());
    for status in stopped {
        passed_over(&status.service, status.state.as_str(), out);
        sum.passed_over.push(status.service);
    }
    let running: BTreeSet<ServiceName> = running.into_iter().map(|status| status.service).collect();
    let after = |name: &ServiceName| (name.clone(), waits_for(name, &loaded.services, &running));
    Ok(running.iter().map(after).collect())
}

/// The running services to upgrade before this one, also through services that do not run.
fn waits_for(
    name: &ServiceName,
    services: &BTreeMap<ServiceName, config::Service>,
    running: &BTreeSet<ServiceName>,
) -> BTreeSet<ServiceName> {
    let (mut found, mut seen, mut ahead) = (BTreeSet::new(), BTreeSet::new(), vec![name]);
    while let Some(name) = ahead.pop() {
        let service = services.get(name);
        for next in service.into_iter().flat_map(|service| &service.dependencies).map(|it| &it.name) {
            if running.contains(next) {
                found.insert(next.clone());
            } else if seen.insert(next) {
                ahead.push(next);
            }
        }
    }
    found
}

fn passed_over(service: &ServiceName, state: &str, out: &mut Output) {
    if out.is_json() {
        out.object(&json!({ "passed_over": { "service": service, "state": state } }));
    } else {
        out.line(format!("{service} is {state}: passed over."));
    }
}

/// Upgrades one service on its own thread, which reports the progress.
fn begin(
    service: ServiceName,
    UpgradeLimits { deadline_ms, drain_grace_ms }: UpgradeLimits,
    dirs: &Dirs,
    sender: Sender<UpgradeUpdate>,
) {
    let socket = dirs.control_socket();
    std::thread::spawn(move || {
        let (name, claims) = (service.clone(), Claims::default());
        let upgrade = Upgrade { service: name, binary: None, deadline_ms, drain_grace_ms, claims };
        // If the receiver is gone, the command has ended already.
        let mut on_progress = |progress| drop(sender.send(UpgradeUpdate::Progress(progress)));
        let answer = Client::connect(&socket)
            .and_then(|mut client| client.call(&Request::Upgrade(upgrade), &mut on_progress));
        let result = answer.map(|response| match response {
            Response::Outcome(outcome) => *outcome,
            other => unreachable!("the client reads only an outcome as the answer to an upgrade: {other:?}"),
        });
        let _ = sender.send(UpgradeUpdate::Ended(service, Box::new(result)));
    });
}

fn show(progress: &Progress, out: &mut Output) {
    if out.is_json() {
        out.object(&json!({ "progress": progress }));
    } else {
        note(format!("{}: {}", progress.service, operation::line(progress).trim_start()));
    }
}

impl UpgradeSummary {
    /// Records and prints the end of one upgrade. Returns whether the service runs its new version.
    fn add(&mut self, service: &ServiceName, result: Result<Outcome, ClientError>, out: &mut Output) -> bool {
        match result {
            Ok(outcome) => {
                operation::print_outcome(&outcome, out);
                let (list, exit) = match outcome.outcome {
                    Ending::RolledBack => (&mut self.rolled_back, Some(Exit::RolledBack)),
                    // Another command has stopped it.
                    Ending::Failed | Ending::Stopped => (&mut self.failed, self.exit.or(Some(Exit::Failed))),
                    Ending::Committed
                    | Ending::Started
                    | Ending::Completed
                    | Ending::Unchanged
                    | Ending::Staged => (&mut self.committed, self.exit),
                };
                let is_good =
                    !matches!(outcome.outcome, Ending::RolledBack | Ending::Failed | Ending::Stopped);
                list.push(service.clone());
                self.exit = exit;
                is_good
            }
            // The service runs a newer version than its file names, and keeps it.
            Err(ClientError::Refused(error)) if error.kind == Kind::StepBack => {
                if out.is_json() {
                    out.object(&json!({ "passed_over": { "service": service, "state": "serving", "because": error.kind } }));
                } else {
                    out.line(one_line(&format!("{service} is passed over: {error}")));
                }
                self.passed_over.push(service.clone());
                true
            }
            // It waits for an address before its start, or was stopped in the meantime.
            Err(ClientError::Refused(error)) if error.kind == Kind::NotRunning => {
                passed_over(service, "stopped", out);
                self.passed_over.push(service.clone());
                true
            }
            Err(error) => {
                let failure = Failure::from(error);
                self.failed.push(service.clone());
                self.exit = self.exit.or(Some(failure.exit()));
                if !out.is_json() {
                    note(format!("{service}:"));
                }
                out.failure(&failure);
                false
            }
        }
    }

    fn print(self, left: &[ServiceName], out: &mut Output) -> Exit {
        let UpgradeSummary { committed, rolled_back, failed, passed_over, exit } = self;
        if out.is_json() {
            out.object(&json!({ "summary": {
                "committed": committed, "rolled_back": rolled_back, "failed": failed,
                "passed_over": passed_over, "not_begun": left,
            }}));
        } else {
            let lists = [
                ("upgraded", &committed[..]),
                ("rolled back", &rolled_back[..]),
                ("failed", &failed[..]),
                ("passed over", &passed_over[..]),
                ("not begun", left),
            ];
            let parts = lists.iter().filter(|(_, names)| !names.is_empty()).map(|(what, names)| {
                let names: Vec<&str> = names.iter().map(ServiceName::as_str).collect();
                format!("{what}: {}", names.join(", "))
            });
            let parts: Vec<String> = parts.collect();
            out.line(if parts.is_empty() {
                "There are no services.".to_owned()
            } else {
                parts.join("; ") + "."
            });
        }
        exit.unwrap_or(Exit::Done)
    }
}
