//! Which deadlines run in each phase, and what happens when one expires.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Event, Incumbent, Moment, Phase, Successor, Supervisor, Target};
use crate::deadline::{Deadline, LEASES_OF_STARVED, Millis, Stragglers, UNSERVED_RECORD_MS};
use crate::reason::{Reason, Role};
use crate::recovery::Observation;

/// Leases in a row in which a process was silent and starved, by the deadline of its silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct StarvedLeases {
    silence: u8,
    answer_incumbent: u8,
    answer_successor: u8,
}

impl StarvedLeases {
    fn leases(&mut self, deadline: Deadline) -> Option<&mut u8> {
        match deadline {
            Deadline::Silence => Some(&mut self.silence),
            Deadline::AnswerIncumbent => Some(&mut self.answer_incumbent),
            Deadline::AnswerSuccessor => Some(&mut self.answer_successor),
            _ => None,
        }
    }

    fn reset(&mut self, deadline: Deadline) {
        if let Some(leases) = self.leases(deadline) {
            *leases = 0;
        }
    }
}

impl Supervisor {
    /// Killing a starved process does not make the machine faster: it gets a few more leases.
    pub(super) fn starved(&mut self, at: Moment, deadline: Deadline, out: &mut Vec<Action>) {
        let is_silence = self.silent_at(deadline).is_some();
        if let Some(leases) = self.starved.leases(deadline).filter(|_| is_silence) {
            *leases += 1;
            if *leases < LEASES_OF_STARVED {
                return out.push(Action::Arm(deadline, self.policy.lease_ms));
            }
            *leases = 0;
        }
        self.dispatch(at, Event::Deadline(deadline), out);
    }

