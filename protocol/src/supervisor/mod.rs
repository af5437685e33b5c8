//! The supervisor of one service, as a table of phases and events.
//!
//! Up to three processes exist at once: the *incumbent* serves, the *successor* takes over, and the *outgoing* process
//! was replaced or stopped and is leaving. Invariants, whatever they do:
//! - a commit is announced only after it is durable (a disk failure does not end the only serving process);
//! - a successor receives `Begin` (exclusive mode) only when the incumbent is sealed or gone;
//! - a parked successor is kept until the incumbent is known to serve again: if it cannot, the successor goes forward;
//! - a successor that received `Begin` is ended and reaped before the incumbent is asked to resume;
//! - an incumbent is killed only when it is silent, mute, condemned, or failed to resume;
//! - a process that may have opened the data and is neither silent nor mute gets SIGTERM and its time before SIGKILL,
//!   unless only the supervisor could detect that it stopped serving (liveness);
//! - a process that was asked to end is killed only after the time that the service file grants for that;
//! - with a probe, a commit is recorded, and connections are steered away from an incumbent, only after the probe
//!   passes;
//! - a share of the connections is withdrawn before its successor is dismissed;
//! - in overlap mode an outgoing process seals only when nothing is in transit to it, or the limit for that has passed;
//! - a replaced process that stands by is kept until the probation is over;
//! - every request is answered once, and only when a process serves (or none is wanted).
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
use crate::reason::{Exit, Reason};
use crate::restart::Failures;

mod action;
mod canary;
mod event;
mod fail;
mod invariants;
mod phase;
mod probation;
mod recover;
mod requests;
mod restarting;
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
use timers::StarvedLeases;
pub use watch::WatchReason;

/// The binary that a successor is started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// The binary of the current generation, or of the service file if there is none yet.
    Committed,
    /// The requested binary.
    Candidate,
}

/// The state of the incumbent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Incumbent {
    /// There is none.
    Absent,
    /// It serves with everything it needs.
    Active,
    /// It was asked to drain or seal.
    Quiesced,
    /// It serves, but its channel is unusable.
    Unreachable,
}

/// The state of the successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Successor {
    /// There is none.
    Absent,
    /// It has not sent `Prepared`.
    Starting,
    /// It waits for `Begin`.
    Parked,
    /// `Begin` was sent.
    Begun,
    /// It has sent `Ready`.
    Ready,
    /// It was dismissed.
    Dismissed,
    /// SIGTERM was sent: it was dismissed and its time has passed, or it may have opened the data.
    Terminating,
}

/// How far the outgoing process has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leaving {
    /// It was replaced but received no message: it takes over again if its replacement fails.
    Standby {
        /// Whether it serves: in exclusive mode it waits for the data lock.
        serves: bool,
    },
    /// Another supervisor left it behind, and `Adopt` was sent.
    Asked,
    /// It was asked to drain.
    Draining,
    /// It has drained, or its grace is over. Connections may still be in transit to it.
    Quieting {
        /// Whether it may cut running requests: its grace is over.
        cut: bool,
    },
    /// It was asked to seal.
    Sealing {
        /// Whether it may cut running requests: its grace is over.
        cut: bool,
    },
    /// It was asked to leave.
    Exiting {
        /// Whether it may still have to drain and seal.
        serves: bool,
    },
    /// SIGTERM was sent.
    Terminating {
        /// Whether it may still have a program to end, within its time for that.
        ends: bool,
    },
    /// SIGKILL was sent.
    Killed,
}

/// The process that was replaced or stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outgoing {
    /// How far it has left.
    pub step: Leaving,
    /// The handoff in which it leaves.
    pub handoff: HandoffId,
    /// Whether its end completes an upgrade that a request waits for.
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
    answer: PendingAnswer,
    /// When the process that must end was asked to drain.
    drain_began: Millis,
    /// The state of an earlier supervisor's processes, until recovery has decided.
    recovery: Option<Recovery>,
    /// Leases in a row in which each process was silent and starved.
    starved: StarvedLeases,
    /// Failed starts and deaths that still count.
    failures: Failures,
    /// Pause before the next restart. Milliseconds.
    pause_ms: Millis,
    serving_since: Millis,
}

