//! The events, and the messages of a handoff that succeeds.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{
    Action, AwaitedReplies, DurableFact, Event, Handoff, Incumbent, LostCommit, Moment, Outcome, Outgoing,
    Phase, ProvisionalOutcome, Request, Successor, Supervisor, Target,
};
use crate::deadline::{Deadline, Stragglers};
use crate::ids::HandoffId;
use crate::message::{Begin, Commit, FromService, Hello, Mode, Prepare, Ready, Seal, ToService};
use crate::reason::{Reason, Role};
use crate::restart::Failures;
use crate::version::{VersionRange, negotiate};

impl Supervisor {
    pub(super) fn dispatch(&mut self, at: Moment, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Starved(deadline) => return self.starved(at, deadline, out),
            event if self.recovery.is_some() => self.recovering(at, event, out),
            Event::Request(Request::Start) => self.start(at, out),
            Event::Request(Request::Stop) => self.stop(at, out),
            Event::Request(Request::Upgrade { target, deadline_ms, drain_grace_ms }) => {
                self.upgrade(at, target, deadline_ms, drain_grace_ms, out)
            }
            Event::Request(Request::Cancel) => self.cancel(at, out),
            Event::SpawnFailed(why) => self.spawn_failed(at, why, out),
            Event::FromSuccessor(id, message) => self.on_successor(at, id, message, out),
            Event::FromIncumbent(id, message) => self.on_incumbent(at, id, message, out),
            Event::FromOutgoing(id, message) => self.on_outgoing(at, id, &message, out),
            Event::HungUp(role) => self.hung_up(at, role, out),
            Event::Garbage(role, what) => self.broke(at, role, what, out),
            Event::SuccessorGone(exit) => self.successor_gone(at, exit, out),
            Event::IncumbentGone(exit) => self.incumbent_gone(at, exit, out),
            Event::OutgoingGone => self.outgoing_gone(out),
            Event::OutgoingUnheard => self.outgoing_unheard(at, out),
            Event::OutgoingQuiet(id) => self.outgoing_quiet(at, id, out),
            Event::Probed(id, result) => self.probed(at, id, result, out),
            Event::Condemned(id, why) => self.condemned(at, id, why, out),
            Event::Durable => self.durable(at, out),
            Event::NotDurable(why) => self.not_durable(at, why, out),
            Event::Deadline(deadline) => self.deadline(at, deadline, out),
        }
        self.end_unwanted(at, out);
    }

    /// Stops the service if an earlier supervisor received a stop request but did not complete it.
    pub(super) fn end_unwanted(&mut self, at: Moment, out: &mut Vec<Action>) {
        if self.phase == Phase::Serving && !self.wanted && self.outgoing.is_none() {
            self.end_service(at, out);
        }
    }

    pub(super) fn is_cold_start(&self) -> bool {
        self.incumbent == Incumbent::Absent && self.handoff.target == Target::Committed
    }

    pub(super) fn spawn(&mut self, at: Moment, target: Target, out: &mut Vec<Action>) {
        out.push(Action::Disarm(Deadline::Backoff));
        debug_assert!(self.handoff.lost_commit == LostCommit::None);
        self.handoff = Handoff::new(at.next_id, target, at.now, &self.policy);
        self.successor = Successor::Starting;
        self.phase = Phase::Greeting;
        out.push(Action::Spawn(self.handoff.id, target));
        self.arm(at, Deadline::Greet, out);
    }

    pub(super) fn on_successor(
        &mut self,
        at: Moment,
        id: HandoffId,
        message: FromService,
        out: &mut Vec<Action>,
    ) {
        if id != self.handoff.id {
            return self.broke(at, Role::Successor, wrong_id(&message), out);
        }
        match (self.phase, message) {
            // Messages of a dismissed process have no effect.
            (Phase::Reaping, _) => {}
            (
                Phase::Greeting
                | Phase::Warming
                | Phase::Draining
                | Phase::Sealing
                | Phase::Beginning
                | Phase::Probing
                | Phase::Canary
                | Phase::Resuming,
                FromService::Ready(Ready { healthy: false, reason }),
            ) => {
                self.fail(at, Reason::Unhealthy(reason), out);
            }
            (Phase::Greeting, FromService::Hello(hello)) => self.greeted(at, &hello, out),
            (Phase::Warming, FromService::Prepared(_)) => self.prepared(at, out),
            (Phase::Beginning, FromService::Ready(_)) => self.ready(at, out),
            (Phase::Warming | Phase::Beginning, FromService::Progress(_)) => self.alive(out),
            (Phase::Warming, FromService::Release(_)) => {}
            (_, FromService::Progress(_) | FromService::Release(_))
                if self.successor != Successor::Starting => {}
            (phase, message) => {
                let what = unexpected(&message, phase);
                self.broke(at, Role::Successor, what, out);
            }
        }
    }

    fn greeted(&mut self, at: Moment, hello: &Hello, out: &mut Vec<Action>) {
        match negotiate(VersionRange::OURS, hello.versions) {
            Ok(version) => {
                self.enter(at, Phase::Warming, Deadline::Prepare, out);
                out.push(Action::Welcome(self.handoff.id, version));
                let prepare = Prepare { grace_ms: self.time_left_ms(at), lease_ms: self.parked_lease_ms(at) };
                out.push(Action::ToSuccessor(self.handoff.id, ToService::Prepare(prepare)));
            }
            Err(none) => self.fail(at, Reason::Version(none), out),
        }
    }

    fn prepared(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.successor = Successor::Parked;
        match (self.mode, self.incumbent) {
            (Mode::Exclusive, Incumbent::Active) => {
                self.incumbent = Incumbent::Quiesced;
                self.handoff.awaited_replies.drained = true;
                self.drain_began = at.now;
                self.enter(at, Phase::Draining, Deadline::Drain, out);
                let grace_ms = self.drain_limit_ms(at);
                let lease_ms = grace_ms.saturating_add(self.policy.lease_ms);
                let prepare = ToService::Prepare(Prepare { grace_ms, lease_ms });
                out.push(Action::ToIncumbent(self.handoff.id, prepare));
            }
            (Mode::Overlap, _) | (Mode::Exclusive, Incumbent::Absent) => self.begin(at, out),
            (Mode::Exclusive, Incumbent::Quiesced | Incumbent::Unreachable) => {
                self.fail(at, Reason::HungUp(Role::Incumbent), out);
            }
        }
    }

    pub(super) fn seal(&mut self, at: Moment, cut: bool, out: &mut Vec<Action>) {
        self.handoff.awaited_replies.sealed = true;
        self.enter(at, Phase::Sealing, Deadline::Seal, out);
        let seal = ToService::Seal(Seal { lease_ms: self.policy.lease_ms, cut });
        out.push(Action::ToIncumbent(self.handoff.id, seal));
    }

    /// Before the program that was ended for the successor is started again, the successor gets its chance: as long as
    /// the other would take to resume.
    pub(super) fn grant_a_begin(&mut self, at: Moment) {
        if self.policy.seal_ends {
            self.handoff.ends_at =
                self.handoff.ends_at.max(at.now.saturating_add(self.policy.resume_limit_ms));
        }
    }

    /// The successor goes forward: the incumbent is sealed, gone, or stays beside it.
    pub(super) fn begin(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.successor = Successor::Begun;
        self.enter(at, Phase::Beginning, Deadline::Begin, out);
        out.push(Action::ToSuccessor(self.handoff.id, ToService::Begin(Begin {})));
    }

    pub(super) fn ready(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.successor = Successor::Ready;
        if self.policy.probes { self.probe(at, out) } else { self.advance(at, out) }
    }

    pub(super) fn probe(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.enter(at, Phase::Probing, Deadline::Probe, out);
        // Between canary steps the limit is shorter than for a successor that has never served.
        let limit_ms = match self.handoff.shares {
            0 => self.policy.probe_limit_ms,
            _ => self.policy.canary_probe_limit_ms.min(self.policy.probe_limit_ms),
        };
        out.push(Action::Probe(self.handoff.id, limit_ms));
    }

    /// Ignores a late result of an earlier handoff's probe.
    fn probed(&mut self, at: Moment, id: HandoffId, result: Result<(), String>, out: &mut Vec<Action>) {
        match (self.phase, result) {
            (Phase::Probing, Ok(())) if id == self.handoff.id => self.advance(at, out),
            (Phase::Probing, Err(why)) if id == self.handoff.id => self.fail(at, Reason::Probe(why), out),
            (_, _) => {}
        }
    }

    pub(super) fn commit(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.disarm_phase(out);
        self.phase = Phase::Committing;
        self.handoff.shares = 0;
        if self.mode == Mode::Overlap {
            out.push(Action::SteerToSuccessor);
        }
        out.push(Action::RecordDurably(self.handoff.id, DurableFact::Commit));
        self.arm(at, Deadline::Record, out);
    }

    pub(super) fn committed(&mut self, at: Moment, out: &mut Vec<Action>) {
        let replaced = self.incumbent;
        out.push(Action::Promote);
        self.incumbent = Incumbent::Active;
        self.successor = Successor::Absent;
        self.phase = Phase::Serving;
        self.serving_since = at.now;
        self.handoff.died = None;
        if self.handoff.target == Target::Candidate {
            self.failures = Failures::default();
        }
        if !core::mem::take(&mut self.handoff.skips_commit) {
            out.push(Action::ToIncumbent(self.handoff.id, ToService::Commit(Commit {})));
        }
        if replaced == Incumbent::Absent {
            let outcome = self.cold_outcome();
            self.report(outcome, out);
        } else {
            let step = self.first_step(replaced);
            self.outgoing =
                Some(Outgoing { step, handoff: self.handoff.id, reports: self.answer.is_awaited });
            self.answer.is_awaited = false;
            self.request_end(at, self.handoff.drain_grace_ms, out);
        }
    }

    fn cold_outcome(&mut self) -> Outcome {
        match (core::mem::take(&mut self.answer.outcome), self.handoff.target) {
            (ProvisionalOutcome::RollingBack(reason), Target::Committed) => Outcome::RolledBack(reason),
            (_, Target::Candidate) | (ProvisionalOutcome::CommitUpheld, Target::Committed) => {
                Outcome::Committed
            }
            (ProvisionalOutcome::Open, Target::Committed) => Outcome::Started,
        }
    }

    pub(super) fn on_incumbent(
        &mut self,
        at: Moment,
        id: HandoffId,
        message: FromService,
        out: &mut Vec<Action>,
    ) {
        if id != self.handoff.id {
            return self.broke(at, Role::Incumbent, wrong_id(&message), out);
        }
        match (self.phase, message) {
            (Phase::Draining, FromService::Drained(_)) => {
                self.handoff.awaited_replies.drained = false;
                // Requests that begin after the drain may be cut as well as those that outlast it.
                self.seal(at, self.policy.stragglers == Stragglers::Cut, out);
            }
            (Phase::Sealing, FromService::Sealed(_)) => {
                self.handoff.awaited_replies.sealed = false;
                self.grant_a_begin(at);
                self.begin(at, out);
            }
            (Phase::Draining | Phase::Sealing, FromService::State(state)) => {
                out.push(Action::ToSuccessor(self.handoff.id, ToService::State(state)));
            }
            // It was in transit when the handoff failed; other answers may still be owed.
            (Phase::Resuming | Phase::Reaping, FromService::State(_))
                if self.incumbent == Incumbent::Quiesced => {}
            (Phase::Draining | Phase::Sealing, FromService::SealFailed(failed)) => {
                self.handoff.awaited_replies = AwaitedReplies::default();
                self.fail(at, Reason::SealFailed(failed.reason), out);
            }
            (Phase::Draining | Phase::Sealing | Phase::Resuming, FromService::Progress(_)) => self.alive(out),
            (_, FromService::Progress(_) | FromService::Release(_)) => {}
            (
                Phase::Draining
                | Phase::Sealing
                | Phase::Beginning
                | Phase::Probing
                | Phase::Reaping
                | Phase::Resuming,
                FromService::Resumed(_),
            ) if self.incumbent == Incumbent::Quiesced => self.resumed(at, out),
            (Phase::Committing, FromService::Resumed(_)) if self.incumbent == Incumbent::Quiesced => {
                self.incumbent = Incumbent::Active;
            }
            // The answer to a new supervisor, from a process that was considered frozen.
            (
                Phase::Probing | Phase::Committing | Phase::Reaping | Phase::Resuming,
                FromService::Adopted(adopted),
            ) if self.incumbent == Incumbent::Quiesced => self.adopted_late(at, adopted.stage, out),
            (Phase::Sealing | Phase::Resuming | Phase::Reaping, FromService::Drained(_))
                if self.handoff.awaited_replies.drained =>
            {
                self.handoff.awaited_replies.drained = false;
            }
            (Phase::Resuming | Phase::Reaping, FromService::Sealed(_))
                if self.handoff.awaited_replies.sealed =>
            {
                self.handoff.awaited_replies.sealed = false;
            }
            (Phase::Resuming | Phase::Reaping, FromService::SealFailed(_))
                if self.handoff.awaited_replies.sealed || self.handoff.awaited_replies.drained =>
            {
                self.handoff.awaited_replies = AwaitedReplies::default();
            }
            // It exits by itself, and its end is awaited.
            (_, FromService::ResumeFailed(_)) if self.incumbent == Incumbent::Quiesced => {}
            (phase, message) => {
                let what = unexpected(&message, phase);
                self.broke(at, Role::Incumbent, what, out);
            }
        }
    }

    /// Answers the request, if one waits.
    pub(super) fn report(&mut self, outcome: Outcome, out: &mut Vec<Action>) {
        let answer = core::mem::take(&mut self.answer);
        if answer.is_awaited {
            out.push(Action::Report(outcome));
        }
    }

    /// Earlier failures count no more if the dead process had served long enough.
    pub(super) fn note_death(&mut self, at: Moment) {
        if at.now.saturating_sub(self.serving_since) >= self.policy.restart.healthy_ms {
            self.failures = Failures::default();
        }
    }
}

fn wrong_id(message: &FromService) -> String {
    let mut what = String::from(message.name());
    what.push_str(" carries the id of another handoff");
    what
}

fn unexpected(message: &FromService, phase: Phase) -> String {
    let mut what = String::from(message.name());
    what.push_str(" was not expected while ");
    what.push_str(&phase.to_string());
    what
}
