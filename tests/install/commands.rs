//! The commands of the service file, around what is installed.

use std::fs;
use std::time::{Duration, Instant};

use super::Stored;
use super::support::{self, version};

/// A script that is a command.
fn script(directory: &std::path::Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    support::executable(&path);
    path.display().to_string()
}

#[test]
fn a_preflight_that_fails_or_hangs_refuses_the_version() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let check = script(
        place.path(),
        "check",
        "case \"$1\" in *-2) echo no good >&2; exit 3;; *-3) sleep 1000;; esac",
    );
    let stored =
        Stored::serve(&format!("preflight = [{check:?}, \"{{binary}}\"]\npreflight_limit = \"1s\"\n"));
    let failed = stored.installed(&stored.rig.release("2", ""), &[]);
    assert_eq!(failed.code, Some(6), "{failed:?}");
    assert!(failed.said.contains("no good"), "{failed:?}");
    stored.is_untouched();
    let began = Instant::now();
    let hung = stored.installed(&stored.rig.release("3", ""), &[]);
    assert_eq!(hung.code, Some(6), "{hung:?}");
    assert!(
        hung.said.contains("did not end within 1s") && began.elapsed() < Duration::from_secs(20),
        "{hung:?}"
    );
    stored.is_untouched();
    assert_eq!(stored.installed(&stored.rig.release("4", ""), &[]).code, Some(0));
    assert_eq!(version(stored.address), "4");
}

#[test]
fn the_hooks_are_told_what_they_are_for() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let told = place.path().join("told");
    let tell = script(
        place.path(),
        "tell",
        &format!(
            "echo \"$1 $HANDOFF_SERVICE $HANDOFF_REASON $HANDOFF_FROM_VERSION to $HANDOFF_TO_VERSION: $HANDOFF_CAUSE\" >> {}\n\
             case \"$1 $HANDOFF_TO\" in before*-5) exit 1;; esac; test -x \"$HANDOFF_TO\"",
            told.display()
        ),
    );
    let stored = Stored::serve(&format!(
        "[hooks]\npre_upgrade = [{tell:?}, \"before\"]\npost_commit = [{tell:?}, \"committed\"]\npost_rollback = [{tell:?}, \"back\"]\n"
    ));
    assert_eq!(stored.installed(&stored.rig.release("2", ""), &[]).code, Some(0));
    assert_eq!(stored.installed(&stored.rig.release("3", "unhealthy"), &[]).code, Some(4));
    assert_eq!(stored.run(&["rollback", "s"]).code, Some(0));
    let aborted = stored.installed(&stored.rig.release("5", ""), &[]);
    assert_eq!(aborted.code, Some(6), "{aborted:?}");
    let lines = fs::read_to_string(&told).unwrap();
    let lines: Vec<&str> = lines.lines().map(|line| line.split(": told").next().unwrap_or(line)).collect();
    assert_eq!(
        lines[..3],
        [
            "before s install testee 1 to testee 2: ",
            "committed s install testee 1 to testee 2: ",
            "before s install testee 2 to testee 3: ",
        ]
    );
    assert!(lines[3].starts_with("back s install testee 2 to testee 3: "), "{lines:?}");
    assert_eq!(
        lines[4..],
        [
            "before s rollback testee 2 to testee 1: ",
            "committed s rollback testee 2 to testee 1: ",
            "before s install testee 1 to testee 5: ",
        ]
    );
    assert_eq!(version(stored.address), "1");
}
