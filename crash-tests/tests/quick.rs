//! A run of each kind, as a part of `cargo test`. `cargo crash-tests` runs all of them.

use std::process::{Command, Stdio};

fn quick(service: &str, more: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crash-tests"));
    command.args(["--quick", "--service", service]).args(more).stdin(Stdio::null());
    let ran = command.output().expect("the harness starts");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{err}\n{out}");
}

#[test]
fn the_s3_server_goes_on_whoever_dies() {
    quick("s3", &["--scenario", "serve,upgrade"]);
}
