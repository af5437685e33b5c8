//! Servers that answer from the address of the question, as name servers on machines with several addresses do.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request};

use crate::support::at_end::SetOnDrop;
use crate::support::{LIMIT, Rig, executable, free_address, service, wait_for};

/// After its bind it requests the destination of each datagram. It does not answer a datagram without one.
const SERVER: &str = r#"#!/usr/bin/python3
import signal, socket, struct, sys
VERSION, IP_PKTINFO = b"@VERSION", 8
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", int(sys.argv[1])))
s.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
busy, leaving = False, False

def told(*_):
    global leaving
    leaving = True
    if not busy:
        sys.exit(0)

signal.signal(signal.SIGTERM, told)
while not leaving:
    data, told_with, _, client = s.recvmsg(2048, 256)
    busy = True
    for level, kind, info in told_with:
        interface, own, _ = struct.unpack("=I4s4s", info[:12])
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO) and interface:
            s.sendmsg([data], [(level, kind, struct.pack("=I4s4s", 0, own, own))], 0, client)
    busy = False
"#;

/// The kernel does not keep more answers for a client that waits on a busy machine.
const UNDER_WAY_MAX: u32 = 200;

#[test]
fn a_server_that_asks_for_the_destination_loses_none_of_a_thousand_a_second() {
    let (rig, address) = (Rig::new(), free_address());
    let release = |version: &str| {
        let path = rig.path(&format!("server-{version}"));
        std::fs::write(&path, SERVER.replace("@VERSION", version)).unwrap();
        executable(&path);
        path
    };
    let text = format!(
        "binary = {:?}\nargs = [\"{}\"]\nadapter = \"inject\"\nmode = \"exclusive\"\nautostart = false\nstore = false\n\
         [listen]\nmain = \"udp:{address}\"\n",
        release("0"),
        address.port(),
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    let [stop, over] = [(); 2].map(|()| AtomicBool::new(false));
    let [asked, heard] = [(); 2].map(|()| AtomicU32::new(0));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(address).unwrap();
    let under_way = || asked.load(Ordering::Relaxed) - heard.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let (all_asked, at_end) = (SetOnDrop(&over), SetOnDrop(&stop));
        let asking = scope.spawn(|| {
            let begun = Instant::now();
            for turn in 1_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if under_way() < UNDER_WAY_MAX {
                    let number = asked.fetch_add(1, Ordering::Relaxed);
                    client.send(&number.to_ne_bytes()).unwrap();
                }
                std::thread::sleep(
                    (begun + Duration::from_millis(turn)).saturating_duration_since(Instant::now()),
                );
            }
        });
        let hearing = scope.spawn(|| {
            client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut last = Instant::now();
            while !over.load(Ordering::Relaxed) || under_way() > 0 && last.elapsed() < LIMIT / 2 {
                if client.recv(&mut [0; 16]).is_ok() {
                    last = Instant::now();
                    heard.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for version in ["1", "2"] {
            let outcome = rig.upgrade("s", &release(version)).unwrap();
            assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        }
        drop(at_end);
        asking.join().unwrap();
        drop(all_asked);
        hearing.join().unwrap();
    });
    let asked = asked.into_inner();
    assert!(asked > 100);
    assert_eq!(heard.into_inner(), asked, "all are answered");
    let _ = wait_for("it to serve", || (rig.status("s").problem.is_none()).then_some(LIMIT));
}
