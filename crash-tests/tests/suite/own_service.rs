//! `handoff crash-test` with a service file and a load as an author of a service brings them: what the load says counts.

use std::path::Path;
use std::process::{Command, Output};

use crate::built::services;

#[test]
fn what_the_load_says_decides() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("echo.toml");
    let text = format!(
        "binary = {:?}\nargs = [\"{{dir}}/data\"]\n\n[listen]\nmain = \"127.0.0.1:9000\"\n",
        services().join("examples/testee")
    );
    std::fs::write(&file, text).unwrap();

    let ran = crash_test(&file, r#"{"ok": true, "acknowledged": 3}"#, 0);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let report = dir.path().join("report.xml");
    assert!(std::fs::read_to_string(&report).unwrap().contains("failures=\"0\" skipped=\"0\""));

    for (said, exit, told) in [
        (r#"{"ok": true, "lost": 1, "first": "the letter a"}"#, 0, "lost 1"),
        (r#"{"ok": true, "cut": 2}"#, 0, "cut 2"),
        (r#"{"ok": false}"#, 0, "not well"),
        (r#"{"ok": true}"#, 3, "not well"),
        ("fine", 0, "which is no result"),
    ] {
        let ran = crash_test(&file, said, exit);
        let err = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(1), "{said}: {ran:?}");
        assert!(err.contains("FAILED --only upgrade\n") && err.contains(told), "{said}: {err}");
    }
    assert!(std::fs::read_to_string(&report).unwrap().contains("which is no result"));
}

/// An upgrade without faults under a load that ends with these words.
fn crash_test(file: &Path, said: &str, exit: i32) -> Output {
    let load = format!(
        r#"trap 'echo "$SAID"; exit {exit}' TERM; test -n "$HANDOFF_LISTEN_MAIN" || exit 9; while :; do sleep 0.05; done"#
    );
    // The lease that a busy machine needs, as in `quick`.
    Command::new(env!("CARGO_BIN_EXE_crash-tests"))
        .args(["crash-test", "--only", "upgrade", "--lease", "2s", "--junit"])
        .arg(file.with_file_name("report.xml"))
        .arg(file)
        .args(["--load", "sh", "-c", &load])
        .env("SAID", said)
        .output()
        .unwrap()
}
