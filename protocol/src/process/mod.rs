//! A process of the service, from start to end, as a table of states and events. It runs inside the service.
//!
//! Invariants, whatever the supervisor does:
//! - before `Begin` it touches no data and does not accept; if the channel closes or the lease ends, it leaves;
//! - after `Begin` it may serve even if the supervisor is gone: it waits for the lock without limit;
//! - it releases the data lock only after a successful seal, and sends `Sealed` only after that;
//! - everything taken from it comes back without a message, when the channel closes or the lease of the last message
//!   ends;
//! - the wait for the lock has no limit: while a successor holds it, this process is its standby;
//! - it sends `Resumed` once per handoff, and only while it serves.
//!
//! ```text
//!            Prepare and         Begin          locked           opened        Commit, closed
//!  Starting ────────────▶ Parked ─────▶ Locking ──────▶ Opening ──────▶ Ready ──────────────▶ Serving
//!            author ready                                                │ Abort
//!                                                                        ▼
//!                                                                    Dismissed ─────▶ Gone
//!
//!            Prepare          Seal            seal done         Commit
//!  Serving ──────────▶ Draining ─────▶ Sealing ─────────▶ Sealed ──────▶ Gone
//!     ▲                   │              │ failed            │ Resume, lease, closed
//!     │     Resume, lease,│              ▼                   ▼
//!     │            closed │           Failed              Waiting (for the lock)
//!     │                   ▼              │                   │
//!     └──────────────  Reopening ◀───────┴───────────────────┘
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::HandoffId;
use crate::message::{FromService, Mode, Stage, ToService};
use crate::state;

pub use crate::reason::Role;

mod step;

/// Drain time of a process that must leave while it serves. Milliseconds.
pub const LEAVE_GRACE_MS: u64 = 30_000;

/// The state of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProcessState {
    /// The service starts up. It sends `Prepared` once start-up is done and `Prepare` has arrived.
    Starting {
        /// Whether `Prepare` has arrived.
        asked: bool,
        /// Whether start-up is done.
        done: bool,
    },
    /// Start-up is done; waits for `Begin`.
    Parked,
    /// May serve; waits for the lock.
    Locking,
    /// Holds the lock; the service opens its data.
    Opening,
    /// It accepts, and is not committed yet.
    Ready,
    /// Dismissed before the commit: it drains, seals and exits by itself. The lease runs.
    Dismissed,
    /// It is committed and accepts.
    Serving,
    /// It accepts, and waits for long requests. The lease runs.
    Draining {
        /// Whether it has sent `Drained`.
        drained: bool,
    },
    /// The service's seal code runs. It does not accept.
    Sealing {
        /// Whether to serve again when that code returns.
        resume: bool,
        /// Whether to leave when that code returns.
        leave: bool,
    },
    /// It does not accept and does not hold the lock. The lease runs.
    Sealed,
    /// The drain or seal failed; it holds the lock. The lease runs.
    Failed,
    /// It is to serve again and waits for the lock: a standby.
    Waiting,
    /// It holds the lock; the service's resume code runs.
    Reopening {
        /// Whether to leave once it serves.
        leave: bool,
    },
    /// It must leave while it serves: it drains, seals and exits by itself. The lease runs.
    Leaving,
    /// It exits.
    Gone,
}

/// An event of the process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// A message arrived.
    Message(HandoffId, ToService),
    /// The channel closed, or an invalid frame arrived.
    Closed,
    /// A new supervisor adopts the process on a new channel; the old channel is closed.
    Adopt(HandoffId),
    /// The lease ended.
    Lease,
    /// The service has completed all start-up that needs no data.
    Started,
    /// The lock was taken.
    Locked,
    /// Locking failed permanently.
    LockFailed(String),
    /// The service has opened its data and accepts, or has failed to.
    Opened(Result<(), String>),
    /// The service hands over state for its successor.
    HandOver(state::State),
    /// The service's drain code returned.
    DrainDone(Result<(), String>),
    /// The service's seal code returned.
    SealDone(Result<(), String>),
    /// The service's resume code returned.
    ResumeDone(Result<(), String>),
}

