//! The effects: one arm per action of the machine, no decision.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{ToService, Welcome};
use handoff_protocol::reason::{Exit, Reason};
use handoff_protocol::record::Fact;
use handoff_protocol::state::State;
use handoff_protocol::supervisor::{Action, Event, Incumbent, Lasting, Outcome, Phase, Refusal, Target};
use rustix::process::Signal;
use tokio::task::spawn_local;

use super::party::Party;
use super::service::Service;
use crate::control::{Error, Kind, api};
use crate::history;

/// How often the queue of a slot is looked at, and for how long at the most.
const QUIET_TICK: Duration = Duration::from_millis(5);
/// How an upgrade ended that another daemon had begun.
const COMPLETED: &str =
    "the daemon that began this upgrade was lost; the new process served, so the next daemon completed it";

const QUIET_LIMIT: Duration = Duration::from_secs(5);

impl Service {
    pub(super) fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::Spawn(id, target) => self.spawn(id, target, events),
            Action::Welcome(id, version) => self.welcome(id, version),
            Action::ToSuccessor(id, ToService::State(state)) => self.hand_on(&self.successor, id, state),
            Action::ToIncumbent(id, ToService::State(state)) => self.hand_on(&self.incumbent, id, state),
            Action::ToSuccessor(id, message) => self.tell_successor(id, &message, events),
            Action::ToIncumbent(id, message) => {
                if matches!(message, ToService::Seal(_)) {
                    self.timeline.gap_begins();
                }
                if let Some(party) = &self.incumbent {
                    party.send(id, &message, &[]);
                }
            }
            Action::ToRetiree(id, message) => self.tell_retiree(id, message),
            Action::KillSuccessor => match &self.successor {
                Some(party) => party.signal(Signal::KILL),
                None => events.push_back(Event::SuccessorGone(Exit::Unknown)),
            },
            Action::KillIncumbent => {
                if let Some(party) = &self.incumbent {
                    party.signal(Signal::KILL);
                }
            }
            Action::TerminateRetiree => {
                if let Some(party) = &self.retiree {
                    party.signal(Signal::TERM);
                    // A stopped process cannot act on it otherwise.
                    party.signal(Signal::CONT);
                }
            }
            Action::KillRetiree => {
                if let Some(party) = &self.retiree {
                    party.signal(Signal::KILL);
                }
            }
            Action::HangUpIncumbent => {
                if let Some(party) = &mut self.incumbent {
                    party.hang_up();
                }
            }
            Action::Probe(id) => self.probe(id, events),
            Action::SteerShare(permille) => self.steer_share(permille),
            Action::SteerToSuccessor => {
                self.tell_share();
                self.steer(self.successor.as_ref().map(|party| party.slot));
                self.retire_unused_slots();
            }
            Action::SteerToIncumbent => {
                self.tell_share();
                self.steer(self.incumbent.as_ref().map(|party| party.slot));
                self.timeline.gap_ends();
                self.retire_unused_slots();
            }
            Action::RecordDurably(id, lasting) => self.record_durably(id, lasting, events),
            Action::Promote => {
                // After a crash there is no incumbent to replace, and an earlier one may still be on its way out.
                if let Some(replaced) = self.incumbent.take() {
                    self.retiree = Some(replaced);
                }
                self.incumbent = self.successor.take();
                if let (Some(listening), Some(party)) = (&self.listening, &self.incumbent) {
                    listening.lengthen_queues(party.slot);
                }
                self.retire_unused_slots();
                self.timeline.decided();
            }
            Action::Retire => self.retiree = self.incumbent.take(),
            Action::Reinstate { retires } => self.reinstate(retires),
            Action::RetireSlot => self.forget_retiree(),
            Action::CloseListeners => {
                self.retiree = None;
                self.close_listeners();
            }
            Action::Arm(deadline, ms) => self.arm(deadline, ms),
            Action::Disarm(deadline) => self.disarm(deadline),
            Action::Report(outcome) => self.report(outcome),
            Action::Refuse(refusal) => self.refuse(&refusal),
            Action::Recovered(decision) => self.recovered(decision),
        }
    }

    /// What was decided is not: the version before is to serve again.
    fn reinstate(&mut self, retires: bool) {
        let replaced = self.incumbent.take();
        self.incumbent = self.retiree.take();
        self.timeline.undecided();
        if retires {
            self.retiree = replaced;
        } else {
            if replaced.is_some() {
                self.timeline.gap_begins();
            }
            self.successor = replaced;
        }
        // It may have taken over already: the data lock was free.
        if self.machine.incumbent() == Incumbent::Whole {
            self.timeline.gap_ends();
        }
    }

    /// With the descriptor that came with it.
    fn hand_on(&self, party: &Option<Party>, id: HandoffId, state: State) {
        let Some(party) = party else { return };
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        let length = state.length();
        match party.try_send(id, &ToService::State(state), &fds) {
            Ok(()) => {
                tracing::info!(service = %self.name, pid = party.process.pid, length, "state handed over")
            }
            Err(error) => tracing::warn!(
                service = %self.name, pid = party.process.pid, length, %error, "state not handed over: the new process goes without"
            ),
        }
    }

    fn spawn(&mut self, id: HandoffId, target: Target, events: &mut VecDeque<Event>) {
        let path = self.path_of(target);
        if let Some(binary) = self.stored_binary(&path).or_else(|| self.shared.hashes.known(&path)) {
            return self.launch(id, target, &binary, events);
        }
        let hashes = self.shared.hashes.clone();
        let this = self.this.clone();
        spawn_local(async move {
            let found = hashes.identify(&path).await;
            let Some(service) = this.upgrade() else { return };
            let mut service = service.borrow_mut();
            if service.machine.handoff() != id || service.machine.phase() != Phase::Greeting {
                return;
            }
            let mut events = VecDeque::new();
            match found {
                Ok(binary) => service.launch(id, target, &binary, &mut events),
                Err(error) => events.push_back(Event::SpawnFailed(format!("{}: {error}", path.display()))),
            }
            for event in events {
                service.feed(event);
            }
        });
    }

    fn welcome(&mut self, id: HandoffId, version: u16) {
        let (Some(party), Some(listening)) = (&self.successor, &self.listening) else { return };
        let welcome = ToService::Welcome(Welcome {
            version,
            service: self.name.clone(),
            generation: self.journal.standing().generation().next(),
            mode: self.config.mode,
            listeners: listening.names(),
            lease_ms: self.config.lease_ms,
        });
        party.send(id, &welcome, &listening.given(party.slot));
        party.agree(version);
    }

    fn tell_successor(&mut self, id: HandoffId, message: &ToService, events: &mut VecDeque<Event>) {
        if matches!(message, ToService::Begin(_)) {
            self.note(Fact::Begun { handoff: id });
        }
        match &self.successor {
            Some(party) => party.send(id, message, &[]),
            // It was never started, so it is gone.
            None => events.push_back(Event::SuccessorGone(Exit::Unknown)),
        }
    }

    /// A process with a slot of its own is sealed only when its slot is quiet: nothing is steered there any more, and what
    /// was on its way has arrived and was accepted.
    fn tell_retiree(&mut self, id: HandoffId, message: ToService) {
        let (Some(party), Some(listening)) = (&self.retiree, &mut self.listening) else { return };
        let serial = party.serial;
        if !matches!(message, ToService::Seal(_)) || listening.is_quiet(party.slot) {
            return party.send(id, &message, &[]);
        }
        let this = self.this.clone();
        spawn_local(async move {
            let until = tokio::time::Instant::now() + QUIET_LIMIT;
            loop {
                tokio::time::sleep(QUIET_TICK).await;
                let Some(service) = this.upgrade() else { return };
                let Service { retiree, listening, .. } = &mut *service.borrow_mut();
                let Some(party) = retiree.as_ref().filter(|party| party.serial == serial) else {
                    return;
                };
                let quiet = listening.as_mut().is_none_or(|listening| listening.is_quiet(party.slot));
                if quiet || tokio::time::Instant::now() >= until {
                    return party.send(id, &message, &[]);
                }
            }
        });
    }

    fn steer(&mut self, slot: Option<u64>) {
        let (Some(listening), Some(slot)) = (&mut self.listening, slot) else { return };
        if let Err(error) = listening.steer(slot) {
            tracing::error!(service = %self.name, %error, "new connections could not be steered");
            self.problem = Some(error.to_string());
        }
    }

    fn record_durably(&mut self, id: HandoffId, lasting: Lasting, events: &mut VecDeque<Event>) {
        let fact = match lasting {
            Lasting::Commit => {
                self.timeline.gap_ends();
                Fact::Committed { handoff: id }
            }
            Lasting::Revert => Fact::Reverted { handoff: id },
        };
        // Folded when it is on the disk, not before.
        let pending = match self.journal.prepare(fact) {
            Ok(pending) => pending,
            Err(error) => return events.push_back(Event::NotDurable(error.to_string())),
        };
        let is_commit = lasting == Lasting::Commit;
        let storage = self.journal.storage();
        let this = self.this.clone();
        spawn_local(async move {
            let synced = tokio::task::spawn_blocking(move || storage.sync()).await;
            let synced = synced.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            let Some(service) = this.upgrade() else { return };
            let mut service = service.borrow_mut();
            match service.journal.settle(pending, synced) {
                Ok(()) => {
                    if is_commit {
                        service.note_generation();
                    }
                    service.feed(Event::Durable);
                }
                Err(error) => {
                    tracing::error!(service = %service.name, %error, "not durable");
                    service.problem = Some(error.to_string());
                    service.feed(Event::NotDurable(error.to_string()));
                }
            }
        });
    }

    fn report(&mut self, outcome: Outcome) {
        self.timeline.decided();
        let (ending, reason) = match outcome {
            Outcome::Started => (api::Ending::Started, None),
            Outcome::Committed => (api::Ending::Committed, None),
            Outcome::Stopped => (api::Ending::Stopped, None),
            Outcome::RolledBack(reason) => (api::Ending::RolledBack, Some(reason)),
            Outcome::Failed(reason) => {
                let error = self.failed(&reason);
                self.record_end(history::Ending::Failed, Some(&reason.to_string()));
                return self.answer_all(&Err(error));
            }
        };
        tracing::info!(service = %self.name, ?ending, reason = reason.as_ref().map(ToString::to_string));
        let is_well = matches!(ending, api::Ending::Committed | api::Ending::Started);
        // Who stops a service knows of it. A disk that fails is still to be told.
        if is_well || ending == api::Ending::Stopped && self.journal.latched().is_none() {
            self.problem = None;
        }
        let completed = std::mem::take(&mut self.completes) && ending == api::Ending::Committed;
        let completed = completed.then(|| COMPLETED.to_owned());
        let outcome = api::Outcome {
            handoff: self.machine.handoff(),
            reason: reason.map(|reason| reason.to_string()).or(completed),
            accept_gap_us: self.timeline.gap_us(),
            phases: self.timeline.phases(),
            ..self.as_it_is(ending, self.timeline.took_us())
        };
        self.last = Some(outcome.clone());
        self.record_end(ending.into(), outcome.reason.as_deref());
        self.answer_all(&Ok(outcome));
    }

    fn failed(&mut self, reason: &Reason) -> Error {
        if let Reason::Journal(cause) = reason {
            let message = format!("The new version of service {:?} serves, but {cause}.", self.name.as_str());
            self.problem = Some(message.clone());
            let hint = "After a restart of the machine the old version would be started: mend the disk, then upgrade.";
            return Error::new(Kind::StorageFailed, message, hint);
        }
        let message = format!("Service {:?} could not be started: {reason}.", self.name.as_str());
        self.problem = Some(message.clone());
        let hint = format!("It is tried again; see: handoff logs {}", self.name);
        let kind = if matches!(reason, Reason::Spawn(_)) { Kind::SpawnFailed } else { Kind::ServiceDown };
        Error::new(kind, message, hint)
    }

    fn answer_all(&mut self, answer: &Result<api::Outcome, Error>) {
        for operation in self.operations.drain(..).chain(self.incoming.take()) {
            // Whoever asked may have hung up.
            let _ = operation.reply.send(answer.clone());
        }
    }

    fn refuse(&mut self, refusal: &Refusal) {
        let Some(operation) = self.incoming.take() else { return };
        let error = match refusal {
            Refusal::Busy(phase) => Error::busy(&self.name, phase_of(*phase, self.machine.incumbent())),
            Refusal::Retiring => Error::busy(&self.name, "the process that was replaced is still leaving"),
            Refusal::NotRunning => Error::not_running(&self.name),
            Refusal::AlreadyRunning => {
                let pid = self.incumbent.as_ref().map_or(0, |party| party.process.pid);
                Error::already_running(&self.name, pid)
            }
            Refusal::Mute => {
                let message =
                    format!("Service {:?} has closed its channel to the daemon.", self.name.as_str());
                let hint =
                    format!("It cannot be drained: handoff stop {0}, then handoff start {0}", self.name);
                Error::new(Kind::ServiceDown, message, hint)
            }
            Refusal::Probation => Error::busy(&self.name, "its new version is on probation"),
            Refusal::NothingToCancel => {
                let message = format!(
                    "Nothing that can be cancelled is under way for {:?}: {}.",
                    self.name.as_str(),
                    phase_of(self.machine.phase(), self.machine.incumbent())
                );
                let hint = format!("What it does is told by: handoff status {}", self.name);
                Error::new(Kind::NothingToCancel, message, hint)
            }
        };
        let _ = operation.reply.send(Err(error));
    }
}

