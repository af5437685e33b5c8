//! The effect of the supervisor's actions on the world.

use handoff_protocol::deadline::Deadline;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{Commit, Done, FromService, Mode, ToService};
use handoff_protocol::reason::Exit;
use handoff_protocol::supervisor::{Action, DurableFact, Event, Moment, Phase, Refusal, Request, Target};

use super::defects::Defect;
use super::invariants;
use super::journal::Journal;
use super::process::{Delivery, Process, ProcessStatus};
use super::steps::Context;
use super::world::{SupervisorStatus, World};

impl World {
    /// The supervisor takes one event and performs the actions, unless it ends in the middle.
    pub fn tell(&mut self, event: Event, cx: &mut Context) {
        if cx.model.has(Defect::KillSuccessorWithIncumbent) && matches!(event, Event::IncumbentGone(_)) {
            cx.check(invariants::may_kill_successor(self, cx));
            self.kill(self.roles.successor, cx);
        }
        let next_id = self.next_id();
        let actions = self.machine.step(Moment { now: 0, next_id }, event);
        self.carry_out(next_id, actions, cx);
    }

    /// Performs the decisions of the supervisor.
    pub fn carry_out(&mut self, next_id: HandoffId, actions: Vec<Action>, cx: &mut Context) {
        let retires = self.machine.outgoing().is_some_and(|outgoing| outgoing.handoff == next_id);
        if self.machine.handoff() == next_id || retires {
            self.ids += 1;
        }
        let wanted = self.machine.is_wanted();
        if !self.disk_failed && wanted != self.journal.standing.wanted {
            self.journal.wants(wanted);
        }
        self.perform_all(actions, cx);
    }

    pub fn perform_all(&mut self, actions: Vec<Action>, cx: &mut Context) {
        let mut actions = actions.into_iter();
        while let Some(action) = actions.next() {
            if self.goes_now(cx) {
                if self.is_supervised() {
                    self.pending = [action].into_iter().chain(actions).collect();
                }
                return;
            }
            cx.log(|| format!("supervisor: {action:?}"));
            self.perform(action, cx);
            if self.supervisor != SupervisorStatus::Runs {
                if self.is_supervised() {
                    self.pending.extend(actions);
                }
                return;
            }
        }
        self.end_attempt(cx);
    }

    /// Whether the supervisor ends or freezes at this point, between two of its actions.
    fn goes_now(&mut self, cx: &mut Context) -> bool {
        if let Some((after, status)) = cx.ends_after
            && after == cx.done
        {
            self.lose_supervisor(cx.model, status);
            return true;
        }
        cx.done += 1;
        false
    }

    /// The same within one action. A freeze there has the same effect as a freeze after it.
    fn dies_now(&mut self, cx: &mut Context) -> bool {
        let freezes = cx.ends_after == Some((cx.done, SupervisorStatus::Frozen));
        if freezes {
            cx.done += 1;
        }
        !freezes && self.goes_now(cx)
    }

    /// The journal must not keep an attempt that has ended.
    fn end_attempt(&mut self, cx: &mut Context) {
        let over = matches!(self.machine.phase(), Phase::Serving | Phase::Stopped | Phase::Backoff);
        if over && self.journal.standing.attempt.is_some() && !self.disk_failed {
            self.record(Journal::ends_attempt, cx);
        }
    }

    pub fn ask(&mut self, request: Request, cx: &mut Context) {
        // A cancel waits for the report too.
        self.waiting += 1;
        cx.asking = true;
        self.tell(Event::Request(request), cx);
        cx.asking = false;
    }

