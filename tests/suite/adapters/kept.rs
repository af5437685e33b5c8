//! Clients keep their connections and continue to send requests while the program is replaced. The program ends
//! immediately at its stop signal.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use handoff::control::api::Ending;

use super::ALL;
use super::plain::Plain;
use crate::support::{LIMIT, version};

const CLIENTS: usize = 4;

#[test]
fn what_was_begun_on_a_kept_connection_is_answered() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve(adapter, mode, "");
        // In overlap mode these connections last until the end of the drain grace.
        plain.set(if mode == "overlap" { "drain_grace = \"200ms\"\n" } else { "drain_grace = \"5s\"\n" });
        let begun = plain.rig.path("begun");
        let unanswered: Vec<String> = std::thread::scope(|scope| {
            let (address, begun) = (plain.address, &begun);
            // The clients end when the sender is dropped, also by a panic.
            let clients: Vec<_> = (0..CLIENTS)
                .map(|n| {
                    let (go_on, told) = channel();
                    (go_on, scope.spawn(move || keep_asking(address, begun, n, &told)))
                })
                .collect();
            for n in 1..=4 {
                let outcome = plain.upgrade(&n.to_string(), "");
                assert_eq!(outcome.outcome, Ending::Committed, "{adapter} {mode}: {outcome:?}");
                assert_eq!(version(address), n.to_string(), "{adapter} {mode}");
            }
            let (go_on, clients): (Vec<_>, Vec<_>) = clients.into_iter().unzip();
            drop(go_on);
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        let begun = std::fs::read_to_string(&begun).unwrap();
        let cut: Vec<&String> =
            unanswered.iter().filter(|asked| begun.lines().any(|line| line == **asked)).collect();
        assert!(cut.is_empty(), "{adapter} {mode}: begun and not answered: {cut:?}, of {}", unanswered.len());
    }
}

/// Returns the requests that got no answer, until the sender of `told` is dropped. Panics if the first request of a
/// connection fails.
fn keep_asking(address: SocketAddr, begun: &Path, client: usize, told: &Receiver<()>) -> Vec<String> {
    let mut unanswered = Vec::new();
    let mut connection: Option<BufReader<TcpStream>> = None;
    for count in 0_u64.. {
        // Some pauses are longer than the delay after which a client's kernel acknowledges an answer.
        let pause = Duration::from_millis(count * 7 % 10 * 30);
        if told.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            break;
        }
        let is_new = connection.is_none();
        let kept = connection.get_or_insert_with(|| connect(address));
        let asked = format!("{client}.{count}");
        let line = format!("note {} {asked}\n", begun.display());
        let mut answer = String::new();
        let answered = kept.get_mut().write_all(line.as_bytes()).and_then(|()| kept.read_line(&mut answer));
        if !matches!(answered, Ok(1..)) {
            assert!(!is_new, "a new connection failed: {answered:?}");
            unanswered.push(asked);
            connection = None;
        }
    }
    unanswered
}

fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    let connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    connection.set_nodelay(true).unwrap();
    BufReader::new(connection)
}
