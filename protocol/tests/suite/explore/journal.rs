//! The journal that a supervisor writes for the next one, folded like the daemon does.

use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::reason::Exit;
use handoff_protocol::record::{Binary, Fact, Process, Record, Standing};
use handoff_protocol::supervisor::{DurableFact, Target};

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Journal {
    /// The standing of the journal.
    pub standing: Standing,
    /// A durable record that was written, but may not be on the disk.
    pub doubt: Option<(HandoffId, DurableFact)>,
}

impl Journal {
    fn note(&mut self, fact: Fact) {
        self.standing.fold(&Record { at_unix_ms: 0, fact });
        // A counter for people would make each of its values a separate state.
        self.standing.restarts = 0;
    }

    /// The handoff whose generation is current.
    pub fn current(&self) -> HandoffId {
        self.standing.current.as_ref().map_or(HandoffId::NIL, |current| current.handoff)
    }

    pub fn wants(&mut self, up: bool) {
        self.note(Fact::Wanted { up });
    }

    pub fn intends(&mut self, handoff: HandoffId, target: Target) {
        let current = self.standing.current.as_ref().map(|current| current.binary.clone());
        let binary = match (target, current) {
            (Target::Committed, Some(binary)) => binary,
            (Target::Committed, None) => binary(0),
            (Target::Candidate, _) => binary(1),
        };
        self.note(Fact::Intent { handoff, generation: generation_of(handoff), binary });
    }

    pub fn spawned(&mut self, handoff: HandoffId) {
        let process = Process { pid: handoff.to_bytes()[15].into(), start_ticks: 0, boot_id: [0; 16] };
        self.note(Fact::Spawned { handoff, process });
    }

    /// The current attempt has ended, unless it was committed.
    pub fn ends_attempt(&mut self) {
        if let Some(handoff) = self.standing.attempt.as_ref().map(|attempt| attempt.handoff) {
            self.note(Fact::RolledBack { handoff, reason: String::new() });
        }
    }

    /// Adds a durable record.
    pub fn lasts(&mut self, handoff: HandoffId, fact: DurableFact) {
        self.note(match fact {
            DurableFact::Commit => Fact::Committed { handoff },
            DurableFact::Revert => Fact::Reverted { handoff },
        });
    }

    /// The process of the current generation has ended.
    pub fn exited(&mut self) {
        self.note(Fact::Exited { generation: self.standing.generation(), exit: Exit::Unknown });
    }
}

/// The path has no effect.
fn binary(content: u8) -> Binary {
    Binary { path: String::new(), sha256: [content; 32] }
}

/// A number derived from the id, so that equal processes are equal states, regardless of their history.
fn generation_of(handoff: HandoffId) -> Generation {
    Generation(handoff.to_bytes()[15].into())
}
