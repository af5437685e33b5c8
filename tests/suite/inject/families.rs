//! Which sockets a program can use instead of its own, tested with the kernel.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use handoff::shim::inject::InjectEvent;

use super::Run;
use crate::support::{LIMIT, free_address};

/// A server that sends the data back to its client, over a socket of the given family.
const SERVER: &str = r#"
import socket, sys
family, kind, host, port, only = sys.argv[1:6]
v6 = family == "6"
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
if v6:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
try:
    s.bind((host, int(port)))
except OSError as error:
    print("refused", flush=True)
    sys.exit(0)
if kind == "udp":
    data, client = s.recvfrom(100)
    # A program of one family sends like this: with the address in the form of that family.
    assert len(client) == (4 if v6 else 2), client
    s.sendto(data, client)
else:
    s.listen()
    connection, _ = s.accept()
    connection.sendall(connection.recv(100))
"#;

fn asks(kind: &str, port: u16, v6: bool) -> bool {
    let ip = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let to = SocketAddr::new(ip, port);
    if kind == "tcp" {
        let mut connection = TcpStream::connect(to).unwrap();
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        connection.write_all(b"x").unwrap();
        return connection.read(&mut [0; 8]).unwrap() == 1;
    }
    let client = UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.send_to(b"x", to).unwrap();
    client.recv(&mut [0; 8]).is_ok()
}

#[test]
fn what_is_given_answers_and_what_could_not_is_refused() {
    // The family of the program's socket, the bound address, whether it is for IPv6 only, the listener, and the family
    // of the client.
    let rows: &[(&str, &str, &str, &str, bool)] = &[
        ("4", "127.0.0.1", "0", "127.0.0.1", false),
        ("4", "0.0.0.0", "0", "127.0.0.1", false),
        ("6", "::", "0", "*", true),
        ("6", "::", "0", "*", false),
        ("6", "::", "1", "*", true),
        ("6", "::", "0", "[::1]", true),
        ("6", "::1", "1", "[::1]", true),
        // The other family.
        ("6", "::", "0", "127.0.0.1", false),
        ("6", "::ffff:127.0.0.1", "0", "127.0.0.1", false),
        ("4", "0.0.0.0", "0", "*", false),
        ("4", "0.0.0.0", "0", "[::1]", true),
    ];
    for (n, (family, host, only, listener, by_v6)) in rows.iter().enumerate() {
        for kind in ["tcp", "udp"] {
            let port = free_address().port();
            let address = format!("{}{listener}:{port}", if kind == "udp" { "udp:" } else { "" });
            let script = SERVER.replace(
                "sys.argv[1:6]",
                &format!("{:?}.split()", format!("{family} {kind} {host} {port} {only}")),
            );
            let run = Run::python(&[&address], false, &script);
            let what = format!("{kind}, {family} {host} with {address}");
            if kind == "udp" && n >= 7 {
                let events = run.events(1, |event| matches!(event, InjectEvent::Failed { .. }));
                let text = events[0].to_string();
                assert!(text.contains("could not answer; "), "{what}: {text}");
            } else {
                run.bound(1);
                assert!(asks(kind, port, *by_v6), "{what}");
            }
        }
    }
}
