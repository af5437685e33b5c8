//! Reads typed values from a TOML table, and reports values that do not fit, with their position.

mod several;

use std::borrow::Cow;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::error::{Position, Report};
use super::names::{explained, meant, nearest};
use super::units::{parse_duration_ms, parse_size_bytes};

/// Maximum number of known keys that a mistake lists.
const LISTED_MAX: usize = 15;
/// The name of a listener in examples.
const LISTENER: &str = "web";

/// One table of a service file. A getter returns `None` for a missing key and for a wrong value. The latter is in the
/// report, so a caller can continue with a default and find all mistakes.
pub(super) struct Section<'t> {
    /// Dotted prefix of the keys: empty, or `log.`.
    prefix: Cow<'static, str>,
    table: &'t DeTable<'t>,
    span: Range<usize>,
}

/// A value, and its place in the text.
pub(super) struct Spanned<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// A value that is a string or a table.
pub(super) enum Field<'t> {
    Text(Spanned<String>),
    Table(Range<usize>, Section<'t>),
}

impl<'t> Section<'t> {
    pub(super) fn root(table: &'t DeTable<'t>, span: Range<usize>) -> Section<'t> {
        Section { prefix: "".into(), table, span }
    }

    /// The table under `key`, whose keys are reported with `prefix`.
    pub(super) fn section(
        &self,
        report: &mut Report,
        key: &'static str,
        prefix: &'static str,
    ) -> Option<Section<'t>> {
        let found = self.get(key)?;
        match found.value {
            DeValue::Table(table) => Some(Section { prefix: prefix.into(), table, span: found.span }),
            other => {
                self.wrong_type(report, key, found.span, "a table", other, &format!("write it as [{key}]"))
            }
        }
    }

    /// Reports each key that is not in `known`, with the nearest known one.
    pub(super) fn refuse_unknown(&self, report: &mut Report, known: &[&'static str]) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let near = meant(name).filter(|meant| self.prefix.is_empty() && known.contains(meant));
            let hint = match near.or_else(|| nearest(name, known.iter().copied())) {
                Some("listen") if name != "listen" => {
                    format!(
                        "write the addresses as a table: [listen], with {} = \"127.0.0.1:8080\"",
                        LISTENER
                    )
                }
                Some(near) => format!("did you mean {:?}?", format!("{}{near}", self.prefix)),
                None => match self.prefix.is_empty().then(|| explained(name)).flatten() {
                    Some(explained) => explained.to_owned(),
                    None if known.len() > LISTED_MAX => "docs/service-file.md lists the keys".to_owned(),
                    None => format!("known keys are {}", known.join(", ")),
                },
            };
            report.add(key.span(), Some(self.dotted(name)), "unknown key", hint);
        }
    }

    /// Reports a required key that is missing.
    pub(super) fn missing(&self, report: &mut Report, key: &'static str, example: &str) {
        report.add(
            self.span.start..self.span.start,
            Some(self.dotted(key)),
            "required key is missing",
            example,
        );
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether there is a table under `key`.
    pub(super) fn is_table(&self, key: &str) -> bool {
        self.get(key).is_some_and(|found| matches!(found.value, DeValue::Table(_)))
    }

    pub(super) fn is_array(&self, key: &str) -> bool {
        self.get(key).is_some_and(|found| matches!(found.value, DeValue::Array(_)))
    }

    pub(super) fn string(
        &self,
        report: &mut Report,
        key: &'static str,
        example: &str,
    ) -> Option<Spanned<&'t str>> {
        let found = self.get(key)?;
        match found.value {
            DeValue::String(text) => Some(Spanned { value: text, span: found.span }),
            other => self.wrong_type(report, key, found.span, "a string", other, example),
        }
    }

    pub(super) fn boolean(&self, report: &mut Report, key: &'static str) -> Option<bool> {
        self.boolean_with(report, key, "write true or false")
    }

    pub(super) fn boolean_with(&self, report: &mut Report, key: &'static str, hint: &str) -> Option<bool> {
        let found = self.get(key)?;
        match found.value {
            DeValue::Boolean(value) => Some(*value),
            other => self.wrong_type(report, key, found.span, "a boolean", other, hint),
        }
    }

    /// A boolean, or one of a few words.
    pub(super) fn boolean_or<T: Copy>(
        &self,
        report: &mut Report,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<Result<bool, T>> {
        let words: String = choices.iter().map(|(word, _)| format!(" or {word:?}")).collect();
        let hint = format!("write true or false{words}");
        let found = self.get(key)?;
        let DeValue::String(given) = found.value else {
            let DeValue::Boolean(value) = found.value else {
                return self.wrong_type(report, key, found.span, "a boolean", found.value, &hint);
            };
            return Some(Ok(*value));
        };
        match choices.iter().find(|(word, _)| *word == given) {
            Some((_, choice)) => Some(Err(*choice)),
            None => {
                self.wrong(report, key, found.span, &format!("{given:?} is not one of its values"), &hint)
            }
        }
    }

    /// All keys of this table with their string values, for tables whose keys the user chooses.
    pub(super) fn entries(&self, report: &mut Report) -> Vec<(Spanned<&'t str>, Spanned<String>)> {
        let mut entries = Vec::with_capacity(self.table.len());
        for (key, value) in self.table {
            let name: &str = key.get_ref();
            if let Some(text) = self.plain_string(report, name, value.span(), value.get_ref()) {
                entries.push((
                    Spanned { value: name, span: key.span() },
                    Spanned { value: text, span: value.span() },
                ));
            }
        }
        entries
    }

    /// All keys of this table with their values, which are strings or tables.
    pub(super) fn fields(&self, report: &mut Report) -> Vec<(Spanned<&'t str>, Field<'t>)> {
        let mut fields = Vec::with_capacity(self.table.len());
        for (key, value) in self.table {
            let name: &str = key.get_ref();
            let field = match value.get_ref() {
                DeValue::Table(table) => {
                    let prefix = Cow::from(format!("{}{name}.", self.prefix));
                    Some(Field::Table(value.span(), Section { prefix, table, span: value.span() }))
                }
                other => self
                    .plain_string(report, name, value.span(), other)
                    .map(|text| Field::Text(Spanned { value: text, span: value.span() })),
            };
            fields.extend(field.map(|field| (Spanned { value: name, span: key.span() }, field)));
        }
        fields
    }

    /// A duration of at least `least_ms`, with its place.
    pub(super) fn duration_ms(
        &self,
        report: &mut Report,
        key: &'static str,
        least_ms: u64,
    ) -> Option<Spanned<u64>> {
        let hint = "write a duration such as \"500ms\", \"30s\" or \"5m\"";
        let found = self.string(report, key, hint)?;
        match parse_duration_ms(found.value) {
            Ok(ms) if ms >= least_ms => Some(Spanned { value: ms, span: found.span }),
            Ok(_) => self.wrong(report, key, found.span, "must be longer than nothing", hint),
            Err(cause) => self.wrong(report, key, found.span, &cause, hint),
        }
    }

    /// A size of at least `least` bytes.
    pub(super) fn size_bytes(&self, report: &mut Report, key: &'static str, least: u64) -> Option<u64> {
        let hint = "write a size such as \"512KiB\" or \"10MiB\"";
        let found = self.string(report, key, hint)?;
        match parse_size_bytes(found.value) {
            Ok(bytes) if bytes >= least => Some(bytes),
            Ok(bytes) => {
                let cause = format!("{bytes} bytes is less than the {least} that are needed");
                self.wrong(report, key, found.span, &cause, hint)
            }
            Err(cause) => self.wrong(report, key, found.span, &cause, hint),
        }
    }

    /// A whole number within `range`.
    pub(super) fn count(
        &self,
        report: &mut Report,
        key: &'static str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Option<u32> {
        let hint = format!("write a whole number from {} to {}", range.start(), range.end());
        let found = self.get(key)?;
        let DeValue::Integer(integer) = found.value else {
            return self.wrong_type(report, key, found.span, "a whole number", found.value, &hint);
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => self.wrong(report, key, found.span, &format!("{integer} is out of range"), &hint),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        report: &mut Report,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        let hint = format!("write {}", words.join(" or "));
        let found = self.string(report, key, &hint)?;
        match choices.iter().find(|(word, _)| *word == found.value) {
            Some((_, choice)) => Some(*choice),
            None => self.wrong(
                report,
                key,
                found.span,
                &format!("{:?} is not one of its values", found.value),
                &hint,
            ),
        }
    }

    /// Reports a value of the right type that is not acceptable.
    pub(super) fn wrong<T>(
        &self,
        report: &mut Report,
        key: &str,
        span: Range<usize>,
        cause: &str,
        hint: &str,
    ) -> Option<T> {
        report.add(span, Some(self.dotted(key)), cause, hint);
        None
    }

    /// Reports a key that must not be there, if it exists.
    pub(super) fn refuse(&self, report: &mut Report, key: &str, cause: &str, hint: &str) {
        if let Some(found) = self.get(key) {
            self.wrong::<()>(report, key, found.span, cause, hint);
        }
    }

    /// The start of the value of a key, if the key exists.
    pub(super) fn at(&self, report: &Report, key: &str) -> Option<Position> {
        self.get(key).map(|found| report.position(found.span.start))
    }

    fn get(&self, key: &str) -> Option<Spanned<&'t DeValue<'t>>> {
        let value = self.table.get(key)?;
        Some(Spanned { value: value.get_ref(), span: value.span() })
    }

    fn plain_string(
        &self,
        report: &mut Report,
        key: &str,
        span: Range<usize>,
        value: &DeValue,
    ) -> Option<String> {
        match value {
            DeValue::String(text) if text.contains('\0') => {
                self.wrong(report, key, span, "has a zero byte in it", "remove the \\u0000")
            }
            DeValue::String(text) => Some(text.to_string()),
            other => self.wrong_type(report, key, span, "a string", other, "put it in quotes"),
        }
    }

    fn wrong_type<T>(
        &self,
        report: &mut Report,
        key: &str,
        span: Range<usize>,
        expected: &str,
        value: &DeValue,
        hint: &str,
    ) -> Option<T> {
        self.wrong(report, key, span, &format!("expected {expected}, found {}", type_name(value)), hint)
    }

    fn dotted(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl<T> Spanned<T> {
    /// The start of the value.
    pub(super) fn at(&self, report: &Report) -> Position {
        report.position(self.span.start)
    }
}

fn type_name(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
