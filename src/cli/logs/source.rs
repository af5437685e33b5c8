//! The log of one service as it is at a moment: its lines, oldest first.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use handoff_protocol::ids::ServiceName;

use crate::cli::follow::{LogFile, open_all};
use crate::log_record::{changed_ms, time_of};

const CHUNK_BYTES: usize = 16 << 10;

/// Longer lines are broken. The keeper writes none that are longer, but another program may have written the file.
const LINE_MAX_BYTES: usize = 1 << 20;

/// The log of a service.
pub(super) struct Source {
    pub(super) service: ServiceName,
    pub(super) directory: PathBuf,
    /// Oldest first.
    parts: Vec<Part>,
    /// The part that is read.
    at: usize,
    left_bytes: u64,
    lines: LineReader,
    last_ms: u64,
}

/// What is read of a file. What is added later is not.
struct Part {
    file: LogFile,
    start: u64,
    end: u64,
}

/// Splits what is read into lines.
#[derive(Default)]
pub(super) struct LineReader {
    bytes: Vec<u8>,
    /// Where the next line starts.
    start: usize,
}

impl Source {
    /// Opens all files of a log. A missing directory is an error; an empty one is not.
    pub(super) fn open(service: ServiceName, directory: &Path) -> io::Result<Source> {
        let mut parts = Vec::new();
        for mut file in open_all(directory)?.into_iter().rev() {
            let end = file.file.seek(SeekFrom::End(0))?;
            parts.push(Part { file, start: 0, end });
        }
        let mut source = Source::empty(service, directory);
        source.parts = parts;
        source.rewind()?;
        Ok(source)
    }

    /// A log that does not exist yet.
    pub(super) fn empty(service: ServiceName, directory: &Path) -> Source {
        Source {
            service,
            directory: directory.to_owned(),
            parts: Vec::new(),
            at: 0,
            left_bytes: 0,
            lines: LineReader::default(),
            last_ms: 0,
        }
    }

    pub(super) fn has_files(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Leaves out all but the last `lines` lines.
    pub(super) fn keep_tail(&mut self, mut lines: u64) -> io::Result<()> {
        for part in self.parts.iter_mut().rev() {
            let (start, missing) = tail_start(&mut part.file.file, part.end, lines)?;
            (part.start, lines) = (start, missing);
        }
        self.rewind()
    }

    /// Leaves out files whose last line is older than this: milliseconds since 1970-01-01 UTC.
    pub(super) fn keep_since(&mut self, ms: u64) -> io::Result<()> {
        for part in &mut self.parts {
            if changed_ms(&part.file.file.metadata()?).is_some_and(|changed| changed < ms) {
                part.start = part.end;
            }
        }
        self.rewind()
    }

    /// Starts again with the first line.
    pub(super) fn rewind(&mut self) -> io::Result<()> {
        (self.at, self.lines, self.last_ms) = (0, LineReader::default(), 0);
        self.enter()
    }

    fn enter(&mut self) -> io::Result<()> {
        if let Some(part) = self.parts.get_mut(self.at) {
            part.file.file.seek(SeekFrom::Start(part.start))?;
            self.left_bytes = part.end - part.start;
        }
        Ok(())
    }

    /// The next line without its end, and its time in milliseconds since 1970-01-01 UTC: for a line that has none, that
    /// of the line before it. An incomplete last line of the newest file stays in the reader.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        while let Some(part) = self.parts.get_mut(self.at) {
            let mut line = self.lines.next(&mut part.file.file, &mut self.left_bytes)?;
            if line.is_none() {
                if self.at + 1 == self.parts.len() {
                    return Ok(None);
                }
                line = self.lines.take_rest();
                self.at += 1;
                self.enter()?;
            }
            if let Some(line) = line {
                self.last_ms = time_of(&line).unwrap_or(self.last_ms);
                return Ok(Some((self.last_ms, line)));
            }
        }
        Ok(None)
    }

    /// The incomplete last line.
    pub(super) fn take_rest(&mut self) -> Option<(u64, Vec<u8>)> {
        self.lines.take_rest().map(|line| (time_of(&line).unwrap_or(self.last_ms), line))
    }

    /// The newest file, at the place up to which it was read, and what its reader holds. For [`super::live`].
    pub(super) fn into_live(mut self) -> (Option<LogFile>, LineReader) {
        (self.parts.pop().map(|part| part.file), self.lines)
    }
}

