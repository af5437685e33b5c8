//! The way out: a process that was replaced or stopped drains, seals and leaves. Each step has a limit, and the last one
//! is SIGKILL.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Incumbent, Leaving, Moment, Phase, Retiree, Supervisor};
use crate::deadline::Deadline;
use crate::ids::HandoffId;
use crate::message::{Commit, FromService, Mode, Prepare, Seal, Stage, ToService};
use crate::reason::Reason;

impl Supervisor {
    pub(super) fn retire(&mut self, at: Moment, step: Leaving, out: &mut Vec<Action>) {
        let step = if self.incumbent == Incumbent::Mute { Leaving::Terminating } else { step };
        self.handoff = at.fresh;
        self.incumbent = Incumbent::Absent;
        self.retiree = Some(Retiree { step, handoff: self.handoff, reports: false });
        out.push(Action::Retire);
        self.tell_retiree(self.policy.stop_grace_ms, out);
    }

    /// Tells the retiree what its step asks of it.
    pub(super) fn tell_retiree(&mut self, grace_ms: u64, out: &mut Vec<Action>) {
        let Some(retiree) = self.retiree else { return };
        let lease_ms = self.policy.lease_ms;
        match retiree.step {
            Leaving::Asked => {
                out.push(Action::ToRetiree(retiree.handoff, self.adopt()));
                out.push(Action::Arm(Deadline::RetireExit, self.policy.exit_limit_ms));
            }
            Leaving::Standby { .. } => out.push(Action::Arm(Deadline::Probation, self.probation_ms)),
            Leaving::Draining => {
                let prepare = Prepare { grace_ms, lease_ms: grace_ms.saturating_add(lease_ms) };
                out.push(Action::ToRetiree(retiree.handoff, ToService::Prepare(prepare)));
                out.push(Action::Arm(Deadline::RetireDrain, grace_ms));
            }
            Leaving::Sealing { cut } => {
                let seal = Seal { lease_ms, cut };
                out.push(Action::ToRetiree(retiree.handoff, ToService::Seal(seal)));
                out.push(Action::Arm(Deadline::RetireSeal, self.policy.seal_limit_ms));
            }
            Leaving::Exiting => {
                out.push(Action::ToRetiree(retiree.handoff, ToService::Commit(Commit {})));
                out.push(Action::Arm(Deadline::RetireExit, self.policy.exit_limit_ms));
            }
            Leaving::Terminating => {
                out.push(Action::TerminateRetiree);
                out.push(Action::Arm(Deadline::RetireExit, self.policy.exit_limit_ms));
            }
            Leaving::Killed => out.push(Action::KillRetiree),
        }
    }

    pub(super) fn retire_on(&mut self, step: Leaving, grace_ms: u64, out: &mut Vec<Action>) {
        for deadline in [Deadline::RetireDrain, Deadline::RetireSeal, Deadline::RetireExit] {
            out.push(Action::Disarm(deadline));
        }
        if let Some(retiree) = &mut self.retiree {
            retiree.step = step;
        }
        self.tell_retiree(grace_ms, out);
    }

    fn next_step(&mut self, step: Leaving, out: &mut Vec<Action>) {
        self.retire_on(step, self.policy.stop_grace_ms, out);
    }

    pub(super) fn retire_late(&mut self, deadline: Deadline, out: &mut Vec<Action>) {
        match (deadline, self.retiree.map(|retiree| retiree.step)) {
            (Deadline::RetireDrain, Some(Leaving::Draining)) => {
                self.next_step(Leaving::Sealing { cut: true }, out)
            }
            (Deadline::RetireSeal, Some(Leaving::Sealing { .. })) => self.next_step(Leaving::Exiting, out),
            (Deadline::RetireExit, Some(Leaving::Asked)) => self.next_step(Leaving::Exiting, out),
            (Deadline::RetireExit, Some(Leaving::Exiting)) => self.next_step(Leaving::Terminating, out),
            (Deadline::RetireExit, Some(Leaving::Terminating)) => self.next_step(Leaving::Killed, out),
            (_, _) => {}
        }
    }

    pub(super) fn on_retiree(
        &mut self,
        at: Moment,
        id: HandoffId,
        message: &FromService,
        out: &mut Vec<Action>,
    ) {
        let Some(retiree) = self.retiree.filter(|retiree| retiree.handoff == id) else { return };
        match (retiree.step, message) {
            // Who serves has clients, and is to drain.
            (Leaving::Asked, FromService::Adopted(adopted)) => match adopted.stage {
                Stage::Serving => self.next_step(Leaving::Draining, out),
                Stage::Waiting | Stage::Leaving => self.next_step(Leaving::Exiting, out),
                Stage::Working => {}
            },
            // The new process has lost the lock, so it is gone: that is on its way.
            (Leaving::Standby { .. }, FromService::Resumed(_)) => {
                self.retiree = Some(Retiree { step: Leaving::Standby { serves: true }, ..retiree });
            }
            // Likewise, and it is not to be waited for: this one ends, too, and then nobody would know what was tried.
            (Leaving::Standby { .. }, FromService::ResumeFailed(_)) => {
                self.take_back(at, Reason::Probation(String::from("it has lost the data lock")), out)
            }
            (Leaving::Asked, FromService::Resumed(_)) => self.next_step(Leaving::Draining, out),
            (Leaving::Draining, FromService::Drained(_)) => {
                self.next_step(Leaving::Sealing { cut: false }, out)
            }
            // Sealed, failed, or serving again since its lease ended: in each case it leaves in order when told.
            (
                Leaving::Draining | Leaving::Sealing { .. },
                FromService::Sealed(_) | FromService::SealFailed(_) | FromService::Resumed(_),
            ) => self.next_step(Leaving::Exiting, out),
            (Leaving::Draining | Leaving::Sealing { .. }, FromService::State(state))
                if self.is_replaced_by_incumbent(id) =>
            {
                out.push(Action::ToIncumbent(id, ToService::State(state.clone())));
            }
            // Whatever else it says, its end is near and bounded.
            (_, _) => {}
        }
    }

    /// Whether the process that was replaced in this handoff is beside the one that replaced it.
    fn is_replaced_by_incumbent(&self, id: HandoffId) -> bool {
        let serves = self.phase == Phase::Serving && self.incumbent == Incumbent::Whole;
        self.mode == Mode::Overlap && serves && self.handoff == id
    }

    pub(super) fn retiree_gone(&mut self, out: &mut Vec<Action>) {
        let Some(retiree) = self.retiree.take() else { return };
        for deadline in [Deadline::RetireDrain, Deadline::RetireSeal, Deadline::RetireExit] {
            out.push(Action::Disarm(deadline));
        }
        if let Leaving::Standby { .. } = retiree.step {
            out.push(Action::Disarm(Deadline::Probation));
        }
        if self.phase == Phase::Stopping {
            return self.stopped(out);
        }
        out.push(Action::RetireSlot);
        if retiree.reports {
            self.conclude_upgrade(out);
        }
    }
}
