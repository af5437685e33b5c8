//! The same with datagrams: the process before or after the switch answers each of them.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use handoff::slots::{Group, SlotId};
use handoff::sys::listens::listens;

use super::{CLIENTS, SetOnDrop, bring_up_loopback, in_a_network, spread, switch, switches, wait_for_more};

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
/// The number of open questions of a client.
const AT_ONCE: usize = 8;
/// An answer over the loopback that takes longer is lost.
const LOST_AFTER: Duration = Duration::from_secs(5);

#[test]
fn switches_lose_no_datagram() {
    in_a_network(switches_lose_no_datagram, switch_under_load);
}

/// Two slots, one of which is regularly retired and replaced, so that the indices change.
fn switch_under_load() {
    bring_up_loopback().unwrap();
    let switches = switches();
    let mut group = Group::open(&"udp:127.0.0.1:53".parse().unwrap()).unwrap();
    let mut slots = [group.steered(), group.add_slot().unwrap()];
    let (stop, end) = (AtomicBool::new(false), AtomicBool::new(false));
    let [answered, read] = [(); 2].map(|()| AtomicUsize::new(0));
    let mut times = Vec::with_capacity(switches);
    let mut retired = 0;
    let lost: usize = std::thread::scope(|scope| {
        let _stop = SetOnDrop(&stop);
        let _end = SetOnDrop(&end);
        let answering = |group: &Group, slot: SlotId| {
            let socket = UdpSocket::from(group.fd(slot).unwrap().try_clone_to_owned().unwrap());
            let (end, read) = (&end, &read);
            scope.spawn(move || answer(&socket, end, read))
        };
        slots.iter().for_each(|slot| drop(answering(&group, *slot)));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| (&stop, &answered))
            .map(|(stop, answered)| scope.spawn(move || ask(stop, answered)))
            .collect();
        for turn in 1..=switches {
            let (old, new) = (slots[(turn + 1) % 2], slots[turn % 2]);
            times.push(switch(&mut group, new));
            wait_for_more(&answered);
            if turn % 100 == 0 {
                // The old process reads its queue before it leaves.
                let begin = Instant::now();
                while group.queue_len(old).unwrap() > 0 {
                    assert!(begin.elapsed() < LOST_AFTER, "no process reads");
                    std::thread::yield_now();
                }
                group.retire(old).unwrap();
                let added = group.add_slot().unwrap();
                answering(&group, added);
                slots[(turn + 1) % 2] = added;
                retired += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    let (answered, read) = (answered.into_inner(), read.into_inner());
    let [p50, p99, max] = spread(times);
    println!(
        "{switches} switches, {retired} slots replaced, {answered} datagrams answered, lost: {lost}; a switch took {p50:?} (p50), \
         {p99:?} (p99), {max:?} (max)"
    );
    assert_eq!(lost, 0);
    assert_eq!(answered, read, "all that were read were answered");
    assert!(answered > switches);
}

/// Keeps several questions open. Returns the number without an answer.
fn ask(stop: &AtomicBool, answered: &AtomicUsize) -> usize {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(ADDRESS).unwrap();
    socket.set_read_timeout(Some(LOST_AFTER)).unwrap();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..AT_ONCE {
            socket.send(b"question").unwrap();
        }
        for missing in (1..=AT_ONCE).rev() {
            if socket.recv(&mut [0; 16]).is_err() {
                return missing;
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    0
}

fn answer(socket: &UdpSocket, end: &AtomicBool, read: &AtomicUsize) {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut question = [0; 16];
    while !end.load(Ordering::Relaxed) {
        match socket.recv_from(&mut question) {
            Ok((length, client)) => {
                socket.send_to(&question[..length], client).unwrap();
                read.fetch_add(1, Ordering::Relaxed);
            }
            // The slot is retired.
            Err(_) if listens(socket) != Ok(true) => return,
            Err(_) => {}
        }
    }
}
