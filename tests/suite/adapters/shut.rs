//! Programs that shut down their listeners when they end. A shutdown affects every process that holds the listener.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request};
use handoff::sys::process::Signal;
use handoff::sys::socket::{SockFlag, accept};

use crate::support::{LIMIT, Rig, executable, free_address, service, signal, wait_for};

const SERVER: &str = r#"#!/usr/bin/python3
import os, signal, socket, sys
VERSION = b"@VERSION\n"
kind, where = sys.argv[1:3]
family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
at = where if kind == "unix" else (where.split(":")[0], int(where.split(":")[1]))
if "LISTEN_FDS" in os.environ:
    listener = socket.socket(fileno=3)
else:
    listener = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    listener.bind(at)
    if kind != "udp":
        listener.listen(16)
busy, leaving = False, False

def leave(code):
    if kind == "udp":
        listener.connect(("127.0.0.1", 9))
    else:
        listener.shutdown(socket.SHUT_RDWR)
    os._exit(code)

def told(*_):
    global leaving
    leaving = True
    if not busy:
        leave(0)

signal.signal(signal.SIGTERM, told)
signal.signal(signal.SIGUSR1, lambda *_: leave(1))
while not leaving:
    if kind == "udp":
        data, client = listener.recvfrom(100)
        listener.sendto(VERSION, client)
        continue
    connection, _ = listener.accept()
    busy = True
    if connection.makefile().readline():
        connection.sendall(VERSION)
    connection.close()
    busy = False
leave(0)
"#;

struct Server {
    rig: Rig,
    kind: &'static str,
    place: String,
    what: String,
}

impl Server {
    fn serve(kind: &'static str, adapter: &str, mode: &str) -> Self {
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
            _ => (free_address().to_string(), String::new()),
        };
        let listen = if listen.is_empty() { place.clone() } else { listen };
        let server = Self { rig, kind, place, what: format!("{kind} {adapter} {mode}") };
        let text = format!(
            "binary = {:?}\nargs = [{kind:?}, {:?}]\nadapter = {adapter:?}\nmode = {mode:?}\nautostart = false\n\
             store = false\n[listen]\nmain = {listen:?}\n",
            server.release("0"),
            server.place,
        );
        std::fs::write(server.rig.path("config/services/s.toml"), text).unwrap();
        server
            .rig
            .call(Request::Start(service("s")))
            .unwrap_or_else(|error| panic!("{}: {error}", server.what));
        server
    }

    fn release(&self, version: &str) -> PathBuf {
        let path = self.rig.path(&format!("server-{version}"));
        std::fs::write(&path, SERVER.replace("@VERSION", version)).unwrap();
        executable(&path);
        path
    }

    fn ask(&self) -> std::io::Result<String> {
        if self.kind == "udp" {
            let client = UdpSocket::bind("127.0.0.1:0")?;
            client.set_read_timeout(Some(Duration::from_millis(300)))?;
            client.send_to(b"x\n", &self.place)?;
            let mut answer = [0; 16];
            let length = client.recv(&mut answer)?;
            return Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned());
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

    fn answers(&self, version: &str) {
        wait_for(&format!("{}: version {version}", self.what), || {
            self.ask().ok().filter(|answer| answer == version)
        });
    }

    fn upgrade(&self, version: &str) {
        let outcome = self.rig.upgrade("s", &self.release(version)).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{}: {outcome:?}", self.what);
        self.answers(version);
    }

    /// The program shuts its listener down, and then exits by itself.
    fn crash(&self, version: &str) {
        let program = self.rig.status("s").pid.unwrap();
        signal(program, Signal::SIGUSR1);
        wait_for("another program", || self.rig.status("s").pid.filter(|now| *now != program));
        self.answers(version);
    }
}

fn goes_on(kind: &'static str, adapters: &[&str]) {
    for adapter in adapters {
        for mode in ["overlap", "exclusive"] {
            let mut server = Server::serve(kind, adapter, mode);
            server.answers("0");
            server.upgrade("1");
            server.upgrade("2");
            server.crash("2");
            server.crash("2");
            server.upgrade("3");
            server.rig.stop_daemon();
            server.rig.start_daemon();
            server.rig.call(Request::Start(service("s"))).unwrap();
            server.upgrade("4");
        }
    }
}

#[test]
fn a_program_that_shuts_down_its_tcp_listener_is_upgraded_and_restarted() {
    goes_on("tcp", &["inject", "listen-fds"]);
}

