//! The file of a history: one JSON object per line, the newest last.
//!
//! Each line is one append. The remains of a line after a crash or a full disk are not JSON, and are skipped; the next
//! line then begins with a newline. When the file holds twice the limit, a shorter one is written next to it and
//! renamed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Entry;
use crate::sys::regular;

/// Number of attempts to keep per service.
pub const ENTRIES_MAX: usize = 200;
const FILE: &str = "history";
/// Maximum number of bytes to read, from the end of the file. Far more than twice the limit.
const READ_MAX_BYTES: u64 = 8 << 20;
/// Maximum length of a stored reason, in bytes.
const REASON_MAX_BYTES: usize = 2_000;
const PHASES_MAX: usize = 100;

/// The history of one service. Every call accesses files, and blocks on them.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    entries_max: usize,
    /// Number of lines in the file, if counted.
    lines: Option<usize>,
}

impl History {
    /// Opens the history in a service's state directory, which need not exist.
    pub fn open(directory: &Path) -> History {
        History::with_limit(directory, ENTRIES_MAX)
    }

    /// The same with another limit.
    pub fn with_limit(directory: &Path, entries_max: usize) -> History {
        History { path: directory.join(FILE), entries_max: entries_max.max(1), lines: None }
    }

    /// Appends an attempt. After an error the file is unchanged, or ends with a damaged line.
    pub fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(&bounded(entry))?;
        line.push(b'\n');
        let mut options = File::options();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = regular::open(&mut options, &self.path)?;
        let length = file.metadata()?.len();
        if ends_torn(&file, length)? {
            line.insert(0, b'\n');
        }
        if let Err(error) = file.write_all(&line) {
            // If this fails too, the line is found to be damaged.
            let _ = file.set_len(length);
            return Err(error);
        }
        let lines = match self.lines {
            Some(lines) => lines + 1,
            None if length > READ_MAX_BYTES => usize::MAX,
            None => count_lines(&mut file)?,
        };
        self.lines = Some(lines);
        if lines >= 2 * self.entries_max { self.shorten() } else { Ok(()) }
    }

    /// The last `limit` attempts, the newest last.
    pub fn read(directory: &Path, limit: usize) -> io::Result<Vec<Entry>> {
        let mut entries = parse(&end_of(&directory.join(FILE))?);
        entries.drain(..entries.len().saturating_sub(limit));
        Ok(entries)
    }

    fn shorten(&mut self) -> io::Result<()> {
        // Counts lines rather than attempts, which would occupy much memory.
        let bytes = end_of(&self.path)?;
        let mut kept: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|it| !it.is_empty()).collect();
        kept.drain(..kept.len().saturating_sub(self.entries_max));
        let mut text = kept.join(&b'\n');
        text.push(b'\n');
        let beside = self.path.with_extension("new");
        let mut file = regular::create(&beside)?;
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        if let Err(error) = written.and_then(|()| fs::rename(&beside, &self.path)) {
            let _ = fs::remove_file(&beside);
            return Err(error);
        }
        self.lines = Some(kept.len());
        Ok(())
    }
}

/// The file, or the part at its end that is read; empty if there is no file.
fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = match regular::open_to_read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(READ_MAX_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(READ_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Parses the lines. A later line with the same id and operation replaces the earlier one in its place.
fn parse(bytes: &[u8]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for entry in
        bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Entry>(line).ok())
    {
        put(&mut entries, entry);
    }
    entries
}

/// Adds an attempt, or replaces an earlier one in its place.
pub fn put(entries: &mut Vec<Entry>, entry: Entry) {
    let same = |other: &Entry| (other.id, other.operation) == (entry.id, entry.operation);
    match entries.iter().rposition(same) {
        Some(at) => entries[at] = entry,
        None => entries.push(entry),
    }
}

/// Whether the last line is incomplete.
fn ends_torn(file: &File, length: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last != [b'\n'])
}

fn count_lines(file: &mut File) -> io::Result<usize> {
    file.rewind()?;
    let (mut lines, mut chunk) = (0, vec![0; 64 << 10]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(lines),
            length => lines += chunk[..length].iter().filter(|byte| **byte == b'\n').count(),
        }
    }
}

/// Limits texts that come from a process.
fn bounded(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    if let Some(reason) = &mut entry.reason {
        reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES));
    }
    entry.phases.truncate(PHASES_MAX);
    entry
}
