//! Rewrites a journal from memory after its file was removed or moved.
//!
//! Such a file stays open and accepts records that no later daemon finds: the next upgrade would be committed, and lost
//! after the next start. So before each record the path is checked (one stat(2)). If it has another file, or none, the
//! standing and the pending durable fact are written to a new file. This loses only the old facts behind the standing,
//! which are not needed.
//!
//! The caller waits for the disk afterwards, on another thread: [`Storage::sync`], then [`Journal::restored`]. A power
//! failure before that leaves whatever is at the path.

use std::io;

use handoff_protocol::log_image;
use handoff_protocol::record::Record;

use super::{Journal, JournalError, PendingRecord, Remedy, UnfoldedFacts};

impl Journal {
    /// Rewrites the journal if its file is not at its path. Does not wait for the disk. No effect on a journal that
    /// accepts no records.
    pub fn keep_in_place(&mut self) -> Result<(), JournalError> {
        if self.latched.is_some() || self.storage.is_in_place() {
            return Ok(());
        }
        let too_large = || JournalError::TooLarge { path: self.path.clone() };
        let (mut bytes, written) = self.snapshot().ok_or_else(too_large)?;
        let (mut next_sequence, offset) = (written + 1, bytes.len() as u64);
        let mut add = |bytes: &mut Vec<u8>, record: &Record| {
            bytes.extend(log_image::encode(next_sequence, record)?);
            next_sequence += 1;
            Some(next_sequence - 1)
        };
        let mut sequence = 0;
        if let Some(UnfoldedFacts { durable, later, .. }) = &self.unfolded {
            sequence = add(&mut bytes, durable).ok_or_else(too_large)?;
            for record in later {
                add(&mut bytes, record).ok_or_else(too_large)?;
            }
        }
        let aside = match self.storage.restore(&bytes) {
            Ok(aside) => aside,
            Err(source) => return Err(self.latch("write it again, since it is gone", source, Remedy::Cut)),
        };
        if let Some(behind) = &mut self.unfolded {
            (behind.sequence, behind.offset) = (sequence, offset);
        }
        (self.end, self.next_sequence) = (bytes.len() as u64, next_sequence);
        self.file += 1;
        self.restoration = Some(match aside {
            None => format!("{}: it was removed, and was written again from memory", self.path.display()),
            Some(aside) => format!(
                "{}: another file was in its place, which is now {}; it was written again from memory",
                self.path.display(),
                aside.display()
            ),
        });
        Ok(())
    }

    /// Why the journal was rewritten: one clause, returned once. The caller reports it, and waits for the disk.
    pub fn take_restoration(&mut self) -> Option<String> {
        self.restoration.take()
    }

    /// Reports whether the rewritten file is durable.
    pub fn restored(&mut self, synced: io::Result<()>) -> Result<(), JournalError> {
        synced.map_err(|source| self.latch("make it durable", source, Remedy::Restart))
    }

    /// Whether a fact needs another wait: the journal was rewritten since, so the wait was for an old file.
    pub fn waits_again(&self, pending: &mut PendingRecord) -> bool {
        std::mem::replace(&mut pending.file, self.file) != self.file
    }
}
