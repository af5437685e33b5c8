//! The way back: failures and deaths.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::{Action, Incumbent, Lasting, Moment, Outcome, Phase, Successor, Supervisor, Target, Undoing};
use crate::deadline::Deadline;
use crate::message::{Abort, Mode, Resume, Stage, ToService};
use crate::reason::{Exit, Party, Reason};

impl Supervisor {
    /// Undoes the handoff under way. The first reason counts.
    pub(super) fn fail(&mut self, at: Moment, reason: Reason, out: &mut Vec<Action>) {
        let trusted = !matches!(
            reason,
            Reason::Unhealthy(_)
                | Reason::Version(_)
                | Reason::Silent(Party::Successor)
                | Reason::HungUp(Party::Successor)
                | Reason::Broke { party: Party::Successor, .. }
        );
        // Whoever says that it is ready serves, and whom it serves is not cut off; but two serve only for as long as it takes
        // to end one.
        let patient = trusted && reason != Reason::LeaseEnded;
        self.reason.get_or_insert(reason);
        self.end_shares(out);
        match self.successor {
            Successor::Absent => self.reaped(at, out),
            // It may yet be needed: the incumbent has not shown that it can serve again.
            Successor::Parked if trusted && self.incumbent == Incumbent::Touched => self.resume(at, out),
            Successor::Starting | Successor::Parked if trusted => self.dismiss(at, out),
            Successor::Ready if patient => self.dismiss(at, out),
            // It may hold the lock and be at work on the data, or not listen at all.
            Successor::Starting | Successor::Parked | Successor::Begun | Successor::Ready => {
                self.reap(at, out)
            }
        }
    }

    fn resume(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.enter(at, Phase::Resuming, Deadline::Resume, out);
        out.push(Action::ToIncumbent(self.handoff, ToService::Resume(Resume {})));
    }

    pub(super) fn dismiss(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.enter(at, Phase::Reaping, Deadline::Leave, out);
        out.push(Action::ToSuccessor(self.handoff, ToService::Abort(Abort {})));
    }

    pub(super) fn reap(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.enter(at, Phase::Reaping, Deadline::Leave, out);
        out.push(Action::KillSuccessor);
    }

    /// The successor is gone. What of the incumbent?
    pub(super) fn reaped(&mut self, at: Moment, out: &mut Vec<Action>) {
        match self.incumbent {
            Incumbent::Touched => self.resume(at, out),
            Incumbent::Whole | Incumbent::Mute if self.undoing != Undoing::None => self.revert(out),
            Incumbent::Whole | Incumbent::Mute => {
                self.disarm_phase(out);
                self.phase = Phase::Serving;
                self.rolled_back(out);
            }
            Incumbent::Absent => match self.undoing {
                Undoing::Surely => self.revert(out),
                Undoing::IfServed => {
                    self.disarm_phase(out);
                    self.stand(at, out);
                }
                Undoing::None => {
                    self.disarm_phase(out);
                    self.nobody_serves(at, out);
                }
            },
        }
    }

    fn revert(&mut self, out: &mut Vec<Action>) {
        self.disarm_phase(out);
        self.phase = Phase::Reverting;
        out.push(Action::RecordDurably(self.handoff, Lasting::Revert));
    }

    fn rolled_back(&mut self, out: &mut Vec<Action>) {
        if let Some(reason) = self.reason.take() {
            self.report(Outcome::RolledBack(reason), out);
        }
    }

    /// Neither an incumbent nor a successor is left.
    pub(super) fn nobody_serves(&mut self, at: Moment, out: &mut Vec<Action>) {
        if !self.wanted {
            return self.ended(out);
        }
        match (self.target, self.reason.clone()) {
            // The way back to the last good version is not a repetition: no pause.
            (Target::Candidate, Some(_)) => self.spawn(at, Target::Committed, out),
            (_, reason) => {
                if let Some(reason) = reason {
                    self.report(Outcome::Failed(reason), out);
                }
                self.phase = Phase::Backoff;
                if self.attempts == 0 {
                    self.attempts = 1;
                    self.spawn(at, Target::Committed, out);
                } else {
                    self.arm(at, Deadline::Backoff, out);
                    self.attempts = self.attempts.saturating_add(1).min(10);
                }
            }
        }
    }

    /// No process is to follow. One that was replaced may still be on its way out.
    fn ended(&mut self, out: &mut Vec<Action>) {
        match self.retiree {
            Some(_) => self.phase = Phase::Stopping,
            None => self.stopped(out),
        }
    }

    pub(super) fn stopped(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Stopped;
        out.push(Action::CloseListeners);
        self.report(Outcome::Stopped, out);
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
            // What is on the disk decides; the answer is on its way.
            Phase::Committing => {
                if was == Successor::Ready {
                    self.steer_back(out);
                }
                self.reason.get_or_insert(Reason::SuccessorExited(exit));
            }
            // The incumbent is asked already.
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
        self.incumbent = Incumbent::Absent;
        match self.phase {
            Phase::Serving if self.is_on_probation() => {
                self.take_back(at, Reason::Probation(format!("it {exit}")), out)
            }
            Phase::Serving => {
                self.note_crash(at);
                self.target = Target::Committed;
                self.nobody_serves(at, out);
            }
            // The successor goes forward; nothing is to be waited for any more.
            Phase::Draining | Phase::Sealing => self.begin(at, out),
            Phase::Resuming if self.successor == Successor::Parked => {
                self.reason = None;
                self.ends_at = at.now.saturating_add(self.policy.deadline_ms);
                self.begin(at, out);
            }
            Phase::Resuming => self.reaped(at, out),
            // Whoever comes from now on waits for the successor, not for the dead.
            Phase::Greeting | Phase::Warming | Phase::Beginning | Phase::Probing => self.steer_forward(out),
            Phase::Canary => self.commit(out),
            Phase::Recovering
            | Phase::Committing
            | Phase::Reaping
            | Phase::Reverting
            | Phase::Stopped
            | Phase::Backoff
            | Phase::Stopping => {}
        }
    }

