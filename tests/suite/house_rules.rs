//! Rules for this source that no other tool checks. Each breach is reported as `file:line: what`.

use std::fs;
use std::path::{Path, PathBuf};

/// The maximum length of a source file, in lines.
const LINES_MAX: usize = 450;

/// The maximum distance from a `sleep` in a test to the check of its bound, in lines.
const BOUND_WITHIN: usize = 12;

#[test]
fn the_rules_of_the_house_are_kept() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut breaches = Vec::new();
    let mut files = 0;
    for path in texts_below(root) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        files += 1;
        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        check(&name, &text, &mut |line, what| breaches.push(format!("{name}:{line}: {what}")));
    }
    assert!(files > 50, "only {files} files were checked: is the walk broken?");
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

/// Calls `breach` with the number of each line that breaks a rule.
fn check(name: &str, text: &str, breach: &mut dyn FnMut(usize, String)) {
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        for private in private_paths().iter().filter(|private| line.contains(private.as_str())) {
            breach(index + 1, format!("names {private}, a path of this machine"));
        }
    }
    if name == "Cargo.toml" || name.ends_with("/Cargo.toml") {
        in_manifest(name, &lines, breach);
    }
    if name.ends_with(".rs") {
        in_source(name, &lines, breach);
    }
}

/// An unused dependency slows down every build, and misleads readers.
#[test]
fn every_dependency_is_named_by_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let texts = texts_below(root);
    let mut unused = Vec::new();
    let mut known = 0;
    for manifest in texts.iter().filter(|path| path.ends_with("Cargo.toml")) {
        let package = manifest.parent().expect("a folder");
        let inner = |path: &PathBuf| {
            path.ancestors().find(|folder| folder.join("Cargo.toml").exists()) == Some(package)
                // `tests/suite/corpus.rs` has these as a module.
                || package == root && path.starts_with(root.join("fuzz/src"))
        };
        let sources =
            texts.iter().filter(|path| path.extension().is_some_and(|it| it == "rs") && inner(path));
        let source: String = sources.map(|path| fs::read_to_string(path).expect("a text")).collect();
        for name in dependencies(&fs::read_to_string(manifest).expect("a text")) {
            known += 1;
            if !has_word(&source, &name.replace('-', "_").replace("handoff_supervisor", "handoff")) {
                unused.push(format!("{}: {name}", manifest.display()));
            }
        }
    }
    assert!(known > 40, "only {known} dependencies were found");
    assert_eq!(unused, Vec::<String>::new());
}

/// The names in the tables of dependencies.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut is_wanted = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_wanted = line.ends_with("dependencies]") && line != "[workspace.dependencies]";
        } else if let Some((name, _)) =
            line.split_once(['=', '.']).filter(|_| is_wanted && !line.starts_with('#'))
        {
            found.push(name.trim().to_owned());
        }
    }
    found
}

fn in_manifest(name: &str, lines: &[&str], breach: &mut dyn FnMut(usize, String)) {
    for (index, line) in lines.iter().enumerate() {
        if has_word(line, ENCODER) && name != "protocol/Cargo.toml" {
            breach(index + 1, format!("{ENCODER} is a dependency of handoff-protocol alone"));
        }
    }
}

fn in_source(name: &str, lines: &[&str], breach: &mut dyn FnMut(usize, String)) {
    if lines.len() > LINES_MAX {
        breach(lines.len(), format!("the file has more than {LINES_MAX} lines"));
    }
    for (index, line) in lines.iter().enumerate() {
        let number = index + 1;
        let code = line.split("//").next().unwrap_or_default();
        for (word, what) in NOWHERE.iter().filter(|(word, _)| code.contains(word)) {
            breach(number, format!("{word} {what}"));
        }
        if has_word(code, WALL_CLOCK) && name.starts_with("src/") && !FOR_PEOPLE.contains(&name) {
            breach(number, format!("{WALL_CLOCK} jumps: it is for people, in {FOR_PEOPLE:?}"));
        }
        for mark in MARKS.iter().filter(|mark| has_word(line, mark)) {
            breach(number, format!("{mark}: do it, or leave it"));
        }
        if has_word(line, ENCODER) && name != "protocol/src/frame.rs" {
            breach(
                number,
                format!("{ENCODER} is named in protocol/src/frame.rs alone, so that it can be left"),
            );
        }
        if has_word(code, UNSAFE) && !name.starts_with("sys/src/") {
            breach(number, format!("{UNSAFE} code belongs into sys"));
        }
        if name.starts_with("tests/") && code.contains(SLEEP) && !is_bounded(lines, index) {
            breach(number, "a sleep with no bound near it".to_owned());
        }
    }
}

