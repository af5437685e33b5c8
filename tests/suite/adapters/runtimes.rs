//! Which listeners servers of Node and Java can use instead of their own sockets. A runtime that is not installed is
//! skipped.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use handoff::control::api::Request;

use crate::support::{LIMIT, Rig, free_address, service};

const NODE: &str = r#"
const [kind, port, host] = process.argv.slice(2);
if (kind.startsWith("udp")) {
  const socket = require("dgram").createSocket(kind);
  socket.on("message", (_, from) => socket.send("ok", from.port, from.address));
  socket.bind({ port: +port, address: host });
} else {
  const server = require("net").createServer((client) => client.on("error", () => {}).once("data", () => client.end("ok")));
  server.listen({ port: +port, host });
}
"#;

const JAVA: &str = r#"
import java.net.*;
public class Server {
  public static void main(String[] args) throws Exception {
    int port = Integer.parseInt(args[1]);
    InetSocketAddress at = args.length < 3 ? new InetSocketAddress(port) : new InetSocketAddress(args[2], port);
    if (args[0].equals("udp")) {
      DatagramSocket socket = new DatagramSocket(at);
      while (true) {
        DatagramPacket packet = new DatagramPacket(new byte[100], 100);
        socket.receive(packet);
        socket.send(new DatagramPacket("ok".getBytes(), 2, packet.getSocketAddress()));
      }
    }
    ServerSocket server = new ServerSocket();
    server.bind(at);
    while (true) {
      try (Socket client = server.accept()) {
        client.getInputStream().read();
        client.getOutputStream().write("ok".getBytes());
      }
    }
  }
}
"#;

/// The arguments of the program, the listener, and whether v4 and v6 clients are answered, or the text of the refusal.
type Row = (&'static [&'static str], &'static str, Result<(bool, bool), &'static str>);

const V4: Result<(bool, bool), &str> = Ok((true, false));
const V6: Result<(bool, bool), &str> = Ok((false, true));
const BOTH: Result<(bool, bool), &str> = Ok((true, true));

const OF_NODE: &[Row] = &[
    (&["udp4", "P"], "udp:127.0.0.1:P", V4),
    (&["udp4", "P"], "udp:0.0.0.0:P", V4),
    (&["udp4", "P"], "udp:*:P", Err("write udp:0.0.0.0:P, and udp:[::]:P as another listener")),
    (&["udp4", "P"], "udp:[::1]:P", Err("write udp:0.0.0.0:P")),
    (&["udp6", "P"], "udp:*:P", BOTH),
    (&["udp6", "P"], "udp:[::1]:P", V6),
    (&["udp6", "P"], "udp:127.0.0.1:P", Err("write udp:*:P")),
    (&["tcp", "P"], "127.0.0.1:P", V4),
    (&["tcp", "P"], "*:P", BOTH),
    (&["tcp", "P"], "[::1]:P", V6),
    (&["tcp", "P", "0.0.0.0"], "*:P", BOTH),
];

const OF_JAVA: &[Row] = &[
    (&["udp", "P"], "udp:*:P", BOTH),
    (&["udp", "P"], "udp:[::1]:P", V6),
    (&["udp", "P"], "udp:127.0.0.1:P", Err("write udp:*:P")),
    (&["udp", "P"], "udp:0.0.0.0:P", Err("write udp:*:P")),
    (&["udp", "P", "127.0.0.1"], "udp:127.0.0.1:P", Err("-Djava.net.preferIPv4Stack=true")),
    (&["tcp", "P"], "127.0.0.1:P", V4),
    (&["tcp", "P"], "*:P", BOTH),
    (&["tcp", "P", "127.0.0.1"], "127.0.0.1:P", V4),
];

/// With the option that the refusal recommends.
const OF_JAVA_V4: &[Row] = &[
    (&["udp", "P"], "udp:127.0.0.1:P", V4),
    (&["udp", "P"], "udp:0.0.0.0:P", V4),
    (&["udp", "P"], "udp:*:P", Err("write udp:0.0.0.0:P")),
    (&["udp", "P", "127.0.0.1"], "udp:127.0.0.1:P", V4),
    (&["tcp", "P"], "*:P", BOTH),
];

fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|found| found.is_file())
}

fn is_answered(listener: &str, ip: IpAddr, port: u16) -> bool {
    let to = SocketAddr::new(ip, port);
    let mut answer = [0; 2];
    if listener.starts_with("udp:") {
        let client = UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.connect(to).unwrap();
        // If no socket has the address, the client gets an error.
        return client.send(b"x").is_ok() && client.recv(&mut answer).is_ok() && answer == *b"ok";
    }
    let Ok(mut client) = TcpStream::connect(to) else { return false };
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(b"x").is_ok() && client.read_exact(&mut answer).is_ok() && answer == *b"ok"
}

fn tries(rig: &Rig, runtime: &Path, before: &[&str], rows: &[Row]) {
    for (args, listener, expected) in rows {
        let port = free_address().port();
        let with_port = |text: &str| text.replace('P', &port.to_string());
        let args = before.iter().map(ToString::to_string).chain(args.iter().map(|arg| with_port(arg)));
        let args: Vec<String> = args.collect();
        let what = format!("{args:?} with {listener}");
        let name = format!("s{port}");
        let text = format!(
            "binary = {runtime:?}\nargs = {args:?}\nadapter = \"inject\"\nautostart = false\nstore = false\n[listen]\nmain = {:?}\n",
            with_port(listener),
        );
        let file = rig.path(&format!("config/services/{name}.toml"));
        std::fs::write(&file, text).unwrap();
        let started = rig.call(Request::Start(service(&name)));
        match (expected, started) {
            (Ok((v4, v6)), Ok(_)) => {
                let answered = || {
                    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
                        .map(|ip| is_answered(listener, ip, port))
                };
                assert_eq!(answered(), [*v4, *v6], "{what}");
                rig.call(Request::Restart(service(&name))).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(answered(), [*v4, *v6], "{what}, after a restart");
            }
            (Err(told), Err(error)) => {
                assert!(error.to_string().contains(&with_port_of(told, port)), "{what}: {error}");
                // The doctor reports the same. No other process of the service may run meanwhile.
                rig.call(Request::Stop(service(&name))).unwrap();
                let output = rig.handoff(&["doctor", &name]).output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).replace('\n', " ");
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(text.contains(&with_port_of(told, port)), "{what}: {text}");
            }
            (expected, found) => panic!("{what}: {expected:?} was expected, {found:?} came"),
        }
        let _ = rig.call(Request::Stop(service(&name)));
        std::fs::remove_file(file).unwrap();
    }
}

fn with_port_of(told: &str, port: u16) -> String {
    told.replace(":P", &format!(":{port}"))
}

#[test]
fn servers_of_node_answer_at_the_listeners_that_they_can_use() {
    let Some(node) = found("node") else { return eprintln!("not run: there is no node") };
    let rig = Rig::new();
    let script = rig.path("server.js").display().to_string();
    std::fs::write(&script, NODE).unwrap();
    tries(&rig, &node, &[&script], OF_NODE);
}

#[test]
fn servers_of_java_answer_at_the_listeners_that_they_can_use() {
    let (Some(java), Some(javac)) = (found("java"), found("javac")) else {
        return eprintln!("not run: there is no java");
    };
    let rig = Rig::new();
    let source = rig.path("Server.java");
    std::fs::write(&source, JAVA).unwrap();
    assert!(Command::new(javac).arg("-d").arg(rig.root.path()).arg(source).status().unwrap().success());
    let classes = rig.root.path().display().to_string();
    let quick = ["-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", &classes];
    tries(&rig, &java, &[&quick[..], &["Server"]].concat(), OF_JAVA);
    tries(&rig, &java, &[&quick[..], &["-Djava.net.preferIPv4Stack=true", "Server"]].concat(), OF_JAVA_V4);
}