/// Actions of the process, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send, unless the channel is closed.
    Send(HandoffId, FromService),
    /// Answer the supervisor that adopts this process.
    Adopted(HandoffId, Stage),
    /// Store the predecessor's state; it replaces a stored one.
    KeepState(state::State),
    /// Pass the predecessor's state to the service.
    TakeOver(state::State),
    /// Close the channel.
    HangUp,
    /// Wait for the data lock, without limit.
    TakeLock,
    /// Release the data lock.
    ReleaseLock,
    /// Let the service open its data and accept.
    Open,
    /// Run the service's drain code.
    Drain {
        /// Time limit of the drain. Milliseconds.
        grace_ms: u64,
        /// Whether this process is dismissed before the commit.
        refused: bool,
    },
    /// Make a running drain code return at once.
    CancelDrain,
    /// Run the service's seal code, after a running drain code has returned.
    Seal {
        /// Whether running requests may be cut.
        cut: bool,
    },
    /// Run the service's resume code, after a running drain code has returned.
    Resume,
    /// Restart the lease.
    ArmLease {
        /// Milliseconds from now.
        lease_ms: u64,
    },
    /// Stop the lease.
    DisarmLease,
    /// Exit.
    Exit {
        /// Exit code.
        code: i32,
    },
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    mode: Mode,
    state: ProcessState,
    role: Role,
    /// The current handoff, or the last one.
    handoff: HandoffId,
    /// The lease from the last `Seal`; it starts with `Sealed`.
    seal_lease_ms: u64,
    connected: bool,
}

impl Process {
    /// Creates the machine of a process that received `Welcome` in `handoff`.
    pub fn new(mode: Mode, handoff: HandoffId) -> Self {
        let state = ProcessState::Starting { asked: false, done: false };
        Self { mode, state, role: Role::Successor, handoff, seal_lease_ms: 0, connected: true }
    }

    /// The current state.
    pub fn state(&self) -> ProcessState {
        self.state
    }

    /// How processes of the service may overlap.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The current role. A process that is gone keeps its last role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether it works for the supervisor, which then expects signs of life.
    pub fn is_working(&self) -> bool {
        match self.state {
            ProcessState::Starting { asked, .. } => asked,
            ProcessState::Draining { drained } => !drained,
            ProcessState::Locking
            | ProcessState::Opening
            | ProcessState::Sealing { .. }
            | ProcessState::Waiting
            | ProcessState::Reopening { .. }
            | ProcessState::Leaving => true,
            ProcessState::Parked
            | ProcessState::Ready
            | ProcessState::Dismissed
            | ProcessState::Serving
            | ProcessState::Sealed
            | ProcessState::Failed
            | ProcessState::Gone => false,
        }
    }

    /// The handoff that messages must carry.
    pub fn handoff(&self) -> HandoffId {
        self.handoff
    }

    /// Whether the channel to the supervisor is open.
    pub fn is_connected(&self) -> bool {
        self.connected
    }
    /// Forwards state only while a successor waits for it; at other times it has no recipient.
    fn hand_over(&self, state: state::State, out: &mut Vec<Action>) {
        match self.state {
            ProcessState::Draining { .. } | ProcessState::Sealing { resume: false, leave: false } => {
                self.send(FromService::State(state), out)
            }
            ProcessState::Starting { .. }
            | ProcessState::Parked
            | ProcessState::Locking
            | ProcessState::Opening
            | ProcessState::Ready
            | ProcessState::Dismissed
            | ProcessState::Serving
            | ProcessState::Sealing { .. }
            | ProcessState::Sealed
            | ProcessState::Failed
            | ProcessState::Waiting
            | ProcessState::Reopening { .. }
            | ProcessState::Leaving
            | ProcessState::Gone => {}
        }
    }

    fn send(&self, message: FromService, out: &mut Vec<Action>) {
        if self.connected {
            out.push(Action::Send(self.handoff, message));
        }
    }

    fn exit(&mut self, code: i32, out: &mut Vec<Action>) {
        self.state = ProcessState::Gone;
        out.push(Action::Exit { code });
    }
}
