//! Invariants between two steps.

use super::{Incumbent, LostCommit, Phase, Successor, Supervisor};
use crate::message::Mode;

impl Supervisor {
    /// Free where debug assertions are off.
    pub(super) fn check(&self) {
        let Self { phase, incumbent, successor, .. } = *self;
        debug_assert_eq!(
            self.recovery.is_some(),
            phase == Phase::Recovering,
            "recovery facts exist exactly until the decision"
        );
        let incumbents: &[Incumbent] = match phase {
            Phase::Draining | Phase::Sealing => &[Incumbent::Quiesced],
            Phase::Serving => &[Incumbent::Active, Incumbent::Unreachable],
            Phase::Stopped | Phase::Backoff | Phase::Stopping => &[Incumbent::Absent],
            // In exclusive mode a successor begins only when the incumbent is sealed or gone.
            Phase::Beginning if self.mode == Mode::Exclusive => &[Incumbent::Quiesced, Incumbent::Absent],
            Phase::Recovering
            | Phase::Greeting
            | Phase::Warming
            | Phase::Beginning
            | Phase::Probing
            | Phase::Canary
            | Phase::Committing
            | Phase::Reaping
            | Phase::Resuming
            | Phase::Reverting => {
                &[Incumbent::Absent, Incumbent::Active, Incumbent::Quiesced, Incumbent::Unreachable]
            }
        };
        debug_assert!(incumbents.contains(&incumbent), "{incumbent:?} while {phase}");
        let successors: &[Successor] = match phase {
            Phase::Greeting | Phase::Warming => &[Successor::Starting],
            // A parked successor is kept until the incumbent is known to serve again.
            Phase::Draining | Phase::Sealing => &[Successor::Parked],
            Phase::Beginning => &[Successor::Begun],
            Phase::Probing | Phase::Canary => &[Successor::Ready],
            Phase::Committing => &[Successor::Ready, Successor::Begun, Successor::Absent],
            // A successor that began is gone before the incumbent is asked to resume.
            Phase::Resuming => &[Successor::Parked, Successor::Absent],
            Phase::Reaping => &[
                Successor::Starting,
                Successor::Parked,
                Successor::Begun,
                Successor::Ready,
                Successor::Dismissed,
                Successor::Terminating,
            ],
            Phase::Recovering
            | Phase::Stopped
            | Phase::Backoff
            | Phase::Reverting
            | Phase::Serving
            | Phase::Stopping => &[Successor::Absent],
        };
        debug_assert!(successors.contains(&successor), "{successor:?} while {phase}");
        debug_assert!(
            self.handoff.shares == 0 || matches!(phase, Phase::Canary | Phase::Probing),
            "a share of the connections is taken back before its successor is sent away"
        );
        debug_assert!(
            self.handoff.lost_commit == LostCommit::None
                || matches!(phase, Phase::Reaping | Phase::Resuming | Phase::Reverting),
            "a lost commit is undone, or stands"
        );
    }
}
