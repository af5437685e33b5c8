//! What a supervisor finds when it starts.

use crate::deadline::Millis;
use crate::ids::HandoffId;
use crate::reason::Exit;
use crate::recovery::{LastHandoff, Observation};

/// What exists when a supervisor starts. Each process is [`Observation::Gone`], can be [`Observation::Asked`], or is
/// [`Observation::Unreachable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Legacy {
    /// Whether the service is to run.
    pub wanted: bool,
    /// What the journal says about the last handoff.
    pub last_handoff: LastHandoff,
    /// The handoff in progress, or an unused id. All processes belong to it from now on.
    pub handoff: HandoffId,
    /// Whether its end must be reported because a user requested it.
    pub under_way: bool,
    /// The rest of its time, if known. Milliseconds.
    pub left_ms: Option<Millis>,
    /// How the process that served has ended meanwhile, if it has, and if it did so by itself.
    pub died: Option<Exit>,
    /// The process that served before it.
    pub incumbent: Observation,
    /// The successor of that handoff.
    pub successor: Observation,
    /// A process that was replaced earlier.
    pub outgoing: Observation,
}
