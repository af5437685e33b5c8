//! What the journal remembers: facts, and the fold that makes the standing of a service out of them.
//!
//! Facts are folded by the same function live and in replay. Which of them must be on the disk follows from one
//! thought: after a power cut no process lives, so only what outlives all processes must be durable. That is which
//! binary is current. All others serve a supervisor that restarts on a running kernel; the page cache is enough.

use alloc::boxed::Box;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, HandoffId};
use crate::reason::Exit;

/// A file that a generation is started from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Binary {
    /// Absolute path.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// A process, named so that a later one with the same pid is not taken for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of proc_pid_stat(5)).
    pub start_ticks: u64,
    /// The boot that it belongs to (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: [u8; 16],
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fact {
    /// The service is to run, or not.
    Wanted {
        /// Whether it is to run.
        up: bool,
    },
    /// A process is about to be started.
    Intent {
        /// The handoff.
        handoff: HandoffId,
        /// The generation that it would be.
        generation: Generation,
        /// What it is started from.
        binary: Binary,
    },
    /// It was started.
    Spawned {
        /// The handoff.
        handoff: HandoffId,
        /// The process.
        process: Process,
    },
    /// It was told to begin: from now on it may hold the lock and serve.
    Begun {
        /// The handoff.
        handoff: HandoffId,
    },
    /// It is the current generation. Durable.
    Committed {
        /// The handoff.
        handoff: HandoffId,
    },
    /// The handoff was undone.
    RolledBack {
        /// The handoff.
        handoff: HandoffId,
        /// Why, for a person.
        reason: String,
    },
    /// The commit of this handoff did not last; the generation before it is current again, under a new number. Durable.
    Reverted {
        /// The handoff.
        handoff: HandoffId,
    },
    /// The process of the current generation ended.
    Exited {
        /// The generation.
        generation: Generation,
        /// How.
        exit: Exit,
    },
    /// What all facts before it add up to; they are gone. So a journal stays short. Durable.
    Snapshot(Box<Standing>),
}

impl Fact {
    /// Whether the fact must be on the disk before anything depends on it.
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Committed { .. } | Self::Reverted { .. } | Self::Snapshot(_))
    }
}

/// A fact and its time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since 1970-01-01 UTC; for people, no decision hangs on it.
    pub at_unix_ms: u64,
    /// The fact.
    pub fact: Fact,
}

/// A generation that was committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Current {
    /// Its number.
    pub generation: Generation,
    /// The handoff in which its process was started.
    pub handoff: HandoffId,
    /// What it is started from.
    pub binary: Binary,
    /// Its process, unless it ended.
    pub process: Option<Process>,
    /// When its process was started. Milliseconds since 1970-01-01 UTC; 0 if that is not known.
    pub started_unix_ms: u64,
    /// When it was committed. Milliseconds since 1970-01-01 UTC.
    pub since_unix_ms: u64,
}

/// A handoff that was begun and not yet ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// Its id.
    pub handoff: HandoffId,
    /// The generation that it would commit.
    pub generation: Generation,
    /// What the successor is started from.
    pub binary: Binary,
    /// The successor, once it was started.
    pub process: Option<Process>,
    /// When that was. Milliseconds since 1970-01-01 UTC; 0 before.
    pub started_unix_ms: u64,
    /// Whether the successor was told to begin.
    pub begun: bool,
}

/// What the facts add up to. It is on the disk as a [`Fact::Snapshot`], so its bytes and those of its parts are pinned:
/// what is new in it needs a kind of fact of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Whether the service is to run.
    pub wanted: bool,
    /// The current generation.
    pub current: Option<Current>,
    /// The one before it.
    pub previous: Option<Current>,
    /// An earlier one, the last that was replaced while its process lived: that may still be on its way out.
    pub leaving: Option<Current>,
    /// The handoff under way.
    pub attempt: Option<Attempt>,
    /// How often a process of the current generation ended although it was to run.
    pub restarts: u64,
}

impl Standing {
    /// Number of the current generation; 0 if there was none.
    pub fn generation(&self) -> Generation {
        self.current.as_ref().map_or(Generation(0), |current| current.generation)
    }

