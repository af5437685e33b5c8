//! The journal of one service: facts are appended, and folded by the same function live and in replay.
//!
//! Only a durable fact waits for the disk, and that wait is the caller's: [`Journal::append`] returns when the page
//! cache has the record, [`Storage::sync`] when the disk has it. The first storage error latches: nothing is appended any
//! more. A write that failed (a full disk) leaves a torn tail at most, so [`Journal::mend`] can go on where the last whole
//! record ends. After a failed `fdatasync` nobody knows what the disk has: only a restart of the daemon opens it anew.
//!
//! An earlier daemon may have ended before the disk had what it wrote, or after an `fdatasync` that failed, which lets the
//! page cache look as if all were well. So whatever is not known to be on the disk is written again when a journal is
//! opened, and waited for.
//!
//! A journal grows with each upgrade. One that has grown over a limit is replaced by a shorter one at rest: see
//! [`Compaction`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use handoff_protocol::log_image::{self, ImageError};
use handoff_protocol::record::{Fact, Record, Standing, fold};

use crate::crash_points::{crash_point, name};

mod compaction;
mod file;
mod lost;
mod memory;

pub use compaction::Compaction;
pub use file::{FileStorage, set_aside};

/// Where the bytes of a journal live.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// All bytes.
    fn read_all(&self) -> io::Result<Vec<u8>>;
    /// Writes all of `bytes` at `offset`, into the page cache. A short write is an error.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts everything off behind `length`.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Returns when everything that was written is on the disk, and can be found there. Blocks.
    fn sync(&self) -> io::Result<()>;
    /// Writes a file with these bytes beside this one, and returns when the disk has it. Blocks. If it fails, there is none.
    fn stage(&self, bytes: &[u8]) -> io::Result<()>;
    /// Puts the file that was staged in the place of this one; from now on everything is about that one. Does not wait for
    /// the disk: until the next sync, a power cut leaves either. If it fails, nothing is changed.
    fn swap(&self) -> io::Result<()>;
    /// Forgets what was staged.
    fn discard(&self);
    /// Whether the file still is in its place: not if it was removed or moved, or if another one is there.
    fn is_in_place(&self) -> bool {
        true
    }
    /// Writes these bytes to a new file in the place of this one; from now on everything is about that one. Another file that
    /// is found there is kept beside it: gives its path. Does not wait for the disk. If it fails, nothing is changed.
    fn restore(&self, _bytes: &[u8]) -> io::Result<Option<PathBuf>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The storage failed.
    #[error("{}: cannot {what}: {source}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The content cannot be trusted.
    #[error(
        "{}: {source}; restore the file from a backup, or move it away: then the service starts from its service file",
        path.display()
    )]
    Image {
        /// The file.
        path: PathBuf,
        /// Cause.
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
struct Latched {
    first: String,
    remedy: Remedy,
    /// What is wrong with the content, if that is what is wrong.
    damage: Option<String>,
}

/// What lets a journal take records again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// To cut off what was half written: what the disk has is still known.
    Cut,
    /// Another daemon: it opens the file anew.
    Restart,
    /// Another file: this journal is in memory alone. See [`Journal::in_memory`].
    Open,
}

/// A durable fact on its way to the disk.
#[derive(Debug)]
#[must_use = "it counts only when it is settled"]
pub struct Pending {
    /// The file in which it is waited for, as a number: see [`Journal::waits_again`].
    file: u64,
}

/// What is not folded yet.
#[derive(Debug)]
struct Behind {
    /// The durable fact that is on its way to the disk.
    durable: Record,
    sequence: u64,
    offset: u64,
    /// Facts that were appended behind it: they are folded after it, as in replay.
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
    latched: Option<Latched>,
    behind: Option<Behind>,
    /// Raised whenever the journal was written anew, to a file of its own.
    file: u64,
    /// What was found when that was done last, for a person.
    news: Option<String>,
    /// What a file that was refused says up to its damage.
    salvaged: Standing,
}

