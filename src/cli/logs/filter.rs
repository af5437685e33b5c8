//! Which lines of a log are wanted.

use regex::bytes::Regex;

use crate::log_record::Record;
use crate::sys::log_pipe::Stream;

/// What a line must be to be shown.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// Milliseconds since 1970-01-01 UTC.
    pub(super) since_ms: Option<u64>,
    /// The same; a line at this moment is not wanted any more.
    pub(super) until_ms: Option<u64>,
    pub(super) pattern: Option<Regex>,
    pub(super) stream: Option<Stream>,
}

impl Filter {
    /// Whether every line is wanted.
    pub(super) fn is_empty(&self) -> bool {
        self.since_ms.is_none() && self.until_ms.is_none() && self.pattern.is_none() && self.stream.is_none()
    }

    /// Whether a line of this service is wanted. `line` is all of it; a line of an older version has no record.
    pub(super) fn matches(&self, service: &str, line: &[u8], record: Option<&Record<'_>>) -> bool {
        let Some(record) = record else {
            let needs_label = self.since_ms.is_some() || self.until_ms.is_some() || self.stream.is_some();
            return !needs_label && self.is_match(line);
        };
        // Two services may have the same directory.
        record.service == service
            && self.since_ms.is_none_or(|since| record.at_ms >= since)
            && self.until_ms.is_none_or(|until| record.at_ms < until)
            && self.stream.is_none_or(|stream| record.stream == Some(stream))
            && self.is_match(record.text)
    }

    fn is_match(&self, text: &[u8]) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_record::{parse, time_of};

    const LINE: &[u8] = b"2026-12-01T11:40:12.123Z web 3 4711 err | GET /x 500";

    fn matches(filter: &Filter, service: &str, line: &[u8]) -> bool {
        filter.matches(service, line, parse(line).as_ref())
    }

    #[test]
    fn each_condition_counts() {
        let at = time_of(LINE).unwrap();
        let pattern = |text: &str| Some(Regex::new(text).unwrap());
        let all = Filter::default;
        for (filter, expected) in [
            (all(), true),
            (Filter { since_ms: Some(at), ..all() }, true),
            (Filter { since_ms: Some(at + 1), ..all() }, false),
            (Filter { until_ms: Some(at), ..all() }, false),
            (Filter { until_ms: Some(at + 1), ..all() }, true),
            (Filter { stream: Some(Stream::Err), ..all() }, true),
            (Filter { stream: Some(Stream::Out), ..all() }, false),
            (Filter { pattern: pattern("^GET .* 5..$"), ..all() }, true),
            (Filter { pattern: pattern("4711"), ..all() }, false),
            (Filter { pattern: pattern("GET"), stream: Some(Stream::Out), ..all() }, false),
        ] {
            assert_eq!(matches(&filter, "web", LINE), expected, "{filter:?}");
        }
        assert!(!matches(&all(), "other", LINE));
    }

    #[test]
    fn a_line_without_a_label_matches_only_its_text() {
        let pattern = Some(Regex::new("old").unwrap());
        assert!(matches(&Filter::default(), "web", b"old line"));
        assert!(matches(&Filter { pattern: pattern.clone(), ..Filter::default() }, "web", b"old line"));
        assert!(!matches(&Filter { pattern, ..Filter::default() }, "web", b"line"));
        assert!(!matches(&Filter { since_ms: Some(0), ..Filter::default() }, "web", b"old line"));
        assert!(!matches(&Filter { stream: Some(Stream::Out), ..Filter::default() }, "web", b"old line"));
    }
}
