//! The process that serves, as a table of states and events. It runs inside the service.
//!
//! What must hold, whatever the supervisor does:
//! - the data lock is released only after a seal that succeeded, and `Sealed` is said only after that;
//! - whatever was taken away comes back by itself: when the channel closes, or the lease of the last message ends;
//! - waiting for the lock has no end: while a successor holds it this process is its standby;
//! - `Resumed` is said once per handoff, and only by a process that serves.
//!
//! ```text
//!            Prepare          Seal            seal done         Commit
//!  Serving ──────────▶ Draining ─────▶ Sealing ─────────▶ Sealed ──────▶ gone
//!     ▲                   │              │ failed            │ Resume, lease, closed
//!     │     Resume, lease,│              ▼                   ▼
//!     │            closed │           Failed              Waiting (for the lock)
//!     │                   ▼              │                   │
//!     └──────────────  Reopening ◀───────┴───────────────────┘
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::HandoffId;
use crate::message::{Done, Failed, FromService, Mode, Stage, ToService};
use crate::state;

/// Where the incumbent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It accepts; nothing was taken from it.
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
    /// It was told to leave while it served: it drains, seals and exits by itself.
    Leaving,
    /// It exits.
    Gone,
}

/// What can happen to the incumbent.
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
    /// The service hands something over to the process that follows.
    HandOver(state::State),
    /// The service's drain code returned.
    DrainDone(Result<(), String>),
    /// The service's seal code returned.
    SealDone(Result<(), String>),
    /// The lock was taken.
    Locked,
    /// The service's resume code returned.
    ResumeDone(Result<(), String>),
}

/// What the incumbent does. In the order given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send, unless the channel is closed.
    Send(HandoffId, FromService),
    /// Answer the supervisor that adopts this process.
    Adopted(HandoffId, Stage),
    /// Give the service what the process that went before has handed over.
    TakeOver(state::State),
    /// Close the channel.
    HangUp,
    /// Run the service's drain code.
    Drain {
        /// The time that it may take. Milliseconds.
        grace_ms: u64,
    },
    /// Tell the drain code, if it runs, to return at once.
    CancelDrain,
    /// Run the service's seal code, after the drain code if that runs.
    Seal {
        /// Whether running requests may be cut.
        cut: bool,
    },
    /// Release the data lock.
    ReleaseLock,
    /// Wait for the data lock, without end.
    TakeLock,
    /// Run the service's resume code, after the drain code if that runs.
    Resume,
    /// Start the lease anew.
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

/// Time that a process that was told to leave while it served gives its clients. Milliseconds.
pub const LEAVE_GRACE_MS: u64 = 30_000;

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Incumbent {
    mode: Mode,
    state: State,
    /// The handoff under way, or the last one.
    handoff: HandoffId,
    /// The lease that the last `Seal` granted; it starts with `Sealed`.
    seal_lease_ms: u64,
    connected: bool,
}

