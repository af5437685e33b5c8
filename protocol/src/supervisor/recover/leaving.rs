//! Ends a process that is leaving or must not continue: first by request, then by force.

use alloc::vec::Vec;

use super::answer_of;
use crate::reason::Role;
use crate::recovery::Observation;
use crate::supervisor::{Action, Moment, Supervisor};

/// How far the end of a leaving process was enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum EndingStage {
    /// It leaves on its own, on an earlier request or because it cannot serve.
    No,
    /// It received its stop signal.
    Terminated,
    /// SIGKILL was sent.
    Killed,
}

impl Supervisor {
    /// A leaving process may first have to end its program: it gets the stop signal and the time for that.
    pub(super) fn leaves_late(&mut self, role: Role, out: &mut Vec<Action>) {
        let limit_ms = self.exit_limit_ms(true);
        let Some(recovery) = &mut self.recovery else { return };
        let is_patient = *recovery.ending(role) == EndingStage::No;
        self.enforce_end(role, if is_patient { EndingStage::Terminated } else { EndingStage::Killed }, out);
        if is_patient {
            out.push(Action::Arm(answer_of(role), limit_ms));
        }
    }

    /// A process whose time is over before it serves. If it works, it may have opened the data: it gets the stop signal
    /// and the time to end. A leaving process has its own limit.
    pub(super) fn end_late(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        match self.found(role) {
            Observation::Working => self.terminate_left(at, role, out),
            Observation::Asked | Observation::Waiting => self.learn(at, role, Observation::Frozen, out),
            Observation::Gone
            | Observation::Serving
            | Observation::Leaving
            | Observation::Frozen
            | Observation::Unreachable => {}
        }
    }

    pub(super) fn terminate_left(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        self.enforce_end(role, EndingStage::Terminated, out);
        self.learn(at, role, Observation::Leaving, out);
    }

    pub(super) fn kill_left(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        self.enforce_end(role, EndingStage::Killed, out);
        self.learn(at, role, Observation::Leaving, out);
    }

    fn enforce_end(&mut self, role: Role, urged: EndingStage, out: &mut Vec<Action>) {
        out.push(match (role, urged == EndingStage::Killed) {
            (Role::Incumbent, false) => Action::TerminateIncumbent,
            (Role::Incumbent, true) => Action::KillIncumbent,
            (Role::Successor, false) => Action::TerminateSuccessor,
            (Role::Successor, true) => Action::KillSuccessor,
        });
        if let Some(recovery) = &mut self.recovery {
            *recovery.ending(role) = urged;
        }
    }
}
