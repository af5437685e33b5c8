//! How a supervisor treats processes of an earlier supervisor: one labelled table.
//!
//! The input is the journal and each process's answer to [`Adopt`](crate::message::Adopt). Two processes matter: the
//! *incumbent*, which served before the last handoff, and the *successor* of that handoff. (An idle service has only an
//! incumbent. A third process, replaced even earlier, is always told to leave; it drains and seals first if it serves.)
//! The table is evaluated after every new fact, until its decision is not to wait.
//!
//! No row starts or kills anything while a process serves or is about to, unless that process is unreachable or frozen
//! and another one holds or must get the data: the serving process continues, whatever was intended. The data lock
//! decides which process serves, and the answers reveal its decision: a process that serves or works holds the lock,
//! one that waits does not.
//!
//! No row commits. The new supervisor repeats every check that a commit requires, because the earlier one may have died
//! before it had the result. A serving successor is probed, and restarts its canary at the first step, since its share
//! was withdrawn before any process was asked. A committed process whose predecessor still stands by restarts its
//! probation with the full time. A failure is rolled back like that of any new process. A process's own health report
//! needs no repetition: an unhealthy process never serves.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::message::Stage;

mod roles;

pub use roles::{LivingProcesses, Roles, Slots, roles};

/// What the journal says about the last handoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LastHandoff {
    /// It was not committed, or there was none: the current generation's process is the incumbent.
    Uncommitted,
    /// It was committed: the current generation's process is the successor.
    Committed,
}

/// What is known of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Observation {
    /// It does not exist, or has ended.
    Gone,
    /// `Adopt` was sent; no answer yet.
    Asked,
    /// It serves.
    Serving,
    /// It holds the data lock, if there is one, and is about to serve.
    Working,
    /// It waits for the data lock.
    Waiting,
    /// It is leaving, or was killed.
    Leaving,
    /// It gave no sign of life for longer than the lease.
    Frozen,
    /// It lives, but cannot be reached.
    Unreachable,
}

impl From<Stage> for Observation {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Serving => Self::Serving,
            Stage::Working => Self::Working,
            Stage::Waiting => Self::Waiting,
            Stage::Leaving => Self::Leaving,
        }
    }
}

/// The input of the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Whether the service is to run.
    pub wanted: bool,
    /// What the journal says about the last handoff.
    pub last_handoff: LastHandoff,
    /// What is known of the incumbent.
    pub incumbent: Observation,
    /// What is known of the successor.
    pub successor: Observation,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// Wait: the next event decides.
    Wait,
    /// The incumbent continues.
    Adopt,
    /// The successor serves: the checks for a commit are repeated. Until the commit the incumbent stays.
    Advance,
    /// The successor serves and is committed: the incumbent leaves, or stands by if there is a probation.
    Forward,
    /// The incumbent serves: the successor is dismissed.
    Back,
    /// The incumbent serves although the successor was committed: the commit is undone.
    Revert,
    /// The successor is killed; its end decides.
    KillSuccessor,
    /// The incumbent is killed; its end decides.
    KillIncumbent,
    /// The binary of the current generation is started.
    Start,
    /// Nothing runs.
    Rest,
}

/// One row of the table. It applies if every column matches.
#[derive(Debug)]
pub struct Row {
    /// Its name, for the log.
    pub label: &'static str,
    /// Whether the service is to run; `None` matches both.
    pub wanted: Option<bool>,
    /// What the journal says; `None` matches both.
    pub last_handoff: Option<LastHandoff>,
    /// The matching states of the incumbent.
    pub incumbent: &'static [Observation],
    /// The matching states of the successor.
    pub successor: &'static [Observation],
    /// The decision.
    pub decision: Decision,
    /// The reason.
    pub reason: &'static str,
}

impl Row {
    /// Whether the row applies to these facts.
    pub fn holds(&self, facts: Facts) -> bool {
        self.wanted.is_none_or(|wanted| wanted == facts.wanted)
            && self.last_handoff.is_none_or(|written| written == facts.last_handoff)
            && self.incumbent.contains(&facts.incumbent)
            && self.successor.contains(&facts.successor)
    }
}

use Observation::{Asked, Frozen, Gone, Leaving, Serving, Unreachable, Waiting, Working};

/// All states of a process.
pub const FOUND: [Observation; 8] = [Gone, Asked, Serving, Working, Waiting, Leaving, Frozen, Unreachable];

/// The states in which it is known whether the process serves.
const SETTLED: [Observation; 6] = [Gone, Serving, Waiting, Leaving, Frozen, Unreachable];

