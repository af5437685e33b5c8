//! Two permanent listeners, and switches between them.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use handoff::config::ListenAddress;
use handoff::slots::{Group, ListenerPair, Pair, PairState, Side, SlotError, stop_listening};
use handoff::sys::descriptor::is_nonblocking;

use super::{duplicate, loopback, open_on_free_port, unix_address, wait_until};
use crate::support::at_end::SetOnDrop;

/// The two slots of a group, as their holders keep them.
fn both(group: &mut Group) -> ListenerPair {
    let (a, b) = (group.steered(), group.add_slot().unwrap());
    ListenerPair { address: group.address().clone(), a: duplicate(group, a), b: duplicate(group, b) }
}

fn copy(of: &[ListenerPair]) -> Vec<ListenerPair> {
    let copy = |fd: &OwnedFd| fd.try_clone().unwrap();
    of.iter()
        .map(|both| ListenerPair { address: both.address.clone(), a: copy(&both.a), b: copy(&both.b) })
        .collect()
}

fn tcp_pair() -> (Vec<ListenerPair>, SocketAddr) {
    let (mut group, port) = open_on_free_port(|port| ListenAddress::Tcp(loopback(port)));
    (vec![both(&mut group)], loopback(port))
}

/// Connects `count` times. Returns the number of new connections at each side.
fn landed(pair: &Pair, address: SocketAddr, count: usize) -> [u32; 2] {
    let before = waiting(pair);
    (0..count).for_each(|_| drop(TcpStream::connect(address).unwrap()));
    let after = waiting(pair);
    [after[0] - before[0], after[1] - before[1]]
}

fn waiting(pair: &Pair) -> [u32; 2] {
    [Side::A, Side::B].map(|side| pair.queue_len(side).unwrap())
}

#[test]
fn a_switch_sends_all_new_connections_and_again_changes_nothing() {
    let (held, address) = tcp_pair();
    let mut pair = Pair::new(copy(&held), PairState::new(1)).unwrap();
    for side in [Side::A, Side::B, Side::B, Side::A, Side::B] {
        let wanted = pair.state().switched_to(side);
        for _ in 0..2 {
            assert_eq!(*pair.apply(wanted.clone()).unwrap(), wanted);
            assert_eq!(landed(&pair, address, 20), if side == Side::A { [20, 0] } else { [0, 20] });
        }
    }
}

#[test]
fn a_reset_ends_what_waits_and_the_switches_stay_right() {
    let (held, address) = tcp_pair();
    let mut pair = Pair::new(copy(&held), PairState::new(1)).unwrap();
    // From each side, with each order of the slots.
    for round in 0..6 {
        let active = pair.state().active();
        let mut client = TcpStream::connect(address).unwrap();
        let switched = pair.state().switched_to(active.other());
        pair.apply(switched).unwrap();
        assert_eq!(pair.queue_len(active).unwrap(), 1);
        let wanted = pair.state().with_reset(active);
        pair.apply(wanted.clone()).unwrap();
        assert_eq!(pair.queue_len(active).unwrap(), 0);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "{round}");
        // Again, as after a crash: another holder knows only the recorded state.
        drop(pair);
        let written = serde_json::to_string(&wanted).unwrap();
        assert_eq!(serde_json::from_str::<PairState>(&written).unwrap(), wanted);
        pair = Pair::new(copy(&held), wanted).unwrap();
        for side in [active, active.other(), active, active.other()] {
            let switched = pair.state().switched_to(side);
            pair.apply(switched).unwrap();
            let expected = if side == Side::A { [5, 0] } else { [0, 5] };
            assert_eq!(landed(&pair, address, 5), expected, "{round}: {side} of {:?}", pair.state());
        }
        take_all(&held);
        if round == 2 {
            let switched = pair.state().switched_to(active);
            pair.apply(switched).unwrap();
        }
    }
}

fn take_all(held: &[ListenerPair]) {
    for both in held {
        for listener in [&both.a, &both.b] {
            let listener = TcpListener::from(listener.try_clone().unwrap());
            listener.set_nonblocking(true).unwrap();
            while listener.accept().is_ok() {}
            listener.set_nonblocking(false).unwrap();
        }
    }
}

