//! Programs that drop their privileges after binding their ports.

use std::os::unix::fs::PermissionsExt;

use handoff::control::api::{Ending, Request};
use handoff::sys::user::effective_user;
use serde_json::Value;

use crate::support::{Rig, ask, copy_program, free_address, service};

/// Binds, becomes the user `nobody`, reports readiness, and exits if the report fails. It answers with its user id.
const PYTHON: &str = r#"
import os, socket, sys
host, port = sys.argv[1].split(":")
listener = socket.create_server((host, int(port)))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
name = os.environ.get("NOTIFY_SOCKET")
if name:
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", name)
while True:
    connection, _ = listener.accept()
    if connection.recv(100):
        connection.sendall(b"%d\n" % os.getuid())
    connection.close()
"#;

/// Only root has privileges to drop.
#[test]
fn a_program_that_gives_its_privileges_up_says_that_it_is_ready() {
    if effective_user() != 0 {
        return;
    }
    let rig = Rig::new();
    std::fs::set_permissions(rig.root.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let address = free_address();
    let text = |version: u32| {
        format!(
            "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{address}\"]\nautostart = false\nstore = false\n\
             adapter = \"inject\"\nmode = \"overlap\"\nnotify = true\nenv = {{ N = \"{version}\" }}\n[listen]\nmain = \"{address}\"\n"
        )
    };
    let file = rig.path("config/services/s.toml");
    std::fs::write(&file, text(1)).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(ask(address, "who").unwrap(), "65534");
    std::fs::write(&file, text(2)).unwrap();
    // A copy is a different file, so it differs from the running program.
    let copy = rig.path("python3");
    copy_program("/usr/bin/python3", &copy);
    let outcome = rig.upgrade("s", &copy).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");

    // With the key and without it: without it, the doctor also tries the program without the socket.
    for keys in ["notify = true", "notify = false"] {
        std::fs::write(&file, text(2).replace("notify = true", keys)).unwrap();
        std::fs::create_dir_all(rig.path("tmp")).unwrap();
        let mut doctor = rig.handoff(&["doctor", "s", "--json", "--timeout", "5s"]);
        let output = doctor.env("TMPDIR", rig.path("tmp")).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{keys}: {said:#}");
    }
    let left: Vec<_> = std::fs::read_dir(rig.path("run/notify")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "one program runs: {left:?}");
}