/// No decision depends on the wall clock. It is only for output: times in records, and their age.
const WALL_CLOCK: &str = "SystemTime";
const FOR_PEOPLE: [&str; 2] = ["src/journal/mod.rs", "src/cli/human.rs"];

// Built from parts, so that this file follows the rules, too.
const ENCODER: &str = concat!("bin", "code");
const UNSAFE: &str = concat!("un", "safe");
const SLEEP: &str = concat!("slee", "p(");
const MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const NOWHERE: [(&str, &str); 4] = [
    (concat!("tod", "o!("), "is not finished"),
    (concat!("unimplemen", "ted!()"), "is not finished"),
    (concat!("db", "g!("), "is for debugging"),
    (concat!("#[ign", "ore"), "hides a test"),
];

/// Whether `line` contains `word`, and not only as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].bytes().last().is_some_and(part);
        let after = line[at + word.len()..].bytes().next().is_some_and(part);
        !before && !after
    })
}

/// Whether a wait is bounded: nearby code compares the time with a limit.
fn is_bounded(lines: &[&str], index: usize) -> bool {
    let near = &lines[index.saturating_sub(BOUND_WITHIN)..(index + BOUND_WITHIN).min(lines.len())];
    near.iter().any(|line| line.contains("Instant::now()")) && near.iter().any(|line| line.contains(" < "))
        || near.iter().any(|line| line.contains("Instant::now() >"))
}

/// The paths of this source and of its user.
fn private_paths() -> Vec<String> {
    let home = std::env::var("HOME").ok().filter(|home| home.matches('/').count() > 1);
    [Some(env!("CARGO_MANIFEST_DIR").to_owned()), home].into_iter().flatten().collect()
}

/// All files that belong to the source, sorted, without files of builds and editors.
fn texts_below(root: &Path) -> Vec<PathBuf> {
    const KNOWN: [&str; 8] = ["rs", "toml", "md", "txt", "hex", "json", "sh", "run"];
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            match entry.file_type().expect("a type") {
                kind if kind.is_dir() && name != "target" && name != ".git" => folders.push(path),
                kind if kind.is_file() => {
                    let known = name.rsplit('.').next().is_some_and(|ending| KNOWN.contains(&ending));
                    found.extend(known.then_some(path));
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_rules_bite() {
    const NONE: [usize; 0] = [];
    let told = |name: &str, text: &str| {
        let mut lines = Vec::new();
        check(name, text, &mut |line, _| lines.push(line));
        lines
    };
    let sleep = format!("std::thread::{SLEEP}ms);");
    let bounded = format!("while Instant::now() < end {{\n    {sleep}\n}}");
    assert_eq!(told("tests/a.rs", &sleep), [1]);
    assert_eq!(told("tests/a.rs", &bounded), NONE);
    assert_eq!(told("src/a.rs", &format!("fn a() {{}}\n{UNSAFE} {{}}")), [2]);
    assert_eq!(told("sys/src/a.rs", &format!("{UNSAFE} {{}}")), NONE);
    assert_eq!(told("src/a.rs", &format!("#![forbid({UNSAFE}_code)] // {UNSAFE}")), NONE);
    assert_eq!(told("src/a.rs", &format!("use {ENCODER}::config;")), [1]);
    assert_eq!(told("src/a.rs", &format!("let now = {WALL_CLOCK}::now();")), [1]);
    assert_eq!(told(FOR_PEOPLE[0], &format!("let now = {WALL_CLOCK}::now();")), NONE);
    assert_eq!(told("Cargo.toml", &format!("{ENCODER} = \"2\"")), [1]);
    assert_eq!(told("src/a.rs", &"\n".repeat(LINES_MAX + 1)), [LINES_MAX + 1]);
    assert_eq!(told("docs/a.md", &format!("see {}/x", env!("CARGO_MANIFEST_DIR"))), [1]);
    for (word, _) in NOWHERE {
        assert_eq!(told("src/a.rs", word), [1], "{word}");
    }
    for mark in MARKS {
        assert_eq!(told("src/a.rs", &format!("// {mark}: later")), [1], "{mark}");
    }
}