#[test]
fn the_active_side_is_reset_only_if_a_program_has_shut_it_down() {
    let (held, address) = tcp_pair();
    let mut pair = Pair::new(copy(&held), PairState::new(1)).unwrap();
    for side in [Side::A, Side::B, Side::A, Side::A] {
        let switched = pair.state().switched_to(side);
        pair.apply(switched.clone()).unwrap();
        let reset = switched.with_reset(side);
        assert!(matches!(pair.apply(reset.clone()), Err(SlotError::ActiveSide { .. })));

        stop_listening(pair.listeners(side).next().unwrap());
        assert!(pair.is_left(side) && !pair.is_left(side.other()));
        pair.apply(reset).unwrap();
        assert_eq!(landed(&pair, address, 20), if side == Side::A { [20, 0] } else { [0, 20] });
    }
}

#[test]
fn a_side_that_its_program_has_shut_down_is_revived_by_a_switch() {
    let (held, address) = tcp_pair();
    let mut pair = Pair::new(copy(&held), PairState::new(1)).unwrap();
    for side in [Side::B, Side::A, Side::A, Side::B] {
        stop_listening(pair.listeners(side).next().unwrap());
        assert_eq!(landed(&pair, address, 5).iter().sum::<u32>(), 5, "the other side gets them");
        let wanted = pair.foresee(&pair.state().switched_to(side));
        // Interrupted after the state was recorded, and after the kernel was updated.
        for _ in 0..2 {
            pair = Pair::hold(copy(&held), wanted.clone());
            assert_eq!(pair.foresee(&wanted), wanted);
            pair.apply(wanted.clone()).unwrap();
        }
        assert_eq!(landed(&pair, address, 20), if side == Side::A { [20, 0] } else { [0, 20] });
        take_all(&held);
    }
}

#[test]
fn strangers_that_come_and_go_do_not_change_the_sides() {
    let (held, address) = tcp_pair();
    let mut pair = Pair::new(copy(&held), PairState::new(1)).unwrap();
    for side in [Side::B, Side::A, Side::B] {
        let stranger = super::stranger(address);
        let switched = pair.state().switched_to(side).with_reset(side.other());
        pair.apply(switched).unwrap();
        let expected = if side == Side::A { [10, 0] } else { [0, 10] };
        assert_eq!(landed(&pair, address, 10), expected, "with a stranger");
        drop(stranger);
        assert_eq!(landed(&pair, address, 10), expected, "without");
        take_all(&held);
    }
}

#[test]
fn both_sides_can_come_back() {
    let (held, address) = tcp_pair();
    let mut pair = Pair::new(copy(&held), PairState::new(1)).unwrap();
    [Side::B, Side::A].iter().for_each(|side| stop_listening(pair.listeners(*side).next().unwrap()));
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let active = pair.state().switched_to(Side::B);
    pair.apply(active.with_reset(Side::B)).unwrap();
    assert_eq!(landed(&pair, address, 20), [0, 20], "alone");
    let reset = pair.state().with_reset(Side::A);
    pair.apply(reset).unwrap();
    assert_eq!(landed(&pair, address, 20), [0, 20]);
    let switched = pair.state().switched_to(Side::A);
    pair.apply(switched).unwrap();
    assert_eq!(landed(&pair, address, 20), [20, 0]);
}

#[test]
fn no_client_comes_to_the_side_that_is_reset() {
    let (held, address) = tcp_pair();
    let mut pair = Pair::new(copy(&held), PairState::new(1)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let at_end = SetOnDrop(&stop);
        let client = scope.spawn(|| {
            let mut count = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                drop(TcpStream::connect(address).unwrap());
                count += 1;
            }
            count
        });
        for round in 0..300 {
            let active = pair.state().active();
            wait_until("a client is there", || pair.queue_len(active).unwrap() > 0);
            let reset = pair.state().with_reset(active.other());
            pair.apply(reset).unwrap();
            // A handshake in progress may complete now.
            assert!(pair.queue_len(active.other()).unwrap() <= 1, "round {round}");
            // The active side is the other one in the next round.
            let switched = pair.state().switched_to(active.other());
            pair.apply(switched).unwrap();
            take_all(&held);
        }
        drop(at_end);
        // At least one client per round.
        assert!(client.join().unwrap() >= 300);
    });
}

#[test]
fn unix_paths_and_several_addresses_switch_together() {
    let dir = tempfile::tempdir().unwrap();
    // A path of maximum length: the slots get short names.
    let room = 107 - dir.path().as_os_str().len() - 1;
    for name in ["s.sock", &"x".repeat(room)] {
        switch_together(&dir.path().join(name));
    }
}

