//! Which deadlines run in which phase, and what happens when one passes.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Moment, Phase, Supervisor, Target};
use crate::deadline::{Deadline, Millis, Stragglers, backoff_ms};
use crate::reason::{Party, Reason};
use crate::recovery::Found;

impl Supervisor {
    pub(super) fn deadline(&mut self, at: Moment, deadline: Deadline, out: &mut Vec<Action>) {
        match (deadline, self.phase) {
            (Deadline::Greet, Phase::Greeting) => self.fail(at, Reason::NoHello, out),
            (Deadline::Prepare, Phase::Warming) => self.fail(at, Reason::NotPrepared, out),
            (Deadline::Drain, Phase::Draining) => match self.policy.stragglers {
                Stragglers::Cut if self.left(at) > 0 => self.seal(at, true, out),
                Stragglers::Cut | Stragglers::Abort => self.fail(at, Reason::DrainGrace, out),
            },
            (Deadline::Seal, Phase::Sealing) => self.fail(at, Reason::NotSealed, out),
            (Deadline::Begin, Phase::Beginning) => self.fail(at, Reason::NotReady, out),
            (Deadline::Probe, Phase::Probing) => {
                self.fail(at, Reason::Probe(String::from("there was no answer within its limit")), out)
            }
            (Deadline::Canary, Phase::Canary) => self.share_passed(at, out),
            (Deadline::Probation, Phase::Serving) => self.end_probation(out),
            (Deadline::Silence, Phase::Warming | Phase::Beginning) => {
                self.fail(at, Reason::Silent(Party::Successor), out)
            }
            // Whoever is frozen serves nobody: it counts as dead, and the successor goes forward.
            (Deadline::Silence, Phase::Draining | Phase::Sealing | Phase::Resuming)
            | (Deadline::Resume, Phase::Resuming) => out.push(Action::KillIncumbent),
            (Deadline::Leave, Phase::Reaping) => out.push(Action::KillSuccessor),
            (Deadline::Backoff, Phase::Backoff) => self.spawn(at, Target::Committed, out),
            (Deadline::RetireDrain | Deadline::RetireSeal | Deadline::RetireExit, _) => {
                self.retire_late(deadline, out)
            }
            // A timer that fired before it was disarmed.
            (
                Deadline::Greet
                | Deadline::Prepare
                | Deadline::Drain
                | Deadline::Seal
                | Deadline::Begin
                | Deadline::Probe
                | Deadline::Canary
                | Deadline::Probation
                | Deadline::Silence
                | Deadline::Leave
                | Deadline::Resume
                | Deadline::Backoff
                | Deadline::AnswerIncumbent
                | Deadline::AnswerSuccessor
                | Deadline::Recover,
                _,
            ) => {}
        }
    }

    /// Whose silence a deadline is about. `None` for one that is about something else: whoever leaves owes its end, not a sign
    /// of life.
    pub fn silent_at(&self, deadline: Deadline) -> Option<Party> {
        let asked = |found: Found| matches!(found, Found::Asked | Found::Working | Found::Waiting);
        match (deadline, self.phase) {
            (Deadline::Silence, Phase::Warming | Phase::Beginning) => Some(Party::Successor),
            (Deadline::Silence, Phase::Draining | Phase::Sealing | Phase::Resuming) => Some(Party::Incumbent),
            (Deadline::AnswerIncumbent, _) => {
                self.facts().filter(|facts| asked(facts.incumbent)).map(|_| Party::Incumbent)
            }
            (Deadline::AnswerSuccessor, _) => {
                self.facts().filter(|facts| asked(facts.successor)).map(|_| Party::Successor)
            }
            (_, _) => None,
        }
    }

    /// A sign of life.
    pub(super) fn alive(&self, out: &mut Vec<Action>) {
        out.push(Action::Arm(Deadline::Silence, self.policy.lease_ms));
    }

    pub(super) fn enter(&mut self, at: Moment, phase: Phase, deadline: Deadline, out: &mut Vec<Action>) {
        self.disarm_phase(out);
        self.phase = phase;
        self.arm(at, deadline, out);
    }

    /// What is left of the whole upgrade.
    pub(super) fn left(&self, at: Moment) -> Millis {
        self.ends_at.saturating_sub(at.now)
    }

    pub(super) fn arm(&mut self, at: Moment, deadline: Deadline, out: &mut Vec<Action>) {
        let left = self.left(at);
        let ms = match deadline {
            Deadline::Greet => self.policy.greet_limit_ms.min(left),
            Deadline::Prepare | Deadline::Begin => left,
            Deadline::Drain => self.drain_grace_ms.min(left),
            Deadline::Seal => self.policy.seal_limit_ms.min(left),
            Deadline::Probe => self.policy.probe_limit_ms.min(left),
            Deadline::Canary => self.share_time_ms(),
            Deadline::Probation => self.probation_ms,
            Deadline::Silence => self.policy.lease_ms,
            Deadline::Leave => self.policy.exit_limit_ms,
            Deadline::Resume => self.policy.resume_limit_ms,
            Deadline::Backoff => backoff_ms(self.attempts),
            Deadline::RetireDrain => self.policy.stop_grace_ms,
            Deadline::RetireSeal => self.policy.seal_limit_ms,
            Deadline::RetireExit => self.policy.exit_limit_ms,
            Deadline::AnswerIncumbent | Deadline::AnswerSuccessor => self.policy.lease_ms,
            Deadline::Recover => self.policy.deadline_ms,
        };
        out.push(Action::Arm(deadline, ms));
        if matches!(
            deadline,
            Deadline::Prepare | Deadline::Drain | Deadline::Seal | Deadline::Begin | Deadline::Resume
        ) {
            out.push(Action::Arm(Deadline::Silence, self.policy.lease_ms));
        }
    }

    pub(super) fn disarm_phase(&self, out: &mut Vec<Action>) {
        for deadline in match self.phase {
            Phase::Greeting => &[Deadline::Greet][..],
            Phase::Warming => &[Deadline::Prepare, Deadline::Silence],
            Phase::Draining => &[Deadline::Drain, Deadline::Silence],
            Phase::Sealing => &[Deadline::Seal, Deadline::Silence],
            Phase::Beginning => &[Deadline::Begin, Deadline::Silence],
            Phase::Probing => &[Deadline::Probe],
            Phase::Canary => &[Deadline::Canary],
            Phase::Reaping => &[Deadline::Leave],
            Phase::Resuming => &[Deadline::Resume, Deadline::Silence],
            Phase::Backoff => &[Deadline::Backoff],
            Phase::Recovering => &[Deadline::AnswerIncumbent, Deadline::AnswerSuccessor, Deadline::Recover],
            Phase::Stopped | Phase::Committing | Phase::Reverting | Phase::Serving | Phase::Stopping => &[],
        } {
            out.push(Action::Disarm(*deadline));
        }
    }
}
