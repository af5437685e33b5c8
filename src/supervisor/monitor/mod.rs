//! Whether a process does what it should: the watchdog over it, readiness probes, the canary, and who keeps it from its lock.

mod canary;
mod lock_watch;
mod probing;
mod watchdog;

pub(in crate::supervisor) use canary::{Measured, Step};
pub(in crate::supervisor) use lock_watch::check_queue;

use handoff_protocol::ids::HandoffId;

use watchdog::Watchdog;

/// What is known of how the processes do.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Monitor {
    /// The watch over a process.
    watchdog: Option<Watchdog>,
    /// Why the process that serves is killed by it.
    kill_reason: Option<String>,
    /// What the share of a successor was measured to be.
    measured: Option<Measured>,
    /// The handoff whose probe has opened a route last.
    route_owner: Option<HandoffId>,
}

impl Monitor {
    /// Another process serves than the one that was to be killed.
    pub(in crate::supervisor) fn spare(&mut self) {
        self.kill_reason = None;
    }

    /// Why the process was killed that is gone now, if the watchdog did it.
    pub(in crate::supervisor) fn take_kill_reason(&mut self) -> Option<String> {
        self.kill_reason.take()
    }
}
