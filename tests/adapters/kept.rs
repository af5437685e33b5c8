//! Clients that keep their connections and go on asking while the program is replaced, which ends at once at its stop signal.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use handoff::control::api::Ending;

use crate::ALL;
use crate::plain::Plain;
use crate::support::{LIMIT, version, wait_for};

const CLIENTS: usize = 4;

#[test]
fn what_was_begun_on_a_kept_connection_is_answered() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve(adapter, mode, "");
        plain.set("drain_grace = \"200ms\"\n");
        let (begun, stop) = (plain.rig.path("begun"), AtomicBool::new(false));
        let unanswered: Vec<String> = std::thread::scope(|scope| {
            let client = |n: usize| keep_asking(plain.address, &begun, n, &stop);
            let clients: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || client(n))).collect();
            for n in 1..=4 {
                let outcome = plain.upgrade(&n.to_string(), "");
                assert_eq!(outcome.outcome, Ending::Committed, "{adapter} {mode}: {outcome:?}");
                wait_for("the clients to have come over", || {
                    (version(plain.address) == n.to_string()).then_some(())
                });
            }
            stop.store(true, Ordering::Relaxed);
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        let begun = std::fs::read_to_string(&begun).unwrap();
        let cut: Vec<&String> =
            unanswered.iter().filter(|asked| begun.lines().any(|line| line == **asked)).collect();
        assert!(cut.is_empty(), "{adapter} {mode}: begun and not answered: {cut:?}, of {}", unanswered.len());
    }
}

/// What it has asked and got no answer to. A connection that fails with its first request is a panic.
fn keep_asking(address: SocketAddr, begun: &Path, client: usize, stop: &AtomicBool) -> Vec<String> {
    let mut unanswered = Vec::new();
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let connection = TcpStream::connect(address).unwrap();
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        connection.set_nodelay(true).unwrap();
        let mut answers = BufReader::new(&connection);
        let first = count;
        while !stop.load(Ordering::Relaxed) {
            let asked = format!("{client}.{count}");
            count += 1;
            let line = format!("note {} {asked}\n", begun.display());
            let mut answer = String::new();
            let answered =
                (&connection).write_all(line.as_bytes()).and_then(|()| answers.read_line(&mut answer));
            if !matches!(answered, Ok(1..)) {
                assert!(count > first + 1, "a new connection failed: {answered:?}");
                unanswered.push(asked);
                break;
            }
            std::thread::sleep(Duration::from_micros(count * 7 % 10 * 300));
        }
    }
    unanswered
}
