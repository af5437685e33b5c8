//! `handoff logs`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::exit::{Exit, Failure, known_services};
use super::follow::{Follower, LogFile, open_all};
use super::output::{Output, note};
use super::{Json, names};
use crate::config::Dirs;
use crate::control;

const CHUNK_BYTES: usize = 64 << 10;

/// Default number of old lines with `-f`.
const FOLLOW_TAIL_LINES: u64 = 10;

const EXAMPLES: &str = "\
Examples:
  handoff logs s3
      everything that is kept
  handoff logs s3 --tail 100
      the last hundred lines
  handoff logs s3 -f
      the last ten lines and all new ones, through rotation
  handoff logs s3 --json | jq -r .line

It reads the files directly, so it works without a daemon.";

/// Print what a service wrote to standard output and standard error
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    #[arg(value_parser = names::service)]
    service: ServiceName,
    /// Continue with new lines, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Start with the last N lines [default: all, with --follow 10]
    #[arg(long, value_name = "N", value_parser = |text: &str| super::whole_number(text, 0))]
    tail: Option<u64>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let service = &arguments.service;
    let known = known_services(dirs);
    if !known.iter().any(|name| name == service.as_str()) {
        return Err(control::Error::unknown_service(service, known.iter().map(String::as_str)).into());
    }
    let directory = dirs.log_dir(service);
    let mut printer = Printer { service, partial: Vec::new(), out };
    let tail = arguments.tail.or(arguments.follow.then_some(FOLLOW_TAIL_LINES));
    print(arguments.follow, tail, &directory, &mut printer)
        .map(|()| Exit::Done)
        .map_err(|error| unreadable(service, &directory, &error))
}

fn print(follow: bool, tail: Option<u64>, directory: &Path, printer: &mut Printer) -> io::Result<()> {
    // Before the first read, so that no line is lost between reading and following.
    let follower = follow.then(|| Follower::watch(directory)).transpose()?;
    let mut files = match open_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    if files.is_empty() && !follow {
        note(format!("Service {} has written nothing yet.", printer.service));
    }
    let first = tail.map_or(Ok(files.len()), |lines| keep_tail(&mut files, lines))?;
    for file in files[..first].iter_mut().rev() {
        copy(&mut file.file, printer)?;
    }
    match follower {
        Some(follower) => follower.run(files.into_iter().next(), |file| {
            copy(file, printer)?;
            Ok(!printer.out.is_closed())
        })?,
        None => printer.end(),
    }
    Ok(())
}

/// Sets the files (newest first) to the start of their last `lines` lines. Returns how many files contain some of
/// them.
fn keep_tail(files: &mut [LogFile], mut lines: u64) -> io::Result<usize> {
    for (index, LogFile { file, .. }) in files.iter_mut().enumerate() {
        // The newest file counts even if none of its lines are wanted: it is the one to follow.
        let (start, missing) = tail_start(file, lines)?;
        file.seek(SeekFrom::Start(start))?;
        if missing == 0 {
            return Ok(index + 1);
        }
        lines = missing;
    }
    Ok(files.len())
}

/// The start of the last `lines` lines of a file, and how many lines are missing.
fn tail_start(file: &mut File, lines: u64) -> io::Result<(u64, u64)> {
    let end = file.seek(SeekFrom::End(0))?;
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

/// Copies from the current position of the file to its current end.
fn copy(file: &mut File, printer: &mut Printer) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    while !printer.out.is_closed() {
        match file.read(&mut chunk)? {
            0 => break,
            length => printer.print(&chunk[..length]),
        }
    }
    Ok(())
}

/// Writes a log: for people as it is, for programs one object per line.
struct Printer<'a> {
    service: &'a ServiceName,
    /// The start of a line whose end has not come yet. Only for programs.
    partial: Vec<u8>,
    out: &'a mut Output,
}

impl Printer<'_> {
    fn print(&mut self, bytes: &[u8]) {
        if !self.out.is_json() {
            return self.out.bytes(bytes);
        }
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(rest) => {
                    self.partial.extend_from_slice(rest);
                    self.object();
                }
                None => self.partial.extend_from_slice(piece),
            }
        }
    }

    /// Ends the log: an incomplete line becomes an object.
    fn end(&mut self) {
        if !self.partial.is_empty() {
            self.object();
        }
    }

    fn object(&mut self) {
        let line = String::from_utf8_lossy(&self.partial);
        self.out.object(&json!({ "service": self.service, "line": line }));
        self.partial.clear();
    }
}

fn unreadable(service: &ServiceName, directory: &Path, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        let message = format!("Service {:?} has no log yet: {directory:?} does not exist.", service.as_str());
        return Failure::failed(message, format!("Start it: handoff start {service}"));
    }
    let message =
        format!("The log of service {:?} in {directory:?} cannot be read: {error}.", service.as_str());
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "Check the permissions of the state directory.",
        _ => "",
    };
    Failure::failed(message, hint)
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
            assert_eq!(tail_start(&mut file, lines).unwrap(), expected, "{lines} lines");
        }
        assert_eq!(tail_start(&mut tempfile::tempfile().unwrap(), 3).unwrap(), (0, 3));
    }

    #[test]
    fn the_tail_of_a_file_longer_than_a_chunk() {
        let mut file = tempfile::tempfile().unwrap();
        for number in 0..20_000 {
            writeln!(file, "line {number:05}").unwrap();
        }
        let (start, missing) = tail_start(&mut file, 15_000).unwrap();
        assert_eq!((start, missing), (5_000 * 11, 0));
    }
}
