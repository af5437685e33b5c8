//! The probation: after the commit the process that was replaced stands by. In exclusive mode it stays sealed and waits for
//! the data lock, in overlap mode it serves whom it has. If the new process ends, cannot be talked to any more or is
//! condemned, the old one takes over again.

use alloc::vec::Vec;

use super::{
    Action, Incumbent, Leaving, Moment, Outcome, Outgoing, Phase, Successor, Supervisor, Target, Verdict,
};
use crate::deadline::Deadline;
use crate::message::Mode;
use crate::reason::Reason;

/// What becomes of a commit that stands although its process is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LostCommit {
    /// Nothing: it is not lost.
    None,
    /// It is undone if the process before it serves; else its binary is started.
    RevertIfServed,
    /// It is undone: the version is known to be bad.
    Revert,
}

impl Supervisor {
    /// Whether a process that was replaced stands by for the one that serves.
    pub fn is_on_probation(&self) -> bool {
        self.phase == Phase::Serving && self.standby().is_some()
    }

    /// How many steps of the canary the successor was given; 0 before the first and at the end of the last.
    pub fn shares(&self) -> u8 {
        self.handoff.shares
    }

    /// Whether the process that stands by serves, if there is one.
    fn standby(&self) -> Option<bool> {
        match self.outgoing.map(|outgoing| outgoing.step) {
            Some(Leaving::Standby { serves }) => Some(serves),
            Some(
                Leaving::Asked
                | Leaving::Draining
                | Leaving::Quieting { .. }
                | Leaving::Sealing { .. }
                | Leaving::Exiting { .. }
                | Leaving::Terminating { .. }
                | Leaving::Killed,
            )
            | None => None,
        }
    }

    /// How a process that was replaced begins to leave.
    pub(super) fn first_step(&self, replaced: Incumbent) -> Leaving {
        let serves = replaced == Incumbent::Active;
        match (self.mode, replaced) {
            (_, Incumbent::Unreachable) => Leaving::Terminating { ends: true },
            (Mode::Exclusive, _) if self.handoff.probation_ms > 0 => Leaving::Standby { serves },
            (Mode::Overlap, Incumbent::Active) if self.handoff.probation_ms > 0 => {
                Leaving::Standby { serves }
            }
            (Mode::Overlap, Incumbent::Active) => Leaving::Draining,
            (Mode::Exclusive | Mode::Overlap, _) => Leaving::Exiting { serves },
        }
    }

    /// The new process did well, or it is not to be waited for: the old one leaves as it would have without a probation.
    pub(super) fn end_probation(&mut self, at: Moment, out: &mut Vec<Action>) {
        let Some(serves) = self.standby() else { return };
        let replaced = if serves { Incumbent::Active } else { Incumbent::Quiesced };
        self.handoff.probation_ms = 0;
        out.push(Action::Disarm(Deadline::Probation));
        let step = self.first_step(replaced);
        self.retire_on(at, step, self.handoff.drain_grace_ms, out);
    }

    /// The old process can be told nothing any more, so nobody stands by.
    pub(super) fn outgoing_unheard(&mut self, at: Moment, out: &mut Vec<Action>) {
        if self.standby().is_some() {
            self.handoff.probation_ms = 0;
            out.push(Action::Disarm(Deadline::Probation));
            self.retire_on(at, Leaving::Terminating { ends: true }, self.handoff.drain_grace_ms, out);
        }
    }

    /// The old process takes over again. In exclusive mode the new one is killed first, if it lives: it holds the lock. One
    /// that is taken back for no fault of its own may finish what it has accepted.
    pub(super) fn take_back(&mut self, at: Moment, why: Reason, out: &mut Vec<Action>) {
        let (Some(serves), Some(standby)) = (self.standby(), self.outgoing) else { return };
        let replaced = self.incumbent;
        out.push(Action::Disarm(Deadline::Probation));
        self.answer.is_awaited |= standby.reports;
        self.handoff.lost_commit = LostCommit::Revert;
        self.handoff.target = Target::Candidate;
        self.outgoing = None;
        self.incumbent = if serves { Incumbent::Active } else { Incumbent::Quiesced };
        let is_fault = why != Reason::Cancelled;
        self.answer.verdict = Verdict::Open;
        self.blame(why, out);
        out.push(Action::Reinstate { retires: self.mode == Mode::Overlap });
        match (self.mode, replaced) {
            (Mode::Exclusive, Incumbent::Absent) => self.reaped(at, out),
            (Mode::Exclusive, Incumbent::Active | Incumbent::Quiesced | Incumbent::Unreachable) => {
                self.successor = Successor::Ready;
                if is_fault { self.reap(at, out) } else { self.dismiss(at, out) }
            }
            (Mode::Overlap, replaced) => {
                out.push(Action::SteerToIncumbent);
                self.reaped(at, out);
                self.send_back(at, replaced, out);
            }
        }
    }

    /// The new process drains and leaves, under an id of its own: what it hands over is for nobody, as the old process
    /// does not know of the handoff that is undone.
    fn send_back(&mut self, at: Moment, replaced: Incumbent, out: &mut Vec<Action>) {
        let step = match replaced {
            Incumbent::Absent => return,
            Incumbent::Unreachable => Leaving::Terminating { ends: true },
            Incumbent::Active | Incumbent::Quiesced => Leaving::Draining,
        };
        self.outgoing = Some(Outgoing { step, handoff: at.next_id, reports: false });
        self.tell_outgoing(at, self.handoff.drain_grace_ms, out);
    }

    /// The commit could not be undone, and nobody serves: its binary is started.
    pub(super) fn stand(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.handoff.lost_commit = LostCommit::None;
        self.handoff.target = Target::Committed;
        self.answer.verdict = Verdict::Stands;
        self.nobody_serves(at, out);
    }

    /// Ends an upgrade whose old process is gone.
    pub(super) fn conclude_upgrade(&mut self, out: &mut Vec<Action>) {
        self.answer.is_awaited = true;
        match (self.phase, self.incumbent) {
            (Phase::Serving, Incumbent::Active | Incumbent::Unreachable) => {
                self.report(Outcome::Committed, out)
            }
            // The new process has died meanwhile; whoever waits is told when another one serves.
            (_, _) => self.answer.stands(),
        }
    }
}
