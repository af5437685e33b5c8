//! A run of each kind, as a part of `cargo test`. `cargo crash-tests` runs all of them.

use std::process::{Command, Stdio};

use crate::built::services;

fn quick(service: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crash-tests"));
    command.args(["--quick", "--lease", "2s", "--service", service]).arg("--built").arg(services());
    let ran = command.stdin(Stdio::null()).output();
    let ran = ran.expect("the harness starts");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{err}\n{out}");
}

// A lease of 2 s: each point that a process passes asks the harness, which on a machine with much else to do takes its time.
// One after the other: each keeps the machine busy, and what a busy machine adds to any time is limited.
#[test]
fn services_go_on_whoever_dies() {
    quick("s3");
    quick("overlap");
}
