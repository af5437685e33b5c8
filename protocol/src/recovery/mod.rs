//! What a supervisor does that finds processes of an earlier one: one labelled table.
//!
//! It knows what the journal says and what each process answers to [`Adopt`](crate::message::Adopt). Two processes
//! matter: the *incumbent*, which served before the last handoff, and the *successor*, which was to follow it. (A service
//! at rest has an incumbent only. A third process, which was replaced before that, is told to leave, in order if it
//! serves, whatever else happens.) The table is asked again whenever something new is known, until it gives something
//! else than to wait.
//!
//! No row starts or kills anything while a process serves or is at work, unless that process is unreachable or frozen and
//! another one has the data or is to have it: the process that serves goes on, whatever was intended. The data lock decides
//! which one that is, and the processes say what it decided: one that serves or is at work holds it, one that waits does not.
//!
//! No row commits. What a commit demands is asked again by the supervisor that is here now, as the one before may have died
//! before it knew the answer. A successor that serves is probed, and goes through its canary from the first step, since its
//! share was taken back before any process was asked. A committed process whose predecessor still stands by is on probation
//! again, for the whole time. What does not pass is rolled back in the way in which any new process is. What the process
//! itself says of its health needs no second question: one that is not healthy never serves.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::message::Stage;

mod roles;

pub use roles::{Living, Roles, Slots, roles};

/// What the journal says of the last handoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Written {
    /// It was not committed, or there was none: the incumbent is the process of the current generation.
    Uncommitted,
    /// It was committed: the successor is the process of the current generation.
    Committed,
}

/// What is known of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Found {
    /// There is none, or it has ended.
    Gone,
    /// It was asked and has not answered yet.
    Asked,
    /// It serves.
    Serving,
    /// It holds the data lock, if there is one, and is about to serve.
    Working,
    /// It waits for the data lock.
    Waiting,
    /// It is on its way out, or was killed.
    Leaving,
    /// It gave no sign of life for longer than the lease.
    Frozen,
    /// It lives, and cannot be asked.
    Unreachable,
}

impl From<Stage> for Found {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Serving => Self::Serving,
            Stage::Working => Self::Working,
            Stage::Waiting => Self::Waiting,
            Stage::Leaving => Self::Leaving,
        }
    }
}

/// All that the decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Whether the service is to run.
    pub wanted: bool,
    /// What the journal says.
    pub written: Written,
    /// What is known of the incumbent.
    pub incumbent: Found,
    /// What is known of the successor.
    pub successor: Found,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// What somebody says next decides.
    Wait,
    /// The incumbent goes on.
    Adopt,
    /// The successor serves: what a commit demands of it is asked again. Until it is committed the incumbent stays.
    Advance,
    /// The successor serves and is committed: the incumbent leaves, or stands by if there is a probation.
    Forward,
    /// The incumbent serves: the successor is sent away.
    Back,
    /// The incumbent serves although the successor was committed: the commit is undone.
    Revert,
    /// The successor is killed; its end decides.
    KillSuccessor,
    /// The incumbent is killed; its end decides.
    KillIncumbent,
    /// The binary of the current generation is started.
    Start,
    /// Nothing is to run.
    Rest,
}

/// One row of the table. It holds if each column has what is there.
#[derive(Debug)]
pub struct Row {
    /// Its name, for the log.
    pub label: &'static str,
    /// Whether the service is to run; `None` if that does not matter.
    pub wanted: Option<bool>,
    /// What the journal says; `None` if that does not matter.
    pub written: Option<Written>,
    /// What may be known of the incumbent.
    pub incumbent: &'static [Found],
    /// What may be known of the successor.
    pub successor: &'static [Found],
    /// What to do.
    pub decision: Decision,
    /// Why that is right.
    pub why: &'static str,
}

impl Row {
    /// Whether the row is the one for these facts.
    pub fn holds(&self, facts: Facts) -> bool {
        self.wanted.is_none_or(|wanted| wanted == facts.wanted)
            && self.written.is_none_or(|written| written == facts.written)
            && self.incumbent.contains(&facts.incumbent)
            && self.successor.contains(&facts.successor)
    }
}

use Found::{Asked, Frozen, Gone, Leaving, Serving, Unreachable, Waiting, Working};

/// Everything that can be known of a process.
pub const FOUND: [Found; 8] = [Gone, Asked, Serving, Working, Waiting, Leaving, Frozen, Unreachable];

/// All but who has yet to say whether it serves.
const SETTLED: [Found; 6] = [Gone, Serving, Waiting, Leaving, Frozen, Unreachable];

