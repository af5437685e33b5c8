//! An order for a service, on its way to the machine. It carries the path and the service file that it is about.

use std::path::PathBuf;

use handoff_protocol::supervisor::{Phase, Request, Target};

use super::Operation;
use crate::config;
use crate::supervisor::service::Service;

/// What a client can ask of a service.
#[derive(Debug)]
pub(in crate::supervisor) enum Order {
    Start,
    Stop,
    /// Calls off the operation in progress.
    Cancel,
    /// Replaces the process by another one of the same version, with the current service file.
    Restart(Box<config::Service>),
    /// Upgrades to another version, with the current service file.
    Upgrade(PathBuf, Box<config::Service>, Limits),
    /// Answers why no other version can be brought in. Gets no answer if one can.
    Refusal(Limits),
}

/// The time limits of one upgrade, in place of those in the service file.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::supervisor) struct Limits {
    pub(in crate::supervisor) deadline_ms: Option<u64>,
    pub(in crate::supervisor) drain_grace_ms: Option<u64>,
}

impl Limits {
    fn request(self) -> Request {
        let Self { deadline_ms, drain_grace_ms } = self;
        Request::Upgrade { target: Target::Candidate, deadline_ms, drain_grace_ms }
    }
}

impl Service {
    /// Carries out an order. `operation` gets the answer, at once if the order is refused.
    pub(in crate::supervisor) fn order(&mut self, order: Order, operation: Operation) {
        match order {
            Order::Start => self.ask(Request::Start, None, operation),
            Order::Stop => self.ask(Request::Stop, None, operation),
            Order::Cancel => self.call_off(operation),
            Order::Restart(config) => match self.take_over(*config) {
                Ok(()) => self.restart(operation),
                // The client may have hung up.
                Err(error) => _ = operation.reply.send(Err(error)),
            },
            Order::Refusal(_) if self.is_open_to_upgrades() => {}
            Order::Upgrade(path, config, limits) if self.is_open_to_upgrades() => {
                match self.take_over(*config) {
                    Ok(()) => self.ask(limits.request(), Some(path), operation),
                    Err(error) => _ = operation.reply.send(Err(error)),
                }
            }
            // The machine answers why not.
            Order::Upgrade(_, _, limits) | Order::Refusal(limits) => {
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
            _ => Limits::default().request(),
        };
        self.ask(request, Some(path), operation);
    }
}
