//! What a supervisor writes down for the next one.

use handoff_protocol::ids::HandoffId;
use handoff_protocol::supervisor::Lasting;

/// What the journal says, as far as it decides anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Journal {
    pub wanted: bool,
    /// The handoff whose generation is current, and the one before it.
    pub current: Generation,
    pub previous: Generation,
    pub leaving: Generation,
    pub attempt: Option<Attempt>,
    /// A durable record that was written, but nobody knows whether the disk has it.
    pub doubt: Option<(HandoffId, Lasting)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation {
    /// The handoff in which its process was started.
    pub id: HandoffId,
    /// That process ended, as far as is on record.
    pub ended: bool,
}

impl Generation {
    const NONE: Self = Self { id: HandoffId::NIL, ended: true };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub id: HandoffId,
    /// Its process is on record.
    pub spawned: bool,
}

impl Journal {
    pub const EMPTY: Self = Self {
        wanted: false,
        current: Generation::NONE,
        previous: Generation::NONE,
        leaving: Generation::NONE,
        attempt: None,
        doubt: None,
    };

    /// Adds what lasts.
    pub fn lasts(&mut self, id: HandoffId, lasting: Lasting) {
        match lasting {
            Lasting::Commit if self.attempt.is_some_and(|attempt| attempt.id == id) => {
                if !self.previous.ended {
                    self.leaving = self.previous;
                }
                (self.previous, self.current) = (self.current, Generation { id, ended: false });
                self.attempt = None;
            }
            Lasting::Commit => {}
            Lasting::Revert => (self.previous, self.current) = (self.current, self.previous),
        }
    }
}