fn switch_together(path: &Path) {
    let (tcp, address) = tcp_pair();
    let mut group = Group::open(&unix_address(path)).unwrap();
    let held: Vec<ListenerPair> = tcp.into_iter().chain([both(&mut group)]).collect();
    let mut pair = Pair::new(copy(&held), PairState::new(2)).unwrap();
    for side in [Side::A, Side::B, Side::A] {
        let switched = pair.state().switched_to(side);
        pair.apply(switched).unwrap();
        let mut clients = (UnixStream::connect(path).unwrap(), TcpStream::connect(address).unwrap());
        assert_eq!((pair.queue_len(side).unwrap(), pair.queue_len(side.other()).unwrap()), (2, 0));
        let switched = pair.state().switched_to(side.other()).with_reset(side);
        pair.apply(switched).unwrap();
        assert_eq!(waiting(&pair), [0, 0]);
        assert_eq!(clients.0.read(&mut [0]).unwrap(), 0);
        assert!(clients.1.read(&mut [0]).is_err());
        assert!(!is_nonblocking(held[1].a.as_fd()).unwrap(), "left as it was");
    }
    let stranger = std::os::unix::net::UnixListener::bind(path.with_file_name("other")).unwrap();
    let other =
        ListenerPair { address: unix_address(path), a: stranger.into(), b: held[1].b.try_clone().unwrap() };
    assert!(matches!(Pair::new(vec![other], PairState::new(1)), Err(SlotError::OtherPair { .. })));
    std::fs::remove_file(path.with_file_name("other")).unwrap();
}

/// A switch of several addresses fails at the last one.
#[test]
fn a_switch_that_fails_half_way_leaves_all_addresses_where_they_were() {
    for joins in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (tcp, address) = tcp_pair();
        let path = dir.path().join("s.sock");
        let mut group = Group::open(&unix_address(&path)).unwrap();
        let held: Vec<ListenerPair> = tcp.into_iter().chain([both(&mut group)]).collect();
        let mut pair = Pair::new(copy(&held), PairState::new(2)).unwrap();
        if joins {
            // The switch makes it join its group again, which changes the order of the slots.
            stop_listening(pair.listeners(Side::B).next().unwrap());
        }
        for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
            std::fs::remove_file(entry.path()).unwrap();
        }
        for _ in 0..2 {
            let switched = pair.state().switched_to(Side::B);
            pair.apply(switched).unwrap_err();
            assert_eq!(pair.state().active(), Side::A);
            assert_eq!(landed(&pair, address, 10), [10, 0], "joins: {joins}");
            take_all(&held[..1]);
        }
        // The recorded order is correct.
        let mut pair = Pair::hold(copy(&held[..1]), pair.state().clone());
        for side in [Side::B, Side::A] {
            let switched = pair.state().switched_to(side);
            pair.apply(switched).unwrap();
            assert_eq!(landed(&pair, address, 10), if side == Side::A { [10, 0] } else { [0, 10] });
            take_all(&held[..1]);
        }
    }
}

/// Events that can happen to a pair.
#[derive(Debug, Clone, Copy)]
enum PairEvent {
    Switch(Side),
    /// A program shuts the listener down.
    ShutDown(Side),
    Reset(Side),
    /// The holder dies, and another one continues with the recorded state.
    Change,
}

fn events() -> impl Strategy<Value = Vec<PairEvent>> {
    let side = || prop_oneof![Just(Side::A), Just(Side::B)];
    let event = prop_oneof![
        4 => side().prop_map(PairEvent::Switch),
        1 => side().prop_map(PairEvent::ShutDown),
        3 => side().prop_map(PairEvent::Reset),
        1 => Just(PairEvent::Change),
    ];
    proptest::collection::vec(event, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_new_connections_come_to_the_active_side(events in events()) {
        let (held, address) = tcp_pair();
        let mut pair = Pair::new(copy(&held), PairState::new(1)).unwrap();
        for event in events {
            let state = pair.state().clone();
            let wanted = match event {
                PairEvent::Switch(side) => state.switched_to(side),
                PairEvent::ShutDown(side) => {
                    stop_listening(pair.listeners(side).next().unwrap());
                    state
                }
                PairEvent::Reset(side) => state.with_reset(side),
                PairEvent::Change => {
                    drop(pair);
                    pair = Pair::new(copy(&held), state.clone()).unwrap();
                    state
                }
            };
            match pair.apply(wanted) {
                Ok(_) => {}
                Err(SlotError::ActiveSide { .. }) => prop_assert!(matches!(event, PairEvent::Reset(_))),
                Err(error) => panic!("{error}"),
            }
            take_all(&held);
            let active = pair.state().active();
            let expected = if active == Side::A { [3, 0] } else { [0, 3] };
            prop_assert_eq!(landed(&pair, address, 3), expected, "after {:?}: {:?}", event, pair.state());
        }
    }
}
