//! Slots for datagrams.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use proptest::prelude::*;

use handoff::config::ListenAddress;
use handoff::slots::{
    Group, ListenerPair, Pair, PairState, Side, SlotError, SlotId, check_free, stop_listening,
};
use handoff::sys::listens::{self, listens};
use handoff::sys::socket::{self, AddressFamily, SockFlag, SockType};

use super::{duplicate, loopback};

/// Opens an address with a port that was free a moment ago. Another test may take the port first.
fn open(host: &str) -> (Group, u16) {
    open_as("udp", host)
}

fn open_as(kind: &str, host: &str) -> (Group, u16) {
    for _ in 0..20 {
        let port = UdpSocket::bind("[::]:0").unwrap().local_addr().unwrap().port();
        match Group::open(&format!("{kind}:{host}:{port}").parse().unwrap()) {
            Ok(group) => return (group, port),
            Err(SlotError::InUse { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no free port in 20 attempts");
}

fn client(to: SocketAddr) -> UdpSocket {
    let own: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
    };
    UdpSocket::bind(own).unwrap()
}

fn send(to: SocketAddr, count: usize) {
    let client = client(to);
    for _ in 0..count {
        assert_eq!(client.send_to(b"x", to).unwrap(), 1);
    }
}

/// Reads all waiting datagrams. Returns their number for each slot.
fn take(group: &Group, slots: &[SlotId]) -> Vec<usize> {
    slots.iter().map(|slot| read_all(duplicate(group, *slot))).collect()
}

fn read_all(socket: OwnedFd) -> usize {
    let socket = UdpSocket::from(socket);
    socket.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| socket.recv(&mut [0; 16]).ok()).count()
}

/// An address to listen on, and an address for clients.
type AddressForm = (&'static str, fn(u16) -> SocketAddr);

fn forms() -> [AddressForm; 6] {
    let v6 = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    [("127.0.0.1", loopback), ("0.0.0.0", loopback), ("[::1]", v6), ("[::]", v6), ("*", v6), ("*", loopback)]
}

#[test]
fn every_datagram_lands_where_it_is_steered() {
    for (host, at) in forms() {
        let (mut group, port) = open(host);
        let slots = [group.steered(), group.add_slot().unwrap(), group.add_slot().unwrap()];
        for (turn, steered) in [0, 1, 2, 1, 0].into_iter().enumerate() {
            group.steer_to(slots[steered]).unwrap();
            send(at(port), 50);
            let mut expected = vec![0; 3];
            expected[steered] = 50;
            assert_eq!(group.queue_len(slots[steered]).unwrap(), 1);
            assert_eq!(take(&group, &slots), expected, "{host} {turn}");
            assert_eq!(group.queue_len(slots[steered]).unwrap(), 0);
        }
    }
}

#[test]
fn a_slot_leaves_although_others_hold_it_and_what_it_has_can_be_read() {
    for (host, at) in forms() {
        let (mut group, port) = open(host);
        let (first, second) = (group.steered(), group.add_slot().unwrap());
        let third = group.add_slot().unwrap();
        let held = duplicate(&group, first);
        send(at(port), 3);
        group.steer_to(third).unwrap();
        group.retire(first).unwrap();
        assert_eq!(listens(&held), Ok(false));
        send(at(port), 50);
        assert_eq!(take(&group, &[second, third]), [0, 50], "{host}");
        group.steer_to(second).unwrap();
        send(at(port), 50);
        assert_eq!(take(&group, &[second, third]), [50, 0], "{host}");
        assert_eq!(read_all(held.try_clone().unwrap()), 3, "what had come before");
    }
}

#[test]
fn a_closed_address_is_free_although_a_duplicate_is_held() {
    for (host, at) in forms() {
        let (mut group, port) = open(host);
        let second = group.add_slot().unwrap();
        let held = [duplicate(&group, group.steered()), duplicate(&group, second)];
        let address = group.address().clone();
        assert!(matches!(check_free(&address), Err(SlotError::InUse { owner: Some(_), .. })));
        group.close();
        let client = client(at(port));
        client.connect(at(port)).unwrap();
        client.send(b"x").unwrap();
        assert!(client.recv(&mut [0; 1]).is_err(), "it is refused");
        let again = Group::open(&address).unwrap();
        send(at(port), 5);
        assert_eq!(take(&again, &[again.steered()]), [5], "{host}");
        drop(held);
    }
}

#[test]
fn tcp_and_udp_of_one_port_are_two_addresses() {
    // A connection of another test may use that port.
    let both = (0..100).find_map(|_| {
        let (udp, port) = open("127.0.0.1");
        Some((Group::open(&ListenAddress::Tcp(loopback(port))).ok()?, udp, port))
    });
    let (tcp, udp, port) = both.unwrap();
    assert!(matches!(check_free(udp.address()), Err(SlotError::InUse { .. })));
    udp.close();
    assert!(check_free(&ListenAddress::Udp(loopback(port))).is_ok());
    tcp.close();
}

#[test]
fn a_group_is_restored_in_the_order_of_the_kernel() {
    let (mut group, port) = open("127.0.0.1");
    let slots = [group.steered(), group.add_slot().unwrap(), group.add_slot().unwrap()];
    group.steer_to(slots[2]).unwrap();
    group.retire(slots[0]).unwrap();
    let members: Vec<_> = group.order().iter().map(|slot| (*slot, duplicate(&group, *slot))).collect();
    let address = group.address().clone();
    drop(group);
    let mut group = Group::restore(&address, members, slots[1]).unwrap();
    for steered in [slots[1], slots[2]] {
        group.steer_to(steered).unwrap();
        send(loopback(port), 20);
        let expected = slots[1..].iter().map(|slot| if *slot == steered { 20 } else { 0 });
        assert_eq!(take(&group, &slots[1..]), expected.collect::<Vec<_>>());
    }
    let ended = duplicate(&group, slots[1]);
    stop_listening(&ended);
    let restored = Group::restore(&address, vec![(slots[1], ended)], slots[1]);
    assert!(matches!(restored, Err(SlotError::NotListening { .. })));
}

#[test]
fn a_client_that_the_server_has_connected_stays_with_its_socket() {
    for host in ["127.0.0.1", "0.0.0.0"] {
        let (mut group, port) = open(host);
        let (first, second) = (group.steered(), group.add_slot().unwrap());
        let known = client(loopback(port));
        // A server does this for each of its clients.
        let own = socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty()).unwrap();
        socket::reuse_port(&own).unwrap();
        socket::bind(&own, loopback(port)).unwrap();
        socket::connect(&own, known.local_addr().unwrap()).unwrap();
        for steered in [first, second] {
            group.steer_to(steered).unwrap();
            (0..10).for_each(|_| assert_eq!(known.send_to(b"x", loopback(port)).unwrap(), 1));
            send(loopback(port), 20);
            assert_eq!(read_all(own.try_clone().unwrap()), 10, "{host}");
            assert_eq!(take(&group, &[steered]), [20], "{host}");
        }
        group.retire(first).unwrap();
        send(loopback(port), 20);
        assert_eq!(take(&group, &[second]), [20], "{host}");
        // The kernel no longer counts the retired slot, so the book is correct.
        let third = group.add_slot().unwrap();
        group.steer_to(third).unwrap();
        send(loopback(port), 20);
        assert_eq!(take(&group, &[second, third]), [0, 20], "{host}");
    }
}

#[test]
fn connections_of_quic_stay_with_the_slot_that_has_chosen_their_ids() {
    for (host, at) in forms() {
        let (mut group, port) = open_as("quic", host);
        let mut slots = vec![group.steered()];
        let client = client(at(port));
        for turn in 0..6 {
            slots.push(group.add_slot().unwrap());
            let [old, new] = [slots[slots.len() - 2], slots[slots.len() - 1]];
            group.steer_to(new).unwrap();
            let marks = [old, new].map(|slot| listens::mark(group.fd(slot).unwrap()).unwrap());
            assert_ne!(marks[0], marks[1]);
            for (slot, mark) in [(old, marks[0]), (new, marks[1])] {
                let short = [0x40, mark, 1, 2, 3, 4, 5, 6, 7, 8];
                let handshake = [0xe0, 0, 0, 0, 1, 8, mark, 1, 2, 3, 4, 5, 6, 7];
                for packet in [&short[..], &handshake[..]] {
                    client.send_to(packet, at(port)).unwrap();
                }
                let expected = if slot == old { [2, 0] } else { [0, 2] };
                assert_eq!(take(&group, &[old, new]), expected, "{host} {turn}");
                let initial = [0xc0, 0, 0, 0, 1, 8, mark, 1, 2, 3, 4, 5, 6, 7];
                client.send_to(&initial, at(port)).unwrap();
                assert_eq!(take(&group, &[old, new]), [0, 1], "{host} {turn}");
            }
            group.retire(old).unwrap();
            client.send_to(&[0x40, marks[0], 1, 2, 3, 4, 5, 6, 7, 8], at(port)).unwrap();
            assert_eq!(take(&group, &[new]), [1], "its connections are gone");
        }
    }
}

#[test]
fn a_share_keeps_each_client_at_one_slot() {
    let (mut group, port) = open("*");
    let slots = [group.steered(), group.add_slot().unwrap()];
    group.steer_share(slots[1], 5000).unwrap();
    let mut counted = [0, 0];
    for n in 0..400 {
        send(if n % 2 == 0 { loopback(port) } else { (Ipv6Addr::LOCALHOST, port).into() }, 3);
        match take(&group, &slots)[..] {
            [3, 0] => counted[0] += 1,
            [0, 3] => counted[1] += 1,
            ref torn => panic!("the datagrams of one client went to {torn:?}"),
        }
    }
    println!("a share of one half got {} of 400 clients", counted[1]);
    assert!((140..=260).contains(&counted[1]), "{counted:?}");
}

#[test]
fn a_full_buffer_is_reported() {
    let (group, port) = open("127.0.0.1");
    let (client, chunk) = (client(loopback(port)), [0; 32_768]);
    let mut sent = 0_u32;
    while group.dropped(group.steered()).unwrap() == 0 {
        client.send_to(&chunk, loopback(port)).unwrap();
        sent += 1;
        assert!(sent < 10_000, "the buffer of a slot is limited");
    }
    println!("{sent} datagrams of 32 KiB fill the buffer");
    let waiting = read_all(duplicate(&group, group.steered()));
    assert_eq!(waiting + group.dropped(group.steered()).unwrap() as usize, sent as usize);
}

fn pair(host: &str) -> (Pair, [OwnedFd; 2], u16) {
    let (mut group, port) = open(host);
    let (a, b) = (group.steered(), group.add_slot().unwrap());
    let both =
        ListenerPair { address: group.address().clone(), a: duplicate(&group, a), b: duplicate(&group, b) };
    let held = [duplicate(&group, a), duplicate(&group, b)];
    (Pair::new(vec![both], PairState::new(1)).unwrap(), held, port)
}

#[test]
fn a_pair_switches_and_a_reset_drops_what_waits() {
    for (host, at) in forms() {
        let (mut pair, held, port) = pair(host);
        for side in [Side::B, Side::A, Side::A, Side::B] {
            let wanted = pair.state().switched_to(side);
            pair.apply(wanted).unwrap();
            send(at(port), 10);
            assert_eq!(pair.queue_len(side).unwrap(), 1);
            assert_eq!(pair.queue_len(side.other()).unwrap(), 0, "{host}");
            let active = pair.state().with_reset(side);
            assert!(matches!(pair.apply(active), Err(SlotError::ActiveSide { .. })));
            let other = pair.state().switched_to(side.other());
            pair.apply(other).unwrap();
            for _ in 0..2 {
                let reset = pair.state().with_reset(side);
                pair.apply(reset).unwrap();
                assert_eq!(pair.queue_len(side).unwrap(), 0);
            }
            send(at(port), 10);
            assert_eq!(pair.queue_len(side.other()).unwrap(), 1);
            let [a, b] = held.each_ref().map(|held| read_all(held.try_clone().unwrap()));
            assert_eq!((a + b, pair.queue_len(side).unwrap()), (10, 0), "{host}");
        }
    }
}

#[test]
fn a_side_that_a_program_has_connected_is_reported() {
    let (mut pair, held, port) = pair("127.0.0.1");
    let theirs = UdpSocket::from(held[1].try_clone().unwrap());
    theirs.connect(loopback(1)).unwrap();
    let wanted = pair.state().switched_to(Side::B);
    assert!(matches!(pair.apply(wanted), Err(SlotError::SideNotListening { .. })));
    let wanted = pair.state().switched_to(Side::A);
    pair.apply(wanted).unwrap();
    send(loopback(port), 5);
    assert_eq!(read_all(held[0].try_clone().unwrap()), 5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn the_kernel_counts_sockets_as_the_book_does(
        host in prop_oneof![Just("127.0.0.1"), Just("0.0.0.0")],
        steps in proptest::collection::vec((any::<bool>(), 0_usize..4), 1..20),
    ) {
        let (mut group, port) = open(host);
        let mut alive = vec![group.steered()];
        let mut held = Vec::new();
        for (adds, pick) in steps {
            if adds && alive.len() < 4 {
                alive.push(group.add_slot().unwrap());
                held.push(duplicate(&group, alive[alive.len() - 1]));
            } else if alive.len() > 1 {
                let leaving = alive.remove(pick % alive.len());
                if group.steered() == leaving {
                    group.steer_to(alive[0]).unwrap();
                }
                group.retire(leaving).unwrap();
            }
            for steered in alive.clone() {
                group.steer_to(steered).unwrap();
                send(loopback(port), 2);
                let expected: Vec<_> =
                    alive.iter().map(|slot| if *slot == steered { 2 } else { 0 }).collect();
                prop_assert_eq!(take(&group, &alive), expected);
            }
        }
    }
}
