//! The probation: after the commit, the replaced process stands by. In exclusive mode it stays sealed and waits for the
//! data lock; in overlap mode it serves its existing clients. If the new process ends, becomes unreachable or is
//! condemned, the old one takes over again.

use alloc::vec::Vec;

use super::{
    Action, Incumbent, Leaving, Moment, Outcome, Outgoing, Phase, ProvisionalOutcome, Supervisor, Target,
};
use crate::deadline::Deadline;
use crate::message::Mode;
use crate::reason::Reason;

/// What happens to a durable commit whose process is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LostCommit {
    /// The process is not lost.
    None,
    /// It is undone if the previous process serves; otherwise its binary is started again.
    RevertIfServed,
    /// It is undone: the version is known to be bad.
    Revert,
}

impl Supervisor {
    /// Whether a replaced process stands by for the serving one.
    pub fn is_on_probation(&self) -> bool {
        self.phase == Phase::Serving && self.standby().is_some()
    }

    /// Number of canary steps so far; 0 before the first and after the last.
    pub fn shares(&self) -> u8 {
        self.handoff.shares
    }

    /// Whether the process that stands by serves; `None` if there is none.
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

    /// How a replaced process begins to leave.
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

    /// Ends the probation because it passed or was ended early: the old process leaves as without a probation.
    pub(super) fn end_probation(&mut self, at: Moment, out: &mut Vec<Action>) {
        let Some(serves) = self.standby() else { return };
        let replaced = if serves { Incumbent::Active } else { Incumbent::Quiesced };
        self.handoff.probation_ms = 0;
        out.push(Action::Disarm(Deadline::Probation));
        let step = self.first_step(replaced);
        self.retire_on(at, step, self.handoff.drain_grace_ms, out);
    }

    /// The old process is unreachable, so no process stands by.
    pub(super) fn outgoing_unheard(&mut self, at: Moment, out: &mut Vec<Action>) {
        if self.standby().is_some() {
            self.handoff.probation_ms = 0;
            out.push(Action::Disarm(Deadline::Probation));
            self.retire_on(at, Leaving::Terminating { ends: true }, self.handoff.drain_grace_ms, out);
        }
    }

    /// The old process takes over again. In exclusive mode the new process ends first, because it holds the lock. It has
    /// acknowledged writes of its clients, so it gets the time to save them, whatever it is blamed for.
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
        self.answer.outcome = ProvisionalOutcome::Open;
        self.blame(why, out);
        out.push(Action::Reinstate { retires: self.mode == Mode::Overlap });
        match (self.mode, replaced) {
            (Mode::Exclusive, Incumbent::Absent) => self.reaped(at, out),
            (Mode::Exclusive, Incumbent::Active | Incumbent::Quiesced | Incumbent::Unreachable) => {
                // A shim that gets SIGTERM ends its program in order, and does not drain: what the program serves, it
                // serves badly. A server that embeds the library saves its data in its seal, for which it gets `Abort`.
                // After a cancellation, which is not its fault, either may finish what it has accepted.
                match replaced {
                    Incumbent::Unreachable => self.terminate(at, out),
                    _ if is_fault && self.policy.seal_ends => self.terminate(at, out),
                    _ => self.dismiss(at, out),
                }
            }
            (Mode::Overlap, replaced) => {
                out.push(Action::SteerToIncumbent);
                self.reaped(at, out);
                self.retire_replacement(at, replaced, out);
            }
        }
    }

    /// The new process drains and leaves, under a new id: its state has no recipient, because the old process does not
    /// know the handoff that is undone.
    fn retire_replacement(&mut self, at: Moment, replaced: Incumbent, out: &mut Vec<Action>) {
        let step = match replaced {
            Incumbent::Absent => return,
            Incumbent::Unreachable => Leaving::Terminating { ends: true },
            Incumbent::Active | Incumbent::Quiesced => Leaving::Draining,
        };
        self.outgoing = Some(Outgoing { step, handoff: at.next_id, reports: false });
        self.request_end(at, self.handoff.drain_grace_ms, out);
    }

    /// The commit could not be undone, and no process serves: its binary is started.
    pub(super) fn uphold_commit(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.handoff.lost_commit = LostCommit::None;
        self.handoff.target = Target::Committed;
        self.answer.outcome = ProvisionalOutcome::CommitUpheld;
        self.restart_or_stop(at, None, out);
    }

    /// Ends an upgrade whose old process is gone.
    pub(super) fn conclude_upgrade(&mut self, out: &mut Vec<Action>) {
        self.answer.is_awaited = true;
        match (self.phase, self.incumbent) {
            (Phase::Serving, Incumbent::Active | Incumbent::Unreachable) => {
                self.report(Outcome::Committed, out)
            }
            // The new process has died in the meantime; the request is answered when another one serves.
            (_, _) => self.answer.uphold_commit(),
        }
    }
}
