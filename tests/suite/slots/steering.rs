//! Probes and shares: exceptions to the steering of a group.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use handoff::config::ListenAddress;
use handoff::slots::{Group, ProbeRoute, ProbeTarget, SlotError, SlotId};
use handoff::sys::poll::{PollFlags, poll_one};
use handoff::sys::socket::error_of;

use super::{duplicate, loopback, open_on_free_port, tcp, unix_address};

/// Connects as a probe does, and waits until the connection exists.
fn connect(route: ProbeRoute) -> TcpStream {
    route.connect().unwrap();
    let socket = route.into_socket();
    let found = poll_one(&socket, PollFlags::POLLOUT, Some(Duration::from_secs(20)));
    assert!(!found.unwrap().is_empty());
    assert_eq!(error_of(&socket), Ok(None));
    TcpStream::from(socket)
}

/// Accepts all waiting connections. Returns their number for each of the two slots.
fn take_all(group: &Group, slots: [SlotId; 2]) -> [u32; 2] {
    slots.map(|slot| {
        let waiting = group.queue_len(slot).unwrap();
        let listener = tcp(group, slot);
        (0..waiting).for_each(|_| drop(listener.accept().unwrap()));
        waiting
    })
}

/// An address to listen on, and addresses for clients.
struct AddressForm {
    listen: &'static str,
    clients: Vec<fn(u16) -> SocketAddr>,
}

fn forms() -> [AddressForm; 5] {
    let v6 = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let other_v4 = |port| SocketAddr::from(([127, 0, 0, 2], port));
    [
        AddressForm { listen: "127.0.0.1", clients: vec![loopback] },
        AddressForm { listen: "0.0.0.0", clients: vec![loopback, other_v4] },
        AddressForm { listen: "[::1]", clients: vec![v6] },
        AddressForm { listen: "[::]", clients: vec![v6] },
        AddressForm { listen: "*", clients: vec![loopback, other_v4, v6] },
    ]
}

#[test]
fn a_probe_comes_to_its_slot_and_no_other_client_does() {
    for AddressForm { listen, clients } in forms() {
        let (mut group, port) = open_on_free_port(|port| format!("{listen}:{port}").parse().unwrap());
        let (first, second) = (group.steered(), group.add_slot().unwrap());
        let mut counted = [0, 0];
        let probes: u32 = 20;
        for _ in 0..probes {
            let route = group.probe(second).unwrap();
            (0..25).for_each(|turn| drop(TcpStream::connect(clients[turn % clients.len()](port)).unwrap()));
            let mut probe = connect(route);
            (0..25).for_each(|turn| drop(TcpStream::connect(clients[turn % clients.len()](port)).unwrap()));
            assert_eq!(group.queue_len(second).unwrap(), 1, "{listen}");
            let listener = tcp(&group, second);
            let (mut accepted, from) = listener.accept().unwrap();
            assert_eq!(from.port(), probe.local_addr().unwrap().port());
            accepted.write_all(b"ready").unwrap();
            drop(accepted);
            probe.set_nonblocking(false).unwrap();
            let mut answer = String::new();
            probe.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "ready");
            let taken = take_all(&group, [first, second]);
            counted = [counted[0] + taken[0], counted[1] + taken[1]];
        }
        assert_eq!(counted, [50 * probes, 0], "{listen}");
    }
}

#[test]
fn a_probe_ends_and_what_it_connected_goes_on() {
    let (mut group, port) = open_on_free_port(|port| ListenAddress::Tcp(loopback(port)));
    let (first, second) = (group.steered(), group.add_slot().unwrap());
    let (late, route) = (group.probe(second).unwrap(), group.probe(second).unwrap());
    assert_eq!(*route.target(), ProbeTarget::Ip(loopback(port)));
    let _probe = connect(route);
    let _overtaken = connect(late);
    assert_eq!(take_all(&group, [first, second]), [1, 1], "the last one counts");

    let route = group.probe(second).unwrap();
    group.end_probe().unwrap();
    let _too_late = connect(route);
    assert_eq!(take_all(&group, [first, second]), [1, 0]);
    assert!(matches!(group.probe(SlotId(9)), Err(SlotError::Unknown { .. })));
}