impl Incumbent {
    /// A process that serves. `handoff` is the one by which it came to serve.
    pub fn new(mode: Mode, handoff: HandoffId) -> Self {
        Self { mode, state: State::Serving, handoff, seal_lease_ms: 0, connected: true }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it is at work for the supervisor, which then wants signs of life.
    pub fn is_working(&self) -> bool {
        match self.state {
            State::Draining { drained } => !drained,
            State::Sealing { .. } | State::Waiting | State::Reopening { .. } | State::Leaving => true,
            State::Serving | State::Sealed | State::Failed | State::Gone => false,
        }
    }

    /// The handoff that messages belong to.
    pub fn handoff(&self) -> HandoffId {
        self.handoff
    }

    /// Takes one event and returns what to do.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Message(id, message) => self.message(id, message, &mut out),
            Event::Closed => self.closed(&mut out),
            Event::Adopt(id) => self.adopt(id, &mut out),
            Event::Lease => self.lease(&mut out),
            Event::HandOver(state) => self.hand_over(state, &mut out),
            Event::DrainDone(result) => self.drain_done(result, &mut out),
            Event::SealDone(result) => self.seal_done(result, &mut out),
            Event::Locked => self.locked(&mut out),
            Event::ResumeDone(result) => self.resume_done(result, &mut out),
        }
        out
    }

    fn message(&mut self, id: HandoffId, message: ToService, out: &mut Vec<Action>) {
        let known = id == self.handoff;
        match (self.state, message) {
            (State::Serving, ToService::Prepare(prepare)) => {
                self.handoff = id;
                self.state = State::Draining { drained: false };
                out.push(Action::ArmLease { lease_ms: prepare.lease_ms });
                out.push(Action::Drain { grace_ms: prepare.grace_ms });
            }
            (State::Draining { drained }, ToService::Seal(seal)) if known => {
                if !drained {
                    out.push(Action::CancelDrain);
                }
                self.seal_lease_ms = seal.lease_ms;
                self.state = State::Sealing { resume: false, leave: false };
                out.push(Action::DisarmLease);
                out.push(Action::Seal { cut: seal.cut });
            }
            (_, ToService::Resume(_)) if known => self.take_back(out),
            // A process that came to serve without a supervisor may also be told that its handoff is undone.
            (_, ToService::Commit(_) | ToService::Abort(_)) if known => self.leave(out),
            // The process that went before drains while this one serves already.
            (State::Serving, ToService::State(state)) if known && self.mode == Mode::Overlap => {
                out.push(Action::TakeOver(state));
            }
            // A lease that ended or a drain that failed made this the past while the message was on its way.
            (
                State::Serving | State::Failed | State::Waiting | State::Reopening { .. },
                ToService::Seal(_),
            ) if known => {}
            (_, _) => self.refuse(out),
        }
    }

    /// The supervisor broke the protocol: nothing that it says counts any more.
    fn refuse(&mut self, out: &mut Vec<Action>) {
        out.push(Action::HangUp);
        self.closed(out);
    }

    fn closed(&mut self, out: &mut Vec<Action>) {
        self.connected = false;
        self.take_back(out);
    }

    /// What was taken away came back with the closed channel, or is on its way back.
    fn adopt(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        let stage = match self.state {
            State::Serving => Stage::Serving,
            State::Draining { .. }
            | State::Failed
            | State::Sealing { leave: false, .. }
            | State::Reopening { leave: false } => Stage::Working,
            State::Sealed | State::Waiting => Stage::Waiting,
            State::Sealing { leave: true, .. }
            | State::Reopening { leave: true }
            | State::Leaving
            | State::Gone => Stage::Leaving,
        };
        self.handoff = id;
        self.connected = true;
        out.push(Action::Adopted(id, stage));
    }

    fn lease(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Draining { .. } | State::Sealed | State::Failed => self.take_back(out),
            // Its clients had their time.
            State::Leaving => out.push(Action::CancelDrain),
            State::Serving
            | State::Sealing { .. }
            | State::Waiting
            | State::Reopening { .. }
            | State::Gone => {}
        }
    }

    /// Serve again with what was taken away.
    fn take_back(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Draining { drained } => {
                if !drained {
                    out.push(Action::CancelDrain);
                }
                self.reopen(out);
            }
            State::Sealing { leave, .. } => self.state = State::Sealing { resume: true, leave },
            State::Failed => self.reopen(out),
            State::Sealed => match self.mode {
                Mode::Exclusive => {
                    self.state = State::Waiting;
                    out.push(Action::DisarmLease);
                    out.push(Action::TakeLock);
                }
                Mode::Overlap => self.reopen(out),
            },
            State::Serving | State::Waiting | State::Reopening { .. } | State::Leaving | State::Gone => {}
        }
    }

    fn reopen(&mut self, out: &mut Vec<Action>) {
        self.state = State::Reopening { leave: false };
        out.push(Action::DisarmLease);
        out.push(Action::Resume);
    }

    /// Another process is committed, or the service is to stop.
    fn leave(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Serving | State::Draining { .. } | State::Failed => {
                self.state = State::Leaving;
                out.push(Action::ArmLease { lease_ms: LEAVE_GRACE_MS });
                out.push(Action::Drain { grace_ms: LEAVE_GRACE_MS });
                out.push(Action::Seal { cut: true });
            }
            State::Sealing { resume, .. } => self.state = State::Sealing { resume, leave: true },
            State::Reopening { .. } => self.state = State::Reopening { leave: true },
            State::Sealed | State::Waiting => self.exit(0, out),
            State::Leaving | State::Gone => {}
        }
    }

    /// Only while a process that follows waits for it: what is said at another time is for nobody.
    fn hand_over(&self, state: state::State, out: &mut Vec<Action>) {
        match self.state {
            State::Draining { .. } | State::Sealing { resume: false, leave: false } => {
                self.say(FromService::State(state), out)
            }
            State::Serving
            | State::Sealing { .. }
            | State::Sealed
            | State::Failed
            | State::Waiting
            | State::Reopening { .. }
            | State::Leaving
            | State::Gone => {}
        }
    }

    fn drain_done(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        match self.state {
            State::Draining { drained: false } => match result {
                Ok(()) => {
                    self.state = State::Draining { drained: true };
                    self.say(FromService::Drained(Done {}), out);
                }
                Err(reason) => {
                    self.state = State::Failed;
                    self.say(FromService::SealFailed(Failed { reason }), out);
                }
            },
            // Cancelled: what comes next was decided already.
            State::Draining { drained: true }
            | State::Serving
            | State::Sealing { .. }
            | State::Sealed
            | State::Failed
            | State::Waiting
            | State::Reopening { .. }
            | State::Leaving
            | State::Gone => {}
        }
    }

    fn seal_done(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        match self.state {
            State::Sealing { leave: true, .. } | State::Leaving => self.exit(0, out),
            State::Sealing { resume: true, leave: false } => self.reopen(out),
            State::Sealing { resume: false, leave: false } => {
                out.push(Action::ArmLease { lease_ms: self.seal_lease_ms });
                match result {
                    Ok(()) => {
                        self.state = State::Sealed;
                        if self.mode == Mode::Exclusive {
                            out.push(Action::ReleaseLock);
                        }
                        self.say(FromService::Sealed(Done {}), out);
                    }
                    Err(reason) => {
                        self.state = State::Failed;
                        self.say(FromService::SealFailed(Failed { reason }), out);
                    }
                }
            }
            State::Serving
            | State::Draining { .. }
            | State::Sealed
            | State::Failed
            | State::Waiting
            | State::Reopening { .. }
            | State::Gone => {}
        }
    }

    fn locked(&mut self, out: &mut Vec<Action>) {
        if self.state == State::Waiting {
            self.reopen(out);
        }
    }

    fn resume_done(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        let State::Reopening { leave } = self.state else { return };
        match result {
            Ok(()) => {
                self.state = State::Serving;
                self.say(FromService::Resumed(Done {}), out);
                if leave {
                    self.leave(out);
                }
            }
            // A process that cannot serve must not keep the lock from one that can.
            Err(reason) => {
                self.say(FromService::ResumeFailed(Failed { reason }), out);
                self.exit(1, out);
            }
        }
    }

    fn say(&self, message: FromService, out: &mut Vec<Action>) {
        if self.connected {
            out.push(Action::Send(self.handoff, message));
        }
    }

    fn exit(&mut self, code: i32, out: &mut Vec<Action>) {
        self.state = State::Gone;
        out.push(Action::Exit { code });
    }
}
