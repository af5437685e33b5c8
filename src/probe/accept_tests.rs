//! All behaviors of a server towards a probe's connection, with real servers.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use handoff_protocol::ids::ListenerName;
use tokio::net::TcpStream;

use super::*;
use crate::config::Check;
use crate::probe::{CommandEnvironment, attempt};
use crate::slots::census::Census;

/// One program for all servers. Each line of its table is one behavior.
const SERVER: &str = r#"
import socket, struct, sys, time
def serve(after):
    kept = []
    while True:
        connection, _ = listener.accept()
        after(connection, kept)
def reset(connection, kept):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
def answer_and_close(connection, kept):
    connection.sendall(b"220 ready\r\n")
    connection.close()
def read_to_the_end(connection, kept):
    assert connection.recv(100) == b""
    connection.close()
def late(connection, kept):
    kept.append(connection)
    time.sleep(PAUSE)
table = {
    "waits": lambda connection, kept: kept.append(connection),
    "answers": lambda connection, kept: (kept.append(connection), connection.sendall(b"220 ready\r\n")),
    "answers-and-closes": answer_and_close,
    "closes": lambda connection, kept: connection.close(),
    "ends-its-side": lambda connection, kept: (kept.append(connection), connection.shutdown(socket.SHUT_WR)),
    "resets": reset,
    "is-late": late,
    "defers": read_to_the_end,
}
does, PAUSE = sys.argv[1], float(sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
if does == "defers":
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 100)
print(listener.getsockname()[1], flush=True)
if does == "ends-its-listener":
    time.sleep(PAUSE)
    listener.shutdown(socket.SHUT_RD)
if does in table:
    serve(table[does])
time.sleep(600)
"#;

struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(does: &str, pause_s: f64) -> Server {
        let mut process = Command::new("/usr/bin/python3")
            .args(["-I", "-c", SERVER, does, &pause_s.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap()));
        Server { process, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Connects directly to a server.
struct Direct {
    address: SocketAddr,
    last: Option<SocketAddr>,
    waiting: Option<Box<dyn Connection>>,
}

impl Direct {
    fn to(server: &Server) -> Direct {
        Direct { address: server.address, last: None, waiting: None }
    }
}

impl ProcessAccess for Direct {
    async fn connect(&mut self, listener: &str) -> Result<Box<dyn Connection>, Failure> {
        let stream =
            TcpStream::connect(self.address).await.map_err(|error| Failure::to_connect(listener, &error))?;
        self.last = stream.local_addr().ok();
        Ok(Box::new(stream))
    }

    fn waiting(&mut self) -> &mut Option<Box<dyn Connection>> {
        &mut self.waiting
    }

    fn stage(&mut self) -> io::Result<AcceptStage> {
        Census::stage(self.last.unwrap(), self.address)
    }

    async fn listens(&mut self, _: &str) -> bool {
        Blocking::connect(self.address).is_ok()
    }

    async fn surroundings(&self) -> CommandEnvironment {
        CommandEnvironment { variables: Vec::new(), working_dir: "/".into() }
    }
}

fn tcp() -> Check {
    Check::Tcp { listener: "main".parse::<ListenerName>().unwrap() }
}

/// Keeps the processors busy until it is dropped.
struct Load(std::sync::Arc<AtomicBool>);

impl Load {
    fn new() -> Load {
        let over = std::sync::Arc::new(AtomicBool::new(false));
        for _ in 0..2 {
            let over = over.clone();
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Load(over)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_accepts_passes_whatever_it_does_with_the_connection() {
    let _load = Load::new();
    for (does, times) in [
        ("waits", 200),
        ("answers", 200),
        ("answers-and-closes", 200),
        ("closes", 200),
        ("ends-its-side", 200),
        ("resets", 200),
        ("is-late", 30),
        ("defers", 10),
    ] {
        let server = Server::start(does, 0.01);
        for n in 0..times {
            assert_eq!(attempt(&tcp(), LONG, &mut Direct::to(&server)).await, Ok(()), "{does}, the {n}th");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_connection_keeps_its_place_in_the_queue_from_one_try_to_the_next() {
    // It accepts one connection per second, and four are ahead: on a busy machine a try may take much longer than its limit.
    let server = Server::start("is-late", 1.0);
    let _before: Vec<_> = (0..4).map(|_| Blocking::connect(server.address).unwrap()).collect();
    let mut access = Direct::to(&server);
    let (mut tries, mut own) = (0, None);
    loop {
        let result = attempt(&tcp(), Duration::from_millis(100), &mut access).await;
        tries += 1;
        assert!(own.is_none_or(|own| Some(own) == access.last), "another connection was made");
        own = access.last;
        match result {
            Ok(()) => break,
            Err(failure) => assert!(failure.to_string().contains("was not accepted within"), "{failure}"),
        }
        assert!(tries < 300);
    }
    assert!(tries > 3, "{tries}");
    assert!(access.waiting.is_none());
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_does_not_accept_does_not_pass() {
    let limit = Duration::from_millis(300);
    let never = Server::start("nothing", 0.0);
    let failure = attempt(&tcp(), limit, &mut Direct::to(&never)).await.unwrap_err();
    assert_eq!(failure, Failure::Unwell("a connection to main was not accepted within 300ms".into()));

    let ends = Server::start("ends-its-listener", 0.1);
    let failure = attempt(&tcp(), LONG, &mut Direct::to(&ends)).await.unwrap_err();
    assert!(matches!(&failure, Failure::Unwell(_)), "{failure:?}");
    let failure = attempt(&tcp(), LONG, &mut Direct::to(&ends)).await.unwrap_err();
    assert!(matches!(&failure, Failure::Unwell(found) if found.contains("refused")), "{failure:?}");
}
