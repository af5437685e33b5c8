use super::super::log::LogSettings;
use super::*;
use crate::log_record::parse;
use crate::sys::log_pipe::Stream;
use std::io::{PipeWriter, Write};
use std::path::Path;

fn pipe(dir: &Path) -> (Pipe, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let settings = LogSettings { max_size_bytes: 10 << 20, files: 2, ..LogSettings::default() };
    let log = Writer::new(dir.to_owned(), "web", settings);
    (Pipe::new(reader.into(), Rc::new(log), label(None)).unwrap(), writer)
}

fn label(pid: Option<u32>) -> Label {
    Label { service: "web".into(), generation: Some(3), pid, stream: Some(Stream::Err) }
}

/// The lines of the file without their labels.
fn current(dir: &Path) -> Vec<u8> {
    let text = std::fs::read(dir.join("current")).unwrap_or_default();
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    lines.flat_map(|line| [parse(line).expect("a line with a label").text, b"\n"].concat()).collect()
}

#[test]
fn lines_have_the_label_of_their_process() {
    for (known, mark, shown) in [
        (None, &b"\x1elog-pid 0000004711\n"[..], "4711 err | text"),
        (Some(4711), b"\x1elog-pid 0000004711\n", "4711 err | text"),
        (Some(4711), b"", "4711 err | text"),
        (None, b"", "- err | text"),
        (Some(1), b"\x1elog-pid 0000004711\n", "1 err | \x1elog-pid 0000004711\n"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (mut pipe, mut writer) = pipe(dir.path());
        pipe.learn(&label(known));
        writer.write_all(&[mark, b"text\n"].concat()).unwrap();
        pipe.read(&mut Buffer::new());
        let text = std::fs::read_to_string(dir.path().join("current")).unwrap();
        let found = text.split_once(" web 3 ").unwrap().1;
        assert!(found.starts_with(shown), "{known:?} {mark:?}: {text}");
    }
}

#[test]
fn characters_stay_whole_where_a_line_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pipe, mut writer) = pipe(dir.path());
    let mut buffer = Buffer::new();
    let line = format!("a{}\n", "\u{20ac}".repeat(LINE_MAX_BYTES / 3 + 10));
    for piece in line.as_bytes().chunks(10_000) {
        writer.write_all(piece).unwrap();
        pipe.read(&mut buffer);
    }
    let text = std::fs::read(dir.path().join("current")).unwrap();
    let records: Vec<_> =
        text.split_inclusive(|byte| *byte == b'\n').map(|line| parse(line).unwrap()).collect();
    let [first, second] = records[..] else { panic!("{} lines", records.len()) };
    assert!(first.continues && !second.continues);
    assert_eq!([first.text, second.text, b"\n"].concat(), line.as_bytes());
}

#[test]
fn only_whole_lines_are_passed_on_and_the_end_ends_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pipe, mut writer) = pipe(dir.path());
    let mut buffer = Buffer::new();
    assert_eq!(pipe.read(&mut buffer), PipeRead::Nothing);
    writer.write_all(b"one\ntw").unwrap();
    assert_eq!(pipe.read(&mut buffer), PipeRead::Bytes(6));
    assert_eq!(current(dir.path()), b"one\n");
    writer.write_all(b"o\n\nthr").unwrap();
    assert_eq!(pipe.read(&mut buffer), PipeRead::Bytes(6));
    assert_eq!(current(dir.path()), b"one\ntwo\n\n");
    drop(writer);
    assert_eq!(pipe.read(&mut buffer), PipeRead::End);
    assert_eq!(current(dir.path()), b"one\ntwo\n\nthr\n");
}

#[test]
fn a_message_of_a_shim_is_its_own_line_and_leaves_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pipe, mut writer) = pipe(dir.path());
    let mut buffer = Buffer::new();
    let said = format!("\n{LOG_PREFIX}it ended\n");
    for before in ["", "whole\n", "torn", "\n\n", "\nhandoff", ""] {
        writer.write_all(before.as_bytes()).unwrap();
        pipe.read(&mut buffer);
        writer.write_all(said.as_bytes()).unwrap();
        pipe.read(&mut buffer);
    }
    let ended = "handoff: it ended\n";
    let expected = format!("{ended}whole\n{ended}torn\n{ended}\n\n{ended}\nhandoff\n{ended}{ended}");
    assert_eq!(String::from_utf8(current(dir.path())).unwrap(), expected);
}

#[test]
fn a_line_that_comes_in_pieces_stays_whole_up_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pipe, mut writer) = pipe(dir.path());
    let mut buffer = Buffer::new();
    let mut line = vec![b'x'; LINE_MAX_BYTES - 1];
    for piece in line.chunks(999) {
        writer.write_all(piece).unwrap();
        pipe.read(&mut buffer);
    }
    writer.write_all(b"\n").unwrap();
    pipe.read(&mut buffer);
    line.push(b'\n');
    assert_eq!(current(dir.path()), line);
    assert_eq!(pipe.begun.capacity(), 0);
}

#[test]
fn a_longer_line_is_broken_and_no_byte_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pipe, mut writer) = pipe(dir.path());
    let mut buffer = Buffer::new();
    let text: Vec<u8> = (0..5 * LINE_MAX_BYTES).map(|at| b'a' + (at % 26) as u8).collect();
    for piece in text.chunks(40_000) {
        writer.write_all(piece).unwrap();
        while pipe.read(&mut buffer) != PipeRead::Nothing {}
        assert!(pipe.begun.len() <= LINE_MAX_BYTES);
    }
    drop(writer);
    // A process started by another test has the other end too, until its exec.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while pipe.read(&mut buffer) != PipeRead::End {
        assert!(std::time::Instant::now() < until, "it has no end");
        std::thread::yield_now();
    }
    let found = current(dir.path());
    let lines: Vec<&[u8]> = found.split_inclusive(|byte| *byte == b'\n').collect();
    assert!(lines.iter().all(|line| line.len() == LINE_MAX_BYTES + 1), "{} lines", lines.len());
    let joined: Vec<u8> = found.iter().copied().filter(|byte| *byte != b'\n').collect();
    assert!(joined == text);
}
