//! The way forward: requests, and the messages of a handoff that goes well.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{
    Action, Event, Incumbent, Lasting, Leaving, Moment, Outcome, Owes, Phase, Refusal, Request, Retiree,
    Successor, Supervisor, Target,
};
use crate::deadline::{Deadline, Millis, STABLE_MS};
use crate::ids::HandoffId;
use crate::message::{Begin, Commit, FromService, Hello, Mode, Prepare, Ready, Seal, ToService};
use crate::reason::{Party, Reason};
use crate::version::{VersionRange, negotiate};

impl Supervisor {
    pub(super) fn dispatch(&mut self, at: Moment, event: Event, out: &mut Vec<Action>) {
        match event {
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
            Event::FromRetiree(id, message) => self.on_retiree(at, id, &message, out),
            Event::HungUp(party) => self.hung_up(at, party, out),
            Event::Garbage(party, what) => self.broke(at, party, what, out),
            Event::SuccessorGone(exit) => self.successor_gone(at, exit, out),
            Event::IncumbentGone(exit) => self.incumbent_gone(at, exit, out),
            Event::RetireeGone => self.retiree_gone(out),
            Event::RetireeUnheard => self.retiree_unheard(out),
            Event::Probed(id, result) => self.probed(at, id, result, out),
            Event::Condemned(id, why) => self.condemned(at, id, why, out),
            Event::Durable => self.durable(at, out),
            Event::NotDurable(why) => self.not_durable(at, why, out),
            Event::Deadline(deadline) => self.deadline(at, deadline, out),
        }
        self.end_unwanted(at, out);
    }

    /// An earlier supervisor was told to stop the service, and did not come to it.
    pub(super) fn end_unwanted(&mut self, at: Moment, out: &mut Vec<Action>) {
        if self.phase == Phase::Serving && !self.wanted && self.retiree.is_none() {
            self.end_service(at, out);
        }
    }

