//! A program whose queue is never empty: it accepts one connection at a time, and its clients connect faster.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request};

use crate::support::{LIMIT, Rig, executable, free_address, service, wait_for};

/// SIGTERM ends it at once.
const SERVER: &str = r#"#!/usr/bin/python3
import socket, sys, threading
(host, port), begun = sys.argv[1].rsplit(":", 1), open(sys.argv[2], "a", buffering=1)
listener = socket.socket()
listener.bind((host, int(port)))
listener.listen(64)
while True:
    client, _ = listener.accept()
    with client, client.makefile("rw") as lines:
        asked = lines.readline()
        begun.write(asked)
        threading.Event().wait(0.03)
        lines.write("@VERSION " + asked)
"#;

fn release(rig: &Rig, version: &str) -> PathBuf {
    let path = rig.path(&format!("server-{version}"));
    std::fs::write(&path, SERVER.replace("@VERSION", version)).unwrap();
    executable(&path);
    path
}

/// Sends each request over a new connection. Returns the requests that the server began and did not answer.
fn client(address: SocketAddr, begun: &std::path::Path, name: usize, is_over: &AtomicBool) -> Vec<String> {
    let mut unanswered = Vec::new();
    let until = Instant::now() + 4 * LIMIT;
    for count in 0.. {
        if is_over.load(Ordering::SeqCst) || Instant::now() > until {
            break;
        }
        let asked = format!("{name}.{count}");
        let mut answer = String::new();
        let answered = TcpStream::connect(address).and_then(|mut connection| {
            connection.set_read_timeout(Some(LIMIT))?;
            connection.write_all(format!("{asked}\n").as_bytes())?;
            BufReader::new(connection).read_line(&mut answer)
        });
        if answer.is_empty() {
            unanswered.push(format!("{asked}: {answered:?}"));
        }
    }
    let begun = std::fs::read_to_string(begun).unwrap();
    unanswered.retain(|asked| begun.lines().any(|line| asked.split(':').next() == Some(line)));
    unanswered
}

#[test]
fn a_busy_program_finishes_what_it_has_begun() {
    let (rig, address) = (Rig::new(), free_address());
    let begun = rig.path("begun");
    std::fs::write(&begun, "").unwrap();
    let text = format!(
        "binary = {:?}\nargs = [\"{address}\", {begun:?}]\nadapter = \"inject\"\nmode = \"exclusive\"\n\
         autostart = false\nstore = false\n[listen]\nmain = \"{address}\"\n",
        release(&rig, "0")
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    let is_over = AtomicBool::new(false);
    let (is_over, begun) = (&is_over, &begun);
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..12).map(|name| scope.spawn(move || client(address, begun, name, is_over))).collect();
        let upgrades = scope.spawn(|| {
            for version in 1..=4 {
                // The queue fills up again.
                let since = Instant::now();
                wait_for("a queue", || (since.elapsed() > Duration::from_millis(300)).then_some(()));
                let outcome = rig.upgrade("s", &release(&rig, &version.to_string())).unwrap();
                assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
                assert!(outcome.connections.is_some(), "they are counted");
            }
        });
        let upgraded = upgrades.join();
        is_over.store(true, Ordering::SeqCst);
        let cut: Vec<String> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        upgraded.unwrap();
        assert!(cut.is_empty(), "begun and not answered: {cut:?}");
    });
}
