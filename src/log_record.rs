//! One line of a log: when it came, which process wrote it, and its text.
//!
//! ```text
//! 2026-12-01T11:40:12.123Z web 3 4711 out | listening on port 80
//! ```
//!
//! The form is stable: time in UTC, service, generation, pid, stream (`out` or `err`), `|`, text. What is not known is
//! `-`. In place of `|` there is `+` if the next line of the same process and stream continues the text: the program
//! wrote a longer line than a log has. The text is UTF-8 without zero bytes, so that grep(1) does not take the file for a
//! binary one: every other byte is written as `\x00`.

use std::fmt::Write;
use std::fs::Metadata;
use std::time::{Duration, UNIX_EPOCH};

use crate::sys::log_pipe::Stream;

/// Length of the time at the start of a line, in bytes.
pub(crate) const TIME_BYTES: usize = 24;

/// Which process wrote a line, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) service: String,
    pub(crate) generation: Option<u64>,
    pub(crate) pid: Option<u32>,
    pub(crate) stream: Option<Stream>,
}

/// A line that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// Milliseconds since 1970-01-01 UTC.
    pub(crate) at_ms: u64,
    pub(crate) service: &'a str,
    pub(crate) generation: Option<u64>,
    pub(crate) pid: Option<u32>,
    pub(crate) stream: Option<Stream>,
    /// Whether the next line of the same process and stream continues the text.
    pub(crate) continues: bool,
    pub(crate) text: &'a [u8],
}

impl Label {
    /// The label of what handoff itself writes.
    pub(crate) fn of_handoff(service: &str) -> Label {
        Label { service: service.to_owned(), generation: None, pid: None, stream: None }
    }

    /// What stands between the time and the mark before the text.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!(" {} ", self.service);
        match self.generation {
            Some(generation) => _ = write!(text, "{generation} "),
            None => text += "- ",
        }
        match self.pid {
            Some(pid) => _ = write!(text, "{pid} "),
            None => text += "- ",
        }
        text + stream_name(self.stream) + " "
    }
}

/// The word for a stream.
pub(crate) fn stream_name(stream: Option<Stream>) -> &'static str {
    match stream {
        Some(Stream::Out) => "out",
        Some(Stream::Err) => "err",
        None => "-",
    }
}

