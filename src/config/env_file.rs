//! Files of environment variables: the form of dotenv, and of systemd's `EnvironmentFile=` without its continued lines.
//!
//! A line is `NAME=value`, perhaps after `export `. A value in quotes may span lines. Nothing is expanded. No message
//! contains a value, because values are often secrets.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::Report;
use super::error::{Error, Position, position};
use super::table::Section;
use crate::sys::exposed::{Exposed, FileUse, check_exposure};
use crate::sys::regular;

/// Maximum size of a file. A wrong path must not fill the memory.
const LARGEST_FILE_BYTES: u64 = 64 << 10;
/// Maximum number of files of a service.
const FILES_MAX: usize = 16;
const EXAMPLE: &str = "write env_file = \"/etc/web.env\", or a list of such paths";
const KEY: &str = "env_file";

/// A file of environment variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Whether it may be missing.
    pub is_optional: bool,
    /// Its place in the service file.
    pub at: Position,
}

/// Reads the key `env_file`: a path or a list of paths. A `-` before a path allows the file to be missing.
pub(super) fn read_key(report: &mut Report, root: &Section) -> Vec<EnvFile> {
    let given = root.one_or_more(report, KEY, EXAMPLE).unwrap_or_default();
    if given.len() > FILES_MAX {
        root.refuse(
            report,
            KEY,
            &format!("names {} files", given.len()),
            &format!("at most {FILES_MAX} are read"),
        );
    }
    let mut files = Vec::with_capacity(given.len());
    for item in given {
        let (is_optional, path) = match item.value.strip_prefix('-') {
            Some(path) => (true, Path::new(path)),
            None => (false, Path::new(&item.value)),
        };
        if path.is_absolute() {
            files.push(EnvFile { path: path.to_owned(), is_optional, at: item.at(report) });
        } else {
            root.wrong::<()>(report, KEY, item.span, &format!("{path:?} is not an absolute path"), EXAMPLE);
        }
    }
    files
}

impl EnvFile {
    /// The variables of the file in order, none if it is optional and missing. On failure all mistakes. `service` is
    /// the service file. Blocks on the file system.
    pub fn read(&self, service: &Path) -> Result<Vec<(String, String)>, Vec<Error>> {
        let whole = |cause: String, hint: &str| {
            let (file, key) = (service.to_owned(), Some(KEY.to_owned()));
            vec![Error { file, at: Some(self.at), key, cause, hint: hint.to_owned() }]
        };
        match check_exposure(&self.path, FileUse::Named) {
            Err(Exposed::Unreadable(_, error)) if error.kind() == std::io::ErrorKind::NotFound => {
                if self.is_optional {
                    return Ok(Vec::new());
                }
                let hint = format!("create it, or write \"-{}\" if it may be missing", self.path.display());
                return Err(whole(format!("{:?} does not exist", self.path), &hint));
            }
            // The read that follows reports the cause.
            Ok(_) | Err(Exposed::Unreadable(..)) => {}
            Err(exposed) => return Err(whole(exposed.to_string(), &exposed.hint())),
        }
        let bytes = self.bytes().map_err(|error| {
            whole(format!("{:?} cannot be read: {error}", self.path), "check the file and its permissions")
        })?;
        parse(&bytes).map_err(|mistakes| {
            let mistakes = mistakes.into_iter().map(|mistake| Error { file: self.path.clone(), ..mistake });
            mistakes.collect()
        })
    }

