//! The supervisor of one service, as a table of phases and events.
//!
//! Three processes can exist at once: the *incumbent* serves, the *successor* is to take over, and the *outgoing* was
//! replaced or stopped and is on its way out. What must hold, whatever they do:
//! - the commit is told only after it is durable (a disk that fails does not end the only process that serves);
//! - a successor is told to begin (exclusive mode) only when the incumbent is sealed or gone;
//! - a parked successor is kept until the incumbent is known to serve again: if it cannot, the successor goes forward;
//! - a successor that was told to begin is killed and reaped before the incumbent is asked to resume;
//! - an incumbent is killed only when it is silent, mute, condemned, or failed to resume;
//! - whoever was asked to end is killed only when the time that the service file grants for that is over;
//! - with a probe, a commit is recorded, and connections are steered away from an incumbent, only after it has passed;
//! - a share of the connections is taken back before its successor is sent away;
//! - in overlap mode an outgoing process seals only when nothing is on its way to it, or the limit of that is over;
//! - who was replaced and stands by is kept until the probation is over;
//! - every request is reported once, and only when a process serves (or none is wanted).
//!
//! ```text
//!  exclusive: Greeting ▶ Warming ▶ Draining ▶ Sealing ▶ Beginning ▶ (Probing ▶) Committing ▶ Serving (+ outgoing leaves)
//!  overlap:   Greeting ▶ Warming ▶ Beginning ▶ (Probing ▶) Committing (steered) ▶ Serving (+ outgoing drains, seals, leaves)
//!  canary:    … (Probing ▶) Canary ▶ (Probing ▶) Canary ▶ (Probing ▶) Committing …, a share more with each step
//!  cold:      Greeting ▶ Warming ▶ Beginning ▶ (Probing ▶) Committing ▶ Serving
//!  failure:   any of these ▶ Reaping (the successor) ▶ Resuming (the incumbent) ▶ Serving
//!                          ▶ Resuming (successor parked) ▶ Reaping ▶ Serving, or ▶ Beginning if the incumbent cannot
//!  probation: Serving (+ outgoing stands by) ▶ Serving (+ outgoing leaves)
//!             not passed, exclusive: ▶ Reaping (the new process) ▶ Resuming (the old one) ▶ Reverting ▶ Serving
//!             not passed, overlap:   ▶ Reverting (steered back) ▶ Serving (+ the new process is the outgoing process, and leaves)
//!  another supervisor was here: Recovering ▶ Serving, (▶ Probing) ▶ Committing, ▶ Reaping or ▶ Greeting, as the table of
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
mod invariants;
mod phase;
mod probation;
mod recover;
mod retire;
mod step;
mod timers;
mod watch;

pub use action::{Action, DurableFact, Outcome, Refusal};
pub use event::{Event, Moment, Request};
pub use phase::Phase;
use probation::LostCommit;
pub use recover::Legacy;
use recover::Recovery;
use timers::Starved;
pub use watch::Watch;

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
    Active,
    /// It was told to drain or seal.
    Quiesced,
    /// It serves, but its channel is unusable.
    Unreachable,
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
    /// It was told to leave.
    Dismissed,
    /// It was told to leave, had its time, and was sent SIGTERM.
    Terminating,
}

/// How far the outgoing process is.
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
    /// It has drained, or its grace is over. Connections may still be on their way to it.
    Quieting {
        /// Whether it may cut what is still running: its grace is over.
        cut: bool,
    },
    /// It was told to seal.
    Sealing {
        /// Whether it may cut what is still running: its grace is over.
        cut: bool,
    },
    /// It was told to leave.
    Exiting {
        /// Whether it may still have to drain and seal.
        serves: bool,
    },
    /// It was sent SIGTERM.
    Terminating {
        /// Whether it may still have something to end: its time for that is not over.
        ends: bool,
    },
    /// It was sent SIGKILL.
    Killed,
}

