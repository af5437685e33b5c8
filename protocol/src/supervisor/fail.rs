//! Failures, deaths and rollback.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{
    Action, DurableFact, Incumbent, LostCommit, Moment, Outcome, Phase, ProvisionalOutcome, Successor,
    Supervisor, Target,
};
use crate::deadline::Deadline;
use crate::message::{Abort, Mode, Resume, Stage, ToService};
use crate::reason::{Exit, Reason, Role};

impl Supervisor {
    /// Rolls back the current handoff. The first reason counts.
    pub(super) fn fail(&mut self, at: Moment, reason: Reason, out: &mut Vec<Action>) {
        // It ends by itself after this message, and may first have to end its program. It is not needed anymore.
        let leaves = matches!(reason, Reason::Unhealthy(_));
        let trusted = !matches!(
            reason,
            Reason::Unhealthy(_)
                | Reason::Version(_)
                | Reason::Silent(Role::Successor)
                | Reason::HungUp(Role::Successor)
                | Reason::Broke { role: Role::Successor, .. }
        );
        // A successor that has sent `Ready` serves, and its clients must not be cut. But two processes may serve only
        // until one of them has ended.
        let patient = trusted && reason != Reason::LeaseEnded;
        // It may have opened the data. One that broke the protocol during the record of its commit was killed for that.
        let works = trusted && self.phase != Phase::Committing;
        self.blame(reason, out);
        self.end_shares(out);
        match self.successor {
            Successor::Absent => self.reaped(at, out),
            // It may still be needed: the incumbent has not shown that it can serve again.
            Successor::Parked if trusted && self.incumbent == Incumbent::Quiesced => self.resume(at, out),
            Successor::Starting | Successor::Parked if trusted => self.dismiss(at, out),
            Successor::Ready if patient => self.dismiss(at, out),
            Successor::Begun | Successor::Ready if works => self.terminate(at, out),
            Successor::Starting | Successor::Parked | Successor::Begun | Successor::Ready if leaves => {
                self.dismiss(at, out)
            }
            // A process that is frozen or has closed its channel acts on no signal, or is ending already, and one that
            // breaks the protocol may do anything. It may hold the lock that the incumbent needs.
            Successor::Starting
            | Successor::Parked
            | Successor::Begun
            | Successor::Ready
            | Successor::Dismissed
            | Successor::Terminating => self.reap(at, out),
        }
    }

    /// An incumbent that does not serve in time may be in the middle of its start: like a successor that is late, it gets
    /// the stop signal and the time to end. One that is frozen is found by its silence.
    pub(super) fn resume_late(&mut self, out: &mut Vec<Action>) {
        if self.handoff.resume_is_over {
            return out.push(Action::KillIncumbent);
        }
        self.handoff.resume_is_over = true;
        out.push(Action::TerminateIncumbent);
        out.push(Action::Arm(Deadline::Resume, self.exit_limit_ms(true)));
    }

    /// Records a reason for the failure of the current handoff. The first one becomes the answer; each is reported.
    pub(super) fn blame(&mut self, reason: Reason, out: &mut Vec<Action>) {
        out.push(Action::Failed(reason.clone()));
        self.answer.fail(reason);
    }

    fn resume(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.handoff.resume_is_over = false;
        self.enter(at, Phase::Resuming, Deadline::Resume, out);
        out.push(Action::ToIncumbent(self.handoff.id, ToService::Resume(Resume {})));
    }

    pub(super) fn dismiss(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.successor = Successor::Dismissed;
        self.enter(at, Phase::Reaping, Deadline::Leave, out);
        out.push(Action::ToSuccessor(self.handoff.id, ToService::Abort(Abort {})));
    }

    /// A dismissed process may first have to end its program: it gets the stop signal and the time for that.
    pub(super) fn leave_late(&mut self, at: Moment, out: &mut Vec<Action>) {
        if self.successor != Successor::Dismissed {
            return out.push(Action::KillSuccessor);
        }
        self.successor = Successor::Terminating;
        out.push(Action::TerminateSuccessor);
        self.arm(at, Deadline::Leave, out);
    }

    /// Sends the stop signal to a process that may have data to save. It is killed only when its time for that is over.
    pub(super) fn terminate(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.successor = Successor::Terminating;
        self.enter(at, Phase::Reaping, Deadline::Leave, out);
        out.push(Action::TerminateSuccessor);
    }

    pub(super) fn reap(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.enter(at, Phase::Reaping, Deadline::Leave, out);
        out.push(Action::KillSuccessor);
    }

    /// The successor is gone. Decides how to treat the incumbent.
    pub(super) fn reaped(&mut self, at: Moment, out: &mut Vec<Action>) {
        match self.incumbent {
            Incumbent::Quiesced => self.resume(at, out),
            Incumbent::Active | Incumbent::Unreachable if self.handoff.lost_commit != LostCommit::None => {
                self.revert(at, out)
            }
            Incumbent::Active | Incumbent::Unreachable => {
                self.disarm_phase(out);
                self.phase = Phase::Serving;
                self.rolled_back(out);
            }
            Incumbent::Absent => match self.handoff.lost_commit {
                LostCommit::Revert => self.revert(at, out),
                LostCommit::RevertIfServed => {
                    self.disarm_phase(out);
                    self.uphold_commit(at, out);
                }
                LostCommit::None => {
                    self.disarm_phase(out);
                    self.restart_or_stop(at, None, out);
                }
            },
        }
    }

