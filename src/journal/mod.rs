//! The journal of one service: appends facts, and folds them with the same function live and in replay.
//!
//! Only a durable fact waits for the disk, and the caller does the waiting: [`Journal::append`] returns when the record
//! is in the page cache, [`Storage::sync`] when it is on disk. The first storage error latches: no more records are
//! accepted. A failed write (a full disk) leaves at most a torn tail, so [`Journal::repair`] can continue after the
//! last complete record. After a failed `fdatasync` the content of the disk is unknown: only a restart of the daemon
//! reopens the file.
//!
//! An earlier daemon may have ended before its records were on disk, or after a failed `fdatasync`, which leaves the
//! page cache looking intact. So opening a journal rewrites everything that is not known to be on disk, and waits for
//! it.
//!
//! A journal grows with each upgrade. When it exceeds a limit, a shorter one replaces it while the service is idle: see
//! [`Compaction`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use handoff_protocol::log_image::{self, ImageError};
use handoff_protocol::record::{Fact, Record, Standing, fold};

use crate::crash_points::{crash_point, name};
use crate::sys::clock::as_ms;

mod compaction;
mod file;
mod lost;
mod memory;

pub use compaction::Compaction;
pub use file::{FileStorage, set_aside};

/// The storage of a journal's bytes.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// Reads all bytes.
    fn read_all(&self) -> io::Result<Vec<u8>>;
    /// Writes all of `bytes` at `offset` into the page cache. A short write is an error.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Truncates to `length` bytes.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Returns when everything written is on disk under its name. Blocks.
    fn sync(&self) -> io::Result<()>;
    /// Writes these bytes to a file next to this one, and waits for the disk. Blocks. Leaves no file on error.
    fn stage(&self, bytes: &[u8]) -> io::Result<()>;
    /// Renames the staged file over this one; later calls use the new file. Does not wait for the disk: until the next
    /// sync, a power failure leaves either file. Changes nothing on error.
    fn swap(&self) -> io::Result<()>;
    /// Removes the staged file.
    fn discard(&self);
    /// Whether the file is still at its path, neither removed, moved nor replaced.
    fn is_in_place(&self) -> bool {
        true
    }
    /// Writes these bytes to a new file at the path; later calls use that file. Keeps another file at the path under a
    /// new name, which it returns. Does not wait for the disk. Changes nothing on error.
    fn restore(&self, _bytes: &[u8]) -> io::Result<Option<PathBuf>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Why a journal is unusable.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The storage failed.
    #[error("{}: cannot {what}: {source}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// The failed action, an infinitive.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The content is corrupt.
    #[error(
        "{}: {source}; restore the file from a backup, or move it away: then the service starts from its service file",
        path.display()
    )]
    Image {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ImageError,
    },
    /// An earlier error stopped it.
    #[error("{}: it takes no more records since an earlier error: {first}", path.display())]
    Latched {
        /// The file.
        path: PathBuf,
        /// The error that stopped it.
        first: String,
    },
    /// The record is too large.
    #[error("{}: a record is larger than {} bytes", path.display(), log_image::BODY_MAX)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// The error that stopped a journal.
#[derive(Debug)]
struct LatchedError {
    first: String,
    remedy: Remedy,
    /// What is wrong with the content, if it is corrupt.
    damage: Option<String>,
}

/// What lets a journal accept records again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// Truncating the torn tail: the content of the disk is still known.
    Cut,
    /// A restart of the daemon, which reopens the file.
    Restart,
    /// Another file: this journal is in memory. See [`Journal::in_memory`].
    Open,
}

/// A durable fact that waits for the disk.
#[derive(Debug)]
#[must_use = "it counts only when it is settled"]
pub struct PendingRecord {
    /// The number of the file that it waits for: see [`Journal::waits_again`].
    file: u64,
}

/// Facts that are not folded yet.
#[derive(Debug)]
struct UnfoldedFacts {
    /// The durable fact that waits for the disk.
    durable: Record,
    sequence: u64,
    offset: u64,
    /// Later facts: folded after it, as in replay.
    later: Vec<Record>,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    storage: Arc<dyn Storage>,
    standing: Standing,
    end: u64,
    next_sequence: u64,
    latched: Option<LatchedError>,
    unfolded: Option<UnfoldedFacts>,
    /// Increased whenever the journal moves to a new file.
    file: u64,
    /// Why that happened last, for people.
    restoration: Option<String>,
    /// The standing in a rejected file up to its damage.
    salvaged: Standing,
}