    fn perform(&mut self, action: Action, cx: &mut Context) {
        match action {
            Action::Rest(..) => cx.check(invariants::may_rest(self, cx.model)),
            Action::Spawn(id, target) => self.spawn(id, target, cx),
            Action::Welcome(id, _) => self.write(self.roles.successor, id, Delivery::Welcome, cx),
            Action::ToSuccessor(id, message) => {
                self.write(self.roles.successor, id, Delivery::Message(message), cx)
            }
            Action::ToIncumbent(id, message) => {
                self.write(self.roles.incumbent, id, Delivery::Message(message), cx)
            }
            Action::ToOutgoing(id, message) => {
                self.write(self.roles.outgoing, id, Delivery::Message(message), cx)
            }
            Action::TerminateSuccessor if cx.model.has(Defect::KillUnwarned) => {
                self.perform(Action::KillSuccessor, cx)
            }
            Action::TerminateSuccessor => {
                cx.check(invariants::may_kill_successor(self, cx));
                if let Some(at) = self.roles.successor {
                    let process = self.process_mut(at);
                    process.terminated =
                        matches!(process.status, ProcessStatus::Runs | ProcessStatus::Frozen);
                }
            }
            Action::KillSuccessor => {
                cx.check(invariants::may_kill_successor(self, cx));
                cx.check(invariants::had_its_time(self, cx, self.roles.successor));
                self.kill(self.roles.successor, cx);
                let early = cx.model.has(Defect::NoReap) || self.starts_early(cx);
                if early && self.roles.successor.is_some() {
                    self.roles.successor = None;
                    self.tell(Event::SuccessorGone(Exit::Unknown), cx);
                }
            }
            Action::TerminateIncumbent => {
                cx.check(invariants::may_kill_incumbent(self, cx));
                if let Some(at) = self.roles.incumbent {
                    let process = self.process_mut(at);
                    process.terminated =
                        matches!(process.status, ProcessStatus::Runs | ProcessStatus::Frozen);
                }
            }
            Action::KillIncumbent => {
                cx.check(invariants::may_kill_incumbent(self, cx));
                cx.check(invariants::had_its_time(self, cx, self.roles.incumbent));
                self.lost_another = true;
                self.kill(self.roles.incumbent, cx);
                if self.starts_early(cx) && self.roles.incumbent.is_some() {
                    self.roles.incumbent = None;
                    self.tell(Event::IncumbentGone(Exit::Unknown), cx);
                }
            }
            Action::TerminateOutgoing => {
                cx.check(invariants::may_force_outgoing(self, cx));
                cx.check(invariants::may_dismiss(self, self.roles.outgoing));
                if let Some(at) = self.roles.outgoing {
                    let process = self.process_mut(at);
                    process.terminated =
                        matches!(process.status, ProcessStatus::Runs | ProcessStatus::Frozen);
                }
            }
            Action::KillOutgoing => {
                cx.check(invariants::may_force_outgoing(self, cx));
                cx.check(invariants::had_its_time(self, cx, self.roles.outgoing));
                cx.check(invariants::may_dismiss(self, self.roles.outgoing));
                self.kill(self.roles.outgoing, cx);
            }
            Action::HangUpIncumbent => {
                if let Some(at) = self.roles.incumbent {
                    cx.check(invariants::may_hang_up(self, at));
                    self.process_mut(at).line_mut().down = false;
                }
            }
            Action::Probe(id, _) => {
                self.probes.push(id);
                if let Some(at) = self.roles.successor {
                    self.process_mut(at).probed = false;
                }
                if cx.model.has(Defect::ForgetProbe) {
                    self.tell(Event::Probed(id, Ok(())), cx);
                }
            }
            // That it becomes quiet is a separate step.
            Action::AwaitQuiet(_) => {}
            // The possible steps show which process is watched.
            Action::SteerShare(_) => {
                cx.check(invariants::may_steer(self, cx.model));
                self.share = self.roles.successor.map(|at| self.process(at).slot);
                if let Some(at) = self.roles.successor {
                    self.process_mut(at).shares += 1;
                }
            }
            Action::SteerToSuccessor => {
                cx.check(invariants::may_steer(self, cx.model));
                self.steer(self.roles.successor, cx)
            }
            Action::SteerToIncumbent => self.steer(self.roles.incumbent, cx),
            Action::RecordDurably(id, fact) => {
                cx.check(invariants::may_record(self, cx.model, fact));
                if cx.model.has(Defect::ForgetRevert) && fact == DurableFact::Revert {
                    return self.tell(Event::Durable, cx);
                }
                self.writing = Some((id, fact));
                if cx.model.has(Defect::CommitBeforeDurable) && fact == DurableFact::Commit {
                    self.tell(Event::Durable, cx);
                }
            }
            Action::GiveUpRecord => {
                self.journal.doubt = self.writing.take().or(self.journal.doubt);
                (self.disk_hangs, self.disk_failed) = (false, true);
            }
            Action::Promote => {
                cx.check(invariants::may_promote(self));
                let replaced = std::mem::replace(&mut self.roles.incumbent, self.roles.successor.take());
                self.roles.outgoing = replaced.or(self.roles.outgoing);
                self.commit_self_made(cx);
                self.begin_probation(replaced, cx);
            }
            Action::Reinstate { retires } => {
                cx.check(invariants::may_reinstate(self));
                self.standby = None;
                let replaced = self.roles.incumbent.take();
                self.sent_back = replaced.map(|at| self.process(at).born_in);
                self.roles.incumbent = self.roles.outgoing.take();
                let role = if retires { &mut self.roles.outgoing } else { &mut self.roles.successor };
                *role = replaced;
            }
            Action::Retire => {
                cx.check(invariants::may_retire(self));
                self.roles.outgoing = self.roles.incumbent.take();
            }
            Action::RetireSlot => {}
            Action::CloseListeners => {
                cx.check(invariants::may_close(self));
                self.listening = false;
            }
            Action::Arm(Deadline::Record, _) if cx.model.has(Defect::WaitForDisk) => {}
            Action::Arm(deadline, _) => self.arm(deadline, true),
            Action::Disarm(deadline) => self.arm(deadline, false),
            Action::Failed(_) => {}
            Action::Report(outcome) => {
                cx.check(invariants::may_report(self, &outcome));
                self.waiting = 0;
            }
            Action::Refuse(refusal) => self.refused(refusal, cx),
            Action::Recovered(_) => self.late = false,
        }
    }

