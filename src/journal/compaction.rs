//! Replaces a grown journal by one with the same standing as its only record.
//!
//! Writing the new file may take a while; the journal continues in the meantime. Any record before the replacement
//! makes the new file stale, and it is discarded: so no fact is ever in only one of the two.
//!
//! | step | effect | blocks | a crash leaves |
//! |---|---|---|---|
//! | [`Journal::compaction`] | the new bytes | no | the old file |
//! | [`Compaction::stage`] | writes a file next to it to the disk | yes | the old file, and an unused one |
//! | [`Journal::replace`] | renames it to the journal's name | no | either file, with the same standing |
//! | [`Storage::sync`], [`Journal::replaced`] | makes the name durable | yes, no | the new file |
//!
//! A durable fact between the last two waits for the disk with [`Storage::sync`] too, and so for the name.

use std::io;
use std::sync::Arc;

use handoff_protocol::log_image;
use handoff_protocol::record::{Fact, Record};

use super::{Journal, JournalError, Remedy, Storage, storage_error, unix_ms};

/// A shorter journal to replace a grown one.
#[derive(Debug)]
#[must_use = "nothing is shorter before it is staged and has replaced the journal"]
pub struct Compaction {
    storage: Arc<dyn Storage>,
    bytes: Vec<u8>,
    /// Its number of records.
    written: u64,
    /// The next sequence number of the journal that it replaces.
    next_sequence: u64,
    file: u64,
}

impl Compaction {
    /// Writes it next to the journal, and waits for the disk. Blocks. On failure the journal stays unchanged.
    pub fn stage(&self) -> io::Result<()> {
        self.storage.stage(&self.bytes)
    }
}

impl Journal {
    /// The replacement for this journal, if the journal exceeds `limit_bytes`, accepts records, and has no durable fact
    /// pending.
    pub fn compaction(&self, limit_bytes: u64) -> Option<Compaction> {
        if self.end <= limit_bytes || self.latched.is_some() || self.unfolded.is_some() {
            return None;
        }
        let (mut bytes, written) = self.snapshot()?;
        // Valid for every reader: it is on disk before it gets its name.
        bytes[log_image::PROVEN_AT..log_image::HEADER_LEN].copy_from_slice(&log_image::proven(written));
        let (next_sequence, file) = (self.next_sequence, self.file);
        Some(Compaction { storage: Arc::clone(&self.storage), bytes, written, next_sequence, file })
    }

    /// The bytes of a journal with the standing only, and its number of records: one, plus those that a snapshot has no
    /// place for. `None` if a record would be too large.
    pub(super) fn snapshot(&self) -> Option<(Vec<u8>, u64)> {
        let (mut bytes, mut written) = (log_image::header().to_vec(), 0);
        let fact = Fact::Snapshot(Box::new(self.standing.clone()));
        for fact in [fact].into_iter().chain(self.standing.beside_snapshot()) {
            written += 1;
            bytes.extend(log_image::encode(written, &Record { at_unix_ms: unix_ms(), fact })?);
        }
        Some((bytes, written))
    }

    /// Replaces the journal by the staged file. Returns `false` if a record was added since. Does not wait for the
    /// disk; the caller does, with [`Storage::sync`], and reports to [`Journal::replaced`].
    pub fn replace(&mut self, compaction: Compaction) -> Result<bool, JournalError> {
        let is_stale = (self.next_sequence, self.file) != (compaction.next_sequence, compaction.file);
        if is_stale || self.latched.is_some() || self.unfolded.is_some() {
            self.storage.discard();
            return Ok(false);
        }
        if let Err(source) = self.storage.swap() {
            self.storage.discard();
            return Err(storage_error(&self.path, "replace it by a shorter one", source));
        }
        self.end = compaction.bytes.len() as u64;
        self.next_sequence = compaction.written + 1;
        Ok(true)
    }

    /// Reports whether the replacement is durable. If not, the journal accepts no more records: after a power failure
    /// they could be in a file without a name.
    pub fn replaced(&mut self, synced: io::Result<()>) -> Result<(), JournalError> {
        synced.map_err(|source| self.latch("replace it by a shorter one", source, Remedy::Restart))
    }
}
