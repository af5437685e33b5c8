//! Probes of programs that bind a unix socket and do not accept.

use handoff::control::api::{Ending, Request};

use crate::support::{Rig, executable, service};

const SERVER: &str = r#"#!/usr/bin/python3
import os, select, signal, socket, sys
listener = socket.socket(socket.AF_UNIX)
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
listener.bind(sys.argv[1])
listener.listen(16)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
kept = []
while True:
    if "@VERSION" == "deaf":
        signal.pause()
    select.select([], [], [], @PAUSE)
    kept.append(listener.accept())
"#;

#[test]
fn a_connection_that_only_waits_at_a_unix_socket_does_not_pass() {
    for mode in ["overlap", "exclusive"] {
        let rig = Rig::new();
        let release = |version: &str, pause: &str| {
            let path = rig.path(&format!("server-{version}"));
            std::fs::write(&path, SERVER.replace("@VERSION", version).replace("@PAUSE", pause)).unwrap();
            executable(&path);
            path
        };
        let socket = rig.path("s.sock");
        let text = format!(
            "binary = {:?}\nargs = [{socket:?}]\nadapter = \"inject\"\nmode = {mode:?}\nautostart = false\nstore = false\n\
             drain = \"nothing\"\n[listen]\nmain = \"unix:{}\"\n[probe]\ntcp = true\ntimeout = \"300ms\"\nlimit = \"4s\"\n",
            release("0", "0"),
            socket.display(),
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(service("s"))).unwrap();
        let outcome = rig.upgrade("s", &release("deaf", "0")).unwrap();
        assert_eq!(outcome.outcome, Ending::RolledBack, "{mode}: {outcome:?}");
        assert!(outcome.reason.as_ref().unwrap().contains("was not accepted"), "{outcome:?}");
        // A slow program: the probe keeps its place in the queue over several attempts.
        let outcome = rig.upgrade("s", &release("slow", "0.7")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{mode}: {outcome:?}");
    }
}