/// The current handoff, or the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Handoff {
    id: HandoffId,
    target: Target,
    /// End of the whole upgrade.
    ends_at: Millis,
    drain_grace_ms: Millis,
    /// Answers that the incumbent still owes to withdrawn requests.
    awaited_replies: AwaitedReplies,
    /// The successor served without a `Commit`, and considers itself the incumbent.
    skips_commit: bool,
    /// Number of canary steps so far.
    shares: u8,
    /// How long the replaced process stands by.
    probation_ms: Millis,
    /// The incumbent was late to resume, and SIGTERM was sent.
    resume_is_over: bool,
    lost_commit: LostCommit,
    /// How the process that served before has ended by itself.
    died: Option<Exit>,
}

/// The answer to the request or crash behind the current handoff.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct PendingAnswer {
    /// Whether a request waits for it.
    is_awaited: bool,
    outcome: ProvisionalOutcome,
}

/// What is known of the answer before the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
enum ProvisionalOutcome {
    /// The outcome decides.
    #[default]
    Open,
    /// The commit stands although its process has died; another one is started from the same binary.
    CommitUpheld,
    /// The handoff is being rolled back for this reason.
    RollingBack(Reason),
}

impl PendingAnswer {
    /// The first reason counts.
    fn fail(&mut self, reason: Reason) {
        if self.reason().is_none() {
            self.outcome = ProvisionalOutcome::RollingBack(reason);
        }
    }

    /// Has no effect after a failure.
    fn uphold_commit(&mut self) {
        if self.reason().is_none() {
            self.outcome = ProvisionalOutcome::CommitUpheld;
        }
    }

    /// Why the handoff is being rolled back.
    fn reason(&self) -> Option<&Reason> {
        match &self.outcome {
            ProvisionalOutcome::RollingBack(reason) => Some(reason),
            ProvisionalOutcome::Open | ProvisionalOutcome::CommitUpheld => None,
        }
    }
}

/// Answers that the incumbent still owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct AwaitedReplies {
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
            awaited_replies: AwaitedReplies::default(),
            skips_commit: false,
            shares: 0,
            probation_ms: policy.probation_ms,
            resume_is_over: false,
            lost_commit: LostCommit::None,
            died: None,
        }
    }
}

impl Supervisor {
    /// Creates the machine of a service that does not run.
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
            answer: PendingAnswer::default(),
            drain_began: 0,
            recovery: None,
            starved: StarvedLeases::default(),
            failures: Failures::default(),
            pause_ms: 0,
            serving_since: 0,
        }
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The state of the incumbent.
    pub fn incumbent(&self) -> Incumbent {
        self.incumbent
    }

    /// The state of the successor.
    pub fn successor(&self) -> Successor {
        self.successor
    }

    /// The outgoing process.
    pub fn outgoing(&self) -> Option<Outgoing> {
        self.outgoing
    }

    /// Whether the incumbent was late to resume and received SIGTERM.
    pub fn resume_is_over(&self) -> bool {
        self.phase == Phase::Resuming && self.handoff.resume_is_over
    }

    /// Whether the service is to run.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether an upgrade can begin.
    pub fn is_open_to_upgrades(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Backoff) && self.outgoing.is_none()
    }

    /// The current handoff, or the last one.
    pub fn handoff(&self) -> HandoffId {
        self.handoff.id
    }

    /// Remaining time of the current upgrade. Milliseconds.
    pub fn time_left(&self, at: Moment) -> Millis {
        self.time_left_ms(at)
    }

    /// Replaces the policy. It applies from the next handoff on.
    pub fn set_policy(&mut self, mode: Mode, policy: Policy) {
        self.mode = mode;
        self.policy = policy;
    }

    /// Processes one event. Returns the actions to perform, in order.
    pub fn step(&mut self, at: Moment, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.dispatch(at, event, &mut out);
        self.check();
        out
    }
}
