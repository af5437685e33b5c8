//! The file after every kind of damage.

use std::fs;
use std::io::Write;
use std::path::Path;

use super::*;

fn entry(number: u64) -> Entry {
    Entry {
        id: id(number),
        service: "s3".parse().unwrap(),
        operation: Operation::Upgrade,
        mode: Mode::Exclusive,
        from: None,
        to: Some(Version { path: "/srv/s3-2".into(), sha256: Some("ab".repeat(32)), version: None }),
        by: Caller { uid: 7, pid: 8, command: "handoff upgrade s3".to_owned() },
        at: number,
        took_us: 5,
        phases: vec![PhaseTime { phase: "greeting".into(), started_us: 0, took_us: 5 }],
        accept_gap_us: Some(1),
        restarted: false,
        connections: None,
        lost_datagrams: 0,
        outcome: Ending::Committed,
        reason: None,
        generation: Generation(number),
        killed: Vec::new(),
    }
}

fn id(number: u64) -> HandoffId {
    HandoffId::from_bytes(u128::from(number).to_be_bytes())
}

fn read(directory: &Path) -> Vec<u64> {
    History::read(directory, usize::MAX).unwrap().iter().map(|entry| entry.at).collect()
}

#[test]
fn what_was_appended_is_read_the_newest_last() {
    let root = tempfile::tempdir().unwrap();
    assert!(read(root.path()).is_empty(), "there is no file yet");
    let mut history = History::open(root.path());
    (1..=3).for_each(|number| history.append(&entry(number)).unwrap());
    assert_eq!(History::read(root.path(), 2).unwrap(), [entry(2), entry(3)]);
}

#[test]
fn a_later_line_about_the_same_attempt_counts() {
    let root = tempfile::tempdir().unwrap();
    let mut history = History::open(root.path());
    history.append(&Entry { outcome: Ending::UnderWay, ..entry(1) }).unwrap();
    history.append(&Entry { operation: Operation::Stop, ..entry(1) }).unwrap();
    history.append(&entry(1)).unwrap();
    let found = History::read(root.path(), 9).unwrap();
    assert_eq!(found, [entry(1), Entry { operation: Operation::Stop, ..entry(1) }]);
}

#[test]
fn damaged_lines_are_passed_over_and_spoil_no_other() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("history");
    let mut history = History::open(root.path());
    history.append(&entry(1)).unwrap();
    let whole = fs::read(&path).unwrap();
    // Any part of a line may remain after a crash.
    for cut in 0..whole.len() {
        fs::write(&path, [&whole[..], &whole[..cut]].concat()).unwrap();
        History::open(root.path()).append(&entry(2)).unwrap();
        assert_eq!(read(root.path()), [1, 2], "cut at {cut}");
    }
    fs::write(&path, [&whole[..], b"\xff\xfe\n\n{}\n[1]\n", &whole[..]].concat()).unwrap();
    assert_eq!(read(root.path()), [1]);
}

#[test]
fn the_file_stays_short() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("history");
    let mut history = History::with_limit(root.path(), 10);
    let line = serde_json::to_vec(&entry(100)).unwrap().len() as u64 + 1;
    for number in 0..100 {
        // Each daemon counts the existing lines again.
        if number % 7 == 0 {
            history = History::with_limit(root.path(), 10);
        }
        history.append(&entry(number)).unwrap();
        assert!(fs::metadata(&path).unwrap().len() <= 20 * line, "after {number}");
    }
    let kept = read(root.path());
    assert!(kept.len() >= 10 && *kept.last().unwrap() == 99, "{kept:?}");
    assert!(!root.path().join("history.new").exists());
}

#[test]
fn what_a_crash_left_beside_it_is_no_hindrance() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("history.new"), "half a li").unwrap();
    let mut history = History::with_limit(root.path(), 2);
    (0..9).for_each(|number| history.append(&entry(number)).unwrap());
    assert_eq!(read(root.path()).last(), Some(&8));
}

#[test]
fn a_full_disk_costs_an_entry_and_not_the_file() {
    let root = tempfile::tempdir().unwrap();
    let mut history = History::open(root.path());
    history.append(&entry(1)).unwrap();
    // A file that always reports a full disk.
    let full = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", full.path().join("history")).unwrap();
    assert!(History::open(full.path()).append(&entry(2)).is_err());
    assert_eq!(read(root.path()), [1]);
}

#[test]
fn a_huge_file_is_read_from_its_end() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("history");
    let mut file = fs::File::create(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    drop(file);
    file = fs::File::options().append(true).open(&path).unwrap();
    file.write_all(b"\n").unwrap();
    History::open(root.path()).append(&entry(1)).unwrap();
    assert_eq!(read(root.path()), [1]);
}

#[test]
fn long_reasons_are_cut() {
    let root = tempfile::tempdir().unwrap();
    let reason = Some("ä".repeat(100_000));
    History::open(root.path()).append(&Entry { reason, ..entry(1) }).unwrap();
    let found = History::read(root.path(), 1).unwrap().remove(0).reason.unwrap();
    assert_eq!(found.len(), 2_000);
}

#[test]
fn what_a_later_version_wrote_is_read_as_far_as_it_is_known() {
    let mut value = serde_json::to_value(entry(1)).unwrap();
    value["operation"] = "teleport".into();
    value["outcome"] = "teleported".into();
    value["news"] = 7.into();
    let found: Entry = serde_json::from_value(value).unwrap();
    assert_eq!((found.operation, found.outcome), (Operation::Other, Ending::Other));
}
