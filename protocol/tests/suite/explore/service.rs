//! The effect of the processes' actions on the world, and what their code does.

use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::message::{Adopted, FromService, Hello, Stage, ToService};
use handoff_protocol::process::{Action, Event, Process, ProcessState};
use handoff_protocol::state;
use handoff_protocol::version::VersionRange;

use super::defects::Defect;
use super::invariants;
use super::process::{Code, Delivery, Membership};
use super::steps::Context;
use super::world::{SupervisorStatus, World};

impl World {
    pub fn greet(&mut self, at: usize) {
        self.process_mut(at).membership = Membership::Stranger { greeted: true };
        let id = self.process(at).born_in;
        self.say(at, id, FromService::Hello(Hello { versions: VersionRange::OURS, pid: 1 }));
    }

    /// A process takes the next message from its channel.
    pub fn hear(&mut self, at: usize, cx: &mut Context) {
        let (id, delivery) = self.process_mut(at).channel.inbox.remove(0);
        match (&self.process(at).membership, delivery) {
            (Membership::Stranger { .. }, Delivery::Welcome) => {
                let process = self.process_mut(at);
                process.membership = Membership::Welcomed(Process::new(cx.model.mode, id));
                process.code = Some(Code::Start);
            }
            // It was sent away before its `Welcome`.
            (Membership::Stranger { .. }, Delivery::Message(ToService::Abort(_))) => self.end(at),
            (Membership::Welcomed(_), Delivery::Message(message)) => {
                self.happens(at, Event::Message(id, message), cx)
            }
            (Membership::Stranger { .. } | Membership::Welcomed(_), _) => {
                cx.check(Err("no process breaks the protocol"))
            }
        }
    }

    /// A process notices that its channel is closed.
    pub fn notice_closed(&mut self, at: usize, cx: &mut Context) {
        let process = self.process_mut(at);
        process.channel.closed_seen = true;
        process.channel.inbox.clear();
        let leaves = cx.model.has(Defect::LeaveAfterBegin)
            && matches!(process.membership.state(), Some(ProcessState::Locking | ProcessState::Opening));
        let ignores = cx.model.has(Defect::IgnoreClosed) && process.membership.is_incumbent();
        match &process.membership {
            Membership::Stranger { .. } => self.end(at),
            Membership::Welcomed(_) if leaves => self.end(at),
            Membership::Welcomed(_) if ignores => {}
            Membership::Welcomed(_) => self.happens(at, Event::Closed, cx),
        }
    }

    /// A process accepts the channel of another supervisor.
    pub fn adopts(&mut self, at: usize, cx: &mut Context) {
        let process = self.process_mut(at);
        process.channel = process.calls.remove(0);
        let (mut id, _) = process.channel.inbox.remove(0);
        if let Membership::Welcomed(machine) = &process.membership
            && process.membership.is_incumbent()
            && cx.model.has(Defect::KeepOldHandoff)
        {
            id = machine.handoff();
        }
        // A stranger waits only for the answer to its `Hello`.
        self.happens(at, Event::Adopt(id), cx);
    }

    pub fn lease_ends(&mut self, at: usize, cx: &mut Context) {
        let process = self.process_mut(at);
        (process.lease, process.overdue) = (false, false);
        if !(cx.model.has(Defect::IgnoreLease) && process.membership.is_incumbent()) {
            self.happens(at, Event::Lease, cx);
        }
    }

    pub fn granted(&mut self, at: usize, cx: &mut Context) {
        self.lock = Some(at);
        let process = self.process_mut(at);
        process.waits = false;
        match process.runs() {
            true => self.locked(at, cx),
            // A frozen process gets the lock without knowing it.
            false => process.granted = true,
        }
    }

    pub fn locked(&mut self, at: usize, cx: &mut Context) {
        let process = self.process_mut(at);
        process.granted = false;
        self.happens(at, Event::Locked, cx);
    }

    /// The running code of the service returns.
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
        let event = match code {
            Code::Start if ok => Event::Started,
            Code::Start | Code::Open => Event::Opened(result),
            Code::Drain => Event::DrainDone(result),
            Code::Seal => Event::SealDone(result),
            Code::Resume => Event::ResumeDone(result),
        };
        self.happens(at, event, cx);
    }

    /// A standby that cannot resume is lost. Without a supervisor, no new process is started when the last one that
    /// could serve fails.
    fn note_failure(&mut self, at: usize, code: Code, ok: bool) {
        let others = self.existing().any(|(other, process)| {
            // A process that got its stop signal need not serve any more.
            other != at && process.runs() && process.is_entitled() && !process.terminated
        });
        self.lost_another |= match (self.supervisor, code) {
            (SupervisorStatus::Runs, Code::Resume) => !ok,
            (SupervisorStatus::Frozen | SupervisorStatus::Dead, Code::Open | Code::Resume) => !ok && !others,
            (_, _) => false,
        };
    }

    /// Each state has its own number.
    pub fn hands_over(&mut self, at: usize, cx: &mut Context) {
        let number = u32::from(cx.model.budget.states - self.budget.states);
        self.happens(at, Event::HandOver(state::State::new(number, &[]).expect("a state")), cx);
    }

    /// A successor finds out that it is unfit before its `Begin`.
    pub fn unfit(&mut self, at: usize, cx: &mut Context) {
        self.process_mut(at).unfit = true;
        self.happens(at, Event::Opened(Err(String::new())), cx);
    }

    /// Code runs at once, or after the code that runs now. Code is requested twice only if it already runs.
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

    fn happens(&mut self, at: usize, event: Event, cx: &mut Context) {
        let Membership::Welcomed(machine) = &mut self.process_mut(at).membership else { return };
        let mut actions = machine.step(event);
        if cx.model.has(Defect::ReleaseAfterSealed)
            && let Some(release) = actions.iter().position(|action| *action == Action::ReleaseLock)
        {
            actions[release..].rotate_left(1);
        }
        for action in actions {
            cx.log(|| format!("process {at}: {action:?}"));
            self.process_does(at, action, cx);
            if self.processes[at].as_ref().is_none_or(|process| !process.runs()) {
                return;
            }
        }
    }

    fn process_does(&mut self, at: usize, action: Action, cx: &mut Context) {
        match action {
            Action::Send(id, message) => {
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
            Action::Adopted(id, stage) => self.say(at, id, adopted(stage)),
            // The code returns at any time; the model covers that anyway.
            Action::CancelDrain => {}
            Action::KeepState(_) | Action::TakeOver(_) => {}
            Action::HangUp => self.hang_up(at, cx),
            Action::TakeLock if cx.model.has(Defect::ResumeWithoutLock) && self.is_incumbent(at) => {
                self.happens(at, Event::Locked, cx)
            }
            Action::TakeLock => self.process_mut(at).waits = true,
            Action::ReleaseLock => self.release(at, cx),
            Action::Open => self.run(at, Code::Open),
            Action::Drain { .. } => self.run(at, Code::Drain),
            Action::Seal { .. } => {
                self.run(at, Code::Seal);
                if cx.model.has(Defect::ReleaseBeforeSealed) && self.is_incumbent(at) {
                    self.release(at, cx);
                }
            }
            Action::Resume => self.run(at, Code::Resume),
            Action::ArmLease { .. } => self.lease(at, true),
            Action::DisarmLease => self.lease(at, false),
            Action::Exit { .. } => self.end(at),
        }
    }

    fn is_incumbent(&self, at: usize) -> bool {
        self.process(at).membership.is_incumbent()
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
        cx.check(Err("no process breaks the protocol"));
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