/// A time as at the start of a line. `ms`: milliseconds since 1970-01-01 UTC.
pub(crate) fn time_text(ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

/// Milliseconds since 1970-01-01 UTC of the time at the start of a line.
pub(crate) fn time_of(line: &[u8]) -> Option<u64> {
    let time = line.get(..TIME_BYTES)?;
    // Rejects almost every line without a time at once.
    if !time[0].is_ascii_digit() || time[10] != b'T' || time[TIME_BYTES - 1] != b'Z' {
        return None;
    }
    let at = humantime::parse_rfc3339(std::str::from_utf8(time).ok()?).ok()?;
    u64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// When a file was last changed, in milliseconds since 1970-01-01 UTC.
pub(crate) fn changed_ms(file: &Metadata) -> Option<u64> {
    let since = file.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// Appends one line. `label` is from [`Label::to_text`]; `text` has no newline.
pub(crate) fn append(lines: &mut Vec<u8>, time: &str, label: &str, text: &[u8], continues: bool) {
    lines.extend_from_slice(time.as_bytes());
    lines.extend_from_slice(label.as_bytes());
    lines.push(if continues { b'+' } else { b'|' });
    if !text.is_empty() {
        lines.push(b' ');
        append_text(lines, text);
    }
    lines.push(b'\n');
}

fn append_text(lines: &mut Vec<u8>, text: &[u8]) {
    if !text.contains(&0) && std::str::from_utf8(text).is_ok() {
        return lines.extend_from_slice(text);
    }
    for chunk in text.utf8_chunks() {
        for (index, piece) in chunk.valid().split('\0').enumerate() {
            if index > 0 {
                lines.extend_from_slice(b"\\x00");
            }
            lines.extend_from_slice(piece.as_bytes());
        }
        for byte in chunk.invalid() {
            lines.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
}

/// Parses a line, with or without its newline. `None` for a line of another form, such as one of an older version of
/// handoff, which wrote only the text.
pub(crate) fn parse(line: &[u8]) -> Option<Record<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let at_ms = time_of(line)?;
    let mut rest = line.get(TIME_BYTES..)?.strip_prefix(b" ")?;
    let mut word = || {
        let end = rest.iter().position(|byte| *byte == b' ')?;
        let word = std::str::from_utf8(&rest[..end]).ok()?;
        rest = &rest[end + 1..];
        Some(word)
    };
    let service = word()?;
    let generation = known(word()?)?;
    let pid = known(word()?)?;
    let stream = match word()? {
        "out" => Some(Stream::Out),
        "err" => Some(Stream::Err),
        "-" => None,
        _ => return None,
    };
    let (continues, text) = match rest.split_first()? {
        (b'|', text) => (false, text),
        (b'+', text) => (true, text),
        _ => return None,
    };
    let text = if text.is_empty() { text } else { text.strip_prefix(b" ")? };
    Some(Record { at_ms, service, generation, pid, stream, continues, text })
}

/// `Some(None)` for what is not known, `None` for what is not a number.
fn known<T: std::str::FromStr>(word: &str) -> Option<Option<T>> {
    if word == "-" { Some(None) } else { word.parse().ok().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-12-01T11:40:12.123Z";

    fn label(pid: Option<u32>, stream: Option<Stream>) -> Label {
        Label { service: "web".into(), generation: pid.map(|_| 3), pid, stream }
    }

    fn line(text: &[u8], continues: bool) -> String {
        let mut lines = Vec::new();
        append(&mut lines, TIME, &label(Some(4711), Some(Stream::Out)).to_text(), text, continues);
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn a_line_has_this_form() {
        let begin = "2026-12-01T11:40:12.123Z web 3 4711 out";
        assert_eq!(line(b"hello | world", false), format!("{begin} | hello | world\n"));
        assert_eq!(line(b"", false), format!("{begin} |\n"));
        assert_eq!(line(b" x ", true), format!("{begin} +  x \n"));
        assert_eq!(line(b"a\0b\xff\xc3", false), format!("{begin} | a\\x00b\\xff\\xc3\n"));
        assert_eq!(line("\x1b[31mé\r".as_bytes(), false), format!("{begin} | \x1b[31mé\r\n"));
        assert_eq!(Label::of_handoff("web").to_text(), " web - - - ");
    }

    #[test]
    fn what_is_written_is_read() {
        for text in ["", " ", "a", "| b", "  c  "] {
            for continues in [false, true] {
                let line = line(text.as_bytes(), continues);
                let record = parse(line.as_bytes()).unwrap();
                assert_eq!((record.text, record.continues), (text.as_bytes(), continues));
                assert_eq!((record.service, record.generation, record.pid), ("web", Some(3), Some(4711)));
                assert_eq!(record.stream, Some(Stream::Out));
                assert_eq!(time_text(record.at_ms), TIME);
                assert_eq!(parse(line.trim_end_matches('\n').as_bytes()), Some(record));
            }
        }
        let unknown = format!("{TIME}{}| text", label(None, None).to_text());
        let record = parse(unknown.as_bytes()).unwrap();
        assert_eq!((record.generation, record.pid, record.stream), (None, None, None));
    }

    #[test]
    fn other_lines_are_not_mistaken_for_one() {
        for other in [
            "",
            "testee 1 starts",
            "2026-12-01T11:40:12.123Z",
            "2026-12-01T11:40:12.123Z web 3 4711 out",
            "2026-12-01T11:40:12.123Z web 3 4711 out text",
            "2026-12-01T11:40:12.123Z web x 4711 out | text",
            "2026-12-01T11:40:12.123Z web 3 4711 log | text",
            "2026-13-01T11:40:12.123Z web 3 4711 out | text",
            "2026-12-01T11:40:12.123Z web 3 4711 out |text",
            "handoff: 3 lines are missing here, because they could not be written: no space",
        ] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
