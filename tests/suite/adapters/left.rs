//! Programs that shut down or close their listeners, and run on.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request};
use handoff::sys::process::Signal;

use crate::support::{LIMIT, Rig, executable, free_address, service, signal, unlabelled, wait_for};

/// At SIGUSR1 it acts on its listener as its arguments say, and runs on without it.
const SERVER: &str = r#"#!/usr/bin/python3
import ctypes, os, select, signal, socket, sys
VERSION = b"@VERSION\n"
kind, where, act = sys.argv[1:4]
family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
at = where if kind == "unix" else (where.split(":")[0], int(where.split(":")[1]))
if "LISTEN_FDS" in os.environ:
    listener = socket.socket(fileno=3)
else:
    listener = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    listener.bind(at)
    if kind != "udp":
        listener.listen(16)
wake, woken = socket.socketpair()
woken.setblocking(False)
signal.set_wakeup_fd(woken.fileno())
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    ready, _, _ = select.select([listener, wake], [], [])
    if wake in ready:
        wake.recv(1)
        break
    if kind == "udp":
        _, client = listener.recvfrom(100)
        listener.sendto(VERSION, client)
        continue
    connection, _ = listener.accept()
    if connection.makefile().readline():
        connection.sendall(VERSION)
    connection.close()
if act == "shutdown":
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # Of a datagram socket that is not connected; it is shut down all the same.
elif act == "close":
    listener.close()
elif act == "connect":
    if kind == "udp":
        listener.connect(("127.0.0.1", 9))
    else:
        ctypes.CDLL(None).connect(listener.fileno(), bytes(16), 16)  # AF_UNSPEC: it is a listener no more.
elif act == "dup2":
    os.dup2(wake.fileno(), listener.fileno())
print("done", flush=True)
while True:
    signal.pause()
"#;

struct Server {
    rig: Rig,
    kind: &'static str,
    place: String,
    what: String,
}

impl Server {
    fn serve(kind: &'static str, act: &str, adapter: &str, mode: &str, more: &str) -> Self {
        let rig = Rig::new();
        let (place, listen) = match kind {
            "unix" => {
                let path = rig.path("s.sock").display().to_string();
                (path.clone(), format!("unix:{path}"))
            }
            "udp" => {
                let address = free_address().to_string();
                (address.clone(), format!("udp:{address}"))
            }
            _ => {
                let address = free_address().to_string();
                (address.clone(), address)
            }
        };
        let server = Self { rig, kind, place, what: format!("{kind} {act} {adapter} {mode}") };
        let probe = if kind == "udp" { "notify = false\n[probe]\nexec = [\"/bin/true\"]\n" } else { "" };
        let text = format!(
            "binary = {:?}\nargs = [{kind:?}, {:?}, {act:?}]\nadapter = {adapter:?}\nmode = {mode:?}\nautostart = false\n\
             store = false\n{more}\n{probe}[listen]\nmain = {listen:?}\n",
            server.release("0"),
            server.place,
        );
        std::fs::write(server.rig.path("config/services/s.toml"), text).unwrap();
        server
            .rig
            .call(Request::Start(service("s")))
            .unwrap_or_else(|error| panic!("{}: {error}", server.what));
        assert_eq!(server.ask().unwrap(), "0", "{}", server.what);
        server
    }

    fn release(&self, version: &str) -> PathBuf {
        let path = self.rig.path(&format!("server-{version}"));
        std::fs::write(&path, SERVER.replace("@VERSION", version)).unwrap();
        executable(&path);
        path
    }

    /// One client, which never connects a second time. A datagram is sent repeatedly until it is answered.
    fn ask(&self) -> std::io::Result<String> {
        if self.kind == "udp" {
            let client = UdpSocket::bind("127.0.0.1:0")?;
            client.set_read_timeout(Some(Duration::from_millis(200)))?;
            let until = Instant::now() + LIMIT;
            loop {
                client.send_to(b"x\n", &self.place)?;
                let mut answer = [0; 16];
                match client.recv(&mut answer) {
                    Ok(length) => return Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned()),
                    Err(error)
                        if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until => {}
                    Err(error) => return Err(error),
                }
            }
        }
        fn over(mut connection: impl Read + Write) -> std::io::Result<String> {
            connection.write_all(b"x\n")?;
            let mut answer = String::new();
            BufReader::new(connection).read_line(&mut answer)?;
            Ok(answer.trim().to_owned())
        }
        if self.kind == "unix" {
            let connection = UnixStream::connect(&self.place)?;
            connection.set_read_timeout(Some(LIMIT))?;
            return over(connection);
        }
        let connection = TcpStream::connect(&self.place)?;
        connection.set_read_timeout(Some(LIMIT))?;
        over(connection)
    }

    /// After the end of a listener, clients are refused for a moment, until the daemon detects it.
    fn ask_after_a_moment(&self) -> std::io::Result<String> {
        let until = Instant::now() + LIMIT;
        loop {
            match self.ask() {
                Err(error)
                    if error.kind() == std::io::ErrorKind::ConnectionRefused && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                answer => return answer,
            }
        }
    }

    /// Makes the program act on its listener. It runs on.
    fn act(&self) -> u32 {
        let program = wait_for("its program", || self.rig.status("s").pid);
        let done = || {
            let log =
                std::fs::read_to_string(self.rig.path("state/services/s/log/current")).unwrap_or_default();
            unlabelled(&log).lines().filter(|line| *line == "done").count()
        };
        let before = done();
        signal(program, Signal::SIGUSR1);
        wait_for("the program to do it", || (done() > before).then_some(()));
        program
    }

    fn problem(&self) -> String {
        let problem = self.rig.status("s").problem.unwrap_or_default();
        assert!(problem.contains("does not have the listener main"), "{}: {problem:?}", self.what);
        problem
    }
}

