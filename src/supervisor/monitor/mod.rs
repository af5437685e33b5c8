//! Whether a process does what it should: the watchdog over it, readiness probes, the canary, and who keeps it from its lock.

mod canary;
mod lock_watch;
mod probing;
mod watchdog;

pub(in crate::supervisor) use canary::{Measured, Step};
pub(in crate::supervisor) use lock_watch::check_queue;
pub(in crate::supervisor) use watchdog::Watchdog;
