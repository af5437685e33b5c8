//! How a line of a log is shown.

use std::borrow::Cow;

use handoff_protocol::ids::ServiceName;
use serde::Serialize;

use super::super::output::{Output, Style};
use crate::log_record::{Record, stream_name, time_text};

/// The colours of services, in turn: cyan, magenta, blue, green, yellow.
const COLOURS: [&str; 5] = ["36", "35", "34", "32", "33"];

/// Output is written in pieces of about this length.
const PIECE_BYTES: usize = 64 << 10;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Lines as they are stored.
    Stored,
    /// Only what the programs wrote.
    Text,
    /// An object per line.
    Json,
}

/// Writes lines.
pub(super) struct Printer<'a> {
    form: Form,
    services: Vec<ServiceName>,
    /// `None` if standard output is no terminal: then the bytes are written as they are.
    terminal: Option<Style>,
    waiting: Vec<u8>,
    out: &'a mut Output,
}

/// A line for programs.
#[derive(Serialize)]
struct LineObject<'a> {
    service: &'a str,
    time: Option<String>,
    generation: Option<u64>,
    pid: Option<u32>,
    stream: Option<&'static str>,
    line: Cow<'a, str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    continues: bool,
}

impl<'a> Printer<'a> {
    pub(super) fn new(form: Form, services: Vec<ServiceName>, out: &'a mut Output) -> Printer<'a> {
        Printer { form, services, terminal: Style::of_terminal(), waiting: Vec::new(), out }
    }

    /// Prints a line of the service with this index. Returns whether more are of use.
    pub(super) fn print(&mut self, index: usize, line: &[u8], record: Option<&Record<'_>>) -> bool {
        match (self.form, self.terminal) {
            (Form::Json, _) => self.object(index, line, record),
            (Form::Text, terminal) => {
                let text = record.map_or(line, |record| record.text);
                match terminal {
                    Some(style) => self.waiting.extend_from_slice(style.show_text(text).as_bytes()),
                    None => self.waiting.extend_from_slice(text),
                }
                if !record.is_some_and(|record| record.continues) {
                    self.waiting.push(b'\n');
                }
            }
            (Form::Stored, terminal) => self.stored(index, line, record, terminal),
        }
        if self.waiting.len() >= PIECE_BYTES {
            self.flush();
        }
        !self.out.is_closed()
    }

    /// Writes what waits. Returns whether more is of use.
    pub(super) fn flush(&mut self) -> bool {
        if !self.waiting.is_empty() {
            self.out.bytes(&self.waiting);
            self.waiting.clear();
        }
        !self.out.is_closed()
    }

    fn stored(&mut self, index: usize, line: &[u8], record: Option<&Record<'_>>, terminal: Option<Style>) {
        // A line of an older version does not name its service.
        let label = format!("- {} - - - |", self.services[index]);
        let is_named = record.is_some() || self.services.len() == 1;
        let text = record.map_or(line, |record| record.text);
        match terminal {
            Some(style) => {
                let label = match record {
                    Some(_) => {
                        String::from_utf8_lossy(&line[..line.len() - text.len()]).trim_end().to_owned()
                    }
                    None if is_named => String::new(),
                    None => label,
                };
                let colour = COLOURS[index % COLOURS.len()];
                if !label.is_empty() {
                    self.waiting.extend_from_slice(style.paint(colour, &label).as_bytes());
                    self.waiting.push(b' ');
                }
                self.waiting.extend_from_slice(style.show_text(text).as_bytes());
            }
            None => {
                if !is_named {
                    self.waiting.extend_from_slice(label.as_bytes());
                    self.waiting.push(b' ');
                }
                self.waiting.extend_from_slice(line);
            }
        }
        self.waiting.push(b'\n');
    }

    fn object(&mut self, index: usize, line: &[u8], record: Option<&Record<'_>>) {
        let text = record.map_or(line, |record| record.text);
        let object = LineObject {
            service: self.services[index].as_str(),
            time: record.map(|record| time_text(record.at_ms)),
            generation: record.and_then(|record| record.generation),
            pid: record.and_then(|record| record.pid),
            stream: record.and_then(|record| record.stream).map(|stream| stream_name(Some(stream))),
            line: String::from_utf8_lossy(text),
            continues: record.is_some_and(|record| record.continues),
        };
        self.out.object_into(&object, &mut self.waiting);
    }
}
