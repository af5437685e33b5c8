//! Servers that cannot answer immediately, or that connect a socket to each client.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request};

use crate::support::at_end::SetOnDrop;
use crate::support::{LIMIT, Rig, copy_program, free_address, service, wait_for};

/// Answers each datagram after 0.4 s, and is idle meanwhile, as a server that asks another server.
const FORWARDER: &str = r#"
import socket, sys, threading
from time import sleep as ask_the_other
host, port = sys.argv[1].split(":")
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((host, int(port)))
def answer(question, client):
    ask_the_other(0.4)
    server.sendto(question, client)
while True:
    threading.Thread(target=answer, args=server.recvfrom(1500)).start()
"#;

/// Connects a socket to each client. It answers with its pid until the client sends `end`.
const CONNECTING: &str = r#"
import os, socket, sys, threading
port = int(sys.argv[1].split(":")[1])
def at(host):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind((host, port))
    return server
listener = at("0.0.0.0")
def answer(client):
    own = at("127.0.0.1")
    own.connect(client)
    own.send(b"%d" % os.getpid())
    while own.recv(1500) != b"end":
        own.send(b"%d" % os.getpid())
    own.close()
while True:
    _, client = listener.recvfrom(1500)
    threading.Thread(target=answer, args=(client,)).start()
"#;

struct Server {
    rig: Rig,
    port: u16,
}

impl Server {
    fn serve(program: &str, host: &str, more: &str) -> Self {
        let rig = Rig::new();
        let port = free_address().port();
        let address = format!("{host}:{port}");
        let text = format!(
            "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {program:?}, \"{address}\"]\nautostart = false\nstore = false\n\
             adapter = \"inject\"\n{more}\n[listen]\nmain = \"udp:{address}\"\n"
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(service("s"))).unwrap();
        Self { rig, port }
    }

    /// Upgrades to another copy of the same program.
    fn upgrade(&self) {
        let copy = self.rig.path("python3");
        copy_program("/usr/bin/python3", &copy);
        let outcome = self.rig.upgrade("s", &copy).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    }

    fn client(&self) -> UdpSocket {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(SocketAddr::from(([127, 0, 0, 1], self.port))).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client
    }
}

fn ask(client: &UdpSocket, question: &[u8]) -> String {
    client.send(question).unwrap();
    let mut answer = [0; 64];
    let length = client.recv(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn a_server_that_asks_others_has_as_long_for_its_answers_as_the_service_file_says() {
    let server = Server::serve(FORWARDER, "127.0.0.1", "mode = \"exclusive\"\nanswer_grace = \"2s\"");
    ask(&server.client(), b"x");
    let (stop, asked, heard) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let client = server.client();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let until = Instant::now() + LIMIT;
            while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                // The kernel does not keep more answers for a client that waits on a busy machine.
                if asked.load(Ordering::Relaxed) - heard.load(Ordering::Relaxed) < 200 {
                    let number = asked.fetch_add(1, Ordering::Relaxed);
                    client.send(&(number as u32).to_ne_bytes()).unwrap();
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        scope.spawn(|| {
            let _at_end = SetOnDrop(&stop);
            server.upgrade();
        });
        // The client reads during the upgrade, because the kernel does not keep all answers for it.
        let (mut answered, mut last, mut number) = (BTreeSet::new(), Instant::now(), [0; 4]);
        while !asking.is_finished() || answered.len() < asked.load(Ordering::Relaxed) {
            match client.recv(&mut number) {
                Ok(length) => {
                    assert_eq!(length, 4);
                    answered.insert(u32::from_ne_bytes(number));
                    heard.store(answered.len(), Ordering::Relaxed);
                    last = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock && last.elapsed() < LIMIT => {}
                Err(error) => panic!("{} of {asked:?} were answered: {error}", answered.len()),
            }
        }
    });
}

#[test]
fn a_client_with_a_socket_of_its_own_stays_with_the_old_process_until_it_ends() {
    let server = Server::serve(CONNECTING, "0.0.0.0", "mode = \"overlap\"");
    let client = server.client();
    let old = ask(&client, b"x");
    assert_eq!(ask(&client, b"x"), old);
    std::thread::scope(|scope| {
        // The upgrade ends when the old process has left.
        let upgrade = scope.spawn(|| server.upgrade());
        wait_for("the new process to get new clients", || {
            let other = server.client();
            let answered_by = ask(&other, b"x");
            other.send(b"end").unwrap();
            (answered_by != old).then_some(())
        });
        // Longer than the grace for answers.
        for _ in 0..20 {
            assert_eq!(ask(&client, b"x"), old);
            std::thread::sleep(Duration::from_millis(100));
        }
        let ended_at = Instant::now();
        client.send(b"end").unwrap();
        upgrade.join().unwrap();
        assert!(
            ended_at.elapsed() < Duration::from_secs(15),
            "the upgrade does not wait for the whole grace"
        );
    });
    let left = std::path::Path::new(&format!("/proc/{old}")).exists();
    assert!(!left, "the old process has left");
}
