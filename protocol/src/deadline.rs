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
pub const LEASES_OF_STARVED: u8 = 4;

/// A deadline of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Deadline {
    /// A spawned process must say `Hello`: [`Policy::greet_limit_ms`].
    Greet,
    /// The successor must be `Prepared`: what is left of the upgrade.
    Prepare,
    /// The incumbent must be `Drained`: [`Policy::drain_grace_ms`].
    Drain,
    /// The incumbent must be `Sealed`: [`Policy::seal_limit_ms`], and what it was granted to end.
    Seal,
    /// The successor must be `Ready`: what is left of the upgrade.
    Begin,
    /// The successor must have passed the probe: [`Policy::probe_limit_ms`] and [`Policy::probe_margin_ms`].
    Probe,
    /// The successor has had its share of the new connections for long enough: [`CanaryStep::time_ms`].
    Canary,
    /// The new process has served for long enough; the old one, which stands by, leaves: [`Policy::probation_ms`].
    Probation,
    /// What is recorded durably must be on the disk: [`Policy::record_limit_ms`], or [`UNSERVED_RECORD_MS`] if nobody serves.
    Record,
    /// A working party must give a sign of life: [`Policy::lease_ms`].
    Silence,
    /// A successor that was sent away must be gone: [`Policy::exit_limit_ms`], then after SIGTERM that and
    /// [`Policy::stop_grace_ms`].
    Leave,
    /// The incumbent must have `Resumed`: [`Policy::resume_limit_ms`], and the time of the seal if that is not over.
    Resume,
    /// Pause before a service that keeps failing is started again.
    Backoff,
    /// The old process must be `Drained`: [`Policy::drain_grace_ms`], or [`Policy::stop_grace_ms`] for a stop.
    RetireDrain,
    /// Nothing must be on its way to the old process any more, which then is told to seal: [`Policy::quiet_limit_ms`].
    RetireQuiet,
    /// The old process must be `Sealed`: as [`Deadline::Seal`].
    RetireSeal,
    /// The old process must have exited: [`Policy::exit_limit_ms`], then after SIGTERM that and
    /// [`Policy::stop_grace_ms`].
    RetireExit,
    /// An incumbent that another supervisor has left must answer or give a sign of life: [`Policy::lease_ms`]; one that
    /// leaves must be gone: as [`Deadline::Leave`].
    AnswerIncumbent,
    /// Likewise a successor.
    AnswerSuccessor,
    /// A successor that was left by another supervisor must serve: what is left of the upgrade. Then an incumbent must serve, or be
    /// gone: [`Policy::resume_limit_ms`].
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
    /// After so much silence a role acts on its own.
    pub lease_ms: u64,
    /// From the spawn to `Hello`.
    pub greet_limit_ms: u64,
    /// From `Seal` to `Sealed`, without the time that the process has to end.
    pub seal_limit_ms: u64,
    /// Whether a seal ends what serves, so that there is no way back that costs less than to go forward: a shim ends its program. Then
    /// neither a request nor [`Policy::deadline_ms`] calls the upgrade off while the process seals.
    pub seal_ends: bool,
    /// In overlap mode, from the end of the drain of a process that was replaced to `Seal`, at the most.
    pub quiet_limit_ms: u64,
    /// From `Resume` to `Resumed`.
    pub resume_limit_ms: u64,
    /// From the record of a commit, or of the return to the old version, to the moment at which the disk has it.
    pub record_limit_ms: u64,
    /// Whether a successor that says `Ready` must also pass a probe of the supervisor's own.
    pub probes: bool,
    /// For how long after `Ready` the probe may be tried.
    pub probe_limit_ms: u64,
    /// For how long after a step of the canary; no longer than [`Policy::probe_limit_ms`].
    pub canary_probe_limit_ms: u64,
    /// For how long beyond that a probe may hang.
    pub probe_margin_ms: u64,
    /// From `Commit` or `Abort` to the exit of the process, if it has nothing to end.
    pub exit_limit_ms: u64,
    /// From a request to stop to the `Seal`; and from the moment at which a process, or the program that it runs, is asked to end
    /// to the moment at which it is killed.
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
            seal_ends: false,
            quiet_limit_ms: 5_000,
            resume_limit_ms: 30_000,
            record_limit_ms: 30_000,
            probes: false,
            probe_limit_ms: 30_000,
            canary_probe_limit_ms: 3_000,
            probe_margin_ms: 0,
            exit_limit_ms: 10_000,
            stop_grace_ms: 30_000,
            canary: Vec::new(),
            probation_ms: 0,
            liveness: false,
        }
    }
}

/// So long a disk is waited for while nobody serves: the answer decides which version is started.
pub const UNSERVED_RECORD_MS: Millis = 1_000;

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
