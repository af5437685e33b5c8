//! Golden files: compares the output of a test with the committed one.

pub mod brief;
pub mod events;
pub mod samples;
pub mod table;

use std::path::Path;
use std::{env, fs};

/// Compares `text` with `tests/golden/<name>`, exactly. With `UPDATE_GOLDEN=1` in the environment it writes the file
/// instead.
pub fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::create_dir_all(path.parent().expect("a folder")).expect("create the folder of golden files");
        return fs::write(&path, text).expect("write a golden file");
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let differs = golden.lines().zip(text.lines()).position(|(left, right)| left != right);
    let line = differs.unwrap_or_else(|| golden.lines().count().min(text.lines().count()));
    assert!(
        golden == text,
        "{}, line {}:\n  committed: {}\n  now:       {}\nIf the change is meant, run the test with UPDATE_GOLDEN=1.",
        path.display(),
        line + 1,
        golden.lines().nth(line).unwrap_or("(end)"),
        text.lines().nth(line).unwrap_or("(end)"),
    );
}
