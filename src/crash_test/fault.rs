//! The faults: which one, at which process, at which point.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A process of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessRole {
    /// The daemon.
    Supervisor,
    /// Its keeper.
    Keeper,
    /// The serving process.
    Incumbent,
    /// The process that takes over.
    Successor,
}

/// What happens to a victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT when the lease has been over for a while.
    Stop,
    /// SIGSTOP without an end.
    Hang,
    /// The process exits by itself, with code 70.
    Exit,
    /// The code of the service panics.
    Panic,
    /// The thread sleeps for longer than the drain grace.
    Stall,
    /// The thread sleeps as long, without harm: it only delays the work in progress.
    Hold,
    /// SIGTERM.
    Terminate,
}

/// One fault at one point.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Injection {
    /// The name of the point, or its beginning followed by `*`, or `at-rest`.
    pub point: String,
    /// The process to hit.
    pub victim: ProcessRole,
    /// The fault.
    pub fault: Fault,
}

/// Not a point: no operation is in progress.
pub const AT_REST: &str = "at-rest";

impl ProcessRole {
    /// All kinds of processes.
    pub const ALL: [Self; 4] = [Self::Supervisor, Self::Keeper, Self::Incumbent, Self::Successor];

    /// The process that has a point of this name.
    pub fn at(point: &str) -> Option<Self> {
        let mut parts = point.split('/');
        match (parts.next(), parts.next()) {
            (Some("supervisor" | "journal"), _) => Some(Self::Supervisor),
            (Some("keeper"), _) => Some(Self::Keeper),
            (Some("library" | "shim"), Some("incumbent")) => Some(Self::Incumbent),
            (Some("library" | "shim"), Some("successor")) => Some(Self::Successor),
            _ => None,
        }
    }

    /// Whether clients are connected to it.
    pub fn is_service(self) -> bool {
        matches!(self, Self::Incumbent | Self::Successor)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Keeper => "keeper",
            Self::Incumbent => "incumbent",
            Self::Successor => "successor",
        }
    }
}

impl Fault {
    /// The faults of the matrix.
    pub const ALL: [Self; 4] = [Self::Kill, Self::Stop, Self::Exit, Self::Panic];

    fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Hang => "hang",
            Self::Exit => "exit",
            Self::Panic => "panic",
            Self::Stall => "stall",
            Self::Hold => "hold",
            Self::Terminate => "terminate",
        }
    }

    /// Whether it can only hit the process at the point.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Exit | Self::Panic | Self::Stall | Self::Hold)
    }
}

impl Injection {
    /// Whether it happens at the point of this name.
    pub fn is_at(&self, point: &str) -> bool {
        match self.point.strip_suffix('*') {
            Some(beginning) => point.starts_with(beginning),
            None => point == self.point,
        }
    }
}

impl fmt::Display for ProcessRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.point, self.victim, self.fault)
    }
}

impl FromStr for ProcessRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.word() == text);
        found.ok_or_else(|| format!("no process {text:?}: write supervisor, keeper, incumbent or successor"))
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [
            Self::Kill,
            Self::Stop,
            Self::Hang,
            Self::Exit,
            Self::Panic,
            Self::Stall,
            Self::Hold,
            Self::Terminate,
        ];
        let found = all.into_iter().find(|fault| fault.word() == text);
        found.ok_or_else(|| {
            format!("{text:?} is not a fault: write kill, stop, hang, exit, panic, stall, hold or terminate")
        })
    }
}
