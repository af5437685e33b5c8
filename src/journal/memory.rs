//! A journal whose file cannot be used, so that its service can be known all the same.
//!
//! What lives can then be taken over, stopped and started again, but nothing is committed. See [`Journal::begin_anew`] for what
//! becomes of the file when it is known what runs. The caller opens files: the wait for one may have no end.

use std::io;
use std::path::Path;
use std::sync::Arc;

use handoff_protocol::ids::Generation;
use handoff_protocol::log_image;
use handoff_protocol::record::{Fact, Standing, fold};

use super::{Journal, JournalError, Latched, Remedy, Storage};
use crate::sys::regular;

/// No file.
#[derive(Debug)]
struct Nowhere;

impl Storage for Nowhere {
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
    /// A journal in memory alone, for a file that cannot be used. It folds facts and keeps none; one that must be durable is
    /// refused with `cause`. [`Journal::take_file`] ends that. Blocks on the disk: what a damaged file says up to its damage is read, and
    /// all of one that can only be read.
    pub fn in_memory(path: &Path, cause: &JournalError) -> Self {
        let unreached = Self::unreached(path, cause);
        match unreached.is_damaged() {
            true => Self { salvaged: salvage(path), ..unreached },
            false => Self { standing: read_only(path), ..unreached },
        }
    }

    /// Likewise, for a file that nothing is known of. Does not touch it.
    pub fn unreached(path: &Path, cause: &JournalError) -> Self {
        let damage = match cause {
            JournalError::Image { path, source } => Some(format!("{}: {source}", path.display())),
            _ => None,
        };
        Self {
            path: path.to_owned(),
            storage: Arc::new(Nowhere),
            standing: Standing::default(),
            end: 0,
            next_sequence: 1,
            latched: Some(Latched { first: cause.to_string(), remedy: Remedy::Open, damage }),
            behind: None,
            file: 0,
            news: None,
            salvaged: Standing::default(),
        }
    }

    /// Why its file cannot be used, if it is in memory alone.
    pub fn refused(&self) -> Option<&str> {
        let latched = self.latched.as_ref().filter(|latched| latched.remedy == Remedy::Open)?;
        Some(&latched.first)
    }

    /// Whether its file was read, and says what cannot be trusted. One that could not be read may be whole.
    pub fn is_damaged(&self) -> bool {
        self.damage().is_some()
    }

    /// What is wrong with its content, without what to do about it: one clause that begins with the path.
    pub fn damage(&self) -> Option<&str> {
        self.latched.as_ref()?.damage.as_deref()
    }

    /// The highest generation that is known to have been current, also from a file that was refused.
    pub fn last_generation(&self) -> Generation {
        self.standing.generation().max(self.salvaged.generation())
    }

    /// Goes on in `fresh`, which is new, as its file was moved away ([`set_aside`](super::set_aside)), with what the damaged one says
    /// up to its damage. Only for who knows what runs: it may not be what that says. Nothing is changed here if it fails.
    pub fn begin_anew(&mut self, mut fresh: Journal) -> Result<(), JournalError> {
        if self.salvaged != Standing::default() {
            fresh.append(Fact::Snapshot(Box::new(self.salvaged.clone())))?;
        }
        *self = fresh;
        Ok(())
    }

    /// Goes on in the file that was opened again. What was folded meanwhile goes into it, if it says nothing itself.
    pub fn take_file(&mut self, mut opened: Journal) -> Result<(), JournalError> {
        if opened.standing == Standing::default() && self.standing != Standing::default() {
            opened.append(Fact::Snapshot(Box::new(self.standing.clone())))?;
        }
        opened.file = self.file + 1;
        *self = opened;
        Ok(())
    }
}

/// What a journal says that cannot be written. Blocks.
fn read_only(path: &Path) -> Standing {
    let bytes = regular::read(path).unwrap_or_default();
    log_image::parse(&bytes).map(|image| fold(&image.records)).unwrap_or_default()
}

/// What a damaged journal says up to its damage. Blocks.
fn salvage(path: &Path) -> Standing {
    let Ok(mut bytes) = regular::read(path) else { return Standing::default() };
    if let Some(proven) = bytes.get_mut(log_image::PROVEN_AT..log_image::HEADER_LEN) {
        proven.fill(0);
    }
    log_image::parse(&bytes).map(|image| fold(&image.records)).unwrap_or_default()
}
