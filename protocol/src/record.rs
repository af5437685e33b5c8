//! The facts in the journal, and the fold that computes the standing of a service from them.
//!
//! The same function folds facts live and in replay. Which facts must be durable follows from one observation: no
//! process survives a power failure, so only what must outlive all processes has to be on disk. That is which binary is
//! current. All other facts are for a supervisor that restarts on a running kernel, and the page cache is enough for
//! them.

use alloc::boxed::Box;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, HandoffId};
use crate::reason::Exit;
use crate::restart::Rest;

/// A file that a generation is started from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Binary {
    /// Absolute path.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// Identifies a process, even if its pid is reused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of proc_pid_stat(5)).
    pub start_ticks: u64,
    /// The boot id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: [u8; 16],
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fact {
    /// Whether the service is to run.
    Wanted {
        /// Whether it is to run.
        up: bool,
    },
    /// A process is about to be started.
    Intent {
        /// The handoff.
        handoff: HandoffId,
        /// The generation that it would become.
        generation: Generation,
        /// The binary that it is started from.
        binary: Binary,
    },
    /// It was started.
    Spawned {
        /// The handoff.
        handoff: HandoffId,
        /// The process.
        process: Process,
    },
    /// `Begin` was sent: from now on the process may hold the lock and serve.
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
        /// The reason, for people.
        reason: String,
    },
    /// The commit of this handoff was undone. The previous generation is current again, under a new number. Durable.
    Reverted {
        /// The handoff.
        handoff: HandoffId,
    },
    /// The process of the current generation ended.
    Exited {
        /// The generation.
        generation: Generation,
        /// The exit status.
        exit: Exit,
    },
    /// Replaces all earlier facts by their result. This keeps a journal short. Durable.
    Snapshot(Box<Standing>),
    /// When the upgrade's time ends: by then the handoff must be committed, or it is rolled back.
    Deadline {
        /// The handoff.
        handoff: HandoffId,
        /// The end of the time.
        ends: MonotonicTime,
    },
    /// The start order of the processes of the last two generations. Follows a snapshot, which lacks it.
    Order {
        /// Whether the process of the previous generation was started later.
        reverted: bool,
    },
    /// The service has no process any more and is not started again: it is not to run.
    Rest {
        /// Why.
        rest: Rest,
        /// How its last process ended; `None` if no start has led to a process that served.
        exit: Option<Exit>,
    },
}

/// A moment on the machine's monotonic clock (`CLOCK_MONOTONIC`), which all processes of one boot share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MonotonicTime {
    /// The boot id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: [u8; 16],
    /// Milliseconds since then.
    pub ms: u64,
}

impl Fact {
    /// Whether the fact must be on disk before anything depends on it.
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Committed { .. } | Self::Reverted { .. } | Self::Snapshot(_))
    }
}

/// A fact and its time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since 1970-01-01 UTC. For people; no decision depends on it.
    pub at_unix_ms: u64,
    /// The fact.
    pub fact: Fact,
}

/// A generation that was committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Current {
    /// Its number.
    pub generation: Generation,
    /// The handoff that started its process.
    pub handoff: HandoffId,
    /// The binary that it is started from.
    pub binary: Binary,
    /// Its process; `None` once that has ended.
    pub process: Option<Process>,
    /// When its process was started. Milliseconds since 1970-01-01 UTC; 0 if unknown.
    pub started_unix_ms: u64,
    /// When it was committed. Milliseconds since 1970-01-01 UTC.
    pub since_unix_ms: u64,
}

/// A handoff in progress.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// Its id.
    pub handoff: HandoffId,
    /// The generation that it would commit.
    pub generation: Generation,
    /// The binary that the successor is started from.
    pub binary: Binary,
    /// The successor, once it was started.
    pub process: Option<Process>,
    /// When that process was started. Milliseconds since 1970-01-01 UTC; 0 before.
    pub started_unix_ms: u64,
    /// Whether `Begin` was sent to the successor.
    pub begun: bool,
    /// When the upgrade's time ends. Not in a snapshot: see [`Standing::beside_snapshot`].
    #[serde(skip)]
    pub ends: Option<MonotonicTime>,
}

/// The result of all facts. It is on disk as a [`Fact::Snapshot`], so its encoding is fixed: every addition needs a new
/// kind of fact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Whether the service is to run.
    pub wanted: bool,
    /// The current generation.
    pub current: Option<Current>,
    /// The previous generation.
    pub previous: Option<Current>,
    /// An earlier generation, the last that was replaced while its process lived: the process may still be leaving.
    pub leaving: Option<Current>,
    /// The handoff in progress.
    pub attempt: Option<Attempt>,
    /// Number of restarts of the service: its process ended although it was to run, or a start failed.
    pub restarts: u64,
    /// Whether the process of the previous generation was started later: it was committed, then reverted. Not in a
    /// snapshot: see [`Standing::beside_snapshot`].
    #[serde(skip)]
    pub reverted: bool,
    /// Why the service is not to run, if no person has stopped it, and how its last process ended. Not in a snapshot:
    /// see [`Standing::beside_snapshot`].
    #[serde(skip)]
    pub rest: Option<(Rest, Option<Exit>)>,
}

impl Standing {
    /// The current generation; 0 if there is none.
    pub fn generation(&self) -> Generation {
        self.current.as_ref().map_or(Generation(0), |current| current.generation)
    }