    fn bytes(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        regular::open_to_read(&self.path)?.take(LARGEST_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST_FILE_BYTES {
            return Err(std::io::Error::other(format!("it is larger than {LARGEST_FILE_BYTES} bytes")));
        }
        Ok(bytes)
    }
}

/// Why a line is wrong: where, the name of the variable if it is known, the cause, and what to do.
struct Mistake {
    offset: usize,
    name: Option<String>,
    cause: &'static str,
    hint: &'static str,
}

/// The variables in order. A later one of the same name comes later.
fn parse(bytes: &[u8]) -> Result<Vec<(String, String)>, Vec<Error>> {
    let mistake = |Mistake { offset, name, cause, hint }| Error {
        file: PathBuf::new(),
        at: Some(position(bytes, offset)),
        key: name,
        cause: cause.to_owned(),
        hint: hint.to_owned(),
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let (offset, cause) = (error.valid_up_to(), "this is not UTF-8");
            return Err(vec![mistake(Mistake { offset, name: None, cause, hint: "save the file as UTF-8" })]);
        }
    };
    if let Some(offset) = text.find('\0') {
        let cause = "there is a zero byte here";
        return Err(vec![mistake(Mistake { offset, name: None, cause, hint: "remove it" })]);
    }
    let (mut variables, mut mistakes) = (Vec::new(), Vec::new());
    let mut at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    while at < text.len() {
        let line_end = end_of_line(text, at);
        match entry(text, at, line_end) {
            Ok((variable, next)) => {
                variables.extend(variable);
                at = next;
            }
            Err(found) => {
                mistakes.push(mistake(found));
                at = line_end + 1;
            }
        }
    }
    if mistakes.is_empty() { Ok(variables) } else { Err(mistakes) }
}

fn end_of_line(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |found| at + found)
}

type Entry = (Option<(String, String)>, usize);

/// Reads the entry that begins in the line from `at` to `end`. Returns where the next line begins.
fn entry(text: &str, at: usize, end: usize) -> Result<Entry, Mistake> {
    let line = &text[at..end];
    let content = line.trim_start();
    if content.trim_end().is_empty() || content.starts_with(['#', ';']) {
        return Ok((None, end + 1));
    }
    let begin = at + line.len() - content.len();
    let unnamed = |cause, hint| Mistake { offset: begin, name: None, cause, hint };
    let Some((name, _)) = content.split_once('=') else {
        return Err(unnamed("this line has no '='", "write NAME=value, or begin a comment with #"));
    };
    let name_end = begin + name.len();
    let name = name.strip_prefix("export ").unwrap_or(name).trim();
    if !is_name(name) {
        let hint = "write NAME=value, with a name of letters, digits and _ that begins with no digit";
        return Err(unnamed("this is no name of a variable", hint));
    }
    let wrong = |offset, cause, hint| Mistake { offset, name: Some(name.to_owned()), cause, hint };
    let from = name_end + 1;
    let value = &text[from..end];
    let quoted = value.trim_start();
    let start = from + value.len() - quoted.len();
    let (value, next) = match quoted.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let (value, after) = in_quotes(text, start, quote)
                .ok_or_else(|| wrong(start, "the quote here is not closed", "close it, or remove it"))?;
            let end = end_of_line(text, after);
            let rest = text[after..end].trim();
            if !rest.is_empty() && !rest.starts_with('#') {
                let hint = "put the whole value in quotes, or a comment behind #";
                return Err(wrong(after, "there is text after the closing quote", hint));
            }
            (value, end + 1)
        }
        _ => {
            let value = without_comment(quoted).trim_end();
            if value.ends_with('\\') {
                let hint = "put the value in quotes: it may have several lines then";
                return Err(wrong(end, "the line ends with a backslash", hint));
            }
            (value.to_owned(), end + 1)
        }
    };
    Ok((Some((name.to_owned(), value)), next))
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A `#` begins a comment at the start and behind a blank: it may be part of a word.
fn without_comment(value: &str) -> &str {
    let begins = |(at, _): &(usize, &str)| *at == 0 || value[..*at].ends_with([' ', '\t']);
    value.match_indices('#').find(begins).map_or(value, |(at, _)| &value[..at])
}

/// The value in the quotes that open at `start`, and where the text goes on. Only double quotes have escapes.
fn in_quotes(text: &str, start: usize, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut characters = text[start + 1..].char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            _ if character == quote => return Some((value, start + 1 + at + 1)),
            '\\' if quote == '"' => match characters.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                same @ ('"' | '\\' | '$' | '`') => value.push(same),
                other => value.extend(['\\', other]),
            },
            // A file of Windows.
            '\r' if text[start + 1 + at..].starts_with("\r\n") => {}
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
#[path = "env_file_tests.rs"]
mod tests;
