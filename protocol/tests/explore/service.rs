//! What the actions of the processes of the service do to the world, and what their code does.

use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::incumbent::{self, Incumbent};
use handoff_protocol::message::{Adopted, FromService, Hello, Stage, ToService};
use handoff_protocol::state::State;
use handoff_protocol::successor::{self, Successor};
use handoff_protocol::version::VersionRange;

use crate::defects::Defect;
use crate::invariants;
use crate::process::{Code, Letter, Part};
use crate::steps::Context;
use crate::world::{Chair, World};

impl World {
    pub fn greet(&mut self, at: usize) {
        self.process_mut(at).part = Part::Stranger { greeted: true };
        let id = self.process(at).born_in;
        self.say(at, id, FromService::Hello(Hello { versions: VersionRange::OURS, pid: 1 }));
    }

    /// A process takes the next message out of its channel.
    pub fn hear(&mut self, at: usize, cx: &mut Context) {
        let (id, letter) = self.process_mut(at).channel.inbox.remove(0);
        match (&self.process(at).part, letter) {
            (Part::Stranger { .. }, Letter::Welcome) => {
                let process = self.process_mut(at);
                process.part = Part::Successor(Successor::new(cx.model.mode, id));
                process.code = Some(Code::Start);
            }
            // It was sent away before it was welcomed.
            (Part::Stranger { .. }, Letter::Message(ToService::Abort(_))) => self.end(at),
            (Part::Successor(_), Letter::Message(message)) => {
                self.succeed(at, successor::Event::Message(id, message), cx)
            }
            (Part::Incumbent(_), Letter::Message(message)) => {
                self.incumb(at, incumbent::Event::Message(id, message), cx)
            }
            (Part::Stranger { .. } | Part::Successor(_) | Part::Incumbent(_), _) => {
                cx.check(Err("nobody breaks the protocol"))
            }
        }
    }

    /// A process notices that its channel is closed.
    pub fn notice_closed(&mut self, at: usize, cx: &mut Context) {
        let process = self.process_mut(at);
        process.channel.closed_seen = true;
        process.channel.inbox.clear();
        match &process.part {
            Part::Stranger { .. } => self.end(at),
            Part::Successor(machine) => {
                let leaves = cx.model.has(Defect::LeaveAfterBegin)
                    && matches!(machine.state(), successor::State::Locking | successor::State::Opening);
                match leaves {
                    true => self.end(at),
                    false => self.succeed(at, successor::Event::Closed, cx),
                }
            }
            Part::Incumbent(_) if cx.model.has(Defect::IgnoreClosed) => {}
            Part::Incumbent(_) => self.incumb(at, incumbent::Event::Closed, cx),
        }
    }

    /// A process looks who else calls.
    pub fn adopts(&mut self, at: usize, cx: &mut Context) {
        let process = self.process_mut(at);
        process.channel = process.calls.remove(0);
        let (mut id, _) = process.channel.inbox.remove(0);
        if let (Part::Incumbent(machine), true) = (&process.part, cx.model.has(Defect::KeepOldHandoff)) {
            id = machine.handoff();
        }
        match &process.part {
            // It waits for the answer to its Hello, and for nothing else.
            Part::Stranger { .. } => {}
            Part::Successor(_) => self.succeed(at, successor::Event::Adopt(id), cx),
            Part::Incumbent(_) => self.incumb(at, incumbent::Event::Adopt(id), cx),
        }
    }

    pub fn lease_ends(&mut self, at: usize, cx: &mut Context) {
        let process = self.process_mut(at);
        (process.lease, process.overdue) = (false, false);
        match &process.part {
            Part::Stranger { .. } => {}
            Part::Successor(_) => self.succeed(at, successor::Event::Lease, cx),
            Part::Incumbent(_) if cx.model.has(Defect::IgnoreLease) => {}
            Part::Incumbent(_) => self.incumb(at, incumbent::Event::Lease, cx),
        }
    }

    pub fn granted(&mut self, at: usize, cx: &mut Context) {
        self.lock = Some(at);
        let process = self.process_mut(at);
        process.waits = false;
        match process.runs() {
            true => self.locked(at, cx),
            // A frozen process is given the lock, but does not know it.
            false => process.granted = true,
        }
    }

