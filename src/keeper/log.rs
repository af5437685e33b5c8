//! The files of one log: `current`, and the rotated ones `1` (newest), `2` and so on.
//!
//! All calls block on the file system: see [`super::writer`]. Only complete lines are written, so every file begins and
//! ends with one. Lines that cannot be written are counted, and the log reports the number of missing lines as soon as
//! it can be written again.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::crash_points::crash_point;
use crate::sys::regular;

/// When to rotate files, and how many to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RotationLimits {
    /// Size at which a file is rotated, in bytes.
    pub(super) max_size_bytes: u64,
    /// Number of files to keep, including the current one; at least 2.
    pub(super) files: u32,
}

/// One log. The first write opens it, and so does the first write after a failure.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    limits: RotationLimits,
    file: Option<File>,
    /// Missing lines that the file does not report yet, and the cause.
    unreported_lines: u64,
    cause: String,
    totals: LogTotals,
}

/// Totals of a log.
#[derive(Debug, Clone, Default)]
pub(super) struct LogTotals {
    pub(super) written_bytes: u64,
    pub(super) lost_lines: u64,
    /// The last error.
    pub(super) last_error: String,
}

impl LogTotals {
    pub(super) fn add(&mut self, other: LogTotals) {
        self.written_bytes += other.written_bytes;
        self.lost_lines += other.lost_lines;
        if !other.last_error.is_empty() {
            self.last_error = other.last_error;
        }
    }
}

impl Log {
    pub(super) fn new(dir: PathBuf, limits: RotationLimits) -> Self {
        Self {
            dir,
            limits,
            file: None,
            unreported_lines: 0,
            cause: String::new(),
            totals: LogTotals::default(),
        }
    }

    pub(super) fn set_limits(&mut self, limits: RotationLimits) {
        self.limits = limits;
    }

    /// Returns the totals since the last call, and resets them.
    pub(super) fn take_totals(&mut self) -> LogTotals {
        std::mem::take(&mut self.totals)
    }

    /// Appends complete lines, or counts them as lost. `lines` ends with a newline.
    pub(super) fn write(&mut self, mut lines: &[u8]) {
        crash_point!("keeper/log/before-write");
        self.report_lost_lines();
        while !lines.is_empty() {
            match self.write_into_one_file(lines) {
                Ok(stored) => lines = &lines[stored..],
                Err(error) => return self.count_lost(lines, &error),
            }
        }
    }

    /// Writes the number of missing lines, if there are any and the file is writable.
    pub(super) fn report_lost_lines(&mut self) {
        if self.unreported_lines == 0 {
            return;
        }
        let (count, cause) = (self.unreported_lines, &self.cause);
        let note =
            format!("handoff: {count} lines are missing here, because they could not be written: {cause}\n");
        if self.write_into_one_file(note.as_bytes()).is_ok() {
            self.unreported_lines = 0;
        }
    }

    /// Counts lines that were dropped because nothing could be written.
    pub(super) fn count_missing(&mut self, lines: u64) {
        self.unreported_lines += lines;
        self.totals.lost_lines += lines;
        "the file system did not answer".clone_into(&mut self.cause);
    }

    fn count_lost(&mut self, lines: &[u8], error: &io::Error) {
        let count = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.unreported_lines += count;
        self.totals.lost_lines += count;
        self.cause = error.to_string();
        self.record_error(error);
    }

    fn record_error(&mut self, error: &io::Error) {
        self.totals.last_error = format!("{}: {error}", self.dir.display());
    }

    /// Writes at least the first line, and at most what belongs into the same file. Returns the number of bytes. On
    /// error nothing is written.
    fn write_into_one_file(&mut self, lines: &[u8]) -> io::Result<usize> {
        let first = lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |at| at + 1);
        let mut size = self.size()?;
        let mut limit = self.limits.max_size_bytes;
        if size > 0 && size + first as u64 > limit {
            match self.rotate() {
                Ok(()) => size = self.size()?,
                // A file that is too long is better than a lost line.
                Err(error) => {
                    self.record_error(&error);
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

    /// Writes at least one complete line after the first `size` bytes of the open file.
    fn append(&mut self, size: u64, lines: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let mut stored = 0;
        while stored < lines.len() {
            match file.write(&lines[stored..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) if count > 0 => stored += count,
                failed => {
                    let whole = whole_lines(&lines[..stored]);
                    // Removes a partial line. If that fails too, the next open ends the partial line.
                    if whole < stored && file.set_len(size + whole as u64).is_err() {
                        self.file = None;
                    }
                    self.totals.written_bytes += whole as u64;
                    return match failed {
                        _ if whole > 0 => Ok(whole),
                        Err(error) => Err(error),
                        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
                    };
                }
            }
        }
        self.totals.written_bytes += stored as u64;
        Ok(stored)
    }

    /// The size of the current file. Opens it if it is not open, or was removed.
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

    /// Moves every file to the next number, and creates a new current one. On failure the current file stays open.
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

    /// Renames the numbered files so that `1` is free. Stops at the first free number, so that a retry after a failed
    /// rotation does not drop older files.
    fn make_room(&self) -> io::Result<()> {
        let path = |number: u32| self.dir.join(number.to_string());
        let last = self.limits.files.max(2) - 1;
        let free = (1..last).find(|number| !path(*number).exists()).unwrap_or(last);
        for number in (1..free).rev() {
            std::fs::rename(path(number), path(number + 1))?;
        }
        // Remains of an earlier, larger limit.
        let _ = (last + 1..).try_for_each(|number| std::fs::remove_file(path(number)));
        Ok(())
    }
}

/// Opens a file for appending, and ends a partial last line: its writer was killed during a write.
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

/// Number of bytes in complete lines.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
