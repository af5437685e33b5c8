//! A process of the service, from its start to its end, as a table of states and events. It runs inside the service.
//!
//! What must hold, whatever the supervisor does:
//! - before `Begin` it touches no data and does not accept; if the channel closes or the lease ends, it leaves;
//! - after `Begin` it is entitled to serve, also if the supervisor is gone: it waits for the lock without end;
//! - the data lock is released only after a seal that succeeded, and `Sealed` is said only after that;
//! - whatever was taken away comes back by itself: when the channel closes, or the lease of the last message ends;
//! - waiting for the lock has no end: while a successor holds it this process is its standby;
//! - `Resumed` is said once per handoff, and only by a process that serves.
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

use crate::ids::HandoffId;
use crate::message::{FromService, Mode, Stage, ToService};
use crate::state;

pub use crate::reason::Role;

mod step;

/// Time that a process that was told to leave while it served gives its clients. Milliseconds.
pub const LEAVE_GRACE_MS: u64 = 30_000;

/// Where the process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The service starts up. `Prepared` is said when it is done and was asked for.
    Starting {
        /// Whether `Prepare` came.
        asked: bool,
        /// Whether the service is done with its start-up.
        done: bool,
    },
    /// Started; waits for `Begin`.
    Parked,
    /// Entitled to serve; waits for the lock.
    Locking,
    /// Holds the lock; the service opens its data.
    Opening,
    /// It accepts; not yet committed.
    Ready,
    /// It was sent away before it was committed: it drains, seals and exits by itself. The lease runs.
    Dismissed,
    /// It is committed and accepts; nothing was taken from it.
    Serving,
    /// It accepts, and waits for long requests. The lease runs.
    Draining {
        /// Whether `Drained` was said.
        drained: bool,
    },
    /// The service's seal code runs. It does not accept.
    Sealing {
        /// Whether to serve again as soon as that code returns.
        resume: bool,
        /// Whether to leave as soon as that code returns.
        leave: bool,
    },
    /// It does not accept and does not hold the lock. The lease runs.
    Sealed,
    /// Drain or seal failed; it holds the lock. The lease runs.
    Failed,
    /// It wants to serve again and waits for the lock: a standby.
    Waiting,
    /// It holds the lock; the service's resume code runs.
    Reopening {
        /// Whether to leave as soon as it serves.
        leave: bool,
    },
    /// It was told to leave while it served: it drains, seals and exits by itself. The lease runs.
    Leaving,
    /// It exits.
    Gone,
}

/// What can happen to the process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// A message came.
    Message(HandoffId, ToService),
    /// The channel closed, or something came that is not a message.
    Closed,
    /// Another supervisor is here, on a new channel; the old one is closed.
    Adopt(HandoffId),
    /// The lease ended.
    Lease,
    /// The service has done all start-up that needs no data.
    Started,
    /// The lock was taken.
    Locked,
    /// The lock cannot be taken, now or later.
    LockFailed(String),
    /// The service has opened its data and accepts, or cannot.
    Opened(Result<(), String>),
    /// The service hands something over to the process that follows.
    HandOver(state::State),
    /// The service's drain code returned.
    DrainDone(Result<(), String>),
    /// The service's seal code returned.
    SealDone(Result<(), String>),
    /// The service's resume code returned.
    ResumeDone(Result<(), String>),
}

/// What the process does. In the order given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send, unless the channel is closed.
    Send(HandoffId, FromService),
    /// Answer the supervisor that adopts this process.
    Adopted(HandoffId, Stage),
    /// Keep what the process that goes before has handed over, instead of what is kept already.
    KeepState(state::State),
    /// Give the service what the process that went before has handed over.
    TakeOver(state::State),
    /// Close the channel.
    HangUp,
    /// Wait for the data lock, without end.
    TakeLock,
    /// Release the data lock.
    ReleaseLock,
    /// Let the service open its data and accept.
    Open,
    /// Run the service's drain code.
    Drain {
        /// The time that it may take. Milliseconds.
        grace_ms: u64,
        /// Whether this process is sent away before it was committed.
        refused: bool,
    },
    /// Tell the drain code, if it runs, to return at once.
    CancelDrain,
    /// Run the service's seal code, after the drain code if that runs.
    Seal {
        /// Whether running requests may be cut.
        cut: bool,
    },
    /// Run the service's resume code, after the drain code if that runs.
    Resume,
    /// Start the lease again.
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
    state: State,
    role: Role,
    /// The handoff under way, or the last one.
    handoff: HandoffId,
    /// The lease that the last `Seal` granted; it starts with `Sealed`.
    seal_lease_ms: u64,
    connected: bool,
}

impl Process {
    /// A process that was welcomed in `handoff`.
    pub fn new(mode: Mode, handoff: HandoffId) -> Self {
        let state = State::Starting { asked: false, done: false };
        Self { mode, state, role: Role::Successor, handoff, seal_lease_ms: 0, connected: true }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// How processes of the service may overlap.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What it is to the service. A process that is gone keeps the role that it had.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether it is at work for the supervisor, which then wants signs of life.
    pub fn is_working(&self) -> bool {
        match self.state {
            State::Starting { asked, .. } => asked,
            State::Draining { drained } => !drained,
            State::Locking
            | State::Opening
            | State::Sealing { .. }
            | State::Waiting
            | State::Reopening { .. }
            | State::Leaving => true,
            State::Parked
            | State::Ready
            | State::Dismissed
            | State::Serving
            | State::Sealed
            | State::Failed
            | State::Gone => false,
        }
    }

    /// The handoff that messages belong to.
    pub fn handoff(&self) -> HandoffId {
        self.handoff
    }

    /// Whether the supervisor can still be heard.
    pub fn is_connected(&self) -> bool {
        self.connected
    }
}