/// The table. For all facts exactly one row holds.
pub static TABLE: &[Row] = &[
    Row {
        label: "go forward",
        wanted: None,
        written: Some(Written::Uncommitted),
        incumbent: &SETTLED,
        successor: &[Serving],
        decision: Decision::Advance,
        why: "The successor was told to begin and serves: it has opened the data, and may have acknowledged writes. That \
              it serves well is not known: it goes on where the probe begins, and the incumbent waits for the lock or serves \
              beside it, as it would have.",
    },
    Row {
        label: "finish",
        wanted: None,
        written: Some(Written::Committed),
        incumbent: &SETTLED,
        successor: &[Serving, Unreachable],
        decision: Decision::Forward,
        why: "The commit is a fact; only nobody was told. Whoever is committed and lives is not doubted for being unreachable: it \
              said that it was ready before the commit.",
    },
    Row {
        label: "ask the other one, too",
        wanted: None,
        written: None,
        incumbent: &[Asked, Working],
        successor: &[Serving],
        decision: Decision::Wait,
        why: "The successor serves, so nobody is kept waiting; but what the incumbent does must be known before it can be \
              told to leave, and one that is about to serve cannot drain yet.",
    },
    Row {
        label: "ask before the end",
        wanted: None,
        written: Some(Written::Committed),
        incumbent: &[Asked, Working],
        successor: &[Unreachable],
        decision: Decision::Wait,
        why: "The same, with a committed successor that cannot be asked.",
    },
    Row {
        label: "distrust",
        wanted: None,
        written: Some(Written::Uncommitted),
        incumbent: &FOUND,
        successor: &[Unreachable],
        decision: Decision::KillSuccessor,
        why: "It cannot be told that it is committed, nor that it is not, and nobody knows whether it is ready. Whoever \
              waits for the lock gets it by its end; otherwise the committed binary is started.",
    },
    Row {
        label: "frozen successor",
        wanted: None,
        written: None,
        incumbent: &FOUND,
        successor: &[Frozen],
        decision: Decision::KillSuccessor,
        why: "It was asked and is silent for longer than the lease, so it serves nobody. It may hold the lock for which the \
              incumbent waits.",
    },
    Row {
        label: "ask the successor",
        wanted: None,
        written: None,
        incumbent: &FOUND,
        successor: &[Asked, Working],
        decision: Decision::Wait,
        why: "It will answer, be ready, fail or fall silent, each within a limit; if it is at work it holds the lock, and \
              nobody else can serve sooner.",
    },
    Row {
        label: "go on",
        wanted: None,
        written: Some(Written::Uncommitted),
        incumbent: &[Serving, Unreachable],
        successor: &[Gone],
        decision: Decision::Adopt,
        why: "It is the current generation and nothing is under way any more. An unreachable one serves too, as far as anybody can \
              tell, and is not killed for being old.",
    },
    Row {
        label: "roll back",
        wanted: None,
        written: Some(Written::Uncommitted),
        incumbent: &[Serving, Unreachable],
        successor: &[Waiting, Leaving],
        decision: Decision::Back,
        why: "The incumbent heard nothing for longer than its lease, or saw its channel close, and took its data back; the \
              successor waits for a lock that it will not get.",
    },
    Row {
        label: "undo the commit",
        wanted: None,
        written: Some(Written::Committed),
        incumbent: &[Serving, Unreachable],
        successor: &[Gone, Waiting, Leaving],
        decision: Decision::Revert,
        why: "The committed process has lost the data, by its end or by leaving, before the incumbent was told to go: the \
              incumbent was its standby and serves.",
    },
    Row {
        label: "frozen incumbent",
        wanted: None,
        written: None,
        incumbent: &[Frozen],
        successor: &[Gone, Waiting, Leaving],
        decision: Decision::KillIncumbent,
        why: "Nobody serves: it was asked and is silent for longer than the lease, and the successor does not hold the lock.",
    },
    Row {
        label: "ask the incumbent",
        wanted: None,
        written: None,
        incumbent: &[Asked, Working, Waiting, Leaving],
        successor: &[Gone, Waiting, Leaving],
        decision: Decision::Wait,
        why: "It answers, serves, gets the lock or ends, each within a limit. What it says then decides.",
    },
    Row {
        label: "wait for the successor",
        wanted: None,
        written: None,
        incumbent: &[Gone],
        successor: &[Waiting, Leaving],
        decision: Decision::Wait,
        why: "The incumbent is gone, and with it its lock: the successor gets it, or ends.",
    },
    Row {
        label: "start",
        wanted: Some(true),
        written: None,
        incumbent: &[Gone],
        successor: &[Gone],
        decision: Decision::Start,
        why: "Nobody is left who could serve, and the service is wanted.",
    },
    Row {
        label: "rest",
        wanted: Some(false),
        written: None,
        incumbent: &[Gone],
        successor: &[Gone],
        decision: Decision::Rest,
        why: "Nobody is left, and nobody is to run.",
    },
];

/// The row for these facts.
pub fn decide(facts: Facts) -> &'static Row {
    // A test enumerates all facts: one row always holds, and the last one is never a default.
    TABLE.iter().find(|row| row.holds(facts)).unwrap_or(&TABLE[TABLE.len() - 1])
}

impl fmt::Display for Found {
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
