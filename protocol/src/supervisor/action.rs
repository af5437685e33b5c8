//! The actions of a supervisor.

use serde::{Deserialize, Serialize};

use super::{Phase, Target};
use crate::deadline::{Deadline, Millis};
use crate::ids::HandoffId;
use crate::message::ToService;
use crate::reason::{Exit, Reason};
use crate::recovery::Decision;
use crate::restart::Rest;

/// A fact that must be durable before anything depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DurableFact {
    /// The successor of this handoff is the current generation.
    Commit,
    /// The incumbent is current again.
    Revert,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The service runs.
    Started,
    /// The new process serves, and the old one is gone.
    Committed,
    /// The old version serves.
    RolledBack(Reason),
    /// The service does not run; if it is wanted, it is restarted. With [`Reason::Journal`] it runs in the requested
    /// version, because no other process could serve; but the next start uses the old binary.
    Failed(Reason),
    /// The service has ended.
    Stopped,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Another operation is in progress.
    #[error("busy")]
    Busy(Phase),
    /// The last replaced process has not left yet.
    #[error("the process that was replaced is still leaving")]
    Retiring,
    /// There is nothing to upgrade or stop.
    #[error("not running")]
    NotRunning,
    /// It runs already.
    #[error("already running")]
    AlreadyRunning,
    /// The serving process cannot be reached.
    #[error(
        "the process that serves has closed its channel, so it cannot be drained; stop and start the service"
    )]
    Unreachable,
    /// There is nothing to cancel, or it is too late.
    #[error("nothing that can be cancelled is under way")]
    NothingToCancel,
    /// The serving process is on probation.
    #[error("the new process is on probation")]
    Probation,
}

/// Actions of the supervisor, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// The service is not started again, and is not to run any more. Its last process ended like this, if one served.
    Rest(Rest, Option<Exit>),
    /// Record the intent, then start a successor.
    Spawn(HandoffId, Target),
    /// Answer `Hello` with the agreed version, and send the listeners.
    Welcome(HandoffId, u16),
    /// Send to the successor.
    ToSuccessor(HandoffId, ToService),
    /// Send to the incumbent.
    ToIncumbent(HandoffId, ToService),
    /// Send to the outgoing process.
    ToOutgoing(HandoffId, ToService),
    /// Report once nothing waits for the outgoing process of this handoff, and nothing can be in transit to it.
    AwaitQuiet(HandoffId),
    /// Send SIGTERM to the successor.
    TerminateSuccessor,
    /// Send SIGKILL to the successor.
    KillSuccessor,
    /// Send SIGTERM to the incumbent.
    TerminateIncumbent,
    /// Send SIGKILL to the incumbent.
    KillIncumbent,
    /// Send SIGTERM to the outgoing process.
    TerminateOutgoing,
    /// Send SIGKILL to the outgoing process.
    KillOutgoing,
    /// Close the incumbent's channel.
    HangUpIncumbent,
    /// Probe from outside whether the successor serves, with retries for the given milliseconds.
    /// [`Event::Probed`](super::Event::Probed) reports the result.
    Probe(HandoffId, Millis),
    /// Steer this share of new connections, in permille, to the successor, and the rest to the incumbent.
    SteerShare(u16),
    /// Steer all new connections to the successor.
    SteerToSuccessor,
    /// Steer all new connections to the incumbent.
    SteerToIncumbent,
    /// Record durably. [`Event::Durable`](super::Event::Durable) or [`Event::NotDurable`](super::Event::NotDurable)
    /// reports the result.
    RecordDurably(HandoffId, DurableFact),
    /// The disk has not answered in time: treat the pending record as not durable, whatever its later result, and
    /// refuse further journal writes.
    GiveUpRecord,
    /// The successor becomes the incumbent, and the incumbent, if any, the outgoing process.
    Promote,
    /// The incumbent becomes the outgoing process.
    Retire,
    /// The outgoing process becomes the incumbent again. The incumbent, if any, becomes the successor or the outgoing
    /// process.
    Reinstate {
        /// Whether it becomes the outgoing process.
        retires: bool,
    },
    /// Nothing uses the outgoing process's listeners anymore.
    RetireSlot,
    /// Stop listening.
    CloseListeners,
    /// Start or restart a timer.
    Arm(Deadline, Millis),
    /// Stop a timer.
    Disarm(Deadline),
    /// The current handoff fails for this reason. For the log and the status, even if no request waits for it.
    Failed(Reason),
    /// The current request has ended.
    Report(Outcome),
    /// The request is refused.
    Refuse(Refusal),
    /// Recovery has decided how to treat the processes of an earlier supervisor.
    Recovered(Decision),
}
