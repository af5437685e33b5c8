//! No process is left: whether another one is started, and when.

use alloc::vec::Vec;

use super::{Action, Moment, Outcome, Phase, Supervisor, Target};
use crate::deadline::Deadline;
use crate::reason::{Exit, Reason};
use crate::restart::{End, Failures, Next};

impl Supervisor {
    /// Neither an incumbent nor a successor is left. `died`: how a process that served has ended, if that is the cause.
    pub(super) fn restart_or_stop(&mut self, at: Moment, died: Option<Exit>, out: &mut Vec<Action>) {
        if !self.wanted {
            return self.ended(at, out);
        }
        let died = died.or(self.handoff.died);
        let rests = died.and_then(|exit| self.policy.restart.rest_after(exit)).is_some();
        match (self.handoff.target, self.answer.reason().cloned()) {
            // Returning to the last good version is not a repeated attempt: no pause.
            (Target::Candidate, Some(_)) if !rests => self.spawn(at, Target::Committed, out),
            (_, reason) => {
                if let Some(reason) = reason.clone() {
                    self.report(Outcome::Failed(reason), out);
                }
                self.start_again(at, died, reason, out);
            }
        }
    }

    /// `reason`: why a start has failed, if that is the cause.
    fn start_again(&mut self, at: Moment, died: Option<Exit>, reason: Option<Reason>, out: &mut Vec<Action>) {
        let end = match (died, &reason) {
            (Some(exit), _) => End::Died(exit),
            (None, Some(reason)) if !reason.blames_program() => End::NotStarted,
            (None, _) => End::NotReady,
        };
        match self.failures.next(&self.policy.restart, at.now, end) {
            Next::Now => {
                self.phase = Phase::Backoff;
                self.spawn(at, Target::Committed, out);
            }
            Next::Later(pause_ms) => {
                self.phase = Phase::Backoff;
                self.pause_ms = pause_ms;
                self.arm(at, Deadline::Backoff, out);
            }
            Next::Never(rest) => {
                self.wanted = false;
                self.failures = Failures::default();
                out.push(Action::Rest(rest, died));
                // An upgrade that is committed may still wait for the end of its old process.
                self.answer.is_awaited |= self.outgoing.is_some_and(|outgoing| outgoing.reports);
                let reason = reason.unwrap_or(Reason::Ended(died.unwrap_or(Exit::Unknown)));
                self.report(Outcome::Failed(reason), out);
                self.ended(at, out);
            }
        }
    }

    /// No process follows. A replaced one may still be leaving, and clients wait for that.
    pub(super) fn ended(&mut self, at: Moment, out: &mut Vec<Action>) {
        match self.outgoing {
            Some(_) => {
                self.phase = Phase::Stopping;
                self.hurry_outgoing(at, out);
            }
            None => self.stopped(out),
        }
    }

    pub(super) fn stopped(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Stopped;
        out.push(Action::CloseListeners);
        self.report(Outcome::Stopped, out);
    }
}
