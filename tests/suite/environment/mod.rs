//! What a program gets when it is started.

mod credentials;
mod files;
mod mistakes;
mod placeholders;
mod user;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use handoff::control::api::Request;
use handoff::sys::user::effective_user;

use crate::support::{Rig, service};

/// A program that listens at the address in its first argument, and sends one line to each client.
const PYTHON: &str = r#"
import os, socket, sys
host, port = sys.argv[1].rsplit(":", 1)
listener = socket.create_server((host, int(port)))
open("/dev/stderr", "w").write("started\n")
if "ADMIN" in os.environ:
    admin = socket.socket(socket.AF_UNIX)
    admin.bind(os.environ["ADMIN"])
    admin.listen()
while True:
    connection, _ = listener.accept()
    if connection.recv(100):
        connection.sendall(b"%d\n" % os.getpid())
    connection.close()
"#;

/// The environment with which a process was started.
fn environment_of(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let entries = text.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    entries
        .filter_map(|entry| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect()
}

/// The arguments of a process.
fn arguments_of(pid: u32) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    text.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

/// Everything that handoff shows or keeps of the service `s`, apart from the processes themselves.
fn shown(rig: &Rig) -> String {
    let mut shown = rig.daemon_log();
    for args in [
        &["status", "s"][..],
        &["status", "s", "--json"],
        &["list", "--json"],
        &["history", "s", "--json"],
        &["show", "s", "--json"],
    ] {
        let output = rig.run(args);
        shown.push_str(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    }
    let mut folders = vec![rig.path("state")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => shown.push_str(&String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap())),
            }
        }
    }
    shown
}

/// A field of `/proc/PID/status`.
fn status_field(pid: u32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name}: {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A daemon whose files other users reach. `None`, with a message, without root.
fn open_rig() -> Option<Rig> {
    if effective_user() != 0 {
        eprintln!("not run: it needs root");
        return None;
    }
    let rig = Rig::new();
    std::fs::set_permissions(rig.root.path(), PermissionsExt::from_mode(0o711)).unwrap();
    Some(rig)
}

fn kill_daemon(rig: &mut Rig) {
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

fn start(rig: &Rig) -> u32 {
    rig.call(Request::Start(service("s"))).unwrap();
    rig.status("s").pid.unwrap()
}

/// Replaces a part of the service file.
fn edit(rig: &Rig, from: &str, to: &str) {
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}
