//! The file of a history: one JSON object a line, the newest last.
//!
//! A line is written with one append. What a crash or a full disk leaves of one is no JSON, and is passed over; the next line
//! begins with a newline then. When the file holds twice what is kept, a shorter one is written beside it and renamed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Entry;
use crate::sys::regular;

/// So many attempts are kept for a service.
pub const ENTRIES_MAX: usize = 200;
const FILE: &str = "history";
/// What is read of a file at the most, from its end. Far more than twice what is kept.
const READ_MAX_BYTES: u64 = 8 << 20;
/// The longest reason that is kept.
const REASON_MAX_BYTES: usize = 2_000;
const PHASES_MAX: usize = 100;

/// The history of one service. Every call reads or writes files, and blocks on them.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    entries_max: usize,
    /// Lines in the file, as far as they were counted.
    lines: Option<usize>,
}

impl History {
    /// The history in the state directory of a service, which need not have one yet.
    pub fn open(directory: &Path) -> History {
        History::with_limit(directory, ENTRIES_MAX)
    }

    /// The same, with another number of attempts that are kept.
    pub fn with_limit(directory: &Path, entries_max: usize) -> History {
        History { path: directory.join(FILE), entries_max: entries_max.max(1), lines: None }
    }

    /// Adds one. After an error the file is as it was, or has a damaged line at its end.
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
            // If even that fails, the line is found to be damaged.
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
        // Lines, not attempts: what they add up to would be many small things in memory.
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

/// The file, or as much of its end as is ever read; nothing if there is none.
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

/// The attempts among the lines. Where the same one is there twice, the later line counts, in the place of the earlier.
fn parse(bytes: &[u8]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for entry in
        bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Entry>(line).ok())
    {
        put(&mut entries, entry);
    }
    entries
}

/// Adds an attempt. If it is there already, this is what counts, in the place of the earlier.
pub fn put(entries: &mut Vec<Entry>, entry: Entry) {
    let same = |other: &Entry| (other.id, other.operation) == (entry.id, entry.operation);
    match entries.iter().rposition(same) {
        Some(at) => entries[at] = entry,
        None => entries.push(entry),
    }
}

/// Whether the last line has no end.
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

/// What comes from a process may be as long as it likes.
fn bounded(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    if let Some(reason) = &mut entry.reason {
        reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES));
    }
    entry.phases.truncate(PHASES_MAX);
    entry
}
