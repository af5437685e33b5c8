//! What a supervisor does.

use serde::{Deserialize, Serialize};

use super::{Phase, Target};
use crate::deadline::{Deadline, Millis};
use crate::ids::HandoffId;
use crate::message::ToService;
use crate::reason::Reason;
use crate::recovery::Decision;

/// A fact that must be durable before anything depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DurableFact {
    /// The successor of this handoff is the current generation.
    Commit,
    /// The incumbent is it again.
    Revert,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The service runs.
    Started,
    /// The new process serves, the old one is gone.
    Committed,
    /// The old version serves.
    RolledBack(Reason),
    /// The service does not run; it is tried again if it is wanted. With [`Reason::Journal`] it runs, in the version that
    /// was asked for, as nobody else could: but the next start is from the old binary.
    Failed(Reason),
    /// The service has ended.
    Stopped,
}

/// Why a request is not even begun.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Something else is under way.
    #[error("busy")]
    Busy(Phase),
    /// The last process that was replaced has not left yet.
    #[error("the process that was replaced is still leaving")]
    Retiring,
    /// There is nothing to upgrade or stop.
    #[error("not running")]
    NotRunning,
    /// It runs already.
    #[error("already running")]
    AlreadyRunning,
    /// The process that serves cannot be talked to.
    #[error(
        "the process that serves has closed its channel, so it cannot be drained; stop and start the service"
    )]
    Unreachable,
    /// There is nothing to cancel, or it is too late.
    #[error("nothing that can be cancelled is under way")]
    NothingToCancel,
    /// The process that serves is on probation.
    #[error("the new process is on probation")]
    Probation,
}

/// What the supervisor does. In the order given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Record the intent, then start a successor.
    Spawn(HandoffId, Target),
    /// Answer `Hello` with the agreed version, and send the listeners.
    Welcome(HandoffId, u16),
    /// Send.
    ToSuccessor(HandoffId, ToService),
    /// Send.
    ToIncumbent(HandoffId, ToService),
    /// Send.
    ToOutgoing(HandoffId, ToService),
    /// Tell as soon as nothing waits for the outgoing process of this handoff, and nothing can be on its way to it.
    AwaitQuiet(HandoffId),
    /// SIGTERM.
    TerminateSuccessor,
    /// SIGKILL.
    KillSuccessor,
    /// SIGTERM.
    TerminateIncumbent,
    /// SIGKILL.
    KillIncumbent,
    /// SIGTERM.
    TerminateOutgoing,
    /// SIGKILL.
    KillOutgoing,
    /// Close the channel.
    HangUpIncumbent,
    /// Look from outside whether the successor serves; answered by [`Event::Probed`](super::Event::Probed).
    /// It may be tried for so many milliseconds.
    Probe(HandoffId, Millis),
    /// So many of 1,000 new connections go to the successor from now on, the others to the incumbent.
    SteerShare(u16),
    /// New connections go to the successor from now on, all of them.
    SteerToSuccessor,
    /// New connections go to the incumbent again, all of them.
    SteerToIncumbent,
    /// Record durably; answered by [`Event::Durable`](super::Event::Durable) or
    /// [`Event::NotDurable`](super::Event::NotDurable).
    RecordDurably(HandoffId, DurableFact),
    /// The disk has not answered in time: the record that is on its way counts as not durable, whatever is answered later, and the
    /// journal takes no more.
    GiveUpRecord,
    /// The successor is the incumbent, and the incumbent, if any, the retiree.
    Promote,
    /// The incumbent is the outgoing process.
    Retire,
    /// The outgoing process is the incumbent again. The incumbent, if any, is the successor again, or else the outgoing process.
    Reinstate {
        /// Whether it is the outgoing process.
        retires: bool,
    },
    /// Nobody uses the listeners of the outgoing process any more.
    RetireSlot,
    /// Stop listening.
    CloseListeners,
    /// Start a timer anew.
    Arm(Deadline, Millis),
    /// Stop a timer.
    Disarm(Deadline),
    /// The handoff under way fails, and why. Whether somebody waits for it or not: for the log and the status.
    Failed(Reason),
    /// The request that is under way ended.
    Report(Outcome),
    /// The request is refused.
    Refuse(Refusal),
    /// It is known what an earlier supervisor has left, and this is done about it.
    Recovered(Decision),
}
