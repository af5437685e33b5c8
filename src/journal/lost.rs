//! A journal whose file is not in its place any more is written again from memory.
//!
//! A file that is removed or moved stays open, and takes records that no later daemon finds: the next upgrade would be
//! committed, and gone after the next start. So before each record the name is looked at (one stat(2)). If another file is found
//! there, or none, the standing and what is on its way to the disk are written to a new file. Nothing is lost by that but what
//! nobody reads: the facts behind the standing.
//!
//! The caller waits for the disk afterwards, on another thread: [`Storage::sync`], then [`Journal::restored`]. A power cut before
//! that finds what the one who took the file has left.

use std::io;

use handoff_protocol::log_image;
use handoff_protocol::record::Record;

use super::{Behind, Journal, JournalError, Pending, Remedy};

impl Journal {
    /// Writes the journal again if its file is not in its place. Does not wait for the disk. Nothing to do for a journal that takes
    /// no records.
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
        if let Some(Behind { durable, later, .. }) = &self.behind {
            sequence = add(&mut bytes, durable).ok_or_else(too_large)?;
            for record in later {
                add(&mut bytes, record).ok_or_else(too_large)?;
            }
        }
        let aside = match self.storage.restore(&bytes) {
            Ok(aside) => aside,
            Err(source) => return Err(self.latch("write it again, since it is gone", source, Remedy::Cut)),
        };
        if let Some(behind) = &mut self.behind {
            (behind.sequence, behind.offset) = (sequence, offset);
        }
        (self.end, self.next_sequence) = (bytes.len() as u64, next_sequence);
        self.file += 1;
        self.news = Some(match aside {
            None => format!("{}: it was removed, and was written again from memory", self.path.display()),
            Some(aside) => format!(
                "{}: another file was in its place, which is now {}; it was written again from memory",
                self.path.display(),
                aside.display()
            ),
        });
        Ok(())
    }

    /// What was found when the journal was written again: one clause, once. The caller tells it, and waits for the disk.
    pub fn take_news(&mut self) -> Option<String> {
        self.news.take()
    }

    /// Whether the disk has what was written again.
    pub fn restored(&mut self, synced: io::Result<()>) -> Result<(), JournalError> {
        synced.map_err(|source| self.latch("make it durable", source, Remedy::Restart))
    }

    /// Whether a fact has to be waited for once more: the journal was written again since, and what was waited for is no longer
    /// its file.
    pub fn waits_again(&self, pending: &mut Pending) -> bool {
        std::mem::replace(&mut pending.file, self.file) != self.file
    }
}
