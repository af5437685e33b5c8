//! The files of one log: `current`, and the rotated ones `1` (newest), `2` and so on.
//!
//! All calls block on the file system: see [`super::writer`]. Only complete lines are written, so every file begins and
//! ends with one. Lines that cannot be written are counted, and the log reports the number of missing lines as soon as
//! it can be written again.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::LOG_PREFIX;
use crate::crash_points::crash_point;
use crate::journal::unix_ms;
use crate::log_record::{self, Label, TIME_BYTES, changed_ms, parse, time_of, time_text};
use crate::sys::clock::as_ms;
use crate::sys::regular;

/// More files than a log can have.
const FILES_MAX: u32 = 100;

/// When to rotate files, how many to keep, and what else becomes of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogSettings {
    /// Size at which a file is rotated, in bytes.
    pub(super) max_size_bytes: u64,
    /// Number of files to keep, including the current one; at least 2.
    pub(super) files: u32,
    /// Age at which lines are removed.
    pub(super) max_age: Option<Duration>,
    /// Maximum number of bytes per second.
    pub(super) max_rate_bytes: Option<u64>,
    /// Whether journald gets the lines too.
    pub(super) journald: bool,
}

#[cfg(test)]
impl Default for LogSettings {
    fn default() -> Self {
        Self { max_size_bytes: 10 << 20, files: 2, max_age: None, max_rate_bytes: None, journald: false }
    }
}

/// One log. The first write opens it, and so does the first write after a failure.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    service: String,
    settings: LogSettings,
    file: Option<File>,
    /// The time of the first line of the current file, in milliseconds since 1970-01-01 UTC.
    begun_ms: Option<u64>,
    /// Missing lines that the file does not report yet, their length, and the cause.
    unreported_lines: u64,
    unreported_bytes: u64,
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
    /// `service` is named in what this reports itself.
    pub(super) fn new(dir: PathBuf, service: &str, settings: LogSettings) -> Self {
        Self {
            dir,
            service: service.to_owned(),
            settings,
            file: None,
            begun_ms: None,
            unreported_lines: 0,
            unreported_bytes: 0,
            cause: String::new(),
            totals: LogTotals::default(),
        }
    }

    pub(super) fn set(&mut self, settings: LogSettings) {
        self.settings = settings;
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
        let (lines, bytes, cause) = (self.unreported_lines, self.unreported_bytes, &self.cause);
        let text = missing(lines, bytes, &format!("because they could not be written: {cause}"));
        if self.write_into_one_file(note(&self.service, &text).as_bytes()).is_ok() {
            (self.unreported_lines, self.unreported_bytes) = (0, 0);
        }
    }

    /// Counts lines that were dropped because nothing could be written.
    pub(super) fn count_missing(&mut self, lines: u64, bytes: u64) {
        self.unreported_lines += lines;
        self.unreported_bytes += bytes;
        self.totals.lost_lines += lines;
        "the file system did not answer".clone_into(&mut self.cause);
    }

    fn count_lost(&mut self, lines: &[u8], error: &io::Error) {
        let (count, bytes) = text_size(lines);
        self.unreported_lines += count;
        self.unreported_bytes += bytes;
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
        let mut limit = self.settings.max_size_bytes;
        if size > 0 && (size + first as u64 > limit || self.is_old()) {
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
        if size == 0 {
            self.begun_ms = time_of(lines);
        }
        self.append(size, &lines[..fitting])
    }

    /// Whether the current file is to be rotated because of its age. So that the number of files does not shorten the
    /// time for which lines are kept, each of the others gets its share.
    fn is_old(&self) -> bool {
        let Some(max_age) = self.settings.max_age else { return false };
        let share = as_ms(max_age / self.settings.files.saturating_sub(1).max(1));
        self.begun_ms.is_some_and(|begun| unix_ms().saturating_sub(begun) > share)
    }

    /// Removes what is older than it may be. Rotates the current file first if it is due, so that its lines go in time
    /// although none are added. An error is for the next attempt.
    pub(super) fn remove_old(&mut self) {
        let Some(max_age) = self.settings.max_age else { return };
        if self.size().is_ok_and(|size| size > 0)
            && self.is_old()
            && let Err(error) = self.rotate()
        {
            self.record_error(&error);
        }
        let now = unix_ms();
        let is_too_old = |path: &Path| {
            let changed = changed_ms(&std::fs::metadata(path).ok()?)?;
            Some(now.saturating_sub(changed) > as_ms(max_age))
        };
        for number in 1..=FILES_MAX {
            let path = self.dir.join(number.to_string());
            if is_too_old(&path) == Some(true)
                && let Err(error) = std::fs::remove_file(&path)
            {
                self.record_error(&error);
            }
        }
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
        self.begun_ms = begun_ms(&file);
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
            Ok(file) => (self.file, self.begun_ms) = (Some(file), None),
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
        let last = self.settings.files.max(2) - 1;
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

/// The time of the first line of a file. If that has none, such as in a file of an older version, the file counts from
/// its last change.
fn begun_ms(file: &File) -> Option<u64> {
    let mut begin = [0; TIME_BYTES];
    let first = file.read_exact_at(&mut begin, 0).ok().and_then(|()| time_of(&begin));
    let changed = || changed_ms(&file.metadata().ok()?);
    first.or_else(changed)
}

/// A line that handoff itself writes.
pub(super) fn note(service: &str, text: &str) -> String {
    let mut line = Vec::new();
    let label = Label::of_handoff(service).to_text();
    log_record::append(&mut line, &time_text(unix_ms()), &label, text.as_bytes(), false);
    String::from_utf8(line).unwrap_or_default()
}

/// Says that lines are missing.
pub(super) fn missing(lines: u64, bytes: u64, cause: &str) -> String {
    format!("{LOG_PREFIX}{lines} lines are missing here ({bytes} bytes), {cause}")
}

/// The number of lines, and how many bytes a program has written for them.
pub(super) fn text_size(lines: &[u8]) -> (u64, u64) {
    lines.split_inclusive(|byte| *byte == b'\n').fold((0, 0), |(count, bytes), line| {
        let text = parse(line).map_or(line.len(), |record| record.text.len() + 1);
        (count + 1, bytes + text as u64)
    })
}

/// Number of bytes in complete lines.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
