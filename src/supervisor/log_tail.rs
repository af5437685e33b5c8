//! The last lines that one process has written, read back from the files of its log.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::log_record::parse;
use crate::sys::regular;

/// Maximum number of lines.
pub(super) const LINES_MAX: usize = 10;
/// Longer lines are cut.
const LINE_MAX_CHARS: usize = 500;
/// How much of each file is read. What other processes have written since hides what is further back.
const READ_MAX_BYTES: u64 = 1 << 20;
/// The files that are read, newest first: the log may just have been rotated.
const FILES: [&str; 2] = ["current", "1"];

/// A process, as the labels of its lines name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Writer {
    pub(super) service: String,
    pub(super) generation: Option<u64>,
    pub(super) pid: u32,
    /// When it was started, in milliseconds since 1970-01-01 UTC. Earlier lines are of another process with this pid.
    pub(super) started_ms: u64,
}

/// Reads at most [`LINES_MAX`] lines, oldest first. Blocks on the file system.
pub(super) fn read(directory: &Path, writer: &Writer) -> Vec<String> {
    let mut lines = Vec::new();
    for name in FILES {
        let missing = LINES_MAX - lines.len();
        let Ok(text) = end_of(&directory.join(name)) else { break };
        lines.splice(..0, last_lines(&text, writer, missing));
        if lines.len() >= LINES_MAX {
            break;
        }
    }
    lines
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = regular::open_to_read(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(READ_MAX_BYTES)))?;
    let mut text = Vec::new();
    file.take(READ_MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

fn last_lines(text: &[u8], writer: &Writer, count: usize) -> VecDeque<String> {
    let mut found = VecDeque::new();
    for line in text.rsplit(|byte| *byte == b'\n') {
        if found.len() == count {
            break;
        }
        if let Some(record) = parse(line)
            && record.pid == Some(writer.pid)
            && record.generation == writer.generation
            && record.service == writer.service
            && record.at_ms >= writer.started_ms
        {
            found.push_front(String::from_utf8_lossy(record.text).chars().take(LINE_MAX_CHARS).collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_record::time_of;

    fn line(second: u64, generation: u64, pid: u32, text: &str) -> String {
        format!("2026-12-01T11:40:{second:02}.000Z web {generation} {pid} err | {text}\n")
    }

    fn writer() -> Writer {
        let started_ms = time_of(line(5, 0, 0, "").as_bytes()).unwrap();
        Writer { service: "web".into(), generation: Some(3), pid: 7, started_ms }
    }

    #[test]
    fn only_lines_of_this_very_process_count() {
        let dir = tempfile::tempdir().unwrap();
        let text = [
            line(4, 3, 7, "of an earlier process with its pid"),
            line(5, 3, 7, "first"),
            line(6, 3, 8, "of another process"),
            line(6, 2, 7, "of another generation"),
            line(6, 3, 7, "second").replace(" web ", " other "),
            "of an older version\n".to_owned(),
            line(7, 3, 7, &"x".repeat(9_000)),
        ];
        std::fs::write(dir.path().join("current"), text.concat()).unwrap();
        assert_eq!(read(dir.path(), &writer()), ["first".to_owned(), "x".repeat(LINE_MAX_CHARS)]);
        assert!(read(&dir.path().join("missing"), &writer()).is_empty());
    }

    #[test]
    fn the_last_ones_are_found_also_behind_a_rotation_and_much_else() {
        let dir = tempfile::tempdir().unwrap();
        let numbered =
            |from: u32, to: u32| (from..to).map(|n| line(9, 3, 7, &n.to_string())).collect::<String>();
        let other = line(9, 3, 8, "another").repeat(10_000);
        std::fs::write(dir.path().join("1"), numbered(0, 20) + &other).unwrap();
        std::fs::write(dir.path().join("current"), other + &numbered(20, 24)).unwrap();
        let expected: Vec<String> = (14..24).map(|n| n.to_string()).collect();
        assert_eq!(read(dir.path(), &writer()), expected);
        std::fs::write(dir.path().join("current"), numbered(24, 40)).unwrap();
        assert_eq!(read(dir.path(), &writer()), (30..40).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}
