//! The files of one log: `current`, and the rotated ones `1` (newest), `2` and so on.
//!
//! Everything here blocks as long as the file system does: see [`super::writer`]. Only whole lines are written, so that every file begins and ends with a whole line. Lines that cannot be
//! written are counted, and the log tells how many are missing as soon as it can be written again.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::crash_points::crash_point;
use crate::sys::regular;

/// When files are rotated and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Size at which a file is rotated.
    pub(super) max_size_bytes: u64,
    /// How many files are kept, the current one included; at least 2.
    pub(super) files: u32,
}

/// One log. It is opened by the first write, and again by the next one after a failure.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    limits: Limits,
    file: Option<File>,
    /// Lines that are missing and not yet told of in the file, and why.
    untold_lines: u64,
    cause: String,
    tally: Tally,
}

/// What a log has come to.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) written_bytes: u64,
    pub(super) lost_lines: u64,
    /// The last error.
    pub(super) trouble: String,
}

impl Tally {
    pub(super) fn add(&mut self, other: Tally) {
        self.written_bytes += other.written_bytes;
        self.lost_lines += other.lost_lines;
        if !other.trouble.is_empty() {
            self.trouble = other.trouble;
        }
    }
}

impl Log {
    pub(super) fn new(dir: PathBuf, limits: Limits) -> Self {
        Self { dir, limits, file: None, untold_lines: 0, cause: String::new(), tally: Tally::default() }
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Gives what has come together since the last call.
    pub(super) fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// Appends whole lines, or counts them as lost. `lines` ends with a newline.
    pub(super) fn write(&mut self, mut lines: &[u8]) {
        crash_point!("keeper/log/before-write");
        self.tell_of_lost_lines();
        while !lines.is_empty() {
            match self.write_into_one_file(lines) {
                Ok(stored) => lines = &lines[stored..],
                Err(error) => return self.lose(lines, &error),
            }
        }
    }

    /// Writes how many lines are missing, if some are and if it can.
    pub(super) fn tell_of_lost_lines(&mut self) {
        if self.untold_lines == 0 {
            return;
        }
        let (count, cause) = (self.untold_lines, &self.cause);
        let note =
            format!("handoff: {count} lines are missing here, for they could not be written: {cause}\n");
        if self.write_into_one_file(note.as_bytes()).is_ok() {
            self.untold_lines = 0;
        }
    }

    /// So many lines never came here, since nothing could be written.
    pub(super) fn miss(&mut self, lines: u64) {
        self.untold_lines += lines;
        self.tally.lost_lines += lines;
        "the file system did not answer".clone_into(&mut self.cause);
    }

    fn lose(&mut self, lines: &[u8], error: &io::Error) {
        let count = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.untold_lines += count;
        self.tally.lost_lines += count;
        self.cause = error.to_string();
        self.complain(error);
    }

    fn complain(&mut self, error: &io::Error) {
        self.tally.trouble = format!("{}: {error}", self.dir.display());
    }

    /// Stores at least the first line and at most what belongs into the same file; says how many bytes. An error means
    /// that nothing was stored.
    fn write_into_one_file(&mut self, lines: &[u8]) -> io::Result<usize> {
        let first = lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |at| at + 1);
        let mut size = self.size()?;
        let mut limit = self.limits.max_size_bytes;
        if size > 0 && size + first as u64 > limit {
            match self.rotate() {
                Ok(()) => size = self.size()?,
                // A file that is too long is better than a line that is lost.
                Err(error) => {
                    self.complain(&error);
                    limit = u64::MAX;
                }
            }
        }
        let room = usize::try_from(limit.saturating_sub(size)).unwrap_or(usize::MAX);
        let fitting = match lines.get(..room) {
            None => lines.len(),
            Some(fitting) => whole_lines(fitting).max(first),
        };
        self.append(size, &lines[..fitting])
    }

    /// Stores whole lines, at least one, behind the first `size` bytes of the open file.
    fn append(&mut self, size: u64, lines: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let mut stored = 0;
        while stored < lines.len() {
            match file.write(&lines[stored..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) if count > 0 => stored += count,
                failed => {
                    let whole = whole_lines(&lines[..stored]);
                    // The piece of a line goes. If not even that works, the next opening ends the piece.
                    if whole < stored && file.set_len(size + whole as u64).is_err() {
                        self.file = None;
                    }
                    self.tally.written_bytes += whole as u64;
                    return match failed {
                        _ if whole > 0 => Ok(whole),
                        Err(error) => Err(error),
                        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
                    };
                }
            }
        }
        self.tally.written_bytes += stored as u64;
        Ok(stored)
    }

    /// The size of the current file, which is opened if it is not, or if somebody removed it.
    fn size(&mut self) -> io::Result<u64> {
        if let Some(file) = &self.file {
            let found = file.metadata()?;
            if found.nlink() > 0 {
                return Ok(found.len());
            }
        }
        self.file = None;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let file = open(&self.dir.join("current"))?;
        let size = file.metadata()?.len();
        self.file = Some(file);
        Ok(size)
    }

    /// Moves every file on by one number and begins a new one. After a failure the current one is still open.
    fn rotate(&mut self) -> io::Result<()> {
        let (current, newest) = (self.dir.join("current"), self.dir.join("1"));
        self.make_room()?;
        match std::fs::rename(&current, &newest) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match open(&current) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                std::fs::rename(&newest, &current)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Renames the numbered files so that `1` is free. The first free number ends it, so that a rotation that fails and
    /// is tried again does not push older files out.
    fn make_room(&self) -> io::Result<()> {
        let path = |number: u32| self.dir.join(number.to_string());
        let last = self.limits.files.max(2) - 1;
        let free = (1..last).find(|number| !path(*number).exists()).unwrap_or(last);
        for number in (1..free).rev() {
            std::fs::rename(path(number), path(number + 1))?;
        }
        // What an earlier, larger limit has left.
        let _ = (last + 1..).try_for_each(|number| std::fs::remove_file(path(number)));
        Ok(())
    }
}

/// Opens a file to append to, and ends the line that it may end in: its writer was killed amid a write.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    let mut file = regular::open(&mut options, path)?;
    let mut last = [b'\n'];
    if let Some(at) = file.metadata()?.len().checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// How many of the bytes are whole lines.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
