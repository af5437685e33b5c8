//! An order for a service, on its way to the machine. It carries the path and the service file that it is about.

use std::path::PathBuf;

use handoff_protocol::supervisor::{Phase, Request, Target};

use super::Operation;
use crate::config;
use crate::supervisor::service::Service;

/// What is asked for.
#[derive(Debug)]
pub(in crate::supervisor) enum Order {
    Start,
    Stop,
    /// Gives up what is under way.
    Cancel,
    /// Another process of what runs, by what the service file says now.
    Restart(Box<config::Service>),
    /// Another version, by what the service file says now.
    Upgrade(PathBuf, Box<config::Service>, Limits),
    /// Why no other version can be brought in. If one can, it is not answered.
    Refusal(Limits),
}

/// The times of one upgrade, instead of those of the service file.
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
    /// Takes an order. The answer goes to `operation`, at once if it is refused.
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
            // The machine says why not.
            Order::Upgrade(_, _, limits) | Order::Refusal(limits) => {
                self.ask(limits.request(), None, operation)
            }
        }
    }

    /// Another process of what runs takes over.
    pub(in crate::supervisor) fn restart(&mut self, operation: Operation) {
        let path = self.path_of(Target::Committed);
        let request = match self.machine.phase() {
            // Between two tries there is nothing to replace: the next one is made at once.
            Phase::Backoff => Request::Start,
            _ => Limits::default().request(),
        };
        self.ask(request, Some(path), operation);
    }
}
