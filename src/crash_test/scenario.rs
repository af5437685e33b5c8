//! The operation in progress when a fault happens.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::fault::{Fault, Injection, ProcessRole};

/// What the operator does, and the failure that is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Nothing: the service serves.
    Serve,
    /// The daemon starts, and the service with it.
    Start,
    /// The service is stopped.
    Stop,
    /// An upgrade that commits.
    Upgrade,
    /// The successor dies at the moment of its `Begin`.
    SuccessorDies,
    /// The successor hangs at that moment.
    SuccessorHangs,
    /// The upgrade is to a release that never serves.
    BadRelease,
    /// The drain code of the incumbent fails.
    DrainFails,
    /// The drain takes longer than its grace.
    GraceEnds,
    /// The seal code of the incumbent fails.
    SealFails,
    /// The incumbent dies while it seals.
    IncumbentDies,
    /// An upgrade is called off after the successor got its `Begin`.
    Cancel,
    /// The daemon gets SIGTERM during an upgrade.
    Shutdown,
    /// The daemon was killed and starts again.
    Recovery,
}

impl Scenario {
    /// All scenarios.
    pub const ALL: [Self; 14] = [
        Self::Serve,
        Self::Start,
        Self::Stop,
        Self::Upgrade,
        Self::SuccessorDies,
        Self::SuccessorHangs,
        Self::BadRelease,
        Self::DrainFails,
        Self::GraceEnds,
        Self::SealFails,
        Self::IncumbentDies,
        Self::Cancel,
        Self::Shutdown,
        Self::Recovery,
    ];

    /// The fault that is part of the scenario.
    pub fn given(self) -> Option<Injection> {
        let (point, victim, fault) = match self {
            Self::Serve | Self::Start | Self::Stop | Self::Upgrade | Self::BadRelease => return None,
            Self::Shutdown => ("supervisor/beginning/after.*", ProcessRole::Supervisor, Fault::Terminate),
            Self::SuccessorDies => {
                ("supervisor/beginning/before.ToSuccessor.Begin", ProcessRole::Successor, Fault::Kill)
            }
            Self::SuccessorHangs => {
                ("supervisor/beginning/before.ToSuccessor.Begin", ProcessRole::Successor, Fault::Hang)
            }
            Self::DrainFails => ("library/incumbent/code.drain.begins", ProcessRole::Incumbent, Fault::Panic),
            Self::GraceEnds => ("library/incumbent/code.drain.begins", ProcessRole::Incumbent, Fault::Stall),
            Self::SealFails => ("library/incumbent/code.seal.begins", ProcessRole::Incumbent, Fault::Panic),
            Self::IncumbentDies => {
                ("library/incumbent/code.seal.begins", ProcessRole::Incumbent, Fault::Kill)
            }
            Self::Cancel => ("library/successor/got.Begin", ProcessRole::Successor, Fault::Hold),
            Self::Recovery => (super::fault::AT_REST, ProcessRole::Supervisor, Fault::Kill),
        };
        Some(Injection { point: point.to_owned(), victim, fault })
    }

    /// Whether clients may be refused, because no process is supposed to serve for a while.
    pub fn is_dark(self) -> bool {
        matches!(self, Self::Start | Self::Stop | Self::Shutdown)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Upgrade => "upgrade",
            Self::SuccessorDies => "successor-dies",
            Self::SuccessorHangs => "successor-hangs",
            Self::BadRelease => "bad-release",
            Self::DrainFails => "drain-fails",
            Self::GraceEnds => "grace-ends",
            Self::SealFails => "seal-fails",
            Self::IncumbentDies => "incumbent-dies",
            Self::Cancel => "cancel",
            Self::Shutdown => "shutdown",
            Self::Recovery => "recovery",
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scenario| scenario.word() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|scenario| scenario.word()).collect();
            format!("{text:?} is not a scenario; there are {}", known.join(", "))
        })
    }
}
