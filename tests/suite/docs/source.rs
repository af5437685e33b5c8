//! The words in the source: comments and texts are as plain as the pages.

use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::str::Chars;

use super::pages::{BANNED, has_phrase, without_code};
use super::root;

/// The folders whose comments and texts follow the word rules of the pages. Add a folder after its texts are rewritten.
const FOLDERS: [&str; 26] = [
    "bench",
    "clients",
    "crash-points",
    "crash-tests",
    "demo",
    "examples",
    "protocol/src",
    "protocol/tests",
    "service",
    "src/cli",
    "src/config",
    "src/control",
    "src/crash_test",
    "src/doctor",
    "src/history",
    "src/hooks",
    "src/journal",
    "src/keeper",
    "src/probe",
    "src/shim",
    "src/slots",
    "src/store",
    "src/supervisor",
    "src/watch",
    "sys",
    "tests",
];

/// The files that contain the banned phrases as data.
const EXEMPT: [&str; 2] = ["tests/suite/docs/pages.rs", "tests/suite/docs/source.rs"];

/// Calls `breach` with each banned phrase in a comment or text of a file.
fn check(name: &str, text: &str, breach: &mut dyn FnMut(String)) {
    let Some(language) = Language::of(name) else { return };
    for (line, prose) in Lexer::new(language, text).prose() {
        let words = without_code(&prose.to_lowercase()).split_whitespace().collect::<Vec<_>>().join(" ");
        for phrase in BANNED.iter().filter(|phrase| has_phrase(&words, phrase)) {
            breach(format!("{name}:{line}: says {phrase:?}"));
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Language {
    Rust,
    JavaScript,
    Python,
    Shell,
}

impl Language {
    fn of(name: &str) -> Option<Self> {
        match name.rsplit('.').next()? {
            "rs" => Some(Self::Rust),
            "js" => Some(Self::JavaScript),
            "py" => Some(Self::Python),
            "sh" => Some(Self::Shell),
            _ => None,
        }
    }
}

/// Splits a source text into code and prose. It knows only the necessary parts of each language.
struct Lexer<'t> {
    language: Language,
    rest: Peekable<Chars<'t>>,
    line: usize,
    /// The last character, and the one before it.
    last: char,
    before: char,
    /// The line where each comment or text begins, and its words. Comments on consecutive lines are one.
    found: Vec<(usize, String)>,
    /// The line and the length of `found` after the last line comment.
    comment: (usize, usize),
}

impl<'t> Lexer<'t> {
    fn new(language: Language, text: &'t str) -> Self {
        let rest = text.chars().peekable();
        Self { language, rest, line: 1, last: '\n', before: '\n', found: Vec::new(), comment: (0, 0) }
    }

    fn prose(mut self) -> Vec<(usize, String)> {
        self.code(false);
        self.found
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        (self.before, self.last) = (self.last, next);
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn is_next(&mut self, wanted: char) -> bool {
        let is_it = self.rest.peek() == Some(&wanted);
        if is_it {
            self.next();
        }
        is_it
    }

    /// Reads to the end of the file, or of the code within a JavaScript template.
    fn code(&mut self, is_nested: bool) {
        let mut depth = 0;
        while let Some(at) = self.next() {
            match at {
                '/' if self.has_slashes() && self.is_next('/') => self.line_comment(),
                '/' if self.has_slashes() && self.is_next('*') => self.until("*/", false),
                // In a shell, the character has another meaning within a word.
                '#' if !self.has_slashes() && self.before.is_whitespace() => self.line_comment(),
                '"' | '\'' if self.has_slashes() => self.string(at),
                '"' | '\'' => self.string_or_document(at),
                '`' if self.language == Language::JavaScript => self.template(),
                'r' if self.language == Language::Rust && !self.before.is_alphanumeric() => self.raw(),
                '{' => depth += 1,
                '}' if is_nested && depth == 0 => return,
                '}' => depth -= 1,
                _ => {}
            }
        }
    }

    fn has_slashes(&self) -> bool {
        matches!(self.language, Language::Rust | Language::JavaScript)
    }

    fn line_comment(&mut self) {
        let line = self.line;
        let mut words = String::new();
        while let Some(at) = self.next().filter(|at| *at != '\n') {
            words.push(at);
        }
        let words = words.trim_start_matches(['/', '!', ':']).to_owned();
        let is_same = self.comment == (line - 1, self.found.len());
        match self.found.last_mut().filter(|_| is_same) {
            Some((_, before)) => {
                before.push(' ');
                before.push_str(&words);
            }
            None => self.found.push((line, words)),
        }
        self.comment = (line, self.found.len());
    }

    fn string(&mut self, quote: char) {
        if self.language == Language::Rust && quote == '\'' {
            // A lifetime has no closing quote, and a character is not a word.
            let mut ahead = self.rest.clone();
            match (ahead.next(), ahead.next()) {
                (Some('\\'), _) => self.next().and_then(|_| self.next()),
                (Some(_), Some('\'')) => self.next().and_then(|_| self.next()),
                _ => None,
            };
            return;
        }
        self.until(&quote.to_string(), true);
    }

    fn string_or_document(&mut self, quote: char) {
        let mut ahead = self.rest.clone();
        let is_document = ahead.next() == Some(quote) && ahead.next() == Some(quote);
        if is_document && self.language == Language::Python {
            self.next();
            self.next();
            return self.until(&quote.to_string().repeat(3), true);
        }
        self.until(&quote.to_string(), self.language == Language::Python || quote == '"');
    }

    fn raw(&mut self) {
        let mut ahead = self.rest.clone();
        let marks = std::iter::from_fn(|| ahead.next_if_eq(&'#')).count();
        if ahead.next() == Some('"') {
            for _ in 0..=marks {
                self.next();
            }
            self.until(&format!("\"{}", "#".repeat(marks)), false);
        }
    }

    fn until(&mut self, end: &str, has_escapes: bool) {
        let line = self.line;
        let mut words = String::new();
        while let Some(at) = self.next() {
            if at == '\\' && has_escapes {
                // The text may continue on the next line.
                words.extend(self.next().map(|at| if "ntr".contains(at) { ' ' } else { at }));
                continue;
            }
            words.push(at);
            if words.ends_with(end) {
                words.truncate(words.len() - end.len());
                break;
            }
        }
        // Removes the stars before the lines of a comment.
        let lines: Vec<&str> = words.lines().map(|line| line.trim_start().trim_start_matches("* ")).collect();
        self.found.push((line, lines.join(" ")));
    }

    fn template(&mut self) {
        let (line, mut words) = (self.line, String::new());
        loop {
            match self.next() {
                None | Some('`') => break,
                Some('\\') => drop(self.next()),
                Some('$') if self.is_next('{') => self.code(true),
                Some(at) => words.push(at),
            }
        }
        self.found.push((line, words));
    }
}

/// All files below a folder of the project, except build output.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        match entry.file_type().expect("a type") {
            kind if kind.is_dir()
                && !["target", "node_modules"].map(Into::into).contains(&entry.file_name()) =>
            {
                found.extend(files_below(&entry.path()));
            }
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

#[test]
fn comments_and_texts_are_plain() {
    let mut breaches = Vec::new();
    for folder in FOLDERS {
        let files = files_below(&root().join(folder));
        assert!(!files.is_empty(), "{folder} has no files: is the walk broken?");
        for path in files {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            if EXEMPT.contains(&name.as_str()) {
                continue;
            }
            let Ok(text) = fs::read_to_string(&path) else { continue };
            check(&name, &text, &mut |what| breaches.push(what));
        }
    }
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn the_rule_of_the_source_bites() {
    let told = |name: &str, text: &str| {
        let mut breaches = Vec::new();
        check(name, text, &mut |what| breaches.push(what));
        breaches
    };
    for (name, text, line) in [
        ("a.rs", "fn f() {}\n/// It is\n/// told.\n", 2),
        ("a.rs", "const A: char = '\"'; // Nobody.\n", 1),
        ("a.rs", "fn f<'a>() { g(\"a \\\"b\\\" \\\n    whoever\") }\n", 1),
        ("a.rs", "\nlet a = r#\"a \"b\" whom\"#;\n", 2),
        ("a.rs", "/* So\n   many. */\n", 1),
        ("a.js", "/**\n * At the\n * most.\n */\n", 1),
        ("a.js", "f(`a ${g(`b ${c} anew`)}`);\n", 1),
        ("a.js", "f('he');\n", 1),
        ("a.py", "#: So\n#: much.\n", 1),
        ("a.py", "def f():\n    '''It is\n    looked.'''\n", 2),
        ("a.py", "f(\"nobody\")\n", 1),
        ("a.sh", "echo 'somebody'\n", 1),
        ("a.sh", "# Whoever.\n", 1),
    ] {
        let found = told(name, text);
        let place = format!("{name}:{line}: ");
        assert!(found.len() == 1 && found[0].starts_with(&place), "{name} {text:?}: {found:?}");
    }
    for (name, text) in [
        ("a.rs", "let he = nobody(party); // `whoever`\n"),
        ("a.rs", "// It is\nf();\n// told.\n"),
        ("a.rs", "f::<'_>(b'\"', nobody, '\\'', his);\n"),
        ("a.js", "f(`a ${nobody} b`);\n"),
        ("a.py", "nobody = f('a')\n"),
        ("a.sh", "echo \"$#\" ${nobody#he}\n"),
        ("a.toml", "# Nobody.\n"),
    ] {
        assert_eq!(told(name, text), Vec::<String>::new(), "{name} {text:?}");
    }
}
