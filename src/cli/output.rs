//! The output of a command: standard output for results, standard error for progress and errors.
//!
//! Writing never fails in the middle of a command. An upgrade continues and ends with its own exit code even if the
//! reader of a pipe is gone. Any other error, such as a full disk, is reported at the end.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::exit::{Exit, Failure};
use super::variable;
use crate::control::api::LastLines;
use crate::sys::terminal;

/// The two outputs of a command.
#[derive(Debug)]
pub(super) struct Output {
    /// Whether results are for a program.
    json: bool,
    /// The first error of standard output.
    first_error: Option<io::Error>,
}

impl Output {
    pub(super) fn new(json: bool) -> Output {
        Output { json, first_error: None }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether standard output has failed, so that more output is useless.
    pub(super) fn is_closed(&self) -> bool {
        self.first_error.is_some()
    }

    /// Writes bytes as they are, and flushes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if self.first_error.is_none() {
            let mut stdout = io::stdout().lock();
            self.first_error = stdout.write_all(bytes).and_then(|()| stdout.flush()).err();
        }
    }

    /// Writes a line for people.
    pub(super) fn line(&mut self, text: impl Display) {
        self.bytes(format!("{}\n", Style::of_stdout().escape_controls(&text.to_string())).as_bytes());
    }

    /// Writes a line for programs.
    pub(super) fn object(&mut self, value: &impl Serialize) {
        let mut line = Vec::new();
        self.object_into(value, &mut line);
        self.bytes(&line);
    }

    /// Appends a line for programs to `waiting`, in place of writing it.
    pub(super) fn object_into(&mut self, value: &impl Serialize, waiting: &mut Vec<u8>) {
        match serde_json::to_string(value) {
            Ok(text) => waiting.extend_from_slice(json_line(&text).as_bytes()),
            Err(error) => self.first_error = self.first_error.take().or_else(|| Some(error.into())),
        }
    }

    /// Reports why the command failed.
    pub(super) fn failure(&mut self, failure: &Failure) {
        if self.json {
            self.object(&failure.to_json());
        } else {
            note(format!("{} {failure}", Style::of_stderr().red("error:")));
            failure.last_lines().into_iter().for_each(|lines| note(last_lines_text(lines)));
        }
    }

    /// The exit code, changed if the output failed.
    pub(super) fn finish(self, exit: Exit) -> Exit {
        match self.first_error {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe && exit == Exit::Done => {
                note(format!("error: Standard output cannot be written: {error}."));
                Exit::Failed
            }
            _ => exit,
        }
    }
}

/// JSON escapes the characters below the space. A terminal also acts on others.
fn json_line(text: &str) -> String {
    format!("{}\n", escaped(text, |c| format!("\\u{:04x}", u32::from(c))))
}

