//! Tables and texts that fit the terminal.

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table};
use textwrap::{Options, WordSplitter, WrapAlgorithm};

use super::output::terminal_width;

/// The columns that are wrapped. The cells of the others are copied, or read at a glance.
const LONG: [&str; 5] = ["BINARY", "FROM", "LISTENS", "TO", "WHY"];

/// A table without lines, one row per line. On a terminal it is as wide as the terminal at most: long cells are
/// wrapped. Elsewhere each row is one line, so that tools can read it.
pub(super) fn table<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    drawn(header, rows, terminal_width())
}

fn drawn<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
    width: Option<usize>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    }
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for (column, name) in table.column_iter_mut().zip(header) {
        if !LONG.contains(&name) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table.trim_fmt()
}

/// A line for people. On a terminal it is wrapped, and the lines after the first begin with `indent` spaces.
pub(super) fn wrapped(text: &str, indent: usize) -> String {
    terminal_width().map_or_else(|| text.to_owned(), |width| wrapped_to(text, indent, width))
}

fn wrapped_to(text: &str, indent: usize, width: usize) -> String {
    let spaces = " ".repeat(indent);
    // Users copy paths, so they are not hyphenated, and broken only if longer than a line.
    let options = Options::new(width)
        .subsequent_indent(&spaces)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    textwrap::fill(text, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/var/lib/handoff/services/a-long-name/versions/0123456789abcdef/s3-server";

    #[test]
    fn a_table_fits_the_terminal_and_is_whole_elsewhere() {
        let rows = || [["web".to_owned(), format!("it binds {PATH}"), PATH.to_owned()]];
        let narrow = drawn(["SERVICE", "WHY", "BINARY"], rows(), Some(80));
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert!(narrow.lines().count() > 2, "{narrow}");
        let letters = |text: &str| text.split_whitespace().collect::<String>().matches("s3-server").count();
        assert!(letters(&narrow) <= 2);
        let whole = drawn(["SERVICE", "WHY", "BINARY"], rows(), None);
        assert_eq!(whole.lines().count(), 2);
        assert!(whole.ends_with(PATH), "{whole}");
    }

    #[test]
    fn a_text_is_wrapped_under_its_begin() {
        let text = format!("  problem     {PATH} cannot be used, since there is no room for it on the disk.");
        let wrapped = wrapped_to(&text, 14, 80);
        assert!(wrapped.lines().all(|line| line.chars().count() <= 80), "{wrapped}");
        assert!(wrapped.lines().skip(1).all(|line| line.starts_with(&" ".repeat(14))), "{wrapped}");
        assert_eq!(wrapped_to("short", 14, 80), "short");
        assert_eq!(wrapped_to("\x1b[31mred\x1b[0m", 2, 3), "\x1b[31mred\x1b[0m", "colours have no width");
    }
}
