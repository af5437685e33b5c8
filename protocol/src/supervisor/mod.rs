//! The supervisor of one service, as a table of phases and events.
//!
//! Three processes can exist at once: the *incumbent* serves, the *successor* is to take over, and the *retiree* was
//! replaced or stopped and is on its way out. What must hold, whatever they do:
//! - the commit is told only after it is durable (a disk that fails does not end the only process that serves);
//! - a successor is told to begin (exclusive mode) only when the incumbent is sealed or gone;
//! - a parked successor is kept until the incumbent is known to serve again: if it cannot, the successor goes forward;
//! - a successor that was told to begin is killed and reaped before the incumbent is asked to resume;
//! - an incumbent is killed only when it is silent, mute, condemned, or failed to resume;
//! - with a probe, a commit is recorded, and connections are steered away from an incumbent, only after it has passed;
//! - a share of the connections is taken back before its successor is sent away;
//! - who was replaced and stands by is kept until the probation is over;
//! - every request is reported once, and only when a process serves (or none is wanted).
//!
//! ```text
//!  exclusive: Greeting ▶ Warming ▶ Draining ▶ Sealing ▶ Beginning ▶ (Probing ▶) Committing ▶ Serving (+ retiree leaves)
//!  overlap:   Greeting ▶ Warming ▶ Beginning ▶ (Probing ▶) Committing (steered) ▶ Serving (+ retiree drains, seals, leaves)
//!  canary:    … (Probing ▶) Canary ▶ (Probing ▶) Canary ▶ (Probing ▶) Committing …, a share more with each step
//!  cold:      Greeting ▶ Warming ▶ Beginning ▶ (Probing ▶) Committing ▶ Serving
//!  failure:   any of these ▶ Reaping (the successor) ▶ Resuming (the incumbent) ▶ Serving
//!                          ▶ Resuming (successor parked) ▶ Reaping ▶ Serving, or ▶ Beginning if the incumbent cannot
//!  probation: Serving (+ retiree stands by) ▶ Serving (+ retiree leaves)
//!             not passed, exclusive: ▶ Reaping (the new process) ▶ Resuming (the old one) ▶ Reverting ▶ Serving
//!             not passed, overlap:   ▶ Reverting (steered back) ▶ Serving (+ the new process is the retiree, and leaves)
//!  another supervisor was here: Recovering ▶ Serving, ▶ Committing, ▶ Reaping or ▶ Greeting, as the table of
//!             [`recovery`](crate::recovery) says
//! ```

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::deadline::{Millis, Policy};
use crate::ids::HandoffId;
use crate::message::Mode;
use crate::reason::Reason;

mod action;
mod canary;
mod event;
mod fail;
mod probation;
mod recover;
mod retire;
mod step;
mod timers;
mod watch;

pub use action::{Action, Lasting, Outcome, Refusal};
pub use event::{Event, Moment, Request};
use probation::Undoing;
pub use recover::Left;
use recover::Recovery;
pub use watch::Watch;

/// What the service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Processes of an earlier supervisor are there; what they do is being found out.
    Recovering,
    /// No process runs, and none should.
    Stopped,
    /// No process runs; the next start waits.
    Backoff,
    /// The successor was spawned and must say `Hello`.
    Greeting,
    /// The successor starts up.
    Warming,
    /// The incumbent waits for long requests, and still accepts.
    Draining,
    /// The incumbent finishes and releases.
    Sealing,
    /// The successor takes over.
    Beginning,
    /// The successor says that it serves, and the supervisor looks for itself.
    Probing,
    /// The successor serves a share of the new connections.
    Canary,
    /// The commit is being made durable.
    Committing,
    /// The successor failed or is not wanted; it must be gone before anything else happens.
    Reaping,
    /// The incumbent is to serve again.
    Resuming,
    /// The return to the old version, after a commit that did not last, is being made durable.
    Reverting,
    /// The incumbent serves; no handoff is under way.
    Serving,
    /// The service is being stopped; its process is the retiree.
    Stopping,
}

/// Which binary a successor is started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// The one of the current generation, or of the service file if there is none yet.
    Committed,
    /// The one that was asked for.
    Candidate,
}

/// What is known of the incumbent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Incumbent {
    /// There is none.
    Absent,
    /// It serves; nothing was taken from it, or it has it back.
    Whole,
    /// It was told to drain or seal.
    Touched,
    /// It serves, but its channel is unusable.
    Mute,
}

