//! Why a handoff was rolled back or a start failed, as text that people can act on.

use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::version::NoCommonVersion;

/// One of the two processes of a handoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The process that serves now.
    Incumbent,
    /// The process that takes over.
    Successor,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Incumbent => "old process",
            Self::Successor => "new process",
        })
    }
}

/// How a process ended, as reported by wait(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It is gone; the kernel does not report how.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("is gone"),
        }
    }
}

/// How the reason of a process begins that cannot use a file of its supervisor: its program is not to blame for that.
pub const OWN_FILE: &str = "handoff's own file ";

/// Why a handoff was rolled back or a start failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Reason {
    /// It ended after its commit, and is not started again after that.
    #[error("the new process {0} after it was committed, and is not started again")]
    Ended(Exit),
    /// The binary could not be started.
    #[error("the new process could not be started: {0}")]
    Spawn(String),
    /// It did not send `Hello` in time.
    #[error(
        "the new process did not say Hello in time; does the binary call handoff_service::start() early in main()?"
    )]
    NoHello,
    /// It has no common protocol version.
    #[error("the new process speaks another protocol: {0}")]
    Version(NoCommonVersion),
    /// It was not `Prepared` before the deadline.
    #[error(
        "the new process was not prepared before the deadline of the upgrade; its log may say what it waits for"
    )]
    NotPrepared,
    /// It was not `Ready` before the deadline.
    #[error(
        "the new process was not ready before the deadline of the upgrade; its log may say what it waits for"
    )]
    NotReady,
    /// It reported itself as not healthy.
    #[error("the new process says that it is not healthy: {0}")]
    Unhealthy(String),
    /// The supervisor's probe failed.
    #[error("the new process does not pass the probe: {0}")]
    Probe(String),
    /// It ended.
    #[error("the new process {0} before it was ready; its log may say why")]
    SuccessorExited(Exit),
    /// A process gave no sign of life for longer than the lease.
    #[error("the {0} gave no sign of life for longer than the lease")]
    Silent(Role),
    /// A process closed its channel.
    #[error("the {0} closed its channel to the supervisor")]
    HungUp(Role),
    /// A process broke the protocol.
    #[error("the {role} broke the protocol: {what}")]
    Broke {
        /// The process.
        role: Role,
        /// What it did.
        what: String,
    },
    /// Requests were still running at the end of the drain grace.
    #[error(
        "the old process still had requests running at the end of the drain grace; \
         give it more time (drain_grace) or allow them to be cut (stragglers = \"cut\")"
    )]
    DrainGrace,
    /// The incumbent was not `Sealed` in time.
    #[error("the old process was not sealed in time")]
    NotSealed,
    /// The incumbent could not drain or seal.
    #[error("the old process could not drain or seal: {0}")]
    SealFailed(String),
    /// The incumbent received nothing for longer than its lease and serves again.
    #[error(
        "the old process heard nothing from the supervisor for longer than its lease and went on serving"
    )]
    LeaseEnded,
    /// The commit could not be made durable.
    #[error("the commit could not be written to the journal: {0}")]
    Journal(String),
    /// A user cancelled it.
    #[error("it was cancelled")]
    Cancelled,
    /// The supervisor died, and its successor found the new process not serving.
    #[error("the supervisor ended in the middle of it, and the new process did not serve")]
    SupervisorLost,
    /// It failed with a share of the connections.
    #[error("the new process failed its canary: {0}")]
    Canary(String),
    /// It failed after the commit.
    #[error("the new process did not pass its probation: {0}")]
    Probation(String),
}

impl Reason {
    /// Whether it is about the new process, and that process existed: it may have said why.
    pub fn blames_successor(&self) -> bool {
        match self {
            Self::NoHello
            | Self::Version(_)
            | Self::NotPrepared
            | Self::NotReady
            | Self::Unhealthy(_)
            | Self::Probe(_)
            | Self::SuccessorExited(_)
            | Self::Canary(_)
            | Self::Probation(_)
            | Self::Ended(_) => true,
            Self::Silent(role) | Self::HungUp(role) | Self::Broke { role, .. } => *role == Role::Successor,
            Self::Spawn(_)
            | Self::DrainGrace
            | Self::NotSealed
            | Self::SealFailed(_)
            | Self::LeaseEnded
            | Self::Journal(_)
            | Self::Cancelled
            | Self::SupervisorLost => false,
        }
    }

    /// Whether the program is to blame, rather than the machine or the supervisor.
    pub fn blames_program(&self) -> bool {
        match self {
            Self::Spawn(_) => false,
            Self::Unhealthy(why) => !why.starts_with(OWN_FILE),
            _ => true,
        }
    }
}
