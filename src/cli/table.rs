//! Tables and texts that fit the terminal.

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};
use textwrap::core::display_width;
use textwrap::{Options, WordSplitter, WrapAlgorithm};

use super::output::{one_line, terminal_width};

/// The columns that are cut or wrapped. The cells of the others are copied, or read at a glance.
const LONG: [&str; 6] = ["BINARY", "FROM", "KEYS", "LISTENS", "TO", "WHY"];
/// Those that are cut in the middle: both ends of a path tell more than its middle.
const CUT: [&str; 3] = ["BINARY", "FROM", "TO"];
/// A long column has at least this width, unless all of its cells are shorter.
const LONG_MIN: usize = 16;
/// The space of a column beside its cells.
const PADDING: usize = 2;

/// An option of the commands that print tables.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct Wide {
    /// Print whole cells, also if they are wider than the terminal
    #[arg(long)]
    wide: bool,
}

impl Wide {
    /// The width that a table may have.
    fn limit(self) -> Option<usize> {
        terminal_width().filter(|_| !self.wide)
    }
}

/// A table without lines, one row per line. On a terminal it is as wide as the terminal at most: long paths are cut in
/// the middle, long texts are wrapped, and if there is no room even for that, each cell is a line of its own. With
/// `--wide` and elsewhere each row is one line, so that tools can read it.
pub(super) fn table<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
    wide: Wide,
) -> String {
    drawn(&header, &vectors(rows), wide.limit(), None)
}

/// The same. On a terminal that is too narrow for all columns, the column `spared` is left out before each cell becomes
/// a line.
pub(super) fn table_sparing<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
    spared: &str,
    wide: Wide,
) -> String {
    drawn(&header, &vectors(rows), wide.limit(), Some(spared))
}

/// Each cell is one line: a line break in it comes from outside.
fn vectors<const COLUMNS: usize>(rows: impl IntoIterator<Item = [String; COLUMNS]>) -> Vec<Vec<String>> {
    rows.into_iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect()
}

fn drawn(header: &[&str], rows: &[Vec<String>], width: Option<usize>, spared: Option<&str>) -> String {
    let Some(width) = width else { return grid(header, rows, None) };
    if width_min(header, rows) <= width {
        return grid(header, &cut(header, rows, width), Some(width));
    }
    if let Some(left_out) = header.iter().position(|name| Some(*name) == spared) {
        let without = |cells: &[String]| {
            let stay = cells.iter().enumerate().filter(|(at, _)| *at != left_out);
            stay.map(|(_, cell)| cell.clone()).collect::<Vec<_>>()
        };
        let fewer: Vec<&str> = header.iter().copied().filter(|name| Some(*name) != spared).collect();
        let short: Vec<Vec<String>> = rows.iter().map(|row| without(row)).collect();
        if width_min(&fewer, &short) <= width {
            return grid(&fewer, &cut(&fewer, &short, width), Some(width));
        }
    }
    records(header, rows, width)
}

/// The rows with cells that are cut as far as the width demands, and as [`LONG_MIN`] permits: the widest column first.
fn cut(header: &[&str], rows: &[Vec<String>], width: usize) -> Vec<Vec<String>> {
    let natural = |column: usize| {
        rows.iter()
            .map(|row| row[column].as_str())
            .chain([header[column]])
            .map(display_width)
            .max()
            .unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..header.len()).map(natural).collect();
    let can_be_cut =
        |column: usize, widths: &[usize]| CUT.contains(&header[column]) && widths[column] > LONG_MIN;
    // The space at the end is cut off.
    while widths.iter().map(|width| width + PADDING).sum::<usize>() > width + 1 {
        let widest = (0..header.len())
            .filter(|column| can_be_cut(*column, &widths))
            .max_by_key(|column| widths[*column]);
        let Some(widest) = widest else { break };
        widths[widest] -= 1;
    }
    let row = |row: &Vec<String>| {
        row.iter().zip(&widths).map(|(cell, width)| without_middle(cell, *width)).collect()
    };
    rows.iter().map(row).collect()
}

/// A text of at most this width: its begin, `…`, and a longer part of its end.
fn without_middle(text: &str, width: usize) -> String {
    if display_width(text) <= width || width == 0 {
        return text.to_owned();
    }
    let (head_max, mut head, mut tail) = ((width - 1) / 3, String::new(), String::new());
    for character in text.chars() {
        head.push(character);
        if display_width(&head) > head_max {
            head.pop();
            break;
        }
    }
    let tail_max = width - 1 - display_width(&head);
    for character in text.chars().rev() {
        tail.insert(0, character);
        if display_width(&tail) > tail_max {
            tail.remove(0);
            break;
        }
    }
    format!("{head}…{tail}")
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
            assert!(
                narrow.lines().count() > 2 && narrow.starts_with(" SERVICE"),
                "the text is wrapped: {narrow}"
            );
        }
        let whole = drawn(&header, &rows(), None, None);
        assert_eq!(whole.lines().count(), 2);
        assert!(whole.ends_with(PATH), "{whole}");
    }

    #[test]
    fn a_path_is_cut_in_the_middle_and_a_text_is_not() {
        let header = ["SERVICE", "STATE", "BINARY"];
        let row = vec!["web".to_owned(), "serving".to_owned(), PATH.to_owned()];
        let shown = drawn(&header, &[row], Some(60), None);
        assert_eq!(shown.lines().count(), 2, "{shown}");
        assert!(shown.contains("/var/lib/hand…") && shown.ends_with("/s3-server"), "{shown}");
        assert!(shown.lines().any(|line| line.chars().count() == 60), "no more than needed: {shown}");
        let header = ["SERVICE", "FROM", "TO"];
        let both = vec![vec!["web".to_owned(), "short".to_owned(), PATH.to_owned()]];
        assert!(drawn(&header, &both, Some(50), None).contains(" short "), "only what is too wide");
    }

    #[test]
    fn a_text_without_its_middle_has_the_width() {
        for width in 1..40 {
            let cut = without_middle(PATH, width);
            assert_eq!(display_width(&cut), width, "{cut}");
        }
        assert_eq!(without_middle("abcdefghij", 7), "ab…ghij");
        assert_eq!(without_middle("short", 5), "short");
        assert_eq!(without_middle("日本語日本語日本語", 8), "日…本語", "a wide character has two columns");
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
