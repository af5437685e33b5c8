//! The table: what each event does in each state.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Event, LEAVE_GRACE_MS, Process, ProcessState, Role};
use crate::ids::HandoffId;
use crate::message::{Done, Failed, FromService, Mode, Ready, Stage, ToService};

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
            (ProcessState::Serving, ToService::Prepare(prepare)) => {
                self.handoff = id;
                self.state = ProcessState::Draining { drained: false };
                out.push(Action::ArmLease { lease_ms: prepare.lease_ms });
                out.push(Action::Drain { grace_ms: prepare.grace_ms, refused: false });
            }
            (_, _) if id != self.handoff => self.refuse(out),
            // The driver stores the grant; it affects no decision.
            (_, ToService::Grant(_)) | (ProcessState::Dismissed | ProcessState::Gone, _) => {}
            (_, message) => match self.role {
                Role::Successor => self.message_before_commit(message, out),
                Role::Incumbent => self.message_after_commit(message, out),
            },
        }
    }

    fn message_before_commit(&mut self, message: ToService, out: &mut Vec<Action>) {
        match (self.state, message) {
            (ProcessState::Starting { asked: false, done }, ToService::Prepare(prepare)) => {
                self.state = ProcessState::Starting { asked: true, done };
                out.push(Action::ArmLease { lease_ms: prepare.lease_ms });
                self.park(out);
            }
            (ProcessState::Parked, ToService::State(state)) if self.mode == Mode::Exclusive => {
                out.push(Action::KeepState(state));
            }
            (ProcessState::Parked, ToService::Begin(_)) => {
                out.push(Action::DisarmLease);
                match self.mode {
                    Mode::Exclusive => {
                        self.state = ProcessState::Locking;
                        out.push(Action::TakeLock);
                    }
                    Mode::Overlap => {
                        self.state = ProcessState::Opening;
                        out.push(Action::Open);
                    }
                }
            }
            (ProcessState::Ready, ToService::Commit(_)) => self.become_incumbent(),
            (ProcessState::Ready, ToService::Abort(_)) => {
                self.state = ProcessState::Dismissed;
                out.push(Action::ArmLease { lease_ms: LEAVE_GRACE_MS });
                out.push(Action::Drain { grace_ms: LEAVE_GRACE_MS, refused: true });
                out.push(Action::Seal { cut: true });
            }
            (
                ProcessState::Starting { .. }
                | ProcessState::Parked
                | ProcessState::Locking
                | ProcessState::Opening,
                ToService::Abort(_),
            ) => {
                self.exit(0, out);
            }
            (_, _) => self.refuse(out),
        }
    }

    fn message_after_commit(&mut self, message: ToService, out: &mut Vec<Action>) {
        match (self.state, message) {
            (ProcessState::Draining { drained }, ToService::Seal(seal)) => {
                if !drained {
                    out.push(Action::CancelDrain);
                }
                self.seal_lease_ms = seal.lease_ms;
                self.state = ProcessState::Sealing { resume: false, leave: false };
                out.push(Action::DisarmLease);
                out.push(Action::Seal { cut: seal.cut });
            }
            (_, ToService::Resume(_)) => self.take_back(out),
            // A process that began to serve without a supervisor may also receive `Abort`.
            (_, ToService::Commit(_) | ToService::Abort(_)) => self.leave(out),
            // The predecessor drains while this process already serves.
            (ProcessState::Serving, ToService::State(state)) if self.mode == Mode::Overlap => {
                out.push(Action::TakeOver(state));
            }
            // The message was in transit when the lease ended or the drain failed.
            (
                ProcessState::Serving
                | ProcessState::Failed
                | ProcessState::Waiting
                | ProcessState::Reopening { .. },
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
            ProcessState::Starting { .. } | ProcessState::Parked => self.exit(0, out),
            // No supervisor is left to send `Commit`, so the serving process is the incumbent.
            ProcessState::Ready => self.become_incumbent(),
            ProcessState::Locking | ProcessState::Opening | ProcessState::Dismissed => {}
            ProcessState::Serving
            | ProcessState::Draining { .. }
            | ProcessState::Sealing { .. }
            | ProcessState::Sealed
            | ProcessState::Failed
            | ProcessState::Waiting
            | ProcessState::Reopening { .. }
            | ProcessState::Leaving
            | ProcessState::Gone => self.take_back(out),
        }
    }

    /// A process without `Begin` has already left when the old channel closed. Whatever an incumbent had given up is
    /// back or on its way back.
    fn adopt(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        let stage = match self.state {
            ProcessState::Ready | ProcessState::Serving => Stage::Serving,
            ProcessState::Locking | ProcessState::Sealed | ProcessState::Waiting => Stage::Waiting,
            ProcessState::Opening
            | ProcessState::Draining { .. }
            | ProcessState::Failed
            | ProcessState::Sealing { leave: false, .. }
            | ProcessState::Reopening { leave: false } => Stage::Working,
            ProcessState::Starting { .. }
            | ProcessState::Parked
            | ProcessState::Dismissed
            | ProcessState::Sealing { leave: true, .. }
            | ProcessState::Reopening { leave: true }
            | ProcessState::Leaving
            | ProcessState::Gone => Stage::Leaving,
        };
        self.handoff = id;
        self.connected = true;
        out.push(Action::Adopted(id, stage));
    }

    fn lease(&mut self, out: &mut Vec<Action>) {
        match self.state {
            ProcessState::Starting { .. } | ProcessState::Parked => self.exit(0, out),
            ProcessState::Draining { .. } | ProcessState::Sealed | ProcessState::Failed => {
                self.take_back(out)
            }
            // Its clients had their time.
            ProcessState::Dismissed | ProcessState::Leaving => out.push(Action::CancelDrain),
            ProcessState::Locking
            | ProcessState::Opening
            | ProcessState::Ready
            | ProcessState::Serving
            | ProcessState::Sealing { .. }
            | ProcessState::Waiting
            | ProcessState::Reopening { .. }
            | ProcessState::Gone => {}
        }
    }

    fn started(&mut self, out: &mut Vec<Action>) {
        if let ProcessState::Starting { asked, done: false } = self.state {
            self.state = ProcessState::Starting { asked, done: true };
            self.park(out);
        }
    }

    fn park(&mut self, out: &mut Vec<Action>) {
        if self.state == (ProcessState::Starting { asked: true, done: true }) {
            self.state = ProcessState::Parked;
            out.push(Action::Send(self.handoff, FromService::Prepared(Done {})));
        }
    }

    fn locked(&mut self, out: &mut Vec<Action>) {
        match self.state {
            ProcessState::Locking => {
                self.state = ProcessState::Opening;
                out.push(Action::Open);
            }
            ProcessState::Waiting => self.reopen(out),
            ProcessState::Starting { .. }
            | ProcessState::Parked
            | ProcessState::Opening
            | ProcessState::Ready
            | ProcessState::Dismissed
            | ProcessState::Serving
            | ProcessState::Draining { .. }
            | ProcessState::Sealing { .. }
            | ProcessState::Sealed
            | ProcessState::Failed
            | ProcessState::Reopening { .. }
            | ProcessState::Leaving
            | ProcessState::Gone => {}
        }
    }

    /// Without its lock the process can never write.
    fn lock_failed(&mut self, reason: String, out: &mut Vec<Action>) {
        match self.state {
            ProcessState::Locking => self.opened(Err(reason), out),
            ProcessState::Waiting => self.exit(1, out),
            ProcessState::Starting { .. }
            | ProcessState::Parked
            | ProcessState::Opening
            | ProcessState::Ready
            | ProcessState::Dismissed
            | ProcessState::Serving
            | ProcessState::Draining { .. }
            | ProcessState::Sealing { .. }
            | ProcessState::Sealed
            | ProcessState::Failed
            | ProcessState::Reopening { .. }
            | ProcessState::Leaving
            | ProcessState::Gone => {}
        }
    }

    fn opened(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        match (self.state, result) {
            (ProcessState::Opening, Ok(())) => {
                self.state = ProcessState::Ready;
                self.send(FromService::Ready(Ready { healthy: true, reason: String::new() }), out);
                if !self.connected {
                    self.become_incumbent();
                }
            }
            (
                ProcessState::Starting { .. }
                | ProcessState::Parked
                | ProcessState::Locking
                | ProcessState::Opening,
                Err(reason),
            ) => {
                self.send(FromService::Ready(Ready { healthy: false, reason }), out);
                self.exit(1, out);
            }
            (
                ProcessState::Starting { .. }
                | ProcessState::Parked
                | ProcessState::Locking
                | ProcessState::Ready
                | ProcessState::Dismissed
                | ProcessState::Serving
                | ProcessState::Draining { .. }
                | ProcessState::Sealing { .. }
                | ProcessState::Sealed
                | ProcessState::Failed
                | ProcessState::Waiting
                | ProcessState::Reopening { .. }
                | ProcessState::Leaving
                | ProcessState::Gone,
                _,
            ) => {}
        }
    }

    fn become_incumbent(&mut self) {
        self.state = ProcessState::Serving;
        self.role = Role::Incumbent;
    }

    /// Serve again with everything that was taken away.
    fn take_back(&mut self, out: &mut Vec<Action>) {
        match self.state {
            ProcessState::Draining { drained } => {
                if !drained {
                    out.push(Action::CancelDrain);
                }
                self.reopen(out);
            }
            ProcessState::Sealing { leave, .. } => self.state = ProcessState::Sealing { resume: true, leave },
            ProcessState::Failed => self.reopen(out),
            ProcessState::Sealed => match self.mode {
                Mode::Exclusive => {
                    self.state = ProcessState::Waiting;
                    out.push(Action::DisarmLease);
                    out.push(Action::TakeLock);
                }
                Mode::Overlap => self.reopen(out),
            },
            // Nothing was taken from an uncommitted process.
            ProcessState::Starting { .. }
            | ProcessState::Parked
            | ProcessState::Locking
            | ProcessState::Opening
            | ProcessState::Ready
            | ProcessState::Dismissed
            | ProcessState::Serving
            | ProcessState::Waiting
            | ProcessState::Reopening { .. }
            | ProcessState::Leaving
            | ProcessState::Gone => {}
        }
    }

    fn reopen(&mut self, out: &mut Vec<Action>) {
        self.state = ProcessState::Reopening { leave: false };
        out.push(Action::DisarmLease);
        out.push(Action::Resume);
    }

    /// Another process is committed, or the service stops.
    fn leave(&mut self, out: &mut Vec<Action>) {
        match self.state {
            ProcessState::Serving | ProcessState::Draining { .. } | ProcessState::Failed => {
                self.state = ProcessState::Leaving;
                out.push(Action::ArmLease { lease_ms: LEAVE_GRACE_MS });
                out.push(Action::Drain { grace_ms: LEAVE_GRACE_MS, refused: false });
                out.push(Action::Seal { cut: true });
            }
            ProcessState::Sealing { resume, .. } => {
                self.state = ProcessState::Sealing { resume, leave: true }
            }
            ProcessState::Reopening { .. } => self.state = ProcessState::Reopening { leave: true },
            ProcessState::Sealed | ProcessState::Waiting => self.exit(0, out),
            // `message_before_commit` dismisses an uncommitted process.
            ProcessState::Starting { .. }
            | ProcessState::Parked
            | ProcessState::Locking
            | ProcessState::Opening
            | ProcessState::Ready
            | ProcessState::Dismissed
            | ProcessState::Leaving
            | ProcessState::Gone => {}
        }
    }

    fn drain_done(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        // A cancelled drain changes nothing: the next step is already decided.
        if self.state != (ProcessState::Draining { drained: false }) {
            return;
        }
        match result {
            Ok(()) => {
                self.state = ProcessState::Draining { drained: true };
                self.send(FromService::Drained(Done {}), out);
            }
            Err(reason) => {
                self.state = ProcessState::Failed;
                self.send(FromService::SealFailed(Failed { reason }), out);
            }
        }
    }

    fn seal_done(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        match self.state {
            ProcessState::Sealing { leave: true, .. } | ProcessState::Leaving | ProcessState::Dismissed => {
                self.exit(0, out)
            }
            ProcessState::Sealing { resume: true, leave: false } => self.reopen(out),
            ProcessState::Sealing { resume: false, leave: false } => {
                out.push(Action::ArmLease { lease_ms: self.seal_lease_ms });
                match result {
                    Ok(()) => {
                        self.state = ProcessState::Sealed;
                        if self.mode == Mode::Exclusive {
                            out.push(Action::ReleaseLock);
                        }
                        self.send(FromService::Sealed(Done {}), out);
                    }
                    Err(reason) => {
                        self.state = ProcessState::Failed;
                        self.send(FromService::SealFailed(Failed { reason }), out);
                    }
                }
            }
            ProcessState::Starting { .. }
            | ProcessState::Parked
            | ProcessState::Locking
            | ProcessState::Opening
            | ProcessState::Ready
            | ProcessState::Serving
            | ProcessState::Draining { .. }
            | ProcessState::Sealed
            | ProcessState::Failed
            | ProcessState::Waiting
            | ProcessState::Reopening { .. }
            | ProcessState::Gone => {}
        }
    }

    fn resume_done(&mut self, result: Result<(), String>, out: &mut Vec<Action>) {
        let ProcessState::Reopening { leave } = self.state else { return };
        match result {
            Ok(()) => {
                self.state = ProcessState::Serving;
                self.send(FromService::Resumed(Done {}), out);
                if leave {
                    self.leave(out);
                }
            }
            // A process that cannot serve must not keep the lock from one that can.
            Err(reason) => {
                self.send(FromService::ResumeFailed(Failed { reason }), out);
                self.exit(1, out);
            }
        }
    }
}
