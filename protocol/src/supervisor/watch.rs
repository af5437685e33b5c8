//! The process that is watched: it is looked at again and again from outside, and condemned if it is not well.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Moment, Phase, Supervisor};
use crate::ids::HandoffId;
use crate::reason::Reason;

/// What a process is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Watch {
    /// It is a successor that serves a share of the new connections: in this step of the canary, from 1 on.
    Share(u8),
    /// It is committed, and the version before stands by.
    Probation,
    /// It serves, and nobody but the supervisor would find out that it does not.
    Liveness,
}

impl Supervisor {
    /// The process that is to be watched, by its handoff, for as long as this names it. A verdict comes as
    /// [`Event::Condemned`](super::Event::Condemned).
    pub fn watched(&self) -> Option<(HandoffId, Watch)> {
        let watch = match self.phase {
            Phase::Canary => Watch::Share(self.handoff.shares),
            Phase::Serving if self.is_on_probation() => Watch::Probation,
            Phase::Serving if self.policy.liveness => Watch::Liveness,
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

    /// The process of this handoff is not well. One that is not watched any more is left alone.
    pub(super) fn condemned(&mut self, at: Moment, id: HandoffId, why: String, out: &mut Vec<Action>) {
        let Some((_, watch)) = self.watched().filter(|(watched, _)| *watched == id) else { return };
        match watch {
            Watch::Share(_) => self.fail(at, Reason::Canary(why), out),
            Watch::Probation => self.take_back(at, Reason::Probation(why), out),
            // Its end is acted upon like any other.
            Watch::Liveness => out.push(Action::KillIncumbent),
        }
    }
}
