//! Datagram sockets that are connected to clients.
//!
//! Some servers bind another socket to their address for each client, and connect it. The kernel gives that socket its
//! client's datagrams, whatever is steered, as long as a process holds it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;

use super::census::held_by;
use super::diag::{Diag, SocketInfo, family_of};
use crate::config::ListenAddress;

/// Whether a process of the tree has such a socket at one of the addresses. `false` if the kernel cannot list datagram
/// sockets (`INET_UDP_DIAG`).
pub fn has_connected(addresses: &[ListenAddress], tree: impl Fn() -> Vec<u32>) -> io::Result<bool> {
    let places: BTreeSet<(u8, IpAddr, u16)> = addresses.iter().filter_map(place).collect();
    if places.is_empty() {
        return Ok(false);
    }
    let mut diag = Diag::open()?;
    let mut found = Vec::new();
    for (family, ip, port) in places {
        let asked = diag.udp(family, port, |socket: SocketInfo| {
            let is_at = socket.local().is_some_and(|local| ip.is_unspecified() || ip == local.ip());
            // A socket that has left its group is connected to itself.
            if is_at && socket.inode != 0 && socket.is_connection() && socket.peer() != socket.local() {
                found.push(socket);
            }
            ControlFlow::Continue(())
        });
        if asked.is_err() {
            return Ok(false);
        }
    }
    Ok(!held_by(found, &tree())?.is_empty())
}

fn place(address: &ListenAddress) -> Option<(u8, IpAddr, u16)> {
    // For a dual-stack socket, IPv4 clients also count as IPv6.
    let (local, _) = address.ip().filter(|_| address.is_datagram())?;
    Some((family_of(local.ip()), local.ip(), local.port()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_socket_that_is_connected_to_a_client_is_found_as_long_as_it_is_there() {
        use crate::sys::socket::{AddressFamily, SockFlag, SockType, bind, reuse_port, socket};

        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = |port| {
            let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty()).unwrap();
            reuse_port(&socket).unwrap();
            bind(&socket, std::net::SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
            UdpSocket::from(socket)
        };
        let listener = at(0);
        let address = listener.local_addr().unwrap();
        let addresses = [format!("udp:{address}").parse::<ListenAddress>().unwrap()];
        let any = [format!("udp:0.0.0.0:{}", address.port()).parse::<ListenAddress>().unwrap()];
        let own = || vec![std::process::id()];
        assert!(!has_connected(&addresses, own).unwrap(), "it is open to all");
        let connected = at(address.port());
        connected.connect(client.local_addr().unwrap()).unwrap();
        assert!(has_connected(&addresses, own).unwrap());
        assert!(has_connected(&any, own).unwrap());
        assert!(!has_connected(&addresses, Vec::new).unwrap(), "no process of the tree has it");
        connected.connect(address).unwrap();
        assert!(!has_connected(&addresses, own).unwrap(), "it has left its group");
        connected.connect(client.local_addr().unwrap()).unwrap();
        drop(connected);
        assert!(!has_connected(&addresses, own).unwrap());
        assert!(!has_connected(&["*:1".parse().unwrap()], own).unwrap());
    }
}
