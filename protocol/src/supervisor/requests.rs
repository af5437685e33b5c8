//! The requests of users: start, stop, upgrade and cancel.

use alloc::vec::Vec;

use super::{Action, Incumbent, Leaving, Moment, Phase, ProvisionalOutcome, Refusal, Supervisor, Target};
use crate::deadline::{Deadline, Millis};
use crate::reason::Reason;
use crate::restart::Failures;

impl Supervisor {
    pub(super) fn start(&mut self, at: Moment, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Stopped | Phase::Backoff if self.outgoing.is_none() => {
                self.wanted = true;
                self.answer.is_awaited = true;
                self.failures = Failures::default();
                self.spawn(at, Target::Committed, out);
            }
            Phase::Stopped | Phase::Backoff => out.push(Action::Refuse(Refusal::Retiring)),
            // A stop waits for the replaced process.
            Phase::Serving if !self.wanted => out.push(Action::Refuse(Refusal::Retiring)),
            Phase::Serving => out.push(Action::Refuse(Refusal::AlreadyRunning)),
            phase => out.push(Action::Refuse(Refusal::Busy(phase))),
        }
    }

    pub(super) fn upgrade(
        &mut self,
        at: Moment,
        target: Target,
        deadline_ms: Option<Millis>,
        drain_grace_ms: Option<Millis>,
        out: &mut Vec<Action>,
    ) {
        match (self.phase, self.incumbent) {
            _ if self.is_on_probation() => out.push(Action::Refuse(Refusal::Probation)),
            _ if self.outgoing.is_some() => out.push(Action::Refuse(Refusal::Retiring)),
            (Phase::Serving, Incumbent::Unreachable) => out.push(Action::Refuse(Refusal::Unreachable)),
            (Phase::Serving | Phase::Backoff, _) => {
                self.answer.is_awaited = true;
                self.spawn(at, target, out);
                self.handoff.ends_at = at.now.saturating_add(deadline_ms.unwrap_or(self.policy.deadline_ms));
                self.handoff.drain_grace_ms = drain_grace_ms.unwrap_or(self.policy.drain_grace_ms);
                self.arm(at, Deadline::Greet, out);
            }
            (Phase::Stopped, _) => out.push(Action::Refuse(Refusal::NotRunning)),
            (phase, _) => out.push(Action::Refuse(Refusal::Busy(phase))),
        }
    }

    pub(super) fn stop(&mut self, at: Moment, out: &mut Vec<Action>) {
        match self.phase {
            // The standby leaves first; the request that waits for the upgrade gets the result of the stop.
            Phase::Serving if self.is_on_probation() => {
                self.wanted = false;
                self.answer.is_awaited = true;
                self.end_probation(at, out);
                self.hurry_outgoing(at, out);
            }
            // The replaced process leaves first; the request that waits for it gets the result of the stop.
            Phase::Serving if self.outgoing.is_some() => {
                self.answer.is_awaited = true;
                // A second request does not prolong what the first one has granted.
                if core::mem::take(&mut self.wanted) {
                    self.hurry_outgoing(at, out);
                }
            }
            Phase::Serving => {
                self.wanted = false;
                self.answer.is_awaited = true;
                self.end_service(at, out);
            }
            Phase::Backoff => {
                self.wanted = false;
                out.push(Action::Disarm(Deadline::Backoff));
                self.answer.is_awaited = true;
                self.ended(at, out);
            }
            // A hanging start must not prevent a user from ending it.
            Phase::Greeting | Phase::Warming | Phase::Beginning | Phase::Probing
                if self.incumbent == Incumbent::Absent =>
            {
                self.wanted = false;
                self.answer.is_awaited = true;
                self.hurry_outgoing(at, out);
                self.fail(at, Reason::Cancelled, out);
            }
            // The failed process is leaving, and nothing follows it.
            Phase::Reaping if self.incumbent == Incumbent::Absent => {
                self.wanted = false;
                self.answer.is_awaited = true;
                self.hurry_outgoing(at, out);
            }
            Phase::Stopped => out.push(Action::Refuse(Refusal::NotRunning)),
            phase => out.push(Action::Refuse(Refusal::Busy(phase))),
        }
    }

    pub(super) fn end_service(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.phase = Phase::Stopping;
        self.retire(at, Leaving::Draining, out);
    }

    pub(super) fn cancel(&mut self, at: Moment, out: &mut Vec<Action>) {
        match self.phase {
            // A start that a user requested. A restart after a death or failure continues: only a stop ends that.
            Phase::Greeting | Phase::Warming | Phase::Beginning | Phase::Probing if self.is_cold_start() => {
                if !self.answer.is_awaited || self.answer.outcome != ProvisionalOutcome::Open {
                    return out.push(Action::Refuse(Refusal::NothingToCancel));
                }
                self.wanted = false;
                self.fail(at, Reason::Cancelled, out);
            }
            Phase::Sealing if self.policy.seal_ends => out.push(Action::Refuse(Refusal::NothingToCancel)),
            Phase::Greeting
            | Phase::Warming
            | Phase::Draining
            | Phase::Sealing
            | Phase::Beginning
            | Phase::Probing
            | Phase::Canary => self.fail(at, Reason::Cancelled, out),
            Phase::Serving if self.is_on_probation() => {
                self.answer.is_awaited = true;
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
}