/// The table. Exactly one row applies to any facts.
pub static TABLE: &[Row] = &[
    Row {
        label: "go forward",
        wanted: None,
        last_handoff: Some(LastHandoff::Uncommitted),
        incumbent: &SETTLED,
        successor: &[Serving],
        decision: Decision::Advance,
        reason: "The successor has received Begin and serves: it has opened the data, and may have acknowledged \
              writes. Its health is unknown: it continues with the probe, and the incumbent waits for the lock or \
              serves beside it, as before.",
    },
    Row {
        label: "finish",
        wanted: None,
        last_handoff: Some(LastHandoff::Committed),
        incumbent: &SETTLED,
        successor: &[Serving, Unreachable],
        decision: Decision::Forward,
        reason: "The commit is durable; only the processes were not told. A committed process that lives is trusted \
              even if it is unreachable: it reported ready before the commit.",
    },
    Row {
        label: "ask the other one, too",
        wanted: None,
        last_handoff: None,
        incumbent: &[Asked, Working],
        successor: &[Serving],
        decision: Decision::Wait,
        reason: "The successor serves, so no client waits. But the incumbent's state must be known before it is \
              asked to leave, and an incumbent that is about to serve cannot drain yet.",
    },
    Row {
        label: "ask before the end",
        wanted: None,
        last_handoff: Some(LastHandoff::Committed),
        incumbent: &[Asked, Working],
        successor: &[Unreachable],
        decision: Decision::Wait,
        reason: "The same, with a committed successor that is unreachable.",
    },
    Row {
        label: "distrust",
        wanted: None,
        last_handoff: Some(LastHandoff::Uncommitted),
        incumbent: &FOUND,
        successor: &[Unreachable],
        decision: Decision::KillSuccessor,
        reason: "It cannot receive a commit or an abort, and its readiness is unknown. Its end releases the lock to a \
              waiting incumbent; otherwise the committed binary is started.",
    },
    Row {
        label: "frozen successor",
        wanted: None,
        last_handoff: None,
        incumbent: &FOUND,
        successor: &[Frozen],
        decision: Decision::KillSuccessor,
        reason: "It was asked and is silent for longer than the lease, so it serves no client. It may hold the lock \
              that the incumbent waits for.",
    },
    Row {
        label: "ask the successor",
        wanted: None,
        last_handoff: None,
        incumbent: &FOUND,
        successor: &[Asked, Working],
        decision: Decision::Wait,
        reason: "It will answer, be ready, fail or fall silent, each within a limit. If it is about to serve it holds \
              the lock, and no other process can serve sooner.",
    },
    Row {
        label: "go on",
        wanted: None,
        last_handoff: Some(LastHandoff::Uncommitted),
        incumbent: &[Serving, Unreachable],
        successor: &[Gone],
        decision: Decision::Adopt,
        reason: "It is the current generation, and no handoff is in progress. An unreachable incumbent probably \
              serves too, and is not killed for its age.",
    },
    Row {
        label: "roll back",
        wanted: None,
        last_handoff: Some(LastHandoff::Uncommitted),
        incumbent: &[Serving, Unreachable],
        successor: &[Waiting, Leaving],
        decision: Decision::Back,
        reason: "The incumbent received nothing for longer than its lease, or saw its channel close, and took its \
              data back. The successor waits for a lock that it will not get.",
    },
    Row {
        label: "undo the commit",
        wanted: None,
        last_handoff: Some(LastHandoff::Committed),
        incumbent: &[Serving, Unreachable],
        successor: &[Gone, Waiting, Leaving],
        decision: Decision::Revert,
        reason: "The committed process has lost the data, by ending or leaving, before the incumbent was asked \
              to leave: the incumbent was its standby and serves.",
    },
    Row {
        label: "frozen incumbent",
        wanted: None,
        last_handoff: None,
        incumbent: &[Frozen],
        successor: &[Gone, Waiting, Leaving],
        decision: Decision::KillIncumbent,
        reason: "No process serves: the incumbent was asked and is silent for longer than the lease, and the \
              successor does not hold the lock.",
    },
    Row {
        label: "ask the incumbent",
        wanted: None,
        last_handoff: None,
        incumbent: &[Asked, Working, Waiting, Leaving],
        successor: &[Gone, Waiting, Leaving],
        decision: Decision::Wait,
        reason: "It answers, serves, gets the lock or ends, each within a limit. Its answer decides.",
    },
    Row {
        label: "wait for the successor",
        wanted: None,
        last_handoff: None,
        incumbent: &[Gone],
        successor: &[Waiting, Leaving],
        decision: Decision::Wait,
        reason: "The incumbent is gone and has released its lock: the successor gets it, or ends.",
    },
    Row {
        label: "start",
        wanted: Some(true),
        last_handoff: None,
        incumbent: &[Gone],
        successor: &[Gone],
        decision: Decision::Start,
        reason: "No process is left that could serve, and the service is wanted.",
    },
    Row {
        label: "rest",
        wanted: Some(false),
        last_handoff: None,
        incumbent: &[Gone],
        successor: &[Gone],
        decision: Decision::Rest,
        reason: "No process is left, and none is wanted.",
    },
];

/// The row that applies to these facts.
pub fn decide(facts: Facts) -> &'static Row {
    // A test enumerates all facts: one row always applies, so the default is never used.
    TABLE.iter().find(|row| row.holds(facts)).unwrap_or(&TABLE[TABLE.len() - 1])
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gone => "gone",
            Asked => "asked",
            Serving => "serving",
            Working => "about to serve",
            Waiting => "waiting for the data lock",
            Leaving => "leaving",
            Frozen => "frozen",
            Unreachable => "unreachable",
        })
    }
}
