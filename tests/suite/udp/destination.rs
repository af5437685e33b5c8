//! Servers that answer from the address at which they were asked, as name servers do on machines with several.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request};

use crate::support::{LIMIT, Rig, executable, free_address, service, wait_for};

/// It asks for the destination of each datagram after its bind, and leaves without one what has none.
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
    let stop = AtomicBool::new(false);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(address).unwrap();
    std::thread::scope(|scope| {
        let at_end = crate::support::at_end::AtEnd(&stop);
        let asking = scope.spawn(|| {
            let (begun, mut count) = (Instant::now(), 0_u32);
            while !stop.load(Ordering::Relaxed) {
                client.send(&count.to_ne_bytes()).unwrap();
                count += 1;
                std::thread::sleep(
                    (begun + Duration::from_millis(count.into())).saturating_duration_since(Instant::now()),
                );
            }
            count
        });
        let hearing = scope.spawn(|| {
            client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let (mut heard, mut last) = (0_u32, Instant::now());
            while !stop.load(Ordering::Relaxed) || last.elapsed() < Duration::from_secs(1) {
                if client.recv(&mut [0; 16]).is_ok() {
                    (heard, last) = (heard + 1, Instant::now());
                }
            }
            heard
        });
        for version in ["1", "2"] {
            let outcome = rig.upgrade("s", &release(version)).unwrap();
            assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        }
        drop(at_end);
        let (asked, heard) = (asking.join().unwrap(), hearing.join().unwrap());
        assert!(asked > 100);
        assert_eq!(heard, asked, "all are answered");
    });
    let _ = wait_for("it to serve", || (rig.status("s").problem.is_none()).then_some(LIMIT));
}