    /// The generation for which the process of this handoff was started, if it is among those that are known.
    pub fn generation_of(&self, handoff: HandoffId) -> Option<Generation> {
        let all = [&self.current, &self.previous, &self.leaving].into_iter().flatten();
        let found = all.map(|known| (known.handoff, known.generation));
        let attempt = self.attempt.iter().map(|attempt| (attempt.handoff, attempt.generation));
        found.chain(attempt).find(|(known, _)| *known == handoff).map(|(_, generation)| generation)
    }

    /// Facts to write after a snapshot, because its fixed encoding has no place for them.
    pub fn beside_snapshot(&self) -> impl Iterator<Item = Fact> {
        let attempt = self.attempt.as_ref();
        let deadline = attempt.and_then(|it| Some(Fact::Deadline { handoff: it.handoff, ends: it.ends? }));
        let order = self.reverted.then_some(Fact::Order { reverted: true });
        let rest = self.rest.map(|(rest, exit)| Fact::Rest { rest, exit });
        deadline.into_iter().chain(order).chain(rest)
    }

    /// Applies one fact. A fact about a handoff that is not in progress has no effect.
    pub fn fold(&mut self, record: &Record) {
        match &record.fact {
            Fact::Wanted { up } => (self.wanted, self.rest) = (*up, None),
            Fact::Intent { handoff, generation, binary } => {
                self.end_attempt();
                self.attempt = Some(Attempt {
                    handoff: *handoff,
                    generation: *generation,
                    binary: binary.clone(),
                    process: None,
                    started_unix_ms: 0,
                    begun: false,
                    ends: None,
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
                    self.reverted = false;
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
                if self.attempt_of(*handoff).is_some() {
                    self.end_attempt();
                }
            }
            Fact::Reverted { .. } => self.revert(record.at_unix_ms),
            Fact::Exited { generation, .. } => self.exited(*generation),
            Fact::Snapshot(standing) => self.clone_from(standing),
            Fact::Deadline { handoff, ends } => {
                if let Some(attempt) = self.attempt_of(*handoff) {
                    attempt.ends = Some(*ends);
                }
            }
            Fact::Order { reverted } => self.reverted = *reverted,
            Fact::Rest { rest, exit } => {
                (self.wanted, self.rest) = (false, Some((*rest, *exit)));
                // The end of its process was counted, and no start follows.
                self.restarts = self.restarts.saturating_sub(u64::from(exit.is_some()));
            }
        }
    }

    fn attempt_of(&mut self, handoff: HandoffId) -> Option<&mut Attempt> {
        self.attempt.as_mut().filter(|attempt| attempt.handoff == handoff)
    }

    /// Ends the handoff in progress, if any, without a commit. If nothing serves, this counts as a restart.
    fn end_attempt(&mut self) {
        let serves = self.current.as_ref().is_some_and(|current| current.process.is_some());
        if self.attempt.take().is_some() && self.wanted && !serves {
            self.restarts = self.restarts.saturating_add(1);
        }
    }

    fn revert(&mut self, at_unix_ms: u64) {
        // Without a previous generation there is nothing to revert to.
        if let Some(current) = self.current.take_if(|_| self.previous.is_some())
            && let Some(previous) = self.previous.take()
        {
            let generation = current.generation.next();
            self.reverted = !self.reverted;
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

    /// The ids do not matter: those of a daemon whose clock was set back sort first.
    #[test]
    fn which_process_was_started_later_is_known_by_the_order_of_the_facts() {
        let record = |fact| Record { at_unix_ms: 0, fact };
        let mut standing = Standing::default();
        for (fact, reverted) in [9, 5, 7].into_iter().flat_map(|number| {
            let [intent, spawned, committed] = committed(number);
            let undone = Fact::Reverted { handoff: id(number) };
            [(intent, None), (spawned, None), (committed, Some(false)), (undone, Some(number != 9))]
        }) {
            standing.fold(&record(fact));
            assert!(reverted.is_none_or(|reverted| reverted == standing.reverted), "{standing:?}");
        }
    }

    #[test]
    fn each_death_and_each_failed_start_of_a_wanted_service_is_a_restart() {
        let binary = Binary { path: "/bin/s3".into(), sha256: [0; 32] };
        let intent = |number: u8| Fact::Intent {
            handoff: id(number),
            generation: Generation(1),
            binary: binary.clone(),
        };
        let failed = |number: u8| Fact::RolledBack { handoff: id(number), reason: "".into() };
        let restarts = |facts: &[Fact]| {
            let records: Vec<_> =
                facts.iter().map(|fact| Record { at_unix_ms: 0, fact: fact.clone() }).collect();
            fold(&records).restarts
        };
        let up = Fact::Wanted { up: true };
        // The second start follows at once, the third after a pause.
        let loops = [up.clone(), intent(1), intent(2), failed(2), intent(3), failed(3)];
        assert_eq!(restarts(&loops), 3);
        // A failed attempt next to a serving process is not a restart.
        let served: Vec<Fact> =
            [up.clone()].into_iter().chain(committed(1)).chain([intent(2), failed(2)]).collect();
        assert_eq!(restarts(&served), 0);
        let died = Fact::Exited { generation: Generation(1), exit: Exit::Signal(9) };
        let again: Vec<Fact> = served.into_iter().chain([died, intent(3), failed(3)]).collect();
        assert_eq!(restarts(&again), 2);
        // The last end is not followed by a start.
        let rests = Fact::Rest { rest: Rest::Exited, exit: Some(Exit::Code(0)) };
        let ended: Vec<Fact> = again.iter().take(again.len() - 2).cloned().chain([rests]).collect();
        assert_eq!(restarts(&ended), 0);
        // A service that a user has stopped in the meantime is not restarted.
        assert_eq!(restarts(&[up, intent(1), Fact::Wanted { up: false }, failed(1)]), 0);
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
