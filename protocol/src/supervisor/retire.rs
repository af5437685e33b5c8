//! A replaced or stopped process drains, seals and leaves. Each step has a limit; the last step is SIGKILL.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Incumbent, Leaving, Moment, Outgoing, Phase, Supervisor};
use crate::deadline::Deadline;
use crate::ids::HandoffId;
use crate::message::{Commit, FromService, Mode, Prepare, Seal, Stage, ToService};
use crate::reason::Reason;

const RETIRE: [Deadline; 4] =
    [Deadline::RetireDrain, Deadline::RetireQuiet, Deadline::RetireSeal, Deadline::RetireExit];

impl Supervisor {
    pub(super) fn retire(&mut self, at: Moment, step: Leaving, out: &mut Vec<Action>) {
        let step =
            if self.incumbent == Incumbent::Unreachable { Leaving::Terminating { ends: true } } else { step };
        self.handoff.id = at.next_id;
        self.incumbent = Incumbent::Absent;
        self.outgoing = Some(Outgoing { step, handoff: self.handoff.id, reports: false });
        out.push(Action::Retire);
        self.request_end(at, self.policy.stop_grace_ms, out);
    }

    /// Sends the outgoing process the message or signal of its step.
    pub(super) fn request_end(&mut self, at: Moment, grace_ms: u64, out: &mut Vec<Action>) {
        let Some(outgoing) = self.outgoing else { return };
        let lease_ms = self.policy.lease_ms;
        match outgoing.step {
            Leaving::Asked => {
                out.push(Action::ToOutgoing(outgoing.handoff, self.adopt()));
                out.push(Action::Arm(Deadline::RetireExit, self.policy.exit_limit_ms));
            }
            Leaving::Standby { .. } => out.push(Action::Arm(Deadline::Probation, self.handoff.probation_ms)),
            Leaving::Draining => {
                self.drain_began = at.now;
                let prepare = Prepare { grace_ms, lease_ms: grace_ms.saturating_add(lease_ms) };
                out.push(Action::ToOutgoing(outgoing.handoff, ToService::Prepare(prepare)));
                out.push(Action::Arm(Deadline::RetireDrain, grace_ms));
            }
            Leaving::Quieting { .. } => {
                out.push(Action::AwaitQuiet(outgoing.handoff));
                out.push(Action::Arm(Deadline::RetireQuiet, self.policy.quiet_limit_ms));
            }
            Leaving::Sealing { cut } => {
                let seal = Seal { lease_ms, cut };
                out.push(Action::ToOutgoing(outgoing.handoff, ToService::Seal(seal)));
                out.push(Action::Arm(Deadline::RetireSeal, self.seal_limit_ms(at)));
            }
            Leaving::Exiting { serves } => {
                out.push(Action::ToOutgoing(outgoing.handoff, ToService::Commit(Commit {})));
                out.push(Action::Arm(Deadline::RetireExit, self.exit_limit_ms(serves)));
            }
            Leaving::Terminating { ends } => {
                out.push(Action::TerminateOutgoing);
                out.push(Action::Arm(Deadline::RetireExit, self.exit_limit_ms(ends)));
            }
            Leaving::Killed => out.push(Action::KillOutgoing),
        }
    }

    /// The service stops: the outgoing process has no more time for its requests than a stop grants.
    pub(super) fn hurry_outgoing(&mut self, at: Moment, out: &mut Vec<Action>) {
        let Some(outgoing) = &mut self.outgoing else { return };
        outgoing.reports = false;
        if outgoing.step == Leaving::Draining {
            let drained_for = at.now.saturating_sub(self.drain_began);
            let rest = self.handoff.drain_grace_ms.saturating_sub(drained_for);
            out.push(Action::Arm(Deadline::RetireDrain, rest.min(self.policy.stop_grace_ms)));
        }
    }

