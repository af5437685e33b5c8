//! Tests of slots with real sockets.

mod pair;
mod steering;
mod udp;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::at_end::SetOnDrop;
use crate::support::wait_for;
use handoff::config::ListenAddress;
use handoff::slots::{Group, SlotError, SlotId, lengthen_queue, stop_listening};
use handoff::sys::descriptor::is_close_on_exec;
use handoff::sys::poll::{PollFlags, poll_one};

/// A duplicate of a slot's listener, as a process holds it.
fn duplicate(group: &Group, slot: SlotId) -> OwnedFd {
    group.fd(slot).unwrap().try_clone_to_owned().unwrap()
}

fn tcp(group: &Group, slot: SlotId) -> TcpListener {
    duplicate(group, slot).into()
}

/// Opens an address with a port that was free a moment ago. Another test may take the port first.
fn open_on_free_port(address: impl Fn(u16) -> ListenAddress) -> (Group, u16) {
    for _ in 0..20 {
        let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
        match Group::open(&address(port)) {
            Ok(group) => return (group, port),
            Err(SlotError::InUse { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no free port in 20 attempts");
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn open_loopback() -> (Group, SocketAddr) {
    let (group, port) = open_on_free_port(|port| ListenAddress::Tcp(loopback(port)));
    (group, loopback(port))
}

#[test]
fn each_family_takes_its_own_and_dual_stack_takes_both() {
    let v4 = |port| format!("127.0.0.1:{port}");
    let v6 = |port| format!("[::1]:{port}");
    let forms =
        [("127.0.0.1", true, false), ("[::1]", false, true), ("0.0.0.0", true, false), ("[::]", false, true)];
    for (host, by_v4, by_v6) in forms.into_iter().chain([("*", true, true)]) {
        let (group, port) = open_on_free_port(|port| format!("{host}:{port}").parse().unwrap());
        assert_eq!(TcpStream::connect(v4(port)).is_ok(), by_v4, "{host}");
        assert_eq!(TcpStream::connect(v6(port)).is_ok(), by_v6, "{host}");
        assert_eq!(group.queue_len(group.steered()).unwrap(), u32::from(by_v4) + u32::from(by_v6));
        group.close();
        assert!(TcpStream::connect(v4(port)).is_err() && TcpStream::connect(v6(port)).is_err());
    }
}

#[test]
fn accepted_sockets_do_not_delay_and_the_listener_is_not_inherited() {
    let (group, address) = open_loopback();
    let listener = tcp(&group, group.steered());
    let _client = TcpStream::connect(address).unwrap();
    assert!(listener.accept().unwrap().0.nodelay().unwrap());
    assert!(is_close_on_exec(group.fd(group.steered()).unwrap()).unwrap());
}

#[test]
fn more_connections_wait_than_a_library_would_allow() {
    let somaxconn: u32 = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let count = somaxconn.min(1000);
    let (group, address) = open_loopback();
    let clients: Vec<_> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert_eq!(group.queue_len(group.steered()).unwrap(), clients.len() as u32);
}

#[test]
fn every_connection_lands_where_it_is_steered() {
    let (mut group, address) = open_loopback();
    let first = group.steered();
    let second = group.add_slot().unwrap();
    let mut expected = [0, 0];
    for (turn, slot) in [first, second, first, second].into_iter().enumerate() {
        group.steer_to(slot).unwrap();
        (0..200).for_each(|_| drop(TcpStream::connect(address).unwrap()));
        expected[turn % 2] += 200;
        assert_eq!([first, second].map(|slot| group.queue_len(slot).unwrap()), expected);
    }
}

#[test]
fn the_kernel_counts_members_as_the_book_does() {
    let (mut group, address) = open_loopback();
    let mut alive = vec![group.steered()];
    // Slots leave from the front, the middle and the end, and new ones are added in between.
    for pick in [0, 1, 0, 2, 1, 3, 0, 4] {
        while alive.len() < 5 {
            alive.push(group.add_slot().unwrap());
        }
        let leaving = alive.remove(pick);
        group.steer_to(alive[0]).unwrap();
        // A duplicate of the listener exists, and the slot leaves anyway.
        let _held = duplicate(&group, leaving);
        group.retire(leaving).unwrap();
        for slot in &alive {
            group.steer_to(*slot).unwrap();
            let listener = tcp(&group, *slot);
            (0..8).for_each(|_| drop(TcpStream::connect(address).unwrap()));
            assert_eq!(group.queue_len(*slot).unwrap(), 8, "slot {slot} of {:?}", group.order());
            (0..8).for_each(|_| drop(listener.accept().unwrap()));
        }
    }
}

/// A stand-in for the process of one generation.
#[derive(Default)]
struct Server {
    leave: AtomicBool,
    served: AtomicUsize,
}

impl Server {
    /// Accepts and answers until `leave` is set and no connection has come for a tenth of a second.
    fn run(&self, listener: TcpListener) {
        let a_while = Duration::from_millis(100);
        loop {
            if !poll_one(&listener, PollFlags::POLLIN, Some(a_while)).unwrap().is_empty() {
                listener.accept().unwrap().0.write_all(b"ok").unwrap();
                self.served.fetch_add(1, Ordering::Relaxed);
            } else if self.leave.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

/// Connects continuously until `stop`. Returns the number of complete answers.
fn load(address: SocketAddr, stop: &AtomicBool) -> io::Result<usize> {
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut answer = String::new();
        TcpStream::connect(address)?.read_to_string(&mut answer)?;
        assert_eq!(answer, "ok");
        answered += 1;
    }
    Ok(answered)
}

#[test]
fn a_queue_that_was_shortened_is_as_long_as_before() {
    let (group, port) = open_on_free_port(|port| ListenAddress::Tcp(loopback(port)));
    let address = loopback(port);
    let listener = duplicate(&group, group.steered());
    handoff::sys::socket::listen(&listener, 1).unwrap();
    lengthen_queue(&listener);
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(20)).unwrap();
    let waiting: Vec<TcpStream> = (0..100).map(connect).collect();
    assert_eq!(group.queue_len(group.steered()).unwrap(), 100);
    // A listener that has ended does not come back.
    drop(waiting);
    stop_listening(&listener);
    lengthen_queue(&listener);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn retiring_loses_nothing_under_load() {
    let (mut group, address) = open_loopback();
    let servers: [Server; 6] = Default::default();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listener = tcp(&group, group.steered());
        let mut old = scope.spawn(|| servers[0].run(listener));
        let clients = [0; 3].map(|_| scope.spawn(|| load(address, &stop)));
        let (at_end, _servers) =
            (SetOnDrop(&stop), servers.each_ref().map(|server| SetOnDrop(&server.leave)));
        for pair in servers.windows(2) {
            let (leaving, coming) = (&pair[0], &pair[1]);
            wait_until("the old server has work", || leaving.served() > 50);
            let (from, to) = (group.steered(), group.add_slot().unwrap());
            let listener = tcp(&group, to);
            let new = scope.spawn(|| coming.run(listener));
            assert_eq!(coming.served(), 0);
            group.steer_to(to).unwrap();
            leaving.leave.store(true, Ordering::Relaxed);
            old.join().unwrap();
            assert_eq!(group.queue_len(from).unwrap(), 0);
            group.retire(from).unwrap();
            old = new;
        }
        wait_until("the last server has work", || servers[5].served() > 50);
        drop(at_end);
        let answered: usize = clients.into_iter().map(|client| client.join().unwrap().unwrap()).sum();
        servers[5].leave.store(true, Ordering::Relaxed);
        old.join().unwrap();
        assert_eq!(answered, servers.iter().map(Server::served).sum::<usize>());
    });
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_slot_in_use_cannot_be_retired_and_unknown_ones_are_reported() {
    let (mut group, _) = open_loopback();
    let only = group.steered();
    assert!(matches!(group.retire(only), Err(SlotError::Steered { .. })));
    assert!(matches!(group.retire(SlotId(9)), Err(SlotError::Unknown { .. })));
    assert!(matches!(group.steer_to(SlotId(9)), Err(SlotError::Unknown { .. })));
    assert!(matches!(group.queue_len(SlotId(9)), Err(SlotError::Unknown { .. })));
}

#[test]
fn a_stranger_is_named() {
    // The second owner shares its port with sockets of the same user, and is reported all the same.
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let (sharing, shared) = open_loopback();
    for address in [stranger.local_addr().unwrap(), shared] {
        let error = Group::open(&ListenAddress::Tcp(address)).unwrap_err();
        let text = error.to_string();
        let pid = std::process::id();
        assert!(text.starts_with(&format!("{address} is in use by pid {pid} (")), "{text}");
    }
    let wildcard = format!("0.0.0.0:{}", shared.port()).parse().unwrap();
    assert!(matches!(Group::open(&wildcard), Err(SlotError::InUse { owner: Some(_), .. })));
    drop(sharing);
    let error = Group::open(&"192.0.2.1:9000".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("no interface of this machine"), "{error}");
}

#[test]
fn a_stranger_that_joins_the_port_gets_nothing() {
    use handoff::sys::socket::{AddressFamily, SockFlag, SockType, bind, listen, reuse_port, socket};
    let (group, address) = open_loopback();
    let stranger = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty()).unwrap();
    reuse_port(&stranger).unwrap();
    bind(&stranger, address).unwrap();
    listen(&stranger, 100).unwrap();
    (0..50).for_each(|_| drop(TcpStream::connect(address).unwrap()));
    assert_eq!(group.queue_len(group.steered()).unwrap(), 50);
}

#[test]
fn a_group_is_put_together_again_from_duplicates() {
    let (mut group, address) = open_loopback();
    let first = group.steered();
    let (second, third) = (group.add_slot().unwrap(), group.add_slot().unwrap());
    group.steer_to(third).unwrap();
    group.retire(first).unwrap();
    let _waiting = TcpStream::connect(address).unwrap();
    let members = group.order().iter().map(|slot| (*slot, duplicate(&group, *slot))).collect::<Vec<_>>();
    drop(group);

    let mut group = Group::restore(&ListenAddress::Tcp(address), members, third).unwrap();
    assert_eq!(group.queue_len(third).unwrap(), 1, "what waited still waits");
    drop(TcpStream::connect(address).unwrap());
    assert_eq!((group.queue_len(second).unwrap(), group.queue_len(third).unwrap()), (0, 2));
    assert!(group.add_slot().unwrap() > third);

    let dead = duplicate(&group, third);
    group.close();
    let error = Group::restore(&ListenAddress::Tcp(address), vec![(third, dead)], third).unwrap_err();
    assert!(error.to_string().contains("no longer listens"), "{error}");
}

/// A listener of another process of the same user, which joins the group.
fn stranger(address: SocketAddr) -> TcpListener {
    use handoff::sys::socket::{AddressFamily, SockFlag, SockType, bind, listen, reuse_port, socket};
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::empty()).unwrap();
    reuse_port(&socket).unwrap();
    bind(&socket, address).unwrap();
    listen(&socket, 16).unwrap();
    socket.into()
}

/// Waits until `count` strangers are left. A child of another test may hold a closed one for a moment.
fn strangers_are(group: &Group, count: usize) {
    wait_for("strangers to leave", || (group.others().unwrap().len() == count).then_some(()));
}

#[test]
fn strangers_get_nothing_whenever_they_come_and_go() {
    for v6 in [false, true] {
        let loopback = |port| if v6 { SocketAddr::from((Ipv6Addr::LOCALHOST, port)) } else { loopback(port) };
        let (mut group, port) = open_on_free_port(|port| ListenAddress::Tcp(loopback(port)));
        let address = loopback(port);
        let expect = |group: &Group, slot| {
            let before = group.queue_len(slot).unwrap();
            (0..20).for_each(|_| drop(TcpStream::connect(address).unwrap()));
            assert_eq!(group.queue_len(slot).unwrap() - before, 20, "v6: {v6}");
        };
        let first = group.steered();
        let (one, two) = (stranger(address), stranger(address));
        expect(&group, first);
        let others = group.others().unwrap();
        assert_eq!(others.len(), 2);
        assert_eq!(others[0].owner.as_ref().unwrap().pid, std::process::id());
        // The new slot comes after the strangers.
        let second = group.add_slot().unwrap();
        group.steer_to(second).unwrap();
        expect(&group, second);
        assert!(group.is_displaced());
        drop(one);
        strangers_are(&group, 1);
        group.repair().unwrap();
        expect(&group, second);
        let three = stranger(address);
        group.retire(first).unwrap();
        expect(&group, second);
        drop((two, three));
        strangers_are(&group, 0);
        group.repair().unwrap();
        expect(&group, second);
        assert!(!group.is_displaced());
        assert_eq!(group.others().unwrap(), []);
        group.close();
    }
}

#[test]
fn a_slot_that_its_program_has_shut_down_is_revived() {
    let (mut group, port) = open_on_free_port(|port| ListenAddress::Tcp(loopback(port)));
    let slot = group.steered();
    for _ in 0..2 {
        stop_listening(&duplicate(&group, slot));
        assert!(!group.is_alive(slot));
        assert!(!group.revive(slot).unwrap(), "the listener is the same");
        group.steer_anew().unwrap();
        assert!(group.is_alive(slot));
        let _waiting = TcpStream::connect(loopback(port)).unwrap();
        assert!(group.queue_len(slot).unwrap() > 0);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let mut group = Group::open(&unix_address(&path)).unwrap();
    let slot = group.steered();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    stop_listening(&duplicate(&group, slot));
    assert!(!group.is_alive(slot) && UnixStream::connect(&path).is_err());
    assert!(group.revive(slot).unwrap(), "the socket is a new one");
    assert!(group.is_alive(slot));
    UnixStream::connect(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let (mut group, port) = open_on_free_port(|port| ListenAddress::Udp(loopback(port)));
    let slot = group.steered();
    UdpSocket::from(duplicate(&group, slot)).connect(loopback(1)).unwrap();
    assert!(!group.is_alive(slot) && group.revive(slot).unwrap());
    group.steer_anew().unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", loopback(port)).unwrap();
    wait_until("the datagram is there", || group.queue_len(slot).unwrap() > 0);
}

fn unix_address(path: &Path) -> ListenAddress {
    ListenAddress::Unix(path.to_owned())
}

#[test]
fn a_unix_path_switches_and_switches_back_without_a_moment_of_absence() {
    let dir = tempfile::tempdir().unwrap();
    // A path of maximum length: the names of the slots next to it exceed the limit for socket names.
    let room = 107 - dir.path().as_os_str().len() - 1;
    for name in ["s.sock", &"x".repeat(room)] {
        let path = dir.path().join(name);
        let mut group = Group::open(&unix_address(&path)).unwrap();
        let first = group.steered();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        let second = group.add_slot().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    UnixStream::connect(&path).unwrap();
                }
            });
            let at_end = SetOnDrop(&stop);
            for slot in [second, first, second, first, second] {
                group.steer_to(slot).unwrap();
                let listener = UnixListener::from(duplicate(&group, slot));
                (0..20).for_each(|_| drop(listener.accept().unwrap()));
            }
            drop(at_end);
            client.join().unwrap();
        });
        group.retire(first).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert_eq!(group.queue_len(second).unwrap(), 1);
        group.close();
        assert!(UnixStream::connect(&path).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no file is left");
    }
}

#[test]
fn what_stands_at_a_unix_path_is_respected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let refused = || Group::open(&unix_address(&path)).unwrap_err().to_string();

    fs::write(&path, "a file").unwrap();
    assert!(refused().contains("is not a socket"));
    fs::remove_file(&path).unwrap();

    let stranger = UnixListener::bind(&path).unwrap();
    assert!(refused().contains(&format!("is in use by pid {}", std::process::id())));
    drop(stranger);
    // No process answers, so the file counts as a leftover of a crash. A child of another test may hold the listener
    // for a moment.
    let group = wait_for("the path to be free", || Group::open(&unix_address(&path)).ok());
    UnixStream::connect(&path).unwrap();

    // Another process has taken the path, so the group must not remove it.
    fs::remove_file(&path).unwrap();
    let _stranger = UnixListener::bind(&path).unwrap();
    group.close();
    let left: BTreeSet<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, BTreeSet::from(["s.sock".into()]));

    let error = Group::open(&unix_address(&dir.path().join("missing/s.sock"))).unwrap_err().to_string();
    assert!(error.contains("the directory of unix:") && error.contains("missing/s.sock"), "{error}");
}
