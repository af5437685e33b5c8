//! Ports that are unique to a run, among all runs of this process and of others.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};

use super::Error;
use crate::sys::errno::Errno;
use crate::sys::socket::{AddressFamily, SockFlag, SockType, bind_name, socket};

/// A port that is reserved for one run. Drop releases it.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) address: SocketAddr,
    _hold: OwnedFd,
}

impl Port {
    /// Reserves a port that is free for TCP and UDP. It is below the ports that the kernel gives to clients, so that
    /// none of them takes it in the meantime.
    pub(super) fn reserve(ip: IpAddr) -> Result<Self, Error> {
        const RANGE: std::ops::Range<u16> = 16_000..32_000;
        static NEXT: AtomicU16 = AtomicU16::new(0);
        for _ in RANGE {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let port = RANGE.start + step % (RANGE.end - RANGE.start);
            let Some(hold) = hold(port)? else { continue };
            let address = SocketAddr::new(ip, port);
            if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
                return Ok(Self { address, _hold: hold });
            }
        }
        Err("no port is free".into())
    }
}

/// A name in the abstract namespace of unix sockets is visible to all processes, has one owner, and is released with
/// its socket.
fn hold(port: u16) -> Result<Option<OwnedFd>, Error> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty())?;
    match bind_name(&socket, format!("handoff-crash-test-port-{port}").as_bytes()) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::EADDRINUSE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_port_is_kept_for_one_run_also_while_nobody_listens() {
        let held = Port::reserve(Ipv4Addr::LOCALHOST.into()).unwrap();
        let port = held.address.port();
        assert!(hold(port).unwrap().is_none());
        drop(held);
        assert!(hold(port).unwrap().is_some());
    }
}
