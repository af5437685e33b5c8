//! A route for one client of this machine to a slot that receives no other connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use super::{SlotId, unix};
use crate::config::ListenAddress;
use crate::sys::errno::Errno;
use crate::sys::socket::{
    AddressFamily, SockFlag, SockType, bind, connect, connect_path, local_address, socket,
};

/// An unconnected client socket. What it connects to is the probed slot.
///
/// It is close-on-exec and nonblocking. Each connection needs its own route.
#[derive(Debug)]
pub struct ProbeRoute {
    socket: OwnedFd,
    target: ProbeTarget,
    client: Option<SocketAddr>,
    /// The directory that the target path goes through.
    _held: Option<OwnedFd>,
}

/// The address to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeTarget {
    /// The listener's address; a wildcard is replaced by an IP address of this machine.
    Ip(SocketAddr),
    /// A name of the slot's unix socket that fits into the kernel's structure, valid while the route lives.
    Unix(PathBuf),
}

impl ProbeRoute {
    pub(super) fn open(address: &ListenAddress, slot: SlotId) -> io::Result<ProbeRoute> {
        match address {
            ListenAddress::Tcp(local) => ProbeRoute::from_itself(*local),
            ListenAddress::DualStack { port } => {
                ProbeRoute::from_itself(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), *port))
            }
            ListenAddress::Udp(_)
            | ListenAddress::UdpDualStack { .. }
            | ListenAddress::Quic(_)
            | ListenAddress::QuicDualStack { .. } => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "it receives datagrams, not connections"))
            }
            ListenAddress::Unix(path) => {
                let name = unix::hold(path, slot)?;
                let target = ProbeTarget::Unix(format!("/proc/self/fd/{}", name.as_raw_fd()).into());
                let socket = open(AddressFamily::Unix)?;
                Ok(ProbeRoute { socket, target, client: None, _held: Some(name) })
            }
        }
    }

    /// A route to the slot that receives new connections. Binding the client does no harm.
    pub(super) fn in_place(address: &ListenAddress) -> io::Result<ProbeRoute> {
        match address {
            ListenAddress::Unix(path) => {
                let (socket, target) = (open(AddressFamily::Unix)?, ProbeTarget::Unix(path.clone()));
                Ok(ProbeRoute { socket, target, client: None, _held: None })
            }
            // The slot number does not matter.
            address => ProbeRoute::open(address, SlotId(0)),
        }
    }

    /// Binds the client to the IP address that it connects to, so that no outside client matches. The kernel chooses
    /// the port and gives it to no other socket.
    fn from_itself(local: SocketAddr) -> io::Result<ProbeRoute> {
        let mut target = local;
        target.set_ip(match local.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        });
        let socket = open(if target.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet })?;
        let mut any_port = target;
        any_port.set_port(0);
        bind(&socket, any_port)?;
        let client = local_address(&socket)?;
        Ok(ProbeRoute { socket, target: ProbeTarget::Ip(target), client: Some(client), _held: None })
    }

    /// The address to connect to.
    pub fn target(&self) -> &ProbeTarget {
        &self.target
    }

    /// Starts to connect. The connection is complete, or has failed (`SO_ERROR`), when the socket becomes writable.
    pub fn connect(&self) -> io::Result<()> {
        let begun = match &self.target {
            ProbeTarget::Ip(address) => connect(&self.socket, *address),
            ProbeTarget::Unix(path) => connect_path(&self.socket, path),
        };
        match begun {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the socket.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// The client's address, which identifies it in a group.
    pub(super) fn client(&self) -> Option<SocketAddr> {
        self.client
    }
}

fn open(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK)
}
