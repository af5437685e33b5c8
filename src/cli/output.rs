//! Where a command writes: standard output for results, standard error for progress and complaints.
//!
//! Writing never fails in the middle of a command: an upgrade goes on, and ends with its own exit code, although
//! the reader of a pipe has left. Any other trouble, such as a full disk, is told at the end.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::exit::{Exit, Failure};

/// The two outputs of a command.
#[derive(Debug)]
pub(super) struct Output {
    /// Whether results are for a program.
    json: bool,
    /// What went wrong with standard output first.
    trouble: Option<io::Error>,
}

impl Output {
    pub(super) fn new(json: bool) -> Output {
        Output { json, trouble: None }
    }

    /// Whether results are for a program.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether there is any use in writing more.
    pub(super) fn is_closed(&self) -> bool {
        self.trouble.is_some()
    }

    /// Writes bytes as they are, and lets them out at once.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if self.trouble.is_none() {
            let mut stdout = io::stdout().lock();
            self.trouble = stdout.write_all(bytes).and_then(|()| stdout.flush()).err();
        }
    }

    /// Writes a line for people.
    pub(super) fn line(&mut self, text: impl Display) {
        self.bytes(format!("{text}\n").as_bytes());
    }

    /// Writes a line for programs.
    pub(super) fn object(&mut self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(text),
            Err(error) => self.trouble = self.trouble.take().or_else(|| Some(error.into())),
        }
    }

    /// Says why the command failed.
    pub(super) fn failure(&mut self, failure: &Failure) {
        if self.json {
            self.object(&failure.to_json());
        } else {
            note(format!("{} {failure}", Style::of_stderr().red("error:")));
        }
    }

    /// The exit code in the light of what happened to the output.
    pub(super) fn finish(self, exit: Exit) -> Exit {
        match self.trouble {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe && exit == Exit::Done => {
                note(format!("error: Standard output cannot be written: {error}."));
                Exit::Failed
            }
            _ => exit,
        }
    }
}

/// Writes a line to standard error, if anybody listens.
pub(super) fn note(text: impl Display) {
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// How many columns standard output has: of the terminal, else as `COLUMNS` says, else 100.
pub(super) fn width() -> usize {
    let terminal = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let told = || std::env::var("COLUMNS").ok()?.parse().ok();
    terminal.filter(|columns| *columns > 0).or_else(told).unwrap_or(100)
}

/// Colours, where they are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    coloured: bool,
}

impl Style {
    pub(super) fn of_stdout() -> Style {
        Style { coloured: io::stdout().is_terminal() && colours_wanted() }
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

    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// <https://no-color.org>: any value but the empty one.
fn colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
