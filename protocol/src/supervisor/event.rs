//! The events of a supervisor.

use alloc::string::String;

use super::Target;
use crate::deadline::{Deadline, Millis};
use crate::ids::HandoffId;
use crate::message::FromService;
use crate::reason::{Exit, Role};

/// Arguments of each step: the time, and an unused id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Moment {
    /// Milliseconds on a monotonic clock.
    pub now: Millis,
    /// The id of the next handoff, if this step begins one.
    pub next_id: HandoffId,
}

/// A request to the service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    /// Start it.
    Start,
    /// Drain, seal and stop it.
    Stop,
    /// Replace its process.
    Upgrade {
        /// The binary to start.
        target: Target,
        /// Overrides [`Policy::deadline_ms`](crate::deadline::Policy::deadline_ms).
        deadline_ms: Option<u64>,
        /// Overrides [`Policy::drain_grace_ms`](crate::deadline::Policy::drain_grace_ms).
        drain_grace_ms: Option<u64>,
    },
    /// Abort the current upgrade or start.
    Cancel,
}

/// An event of the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// A request arrived.
    Request(Request),
    /// The successor could not be started.
    SpawnFailed(String),
    /// The successor sent a message.
    FromSuccessor(HandoffId, FromService),
    /// The incumbent sent a message.
    FromIncumbent(HandoffId, FromService),
    /// The outgoing process sent a message.
    FromOutgoing(HandoffId, FromService),
    /// A process closed its channel.
    HungUp(Role),
    /// A process sent an invalid frame.
    Garbage(Role, String),
    /// The successor has exited and been reaped.
    SuccessorGone(Exit),
    /// The incumbent has exited and been reaped.
    IncumbentGone(Exit),
    /// The outgoing process has exited and been reaped.
    OutgoingGone,
    /// The outgoing process closed its channel or sent an invalid frame.
    OutgoingUnheard,
    /// Nothing waits for the outgoing process of this handoff, and nothing can be in transit to it.
    OutgoingQuiet(HandoffId),
    /// The result of probing the successor of this handoff.
    Probed(HandoffId, Result<(), String>),
    /// The process of this handoff failed its watch, and why: see [`Supervisor::watched`](super::Supervisor::watched).
    Condemned(HandoffId, String),
    /// The durable record is on disk.
    Durable,
    /// Recording failed, and the journal accepts no more writes.
    NotDurable(String),
    /// A deadline expired.
    Deadline(Deadline),
    /// A deadline expired, and the silent process ([`Supervisor::silent_at`](super::Supervisor::silent_at)) is starved:
    /// it needs only processor time or the disk to continue.
    Starved(Deadline),
}