impl Journal {
    /// Opens the journal at `path`, creates it if there is none, truncates a torn tail, and folds its records. Blocks
    /// on the disk if some of the content is not known to be there. If the disk fails, the journal accepts no records
    /// ([`Journal::latched`]), but its standing is valid.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let storage = FileStorage::open(path).map_err(|source| storage_error(path, "open it", source))?;
        Self::with_storage(path, Arc::new(storage))
    }

    /// Like [`Journal::open`], over any storage. `path` is for messages.
    pub fn with_storage(path: &Path, storage: Arc<dyn Storage>) -> Result<Self, JournalError> {
        let failed = |what| move |source| storage_error(path, what, source);
        let mut bytes = storage.read_all().map_err(failed("read it"))?;
        let image = log_image::parse(&bytes)
            .map_err(|source| JournalError::Image { path: path.to_owned(), source })?;
        let torn = image.end < bytes.len();
        if torn {
            storage.truncate(image.end as u64).map_err(failed("cut off its torn tail"))?;
            bytes.truncate(image.end);
        }
        if image.end == 0 {
            crash_point!("journal/before-header");
            bytes = log_image::header().to_vec();
            storage.write_at(0, &bytes).map_err(failed("write its header"))?;
        }
        let mut journal = Self {
            path: path.to_owned(),
            storage,
            standing: fold(&image.records),
            end: bytes.len() as u64,
            next_sequence: image.next_sequence,
            latched: None,
            unfolded: None,
            file: 0,
            restoration: None,
            salvaged: Standing::default(),
        };
        let is_old = image.format != log_image::FORMAT;
        if is_old {
            journal.raise_format();
            // If no record is known to be on disk, the header is rewritten with the rest.
            bytes[log_image::FORMAT_AT..log_image::PROVEN_AT]
                .copy_from_slice(&log_image::FORMAT.to_le_bytes());
        }
        let unproven = &bytes[image.proven..];
        if torn || is_old || !unproven.is_empty() {
            journal.prove(image.proven as u64, unproven);
        }
        Ok(journal)
    }

    /// Marks the file as containing records that earlier versions cannot read. The header is on disk before any such
    /// record.
    fn raise_format(&mut self) {
        crash_point!("journal/before-format");
        let format = log_image::FORMAT.to_le_bytes();
        if let Err(source) = self.storage.write_at(log_image::FORMAT_AT as u64, &format) {
            self.latch("write its header", source, Remedy::Restart);
        }
    }

    /// Makes the found content durable. The truncation comes before any new record: otherwise the removed tail could
    /// reappear after one.
    fn prove(&mut self, offset: u64, unproven: &[u8]) {
        crash_point!("journal/before-prove");
        if let Err(source) = self.storage.write_at(offset, unproven) {
            self.latch("write again what may not be on the disk", source, Remedy::Cut);
        } else if let Err(source) = self.storage.sync() {
            self.latch("make it durable", source, Remedy::Restart);
        } else {
            self.mark(self.next_sequence - 1);
        }
    }

    /// Records that all records up to this one are on disk. A missing mark only reduces the damage that can be detected
    /// later. So nothing waits for it, and an error is left to the next record.
    fn mark(&self, sequence: u64) {
        crash_point!("journal/before-mark");
        let _ = self.storage.write_at(log_image::PROVEN_AT as u64, &log_image::proven(sequence));
        crash_point!("journal/marked");
    }

    /// The result of all facts.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Whether nothing was ever recorded in the file. False for a journal in memory.
    pub fn is_new(&self) -> bool {
        self.refused().is_none() && self.end == log_image::header().len() as u64
    }

    /// The storage, to wait for the disk.
    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.storage)
    }

    /// Appends one fact to the page cache and folds it. Does not wait for the disk.
    pub fn append(&mut self, fact: Fact) -> Result<(), JournalError> {
        if self.refused().is_some() {
            self.standing.fold(&Record { at_unix_ms: unix_ms(), fact });
            return Ok(());
        }
        self.may_write()?;
        self.keep_in_place()?;
        let record = self.write(fact)?;
        match &mut self.unfolded {
            Some(behind) => behind.later.push(record),
            None => self.standing.fold(&record),
        }
        Ok(())
    }

    /// Appends one fact to the page cache. [`Journal::settle`] folds it once [`Storage::sync`] has returned. Only one
    /// at a time.
    pub fn prepare(&mut self, fact: Fact) -> Result<PendingRecord, JournalError> {
        self.may_write()?;
        self.keep_in_place()?;
        let (sequence, offset) = (self.next_sequence, self.end);
        let durable = self.write(fact)?;
        self.unfolded = Some(UnfoldedFacts { durable, sequence, offset, later: Vec::new() });
        Ok(PendingRecord { file: self.file })
    }

    fn may_write(&self) -> Result<(), JournalError> {
        match &self.latched {
            None => Ok(()),
            Some(LatchedError { first, .. }) => {
                Err(JournalError::Latched { path: self.path.clone(), first: first.clone() })
            }
        }
    }

    fn write(&mut self, fact: Fact) -> Result<Record, JournalError> {
        let record = Record { at_unix_ms: unix_ms(), fact };
        let bytes = log_image::encode(self.next_sequence, &record)
            .ok_or_else(|| JournalError::TooLarge { path: self.path.clone() })?;
        crash_point!("journal/before-append.{}", name(&record.fact));
        if let Err(source) = self.storage.write_at(self.end, &bytes) {
            return Err(self.latch("append to it", source, Remedy::Cut));
        }
        self.end += bytes.len() as u64;
        self.next_sequence += 1;
        crash_point!("journal/appended.{}", name(&record.fact));
        Ok(record)
    }

    /// Folds a durable fact that is on disk. If it may not be on disk, truncates it and everything after it, and
    /// accepts no more records.
    pub fn settle(&mut self, _pending: PendingRecord, synced: io::Result<()>) -> Result<(), JournalError> {
        let Some(UnfoldedFacts { durable, sequence, offset, later }) = self.unfolded.take() else {
            return Ok(());
        };
        if synced.is_ok() {
            crash_point!("journal/durable.{}", name(&durable.fact));
            self.standing.fold(&durable);
            self.mark(sequence);
        }
        for record in &later {
            self.standing.fold(record);
        }
        synced.map_err(|source| {
            // The caller treats it as not done, so a daemon that reads the page cache must not find it. If the
            // truncation fails too, the first error is still the one to report.
            let _ = self.storage.truncate(offset);
            self.latch("make it durable", source, Remedy::Restart)
        })
    }

    /// Stops waiting for a disk that does not answer: the pending durable fact counts as not durable, and no more
    /// records are accepted. Returns the error, and the truncation to perform when the disk answers; that blocks.
    pub fn give_up(&mut self) -> Option<(JournalError, impl FnOnce() + Send + use<>)> {
        let UnfoldedFacts { offset, later, .. } = self.unfolded.take()?;
        for record in &later {
            self.standing.fold(record);
        }
        let why =
            io::Error::new(io::ErrorKind::TimedOut, "the disk has not answered in time; restart the daemon");
        let error = self.latch("make it durable", why, Remedy::Restart);
        let storage = self.storage();
        Some((error, move || drop(storage.truncate(offset))))
    }

    /// Accepts no more records. Returns the error.
    fn latch(&mut self, what: &'static str, source: io::Error, remedy: Remedy) -> JournalError {
        let error = storage_error(&self.path, what, source);
        match &mut self.latched {
            // Truncation would fix only one of the errors; a restart fixes both.
            Some(latched) if latched.remedy == Remedy::Cut => latched.remedy = remedy,
            Some(_) => {}
            None => {
                self.latched = Some(LatchedError { first: error.to_string(), remedy, damage: None });
            }
        }
        error
    }

    /// Why it accepts no more records, if so.
    pub fn latched(&self) -> Option<&str> {
        self.latched.as_ref().map(|latched| latched.first.as_str())
    }

    /// After a failed write: truncates the torn tail and accepts records again. For a journal in memory see
    /// [`Journal::take_file`]. Returns whether it did; then facts since the error are missing, and the caller must
    /// record the present state.
    pub fn repair(&mut self) -> Result<bool, JournalError> {
        match &self.latched {
            Some(latched) if latched.remedy == Remedy::Cut && self.unfolded.is_none() => {}
            Some(_) | None => return Ok(false),
        }
        let failed = |source| storage_error(&self.path, "cut off its torn tail", source);
        self.storage.truncate(self.end).map_err(failed)?;
        self.latched = None;
        Ok(true)
    }
}

fn storage_error(path: &Path, what: &'static str, source: io::Error) -> JournalError {
    JournalError::Storage { path: path.to_owned(), what, source }
}

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    as_ms(since)
}

#[cfg(test)]
mod tests;
