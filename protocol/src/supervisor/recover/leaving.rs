//! Ends a process that is leaving or must not continue: first by request, then by force.

use alloc::vec::Vec;

use super::answer_of;
use crate::reason::Role;
use crate::recovery::Found;
use crate::supervisor::{Action, Moment, Supervisor};

/// How far the end of a leaving process was enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Urged {
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
        let is_patient = *recovery.urged(role) == Urged::No;
        self.urge(role, if is_patient { Urged::Terminated } else { Urged::Killed }, out);
        if is_patient {
            out.push(Action::Arm(answer_of(role), limit_ms));
        }
    }

    /// A process whose time is over before it serves. If it works, it may have opened the data: it gets the stop signal
    /// and the time to end. A leaving process has its own limit.
    pub(super) fn end_late(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        match self.found(role) {
            Found::Working => self.terminate_left(at, role, out),
            Found::Asked | Found::Waiting => self.learn(at, role, Found::Frozen, out),
            Found::Gone | Found::Serving | Found::Leaving | Found::Frozen | Found::Unreachable => {}
        }
    }

    pub(super) fn terminate_left(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        self.urge(role, Urged::Terminated, out);
        self.learn(at, role, Found::Leaving, out);
    }

    pub(super) fn kill_left(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        self.urge(role, Urged::Killed, out);
        self.learn(at, role, Found::Leaving, out);
    }

    fn urge(&mut self, role: Role, urged: Urged, out: &mut Vec<Action>) {
        out.push(match (role, urged == Urged::Killed) {
            (Role::Incumbent, false) => Action::TerminateIncumbent,
            (Role::Incumbent, true) => Action::KillIncumbent,
            (Role::Successor, false) => Action::TerminateSuccessor,
            (Role::Successor, true) => Action::KillSuccessor,
        });
        if let Some(recovery) = &mut self.recovery {
            *recovery.urged(role) = urged;
        }
    }
}
