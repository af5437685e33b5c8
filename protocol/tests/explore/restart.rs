//! The supervisor goes, comes to itself again, or is followed by another one, which knows only what is left: the journal,
//! the listeners, and the processes.

use handoff_protocol::deadline::Deadline;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::recovery::{Found, Written};
use handoff_protocol::supervisor::{Left, Moment, Supervisor};

use crate::defects::Defect;
use crate::invariants;
use crate::journal::{Generation, Journal};
use crate::process::{Channel, Life};
use crate::steps::Context;
use crate::world::{Chair, DEADLINES, Model, Roles, World};

impl World {
    /// The supervisor takes no more part, for now or for ever.
    pub fn lose_supervisor(&mut self, model: &Model, chair: Chair) {
        if self.chair == Chair::Runs {
            let entitled = self.existing().any(|(_, process)| process.runs() && process.is_entitled());
            self.orphans = self.machine.is_wanted() && entitled;
        }
        self.chair = chair;
        if !self.is_supervised() {
            self.forget_supervisor(model);
        }
    }

    /// What the supervisor knew does not matter any more.
    fn forget_supervisor(&mut self, model: &Model) {
        self.machine = Self::supervisor(model);
        self.roles = Roles::default();
        self.pending.clear();
        self.probes.clear();
        self.journal.doubt = self.writing.take().or(self.journal.doubt);
        (self.timers, self.overdue, self.waiting) = (0, 0, 0);
        for slot in &mut self.processes {
            slot.take_if(|process| process.life == Life::Dead);
            let Some(process) = slot else { continue };
            process.channel.outbox.clear();
            process.mute = false;
            if self.chair == Chair::Dead {
                process.channel.orphan();
                process.calls.iter_mut().for_each(Channel::orphan);
                // Whoever calls and says nothing does not count.
                process.calls.retain(|call| !call.inbox.is_empty());
            }
        }
    }

    /// A supervisor that was frozen goes on where it was. What it would have heard has arrived, and its timers are over.
    pub fn thaw_supervisor(&mut self, cx: &mut Context) {
        self.chair = Chair::Runs;
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

    /// Another supervisor comes, which reaches everybody but `mute`.
    pub fn come(&mut self, mute: Option<usize>, lasts: bool, cx: &mut Context) {
        self.read_journal(lasts);
        self.chair = Chair::Runs;
        let (left, roles) = self.left(mute, cx.model);
        self.roles = roles;
        // It steers all connections to one slot before it asks anybody.
        (self.share, self.standby) = (None, None);
        let nameless = self.existing().any(|(at, _)| !roles.contain(at));
        self.lost_track |= self.count() > roles.all().count() || self.unknown && nameless;
        cx.check(invariants::may_lose_track(self));
        for at in roles.all() {
            let process = self.process_mut(at);
            process.mute = mute == Some(at);
            if mute != Some(at) {
                process.calls.push(Channel::OPEN);
            }
        }
        self.waiting = u8::from(left.under_way);
        let (fresh, policy) = (self.fresh(), cx.model.policy());
        let at = Moment { now: 0, fresh };
        let (machine, actions) = Supervisor::recover(cx.model.mode, policy, at, left);
        self.machine = machine;
        self.carry_out(fresh, actions, cx);
    }

    fn read_journal(&mut self, lasts: bool) {
        if let Some((id, lasting)) = self.journal.doubt.take()
            && lasts
        {
            self.journal.lasts(id, lasting);
        }
        self.disk_failed = false;
        let current = self.journal.current.id;
        let there = self.existing().any(|(_, process)| process.born_in == current);
        self.journal.current.ended |= !there;
    }

    /// What there is, and who is who.
    fn left(&self, mute: Option<usize>, model: &Model) -> (Left, Roles) {
        let Journal { wanted, current, previous, leaving, attempt, .. } = self.journal;
        let of = |id: HandoffId| self.existing().find(|(_, process)| process.born_in == id).map(|(at, _)| at);
        let alive = |it: Generation| of(it.id).filter(|_| !it.ended);
        let (current, previous, leaving) = (alive(current), alive(previous), alive(leaving));
        let leaving = leaving.filter(|_| !model.has(Defect::ForgetLeaving));
        let successor = attempt.filter(|attempt| attempt.spawned).and_then(|attempt| of(attempt.id));
        let (written, roles) = match (attempt, previous) {
            (None, Some(_)) => {
                (Written::Committed, Roles { incumbent: previous, successor: current, retiree: leaving })
            }
            (_, _) => {
                (Written::Uncommitted, Roles { incumbent: current, successor, retiree: previous.or(leaving) })
            }
        };
        let found = |at: Option<usize>| match at {
            None => Found::Gone,
            it if it == mute => Found::Mute,
            Some(_) if model.has(Defect::AdoptUnasked) => Found::Serving,
            it if it == roles.successor && model.has(Defect::KillUnasked) => Found::Mute,
            Some(_) => Found::Asked,
        };
        let left = Left {
            wanted,
            written,
            handoff: attempt.map_or(self.fresh(), |attempt| attempt.id),
            under_way: attempt.is_some(),
            incumbent: found(roles.incumbent),
            successor: found(roles.successor),
            retiree: found(roles.retiree),
        };
        (left, roles)
    }
}