#[test]
fn a_probe_follows_its_slot_when_the_order_changes() {
    let (mut group, _) = open_on_free_port(|port| ListenAddress::Tcp(loopback(port)));
    let (first, second) = (group.steered(), group.add_slot().unwrap());
    let third = group.add_slot().unwrap();
    let route = group.probe(third).unwrap();
    group.retire(second).unwrap();
    let _probe = connect(route);
    assert_eq!(take_all(&group, [first, third]), [0, 1]);

    let route = group.probe(third).unwrap();
    group.retire(third).unwrap();
    let _at_home = connect(route);
    assert_eq!(group.queue_len(first).unwrap(), 1, "the probe is over with its slot");
}

#[test]
fn a_probe_of_a_unix_slot_goes_by_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    let room = 107 - dir.path().as_os_str().len() - 1;
    for name in ["s.sock", &"x".repeat(room)] {
        let path = dir.path().join(name);
        let mut group = Group::open(&unix_address(&path)).unwrap();
        let (first, second) = (group.steered(), group.add_slot().unwrap());
        let route = group.probe(second).unwrap();
        route.connect().unwrap();
        let _others = [(); 10].map(|()| UnixStream::connect(&path).unwrap());
        assert_eq!(group.queue_len(second).unwrap(), 1);
        UnixListener::from(duplicate(&group, second)).accept().unwrap();
        assert_eq!(group.queue_len(second).unwrap(), 0, "only the probe came");
        assert_eq!(group.queue_len(first).unwrap(), 1);
        group.end_probe().unwrap();
        assert!(matches!(group.steer_share(second, 100), Err(SlotError::NoShare { .. })));
        group.close();
    }
}

#[test]
fn a_share_of_the_connections_goes_elsewhere() {
    const CONNECTIONS: u32 = 2000;
    for (listen, client) in
        [("127.0.0.1", "127.0.0.1"), ("[::]", "[::1]"), ("*", "127.0.0.1"), ("*", "[::1]")]
    {
        let (mut group, port) = open_on_free_port(|port| format!("{listen}:{port}").parse().unwrap());
        let client: SocketAddr = format!("{client}:{port}").parse().unwrap();
        let slots = [group.steered(), group.add_slot().unwrap()];
        for parts in [0, 1000, 5000, 10_000] {
            group.steer_share(slots[1], parts).unwrap();
            let mut counted = [0, 0];
            for _ in 0..CONNECTIONS / 100 {
                (0..100).for_each(|_| drop(TcpStream::connect(client).unwrap()));
                let taken = take_all(&group, slots);
                counted = [counted[0] + taken[0], counted[1] + taken[1]];
            }
            println!("a share of {parts} per 10,000 at {listen} got {} of {CONNECTIONS}", counted[1]);
            assert_eq!(counted[0] + counted[1], CONNECTIONS);
            // Six standard deviations of a binomial distribution: a false alarm happens once in about a thousand
            // million runs.
            let (share, all) = (f64::from(parts) / 10_000.0, f64::from(CONNECTIONS));
            let off = (f64::from(counted[1]) - share * all).abs();
            assert!(off <= 6.0 * (all * share * (1.0 - share)).sqrt(), "{counted:?} of {parts}");
        }
        assert!(matches!(group.retire(slots[1]), Err(SlotError::Steered { .. })));
        group.steer_to(slots[0]).unwrap();
        (0..200).for_each(|_| drop(TcpStream::connect(client).unwrap()));
        assert_eq!(take_all(&group, slots), [200, 0], "the share is over");
        group.retire(slots[1]).unwrap();
    }
}

#[test]
fn a_share_and_a_probe_do_not_disturb_each_other() {
    let (mut group, port) = open_on_free_port(|port| ListenAddress::Tcp(loopback(port)));
    let (first, second) = (group.steered(), group.add_slot().unwrap());
    let third = group.add_slot().unwrap();
    group.steer_share(second, 10_000).unwrap();
    let _probe = connect(group.probe(third).unwrap());
    group.retire(third).unwrap();
    (0..50).for_each(|_| drop(TcpStream::connect(loopback(port)).unwrap()));
    assert_eq!(take_all(&group, [first, second]), [0, 50]);
}
