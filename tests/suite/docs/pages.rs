//! The form of the pages: their length, their tables, their words, and an index that names each page.

use std::collections::BTreeSet;

use super::{pages, read};

/// The maximum length of a page, in lines.
const PAGE_MAX: usize = 250;

/// The maximum length of the README, in lines.
const README_MAX: usize = 120;

/// The maximum length of a table cell, in characters.
const CELL_MAX: usize = 160;

/// Words and phrases that make a text hard to read.
pub(super) const BANNED: [&str; 24] = [
    "whoever",
    "whom",
    "nobody",
    "somebody",
    "anybody",
    "everybody",
    "is told",
    "are told",
    "was told",
    "were told",
    "so many",
    "so much",
    "anew",
    "it is looked",
    "he",
    "his",
    "as one likes",
    "at the most",
    "party",
    "parties",
    "retiree",
    "know nothing",
    "knows nothing",
    "again and again",
];

/// Calls `breach` with each rule that the page breaks.
fn check(name: &str, text: &str, breach: &mut dyn FnMut(String)) {
    let (count, max) = (text.lines().count(), if name == "README.md" { README_MAX } else { PAGE_MAX });
    if count > max {
        breach(format!("{name}: {count} lines, more than {max}"));
    }
    for (number, line) in prose(text) {
        for cell in cells(line).into_iter().filter(|cell| cell.chars().count() > CELL_MAX) {
            let length = cell.chars().count();
            breach(format!("{name}:{number}: a cell of {length} characters, more than {CELL_MAX}"));
        }
    }
    // A phrase may continue on the next line.
    let lines: String = prose(text).map(|(_, line)| line.to_lowercase() + " ").collect();
    let words = without_code(&lines).split_whitespace().collect::<Vec<_>>().join(" ");
    for phrase in BANNED.iter().filter(|phrase| has_phrase(&words, phrase)) {
        breach(format!("{name}: says {phrase:?}"));
    }
}

/// The lines outside of fenced blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_fenced = false;
    text.lines().zip(1..).filter_map(move |(line, number)| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        (!is_fenced && !is_fence).then_some((number, line))
    })
}

/// The cells, if this line is a row of a table.
fn cells(line: &str) -> Vec<&str> {
    match line.trim().strip_prefix('|') {
        Some(row) => row.split('|').map(str::trim).collect(),
        None => Vec::new(),
    }
}

/// The text outside of backquotes. A name in the source may be any word.
pub(super) fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

/// Whether `text` contains `phrase`, and not only as a part of longer words.
pub(super) fn has_phrase(text: &str, phrase: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(phrase)
        .any(|(at, _)| !text[..at].ends_with(part) && !text[at + phrase.len()..].starts_with(part))
}

#[test]
fn every_page_is_short_and_plain() {
    let mut breaches = Vec::new();
    let readme = ("README.md".to_owned(), read("README.md"));
    for (name, text) in pages().into_iter().chain([readme]) {
        check(&name, &text, &mut |what| breaches.push(what));
    }
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn the_index_leads_to_every_page() {
    let index = read("docs/README.md");
    let linked: BTreeSet<String> = index
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .map(|path| format!("docs/{path}"))
        .collect();
    let there: BTreeSet<String> = pages().into_keys().filter(|name| name != "docs/README.md").collect();
    let missing: Vec<&String> = there.difference(&linked).collect();
    assert!(missing.is_empty(), "the index does not name {missing:?}");
}

#[test]
fn the_rules_of_the_pages_bite() {
    let told = |name: &str, text: &str| {
        let mut breaches = Vec::new();
        check(name, text, &mut |what| breaches.push(what));
        breaches.len()
    };
    assert_eq!(told("docs/a.md", &"a\n".repeat(PAGE_MAX)), 0);
    assert_eq!(told("docs/a.md", &"a\n".repeat(PAGE_MAX + 1)), 1);
    assert_eq!(told("README.md", &"a\n".repeat(README_MAX + 1)), 1);
    let row = |length: usize| format!("| a | {} |\n", "ä".repeat(length));
    assert_eq!(told("docs/a.md", &row(CELL_MAX)), 0);
    assert_eq!(told("docs/a.md", &row(CELL_MAX + 1)), 1);
    assert_eq!(told("docs/a.md", &format!("```text\n{}```\n", row(CELL_MAX + 1))), 0);
    for phrase in BANNED {
        assert_eq!(told("docs/a.md", &format!("It {phrase}.")), 1, "{phrase}");
        assert_eq!(told("docs/a.md", &format!("It {}.", phrase.to_uppercase())), 1, "{phrase}");
        assert_eq!(told("docs/a.md", &format!("It {}.", phrase.replace(' ', "\n"))), 1, "{phrase}");
        assert_eq!(
            told("docs/a.md", &format!("It `{phrase}` x{phrase}x\n```text\n{phrase}\n```\n")),
            0,
            "{phrase}"
        );
    }
}
