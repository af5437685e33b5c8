//! The effects: one arm per action of the machine, and no decisions.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

use handoff_protocol::deadline::Deadline;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{ToService, Welcome};
use handoff_protocol::reason::{Exit, Reason};
use handoff_protocol::record::Fact;
use handoff_protocol::state::State;
use handoff_protocol::supervisor::{Action, Event, Incumbent, Outcome, Phase, Refusal};

use super::Service;
use crate::config::format_duration_ms;
use crate::control::{Error, Kind, api};
use crate::shim;
use crate::supervisor::process::{ProcessRole, terminate};
use crate::supervisor::rollout::DrainEvent;

/// The reason of an upgrade that another daemon had begun.
const COMPLETED: &str = "the daemon that began this upgrade was lost; the new process served, and the next daemon completed the upgrade";

/// A file system that takes longer over the program of a service, or over its working directory, counts as not
/// answering.
pub(in crate::supervisor) const START_LIMIT: Duration = Duration::from_secs(10);

impl Service {
    pub(in crate::supervisor) fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::Spawn(id, target) => {
                self.operations.start_begins();
                self.note_old();
                self.spawn(id, target);
            }
            Action::Welcome(id, version) => self.welcome(id, version),
            Action::ToSuccessor(id, ToService::State(state)) => {
                self.hand_on(ProcessRole::Successor, id, state)
            }
            Action::ToIncumbent(id, ToService::State(state)) => {
                self.hand_on(ProcessRole::Incumbent, id, state)
            }
            Action::ToSuccessor(id, message) => self.send_to_successor(id, &message, events),
            Action::ToIncumbent(id, message) => {
                match &message {
                    ToService::Seal(_) => self.operations.timeline_mut().gap_begins(),
                    ToService::Prepare(_) => {
                        self.run_drain_command(self.processes.incumbent(), DrainEvent::Begins)
                    }
                    ToService::Resume(_) => {
                        self.run_drain_command(self.processes.incumbent(), DrainEvent::GoesOn)
                    }
                    _ => {}
                }
                if let Some(process) = self.processes.incumbent() {
                    self.prepare_end(process, id, &message);
                    process.send(id, &message, &[]);
                }
            }
            Action::ToOutgoing(id, message) => self.send_to_outgoing(id, &message),
            Action::AwaitQuiet(id) => self.await_quiet(id, events),
            Action::TerminateSuccessor | Action::KillSuccessor if self.processes.successor().is_none() => {
                self.give_up_start();
                events.push_back(Event::SuccessorGone(Exit::Unknown))
            }
            Action::TerminateSuccessor => terminate(self.processes.successor()),
            Action::TerminateIncumbent => terminate(self.processes.incumbent()),
            Action::KillSuccessor => self.kill(ProcessRole::Successor),
            Action::KillIncumbent => self.kill(ProcessRole::Incumbent),
            Action::TerminateOutgoing => terminate(self.processes.outgoing()),
            Action::KillOutgoing => self.kill(ProcessRole::Outgoing),
            Action::HangUpIncumbent => self.processes.hang_up_incumbent(),
            Action::Probe(id, limit_ms) => self.probe(id, limit_ms, events),
            Action::SteerShare(permille) => self.steer_share(permille),
            Action::SteerToSuccessor => {
                self.report_share();
                self.steer(self.processes.successor().map(|process| process.slot));
                self.retire_unused_slots();
            }
            Action::SteerToIncumbent => {
                self.report_share();
                self.steer(self.processes.incumbent().map(|process| process.slot));
                self.operations.timeline_mut().gap_ends();
                self.retire_unused_slots();
            }
            Action::RecordDurably(id, fact) => self.record_durably(id, fact, events),
            Action::GiveUpRecord => self.give_up_record(),
            Action::Promote => {
                self.processes.promote();
                self.monitor.clear_kill_reason();
                self.last_lines.serves();
                if let (Some(listening), Some(process)) = (&mut self.listening, self.processes.incumbent()) {
                    listening.lengthen_queues(process.slot);
                    listening.serve();
                }
                self.retire_unused_slots();
                self.remember_settings();
                self.operations.timeline_mut().decided();
            }
            Action::Retire => self.processes.retire(),
            Action::Reinstate { retires } => self.reinstate(retires),
            Action::RetireSlot => self.forget_outgoing(),
            Action::CloseListeners => {
                self.processes.lose_outgoing();
                self.close_listeners();
            }
            Action::Arm(deadline, ms) => {
                if deadline == Deadline::Backoff {
                    self.next_start.is_in(ms);
                }
                self.arm(deadline, ms)
            }
            Action::Disarm(deadline) => {
                if deadline == Deadline::Backoff {
                    self.next_start.is_not_due();
                }
                self.disarm(deadline)
            }
            Action::Failed(reason) => {
                let reason = self.without_own_error(reason);
                tracing::warn!(handoff = %self.machine.handoff(), "{reason}");
                self.blame_writer(&reason);
                let hint = self.start_hint(&reason).map_or_else(String::new, |hint| format!(" ({hint})"));
                self.problems.failed(format!("{}{hint}", self.with_requests(&reason)));
            }
            Action::Rest(rest, exit) => self.comes_to_rest(rest, exit),
            Action::Report(outcome) => self.report(outcome),
            Action::Refuse(refusal) => self.refuse(&refusal),
            Action::Recovered(decision) => self.recovered(decision),
        }
    }

    /// Takes a decision back: the version before is to serve again.
    fn reinstate(&mut self, retires: bool) {
        let was_replaced = self.processes.reinstate(retires);
        self.remember_settings();
        self.operations.timeline_mut().undecided();
        if was_replaced && !retires {
            self.operations.timeline_mut().gap_begins();
        }
        // It may have taken over already, since the data lock was free.
        if self.machine.incumbent() == Incumbent::Active {
            self.operations.timeline_mut().gap_ends();
        }
    }

    /// Hands state on, with the descriptor that came with it.
    fn hand_on(&self, place: ProcessRole, id: HandoffId, state: State) {
        let Some(process) = self.processes.at(place) else { return };
        let fds: Vec<_> = self.processes.fds().iter().map(AsFd::as_fd).collect();
        let length = state.length();
        match process.try_send(id, &ToService::State(state), &fds) {
            Ok(()) => {
                tracing::info!(pid = process.pid(), length, "state handed over")
            }
            Err(error) => tracing::warn!(
                pid = process.pid(), length, %error, "state not handed over: the new process goes without"
            ),
        }
    }

    fn welcome(&mut self, id: HandoffId, version: u16) {
        let (Some(process), Some(listening)) = (self.processes.successor(), &self.listening) else { return };
        let welcome = ToService::Welcome(Welcome {
            version,
            service: self.name.clone(),
            generation: self.journal.standing().generation().next(),
            mode: self.config.mode,
            listeners: listening.names(),
            lease_ms: self.config.lease_ms,
        });
        process.send(id, &welcome, &listening.given(process.slot));
        process.agree(version);
    }

    fn send_to_successor(&mut self, id: HandoffId, message: &ToService, events: &mut VecDeque<Event>) {
        if matches!(message, ToService::Begin(_)) {
            self.note(Fact::Begun { handoff: id });
            self.watch_the_lock(id);
        }
        match self.processes.successor() {
            Some(process) => {
                self.prepare_end(process, id, message);
                process.send(id, message, &[])
            }
            // It does not exist yet, and nothing waits for it any more.
            None => {
                self.give_up_start();
                events.push_back(Event::SuccessorGone(Exit::Unknown));
            }
        }
    }

    fn send_to_outgoing(&mut self, id: HandoffId, message: &ToService) {
        if matches!(message, ToService::Prepare(_)) {
            self.run_drain_command(self.processes.outgoing(), DrainEvent::Begins);
        }
        let Some(process) = self.processes.outgoing() else { return };
        self.prepare_end(process, id, message);
        process.send(id, message, &[]);
    }

    fn steer(&mut self, slot: Option<u64>) {
        let (Some(listening), Some(slot)) = (&mut self.listening, slot) else { return };
        if let Err(error) = listening.steer(slot) {
            tracing::error!(%error, "new connections could not be steered");
            self.problems.slots_unusable(&error);
        }
    }

    fn report(&mut self, outcome: Outcome) {
        self.operations.timeline_mut().decided();
        self.operations.timeline_mut().reported();
        self.collect_all_killed();
        let (ending, reason) = match outcome {
            Outcome::Started => (api::Ending::Started, None),
            Outcome::Committed => (api::Ending::Committed, None),
            Outcome::Stopped => (api::Ending::Stopped, None),
            Outcome::RolledBack(reason) => (api::Ending::RolledBack, Some(reason)),
            Outcome::Failed(reason) => (api::Ending::Failed, Some(reason)),
        };
        let reason = reason.map(|reason| self.without_own_error(reason));
        let failed = reason.clone();
        tracing::info!(?ending, reason = reason.as_ref().map(ToString::to_string));
        let is_well = matches!(ending, api::Ending::Committed | api::Ending::Started);
        if is_well {
            self.problems.start_refused_no_longer();
            self.end_try(true);
        } else if ending == api::Ending::Stopped {
            // The start was not tried to its end: what is staged still waits for the next one.
            self.versions.start_was_stopped();
        }
        // A user who stops a service knows about it. A disk that fails is still reported.
        if (is_well || ending == api::Ending::Stopped) && self.journal.latched().is_none() {
            self.problems.ended_well();
        }
        let error = reason.as_ref().filter(|_| ending == api::Ending::Failed).map(|why| self.failed(why));
        let completed = self.operations.take_completes() && ending == api::Ending::Committed;
        let completed = completed.then(|| COMPLETED.to_owned());
        let (took_us, phases) = self.operations.times();
        let outcome = api::Outcome {
            handoff: self.handoff(),
            reason: reason.map(|reason| self.problems.with_lock(self.with_requests(&reason))).or(completed),
            accept_gap_us: self.operations.timeline().gap_us(),
            restarted: ending == api::Ending::RolledBack && self.was_restarted(),
            connections: self.operations.timeline().connections(),
            lost_datagrams: self.operations.timeline().lost(),
            phases,
            killed: self.problems.killed(),
            ..self.current_outcome(ending, took_us)
        };
        self.operations.ended(outcome.clone());
        self.record_end(ending.into(), outcome.reason.as_deref());
        let answers = self.operations.end_all(&error.map_or(Ok(outcome), Err));
        self.answer(answers, failed.as_ref());
    }

    /// If a shim cannot write a file of handoff, that says nothing about the health of its program.
    fn without_own_error(&self, reason: Reason) -> Reason {
        match reason {
            Reason::Unhealthy(why) if self.config.adapter.is_foreign() && shim::is_own_error(&why) => {
                Reason::Spawn(why)
            }
            reason => reason,
        }
    }

    fn failed(&mut self, reason: &Reason) -> Error {
        if let Reason::Journal(cause) = reason {
            let message = format!("The new version of service {:?} serves, but {cause}.", self.name.as_str());
            self.problems.committed_without_disk(&message);
            let hint = "After a restart of the machine the old version would be started: mend the disk, then upgrade.";
            return Error::new(Kind::StorageFailed, message, hint);
        }
        let text = self.problems.with_lock(reason.to_string());
        let mut message = format!("Service {:?} could not be started: {text}.", self.name.as_str());
        let next = match (self.end_try(false), self.machine.is_wanted()) {
            (Some(tried), is_wanted) => {
                message.push_str(&format!(" That was {}, which is given up.", tried.display()));
                if is_wanted { "What ran before is started" } else { "It is not tried again" }
            }
            (None, true) => "It is tried again",
            (None, false) => "It is not tried again",
        };
        let hint = format!("{next}; see: handoff logs {}", self.name);
        let hint = self.adapter_hint(reason).unwrap_or(hint);
        let kind = if matches!(reason, Reason::Spawn(_)) { Kind::SpawnFailed } else { Kind::ServiceDown };
        Error::new(kind, message, hint)
    }

    fn still_leaving(&self) -> Error {
        let what = "the process that was replaced is still leaving";
        let hint = format!(
            "It finishes its requests, for up to {}; `handoff stop {}` stops the service before that.",
            format_duration_ms(self.config.drain_grace_ms),
            self.name
        );
        Error { hint, ..Error::busy(&self.name, what) }
    }

    fn refuse(&mut self, refusal: &Refusal) {
        let Some(operation) = self.operations.refuse() else { return };
        let error = match refusal {
            Refusal::Busy(phase) => Error::busy(&self.name, phase_of(*phase, self.machine.incumbent())),
            Refusal::Retiring => self.still_leaving(),
            Refusal::NotRunning => self.not_running(),
            Refusal::AlreadyRunning => {
                Error::already_running(&self.name, self.pid().or(self.pid_of_shim()).unwrap_or(0))
            }
            Refusal::Unreachable => {
                let message =
                    format!("Service {:?} has closed its channel to the daemon.", self.name.as_str());
                let hint =
                    format!("It cannot be drained: handoff stop {0}, then handoff start {0}", self.name);
                Error::new(Kind::ServiceDown, message, hint)
            }
            Refusal::Probation => Error::busy(&self.name, "its new version is on probation"),
            Refusal::NothingToCancel => self.nothing_to_cancel(),
        };
        let _ = operation.reply.send(Err(error));
    }
}

pub(in crate::supervisor) fn phase_of(phase: Phase, incumbent: Incumbent) -> &'static str {
    match (phase, incumbent) {
        (Phase::Recovering, _) => "a new daemon finds out what it is doing",
        (Phase::Stopping, _) => "it is being stopped",
        (Phase::Reaping, Incumbent::Absent) => "its start has failed, phase reaping",
        (Phase::Greeting, Incumbent::Absent) => "it is being started, phase greeting",
        (Phase::Warming, Incumbent::Absent) => "it is being started, phase warming",
        (Phase::Beginning, Incumbent::Absent) => "it is being started, phase beginning",
        (Phase::Probing, Incumbent::Absent) => "it is being started, phase probing",
        (Phase::Committing, Incumbent::Absent) => "it is being started, phase committing",
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
