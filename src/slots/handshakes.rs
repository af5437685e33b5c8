//! Handshakes in progress at a switch.
//!
//! A connection belongs to the listener that received its first packet, whatever is steered later. Until its handshake
//! completes it is in no queue. This also happens over loopback, where a handshake usually takes microseconds: on a
//! busy processor its second half has to wait.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::census::{family_and_port, is_at};
use super::diag::{Cookie, Diag, SocketInfo};
use crate::config::ListenAddress;

/// Handshakes that may have begun before a switch.
#[derive(Debug)]
pub struct Handshakes {
    switched_at: Instant,
    /// `None` before the first check.
    pending: Option<HashSet<Cookie>>,
}

impl Handshakes {
    /// Creates the set right after new connections were steered elsewhere.
    pub fn at_switch() -> Handshakes {
        Handshakes { switched_at: Instant::now(), pending: None }
    }

    /// Time since the switch.
    pub fn age(&self) -> Duration {
        self.switched_at.elapsed()
    }

    /// Whether all of them have completed, so that their connections are in a queue. Until then each call reads the
    /// kernel's table of TCP sockets. After `limit` it returns `true` regardless: a client may be gone, or the listener
    /// may wait for data (`TCP_DEFER_ACCEPT`). The limit also applies if the kernel cannot be queried.
    pub fn are_over(&mut self, addresses: &[ListenAddress], limit: Duration) -> bool {
        if self.pending.as_ref().is_some_and(HashSet::is_empty) || self.age() >= limit {
            return true;
        }
        let Ok(now) = under_way(addresses) else { return false };
        let left = self.pending.get_or_insert_with(|| now.clone());
        left.retain(|cookie| now.contains(cookie));
        left.is_empty()
    }
}

/// All current handshakes, at any of the listeners.
fn under_way(addresses: &[ListenAddress]) -> io::Result<HashSet<Cookie>> {
    let mut found = HashSet::new();
    let at_ports: HashSet<_> = addresses.iter().filter_map(family_and_port).collect();
    if at_ports.is_empty() {
        return Ok(found);
    }
    let mut diag = Diag::open()?;
    for (family, port) in at_ports {
        let _ = diag.handshakes(family, port, |handshake: SocketInfo| {
            if addresses.iter().any(|address| is_at(&handshake, address)) {
                found.insert(handshake.key.cookie());
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::{Group, SlotError};
    use crate::sys::seccomp::set_option;
    use std::io::Write;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

    const LONG: Duration = Duration::from_secs(600);

    /// A group whose listener defers accepting until the client sends data, so its handshakes stay incomplete.
    fn deferring(host: &str) -> (Group, u16) {
        const IPPROTO_TCP: i32 = 6;
        const TCP_DEFER_ACCEPT: i32 = 9;
        for _ in 0..20 {
            let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
            match Group::open(&format!("{host}:{port}").parse().unwrap()) {
                Ok(group) => {
                    let listener = group.fd(group.steered()).unwrap();
                    set_option(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &100_i32.to_ne_bytes()).unwrap();
                    return (group, port);
                }
                Err(SlotError::InUse { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no free port in 20 attempts");
    }

    fn wait_until(mut done: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn one_that_began_before_is_waited_for_and_one_that_begins_later_is_not() {
        let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        for (host, client) in [("127.0.0.1", v4), ("0.0.0.0", v4), ("[::1]", v6), ("*", v6), ("*", v4)] {
            let (group, port) = deferring(host);
            let addresses = [group.address().clone()];
            let target = SocketAddr::new(client, port);
            assert!(Handshakes::at_switch().are_over(&addresses, LONG), "{host}: no client connected");

            let mut before = TcpStream::connect(target).unwrap();
            let mut handshakes = Handshakes::at_switch();
            assert!(!handshakes.are_over(&addresses, LONG), "{host}: {target}");
            let after = TcpStream::connect(target).unwrap();
            assert!(!handshakes.are_over(&addresses, LONG), "{host}: {target}");
            assert!(handshakes.are_over(&addresses, Duration::ZERO), "{host}: not for ever");

            before.write_all(b"x").unwrap();
            wait_until(|| handshakes.are_over(&addresses, LONG));
            assert_eq!(group.queue_len(group.steered()).unwrap(), 1, "{host}: {target}");
            drop(after);
        }
    }
}
