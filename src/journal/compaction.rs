//! A journal that has grown is replaced by one with the same standing as its only record.
//!
//! Who writes the new one may take its time; the journal goes on meanwhile. Whatever is recorded before the new one
//! takes its place makes it stale, and then it is thrown away: so there is never a fact that only one of the two has.
//!
//! | step | where | blocks | a crash leaves |
//! |---|---|---|---|
//! | [`Journal::compaction`] | the new bytes | no | the old file |
//! | [`Compaction::stage`] | a file beside it, on the disk | yes | the old file, and one that nobody reads |
//! | [`Journal::replace`] | its name is that of the journal | no | after a power cut either, with one standing |
//! | [`Storage::sync`], [`Journal::replaced`] | the disk knows | yes, no | the new file |
//!
//! A durable fact that comes between the last two waits for the disk with [`Storage::sync`] too, and so for the name.

use std::io;
use std::sync::Arc;

use handoff_protocol::log_image;
use handoff_protocol::record::{Fact, Record};

use super::{Journal, JournalError, Remedy, Storage, storage_error, unix_ms};

/// A shorter journal that is to take the place of one that has grown.
#[derive(Debug)]
#[must_use = "nothing is shorter before it is staged and has replaced the journal"]
pub struct Compaction {
    storage: Arc<dyn Storage>,
    bytes: Vec<u8>,
    /// So many records are in it.
    written: u64,
    /// Of the journal that it stands for.
    next_sequence: u64,
    file: u64,
}

impl Compaction {
    /// Writes it beside the journal, and waits for the disk. Blocks. A failure costs nothing: the journal stays as it is.
    pub fn stage(&self) -> io::Result<()> {
        self.storage.stage(&self.bytes)
    }
}

impl Journal {
    /// What would replace this journal, if it has more than `limit_bytes` and takes records, and no durable fact is on its
    /// way to the disk.
    pub fn compaction(&self, limit_bytes: u64) -> Option<Compaction> {
        if self.end <= limit_bytes || self.latched.is_some() || self.behind.is_some() {
            return None;
        }
        let (mut bytes, written) = self.snapshot()?;
        // True as soon as anybody can read it: it is on the disk before it gets its name.
        bytes[log_image::PROVEN_AT..log_image::HEADER_LEN].copy_from_slice(&log_image::proven(written));
        let (next_sequence, file) = (self.next_sequence, self.file);
        Some(Compaction { storage: Arc::clone(&self.storage), bytes, written, next_sequence, file })
    }

    /// The bytes of a journal that has the standing and nothing else, and how many records that is: one, or some more for what a
    /// snapshot has no place for. `None` if it is larger than a record may be.
    pub(super) fn snapshot(&self) -> Option<(Vec<u8>, u64)> {
        let (mut bytes, mut written) = (log_image::header().to_vec(), 0);
        let fact = Fact::Snapshot(Box::new(self.standing.clone()));
        for fact in [fact].into_iter().chain(self.standing.beside_snapshot()) {
            written += 1;
            bytes.extend(log_image::encode(written, &Record { at_unix_ms: unix_ms(), fact })?);
        }
        Some((bytes, written))
    }

    /// Puts what was staged in the place of the journal, and returns whether it did: not if something was recorded since.
    /// Does not wait for the disk; the caller does, with [`Storage::sync`], and tells [`Journal::replaced`].
    pub fn replace(&mut self, compaction: Compaction) -> Result<bool, JournalError> {
        let is_stale = (self.next_sequence, self.file) != (compaction.next_sequence, compaction.file);
        if is_stale || self.latched.is_some() || self.behind.is_some() {
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

    /// Whether the disk knows that the journal was replaced. If it may not, the journal takes no more records: they could be
    /// in a file that nobody finds after a power cut.
    pub fn replaced(&mut self, synced: io::Result<()>) -> Result<(), JournalError> {
        synced.map_err(|source| self.latch("replace it by a shorter one", source, Remedy::Restart))
    }
}
