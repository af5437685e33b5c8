//! Answers that a program writes in parts, with pauses between them. The program ends immediately at its stop signal.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request, Response};

use crate::support::{LIMIT, Rig, executable, free_address, service};

/// Records each line, answers with a head, and 20 ms later with a body. A busy machine lengthens that pause; the
/// service file sets the limit. With a third argument, the server sends itself a request over a kept connection before
/// each answer.
const SERVER: &str = r#"#!/usr/bin/python3
import socket, sys, threading
host, port = sys.argv[1].rsplit(":", 1)
own = None
lock = threading.Lock()
def serve(client):
    with client, client.makefile("rw") as lines:
        for line in lines:
            if line == "own\n":
                threading.Event().wait(0.01)
                lines.write("own\n")
                lines.flush()
                continue
            with open(sys.argv[2], "a") as begun:
                begun.write(line)
            if own:
                with lock:
                    own.write("own\n")
                    own.flush()
                    if own.readline() != "own\n":
                        lines.write("503\n")
                        lines.flush()
                        continue
            lines.write("head\n")
            lines.flush()
            threading.Event().wait(0.02)
            lines.write("body\n")
            lines.flush()
listener = socket.socket()
listener.bind((host, int(port)))
listener.listen()
def accept():
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
if sys.argv[3:]:
    own = socket.create_connection((host, int(port))).makefile("rw")
threading.Event().wait()
"#;

const CLIENTS: usize = 4;
const UPGRADES: usize = 6;

/// Restarts the server while clients send requests over kept connections. No answer that the server has begun may be
/// cut.
fn nothing_is_cut(mode: &str, args: &str) {
    let rig = Rig::new();
    let (server, address, begun) = (rig.path("server"), free_address(), rig.path("begun"));
    std::fs::write(&server, SERVER).unwrap();
    executable(&server);
    let text = format!(
        "binary = {server:?}\nargs = [\"{address}\", {begun:?}{args}]\nstore = false\nautostart = false\nadapter = \"inject\"\nmode = \"{mode}\"\n\
         drain_grace = \"20s\"\nanswer_pause = \"500ms\"\n[listen]\nmain = \"{address}\"\n"
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let is_over = &is_over;
        let clients: Vec<_> =
            (0..CLIENTS).map(|n| scope.spawn(move || keep_asking(address, n, is_over))).collect();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..UPGRADES {
                match rig.call(Request::Restart(service("s"))).unwrap() {
                    Response::Outcome(outcome) => {
                        assert_eq!(outcome.outcome, Ending::Committed, "{mode}: {outcome:?}");
                        assert_eq!(outcome.killed, [], "{mode}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }));
        is_over.store(true, Ordering::SeqCst);
        let failed: Vec<(String, String)> =
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let begun = std::fs::read_to_string(&begun).unwrap();
        let is_begun = |asked: &String| begun.lines().any(|line| line == asked);
        let cut: Vec<_> = failed.into_iter().filter(|(asked, _)| is_begun(asked)).collect();
        assert!(cut.is_empty(), "{mode}: {cut:?}");
    })
}

/// Returns each request whose connection ended before a complete answer, and the part of the answer that arrived.
fn keep_asking(address: SocketAddr, client: usize, is_over: &AtomicBool) -> Vec<(String, String)> {
    let (mut failed, mut kept) = (Vec::new(), None::<BufReader<TcpStream>>);
    let until = Instant::now() + 4 * LIMIT;
    for count in 0_u64.. {
        if is_over.load(Ordering::SeqCst) || Instant::now() > until {
            break;
        }
        std::thread::sleep(Duration::from_millis(count * 7 % 5 * 10));
        let is_new = kept.is_none();
        let connection = kept.get_or_insert_with(|| {
            let connection = TcpStream::connect(address).unwrap();
            connection.set_read_timeout(Some(LIMIT)).unwrap();
            connection.set_nodelay(true).unwrap();
            BufReader::new(connection)
        });
        let (mut head, mut body, asked) = (String::new(), String::new(), format!("{client}.{count}"));
        let begun = connection.get_mut().write_all(format!("{asked}\n").as_bytes());
        let begun = begun.and_then(|()| connection.read_line(&mut head));
        assert!(matches!(begun, Ok(1..)) || !is_new, "a new connection failed: {begun:?}");
        let ended = connection.read_line(&mut body);
        if (head.as_str(), body.as_str()) != ("head\n", "body\n") {
            failed.push((asked, format!("{head:?} {body:?} {ended:?}")));
            kept = None;
        }
    }
    failed
}

#[test]
fn an_answer_is_not_cut_in_the_pause_after_its_head() {
    ["exclusive", "overlap"].into_iter().for_each(|mode| nothing_is_cut(mode, ""));
}

#[test]
fn what_a_program_asks_itself_is_not_held_back() {
    nothing_is_cut("exclusive", ", \"own\"");
}
