//! The phases of a service, and their names.

use core::fmt;

/// The phase of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Processes of an earlier supervisor exist; their state is being determined.
    Recovering,
    /// No process runs, and none should.
    Stopped,
    /// No process runs; the next start is delayed.
    Backoff,
    /// The successor was spawned and must send `Hello`.
    Greeting,
    /// The successor starts up.
    Warming,
    /// The incumbent waits for long requests, and still accepts.
    Draining,
    /// The incumbent finishes and releases.
    Sealing,
    /// The successor takes over.
    Beginning,
    /// The successor has reported that it serves, and the supervisor probes it.
    Probing,
    /// The successor serves a share of the new connections.
    Canary,
    /// The commit is being made durable.
    Committing,
    /// The successor failed or is dismissed; it must be gone before anything else happens.
    Reaping,
    /// The incumbent is to serve again.
    Resuming,
    /// The return to the old version, after a reverted commit, is being made durable.
    Reverting,
    /// The incumbent serves; no handoff is under way.
    Serving,
    /// The service is being stopped; its process is the outgoing process.
    Stopping,
}

impl Phase {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recovering => "recovering",
            Self::Stopped => "stopped",
            Self::Backoff => "backoff",
            Self::Greeting => "greeting",
            Self::Warming => "warming",
            Self::Draining => "draining",
            Self::Sealing => "sealing",
            Self::Beginning => "beginning",
            Self::Probing => "probing",
            Self::Canary => "canary",
            Self::Committing => "committing",
            Self::Reaping => "reaping",
            Self::Resuming => "resuming",
            Self::Reverting => "reverting",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
