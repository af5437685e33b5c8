//! The end of a process that was found leaving, or that is not to go on: asked for first, then forced.

use alloc::vec::Vec;

use super::answer_of;
use crate::reason::Role;
use crate::recovery::Found;
use crate::supervisor::{Action, Moment, Supervisor};

/// How far the end of a process that leaves was brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Urged {
    /// It leaves in order, as it was told before, or because it cannot serve.
    No,
    /// It got its stop signal.
    Terminated,
    /// SIGKILL.
    Killed,
}

impl Supervisor {
    /// It may have something to end first: it gets the signal for that, and the time.
    pub(super) fn leaves_late(&mut self, role: Role, out: &mut Vec<Action>) {
        let limit_ms = self.exit_limit_ms(true);
        let Some(recovery) = &mut self.recovery else { return };
        let urged = recovery.urged(role);
        let is_patient = *urged == Urged::No;
        *urged = if is_patient { Urged::Terminated } else { Urged::Killed };
        out.push(match (role, is_patient) {
            (Role::Incumbent, true) => Action::TerminateIncumbent,
            (Role::Incumbent, false) => Action::KillIncumbent,
            (Role::Successor, true) => Action::TerminateSuccessor,
            (Role::Successor, false) => Action::KillSuccessor,
        });
        if is_patient {
            out.push(Action::Arm(answer_of(role), limit_ms));
        }
    }

    pub(super) fn kill_left(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        out.push(match role {
            Role::Incumbent => Action::KillIncumbent,
            Role::Successor => Action::KillSuccessor,
        });
        if let Some(recovery) = &mut self.recovery {
            *recovery.urged(role) = Urged::Killed;
        }
        self.learn(at, role, Found::Leaving, out);
    }
}