#[test]
fn a_program_that_shuts_down_its_unix_listener_is_upgraded_and_restarted() {
    goes_on("unix", &["inject", "listen-fds"]);
}

#[test]
fn a_program_that_connects_its_datagram_socket_is_upgraded_and_restarted() {
    goes_on("udp", &["inject"]);
}

/// A socket of a process outside the service.
fn stranger_at(place: &str) -> std::os::fd::OwnedFd {
    use handoff::sys::socket::{AddressFamily, SockType, bind, listen, reuse_port, socket};
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty()).unwrap();
    reuse_port(&socket).unwrap();
    bind(&socket, place.parse().unwrap()).unwrap();
    listen(&socket, 16).unwrap();
    socket
}

/// Closes such a socket. A child of another test may hold it for a moment longer.
fn leave(stranger: std::os::fd::OwnedFd) {
    let inode = handoff::sys::descriptor::inode(&stranger).unwrap().to_string();
    drop(stranger);
    wait_for("the stranger to be gone", || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        // The tenth field of a line is the inode.
        let mut inodes = sockets.lines().filter_map(|line| line.split_ascii_whitespace().nth(9));
        (!inodes.any(|found| found == inode)).then_some(())
    });
}

#[test]
fn a_stranger_at_the_port_is_named_and_gets_nothing() {
    for mode in ["overlap", "exclusive"] {
        let server = Server::serve("tcp", "inject", mode);
        let join = || stranger_at(&server.place);
        for n in 1..=3 {
            let stranger = join();
            let problem = server.rig.status("s").problem.unwrap();
            assert!(problem.contains(&format!("Process {} ", std::process::id())), "{problem}");
            server.upgrade(&n.to_string());
            let second = join();
            leave(stranger);
            wait_for("twelve answers", || (0..12).all(|_| server.ask().is_ok()).then_some(()));
            leave(second);
            let answered =
                (0..12).filter(|_| server.ask().is_ok_and(|answer| answer == n.to_string())).count();
            assert_eq!(answered, 12, "{mode}");
            wait_for("no problem", || server.rig.status("s").problem.is_none().then_some(()));
        }
    }
}

/// How long a program takes to end, in milliseconds.
const LINGERS_MS: u64 = 4000;

/// The stranger joins before the first of two upgrades, so its socket lies between the two sides.
#[test]
fn a_stranger_gets_nothing_while_a_program_takes_its_time_to_end_after_its_listener() {
    let server = Server::serve("tcp", "inject", "exclusive");
    let stranger = stranger_at(&server.place);
    server.upgrade("1");
    let slow = server.rig.path("server-2");
    let ends = "        listener.shutdown(socket.SHUT_RDWR)\n";
    let lingers = format!("{ends}        __import__(\"select\").select([], [], [], {LINGERS_MS} / 1000)\n");
    let text = SERVER.replace("@VERSION", "2").replace(ends, &lingers);
    std::fs::write(&slow, text).unwrap();
    executable(&slow);
    assert_eq!(server.rig.upgrade("s", &slow).unwrap().outcome, Ending::Committed);
    let last = server.release("3");
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| server.rig.upgrade("s", &last).unwrap());
        // The old program answers each client, or the client waits for the new program.
        let (mut clients, until) = (Vec::new(), Instant::now() + LIMIT);
        while !upgrade.is_finished() && Instant::now() < until {
            clients.push(scope.spawn(|| (Instant::now(), server.ask())));
            std::thread::sleep(Duration::from_millis(20));
        }
        let answers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        let lost: Vec<_> =
            answers.iter().filter(|(_, answer)| !matches!(answer.as_deref(), Ok("2" | "3"))).collect();
        // Clients reach the stranger from the end of the listener until the shim detects that end. This must be much
        // shorter than the time in which the program lingers.
        let times = [lost.first(), lost.last()].map(|lost| lost.map(|(asked, _)| *asked));
        let lost_for = times[1].zip(times[0]).map_or(Duration::ZERO, |(last, first)| last - first);
        assert!(
            lost_for < Duration::from_millis(LINGERS_MS / 2),
            "{lost_for:?}, {} clients: {lost:?}",
            answers.len()
        );
        let outcome = upgrade.join().unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    });
    handoff::sys::descriptor::set_nonblocking(&stranger, true).unwrap();
    let got = std::iter::from_fn(|| accept(&stranger, SockFlag::empty()).ok()).count();
    // The clients come every 20 ms.
    assert!(got < LINGERS_MS as usize / 2 / 20, "the stranger got {got} connections");
}