fn serves_on(kind: &'static str, acts: &[&str], adapters: &[&str]) {
    for act in acts {
        for adapter in adapters {
            for mode in ["overlap", "exclusive"] {
                let server = Server::serve(kind, act, adapter, mode, "");
                // If the listener ends before the daemon sees it at the program, the daemon assumes that the program
                // never had it.
                wait_for("the daemon to see the listener", || {
                    server.rig.daemon_log().contains("the program has had its listeners").then_some(())
                });
                let before = server.act();
                let answer = server.ask_after_a_moment();
                assert_eq!(answer.as_deref().ok(), Some("0"), "{}: {answer:?}", server.what);
                wait_for("another program and nothing wrong", || {
                    let status = server.rig.status("s");
                    let is_well =
                        status.pid.is_some_and(|program| program != before) && status.problem.is_none();
                    (is_well && status.phase.is_none()).then_some(())
                });
                // The next program does the same immediately. The daemon leaves it alone and reports it. The program
                // after that serves the clients.
                server.act();
                server.problem();
                std::thread::scope(|scope| {
                    let waiting = scope.spawn(|| server.ask_after_a_moment());
                    let outcome = server.rig.upgrade("s", &server.release("1")).unwrap();
                    assert_eq!(outcome.outcome, Ending::Committed, "{}: {outcome:?}", server.what);
                    let answer = waiting.join().unwrap();
                    assert_eq!(answer.as_deref().ok(), Some("1"), "{}: {answer:?}", server.what);
                });
                assert_eq!(server.rig.looked_at("s").problem, None, "{}", server.what);
            }
        }
    }
}

#[test]
fn a_service_whose_program_ends_its_tcp_listener_and_runs_on_serves_on() {
    serves_on("tcp", &["shutdown", "connect"], &["inject", "listen-fds"]);
}

#[test]
fn a_service_whose_program_ends_its_unix_listener_and_runs_on_serves_on() {
    serves_on("unix", &["shutdown"], &["inject", "listen-fds"]);
}

#[test]
fn a_service_whose_program_ends_its_datagram_socket_and_runs_on_serves_on() {
    serves_on("udp", &["shutdown"], &["inject"]);
}

#[test]
fn a_service_whose_program_closes_its_listener_and_runs_on_serves_on() {
    serves_on("tcp", &["close"], &["inject", "listen-fds"]);
    serves_on("tcp", &["dup2"], &["inject"]);
    serves_on("unix", &["close"], &["inject"]);
    serves_on("udp", &["close"], &["inject"]);
}

#[test]
fn a_datagram_socket_that_its_program_connects_is_reported_and_replaced() {
    for mode in ["overlap", "exclusive"] {
        let server = Server::serve("udp", "connect", "inject", mode, "");
        server.act();
        server.problem();
        let outcome = server.rig.upgrade("s", &server.release("1")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{}: {outcome:?}", server.what);
        assert_eq!(server.ask().unwrap(), "1", "{}", server.what);
    }
}

#[test]
fn a_program_without_the_listener_is_replaced_by_its_liveness_each_time() {
    for (kind, act) in [("tcp", "close"), ("unix", "shutdown")] {
        let server = Server::serve(kind, act, "inject", "overlap", "liveness = \"200ms\"");
        for _ in 0..2 {
            let before = server.act();
            let answer = server.ask_after_a_moment();
            assert_eq!(answer.as_deref().ok(), Some("0"), "{}: {answer:?}", server.what);
            wait_for("another program", || {
                let status = server.rig.status("s");
                (status.phase.is_none() && status.pid.is_some_and(|program| program != before)).then_some(())
            });
        }
    }
}