    fn starts_early(&self, cx: &Context) -> bool {
        cx.model.has(Defect::StartBeforeGone) && self.machine.phase() == Phase::Recovering
    }

    fn begin_probation(&mut self, replaced: Option<usize>, cx: &mut Context) {
        cx.check(invariants::must_stand_by(self, cx.model, replaced));
        if self.machine.is_on_probation() {
            self.standby = self.roles.outgoing;
            if cx.model.has(Defect::DropStandby) {
                let delivery = Delivery::Message(ToService::Commit(Commit {}));
                self.write(self.roles.outgoing, self.machine.handoff(), delivery, cx);
            }
        }
    }

    fn commit_self_made(&mut self, cx: &mut Context) {
        let Some(at) = self.roles.incumbent else { return };
        if cx.model.has(Defect::CommitUnpromoted) && self.process(at).membership.is_incumbent() {
            let delivery = Delivery::Message(ToService::Commit(Commit {}));
            self.write(Some(at), self.machine.handoff(), delivery, cx);
        }
    }

    fn refused(&mut self, _: Refusal, cx: &mut Context) {
        if cx.asking {
            self.waiting -= 1;
        }
    }

    fn spawn(&mut self, id: HandoffId, target: Target, cx: &mut Context) {
        cx.check(invariants::may_spawn(self));
        let taken = |slot| self.existing().any(|(_, process)| process.slot == slot);
        let slot = match (cx.model.mode, self.roles.incumbent) {
            (Mode::Exclusive, _) => 0,
            // Its own slot, next to that of the serving process.
            (Mode::Overlap, Some(_)) => {
                (0..).find(|slot| *slot != self.steering && !taken(*slot)).unwrap_or(0)
            }
            // The slot in which connections wait.
            (Mode::Overlap, None) => self.steering,
        };
        self.listening = true;
        let Some(at) = self.processes.iter().position(Option::is_none) else {
            return cx.check(Err("at most four processes exist"));
        };
        self.unknown |= self.disk_failed;
        if self.record(|journal| journal.intends(id, target), cx) {
            return;
        }
        self.processes[at] = Some(Process::new(id, slot));
        self.roles.successor = Some(at);
        self.record(|journal| journal.spawned(id), cx);
    }

    /// Adds to the journal, unless the supervisor dies before that. Returns whether it dies.
    fn record(&mut self, fact: impl FnOnce(&mut Journal), cx: &mut Context) -> bool {
        if self.disk_failed {
            return false;
        }
        let dies = self.dies_now(cx);
        if !dies {
            fact(&mut self.journal);
        }
        dies
    }

    fn write(&mut self, to: Option<usize>, id: HandoffId, delivery: Delivery, cx: &mut Context) {
        cx.check(invariants::may_write(self, cx.model.mode, to, id, &delivery));
        cx.check(invariants::may_dismiss(self, to));
        if let (Delivery::Message(ToService::State(state)), Some(at)) = (&delivery, to) {
            if cx.model.has(Defect::KeepStates) {
                return;
            }
            self.process_mut(at).given = Some((id, state.format()));
        }
        let Some(at) = to.filter(|at| self.process(*at).status != ProcessStatus::Dead) else { return };
        let seal = matches!(delivery, Delivery::Message(ToService::Seal(_)));
        let resume = matches!(delivery, Delivery::Message(ToService::Resume(_)));
        let process = self.process_mut(at);
        process.begun |= matches!(delivery, Delivery::Message(ToService::Begin(_)));
        let line = process.line_mut();
        if line.is_open() {
            line.inbox.push((id, delivery));
        }
        let incumbent = to == self.roles.incumbent;
        if incumbent && seal && cx.model.has(Defect::BeginEarly) {
            self.tell(Event::FromIncumbent(id, FromService::Sealed(Done {})), cx);
        }
        if incumbent && resume && cx.model.has(Defect::TrustResume) {
            self.tell(Event::FromIncumbent(id, FromService::Resumed(Done {})), cx);
        }
    }

    fn kill(&mut self, whom: Option<usize>, _: &mut Context) {
        if let Some(at) = whom {
            let process = self.process_mut(at);
            if process.status != ProcessStatus::Dead {
                process.status = ProcessStatus::Killed;
                (process.lease, process.overdue, process.terminated) = (false, false, false);
                (process.code, process.next, process.waits) = (None, None, false);
            }
        }
    }

    fn steer(&mut self, to: Option<usize>, cx: &mut Context) {
        if !cx.model.has(Defect::KeepShare) {
            self.share = None;
        }
        match to {
            Some(at) => self.steering = self.process(at).slot,
            None => cx.check(Err("steering goes to a process that exists")),
        }
    }
}