/// The process that was replaced or stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outgoing {
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
    incumbent: Incumbent,
    successor: Successor,
    outgoing: Option<Outgoing>,
    handoff: Handoff,
    answer: Answer,
    /// When the process that is to end was told to drain.
    drain_began: Millis,
    /// What is known of the processes of an earlier supervisor, until it is known what to do about them.
    recovery: Option<Recovery>,
    /// How many leases in a row each process was silent, and starved.
    starved: Starved,
    /// Failed starts in a row.
    attempts: u8,
    serving_since: Millis,
}

/// The handoff under way, or the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Handoff {
    id: HandoffId,
    target: Target,
    /// End of the whole upgrade.
    ends_at: Millis,
    drain_grace_ms: Millis,
    /// Answers that the incumbent still owes, since it was asked and then asked otherwise.
    owes: Owes,
    /// The successor served without being told that it is committed, and takes itself for the incumbent.
    skips_commit: bool,
    /// How many steps of the canary the successor was given.
    shares: u8,
    /// For how long the process that is replaced stands by.
    probation_ms: Millis,
    lost_commit: LostCommit,
}

/// What becomes of the request, or of the crash, that the handoff under way answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Answer {
    /// Whether somebody waits for it.
    is_awaited: bool,
    verdict: Verdict,
}

/// What is known of the answer before the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
enum Verdict {
    /// How it ends decides.
    #[default]
    Open,
    /// The commit stands although its process has died; another one is started from the same binary.
    Stands,
    /// The handoff is being undone, and why.
    Fails(Reason),
}

impl Answer {
    /// The first reason counts.
    fn fails(&mut self, reason: Reason) {
        if self.reason().is_none() {
            self.verdict = Verdict::Fails(reason);
        }
    }

    /// Unless there is a reason against it.
    fn stands(&mut self) {
        if self.reason().is_none() {
            self.verdict = Verdict::Stands;
        }
    }

    /// Why the handoff is being undone.
    fn reason(&self) -> Option<&Reason> {
        match &self.verdict {
            Verdict::Fails(reason) => Some(reason),
            Verdict::Open | Verdict::Stands => None,
        }
    }
}

/// Answers that are still to come from the incumbent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Owes {
    drained: bool,
    sealed: bool,
}

impl Handoff {
    fn new(id: HandoffId, target: Target, now: Millis, policy: &Policy) -> Self {
        Self {
            id,
            target,
            ends_at: now.saturating_add(policy.deadline_ms),
            drain_grace_ms: policy.drain_grace_ms,
            owes: Owes::default(),
            skips_commit: false,
            shares: 0,
            probation_ms: policy.probation_ms,
            lost_commit: LostCommit::None,
        }
    }
}

impl Supervisor {
    /// A service that does not run.
    pub fn new(mode: Mode, policy: Policy) -> Self {
        let none = Handoff::new(HandoffId::NIL, Target::Committed, 0, &policy);
        let handoff = Handoff { ends_at: 0, probation_ms: 0, ..none };
        Self {
            mode,
            policy,
            phase: Phase::Stopped,
            wanted: false,
            incumbent: Incumbent::Absent,
            successor: Successor::Absent,
            outgoing: None,
            handoff,
            answer: Answer::default(),
            drain_began: 0,
            recovery: None,
            starved: Starved::default(),
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
    pub fn outgoing(&self) -> Option<Outgoing> {
        self.outgoing
    }

    /// Whether the service is to run.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether an upgrade can begin.
    pub fn is_open_to_upgrades(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Backoff) && self.outgoing.is_none()
    }

    /// The handoff under way, or the last one.
    pub fn handoff(&self) -> HandoffId {
        self.handoff.id
    }

    /// What is left of the time that the upgrade under way was given. Milliseconds.
    pub fn time_left(&self, at: Moment) -> Millis {
        self.left(at)
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
        self.check();
        out
    }
}
