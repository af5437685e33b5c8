//! The supervisor ends, continues after a freeze, or is followed by another one, which has only the leftovers: the
//! journal, the listeners, and the processes.

use handoff_protocol::deadline::Deadline;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::record::{Current, Standing};
use handoff_protocol::recovery::{self, LivingProcesses, Observation, roles};
use handoff_protocol::supervisor::{Legacy, Moment, Supervisor};

use super::defects::Defect;
use super::invariants;
use super::process::{Channel, Process, ProcessStatus};
use super::steps::Context;
use super::world::{DEADLINES, Model, Roles, SupervisorStatus, World};

impl World {
    /// The supervisor does nothing more, for now or forever.
    pub fn lose_supervisor(&mut self, model: &Model, status: SupervisorStatus) {
        if self.supervisor == SupervisorStatus::Runs {
            // A process that got a stop signal was not supposed to serve any more.
            let serves = |process: &Process| process.runs() && process.is_entitled() && !process.terminated;
            let entitled = self.existing().any(|(_, process)| serves(process));
            self.orphans = self.machine.is_wanted() && entitled;
        }
        self.supervisor = status;
        if !self.is_supervised() {
            self.forget_supervisor(model);
        }
    }

    /// The knowledge of the supervisor no longer matters.
    fn forget_supervisor(&mut self, model: &Model) {
        self.machine = Self::supervisor(model);
        self.late = false;
        self.roles = Roles::default();
        self.pending.clear();
        self.probes.clear();
        self.journal.doubt = self.writing.take().or(self.journal.doubt);
        self.disk_hangs = false;
        (self.timers, self.overdue, self.waiting) = (0, 0, 0);
        for slot in &mut self.processes {
            slot.take_if(|process| process.status == ProcessStatus::Dead);
            let Some(process) = slot else { continue };
            process.channel.outbox.clear();
            process.mute = false;
            if self.supervisor == SupervisorStatus::Dead {
                process.channel.orphan();
                process.calls.iter_mut().for_each(Channel::orphan);
                // A channel without a message does not count.
                process.calls.retain(|call| !call.inbox.is_empty());
            }
        }
    }

    /// A frozen supervisor continues where it was. Its pending messages have arrived, and its timers are over.
    pub fn thaw_supervisor(&mut self, cx: &mut Context) {
        self.supervisor = SupervisorStatus::Runs;
        self.overdue = 0;
        for deadline in DEADLINES {
            // Signs of life have arrived too.
            let put_off = self.is_put_off(deadline) || deadline == Deadline::Silence && self.somebody_works();
            if self.is_armed(deadline) && !put_off {
                self.overdue |= 1 << deadline as u32;
            }
        }
        let pending = std::mem::take(&mut self.pending);
        self.perform_all(pending, cx);
    }

    fn somebody_works(&self) -> bool {
        let watched = [self.roles.incumbent, self.roles.successor];
        watched.into_iter().flatten().any(|at| self.process(at).is_at_work())
    }

    /// Another supervisor starts, and reaches all processes except `mute`.
    pub fn come(&mut self, mute: Option<usize>, lasts: bool, cx: &mut Context) {
        self.read_journal(lasts);
        self.supervisor = SupervisorStatus::Runs;
        let (left, roles) = self.left(mute, cx.model);
        self.roles = roles;
        // It steers all connections to one slot before it asks any process.
        (self.share, self.standby, self.late) = (None, None, false);
        let nameless = self.existing().any(|(at, _)| !roles.contain(at));
        self.lost_track |= self.count() > roles.all().count() || self.unknown && nameless;
        cx.check(invariants::may_lose_track(self));
        for at in roles.all() {
            let process = self.process_mut(at);
            process.mute = mute == Some(at);
            process.shares = 0;
            if mute != Some(at) {
                process.calls.push(Channel::OPEN);
            }
        }
        self.waiting = u8::from(left.under_way);
        let next_id = self.next_id();
        let at = Moment { now: 0, next_id };
        let (machine, actions) = Supervisor::recover(cx.model.mode, cx.model.policy_for_left(), at, left);
        self.machine = machine;
        self.carry_out(next_id, actions, cx);
    }

    fn read_journal(&mut self, lasts: bool) {
        if let Some((id, fact)) = self.journal.doubt.take()
            && lasts
        {
            self.journal.lasts(id, fact);
        }
        self.disk_failed = false;
    }

    /// The leftovers, and the role of each process.
    fn left(&mut self, mute: Option<usize>, model: &Model) -> (Legacy, Roles) {
        let Standing { wanted, current, previous, leaving, attempt, .. } = &self.journal.standing;
        let of = |id: HandoffId| self.existing().find(|(_, process)| process.born_in == id).map(|(at, _)| at);
        let alive = |it: &Option<Current>| {
            it.as_ref().filter(|it| it.process.is_some()).and_then(|it| of(it.handoff))
        };
        let started = attempt.as_ref().filter(|attempt| attempt.process.is_some());
        let living = LivingProcesses {
            current: alive(current),
            previous: alive(previous),
            leaving: alive(leaving).filter(|_| !model.has(Defect::ForgetLeaving)),
            attempt: started.and_then(|attempt| of(attempt.handoff)),
        };
        let left = roles(&self.journal.standing, living);
        let recovery::Roles { last_handoff: written, incumbent, successor, outgoing, .. } = left;
        let found = |at: Option<usize>| match at {
            None => Observation::Gone,
            it if it == mute => Observation::Unreachable,
            Some(_) if model.has(Defect::AdoptUnasked) => Observation::Serving,
            it if it == successor && model.has(Defect::KillUnasked) => Observation::Unreachable,
            Some(_) => Observation::Asked,
        };
        let left = Legacy {
            wanted: *wanted,
            last_handoff: written,
            handoff: attempt.as_ref().map_or(self.next_id(), |attempt| attempt.handoff),
            under_way: left.is_under_way(model.trial.has_probation()),
            left_ms: None,
            died: None,
            incumbent: found(incumbent),
            successor: found(successor),
            outgoing: found(outgoing),
        };
        if living.current.is_none() {
            self.journal.exited();
        }
        (left, Roles { incumbent, successor, outgoing })
    }
}
