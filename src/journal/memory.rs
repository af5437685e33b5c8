//! A journal without a usable file, so that its service can run anyway.
//!
//! The service's processes can be adopted, stopped and restarted, but nothing is committed. See [`Journal::begin_anew`]
//! for the file once the running processes are known. The caller opens files, because that may block without limit.

use std::io;
use std::path::Path;
use std::sync::Arc;

use handoff_protocol::ids::Generation;
use handoff_protocol::log_image;
use handoff_protocol::record::{Fact, Standing, fold};

use super::{Journal, JournalError, LatchedError, Remedy, Storage};
use crate::sys::regular;

/// Storage without a file.
#[derive(Debug)]
struct NullStorage;

impl Storage for NullStorage {
    fn read_all(&self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn stage(&self, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn swap(&self) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn discard(&self) {}
}

impl Journal {
    /// Creates a journal in memory for an unusable file. It folds facts but stores none; a fact that must be durable
    /// fails with `cause`. [`Journal::take_file`] ends this. Blocks on the disk: reads a damaged file up to the damage,
    /// and a read-only one completely.
    pub fn in_memory(path: &Path, cause: &JournalError) -> Self {
        let unreached = Self::unreached(path, cause);
        match unreached.is_damaged() {
            true => Self { salvaged: salvage(path), ..unreached },
            false => Self { standing: read_only(path), ..unreached },
        }
    }

    /// Like [`Journal::in_memory`], without access to the file.
    pub fn unreached(path: &Path, cause: &JournalError) -> Self {
        let damage = match cause {
            JournalError::Image { path, source } => Some(format!("{}: {source}", path.display())),
            _ => None,
        };
        Self {
            path: path.to_owned(),
            storage: Arc::new(NullStorage),
            standing: Standing::default(),
            end: 0,
            next_sequence: 1,
            latched: Some(LatchedError { first: cause.to_string(), remedy: Remedy::Open, damage }),
            unfolded: None,
            file: 0,
            restoration: None,
            salvaged: Standing::default(),
        }
    }

    /// Why its file is unusable, if the journal is in memory.
    pub fn refused(&self) -> Option<&str> {
        let latched = self.latched.as_ref().filter(|latched| latched.remedy == Remedy::Open)?;
        Some(&latched.first)
    }

    /// Whether its file was read and is corrupt. A file that could not be read may be intact.
    pub fn is_damaged(&self) -> bool {
        self.damage().is_some()
    }

    /// What is wrong with its content, without the remedy: one clause that begins with the path.
    pub fn damage(&self) -> Option<&str> {
        self.latched.as_ref()?.damage.as_deref()
    }

    /// The highest generation known to have been current, also from a rejected file.
    pub fn last_generation(&self) -> Generation {
        self.standing.generation().max(self.salvaged.generation())
    }

    /// Continues in `fresh`, a new file after the damaged one was moved away ([`set_aside`](super::set_aside)), with
    /// the content of the damaged one up to the damage. Only for callers that know what runs: the damaged file may
    /// differ from that. Changes nothing on error.
    pub fn begin_anew(&mut self, mut fresh: Journal) -> Result<(), JournalError> {
        if self.salvaged != Standing::default() {
            append_standing(&mut fresh, &self.salvaged)?;
        }
        *self = fresh;
        Ok(())
    }

    /// Continues in the file that was opened again. Stores the standing from memory in it, if the file has none.
    pub fn take_file(&mut self, mut opened: Journal) -> Result<(), JournalError> {
        if opened.standing == Standing::default() && self.standing != Standing::default() {
            append_standing(&mut opened, &self.standing)?;
        }
        opened.file = self.file + 1;
        *self = opened;
        Ok(())
    }
}

fn append_standing(journal: &mut Journal, standing: &Standing) -> Result<(), JournalError> {
    journal.append(Fact::Snapshot(Box::new(standing.clone())))?;
    standing.beside_snapshot().try_for_each(|fact| journal.append(fact))
}

/// The standing in a read-only journal. Blocks.
fn read_only(path: &Path) -> Standing {
    let bytes = regular::read(path).unwrap_or_default();
    log_image::parse(&bytes).map(|image| fold(&image.records)).unwrap_or_default()
}

/// The standing in a damaged journal up to the damage. Blocks.
fn salvage(path: &Path) -> Standing {
    let Ok(mut bytes) = regular::read(path) else { return Standing::default() };
    if let Some(proven) = bytes.get_mut(log_image::PROVEN_AT..log_image::HEADER_LEN) {
        proven.fill(0);
    }
    log_image::parse(&bytes).map(|image| fold(&image.records)).unwrap_or_default()
}