    pub fn locked(&mut self, at: usize, cx: &mut Context) {
        let process = self.process_mut(at);
        process.granted = false;
        match &process.part {
            Part::Stranger { .. } => {}
            Part::Successor(_) => self.succeed(at, successor::Event::Locked, cx),
            Part::Incumbent(_) => self.incumb(at, incumbent::Event::Locked, cx),
        }
    }

    /// The code of the service that runs returns.
    pub fn code_returns(&mut self, at: usize, ok: bool, cx: &mut Context) {
        let result = if ok { Ok(()) } else { Err(String::new()) };
        let process = self.process_mut(at);
        let Some(code) = process.code.take() else { return };
        self.note_failure(at, code, ok);
        let process = self.process_mut(at);
        match (code, ok) {
            (Code::Seal, true) => process.sealed = true,
            (Code::Open | Code::Resume, true) => process.accepts = true,
            (Code::Open | Code::Resume | Code::Start, false) => process.unfit = true,
            (Code::Seal, false) | (Code::Start, true) | (Code::Drain, _) => {}
        }
        if let Some(next) = process.next.take() {
            self.run(at, next);
        }
        match (&self.process(at).part, code) {
            (Part::Successor(_), Code::Start) if ok => self.succeed(at, successor::Event::Started, cx),
            (Part::Successor(_), Code::Start | Code::Open) => {
                self.succeed(at, successor::Event::Opened(result), cx)
            }
            (Part::Successor(_), Code::Seal) => self.succeed(at, successor::Event::SealDone, cx),
            (Part::Incumbent(_), Code::Drain) => self.incumb(at, incumbent::Event::DrainDone(result), cx),
            (Part::Incumbent(_), Code::Seal) => self.incumb(at, incumbent::Event::SealDone(result), cx),
            (Part::Incumbent(_), Code::Resume) => self.incumb(at, incumbent::Event::ResumeDone(result), cx),
            (_, _) => {}
        }
    }

    /// A standby that cannot resume is lost, and without a supervisor nobody starts another process when the last one
    /// that could serve cannot.
    fn note_failure(&mut self, at: usize, code: Code, ok: bool) {
        let others =
            self.existing().any(|(other, process)| other != at && process.runs() && process.is_entitled());
        self.lost_another |= match (self.chair, code) {
            (Chair::Runs, Code::Resume) => !ok,
            (Chair::Frozen | Chair::Dead, Code::Open | Code::Resume) => !ok && !others,
            (_, _) => false,
        };
    }

    /// Each state has a number of its own.
    pub fn hands_over(&mut self, at: usize, cx: &mut Context) {
        let number = u32::from(cx.model.budget.states - self.budget.states);
        self.incumb(at, incumbent::Event::HandOver(State::new(number, &[]).expect("a state")), cx);
    }

    /// A successor finds out that it is not fit before it was told to begin.
    pub fn unfit(&mut self, at: usize, cx: &mut Context) {
        self.process_mut(at).unfit = true;
        self.succeed(at, successor::Event::Opened(Err(String::new())), cx);
    }

    /// Code runs at once, or after the code that runs now. Code is asked for twice only if it runs already.
    fn run(&mut self, at: usize, code: Code) {
        let process = self.process_mut(at);
        match process.code {
            None => {
                process.code = Some(code);
                match code {
                    Code::Seal => process.accepts = false,
                    Code::Open | Code::Resume => (process.data_open, process.sealed) = (true, false),
                    Code::Start | Code::Drain => {}
                }
            }
            Some(Code::Drain) if code == Code::Drain => {}
            Some(_) => process.next = Some(code),
        }
    }

    pub fn say(&mut self, at: usize, id: HandoffId, message: FromService) {
        let heard = self.is_supervised();
        let channel = &mut self.process_mut(at).channel;
        if heard && channel.is_open() {
            channel.outbox.push((id, message));
        }
    }