    /// Adds one fact. A fact about a handoff that is not under way changes nothing.
    pub fn fold(&mut self, record: &Record) {
        match &record.fact {
            Fact::Wanted { up } => self.wanted = *up,
            Fact::Intent { handoff, generation, binary } => {
                self.attempt = Some(Attempt {
                    handoff: *handoff,
                    generation: *generation,
                    binary: binary.clone(),
                    process: None,
                    started_unix_ms: 0,
                    begun: false,
                });
            }
            Fact::Spawned { handoff, process } => {
                if let Some(attempt) = self.attempt_of(*handoff) {
                    attempt.process = Some(process.clone());
                    attempt.started_unix_ms = record.at_unix_ms;
                }
            }
            Fact::Begun { handoff } => {
                if let Some(attempt) = self.attempt_of(*handoff) {
                    attempt.begun = true;
                }
            }
            Fact::Committed { handoff } => {
                if let Some(attempt) = self.attempt.take_if(|attempt| attempt.handoff == *handoff) {
                    self.leaving = self.previous.take_if(|it| it.process.is_some()).or(self.leaving.take());
                    self.previous = self.current.take();
                    self.current = Some(Current {
                        generation: attempt.generation,
                        handoff: attempt.handoff,
                        binary: attempt.binary,
                        process: attempt.process,
                        started_unix_ms: attempt.started_unix_ms,
                        since_unix_ms: record.at_unix_ms,
                    });
                }
            }
            Fact::RolledBack { handoff, .. } => {
                self.attempt.take_if(|attempt| attempt.handoff == *handoff);
            }
            Fact::Reverted { .. } => self.revert(record.at_unix_ms),
            Fact::Exited { generation, .. } => self.exited(*generation),
            Fact::Snapshot(standing) => self.clone_from(standing),
        }
    }

    fn attempt_of(&mut self, handoff: HandoffId) -> Option<&mut Attempt> {
        self.attempt.as_mut().filter(|attempt| attempt.handoff == handoff)
    }

    fn revert(&mut self, at_unix_ms: u64) {
        if let (Some(previous), Some(current)) = (self.previous.take(), self.current.take()) {
            let generation = current.generation.next();
            self.current = Some(Current { generation, since_unix_ms: at_unix_ms, ..previous });
            self.previous = Some(current);
        }
    }

    fn exited(&mut self, generation: Generation) {
        if let Some(current) = self.current.as_mut().filter(|current| current.generation == generation)
            && current.process.take().is_some()
            && self.wanted
        {
            self.restarts = self.restarts.saturating_add(1);
        }
    }
}

/// Folds all records, oldest first.
pub fn fold<'a>(records: impl IntoIterator<Item = &'a Record>) -> Standing {
    let mut standing = Standing::default();
    for record in records {
        standing.fold(record);
    }
    standing
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn id(number: u8) -> HandoffId {
        HandoffId::from_bytes([number; 16])
    }

    fn committed(number: u8) -> [Fact; 3] {
        let binary = Binary { path: "/bin/s3".into(), sha256: [0; 32] };
        let process = Process { pid: number.into(), start_ticks: 0, boot_id: [0; 16] };
        [
            Fact::Intent { handoff: id(number), generation: Generation(number.into()), binary },
            Fact::Spawned { handoff: id(number), process },
            Fact::Committed { handoff: id(number) },
        ]
    }

    #[test]
    fn who_still_leaves_is_not_forgotten_when_its_follower_crashes() {
        let crashed =
            |number: u8| Fact::Exited { generation: Generation(number.into()), exit: Exit::Unknown };
        let mut facts = Vec::from(committed(1));
        for number in 2..5 {
            facts.extend(committed(number));
            facts.push(crashed(number));
        }
        let records: Vec<_> = facts.into_iter().map(|fact| Record { at_unix_ms: 0, fact }).collect();
        let standing = fold(&records);
        assert_eq!(standing.previous.map(|previous| previous.process), Some(None));
        assert_eq!(standing.leaving.map(|leaving| leaving.handoff), Some(id(1)));
    }
}
