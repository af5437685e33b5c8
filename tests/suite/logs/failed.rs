//! What a process that failed wrote at last is in the answer, and in the status.

use handoff::control::api::{Request, State};
use serde_json::Value;

use super::Talker;
use crate::support::{Rig, executable, free_address, service, wait_for};

/// A program that fails: twelve lines, the last on standard error.
fn failing(rig: &Rig, name: &str) -> std::path::PathBuf {
    let path = rig.path(name);
    let script = format!(
        "#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8 9 10 11; do echo {name} $n; done\nsleep 0.3\necho {name} fails >&2\nexit 3\n"
    );
    std::fs::write(&path, script).unwrap();
    executable(&path);
    path
}

/// The lines that a program with this name has written at last, without those of its shim.
fn is_of(name: &str, last_lines: &Value) {
    let lines: Vec<&str> =
        last_lines["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert!(lines.len() == 10 && lines.contains(&&*format!("{name} fails")), "{last_lines}");
    let is_own = |line: &&str| line.starts_with(&format!("{name} ")) || line.starts_with("handoff: ");
    assert!(lines.iter().all(is_own), "{last_lines}");
}

#[test]
fn a_start_that_fails_shows_them_and_so_does_the_status() {
    let rig = Rig::new();
    let address = free_address();
    for name in ["one", "two"] {
        let text = format!(
            "binary = {:?}\nautostart = false\nstore = false\nadapter = \"listen-fds\"\n\
             backoff = {{ first = \"1min\", max = \"1min\" }}\n[listen]\nmain = \"{}\"\n",
            failing(&rig, name),
            if name == "one" { address } else { free_address() }
        );
        std::fs::write(rig.path(&format!("config/services/{name}.toml")), text).unwrap();
    }
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            let rig = &rig;
            scope.spawn(move || {
                let output = rig.run(&["start", name, "--json"]);
                let text = String::from_utf8(output.stdout).unwrap();
                let error: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
                is_of(name, &error["error"]["last_lines"]);
            });
        }
    });
    let status = wait_for("the pause before the next start", || {
        Some(rig.status("one")).filter(|status| status.state == State::Backoff && status.last_lines.is_some())
    });
    is_of("one", &serde_json::to_value(status.last_lines).unwrap());
    let shown = String::from_utf8(rig.run(&["status", "one"]).stdout).unwrap();
    assert!(
        shown.contains("the last lines of that process (pid ") && shown.contains("| one fails"),
        "{shown}"
    );
    rig.call(Request::Stop(service("one"))).unwrap();
    let output = rig.run(&["start", "one"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("The last lines of that process (pid ") && told.contains("\n  | one fails\n"),
        "{told}"
    );
}

#[test]
fn an_upgrade_that_fails_shows_those_of_the_new_process_alone() {
    let talker = Talker::serve("");
    talker.out(b"of the old process\n");
    talker.objects("of the old process");
    let bad = failing(&talker.rig, "bad");
    let old = talker.rig.status("web");
    let outcome = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| talker.rig.upgrade("web", &bad));
        while !upgrade.is_finished() {
            talker.out(b"of the old process\n");
        }
        upgrade.join().unwrap().unwrap()
    });
    let last_lines = outcome.last_lines.expect("last lines");
    assert_eq!(last_lines.generation, 2);
    assert!(Some(last_lines.pid) != old.shim && last_lines.pid != old.pid.unwrap());
    is_of("bad", &serde_json::to_value(last_lines).unwrap());
    let printed = talker.rig.run(&["upgrade", "web", "--binary", &bad.to_string_lossy()]);
    assert_eq!(printed.status.code(), Some(4));
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("\n  | bad 11\n") && printed.contains("\n  | bad fails\n"), "{printed}");
    assert!(!printed.contains("of the old process"), "{printed}");
    // A failure without a process of its own shows no lines of an earlier one.
    let missing = talker.rig.run(&["upgrade", "web", "--binary", "/nonexistent/program"]);
    let told = String::from_utf8([missing.stdout, missing.stderr].concat()).unwrap();
    assert!(!told.contains("last lines"), "{told}");
}
