//! Whether a process does what it should: the watchdog, readiness probes, the canary, and what keeps a process from
//! its lock.

mod canary;
mod lock_watch;
mod probing;
mod watchdog;

pub(in crate::supervisor) use canary::{ShareMeasurement, ShareStep};
pub(in crate::supervisor) use lock_watch::check_queue;

use handoff_protocol::ids::HandoffId;

use watchdog::Watchdog;

/// What is known about the health of the processes.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Monitor {
    /// The watch over a process.
    watchdog: Option<Watchdog>,
    /// Why the watchdog kills the serving process.
    kill_reason: Option<String>,
    /// The measured share of the successor.
    measured: Option<ShareMeasurement>,
    /// The handoff whose probe has opened the last route.
    route_owner: Option<HandoffId>,
}

impl Monitor {
    /// Forgets why a process was to be killed: another one serves now.
    pub(in crate::supervisor) fn clear_kill_reason(&mut self) {
        self.kill_reason = None;
    }

    /// Why the process that has just ended was killed, if the watchdog killed it.
    pub(in crate::supervisor) fn take_kill_reason(&mut self) -> Option<String> {
        self.kill_reason.take()
    }
}
