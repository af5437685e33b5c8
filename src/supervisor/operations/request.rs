//! An order for a service, on its way to the machine. It carries the path and the service file that it is about.

use std::path::PathBuf;

use handoff_protocol::supervisor::{Phase, Request, Target};

use super::Operation;
use crate::config;
use crate::supervisor::service::Service;

/// What a client can ask of a service.
#[derive(Debug)]
pub(in crate::supervisor) enum OperationRequest {
    Start,
    /// Stops the service.
    Stop(StoppedBy),
    /// Calls off the operation in progress.
    Cancel,
    /// Replaces the process by another one of the same version, with the current service file.
    Restart(Box<config::Service>),
    /// Upgrades to another version, with the current service file.
    Upgrade(PathBuf, Box<config::Service>, UpgradeLimits),
    /// Answers why no other version can be brought in. Gets no answer if one can.
    Refusal(UpgradeLimits),
}

/// Who stops a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum StoppedBy {
    /// A person: it stays stopped when the daemon starts again.
    Person,
    /// A person, who has stopped a service that it requires.
    Dependency,
    /// The daemon, which ends.
    Daemon,
}

/// The time limits of one upgrade, in place of those in the service file.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::supervisor) struct UpgradeLimits {
    pub(in crate::supervisor) deadline_ms: Option<u64>,
    pub(in crate::supervisor) drain_grace_ms: Option<u64>,
}

impl UpgradeLimits {
    fn request(self) -> Request {
        let Self { deadline_ms, drain_grace_ms } = self;
        Request::Upgrade { target: Target::Candidate, deadline_ms, drain_grace_ms }
    }
}

impl Service {
    /// Carries out an order. `operation` gets the answer, at once if the order is refused.
    pub(in crate::supervisor) fn perform_request(&mut self, order: OperationRequest, operation: Operation) {
        match order {
            OperationRequest::Start => {
                self.ask(Request::Start, None, operation);
                self.started_by_person();
            }
            OperationRequest::Stop(by) => {
                self.ask(Request::Stop, None, operation);
                if by == StoppedBy::Person {
                    self.stopped_by_person();
                }
            }
            OperationRequest::Cancel => self.call_off(operation),
            OperationRequest::Restart(config) => match self.take_over(*config) {
                Ok(()) => self.restart(operation),
                // The client may have hung up.
                Err(error) => _ = operation.reply.send(Err(error)),
            },
            OperationRequest::Refusal(_) if self.is_open_to_upgrades() => {}
            OperationRequest::Upgrade(path, config, limits) if self.is_open_to_upgrades() => {
                match self.take_over(*config) {
                    Ok(()) => self.ask(limits.request(), Some(path), operation),
                    Err(error) => _ = operation.reply.send(Err(error)),
                }
            }
            // The machine answers why not.
            OperationRequest::Upgrade(_, _, limits) | OperationRequest::Refusal(limits) => {
                self.ask(limits.request(), None, operation)
            }
        }
    }

    /// Replaces the process by another one of the same version.
    pub(in crate::supervisor) fn restart(&mut self, operation: Operation) {
        let path = self.path_of(Target::Committed);
        let request = match self.machine.phase() {
            // Between two attempts there is nothing to replace: the next attempt is made at once.
            Phase::Backoff => Request::Start,
            _ => UpgradeLimits::default().request(),
        };
        self.ask(request, Some(path), operation);
    }
}