impl LineReader {
    /// The next line without its end. Reads at most `left_bytes` from the file, and counts them down. `None` if no
    /// further line is complete.
    pub(super) fn next(&mut self, file: &mut File, left_bytes: &mut u64) -> io::Result<Option<Vec<u8>>> {
        let mut searched = self.start;
        loop {
            if let Some(at) = self.bytes[searched..].iter().position(|byte| *byte == b'\n') {
                let end = searched + at;
                let line = self.bytes[self.start..end].to_vec();
                self.start = end + 1;
                return Ok(Some(line));
            }
            if self.bytes.len() - self.start >= LINE_MAX_BYTES {
                return Ok(self.take_rest());
            }
            self.bytes.drain(..self.start);
            (self.start, searched) = (0, self.bytes.len());
            let wanted = (*left_bytes).min(CHUNK_BYTES as u64) as usize;
            self.bytes.resize(searched + wanted, 0);
            let read = file.read(&mut self.bytes[searched..]);
            self.bytes.truncate(searched + *read.as_ref().unwrap_or(&0));
            match read? {
                0 => return Ok(None),
                count => *left_bytes -= count as u64,
            }
        }
    }

    /// An incomplete line.
    pub(super) fn take_rest(&mut self) -> Option<Vec<u8>> {
        let rest = self.bytes.split_off(self.start);
        (self.bytes, self.start) = (Vec::new(), 0);
        Some(rest).filter(|rest| !rest.is_empty())
    }
}

/// The start of the last `lines` lines of a file of this length, and how many lines are missing.
fn tail_start(file: &mut File, end: u64, lines: u64) -> io::Result<(u64, u64)> {
    if lines == 0 {
        return Ok((end, 0));
    }
    let mut missing = lines;
    let mut position = end;
    let mut chunk = vec![0; CHUNK_BYTES];
    while position > 0 {
        let length = position.min(CHUNK_BYTES as u64);
        position -= length;
        file.seek(SeekFrom::Start(position))?;
        let chunk = &mut chunk[..length as usize];
        file.read_exact(chunk)?;
        for (index, _) in chunk.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = position + index as u64 + 1;
            // The newline at the very end closes the last line. Each other newline is the start of a wanted line.
            if after == end {
                continue;
            }
            missing -= 1;
            if missing == 0 {
                return Ok((after, 0));
            }
        }
    }
    // The first line of the file has no newline before it.
    Ok((0, if end > 0 { missing - 1 } else { missing }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_tail_of_a_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one\ntwo\n\nfour\nfi").unwrap();
        let table =
            [(0, (16, 0)), (1, (14, 0)), (2, (9, 0)), (3, (8, 0)), (4, (4, 0)), (5, (0, 0)), (9, (0, 4))];
        for (lines, expected) in table {
            assert_eq!(tail_start(&mut file, 16, lines).unwrap(), expected, "{lines} lines");
        }
        assert_eq!(tail_start(&mut tempfile::tempfile().unwrap(), 0, 3).unwrap(), (0, 3));
    }

    #[test]
    fn the_tail_of_a_file_longer_than_a_chunk() {
        let mut file = tempfile::tempfile().unwrap();
        for number in 0..20_000 {
            writeln!(file, "line {number:05}").unwrap();
        }
        let (start, missing) = tail_start(&mut file, 220_000, 15_000).unwrap();
        assert_eq!((start, missing), (5_000 * 11, 0));
    }

    fn all(source: &mut Source) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some((_, line)) = source.next().unwrap() {
            lines.push(String::from_utf8(line).unwrap());
        }
        lines.extend(source.take_rest().map(|(_, line)| String::from_utf8(line).unwrap()));
        lines
    }

    #[test]
    fn lines_of_all_files_are_read_whole_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(3 * CHUNK_BYTES);
        for (name, text) in [("2", "a\nb\nto"), ("1", &*format!("{long}\n\n")), ("current", "c\nrest")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let mut source = Source::open("web".parse().unwrap(), dir.path()).unwrap();
        std::fs::write(dir.path().join("current"), "c\nrest and more\nlines\n").unwrap();
        for _ in 0..2 {
            assert_eq!(all(&mut source), ["a", "b", "to", &long, "", "c", "rest"]);
            source.rewind().unwrap();
        }
        source.keep_tail(3).unwrap();
        assert_eq!(all(&mut source), ["", "c", "rest"]);
        source.keep_tail(0).unwrap();
        assert!(all(&mut source).is_empty());
    }

    #[test]
    fn a_file_without_lines_does_not_fill_the_memory() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("current")).unwrap();
        file.set_len(10 * LINE_MAX_BYTES as u64 + 1).unwrap();
        let mut source = Source::open("web".parse().unwrap(), dir.path()).unwrap();
        let mut bytes = 0;
        while let Some((_, line)) = source.next().unwrap() {
            assert!(line.len() <= LINE_MAX_BYTES + CHUNK_BYTES);
            bytes += line.len();
        }
        bytes += source.take_rest().unwrap().1.len();
        assert_eq!(bytes, 10 * LINE_MAX_BYTES + 1);
    }
}