    fn succeed(&mut self, at: usize, event: successor::Event, cx: &mut Context) {
        let Part::Successor(machine) = &mut self.process_mut(at).part else { return };
        for action in machine.step(event) {
            cx.log(|| format!("process {at}: {action:?}"));
            match action {
                successor::Action::Send(id, message) => self.say(at, id, message),
                successor::Action::Adopted(id, stage) => self.say(at, id, adopted(stage)),
                successor::Action::KeepState(_) => {}
                successor::Action::HangUp => self.hang_up(at, cx),
                successor::Action::TakeLock => self.process_mut(at).waits = true,
                successor::Action::Open => self.run(at, Code::Open),
                successor::Action::ArmLease { .. } => self.lease(at, true),
                successor::Action::DisarmLease => self.lease(at, false),
                successor::Action::Leave { .. } => {
                    self.run(at, Code::Drain);
                    self.run(at, Code::Seal);
                }
                successor::Action::BecomeIncumbent => self.become_incumbent(at, cx),
                successor::Action::Exit { .. } => return self.end(at),
            }
        }
    }

    fn become_incumbent(&mut self, at: usize, cx: &mut Context) {
        let Part::Successor(machine) = &self.process(at).part else { return };
        let connected = machine.is_connected();
        let incumbent = Incumbent::new(cx.model.mode, machine.handoff());
        self.process_mut(at).part = Part::Incumbent(incumbent);
        if !connected {
            self.incumb(at, incumbent::Event::Closed, cx);
        }
    }

    fn incumb(&mut self, at: usize, event: incumbent::Event, cx: &mut Context) {
        let Part::Incumbent(machine) = &mut self.process_mut(at).part else { return };
        let mut actions = machine.step(event);
        if cx.model.has(Defect::ReleaseAfterSealed)
            && let Some(release) = actions.iter().position(|action| *action == incumbent::Action::ReleaseLock)
        {
            actions[release..].rotate_left(1);
        }
        for action in actions {
            cx.log(|| format!("process {at}: {action:?}"));
            self.perform_incumbent(at, action, cx);
            if self.processes[at].as_ref().is_none_or(|process| !process.runs()) {
                return;
            }
        }
    }

    fn perform_incumbent(&mut self, at: usize, action: incumbent::Action, cx: &mut Context) {
        match action {
            incumbent::Action::Send(id, message) => {
                if let FromService::Sealed(_) = message {
                    cx.check(invariants::may_say_sealed(self, at));
                    self.process_mut(at).said_sealed = Some(id);
                }
                if let FromService::State(state) = &message {
                    cx.check(invariants::may_hand_over(self, at, id));
                    self.process_mut(at).handed = Some((id, state.format()));
                }
                self.say(at, id, message)
            }
            incumbent::Action::Adopted(id, stage) => self.say(at, id, adopted(stage)),
            incumbent::Action::TakeOver(_) => {}
            incumbent::Action::HangUp => self.hang_up(at, cx),
            incumbent::Action::Drain { .. } => self.run(at, Code::Drain),
            // It returns when it likes; that is in the model anyway.
            incumbent::Action::CancelDrain => {}
            incumbent::Action::Seal { .. } => {
                self.run(at, Code::Seal);
                if cx.model.has(Defect::ReleaseBeforeSealed) {
                    self.release(at, cx);
                }
            }
            incumbent::Action::ReleaseLock => self.release(at, cx),
            incumbent::Action::TakeLock if cx.model.has(Defect::ResumeWithoutLock) => {
                self.incumb(at, incumbent::Event::Locked, cx)
            }
            incumbent::Action::TakeLock => self.process_mut(at).waits = true,
            incumbent::Action::Resume => self.run(at, Code::Resume),
            incumbent::Action::ArmLease { .. } => self.lease(at, true),
            incumbent::Action::DisarmLease => self.lease(at, false),
            incumbent::Action::Exit { .. } => self.end(at),
        }
    }

    fn lease(&mut self, at: usize, runs: bool) {
        let process = self.process_mut(at);
        (process.lease, process.overdue) = (runs, false);
    }

    fn release(&mut self, at: usize, cx: &mut Context) {
        cx.check(invariants::may_release(self, at));
        if self.lock == Some(at) {
            self.lock = None;
        }
        self.process_mut(at).data_open = false;
    }

    fn hang_up(&mut self, at: usize, cx: &mut Context) {
        cx.check(Err("nobody breaks the protocol"));
        let channel = &mut self.process_mut(at).channel;
        (channel.up, channel.closed_seen) = (false, true);
    }
}

fn adopted(stage: Stage) -> FromService {
    FromService::Adopted(Adopted {
        version: 1,
        pid: 1,
        service: "s3".parse().expect("a name"),
        generation: Generation(0),
        stage,
        listeners: Vec::new(),
    })
}
