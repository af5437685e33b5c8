//! The named deadlines.
//!
//! A machine arms and disarms them by name; the caller keeps the clock. Each name has at most one timer, and arming an
//! armed timer restarts it. Every phase limit before the commit is capped by the rest of the upgrade's deadline.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::restart::Restart;

/// Milliseconds on the caller's monotonic clock.
pub type Millis = u64;

/// Leases of silence allowed for a starved process, one that needs only processor time or the disk to continue. It is
/// not frozen, and killing it does not make the machine faster.
pub const LEASES_OF_STARVED: u8 = 4;

/// A deadline of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Deadline {
    /// A spawned process must send `Hello`: [`Policy::greet_limit_ms`].
    Greet,
    /// The successor must be `Prepared`: the rest of the upgrade's deadline.
    Prepare,
    /// The incumbent must be `Drained`: [`Policy::drain_grace_ms`]. If requests may be cut then, some of the upgrade's
    /// deadline stays for what follows: [`Policy::seal_limit_ms`], but at most half.
    Drain,
    /// The incumbent must be `Sealed`: [`Policy::seal_limit_ms`], plus its grant.
    Seal,
    /// The successor must be `Ready`: the rest of the upgrade's deadline.
    Begin,
    /// The successor must pass the probe: [`Policy::probe_limit_ms`] plus [`Policy::probe_margin_ms`].
    Probe,
    /// Ends a canary step: [`CanaryStep::time_ms`].
    Canary,
    /// Ends the probation: the old process, which stands by, leaves: [`Policy::probation_ms`].
    Probation,
    /// The durable record must be on disk: [`Policy::record_limit_ms`], or [`UNSERVED_RECORD_MS`] if no process serves.
    Record,
    /// A working process must send a sign of life: [`Policy::lease_ms`].
    Silence,
    /// A dismissed successor must exit: [`Policy::exit_limit_ms`]; after SIGTERM, that plus [`Policy::stop_grace_ms`].
    Leave,
    /// The incumbent must have `Resumed`: [`Policy::resume_limit_ms`], or [`Policy::deadline_ms`] if that is longer and
    /// the program has to be started; plus the seal's limit if that has not ended. After SIGTERM, it must exit: as
    /// [`Deadline::Leave`].
    Resume,
    /// Pause before the restart of a failing service: see [`Restart`].
    Backoff,
    /// The old process must be `Drained`: [`Policy::drain_grace_ms`], or [`Policy::stop_grace_ms`] for a stop.
    RetireDrain,
    /// Ends the wait for traffic still in transit to the old process in overlap mode; then it seals:
    /// [`Policy::quiet_limit_ms`].
    RetireQuiet,
    /// The old process must be `Sealed`: same limit as [`Deadline::Seal`].
    RetireSeal,
    /// The old process must exit: [`Policy::exit_limit_ms`]; after SIGTERM, that plus [`Policy::stop_grace_ms`].
    RetireExit,
    /// An incumbent that another supervisor left behind must answer or send a sign of life: [`Policy::lease_ms`]. A
    /// leaving one must exit: as [`Deadline::Leave`].
    AnswerIncumbent,
    /// Like [`Deadline::AnswerIncumbent`], for a successor.
    AnswerSuccessor,
    /// A successor that another supervisor left behind must serve: the rest of the upgrade's deadline. Once it has ended
    /// after that, an incumbent must serve or be gone: as [`Deadline::Resume`].
    Recover,
}

/// What to do with requests that are still running when the drain grace ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stragglers {
    /// Abort the upgrade; the old version continues.
    Abort,
    /// Seal anyway, and cut them.
    Cut,
}

/// The time limits of one service, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// One upgrade, from the request to the commit.
    pub deadline_ms: u64,
    /// From `Prepare` to `Drained`.
    pub drain_grace_ms: u64,
    /// What to do with requests that outlast the drain grace.
    pub stragglers: Stragglers,
    /// After this much silence a process acts on its own.
    pub lease_ms: u64,
    /// From the spawn to `Hello`.
    pub greet_limit_ms: u64,
    /// From `Seal` to `Sealed`, without the process's grant.
    pub seal_limit_ms: u64,
    /// Whether a seal stops the serving program, as in a shim. Then rolling back costs as much as going forward, so
    /// neither a cancel request nor [`Policy::deadline_ms`] aborts the upgrade while the process seals.
    pub seal_ends: bool,
    /// In overlap mode: maximum time from the end of the old process's drain to its `Seal`.
    pub quiet_limit_ms: u64,
    /// From `Resume` to `Resumed`, for a process that goes on with what it has.
    pub resume_limit_ms: u64,
    /// From the record of a commit or revert until the disk confirms it.
    pub record_limit_ms: u64,
    /// Whether a successor that sends `Ready` must also pass the supervisor's probe.
    pub probes: bool,
    /// How long the probe may be retried after `Ready`.
    pub probe_limit_ms: u64,
    /// How long the probe may be retried after a canary step; at most [`Policy::probe_limit_ms`].
    pub canary_probe_limit_ms: u64,
    /// Extra time for a probe attempt that hangs.
    pub probe_margin_ms: u64,
    /// From `Commit` or `Abort` to the exit of a process that has no program to end.
    pub exit_limit_ms: u64,
    /// At a stop: from the request to `Seal`. Also from the stop signal of a process, or of the program it runs, until
    /// SIGKILL.
    pub stop_grace_ms: u64,
    /// The successor's shares of new connections before the commit, in overlap mode. Their times do not count against
    /// [`Policy::deadline_ms`].
    pub canary: Vec<CanaryStep>,
    /// How long the replaced process stands by after the commit; 0: it leaves at once.
    pub probation_ms: u64,
    /// Whether a serving process is watched, and restarted if its check fails.
    pub liveness: bool,
    /// Whether the service starts again after its process has ended, and when.
    pub restart: Restart,
}

/// A canary step: a share of the new connections, and how long the successor must serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CanaryStep {
    /// Share in permille.
    pub permille: u16,
    /// Duration in milliseconds.
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
            restart: Restart::default(),
        }
    }
}

/// Time limit for the disk while no process serves: its answer decides which version starts.
pub const UNSERVED_RECORD_MS: Millis = 1_000;
