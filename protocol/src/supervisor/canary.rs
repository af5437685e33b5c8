//! The canary: before the commit, a successor in overlap mode serves growing shares of the new connections. If there is
//! a probe, it must pass that again after each step.

use alloc::format;
use alloc::vec::Vec;

use super::{Action, Incumbent, Moment, Phase, Supervisor};
use crate::deadline::{CanaryStep, Deadline};
use crate::message::Mode;
use crate::reason::{Exit, Reason};

impl Supervisor {
    /// The successor has passed: it gets the next share of the connections, or all of them.
    pub(super) fn advance(&mut self, at: Moment, out: &mut Vec<Action>) {
        let Some(CanaryStep { permille, time_ms }) = self.next_share() else { return self.commit(at, out) };
        self.handoff.shares = self.handoff.shares.saturating_add(1);
        self.handoff.ends_at = self.handoff.ends_at.saturating_add(time_ms);
        self.enter(at, Phase::Canary, Deadline::Canary, out);
        out.push(Action::SteerShare(permille));
    }

    /// Without an incumbent no process could take the remaining share.
    fn next_share(&self) -> Option<CanaryStep> {
        let serves = matches!(self.incumbent, Incumbent::Active | Incumbent::Unreachable);
        let steps = if self.mode == Mode::Overlap && serves { &self.policy.canary[..] } else { &[] };
        steps.get(usize::from(self.handoff.shares)).copied()
    }

    /// Duration of the current step. Milliseconds.
    pub(super) fn share_time_ms(&self) -> u64 {
        let step = usize::from(self.handoff.shares).checked_sub(1).and_then(|at| self.policy.canary.get(at));
        step.map_or(0, |step| step.time_ms)
    }

    /// Ends the current step.
    pub(super) fn share_passed(&mut self, at: Moment, out: &mut Vec<Action>) {
        if self.policy.probes { self.probe(at, out) } else { self.advance(at, out) }
    }

    /// Withdraws the share of a successor before its dismissal.
    pub(super) fn end_shares(&mut self, out: &mut Vec<Action>) {
        if core::mem::take(&mut self.handoff.shares) > 0 {
            self.steer_back(out);
        }
    }

    /// The reason for the end of a successor, depending on whether it was ready.
    pub(super) fn early_end(&self, exit: Exit) -> Reason {
        match self.handoff.shares {
            0 => Reason::SuccessorExited(exit),
            _ => Reason::Canary(format!("it {exit}")),
        }
    }
}
