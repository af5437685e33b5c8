use super::*;
use std::os::unix::fs::PermissionsExt;

struct Fixture {
    root: tempfile::TempDir,
    log: Log,
}

impl Fixture {
    fn new(max_size_bytes: u64, files: u32) -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let settings = LogSettings { max_size_bytes, files, ..LogSettings::default() };
        let log = Log::new(root.path().join("log"), "web", settings);
        Fixture { root, log }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("log").join(name)
    }

    /// The content of a file; empty if it does not exist.
    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.root.path().join("log")).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Makes a file look as if it was last changed so long ago.
    fn age(&self, name: &str, ago_s: u64) {
        let file = File::options().write(true).open(self.path(name)).unwrap();
        let changed = Duration::from_millis(unix_ms() - 1000 * ago_s);
        file.set_modified(std::time::UNIX_EPOCH + changed).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.path().join("log")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn files_are_private_rotated_at_lines_and_limited_in_number() {
    let mut fixture = Fixture::new(8, 3);
    fixture.log.write(b"a1\na2\nb1\nb2\nc1\n");
    fixture.log.write(b"c2\nd1\n");
    assert_eq!(fixture.names(), ["1", "2", "current"]);
    assert_eq!(["2", "1", "current"].map(|name| fixture.text(name)), ["b1\nb2\n", "c1\nc2\n", "d1\n"]);
    let mode = |name: &str| std::fs::metadata(fixture.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("current"), mode(".")), (0o600, 0o700));
    assert_eq!(fixture.log.take_totals().written_bytes, 21);
}

#[test]
fn a_line_longer_than_a_file_gets_one_of_its_own() {
    let mut fixture = Fixture::new(8, 5);
    fixture.log.write(b"short\nmuch longer than that\nlast\n");
    let files = ["2", "1", "current"].map(|name| fixture.text(name));
    assert_eq!(files, ["short\n", "much longer than that\n", "last\n"]);
}

#[test]
fn a_file_is_continued_and_a_torn_line_in_it_ended() {
    let mut fixture = Fixture::new(1000, 2);
    fixture.put("current", "whole\nto");
    fixture.log.write(b"next\n");
    assert_eq!(fixture.text("current"), "whole\nto\nnext\n");
}

#[test]
fn a_smaller_number_of_files_removes_the_rest() {
    let mut fixture = Fixture::new(4, 5);
    fixture.log.write(b"1\n\n2\n\n3\n\n4\n\n5\n\n");
    assert_eq!(fixture.names(), ["1", "2", "3", "4", "current"]);
    fixture.log.set(LogSettings { max_size_bytes: 4, files: 2, ..LogSettings::default() });
    fixture.log.write(b"6\n\n");
    assert_eq!(fixture.names(), ["1", "current"]);
}

#[test]
fn a_rotation_that_fails_keeps_the_lines_and_the_older_files() {
    let mut fixture = Fixture::new(4, 4);
    fixture.log.write(b"old\nnew\n");
    // A rename over a directory that is not empty fails.
    std::fs::rename(fixture.path("1"), fixture.path("2")).unwrap();
    std::fs::create_dir(fixture.path("3")).unwrap();
    fixture.put("3/x", "");
    std::fs::create_dir(fixture.path("1")).unwrap();
    fixture.put("1/x", "");
    fixture.log.write(b"a\nb\n");
    fixture.log.write(b"c\n");
    assert_eq!((fixture.text("current"), fixture.text("2")), ("new\na\nb\nc\n".into(), "old\n".into()));
    let totals = fixture.log.take_totals();
    assert_eq!(totals.lost_lines, 0);
    assert!(totals.last_error.contains("log: "), "{}", totals.last_error);

    std::fs::remove_dir_all(fixture.path("3")).unwrap();
    fixture.log.write(b"d\n");
    let files = ["3", "1", "current"].map(|name| fixture.text(name));
    assert_eq!(files, ["old\n", "new\na\nb\nc\n", "d\n"]);
}

#[test]
fn a_removed_file_or_directory_is_made_again() {
    let mut fixture = Fixture::new(1000, 2);
    fixture.log.write(b"a\n");
    std::fs::remove_file(fixture.path("current")).unwrap();
    fixture.log.write(b"b\n");
    assert_eq!(fixture.text("current"), "b\n");
    std::fs::remove_dir_all(fixture.root.path().join("log")).unwrap();
    fixture.log.write(b"c\n");
    assert_eq!(fixture.text("current"), "c\n");
}

#[test]
fn what_somebody_cut_off_counts_no_more() {
    let mut fixture = Fixture::new(8, 2);
    fixture.log.write(b"1234\n");
    File::options().write(true).open(fixture.path("current")).unwrap().set_len(0).unwrap();
    fixture.log.write(b"5678\n");
    assert_eq!(fixture.names(), ["current"]);
    assert_eq!(fixture.text("current"), "5678\n");
}

#[test]
fn lost_lines_are_counted_and_told_of_once() {
    let mut fixture = Fixture::new(1000, 2);
    // No directory can be created below a file.
    std::fs::write(fixture.root.path().join("log"), "").unwrap();
    fixture.log.write(b"a\nb\n");
    fixture.log.write(b"c\n");
    let totals = fixture.log.take_totals();
    assert_eq!((totals.lost_lines, totals.written_bytes), (3, 0));
    assert!(!totals.last_error.is_empty());

    std::fs::remove_file(fixture.root.path().join("log")).unwrap();
    fixture.log.write(b"d\n");
    fixture.log.write(b"e\n");
    let text = fixture.text("current");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[1..], ["d", "e"]);
    assert!(lines[0].contains(" web - - - | handoff: 3 lines are missing here (6 bytes), because"), "{text}");
    assert!(lines[0].contains("os error"), "{text}");
}

#[test]
fn a_full_device_loses_lines_and_nothing_else() {
    let mut fixture = Fixture::new(1000, 2);
    std::fs::create_dir(fixture.root.path().join("log")).unwrap();
    std::os::unix::fs::symlink("/dev/full", fixture.path("current")).unwrap();
    fixture.log.write(b"a\nb\n");
    assert_eq!(fixture.log.take_totals().lost_lines, 2);
}

#[test]
fn what_is_too_old_is_removed_and_the_current_file_rotated_for_it() {
    let mut fixture = Fixture::new(1000, 3);
    let settings = LogSettings { max_age: Some(Duration::from_secs(3600)), ..fixture.log.settings };
    fixture.log.set(settings);
    let now = unix_ms();
    let line = |ago_s: u64, text: &str| {
        let time = time_text(now - 1000 * ago_s);
        format!("{time} web 1 2 out | {text}\n")
    };
    for (name, ago_s) in [("2", 3700), ("1", 3500), ("current", 1900)] {
        fixture.put(name, &line(ago_s, name));
        fixture.age(name, ago_s);
    }
    fixture.log.remove_old();
    // The current file had its half of the hour; `2` was over it.
    assert_eq!(fixture.names(), ["1", "2", "current"]);
    let texts = ["2", "1", "current"].map(|name| fixture.text(name));
    assert!(
        texts[0].ends_with("| 1\n") && texts[1].ends_with("| current\n") && texts[2].is_empty(),
        "{texts:?}"
    );
    fixture.log.write(line(0, "new").as_bytes());
    fixture.log.remove_old();
    assert!(fixture.text("current").ends_with("| new\n"), "it has just begun");
    fixture.age("2", 3601);
    fixture.log.remove_old();
    assert_eq!(fixture.names(), ["1", "current"]);
}