    fn revert(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.disarm_phase(out);
        self.phase = Phase::Reverting;
        out.push(Action::RecordDurably(self.handoff.id, DurableFact::Revert));
        self.arm(at, Deadline::Record, out);
    }

    fn rolled_back(&mut self, out: &mut Vec<Action>) {
        if let Some(reason) = self.answer.reason().cloned() {
            self.report(Outcome::RolledBack(reason), out);
        }
    }

    pub(super) fn spawn_failed(&mut self, at: Moment, why: String, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Greeting => {
                self.successor = Successor::Absent;
                self.fail(at, Reason::Spawn(why), out);
            }
            Phase::Reaping => {
                self.successor = Successor::Absent;
                self.reaped(at, out);
            }
            Phase::Recovering
            | Phase::Stopped
            | Phase::Backoff
            | Phase::Warming
            | Phase::Draining
            | Phase::Sealing
            | Phase::Beginning
            | Phase::Probing
            | Phase::Canary
            | Phase::Committing
            | Phase::Resuming
            | Phase::Reverting
            | Phase::Serving
            | Phase::Stopping => {}
        }
    }

    pub(super) fn successor_gone(&mut self, at: Moment, exit: Exit, out: &mut Vec<Action>) {
        let was = core::mem::replace(&mut self.successor, Successor::Absent);
        match self.phase {
            Phase::Greeting
            | Phase::Warming
            | Phase::Draining
            | Phase::Sealing
            | Phase::Beginning
            | Phase::Probing
            | Phase::Canary => self.fail(at, self.early_end(exit), out),
            Phase::Reaping => self.reaped(at, out),
            // The disk decides; its answer is pending.
            Phase::Committing => {
                if was == Successor::Ready {
                    self.steer_back(out);
                }
                self.blame(Reason::SuccessorExited(exit), out);
                self.shorten_record_limit(at, out);
            }
            // The incumbent was asked to resume already.
            Phase::Resuming => {}
            Phase::Recovering
            | Phase::Stopped
            | Phase::Backoff
            | Phase::Reverting
            | Phase::Serving
            | Phase::Stopping => {}
        }
    }

    pub(super) fn incumbent_gone(&mut self, at: Moment, exit: Exit, out: &mut Vec<Action>) {
        let was = core::mem::replace(&mut self.incumbent, Incumbent::Absent);
        match self.phase {
            Phase::Serving if self.is_on_probation() => {
                self.take_back(at, Reason::Probation(format!("it {exit}")), out)
            }
            Phase::Serving => {
                self.note_death(at);
                self.handoff.target = Target::Committed;
                self.restart_or_stop(at, Some(exit), out);
            }
            // The successor goes forward; no other process is left to wait for.
            Phase::Draining | Phase::Sealing => {
                self.grant_a_begin(at);
                self.begin(at, out)
            }
            Phase::Resuming if self.successor == Successor::Parked => {
                self.answer.outcome = ProvisionalOutcome::Open;
                self.handoff.ends_at = at.now.saturating_add(self.policy.deadline_ms);
                self.begin(at, out);
            }
            Phase::Resuming => self.reaped(at, out),
            // From now on new clients wait for the successor, not for the dead process.
            Phase::Greeting | Phase::Warming | Phase::Beginning | Phase::Probing => {
                // One that was asked for something has not ended by itself.
                if was != Incumbent::Quiesced {
                    self.handoff.died = Some(exit);
                }
                self.steer_forward(out)
            }
            Phase::Canary => self.commit(at, out),
            Phase::Committing | Phase::Reverting => self.shorten_record_limit(at, out),
            Phase::Recovering | Phase::Reaping | Phase::Stopped | Phase::Backoff | Phase::Stopping => {}
        }
    }

    /// The incumbent serves again, on request or after its lease. One that has its stop signal by now does not stay.
    pub(super) fn resumed(&mut self, at: Moment, out: &mut Vec<Action>) {
        if self.resume_is_over() {
            return;
        }
        self.incumbent = Incumbent::Active;
        match (self.phase, self.successor) {
            (Phase::Resuming, Successor::Absent) => self.reaped(at, out),
            (Phase::Resuming, _) => self.dismiss(at, out),
            (Phase::Reaping, _) => {}
            // Both may serve.
            (Phase::Probing, _) if self.mode == Mode::Overlap => {}
            (_, _) => self.fail(at, Reason::LeaseEnded, out),
        }
    }

    /// An incumbent that was considered frozen answers. If it serves, it sends no second `Resumed`.
    pub(super) fn adopted_late(&mut self, at: Moment, stage: Stage, out: &mut Vec<Action>) {
        match (stage, self.phase) {
            (Stage::Serving, Phase::Committing) => self.incumbent = Incumbent::Active,
            (Stage::Serving, _) => self.resumed(at, out),
            (Stage::Working | Stage::Waiting | Stage::Leaving, _) => {}
        }
    }

    pub(super) fn hung_up(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        match (role, self.phase) {
            (Role::Successor, Phase::Reaping | Phase::Committing) => {}
            (Role::Successor, _) => self.fail(at, Reason::HungUp(role), out),
            (Role::Incumbent, _) if self.incumbent == Incumbent::Quiesced => self.end_incumbent(out),
            (Role::Incumbent, _) => {
                self.lose_channel();
                self.take_back(
                    at,
                    Reason::Probation(String::from("it closed its channel to the supervisor")),
                    out,
                );
            }
        }
    }

    pub(super) fn broke(&mut self, at: Moment, role: Role, what: String, out: &mut Vec<Action>) {
        match (role, self.phase) {
            (Role::Successor, Phase::Reaping) => {}
            (Role::Successor, Phase::Committing) => {
                // It is no longer trusted. The disk decides; its answer is pending.
                self.successor = Successor::Begun;
                self.steer_back(out);
                self.blame(Reason::Broke { role, what }, out);
                out.push(Action::KillSuccessor);
            }
            (Role::Successor, _) => self.fail(at, Reason::Broke { role, what }, out),
            (Role::Incumbent, Phase::Draining | Phase::Sealing) => {
                self.fail(at, Reason::Broke { role, what }, out)
            }
            (Role::Incumbent, _) if self.incumbent == Incumbent::Quiesced => self.end_incumbent(out),
            (Role::Incumbent, _) => {
                out.push(Action::HangUpIncumbent);
                self.lose_channel();
                self.take_back(at, Reason::Probation(format!("it broke the protocol: {what}")), out);
            }
        }
    }

    /// The incumbent is unreachable and has given up some of its work: only its end resolves that.
    fn end_incumbent(&mut self, out: &mut Vec<Action>) {
        match self.phase {
            // The successor serves; the incumbent's fate does not delay it.
            Phase::Committing => {}
            Phase::Draining
            | Phase::Sealing
            | Phase::Beginning
            | Phase::Probing
            | Phase::Canary
            | Phase::Reaping
            | Phase::Resuming
            | Phase::Reverting
            | Phase::Greeting
            | Phase::Warming
            | Phase::Serving
            | Phase::Stopping
            | Phase::Stopped
            | Phase::Recovering
            | Phase::Backoff => out.push(Action::KillIncumbent),
        }
    }

    fn lose_channel(&mut self) {
        if self.incumbent == Incumbent::Active {
            self.incumbent = Incumbent::Unreachable;
        }
    }

    pub(super) fn durable(&mut self, at: Moment, out: &mut Vec<Action>) {
        match (self.phase, self.successor) {
            (Phase::Committing, Successor::Ready) => {
                self.disarm_phase(out);
                self.committed(at, out)
            }
            // The commit is durable, but its process is lost and was never told.
            (Phase::Committing, successor) => {
                self.handoff.lost_commit = LostCommit::RevertIfServed;
                match successor {
                    Successor::Absent => self.reaped(at, out),
                    _ => self.reap(at, out),
                }
            }
            (Phase::Reverting, _) => {
                self.handoff.lost_commit = LostCommit::None;
                self.reaped(at, out);
            }
            (_, _) => {}
        }
    }

    /// A process has ended during a durable record: if none is left that serves, the time limit becomes shorter.
    fn shorten_record_limit(&mut self, at: Moment, out: &mut Vec<Action>) {
        if !self.has_server() {
            self.arm(at, Deadline::Record, out);
        }
    }

    /// Withdraws the new connections that the successor has received since it was ready.
    pub(super) fn steer_back(&self, out: &mut Vec<Action>) {
        if self.mode == Mode::Overlap && self.incumbent != Incumbent::Absent {
            out.push(Action::SteerToIncumbent);
        }
    }

    pub(super) fn not_durable(&mut self, at: Moment, why: String, out: &mut Vec<Action>) {
        match (self.phase, self.incumbent) {
            // The only serving process continues; the next cold start uses the old binary.
            (Phase::Committing, Incumbent::Absent) if self.successor == Successor::Ready => {
                self.disarm_phase(out);
                if self.handoff.target == Target::Candidate {
                    self.report(Outcome::Failed(Reason::Journal(why)), out);
                }
                self.committed(at, out)
            }
            (Phase::Committing, _) => {
                if self.successor == Successor::Ready {
                    self.steer_back(out);
                }
                self.fail(at, Reason::Journal(why), out);
            }
            (Phase::Reverting, Incumbent::Absent) => {
                self.disarm_phase(out);
                self.uphold_commit(at, out)
            }
            (Phase::Reverting, _) => self.durable(at, out),
            (_, _) => {}
        }
    }
}