    fn start(&mut self, at: Moment, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Stopped | Phase::Backoff if self.retiree.is_none() => {
                self.wanted = true;
                self.asked = true;
                self.attempts = 0;
                self.spawn(at, Target::Committed, out);
            }
            Phase::Stopped | Phase::Backoff => out.push(Action::Refuse(Refusal::Retiring)),
            Phase::Serving => out.push(Action::Refuse(Refusal::AlreadyRunning)),
            phase => out.push(Action::Refuse(Refusal::Busy(phase))),
        }
    }

    fn upgrade(
        &mut self,
        at: Moment,
        target: Target,
        deadline_ms: Option<Millis>,
        drain_grace_ms: Option<Millis>,
        out: &mut Vec<Action>,
    ) {
        match (self.phase, self.incumbent) {
            _ if self.is_on_probation() => out.push(Action::Refuse(Refusal::Probation)),
            _ if self.retiree.is_some() => out.push(Action::Refuse(Refusal::Retiring)),
            (Phase::Serving, Incumbent::Mute) => out.push(Action::Refuse(Refusal::Mute)),
            (Phase::Serving | Phase::Backoff, _) => {
                self.asked = true;
                self.spawn(at, target, out);
                self.ends_at = at.now.saturating_add(deadline_ms.unwrap_or(self.policy.deadline_ms));
                self.drain_grace_ms = drain_grace_ms.unwrap_or(self.policy.drain_grace_ms);
                self.arm(at, Deadline::Greet, out);
            }
            (Phase::Stopped, _) => out.push(Action::Refuse(Refusal::NotRunning)),
            (phase, _) => out.push(Action::Refuse(Refusal::Busy(phase))),
        }
    }

    fn stop(&mut self, at: Moment, out: &mut Vec<Action>) {
        match self.phase {
            // Who stands by leaves first; whoever waits for the end of the upgrade is told of the stop.
            Phase::Serving if self.is_on_probation() => {
                self.wanted = false;
                self.asked = true;
                self.end_probation(out);
                if let Some(retiree) = &mut self.retiree {
                    retiree.reports = false;
                }
            }
            Phase::Serving if self.retiree.is_some() => out.push(Action::Refuse(Refusal::Retiring)),
            Phase::Serving => {
                self.wanted = false;
                self.asked = true;
                self.end_service(at, out);
            }
            Phase::Backoff if self.retiree.is_none() => {
                self.wanted = false;
                out.push(Action::Disarm(Deadline::Backoff));
                self.asked = true;
                self.stopped(out);
            }
            // A start that hangs must not keep a person from ending it.
            Phase::Greeting | Phase::Warming | Phase::Beginning | Phase::Probing
                if self.incumbent == Incumbent::Absent =>
            {
                self.wanted = false;
                self.asked = true;
                self.fail(at, Reason::Cancelled, out);
            }
            Phase::Stopped => out.push(Action::Refuse(Refusal::NotRunning)),
            phase => out.push(Action::Refuse(Refusal::Busy(phase))),
        }
    }

    fn end_service(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.phase = Phase::Stopping;
        self.retire(at, Leaving::Draining, out);
    }

    fn cancel(&mut self, at: Moment, out: &mut Vec<Action>) {
        match self.phase {
            // A start that somebody asked for. What is started because something else died or failed goes on: only a
            // stop ends that.
            Phase::Greeting | Phase::Warming | Phase::Beginning | Phase::Probing if self.is_cold_start() => {
                if !self.asked || self.reason.is_some() || self.stands {
                    return out.push(Action::Refuse(Refusal::NothingToCancel));
                }
                self.wanted = false;
                self.fail(at, Reason::Cancelled, out);
            }
            Phase::Greeting
            | Phase::Warming
            | Phase::Draining
            | Phase::Sealing
            | Phase::Beginning
            | Phase::Probing
            | Phase::Canary => self.fail(at, Reason::Cancelled, out),
            Phase::Serving if self.is_on_probation() => {
                self.asked = true;
                self.take_back(at, Reason::Cancelled, out);
            }
            Phase::Recovering
            | Phase::Stopped
            | Phase::Backoff
            | Phase::Committing
            | Phase::Reaping
            | Phase::Resuming
            | Phase::Reverting
            | Phase::Serving
            | Phase::Stopping => out.push(Action::Refuse(Refusal::NothingToCancel)),
        }
    }

    fn is_cold_start(&self) -> bool {
        self.incumbent == Incumbent::Absent && self.target == Target::Committed
    }

    pub(super) fn spawn(&mut self, at: Moment, target: Target, out: &mut Vec<Action>) {
        out.push(Action::Disarm(Deadline::Backoff));
        self.handoff = at.fresh;
        self.target = target;
        self.ends_at = at.now.saturating_add(self.policy.deadline_ms);
        self.drain_grace_ms = self.policy.drain_grace_ms;
        self.owes = Owes::default();
        self.self_made = false;
        self.shares = 0;
        self.probation_ms = self.policy.probation_ms;
        self.successor = Successor::Starting;
        self.phase = Phase::Greeting;
        out.push(Action::Spawn(self.handoff, target));
        self.arm(at, Deadline::Greet, out);
    }

    pub(super) fn on_successor(
        &mut self,
        at: Moment,
        id: HandoffId,
        message: FromService,
        out: &mut Vec<Action>,
    ) {
        if id != self.handoff {
            return self.broke(at, Party::Successor, wrong_id(&message), out);
        }
        match (self.phase, message) {
            // What it says while it is being sent away changes nothing.
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
            (_, FromService::Progress(_)) if self.successor != Successor::Starting => {}
            (phase, message) => {
                let what = unexpected(&message, phase);
                self.broke(at, Party::Successor, what, out);
            }
        }
    }

    fn greeted(&mut self, at: Moment, hello: &Hello, out: &mut Vec<Action>) {
        match negotiate(VersionRange::OURS, hello.versions) {
            Ok(version) => {
                self.enter(at, Phase::Warming, Deadline::Prepare, out);
                out.push(Action::Welcome(self.handoff, version));
                let left = self.left(at);
                let prepare = Prepare { grace_ms: left, lease_ms: left.saturating_add(self.policy.lease_ms) };
                out.push(Action::ToSuccessor(self.handoff, ToService::Prepare(prepare)));
            }
            Err(none) => self.fail(at, Reason::Version(none), out),
        }
    }

    fn prepared(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.successor = Successor::Parked;
        match (self.mode, self.incumbent) {
            (Mode::Exclusive, Incumbent::Whole) => {
                self.incumbent = Incumbent::Touched;
                self.owes.drained = true;
                self.enter(at, Phase::Draining, Deadline::Drain, out);
                let grace_ms = self.drain_grace_ms.min(self.left(at));
                let lease_ms = grace_ms.saturating_add(self.policy.lease_ms);
                let prepare = ToService::Prepare(Prepare { grace_ms, lease_ms });
                out.push(Action::ToIncumbent(self.handoff, prepare));
            }
            (Mode::Overlap, _) | (Mode::Exclusive, Incumbent::Absent) => self.begin(at, out),
            (Mode::Exclusive, Incumbent::Touched | Incumbent::Mute) => {
                self.fail(at, Reason::HungUp(Party::Incumbent), out);
            }
        }
    }

    pub(super) fn seal(&mut self, at: Moment, cut: bool, out: &mut Vec<Action>) {
        self.owes.sealed = true;
        self.enter(at, Phase::Sealing, Deadline::Seal, out);
        let seal = ToService::Seal(Seal { lease_ms: self.policy.lease_ms, cut });
        out.push(Action::ToIncumbent(self.handoff, seal));
    }

    /// The successor goes forward: the incumbent is sealed, gone, or stays beside it.
    pub(super) fn begin(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.successor = Successor::Begun;
        self.enter(at, Phase::Beginning, Deadline::Begin, out);
        out.push(Action::ToSuccessor(self.handoff, ToService::Begin(Begin {})));
    }

    fn ready(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.successor = Successor::Ready;
        if self.policy.probes { self.probe(at, out) } else { self.advance(at, out) }
    }

    pub(super) fn probe(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.enter(at, Phase::Probing, Deadline::Probe, out);
        out.push(Action::Probe(self.handoff));
    }

    /// The answer to a probe of an earlier handoff may come late, and counts for nobody.
    fn probed(&mut self, at: Moment, id: HandoffId, result: Result<(), String>, out: &mut Vec<Action>) {
        match (self.phase, result) {
            (Phase::Probing, Ok(())) if id == self.handoff => self.advance(at, out),
            (Phase::Probing, Err(why)) if id == self.handoff => self.fail(at, Reason::Probe(why), out),
            (_, _) => {}
        }
    }

    pub(super) fn commit(&mut self, out: &mut Vec<Action>) {
        self.disarm_phase(out);
        self.phase = Phase::Committing;
        self.shares = 0;
        if self.mode == Mode::Overlap {
            out.push(Action::SteerToSuccessor);
        }
        out.push(Action::RecordDurably(self.handoff, Lasting::Commit));
    }

    pub(super) fn committed(&mut self, at: Moment, out: &mut Vec<Action>) {
        let replaced = self.incumbent;
        out.push(Action::Promote);
        self.incumbent = Incumbent::Whole;
        self.successor = Successor::Absent;
        self.phase = Phase::Serving;
        self.serving_since = at.now;
        if !core::mem::take(&mut self.self_made) {
            out.push(Action::ToIncumbent(self.handoff, ToService::Commit(Commit {})));
        }
        if replaced == Incumbent::Absent {
            let outcome = self.cold_outcome();
            self.report(outcome, out);
        } else {
            let step = self.first_step(replaced);
            self.retiree = Some(Retiree { step, handoff: self.handoff, reports: self.asked });
            self.asked = false;
            self.tell_retiree(self.drain_grace_ms, out);
        }
    }

    fn cold_outcome(&mut self) -> Outcome {
        match (self.reason.take(), self.target) {
            (Some(reason), Target::Committed) => Outcome::RolledBack(reason),
            (_, Target::Candidate) => Outcome::Committed,
            (None, Target::Committed) if self.stands => Outcome::Committed,
            (None, Target::Committed) => Outcome::Started,
        }
    }

    pub(super) fn on_incumbent(
        &mut self,
        at: Moment,
        id: HandoffId,
        message: FromService,
        out: &mut Vec<Action>,
    ) {
        if id != self.handoff {
            return self.broke(at, Party::Incumbent, wrong_id(&message), out);
        }
        match (self.phase, message) {
            (Phase::Draining, FromService::Drained(_)) => {
                self.owes.drained = false;
                self.seal(at, false, out);
            }
            (Phase::Sealing, FromService::Sealed(_)) => {
                self.owes.sealed = false;
                self.begin(at, out);
            }
            (Phase::Draining | Phase::Sealing, FromService::State(state)) => {
                out.push(Action::ToSuccessor(self.handoff, ToService::State(state)));
            }
            // It was on its way when the handoff failed, and there may be nothing else that is still owed.
            (Phase::Resuming | Phase::Reaping, FromService::State(_))
                if self.incumbent == Incumbent::Touched => {}
            (Phase::Draining | Phase::Sealing, FromService::SealFailed(failed)) => {
                self.owes = Owes::default();
                self.fail(at, Reason::SealFailed(failed.reason), out);
            }
            (Phase::Draining | Phase::Sealing | Phase::Resuming, FromService::Progress(_)) => self.alive(out),
            (_, FromService::Progress(_)) => {}
            (
                Phase::Draining
                | Phase::Sealing
                | Phase::Beginning
                | Phase::Probing
                | Phase::Reaping
                | Phase::Resuming,
                FromService::Resumed(_),
            ) if self.incumbent == Incumbent::Touched => self.resumed(at, out),
            (Phase::Committing, FromService::Resumed(_)) if self.incumbent == Incumbent::Touched => {
                self.incumbent = Incumbent::Whole;
            }
            // The answer to another supervisor, from one that was taken for frozen.
            (Phase::Committing | Phase::Reaping | Phase::Resuming, FromService::Adopted(adopted))
                if self.incumbent == Incumbent::Touched =>
            {
                self.adopted_late(at, adopted.stage, out)
            }
            (Phase::Sealing | Phase::Resuming | Phase::Reaping, FromService::Drained(_))
                if self.owes.drained =>
            {
                self.owes.drained = false;
            }
            (Phase::Resuming | Phase::Reaping, FromService::Sealed(_)) if self.owes.sealed => {
                self.owes.sealed = false;
            }
            (Phase::Resuming | Phase::Reaping, FromService::SealFailed(_))
                if self.owes.sealed || self.owes.drained =>
            {
                self.owes = Owes::default();
            }
            // It exits by itself; that is waited for.
            (_, FromService::ResumeFailed(_)) if self.incumbent == Incumbent::Touched => {}
            (phase, message) => {
                let what = unexpected(&message, phase);
                self.broke(at, Party::Incumbent, what, out);
            }
        }
    }

    /// Ends what somebody asked for, if somebody did.
    pub(super) fn report(&mut self, outcome: Outcome, out: &mut Vec<Action>) {
        self.reason = None;
        self.stands = false;
        if core::mem::take(&mut self.asked) {
            out.push(Action::Report(outcome));
        }
    }

    /// The pause that the crash of a process that served calls for.
    pub(super) fn note_crash(&mut self, at: Moment) {
        if at.now.saturating_sub(self.serving_since) >= STABLE_MS {
            self.attempts = 0;
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