/// What is known of the successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Successor {
    /// There is none.
    Absent,
    /// It has not said `Prepared`.
    Starting,
    /// It waits for `Begin`.
    Parked,
    /// It was told to begin.
    Begun,
    /// It said `Ready`.
    Ready,
}

/// How far the retiree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leaving {
    /// It was replaced and told nothing: it takes over again if the process that replaced it does not do well.
    Standby {
        /// Whether it serves: in exclusive mode it waits for the data lock.
        serves: bool,
    },
    /// It was left by another supervisor, and was asked what it is doing.
    Asked,
    /// It was told to drain.
    Draining,
    /// It was told to seal.
    Sealing {
        /// Whether it may cut what is still running: its grace is over.
        cut: bool,
    },
    /// It was told to leave.
    Exiting,
    /// It was sent SIGTERM.
    Terminating,
    /// It was sent SIGKILL.
    Killed,
}

/// The process that was replaced or stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Retiree {
    /// How far it is.
    pub step: Leaving,
    /// The handoff that it leaves in.
    pub handoff: HandoffId,
    /// Whether the end of it ends an upgrade that somebody waits for.
    pub reports: bool,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Supervisor {
    mode: Mode,
    policy: Policy,
    phase: Phase,
    /// Whether the service is to run.
    wanted: bool,
    /// The handoff under way, or the last one.
    handoff: HandoffId,
    target: Target,
    /// End of the whole upgrade.
    ends_at: Millis,
    drain_grace_ms: Millis,
    incumbent: Incumbent,
    successor: Successor,
    retiree: Option<Retiree>,
    /// Answers that the incumbent still owes, since it was asked and then asked otherwise.
    owes: Owes,
    /// Why the handoff under way is being undone.
    reason: Option<Reason>,
    /// Whether somebody waits for the end of what is under way.
    asked: bool,
    /// What becomes of a commit that stands although its process is lost.
    undoing: Undoing,
    /// Whether the commit that somebody waits for stands although its process has died.
    stands: bool,
    /// The successor served without being told that it is committed, and takes itself for the incumbent.
    self_made: bool,
    /// How many steps of the canary the successor was given.
    shares: u8,
    /// For how long the process that is replaced stands by.
    probation_ms: Millis,
    /// What is known of the processes of an earlier supervisor, until it is known what to do about them.
    recovery: Option<Recovery>,
    /// Failed starts in a row.
    attempts: u8,
    serving_since: Millis,
}

/// Answers that are still to come from the incumbent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Owes {
    drained: bool,
    sealed: bool,
}

impl Supervisor {
    /// A service that does not run.
    pub fn new(mode: Mode, policy: Policy) -> Self {
        Self {
            mode,
            phase: Phase::Stopped,
            wanted: false,
            handoff: HandoffId::NIL,
            target: Target::Committed,
            ends_at: 0,
            drain_grace_ms: policy.drain_grace_ms,
            policy,
            incumbent: Incumbent::Absent,
            successor: Successor::Absent,
            retiree: None,
            owes: Owes::default(),
            reason: None,
            asked: false,
            undoing: Undoing::None,
            stands: false,
            self_made: false,
            shares: 0,
            probation_ms: 0,
            recovery: None,
            attempts: 0,
            serving_since: 0,
        }
    }

    /// What the service is doing.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What is known of the incumbent.
    pub fn incumbent(&self) -> Incumbent {
        self.incumbent
    }

    /// What is known of the successor.
    pub fn successor(&self) -> Successor {
        self.successor
    }

    /// The process that is on its way out.
    pub fn retiree(&self) -> Option<Retiree> {
        self.retiree
    }

    /// Whether the service is to run.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// The handoff under way, or the last one.
    pub fn handoff(&self) -> HandoffId {
        self.handoff
    }

    /// Failed starts in a row.
    pub fn attempts(&self) -> u8 {
        self.attempts
    }

    /// Takes over new times from the service file. They count from the next handoff on.
    pub fn set_policy(&mut self, mode: Mode, policy: Policy) {
        self.mode = mode;
        self.policy = policy;
    }

    /// Takes one event and returns what to do.
    pub fn step(&mut self, at: Moment, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.dispatch(at, event, &mut out);
        out
    }
}
