//! An upgrade counts the datagrams that it loses, and every report has the number.

use std::net::UdpSocket;

use handoff::control::api::{Ending, Outcome, Request};

use crate::support::{Rig, executable, free_address, service, wait_for};

/// Never reads (`deaf`), or waits for the file of its second argument before it binds (`late`).
const SERVER: &str = r#"#!/usr/bin/python3
import os, select, signal, socket, sys
port, gate, log = sys.argv[1:4]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if "@VERSION" == "late":
    open(log, "w").close()
    while not os.path.exists(gate):
        select.select([], [], [], 0.01)
s.bind(("127.0.0.1", int(port)))
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    if "@VERSION" == "deaf":
        signal.pause()
    s.recvfrom(100)
"#;

struct ServedClient {
    rig: Rig,
    client: UdpSocket,
}

impl ServedClient {
    fn start(mode: &str, version: &str) -> Self {
        let (rig, address) = (Rig::new(), free_address());
        let served = Self { rig, client: UdpSocket::bind("127.0.0.1:0").unwrap() };
        served.client.connect(address).unwrap();
        let text = format!(
            "binary = {:?}\nargs = [\"{}\", {:?}, {:?}]\nadapter = \"inject\"\nmode = {mode:?}\nautostart = false\n\
             store = false\nanswer_grace = \"0s\"\ndrain = \"nothing\"\n[listen]\nmain = \"udp:{address}\"\n",
            served.release(version),
            address.port(),
            served.rig.path("gate"),
            served.rig.path("started"),
        );
        std::fs::write(served.rig.path("config/services/s.toml"), text).unwrap();
        served.rig.call(Request::Start(service("s"))).unwrap();
        served
    }

    fn release(&self, version: &str) -> std::path::PathBuf {
        let path = self.rig.path(&format!("server-{version}"));
        std::fs::write(&path, SERVER.replace("@VERSION", version)).unwrap();
        executable(&path);
        path
    }

    /// Checks that the answer, the status and the history report the same.
    fn is_reported(&self, outcome: &Outcome) {
        let lost = outcome.lost_datagrams;
        assert_eq!(self.rig.status("s").last_handoff.unwrap().lost_datagrams, lost);
        let printed = |args: &[&str]| {
            let output = self.rig.handoff(args).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let history = printed(&["history", "s"]);
        assert!(history.contains(&format!(", {lost} lost")), "{history}");
        let json = printed(&["history", "s", "--json"]);
        assert!(json.contains(&format!("\"lost_datagrams\":{lost}")), "{json}");
    }
}

#[test]
fn what_an_old_process_has_not_read_is_reported() {
    let served = ServedClient::start("overlap", "deaf");
    for _ in 0..7 {
        served.client.send(b"x").unwrap();
    }
    let outcome = served.rig.upgrade("s", &served.release("1")).unwrap();
    assert_eq!((outcome.outcome, outcome.lost_datagrams), (Ending::Committed, 7), "{outcome:?}");
    served.is_reported(&outcome);
    let outcome = served.rig.upgrade("s", &served.release("2")).unwrap();
    assert_eq!((outcome.outcome, outcome.lost_datagrams), (Ending::Committed, 0), "{outcome:?}");
}

/// The client sends more than the receive buffer holds, while no process reads.
#[test]
fn what_finds_no_room_while_no_process_reads_is_reported() {
    const SENT: u64 = 3_000;
    let served = ServedClient::start("exclusive", "0");
    let late = served.release("late");
    let outcome = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| served.rig.upgrade("s", &late).unwrap());
        wait_for("the gap", || served.rig.path("started").exists().then_some(()));
        let long = [0; 60_000];
        for _ in 0..SENT {
            served.client.send(&long).unwrap();
        }
        std::fs::write(served.rig.path("gate"), "").unwrap();
        upgrade.join().unwrap()
    });
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert!((1..SENT).contains(&outcome.lost_datagrams), "{outcome:?}");
    served.is_reported(&outcome);
}