    /// The incumbent serves again, asked or by its lease.
    pub(super) fn resumed(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.incumbent = Incumbent::Whole;
        match (self.phase, self.successor) {
            (Phase::Resuming, Successor::Absent) => self.reaped(at, out),
            (Phase::Resuming, _) => self.dismiss(at, out),
            (Phase::Reaping, _) => {}
            (_, _) => self.fail(at, Reason::LeaseEnded, out),
        }
    }

    /// One that was taken for frozen answers. Who serves does not say so again.
    pub(super) fn adopted_late(&mut self, at: Moment, stage: Stage, out: &mut Vec<Action>) {
        match (stage, self.phase) {
            (Stage::Serving, Phase::Committing) => self.incumbent = Incumbent::Whole,
            (Stage::Serving, _) => self.resumed(at, out),
            (Stage::Working | Stage::Waiting | Stage::Leaving, _) => {}
        }
    }

    pub(super) fn hung_up(&mut self, at: Moment, party: Party, out: &mut Vec<Action>) {
        match (party, self.phase) {
            (Party::Successor, Phase::Reaping | Phase::Committing) => {}
            (Party::Successor, _) => self.fail(at, Reason::HungUp(party), out),
            (Party::Incumbent, _) if self.incumbent == Incumbent::Touched => self.end_incumbent(out),
            (Party::Incumbent, _) => {
                self.mute();
                self.take_back(
                    at,
                    Reason::Probation(String::from("it closed its channel to the supervisor")),
                    out,
                );
            }
        }
    }

    pub(super) fn broke(&mut self, at: Moment, party: Party, what: String, out: &mut Vec<Action>) {
        match (party, self.phase) {
            (Party::Successor, Phase::Reaping) => {}
            (Party::Successor, Phase::Committing) => {
                // No more trusted; what is on the disk decides, and the answer is on its way.
                self.successor = Successor::Begun;
                self.steer_back(out);
                self.reason.get_or_insert(Reason::Broke { party, what });
                out.push(Action::KillSuccessor);
            }
            (Party::Successor, _) => self.fail(at, Reason::Broke { party, what }, out),
            (Party::Incumbent, Phase::Draining | Phase::Sealing) => {
                self.fail(at, Reason::Broke { party, what }, out)
            }
            (Party::Incumbent, _) if self.incumbent == Incumbent::Touched => self.end_incumbent(out),
            (Party::Incumbent, _) => {
                out.push(Action::HangUpIncumbent);
                self.mute();
                self.take_back(at, Reason::Probation(format!("it broke the protocol: {what}")), out);
            }
        }
    }

    /// It can be told nothing and has given up something: only its end makes things clear.
    fn end_incumbent(&mut self, out: &mut Vec<Action>) {
        match self.phase {
            // The successor serves; whatever becomes of the other one is not waited for.
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

    fn mute(&mut self) {
        if self.incumbent == Incumbent::Whole {
            self.incumbent = Incumbent::Mute;
        }
    }

    pub(super) fn durable(&mut self, at: Moment, out: &mut Vec<Action>) {
        match (self.phase, self.successor) {
            (Phase::Committing, Successor::Ready) => self.committed(at, out),
            // The commit is a fact, but its process is lost and nobody was told.
            (Phase::Committing, successor) => {
                self.undoing = Undoing::IfServed;
                match successor {
                    Successor::Absent => self.reaped(at, out),
                    _ => self.reap(at, out),
                }
            }
            (Phase::Reverting, _) => {
                self.undoing = Undoing::None;
                self.reaped(at, out);
            }
            (_, _) => {}
        }
    }

    /// New connections go to the successor since it is ready; it is not to have them any more.
    pub(super) fn steer_back(&self, out: &mut Vec<Action>) {
        if self.mode == Mode::Overlap && self.incumbent != Incumbent::Absent {
            out.push(Action::SteerToIncumbent);
        }
    }

    pub(super) fn not_durable(&mut self, at: Moment, why: String, out: &mut Vec<Action>) {
        match (self.phase, self.incumbent) {
            // The only one that serves goes on serving; the next cold start is from the old binary.
            (Phase::Committing, Incumbent::Absent) if self.successor == Successor::Ready => {
                if self.target == Target::Candidate {
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
            (Phase::Reverting, Incumbent::Absent) => self.stand(at, out),
            (Phase::Reverting, _) => self.durable(at, out),
            (_, _) => {}
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Recovering => "recovering",
            Self::Stopped => "stopped",
            Self::Backoff => "backoff",
            Self::Greeting => "greeting",
            Self::Warming => "warming",
            Self::Draining => "draining",
            Self::Sealing => "sealing",
            Self::Beginning => "beginning",
            Self::Probing => "probing",
            Self::Canary => "canary",
            Self::Committing => "committing",
            Self::Reaping => "reaping",
            Self::Resuming => "resuming",
            Self::Reverting => "reverting",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
        })
    }
}
