//! The table: what each event does in each state.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Event, LEAVE_GRACE_MS, Process, Role, State};
use crate::ids::HandoffId;
use crate::message::{Done, Failed, FromService, Mode, Ready, Stage, ToService};
use crate::state;

impl Process {
    /// Processes one event. Returns the actions to perform, in order.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Message(id, message) => self.message(id, message, &mut out),
            Event::Closed => self.closed(&mut out),
            Event::Adopt(id) => self.adopt(id, &mut out),
            Event::Lease => self.lease(&mut out),
            Event::Started => self.started(&mut out),
            Event::Locked => self.locked(&mut out),
            Event::LockFailed(reason) => self.lock_failed(reason, &mut out),
            Event::Opened(result) => self.opened(result, &mut out),
            Event::HandOver(state) => self.hand_over(state, &mut out),
            Event::DrainDone(result) => self.drain_done(result, &mut out),
            Event::SealDone(result) => self.seal_done(result, &mut out),
            Event::ResumeDone(result) => self.resume_done(result, &mut out),
        }
        out
    }

    fn message(&mut self, id: HandoffId, message: ToService, out: &mut Vec<Action>) {
        match (self.state, message) {
            // The only message that begins another handoff.
            (State::Serving, ToService::Prepare(prepare)) => {
                self.handoff = id;
                self.state = State::Draining { drained: false };
                out.push(Action::ArmLease { lease_ms: prepare.lease_ms });
                out.push(Action::Drain { grace_ms: prepare.grace_ms, refused: false });
            }
            (_, _) if id != self.handoff => self.refuse(out),
            // The driver stores the grant; it affects no decision.
            (_, ToService::Grant(_)) | (State::Dismissed | State::Gone, _) => {}
            (_, message) => match self.role {
                Role::Successor => self.message_before_commit(message, out),
                Role::Incumbent => self.message_after_commit(message, out),
            },
        }
    }

    fn message_before_commit(&mut self, message: ToService, out: &mut Vec<Action>) {
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
            (State::Ready, ToService::Commit(_)) => self.become_incumbent(),
            (State::Ready, ToService::Abort(_)) => {
                self.state = State::Dismissed;
                out.push(Action::ArmLease { lease_ms: LEAVE_GRACE_MS });
                out.push(Action::Drain { grace_ms: LEAVE_GRACE_MS, refused: true });
                out.push(Action::Seal { cut: true });
            }
            (
                State::Starting { .. } | State::Parked | State::Locking | State::Opening,
                ToService::Abort(_),
            ) => {
                self.exit(0, out);
            }
            (_, _) => self.refuse(out),
        }
    }

    fn message_after_commit(&mut self, message: ToService, out: &mut Vec<Action>) {
        match (self.state, message) {
            (State::Draining { drained }, ToService::Seal(seal)) => {
                if !drained {
                    out.push(Action::CancelDrain);
                }
                self.seal_lease_ms = seal.lease_ms;
                self.state = State::Sealing { resume: false, leave: false };
                out.push(Action::DisarmLease);
                out.push(Action::Seal { cut: seal.cut });
            }
            (_, ToService::Resume(_)) => self.take_back(out),
            // A process that began to serve without a supervisor may also receive `Abort`.
            (_, ToService::Commit(_) | ToService::Abort(_)) => self.leave(out),
            // The predecessor drains while this process already serves.
            (State::Serving, ToService::State(state)) if self.mode == Mode::Overlap => {
                out.push(Action::TakeOver(state));
            }
            // The message was in transit when the lease ended or the drain failed.
            (
                State::Serving | State::Failed | State::Waiting | State::Reopening { .. },
                ToService::Seal(_),
            ) => {}
            (_, _) => self.refuse(out),
        }
    }

    /// The supervisor broke the protocol: nothing it sends counts anymore.
    fn refuse(&mut self, out: &mut Vec<Action>) {
        out.push(Action::HangUp);
        self.closed(out);
    }

    fn closed(&mut self, out: &mut Vec<Action>) {
        self.connected = false;
        match self.state {
            State::Starting { .. } | State::Parked => self.exit(0, out),
            // No supervisor is left to send `Commit`, so the serving process is the incumbent.
            State::Ready => self.become_incumbent(),
            State::Locking | State::Opening | State::Dismissed => {}
            State::Serving
            | State::Draining { .. }
            | State::Sealing { .. }
            | State::Sealed
            | State::Failed
            | State::Waiting
            | State::Reopening { .. }
            | State::Leaving
            | State::Gone => self.take_back(out),
        }
    }

    /// A process without `Begin` has already left when the old channel closed. Whatever an incumbent had given up is
    /// back or on its way back.
    fn adopt(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        let stage = match self.state {
            State::Ready | State::Serving => Stage::Serving,
            State::Locking | State::Sealed | State::Waiting => Stage::Waiting,
            State::Opening
            | State::Draining { .. }
            | State::Failed
            | State::Sealing { leave: false, .. }
            | State::Reopening { leave: false } => Stage::Working,
            State::Starting { .. }
            | State::Parked
            | State::Dismissed
            | State::Sealing { leave: true, .. }
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
            State::Starting { .. } | State::Parked => self.exit(0, out),
            State::Draining { .. } | State::Sealed | State::Failed => self.take_back(out),
            // Its clients had their time.
            State::Dismissed | State::Leaving => out.push(Action::CancelDrain),
            State::Locking
            | State::Opening
            | State::Ready
            | State::Serving
            | State::Sealing { .. }
            | State::Waiting
            | State::Reopening { .. }
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

    fn locked(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Locking => {
                self.state = State::Opening;
                out.push(Action::Open);
            }
            State::Waiting => self.reopen(out),
            State::Starting { .. }
            | State::Parked
            | State::Opening
            | State::Ready
            | State::Dismissed
            | State::Serving
            | State::Draining { .. }
            | State::Sealing { .. }
            | State::Sealed
            | State::Failed
            | State::Reopening { .. }
            | State::Leaving
            | State::Gone => {}
        }
    }

    /// Without its lock the process can never write.
    fn lock_failed(&mut self, reason: String, out: &mut Vec<Action>) {
        match self.state {
            State::Locking => self.opened(Err(reason), out),
            State::Waiting => self.exit(1, out),
            State::Starting { .. }
            | State::Parked
            | State::Opening
            | State::Ready
            | State::Dismissed
            | State::Serving
            | State::Draining { .. }
            | State::Sealing { .. }
            | State::Sealed
            | State::Failed
            | State::Reopening { .. }
            | State::Leaving
            | State::Gone => {}
        }
    }

    fn opened(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        match (self.state, result) {
            (State::Opening, Ok(())) => {
                self.state = State::Ready;
                self.say(FromService::Ready(Ready { healthy: true, reason: String::new() }), out);
                if !self.connected {
                    self.become_incumbent();
                }
            }
            (State::Starting { .. } | State::Parked | State::Locking | State::Opening, Err(reason)) => {
                self.say(FromService::Ready(Ready { healthy: false, reason }), out);
                self.exit(1, out);
            }
            (
                State::Starting { .. }
                | State::Parked
                | State::Locking
                | State::Ready
                | State::Dismissed
                | State::Serving
                | State::Draining { .. }
                | State::Sealing { .. }
                | State::Sealed
                | State::Failed
                | State::Waiting
                | State::Reopening { .. }
                | State::Leaving
                | State::Gone,
                _,
            ) => {}
        }
    }

    fn become_incumbent(&mut self) {
        self.state = State::Serving;
        self.role = Role::Incumbent;
    }

    /// Serve again with everything that was taken away.
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
            // Nothing was taken from an uncommitted process.
            State::Starting { .. }
            | State::Parked
            | State::Locking
            | State::Opening
            | State::Ready
            | State::Dismissed
            | State::Serving
            | State::Waiting
            | State::Reopening { .. }
            | State::Leaving
            | State::Gone => {}
        }
    }

    fn reopen(&mut self, out: &mut Vec<Action>) {
        self.state = State::Reopening { leave: false };
        out.push(Action::DisarmLease);
        out.push(Action::Resume);
    }

    /// Another process is committed, or the service stops.
    fn leave(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Serving | State::Draining { .. } | State::Failed => {
                self.state = State::Leaving;
                out.push(Action::ArmLease { lease_ms: LEAVE_GRACE_MS });
                out.push(Action::Drain { grace_ms: LEAVE_GRACE_MS, refused: false });
                out.push(Action::Seal { cut: true });
            }
            State::Sealing { resume, .. } => self.state = State::Sealing { resume, leave: true },
            State::Reopening { .. } => self.state = State::Reopening { leave: true },
            State::Sealed | State::Waiting => self.exit(0, out),
            // `message_before_commit` dismisses an uncommitted process.
            State::Starting { .. }
            | State::Parked
            | State::Locking
            | State::Opening
            | State::Ready
            | State::Dismissed
            | State::Leaving
            | State::Gone => {}
        }
    }

    /// Forwards state only while a successor waits for it; at other times it has no recipient.
    fn hand_over(&self, state: state::State, out: &mut Vec<Action>) {
        match self.state {
            State::Draining { .. } | State::Sealing { resume: false, leave: false } => {
                self.say(FromService::State(state), out)
            }
            State::Starting { .. }
            | State::Parked
            | State::Locking
            | State::Opening
            | State::Ready
            | State::Dismissed
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

    fn drain_done(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        // A cancelled drain changes nothing: the next step is already decided.
        if self.state != (State::Draining { drained: false }) {
            return;
        }
        match result {
            Ok(()) => {
                self.state = State::Draining { drained: true };
                self.say(FromService::Drained(Done {}), out);
            }
            Err(reason) => {
                self.state = State::Failed;
                self.say(FromService::SealFailed(Failed { reason }), out);
            }
        }
    }

    fn seal_done(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        match self.state {
            State::Sealing { leave: true, .. } | State::Leaving | State::Dismissed => self.exit(0, out),
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
            State::Starting { .. }
            | State::Parked
            | State::Locking
            | State::Opening
            | State::Ready
            | State::Serving
            | State::Draining { .. }
            | State::Sealed
            | State::Failed
            | State::Waiting
            | State::Reopening { .. }
            | State::Gone => {}
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