/// Writes a line to standard error, if it is open.
pub(super) fn note(text: impl Display) {
    let text = Style::of_stderr().escape_controls(&text.to_string());
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// The colours of this command.
const COLOURS: [&str; 5] = ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[1m", "\x1b[0m"];

fn hexadecimal(character: char) -> String {
    match u32::from(character) {
        code @ ..=0xff => format!("\\x{code:02x}"),
        code => format!("\\u{{{code:x}}}"),
    }
}

/// Whether a character changes the direction of the text around it, so that other text is shown than is there.
fn turns_text(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A value that comes from outside, as one line: the name of a file or what a program says must not look like a line of
/// this command.
pub(super) fn one_line(value: &str) -> String {
    value.replace('\n', "\\n")
}

/// The last lines of a process that failed, each on a line of its own.
pub(super) fn last_lines_text(last: &LastLines) -> String {
    let LastLines { pid, generation, lines } = last;
    let lines: String = lines.iter().map(|line| format!("\n  | {}", one_line(line))).collect();
    format!("The last lines of that process (pid {pid}, generation {generation}):{lines}")
}

fn escaped(text: &str, escape: fn(char) -> String) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let acts = character.is_control() && !matches!(character, '\n' | '\t');
        match acts || turns_text(character) {
            true => shown += &escape(character),
            false => shown.push(character),
        }
    }
    shown
}

/// The width of standard output in columns: of the terminal, else from `COLUMNS`.
pub(super) fn terminal_width() -> Option<usize> {
    let shown = terminal::width(io::stdout()).map(usize::from);
    let from_environment = || std::env::var("COLUMNS").ok()?.parse().ok();
    // Wider is no terminal.
    shown.or_else(from_environment).filter(|columns| (1..=10_000).contains(columns))
}

/// Colours, if wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    coloured: bool,
}

impl Style {
    pub(super) fn of_stdout() -> Style {
        Style { coloured: io::stdout().is_terminal() && colours_wanted() }
    }

    /// The style of standard output, if that is a terminal.
    pub(super) fn of_terminal() -> Option<Style> {
        io::stdout().is_terminal().then(Style::of_stdout)
    }

    pub(super) fn of_stderr() -> Style {
        Style { coloured: io::stderr().is_terminal() && colours_wanted() }
    }

    pub(super) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(super) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A text that cannot control a terminal. Much of the output comes from a program: its status, version, errors and
    /// paths. Characters that would move the cursor, change the title or the like are written as `\x1b`. Colours of this
    /// command stay where colours are wanted: at worst, a program changes the colour of its own text.
    pub(super) fn escape_controls(self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('\x1b') {
            shown += &escaped(&rest[..at], hexadecimal);
            let own = COLOURS.iter().find(|own| self.coloured && rest[at..].starts_with(**own));
            shown += own.copied().unwrap_or("\\x1b");
            rest = &rest[at + own.map_or(1, |own| own.len())..];
        }
        shown + &escaped(rest, hexadecimal)
    }

    /// What a program wrote, as a line that cannot control a terminal. Its colours stay where colours are wanted, and end
    /// with the line.
    pub(super) fn show_text(self, text: &[u8]) -> String {
        let text = String::from_utf8_lossy(text);
        let (mut shown, mut is_coloured) = (String::with_capacity(text.len()), false);
        let mut rest = &*text;
        while let Some(at) = rest.find('\x1b') {
            shown += &escaped(&rest[..at], hexadecimal);
            let colour = colour_length(&rest[at..]);
            match colour {
                Some(length) if self.coloured => shown += &rest[at..at + length],
                Some(_) => {}
                None => shown += "\\x1b",
            }
            is_coloured |= colour.is_some() && self.coloured;
            rest = &rest[at + colour.unwrap_or(1)..];
        }
        shown += &escaped(rest.trim_end_matches('\r'), hexadecimal);
        shown + if is_coloured { "\x1b[0m" } else { "" }
    }

    /// The text in a colour, by the number of that in ECMA-48.
    pub(super) fn paint(self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The length of the sequence at the start of a text, if it only sets colours and the like ("SGR").
fn colour_length(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';' && c != ':')?;
    parameters[end..].starts_with('m').then_some(2 + end + 1)
}

/// <https://no-color.org>: any non-empty value turns colours off.
fn colours_wanted() -> bool {
    variable("NO_COLOR").is_none() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_only_shows_what_a_program_says() {
        let table = [
            ("a\tb\nä", "a\tb\nä"),
            ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
            ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            ("\x1b[2J\x1b", "\\x1b[2J\\x1b"),
            ("\u{9b}2J\x7f\r", "\\x9b2J\\x7f\\x0d"),
            ("a\u{202e}b\u{2066}c", "a\\u{202e}b\\u{2066}c"),
        ];
        for (text, shown) in table {
            assert_eq!(Style { coloured: true }.escape_controls(text), shown);
        }
        let plain = Style { coloured: false };
        assert_eq!(plain.escape_controls("\x1b[31mred\x1b[0m"), "\\x1b[31mred\\x1b[0m");
    }

    #[test]
    fn a_program_keeps_its_colours_and_nothing_else() {
        let table = [
            ("plain\tä", "plain\tä", "plain\tä"),
            ("\x1b[1;31mred\x1b[0m x\r", "\x1b[1;31mred\x1b[0m x\x1b[0m", "red x"),
            ("\x1b[2J\x1b]0;t\x07\r.", "\\x1b[2J\\x1b]0;t\\x07\\x0d.", "\\x1b[2J\\x1b]0;t\\x07\\x0d."),
            ("\x1b[31", "\\x1b[31", "\\x1b[31"),
        ];
        for (text, coloured, plain) in table {
            assert_eq!(Style { coloured: true }.show_text(text.as_bytes()), coloured);
            assert_eq!(Style { coloured: false }.show_text(text.as_bytes()), plain);
        }
    }
}
