//! What can happen to a supervisor.

use alloc::string::String;

use super::Target;
use crate::deadline::{Deadline, Millis};
use crate::ids::HandoffId;
use crate::message::FromService;
use crate::reason::{Exit, Role};

/// What is handed to each step: the time, and an id that was never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Moment {
    /// Milliseconds on a monotonic clock.
    pub now: Millis,
    /// The id of the next handoff, if this step begins one.
    pub next_id: HandoffId,
}

/// What somebody asks of the service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    /// Let it run.
    Start,
    /// Let it end, in order.
    Stop,
    /// Replace its process.
    Upgrade {
        /// From which binary.
        target: Target,
        /// Instead of [`Policy::deadline_ms`](crate::deadline::Policy::deadline_ms).
        deadline_ms: Option<u64>,
        /// Instead of [`Policy::drain_grace_ms`](crate::deadline::Policy::drain_grace_ms).
        drain_grace_ms: Option<u64>,
    },
    /// Give up the upgrade or start that is under way.
    Cancel,
}

/// What can happen to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// Somebody asks.
    Request(Request),
    /// The successor could not be started.
    SpawnFailed(String),
    /// The successor sent a message.
    FromSuccessor(HandoffId, FromService),
    /// The incumbent sent a message.
    FromIncumbent(HandoffId, FromService),
    /// The outgoing process sent a message.
    FromOutgoing(HandoffId, FromService),
    /// A role closed its channel.
    HungUp(Role),
    /// A role sent something that is not a message.
    Garbage(Role, String),
    /// The successor is gone, and was waited for.
    SuccessorGone(Exit),
    /// The incumbent is gone, and was waited for.
    IncumbentGone(Exit),
    /// The outgoing process is gone, and was waited for.
    OutgoingGone,
    /// The outgoing process closed its channel, or sent something that is not a message.
    OutgoingUnheard,
    /// Nothing waits for the outgoing process of this handoff, and nothing can be on its way to it.
    OutgoingQuiet(HandoffId),
    /// The probe of the successor of this handoff passed, or why it did not.
    Probed(HandoffId, Result<(), String>),
    /// The process of this handoff is not well, and why: see [`Supervisor::watched`](super::Supervisor::watched).
    Condemned(HandoffId, String),
    /// What was to be recorded durably is on the disk.
    Durable,
    /// It is not, and the journal takes no more.
    NotDurable(String),
    /// A deadline passed.
    Deadline(Deadline),
    /// A deadline passed, and the process that is silent ([`Supervisor::silent_at`](super::Supervisor::silent_at)) could go on
    /// if it got a processor, or what it wants from the disk.
    Starved(Deadline),
}