fn phase_of(phase: Phase, incumbent: Incumbent) -> &'static str {
    match (phase, incumbent) {
        (Phase::Recovering, _) => "a new daemon finds out what it is doing",
        (Phase::Stopping, _) => "it is being stopped",
        (Phase::Greeting, Incumbent::Absent) => "it is being started, phase greeting",
        (Phase::Warming, Incumbent::Absent) => "it is being started, phase warming",
        (Phase::Beginning, Incumbent::Absent) => "it is being started, phase beginning",
        (Phase::Probing, Incumbent::Absent) => "it is being started, phase probing",
        (Phase::Greeting, _) => "it is being upgraded, phase greeting",
        (Phase::Warming, _) => "it is being upgraded, phase warming",
        (Phase::Draining, _) => "it is being upgraded, phase draining",
        (Phase::Sealing, _) => "it is being upgraded, phase sealing",
        (Phase::Beginning, _) => "it is being upgraded, phase beginning",
        (Phase::Probing, _) => "it is being upgraded, phase probing",
        (Phase::Canary, _) => "it is being upgraded, phase canary",
        (Phase::Committing, _) => "it is being upgraded, phase committing",
        (Phase::Reaping, _) => "an upgrade is being rolled back, phase reaping",
        (Phase::Resuming, _) => "an upgrade is being rolled back, phase resuming",
        (Phase::Reverting, _) => "an upgrade is being rolled back, phase reverting",
        (Phase::Stopped, _) => "it is stopped",
        (Phase::Backoff, _) => "it waits before its next start",
        (Phase::Serving, _) => "it serves",
    }
}
