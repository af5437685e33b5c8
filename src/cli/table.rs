//! Tables and texts that fit the terminal.

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};
use textwrap::core::display_width;
use textwrap::{Options, WordSplitter, WrapAlgorithm};

use super::output::{one_line, terminal_width};

/// The columns that are wrapped. The cells of the others are copied, or read at a glance.
const LONG: [&str; 6] = ["BINARY", "FROM", "KEYS", "LISTENS", "TO", "WHY"];
/// A wrapped column has at least this width, unless all of its cells are shorter.
const LONG_MIN: usize = 16;
/// The space of a column beside its cells.
const PADDING: usize = 2;

/// A table without lines, one row per line. On a terminal it is as wide as the terminal at most: long cells are
/// wrapped, and if there is no room even for that, each cell is a line of its own. Elsewhere each row is one line, so
/// that tools can read it.
pub(super) fn table<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    drawn(&header, &vectors(rows), terminal_width(), None)
}

/// The same. On a terminal that is too narrow for all columns, the column `spared` is left out before each cell becomes
/// a line.
pub(super) fn table_sparing<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
    spared: &str,
) -> String {
    drawn(&header, &vectors(rows), terminal_width(), Some(spared))
}

/// Each cell is one line: a line break in it comes from outside.
fn vectors<const COLUMNS: usize>(rows: impl IntoIterator<Item = [String; COLUMNS]>) -> Vec<Vec<String>> {
    rows.into_iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect()
}

fn drawn(header: &[&str], rows: &[Vec<String>], width: Option<usize>, spared: Option<&str>) -> String {
    let Some(width) = width else { return grid(header, rows, None) };
    if width_min(header, rows) <= width {
        return grid(header, rows, Some(width));
    }
    if let Some(left_out) = header.iter().position(|name| Some(*name) == spared) {
        let without = |cells: &[String]| {
            let stay = cells.iter().enumerate().filter(|(at, _)| *at != left_out);
            stay.map(|(_, cell)| cell.clone()).collect::<Vec<_>>()
        };
        let fewer: Vec<&str> = header.iter().copied().filter(|name| Some(*name) != spared).collect();
        let short: Vec<Vec<String>> = rows.iter().map(|row| without(row)).collect();
        if width_min(&fewer, &short) <= width {
            return grid(&fewer, &short, Some(width));
        }
    }
    records(header, rows, width)
}

/// The smallest width in which no column is thinner than it may be.
fn width_min(header: &[&str], rows: &[Vec<String>]) -> usize {
    let columns = (0..header.len()).map(|column| column_min(header, rows, column) + PADDING);
    // The space at the end is cut off.
    columns.sum::<usize>().saturating_sub(1)
}

/// The smallest width of a column. Addresses are copied, so they are not broken.
fn column_min(header: &[&str], rows: &[Vec<String>], column: usize) -> usize {
    let name = header[column];
    let cells = rows.iter().map(|row| row[column].as_str()).chain([name]);
    match name {
        "LISTENS" => cells.flat_map(|cell| cell.split(' ')).map(display_width).max().unwrap_or(0),
        name if LONG.contains(&name) => cells.map(display_width).max().unwrap_or(0).min(LONG_MIN),
        _ => cells.map(display_width).max().unwrap_or(0),
    }
}

fn grid(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        // The space at the end is cut off.
        table.set_width(u16::try_from(width + 1).unwrap_or(u16::MAX));
    }
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for (at, (column, name)) in table.column_iter_mut().zip(header).enumerate() {
        if LONG.contains(name) {
            let least = u16::try_from(column_min(header, rows, at) + PADDING).unwrap_or(u16::MAX);
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least)));
        } else {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table.trim_fmt()
}

/// Each row as lines of a name and a value, with an empty line between rows.
fn records(header: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let record = |row: &Vec<String>| {
        let told = header.iter().zip(row).filter(|(_, cell)| !cell.is_empty());
        let lines =
            told.map(|(name, cell)| wrapped_to(&format!("{}: {cell}", name.to_lowercase()), 2, width));
        lines.collect::<Vec<_>>().join("\n")
    };
    rows.iter().map(record).collect::<Vec<_>>().join("\n\n")
}

/// A line for people. On a terminal it is wrapped, and the lines after the first begin with `indent` spaces.
pub(super) fn wrapped(text: &str, indent: usize) -> String {
    terminal_width().map_or_else(|| text.to_owned(), |width| wrapped_to(text, indent, width))
}

pub(super) fn wrapped_to(text: &str, indent: usize, width: usize) -> String {
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

    fn rows() -> Vec<Vec<String>> {
        vec![vec!["web".to_owned(), format!("it binds {PATH}"), PATH.to_owned()]]
    }

    #[test]
    fn a_table_fits_the_terminal_and_is_whole_elsewhere() {
        let header = ["SERVICE", "WHY", "BINARY"];
        for width in [80, 60, 50] {
            let narrow = drawn(&header, &rows(), Some(width), None);
            assert!(narrow.lines().all(|line| line.chars().count() <= width), "{narrow}");
            assert!(narrow.lines().count() > 2 && narrow.starts_with(" SERVICE"), "{narrow}");
        }
        let whole = drawn(&header, &rows(), None, None);
        assert_eq!(whole.lines().count(), 2);
        assert!(whole.ends_with(PATH), "{whole}");
    }

    #[test]
    fn where_a_column_would_be_too_thin_each_cell_is_a_line() {
        let header = ["SERVICE", "WHY", "BINARY"];
        let lines =
            drawn(&header, &[vec!["web".to_owned(), String::new(), "/srv/web".to_owned()]], Some(20), None);
        assert_eq!(lines, "service: web\nbinary: /srv/web", "an empty cell is no line");
        let both = drawn(&header, &[rows(), rows()].concat(), Some(30), None);
        assert_eq!(both.matches("service: web").count(), 2);
        assert!(both.contains("\n\nservice: web"), "{both}");
        assert!(both.lines().all(|line| line.chars().count() <= 30), "{both}");
    }

    #[test]
    fn an_address_is_not_broken() {
        let header = ["SERVICE", "LISTENS", "BINARY"];
        let listens = "127.0.0.1:9000 [2001:db8:1111:2222:3333:4444:5555:6666]:9000".to_owned();
        let rows = [vec!["web".to_owned(), listens.clone(), PATH.to_owned()]];
        for width in [120, 80, 76] {
            let shown = drawn(&header, &rows, Some(width), None);
            assert!(shown.starts_with(" SERVICE"), "{shown}");
            assert!(listens.split(' ').all(|address| shown.contains(address)), "{shown}");
            assert!(shown.lines().all(|line| line.chars().count() <= width), "{shown}");
        }
        assert!(
            drawn(&header, &rows, Some(70), None).starts_with("service: web\nlistens: 127.0.0.1:9000 [2001")
        );
    }

    #[test]
    fn a_spared_column_goes_before_the_table() {
        let header = ["SERVICE", "BY", "ID"];
        let rows = [vec!["web".to_owned(), "root, pid 7: handoff".to_owned(), "0123".to_owned()]];
        assert_eq!(drawn(&header, &rows, Some(20), Some("BY")), " SERVICE  ID\n web      0123");
        assert!(drawn(&header, &rows, Some(80), Some("BY")).contains("pid 7"));
        assert!(drawn(&header, &rows, Some(10), Some("BY")).contains("by: root"));
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