    pub(super) fn retire_on(&mut self, at: Moment, step: Leaving, grace_ms: u64, out: &mut Vec<Action>) {
        for deadline in RETIRE {
            out.push(Action::Disarm(deadline));
        }
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.step = step;
        }
        self.request_end(at, grace_ms, out);
    }

    fn next_step(&mut self, at: Moment, step: Leaving, out: &mut Vec<Action>) {
        self.retire_on(at, step, self.policy.stop_grace_ms, out);
    }

    /// In exclusive mode all processes share a slot: connections in transit wait there for the next process.
    fn before_seal(&self, cut: bool) -> Leaving {
        match self.mode {
            Mode::Exclusive => Leaving::Sealing { cut },
            Mode::Overlap => Leaving::Quieting { cut },
        }
    }

    pub(super) fn outgoing_quiet(&mut self, at: Moment, id: HandoffId, out: &mut Vec<Action>) {
        if let Some(Outgoing { step: Leaving::Quieting { cut }, handoff, .. }) = self.outgoing
            && handoff == id
        {
            self.next_step(at, Leaving::Sealing { cut }, out);
        }
    }

    pub(super) fn retire_late(&mut self, at: Moment, deadline: Deadline, out: &mut Vec<Action>) {
        match (deadline, self.outgoing.map(|outgoing| outgoing.step)) {
            (Deadline::RetireDrain, Some(Leaving::Draining)) => {
                self.next_step(at, self.before_seal(true), out)
            }
            (Deadline::RetireQuiet, Some(Leaving::Quieting { cut })) => {
                self.next_step(at, Leaving::Sealing { cut }, out)
            }
            (Deadline::RetireSeal, Some(Leaving::Sealing { .. })) => {
                self.next_step(at, Leaving::Exiting { serves: false }, out)
            }
            (Deadline::RetireExit, Some(Leaving::Asked)) => {
                self.next_step(at, Leaving::Exiting { serves: true }, out)
            }
            (Deadline::RetireExit, Some(Leaving::Exiting { serves })) => {
                self.next_step(at, Leaving::Terminating { ends: serves }, out)
            }
            (Deadline::RetireExit, Some(Leaving::Terminating { .. })) => {
                self.next_step(at, Leaving::Killed, out)
            }
            (_, _) => {}
        }
    }

    pub(super) fn on_outgoing(
        &mut self,
        at: Moment,
        id: HandoffId,
        message: &FromService,
        out: &mut Vec<Action>,
    ) {
        let Some(outgoing) = self.outgoing.filter(|outgoing| outgoing.handoff == id) else { return };
        match (outgoing.step, message) {
            // A serving process has clients, and must drain.
            (Leaving::Asked, FromService::Adopted(adopted)) => match adopted.stage {
                Stage::Serving => self.next_step(at, Leaving::Draining, out),
                Stage::Waiting => self.next_step(at, Leaving::Exiting { serves: false }, out),
                Stage::Leaving => self.next_step(at, Leaving::Exiting { serves: true }, out),
                Stage::Working => {}
            },
            // The new process has lost the lock, so it has ended: that event follows.
            (Leaving::Standby { .. }, FromService::Resumed(_)) => {
                self.outgoing = Some(Outgoing { step: Leaving::Standby { serves: true }, ..outgoing });
            }
            // Also shows that the new process has ended. Do not wait for that event: this process ends too, and then
            // nothing records which version was tried.
            (Leaving::Standby { .. }, FromService::ResumeFailed(_)) => {
                self.take_back(at, Reason::Probation(String::from("it has lost the data lock")), out)
            }
            (Leaving::Asked, FromService::Resumed(_)) => self.next_step(at, Leaving::Draining, out),
            (Leaving::Draining, FromService::Drained(_)) => self.next_step(at, self.before_seal(false), out),
            // It failed, or serves again after its lease: like a sealed process, it leaves when told to.
            (
                Leaving::Draining | Leaving::Quieting { .. } | Leaving::Sealing { .. },
                FromService::SealFailed(_) | FromService::Resumed(_),
            ) => self.next_step(at, Leaving::Exiting { serves: true }, out),
            (
                Leaving::Draining | Leaving::Quieting { .. } | Leaving::Sealing { .. },
                FromService::Sealed(_),
            ) => self.next_step(at, Leaving::Exiting { serves: false }, out),
            (
                Leaving::Draining | Leaving::Quieting { .. } | Leaving::Sealing { .. },
                FromService::State(state),
            ) if self.is_replaced_by_incumbent(id) => {
                out.push(Action::ToIncumbent(id, ToService::State(state.clone())));
            }
            // Its end is near and bounded, so other messages do not matter.
            (_, _) => {}
        }
    }

    /// Whether the outgoing process of this handoff runs next to its replacement.
    fn is_replaced_by_incumbent(&self, id: HandoffId) -> bool {
        let serves = self.phase == Phase::Serving && self.incumbent == Incumbent::Active;
        self.mode == Mode::Overlap && serves && self.handoff.id == id
    }

    pub(super) fn outgoing_gone(&mut self, out: &mut Vec<Action>) {
        let Some(outgoing) = self.outgoing.take() else { return };
        for deadline in RETIRE {
            out.push(Action::Disarm(deadline));
        }
        if let Leaving::Standby { .. } = outgoing.step {
            out.push(Action::Disarm(Deadline::Probation));
        }
        if self.phase == Phase::Stopping {
            return self.stopped(out);
        }
        out.push(Action::RetireSlot);
        if outgoing.reports {
            self.conclude_upgrade(out);
        }
    }
}
