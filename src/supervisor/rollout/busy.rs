//! What a service is busy with, for requests that need its turn.

use handoff_protocol::supervisor::{Incumbent, Phase};

use crate::control::{Error, Kind};
use crate::supervisor::service::{Service, phase_of};

impl Service {
    /// What it is doing. A clause.
    pub(in crate::supervisor) fn doing(&self) -> &'static str {
        match self.machine.phase() {
            _ if self.versions.preparation.is_some() => "another version is brought in",
            Phase::Serving if self.machine.is_on_probation() => "its new version is on probation",
            Phase::Serving if self.machine.outgoing().is_some() => {
                "it is being upgraded, phase retiring: the process that was replaced is still leaving"
            }
            phase => phase_of(phase, self.machine.incumbent()),
        }
    }

    /// The error for a request that needs the turn of the service, which another one has.
    pub(super) fn is_at_work(&self) -> Error {
        let doing = match self.machine.phase() {
            Phase::Serving | Phase::Stopped | Phase::Backoff if self.is_between_steps() => {
                "a command after its upgrade runs, or a version is removed"
            }
            _ => self.doing(),
        };
        let error = Error::busy(&self.name, doing);
        match self.may_be_cancelled() {
            true => Error {
                hint: format!("Wait until it is done, or call it off: handoff cancel {}", self.name),
                ..error
            },
            false => error,
        }
    }

    /// The error if it is too late to cancel, or there is nothing to cancel.
    pub(in crate::supervisor) fn nothing_to_cancel(&self) -> Error {
        let (name, doing) = (&self.name, self.doing());
        let message = format!("Nothing that can be cancelled is under way for {:?}: {doing}.", name.as_str());
        let hint = match self.machine.phase() {
            Phase::Sealing => format!(
                "Its old program has been told to end, so the upgrade goes forward; to go back then: handoff rollback {name}"
            ),
            Phase::Committing if self.machine.incumbent() != Incumbent::Absent => {
                format!("The upgrade goes forward; to go back when it is done: handoff rollback {name}")
            }
            Phase::Serving if self.machine.outgoing().is_some() => format!(
                "The new version is committed; to go back when the old process has left: handoff rollback {name}"
            ),
            _ => format!("To see what it does: handoff status {name}"),
        };
        Error::new(Kind::NothingToCancel, message, hint)
    }

    /// Whether neither the machine nor the work before it is in the middle of anything.
    fn is_between_steps(&self) -> bool {
        self.versions.preparation.is_none()
            && !self.machine.is_on_probation()
            && self.machine.outgoing().is_none()
    }

    /// Whether `handoff cancel` ends what is under way.
    fn may_be_cancelled(&self) -> bool {
        match self.machine.phase() {
            _ if self.versions.preparation.is_some() => true,
            Phase::Serving => self.machine.is_on_probation(),
            Phase::Sealing => !self.config.adapter.is_foreign(),
            Phase::Greeting
            | Phase::Warming
            | Phase::Draining
            | Phase::Beginning
            | Phase::Probing
            | Phase::Canary => true,
            _ => false,
        }
    }
}
