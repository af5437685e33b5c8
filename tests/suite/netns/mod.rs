//! Continuous switches in a separate network namespace, where no other program uses ports.
//!
//! The test restarts itself with `unshare`, which needs no privilege if the kernel permits user namespaces.

mod udp;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::at_end::SetOnDrop;
use crate::support::{all_or, arguments_for};
use handoff::slots::{Group, SlotId};
use handoff::sys::socket::{MsgFlags, SockProtocol, netlink, recv, send};

const INSIDE: &str = "HANDOFF_TEST_NETNS";
const CLIENTS: usize = 2;

fn switches() -> usize {
    all_or(10_000, 1_000)
}

#[test]
fn switches_lose_no_connection() {
    in_a_network(switches_lose_no_connection, switch_under_load);
}

/// Runs the test in a separate network namespace.
fn in_a_network(test: impl Fn(), work: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return work();
    }
    let mut allowed = None;
    for how in [&["--net"][..], &["--map-root-user", "--net"]] {
        match Command::new("unshare").args(how).arg("true").output() {
            Ok(done) if done.status.success() => allowed = Some(how),
            Ok(done) => println!("unshare {how:?}: {}", String::from_utf8_lossy(&done.stderr).trim()),
            Err(error) => println!("unshare: {error}"),
        }
    }
    let Some(how) = allowed else {
        return println!("skipped: this kernel gives no network namespace here");
    };
    let again = std::env::current_exe().unwrap();
    let test = arguments_for(test);
    let status = Command::new("unshare").args(how).arg(again).args(test).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "inside the namespace: {status}");
}

fn switch_under_load() {
    bring_up_loopback().unwrap();
    let switches = switches();
    let mut group = Group::open(&"0.0.0.0:80".parse().unwrap()).unwrap();
    let slots = [group.steered(), group.add_slot().unwrap()];
    let (stop, end) = (AtomicBool::new(false), AtomicBool::new(false));
    let answered = AtomicUsize::new(0);
    let accepted = slots.map(|_| AtomicUsize::new(0));
    let mut times = Vec::with_capacity(switches);
    let lost: Vec<ClientFailures> = std::thread::scope(|scope| {
        let _stop = SetOnDrop(&stop);
        for (slot, count) in slots.iter().zip(&accepted) {
            let listener = listener(&group, *slot);
            let end = &end;
            scope.spawn(move || accept(&listener, end, count));
        }
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| (client, &stop, &answered))
            .map(|(client, stop, answered)| scope.spawn(move || connect(client, stop, answered)))
            .collect();
        for turn in 1..=switches {
            times.push(switch(&mut group, slots[turn % 2]));
            wait_for_more(&answered);
        }
        stop.store(true, Ordering::Relaxed);
        let lost = clients.into_iter().map(|client| client.join().unwrap()).collect();
        // Each acceptor checks the flag when it gets one more connection.
        end.store(true, Ordering::Relaxed);
        for slot in slots {
            group.steer_to(slot).unwrap();
            drop(TcpStream::connect(address(0)).unwrap());
        }
        lost
    });
    let (answered, [first, second]) = (answered.into_inner(), accepted.map(AtomicUsize::into_inner));
    let [p50, p99, max] = spread(times);
    println!(
        "{switches} switches, {answered} connections answered ({first} and {second} by the two slots), lost: {lost:?}; \
         a switch took {p50:?} (p50), {p99:?} (p99), {max:?} (max)"
    );
    assert!(lost.iter().all(|lost| *lost == ClientFailures::default()), "{lost:?}");
    assert_eq!(answered, first + second, "all that were accepted were answered");
    assert!(first > switches / 10 && second > switches / 10, "both had work");
}

fn listener(group: &Group, slot: SlotId) -> TcpListener {
    group.fd(slot).unwrap().try_clone_to_owned().unwrap().into()
}

fn switch(group: &mut Group, slot: SlotId) -> Duration {
    let begin = Instant::now();
    group.steer_to(slot).unwrap();
    begin.elapsed()
}

/// Waits for another answer, so that connections happen between any two switches.
fn wait_for_more(answered: &AtomicUsize) {
    let (before, begin) = (answered.load(Ordering::Relaxed), Instant::now());
    while answered.load(Ordering::Relaxed) == before {
        assert!(begin.elapsed() < Duration::from_secs(10), "no connection for 10 s");
        std::thread::yield_now();
    }
}

/// Failures that clients may notice.
#[derive(Debug, Default, PartialEq, Eq)]
struct ClientFailures {
    refused: usize,
    reset: usize,
    cut: usize,
    other: usize,
}

fn connect(client: usize, stop: &AtomicBool, answered: &AtomicUsize) -> ClientFailures {
    let mut lost = ClientFailures::default();
    for turn in (client..).step_by(CLIENTS) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match ask(address(turn)) {
            Ok(2) => _ = answered.fetch_add(1, Ordering::Relaxed),
            Ok(_) => lost.cut += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => lost.refused += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => lost.reset += 1,
            Err(_) => lost.other += 1,
        }
    }
    lost
}

fn ask(address: SocketAddr) -> io::Result<usize> {
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    connection.read_to_string(&mut String::new())
}

/// Many addresses, because an ended connection blocks its pair of ports for a minute.
fn address(turn: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 0, (turn % 250 + 1) as u8), 80))
}

fn accept(listener: &TcpListener, end: &AtomicBool, count: &AtomicUsize) {
    loop {
        let (mut connection, _) = listener.accept().unwrap();
        if end.load(Ordering::Relaxed) {
            return;
        }
        connection.write_all(b"ok").unwrap();
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn spread(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    [times.len() / 2, times.len() * 99 / 100, times.len() - 1].map(|at| times[at])
}

/// The loopback of a new namespace is down. An `RTM_NEWLINK` of rtnetlink(7), protocol 0, for the interface with index
/// 1.
fn bring_up_loopback() -> io::Result<()> {
    const LENGTH: u32 = 32;
    const NEW_LINK: u16 = 16;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 5;
    const UP: u32 = 1;
    let mut message = Vec::new();
    message.extend(LENGTH.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACKNOWLEDGE.to_ne_bytes());
    message.extend([0; 12]); // Sequence number, port, family, type.
    message.extend(1_u32.to_ne_bytes());
    message.extend([UP.to_ne_bytes(), UP.to_ne_bytes()].concat()); // Flags, and a mask of the flags to change.
    let socket = netlink(SockProtocol::NetlinkRoute)?;
    send(&socket, &message, MsgFlags::empty())?;
    let mut answer = [0; 256];
    recv(&socket, &mut answer, MsgFlags::empty())?;
    // The error follows the header of the answer; 0 means none.
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-error)) }
}
