//! The watched process: it is checked repeatedly from outside, and condemned if a check fails.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Moment, Phase, Supervisor};
use crate::ids::HandoffId;
use crate::reason::Reason;

/// Why a process is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WatchReason {
    /// It is a successor with a share of the new connections, in this canary step, counted from 1.
    Share(u8),
    /// It is committed, and the previous version stands by.
    Probation,
    /// It serves, and only the supervisor would detect that it stops serving.
    Liveness,
}

impl Supervisor {
    /// The process to watch, by its handoff, while this returns it. Report a failure as
    /// [`Event::Condemned`](super::Event::Condemned).
    pub fn watched(&self) -> Option<(HandoffId, WatchReason)> {
        let watch = match self.phase {
            Phase::Canary => WatchReason::Share(self.handoff.shares),
            Phase::Serving if self.is_on_probation() => WatchReason::Probation,
            Phase::Serving if self.policy.liveness => WatchReason::Liveness,
            Phase::Serving
            | Phase::Recovering
            | Phase::Stopped
            | Phase::Backoff
            | Phase::Greeting
            | Phase::Warming
            | Phase::Draining
            | Phase::Sealing
            | Phase::Beginning
            | Phase::Probing
            | Phase::Committing
            | Phase::Reaping
            | Phase::Resuming
            | Phase::Reverting
            | Phase::Stopping => return None,
        };
        Some((self.handoff.id, watch))
    }

    /// The process of this handoff failed its watch. Ignored if it is no longer watched.
    pub(super) fn condemned(&mut self, at: Moment, id: HandoffId, why: String, out: &mut Vec<Action>) {
        let Some((_, watch)) = self.watched().filter(|(watched, _)| *watched == id) else { return };
        match watch {
            WatchReason::Share(_) => self.fail(at, Reason::Canary(why), out),
            WatchReason::Probation => self.take_back(at, Reason::Probation(why), out),
            // Its end is handled like any other.
            WatchReason::Liveness => out.push(Action::KillIncumbent),
        }
    }
}
