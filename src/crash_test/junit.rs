//! The report in JUnit format, for build servers.

use std::fmt::Write;

use super::report::{Entry, Report};
use super::run::RunResult;

pub(super) fn junit(report: &Report) -> String {
    let Report { runs, failed, missed, took_ms, .. } = report;
    let seconds = *took_ms as f64 / 1e3;
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuite name=\"handoff crash-test\" tests=\"{runs}\" failures=\"{failed}\" skipped=\"{missed}\" time=\"{seconds}\">\n"
    );
    for entry in &report.entries {
        case(&mut text, entry);
    }
    text.push_str("</testsuite>\n");
    text
}

fn case(text: &mut String, entry: &Entry) {
    let (class, name) = (escape(&entry.scenario.to_string()), escape(&entry.run));
    // Writing to a string does not fail.
    let _ = write!(text, "  <testcase classname=\"{class}\" name=\"{name}\"");
    let _ = match &entry.verdict {
        RunResult::Held => writeln!(text, "/>"),
        RunResult::Missed => writeln!(text, "><skipped message=\"the point was not reached\"/></testcase>"),
        RunResult::Failed(problems) => {
            let (message, log) = (escape(&problems.join("; ")), escape(&entry.log));
            writeln!(text, "><failure message=\"{message}\">{log}</failure></testcase>")
        }
    };
}

/// XML has no form for most control characters, not even an escaped one.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_special_in_xml_is_escaped() {
        assert_eq!(escape("a<b> & \"c\"\u{1b}[0m"), "a&lt;b&gt; &amp; &quot;c&quot;\u{fffd}[0m");
    }
}
