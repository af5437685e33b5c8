//! The process that is to take over, as a table of states and events. It runs inside the service, until the commit
//! makes it an [`incumbent`](crate::incumbent).
//!
//! What must hold, whatever the supervisor does:
//! - before `Begin` it touches no data and does not accept; if the channel closes or the lease ends, it leaves;
//! - after `Begin` it is entitled to serve, also if the supervisor is gone: it waits for the lock without end.
//!
//! ```text
//!            Prepare and         Begin          locked           opened         Commit
//!  Starting ────────────▶ Parked ─────▶ Locking ──────▶ Opening ──────▶ Serving ──────▶ incumbent
//!            author ready
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::HandoffId;
use crate::incumbent::LEAVE_GRACE_MS;
use crate::message::{Done, FromService, Mode, Ready, Stage, ToService};
use crate::state;

/// Where the successor stands.
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
    /// Accepts; not yet committed.
    Serving,
    /// Committed.
    Incumbent,
    /// It was sent away after it had begun to serve: it drains, seals and exits by itself.
    Leaving,
    /// It exits.
    Gone,
}

/// What can happen to the successor.
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
    /// The service has opened its data and accepts, or cannot.
    Opened(Result<(), String>),
    /// The service's seal code returned (when it leaves).
    SealDone,
}

/// What the successor does. In the order given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send, unless the channel is closed.
    Send(HandoffId, FromService),
    /// Answer the supervisor that adopts this process.
    Adopted(HandoffId, Stage),
    /// Keep what the process that goes before has handed over, instead of what is kept already.
    KeepState(state::State),
    /// Close the channel.
    HangUp,
    /// Wait for the data lock, without end.
    TakeLock,
    /// Let the service open its data and accept.
    Open,
    /// Start the lease anew.
    ArmLease {
        /// Milliseconds from now.
        lease_ms: u64,
    },
    /// Stop the lease.
    DisarmLease,
    /// Run the service's drain code, then its seal code.
    Leave {
        /// The time that the drain may take. Milliseconds.
        grace_ms: u64,
    },
    /// Go on as [`crate::incumbent::Incumbent`].
    BecomeIncumbent,
    /// Exit.
    Exit {
        /// Exit code.
        code: i32,
    },
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Successor {
    mode: Mode,
    state: State,
    handoff: HandoffId,
    connected: bool,
}

impl Successor {
    /// A process that was welcomed in `handoff`.
    pub fn new(mode: Mode, handoff: HandoffId) -> Self {
        Self { mode, state: State::Starting { asked: false, done: false }, handoff, connected: true }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it is at work for the supervisor, which then wants signs of life.
    pub fn is_working(&self) -> bool {
        match self.state {
            State::Starting { asked, .. } => asked,
            State::Locking | State::Opening => true,
            State::Parked | State::Serving | State::Incumbent | State::Leaving | State::Gone => false,
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

    /// Takes one event and returns what to do.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Message(id, message) if id == self.handoff => self.message(message, &mut out),
            Event::Message(_, _) => self.refuse(&mut out),
            Event::Closed => self.closed(&mut out),
            Event::Adopt(id) => self.adopt(id, &mut out),
            Event::Lease => self.unheard(&mut out),
            Event::Started => self.started(&mut out),
            Event::Locked => {
                if self.state == State::Locking {
                    self.state = State::Opening;
                    out.push(Action::Open);
                }
            }
            Event::Opened(result) => self.opened(result, &mut out),
            Event::SealDone => {
                if self.state == State::Leaving {
                    self.exit(0, &mut out);
                }
            }
        }
        out
    }

    fn message(&mut self, message: ToService, out: &mut Vec<Action>) {
        match (self.state, message) {
            (State::Starting { asked: false, done }, ToService::Prepare(prepare)) => {
                self.state = State::Starting { asked: true, done };
                out.push(Action::ArmLease { lease_ms: prepare.lease_ms });
                self.park(out);
            }
            (State::Parked, ToService::State(state)) if self.mode == Mode::Exclusive => {
                out.push(Action::KeepState(state));
            }
            (State::Parked, ToService::Begin(_)) => {
                out.push(Action::DisarmLease);
                match self.mode {
                    Mode::Exclusive => {
                        self.state = State::Locking;
                        out.push(Action::TakeLock);
                    }
                    Mode::Overlap => {
                        self.state = State::Opening;
                        out.push(Action::Open);
                    }
                }
            }
            (State::Serving, ToService::Commit(_)) => {
                self.state = State::Incumbent;
                out.push(Action::BecomeIncumbent);
            }
            (State::Serving, ToService::Abort(_)) => {
                self.state = State::Leaving;
                out.push(Action::Leave { grace_ms: LEAVE_GRACE_MS });
            }
            (
                State::Starting { .. } | State::Parked | State::Locking | State::Opening,
                ToService::Abort(_),
            ) => {
                self.exit(0, out);
            }
            (State::Leaving | State::Gone, _) => {}
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
        match self.state {
            // Nobody is left who could say `Commit`; whoever serves is the incumbent.
            State::Serving => {
                self.state = State::Incumbent;
                out.push(Action::BecomeIncumbent);
            }
            State::Starting { .. }
            | State::Parked
            | State::Locking
            | State::Opening
            | State::Incumbent
            | State::Leaving
            | State::Gone => self.unheard(out),
        }
    }

    /// The closed channel has sent away whoever was not told to begin.
    fn adopt(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        let stage = match self.state {
            State::Locking => Stage::Waiting,
            State::Opening => Stage::Working,
            State::Serving | State::Incumbent => Stage::Serving,
            State::Starting { .. } | State::Parked | State::Leaving | State::Gone => Stage::Leaving,
        };
        self.handoff = id;
        self.connected = true;
        out.push(Action::Adopted(id, stage));
    }

    fn unheard(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Starting { .. } | State::Parked => self.exit(0, out),
            State::Locking
            | State::Opening
            | State::Serving
            | State::Incumbent
            | State::Leaving
            | State::Gone => {}
        }
    }

    fn started(&mut self, out: &mut Vec<Action>) {
        if let State::Starting { asked, done: false } = self.state {
            self.state = State::Starting { asked, done: true };
            self.park(out);
        }
    }

    fn park(&mut self, out: &mut Vec<Action>) {
        if self.state == (State::Starting { asked: true, done: true }) {
            self.state = State::Parked;
            out.push(Action::Send(self.handoff, FromService::Prepared(Done {})));
        }
    }

    fn opened(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        match (self.state, result) {
            (State::Opening, Ok(())) => {
                self.state = State::Serving;
                self.say(Ready { healthy: true, reason: String::new() }, out);
                if !self.connected {
                    self.state = State::Incumbent;
                    out.push(Action::BecomeIncumbent);
                }
            }
            (State::Starting { .. } | State::Parked | State::Locking | State::Opening, Err(reason)) => {
                self.say(Ready { healthy: false, reason }, out);
                self.exit(1, out);
            }
            (
                State::Starting { .. }
                | State::Parked
                | State::Locking
                | State::Serving
                | State::Incumbent
                | State::Leaving
                | State::Gone,
                _,
            ) => {}
        }
    }

    fn say(&self, ready: Ready, out: &mut Vec<Action>) {
        if self.connected {
            out.push(Action::Send(self.handoff, FromService::Ready(ready)));
        }
    }

    fn exit(&mut self, code: i32, out: &mut Vec<Action>) {
        self.state = State::Gone;
        out.push(Action::Exit { code });
    }
}