    pub(super) fn deadline(&mut self, at: Moment, deadline: Deadline, out: &mut Vec<Action>) {
        match (deadline, self.phase) {
            (Deadline::Greet, Phase::Greeting) => self.fail(at, Reason::NoHello, out),
            (Deadline::Prepare, Phase::Warming) => self.fail(at, Reason::NotPrepared, out),
            (Deadline::Drain, Phase::Draining) => match self.policy.stragglers {
                // A seal that ends the program goes forward in any case.
                Stragglers::Cut if self.time_left_ms(at) > 0 || self.policy.seal_ends => {
                    self.seal(at, true, out)
                }
                Stragglers::Cut | Stragglers::Abort => self.fail(at, Reason::DrainGrace, out),
            },
            (Deadline::Seal, Phase::Sealing) => self.fail(at, Reason::NotSealed, out),
            (Deadline::Begin, Phase::Beginning) => self.fail(at, Reason::NotReady, out),
            (Deadline::Probe, Phase::Probing) => {
                self.fail(at, Reason::Probe(String::from("there was no answer within its limit")), out)
            }
            (Deadline::Record, Phase::Committing | Phase::Reverting) => {
                out.push(Action::GiveUpRecord);
                self.not_durable(at, String::from("the disk has not answered in time"), out);
            }
            (Deadline::Canary, Phase::Canary) => self.share_passed(at, out),
            (Deadline::Probation, Phase::Serving) => self.end_probation(at, out),
            (Deadline::Silence, Phase::Warming | Phase::Beginning) => {
                self.fail(at, Reason::Silent(Role::Successor), out)
            }
            // A frozen process serves no client: it counts as dead, and the successor goes forward.
            (Deadline::Silence, Phase::Draining | Phase::Sealing | Phase::Resuming) => {
                out.push(Action::KillIncumbent)
            }
            (Deadline::Resume, Phase::Resuming) => self.resume_late(out),
            (Deadline::Leave, Phase::Reaping) => self.leave_late(at, out),
            (Deadline::Backoff, Phase::Backoff) => self.spawn(at, Target::Committed, out),
            (
                Deadline::RetireDrain | Deadline::RetireQuiet | Deadline::RetireSeal | Deadline::RetireExit,
                _,
            ) => self.retire_late(at, deadline, out),
            // A timer that fired before it was disarmed.
            (
                Deadline::Greet
                | Deadline::Prepare
                | Deadline::Drain
                | Deadline::Seal
                | Deadline::Begin
                | Deadline::Probe
                | Deadline::Record
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

    /// The process whose silence a deadline limits; `None` for other deadlines. A leaving process owes its end, not a
    /// sign of life.
    pub fn silent_at(&self, deadline: Deadline) -> Option<Role> {
        let asked = |found: Observation| {
            matches!(found, Observation::Asked | Observation::Working | Observation::Waiting)
        };
        match (deadline, self.phase) {
            (Deadline::Silence, Phase::Warming | Phase::Beginning) => Some(Role::Successor),
            (Deadline::Silence, Phase::Draining | Phase::Sealing | Phase::Resuming) => Some(Role::Incumbent),
            (Deadline::AnswerIncumbent, _) => {
                self.facts().filter(|facts| asked(facts.incumbent)).map(|_| Role::Incumbent)
            }
            (Deadline::AnswerSuccessor, _) => {
                self.facts().filter(|facts| asked(facts.successor)).map(|_| Role::Successor)
            }
            (_, _) => None,
        }
    }

    /// Restarts the lease after a sign of life.
    pub(super) fn alive(&mut self, out: &mut Vec<Action>) {
        self.starved.reset(Deadline::Silence);
        out.push(Action::Arm(Deadline::Silence, self.policy.lease_ms));
    }

    pub(super) fn enter(&mut self, at: Moment, phase: Phase, deadline: Deadline, out: &mut Vec<Action>) {
        self.disarm_phase(out);
        self.phase = phase;
        self.arm(at, deadline, out);
    }

    /// How long the sealing process may take to end after its stop signal, as sent in [`Grant`](crate::message::Grant).
    /// Milliseconds. At a stop: `stop_grace`; in an upgrade also the rest of `drain_grace`.
    pub fn grant_ms(&self, now: Millis) -> Millis {
        let rest = match self.phase {
            Phase::Stopping => 0,
            _ if !self.wanted => 0,
            _ => self.handoff.drain_grace_ms.saturating_sub(now.saturating_sub(self.drain_began)),
        };
        rest.saturating_add(self.policy.stop_grace_ms)
    }

    /// Time from `Seal` to `Sealed`. Milliseconds.
    pub(super) fn seal_limit_ms(&self, at: Moment) -> Millis {
        self.policy.seal_limit_ms.saturating_add(self.grant_ms(at.now))
    }

    /// How long the successor may wait for `Begin`. Milliseconds. A program that ends at the seal may save for longer than
    /// the deadline, and the upgrade still goes forward.
    pub(super) fn parked_lease_ms(&self, at: Moment) -> Millis {
        let lease_ms = self.time_left_ms(at).saturating_add(self.policy.lease_ms);
        if !self.policy.seal_ends {
            return lease_ms;
        }
        let end_ms = self.policy.seal_limit_ms.saturating_add(self.policy.stop_grace_ms);
        lease_ms
            .saturating_add(self.handoff.drain_grace_ms)
            .saturating_add(end_ms)
            .saturating_add(self.policy.resume_limit_ms)
    }

    /// Time from `Prepare` to `Drained` in an upgrade. Milliseconds. Requests that may be cut must not use up the time
    /// that the upgrade needs after them: it would cut nothing and fail.
    pub(super) fn drain_limit_ms(&self, at: Moment) -> Millis {
        let left = self.time_left_ms(at);
        let rest = match self.policy.stragglers {
            Stragglers::Cut => self.policy.seal_limit_ms.min(left / 2),
            Stragglers::Abort => 0,
        };
        self.handoff.drain_grace_ms.min(left.saturating_sub(rest))
    }

    /// Time to serve again. Milliseconds. A process that ended its program to seal has to start it again, which may take
    /// as long as any start; if it is frozen, its silence shows that.
    pub(super) fn resume_limit_ms(&self) -> Millis {
        match self.policy.seal_ends {
            true => self.policy.resume_limit_ms.max(self.policy.deadline_ms),
            false => self.policy.resume_limit_ms,
        }
    }

    /// Time from `Commit` to SIGTERM, and from there to SIGKILL. `ends`: the process may first have to end its program.
    /// Milliseconds.
    pub(super) fn exit_limit_ms(&self, ends: bool) -> Millis {
        self.policy.exit_limit_ms.saturating_add(if ends { self.policy.stop_grace_ms } else { 0 })
    }

    /// Whether there is a process that serves or will serve.
    pub(super) fn has_server(&self) -> bool {
        self.incumbent != Incumbent::Absent || self.successor == Successor::Ready
    }

    /// The rest of the upgrade's time. Milliseconds.
    pub(super) fn time_left_ms(&self, at: Moment) -> Millis {
        self.handoff.ends_at.saturating_sub(at.now)
    }

    pub(super) fn arm(&mut self, at: Moment, deadline: Deadline, out: &mut Vec<Action>) {
        self.starved.reset(deadline);
        let left = self.time_left_ms(at);
        let ms = match deadline {
            Deadline::Greet => self.policy.greet_limit_ms.min(left),
            Deadline::Prepare | Deadline::Begin => left,
            Deadline::Drain => self.drain_limit_ms(at),
            Deadline::Seal if self.policy.seal_ends => self.seal_limit_ms(at),
            Deadline::Seal => self.seal_limit_ms(at).min(left),
            // The probe has its own limit, with a better reason: this one is for a probe that hangs.
            Deadline::Probe => {
                self.policy.probe_limit_ms.saturating_add(self.policy.probe_margin_ms).min(left)
            }
            // While no process serves, the disk must not decide for how long.
            Deadline::Record if !self.has_server() => UNSERVED_RECORD_MS.min(self.policy.record_limit_ms),
            Deadline::Record => self.policy.record_limit_ms,
            Deadline::Canary => self.share_time_ms(),
            Deadline::Probation => self.handoff.probation_ms,
            Deadline::Silence => self.policy.lease_ms,
            Deadline::Leave if self.successor == Successor::Terminating => self.exit_limit_ms(true),
            Deadline::Leave => self.policy.exit_limit_ms,
            // It ends its program before it starts it again.
            Deadline::Resume if self.handoff.awaited_replies.sealed => {
                self.resume_limit_ms().saturating_add(self.seal_limit_ms(at))
            }
            Deadline::Resume => self.resume_limit_ms(),
            Deadline::Backoff => self.pause_ms,
            Deadline::RetireDrain => self.policy.stop_grace_ms,
            Deadline::RetireQuiet => self.policy.quiet_limit_ms,
            Deadline::RetireSeal => self.seal_limit_ms(at),
            Deadline::RetireExit => self.policy.exit_limit_ms,
            Deadline::AnswerIncumbent | Deadline::AnswerSuccessor => self.policy.lease_ms,
            Deadline::Recover => left,
        };
        out.push(Action::Arm(deadline, ms));
        if matches!(
            deadline,
            Deadline::Prepare | Deadline::Drain | Deadline::Seal | Deadline::Begin | Deadline::Resume
        ) {
            self.alive(out);
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
            Phase::Committing | Phase::Reverting => &[Deadline::Record],
            Phase::Reaping => &[Deadline::Leave],
            Phase::Resuming => &[Deadline::Resume, Deadline::Silence],
            Phase::Backoff => &[Deadline::Backoff],
            Phase::Recovering => &[Deadline::AnswerIncumbent, Deadline::AnswerSuccessor, Deadline::Recover],
            Phase::Stopped | Phase::Serving | Phase::Stopping => &[],
        } {
            out.push(Action::Disarm(*deadline));
        }
    }
}