impl Journal {
    /// Opens the journal at `path`, creates it if there is none, drops a torn tail, and folds what is there. Blocks on
    /// the disk if something in it is not known to be there. A disk that refuses that makes a journal that takes no
    /// records ([`Journal::latched`]), but its standing can be used.
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
            behind: None,
            file: 0,
            news: None,
            salvaged: Standing::default(),
        };
        let is_old = image.format != log_image::FORMAT;
        if is_old {
            journal.raise_format();
            // Where nothing is proven yet, the header is written again with the rest.
            bytes[log_image::FORMAT_AT..log_image::PROVEN_AT]
                .copy_from_slice(&log_image::FORMAT.to_le_bytes());
        }
        let unproven = &bytes[image.proven..];
        if torn || is_old || !unproven.is_empty() {
            journal.prove(image.proven as u64, unproven);
        }
        Ok(journal)
    }

    /// From now on it may have records that an earlier version could not read. The disk has the header before any of them.
    fn raise_format(&mut self) {
        crash_point!("journal/before-format");
        let format = log_image::FORMAT.to_le_bytes();
        if let Err(source) = self.storage.write_at(log_image::FORMAT_AT as u64, &format) {
            self.latch("write its header", source, Remedy::Restart);
        }
    }

    /// Makes what was found durable. The cut comes before any new record too: else what was cut off could come back
    /// behind one.
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

    /// Notes that the disk has all records up to this one. Without the note, less damage is found later, no more: so
    /// nobody waits for it, and a failure is left to the next record to tell.
    fn mark(&self, sequence: u64) {
        crash_point!("journal/before-mark");
        let _ = self.storage.write_at(log_image::PROVEN_AT as u64, &log_image::proven(sequence));
        crash_point!("journal/marked");
    }

    /// What the facts add up to.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The storage, to wait for the disk with.
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
        match &mut self.behind {
            Some(behind) => behind.later.push(record),
            None => self.standing.fold(&record),
        }
        Ok(())
    }

    /// Appends one fact to the page cache, to be folded by [`Journal::settle`] when [`Storage::sync`] has returned.
    /// One at a time.
    pub fn prepare(&mut self, fact: Fact) -> Result<Pending, JournalError> {
        self.may_write()?;
        self.keep_in_place()?;
        let (sequence, offset) = (self.next_sequence, self.end);
        let durable = self.write(fact)?;
        self.behind = Some(Behind { durable, sequence, offset, later: Vec::new() });
        Ok(Pending { file: self.file })
    }

    fn may_write(&self) -> Result<(), JournalError> {
        match &self.latched {
            None => Ok(()),
            Some(Latched { first, .. }) => {
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

    /// Folds a durable fact if the disk has it. If it may not have it, the fact is cut off, with what was appended behind
    /// it, and the journal takes no more records.
    pub fn settle(&mut self, _pending: Pending, synced: io::Result<()>) -> Result<(), JournalError> {
        let Some(Behind { durable, sequence, offset, later }) = self.behind.take() else { return Ok(()) };
        if synced.is_ok() {
            crash_point!("journal/durable.{}", name(&durable.fact));
            self.standing.fold(&durable);
            self.mark(sequence);
        }
        for record in &later {
            self.standing.fold(record);
        }
        synced.map_err(|source| {
            // The caller takes it as not done; a daemon that reads the page cache must not find it done. If the cut
            // fails too, the first error is still the one to tell.
            let _ = self.storage.truncate(offset);
            self.latch("make it durable", source, Remedy::Restart)
        })
    }

    /// The disk has not answered, and is not waited for any more: the durable fact on its way counts as one that the disk does
    /// not have, and nothing more is taken. Gives the error, and the cut that is left to do when the disk answers; it blocks.
    pub fn give_up(&mut self) -> Option<(JournalError, impl FnOnce() + Send + use<>)> {
        let Behind { offset, later, .. } = self.behind.take()?;
        for record in &later {
            self.standing.fold(record);
        }
        let why =
            io::Error::new(io::ErrorKind::TimedOut, "the disk has not answered in time; restart the daemon");
        let error = self.latch("make it durable", why, Remedy::Restart);
        let storage = self.storage();
        Some((error, move || drop(storage.truncate(offset))))
    }

    /// Takes no more records. Returns the error.
    fn latch(&mut self, what: &'static str, source: io::Error, remedy: Remedy) -> JournalError {
        let error = storage_error(&self.path, what, source);
        match &mut self.latched {
            // A cut would mend only the one, a restart mends both.
            Some(latched) if latched.remedy == Remedy::Cut => latched.remedy = remedy,
            Some(_) => {}
            None => {
                self.latched = Some(Latched { first: error.to_string(), remedy, damage: None });
            }
        }
        error
    }

    /// Why it takes no more records, if it does not.
    pub fn latched(&self) -> Option<&str> {
        self.latched.as_ref().map(|latched| latched.first.as_str())
    }

    /// After a failed write: cuts off what was half written and takes records again. For a journal that is in memory alone see
    /// [`Journal::take_file`]. Returns whether anything was mended; then the facts since the error are missing, and the caller says
    /// again how things stand.
    pub fn mend(&mut self) -> Result<bool, JournalError> {
        match &self.latched {
            Some(latched) if latched.remedy == Remedy::Cut && self.behind.is_none() => {}
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
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
