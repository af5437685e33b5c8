//! Addresses for tests.
//!
//! A listener of this process ends only when the last process has closed it. A child of another test holds a copy until
//! it executes its own program. So no port is tested by a bind, and tests wait until an address is free again.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::wait_for;

/// The state of a listener in `/proc/net/tcp`, in hexadecimal.
const LISTEN: &str = "0A";

/// An address without a listener, reserved for one test of this program. Its port is also free for datagrams and at all
/// addresses.
///
/// The port is outside the range of ephemeral ports, because a client could get one of those first.
pub fn free_address() -> SocketAddr {
    const PORTS: std::ops::Range<usize> = 10_000..30_000;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Test programs that run at the same time begin at different ports.
    let begin = std::process::id() as usize * 7919;
    let ports = std::iter::repeat_with(|| begin + NEXT.fetch_add(1, Ordering::Relaxed));
    let addresses =
        ports.take(PORTS.len()).map(|n| (Ipv4Addr::LOCALHOST, (PORTS.start + n % PORTS.len()) as u16));
    let is_free = |address: &SocketAddr| {
        ["tcp", "tcp6", "udp", "udp6"].iter().all(|table| states(table, address.port()).is_empty())
    };
    addresses.map(SocketAddr::from).find(is_free).expect("a free port")
}

/// Closes a listener, and waits until no process has it.
pub fn close(listener: TcpListener) {
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let is_closed = || ["tcp", "tcp6"].iter().all(|table| !states(table, port).iter().any(|it| it == LISTEN));
    wait_for("the listener to be closed", || is_closed().then_some(()));
}

/// The states of the sockets at this port.
fn states(table: &str, port: u16) -> Vec<String> {
    // A kernel without IPv6 has no such table.
    let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
    let local = format!(":{port:04X}");
    let lines = text.lines().skip(1).map(|line| line.split_ascii_whitespace().skip(1).collect::<Vec<_>>());
    lines.filter(|fields| fields[0].ends_with(&local)).map(|fields| fields[2].to_owned()).collect()
}

#[test]
fn a_port_is_free_when_its_listener_is_closed() {
    let listener = TcpListener::bind(free_address()).unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(states("tcp", port), [LISTEN]);
    close(listener);
    assert_eq!(states("tcp", port), [""; 0]);
}
