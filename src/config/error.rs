//! A mistake in a service file, and where it is.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A place in a text file. Both numbers start at 1; a column is a character, not a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Character within the line, from 1.
    pub column: u32,
}

/// A mistake. `Display` writes `file:line:column: key: cause; hint`, the form that editors can jump to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub struct Error {
    /// The file (or, if it could not be listed, the directory).
    pub file: PathBuf,
    /// The place in the file; `None` if the file could not be read.
    #[serde(flatten)]
    pub at: Option<Position>,
    /// The dotted key, if the mistake belongs to one.
    pub key: Option<String>,
    /// What is wrong.
    pub cause: String,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Position { line, column }) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}; {}", self.cause, self.hint)
    }
}

/// Collects all mistakes of one file while it is read.
pub(super) struct Report<'t> {
    file: &'t Path,
    text: &'t str,
    errors: Vec<Error>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t Path, text: &'t str) -> Report<'t> {
        Report { file, text, errors: Vec::new() }
    }

    /// The position of a byte offset. An offset past the end counts as the end.
    pub(super) fn position(&self, offset: usize) -> Position {
        position(self.text.as_bytes(), offset)
    }

    /// Adds a mistake at the start of `span`.
    pub(super) fn add(
        &mut self,
        span: Range<usize>,
        key: Option<String>,
        cause: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let at = Some(self.position(span.start));
        let (cause, hint) = (cause.into(), hint.into());
        self.errors.push(Error { file: self.file.to_owned(), at, key, cause, hint });
    }

    pub(super) fn file(&self) -> &'t Path {
        self.file
    }

    pub(super) fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    /// The mistakes in the order of the file.
    pub(super) fn into_errors(mut self) -> Vec<Error> {
        self.errors.sort_by_key(|error| error.at);
        self.errors
    }
}

/// The position of byte `offset` in `text`, which need not be UTF-8: only bytes that start a character count.
pub(super) fn position(text: &[u8], offset: usize) -> Position {
    let before = &text[..offset.min(text.len())];
    let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before[line_start..].iter().filter(|&&byte| byte & 0xC0 != 0x80).count() + 1;
    Position { line: clamp(line), column: clamp(column) }
}

fn clamp(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        let text = "a = 1\nä = 2\n\nx";
        let at = |needle: &str| position(text.as_bytes(), text.find(needle).unwrap());
        assert_eq!(at("a"), Position { line: 1, column: 1 });
        assert_eq!(at("= 2"), Position { line: 2, column: 3 });
        assert_eq!(at("x"), Position { line: 4, column: 1 });
        assert_eq!(position(text.as_bytes(), 1000), Position { line: 4, column: 2 });
    }
}
