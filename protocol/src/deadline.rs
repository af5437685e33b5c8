//! The table of named deadlines.
//!
//! A machine arms and disarms them by name; the effects keep the clock. At most one timer per name is armed, and arming
//! an armed one moves it. Every limit of a phase before the commit is cut to what is left of the whole upgrade.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Milliseconds on the monotonic clock of the caller.
pub type Millis = u64;

/// So many leases may a process be silent that could go on if it got a processor, or what it wants from the disk. Such a one is
/// not frozen, and to kill it makes no machine faster.
pub const LEASES_OF_STARVED: u32 = 4;

/// A deadline of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Deadline {
    /// A spawned process must say `Hello`: [`Policy::greet_limit_ms`].
    Greet,
    /// The successor must be `Prepared`: what is left of the upgrade.
    Prepare,
    /// The incumbent must be `Drained`: [`Policy::drain_grace_ms`].
    Drain,
    /// The incumbent must be `Sealed`: [`Policy::seal_limit_ms`].
    Seal,
    /// The successor must be `Ready`: what is left of the upgrade.
    Begin,
    /// The successor must have passed the probe: [`Policy::probe_limit_ms`].
    Probe,
    /// The successor has had its share of the new connections for long enough: [`CanaryStep::time_ms`].
    Canary,
    /// The new process has served for long enough; the old one, which stands by, leaves: [`Policy::probation_ms`].
    Probation,
    /// A working party must give a sign of life: [`Policy::lease_ms`].
    Silence,
    /// A successor that was sent away must be gone: [`Policy::exit_limit_ms`].
    Leave,
    /// The incumbent must have `Resumed`: [`Policy::resume_limit_ms`].
    Resume,
    /// Pause before a service that keeps failing is started again.
    Backoff,
    /// The old process must be `Drained`: [`Policy::drain_grace_ms`], or [`Policy::stop_grace_ms`] for a stop.
    RetireDrain,
    /// The old process must be `Sealed`: [`Policy::seal_limit_ms`].
    RetireSeal,
    /// The old process must have exited: [`Policy::exit_limit_ms`], then once more after SIGTERM.
    RetireExit,
    /// An incumbent that another supervisor has left must answer or give a sign of life: [`Policy::lease_ms`]; one that
    /// leaves must be gone: [`Policy::exit_limit_ms`].
    AnswerIncumbent,
    /// Likewise a successor.
    AnswerSuccessor,
    /// Whoever was left by another supervisor must serve or be gone: [`Policy::deadline_ms`].
    Recover,
}

/// What to do with requests that are still running when the drain grace ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stragglers {
    /// Give the upgrade up; the old version goes on.
    Abort,
    /// Seal all the same.
    Cut,
}

/// The times of one service. All in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// One upgrade, from the request to the commit.
    pub deadline_ms: u64,
    /// From `Prepare` to `Drained`.
    pub drain_grace_ms: u64,
    /// What happens when that is over.
    pub stragglers: Stragglers,
    /// After so much silence a party acts on its own.
    pub lease_ms: u64,
    /// From the spawn to `Hello`.
    pub greet_limit_ms: u64,
    /// From `Seal` to `Sealed`.
    pub seal_limit_ms: u64,
    /// From `Resume` to `Resumed`.
    pub resume_limit_ms: u64,
    /// Whether a successor that says `Ready` must also pass a probe of the supervisor's own.
    pub probes: bool,
    /// From `Ready` to the end of the probe.
    pub probe_limit_ms: u64,
    /// From `Commit` or `Abort` to the exit of the process, before it is killed.
    pub exit_limit_ms: u64,
    /// From a request to stop to the `Seal`.
    pub stop_grace_ms: u64,
    /// The shares of the new connections that a successor gets before it is committed, in overlap mode. Their times do not
    /// count against [`Policy::deadline_ms`].
    pub canary: Vec<CanaryStep>,
    /// For how long after the commit the process that was replaced stands by; 0: it leaves at once.
    pub probation_ms: u64,
    /// Whether a process that serves is watched, and killed and started again if it is not well.
    pub liveness: bool,
}

/// A share of the new connections, and for how long a successor has to do well with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CanaryStep {
    /// So many of 1,000.
    pub permille: u16,
    /// Milliseconds.
    pub time_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            deadline_ms: 300_000,
            drain_grace_ms: 30_000,
            stragglers: Stragglers::Abort,
            lease_ms: 5_000,
            greet_limit_ms: 30_000,
            seal_limit_ms: 10_000,
            resume_limit_ms: 30_000,
            probes: false,
            probe_limit_ms: 30_000,
            exit_limit_ms: 10_000,
            stop_grace_ms: 30_000,
            canary: Vec::new(),
            probation_ms: 0,
            liveness: false,
        }
    }
}

/// A service that served for this long is not in a crash loop: the next restart is immediate again.
pub const STABLE_MS: Millis = 10_000;

/// Pause before the `attempt`-th restart in a row: none before the first, then 100 ms doubled up to 30 s.
pub fn backoff_ms(attempt: u8) -> Millis {
    match attempt {
        0 => 0,
        n => (100 << u32::from(n - 1).min(9)).min(30_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_begins_at_once_doubles_and_is_capped() {
        let pauses: [Millis; 6] = core::array::from_fn(|n| backoff_ms(n as u8));
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600]);
        assert_eq!(backoff_ms(10), 30_000);
        assert_eq!(backoff_ms(u8::MAX), 30_000);
    }
}
