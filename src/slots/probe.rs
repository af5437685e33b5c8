//! A way for one client of this machine to a slot that gets no other connection.

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

/// A client's socket that is not connected yet: what is connected by it comes to the probed slot.
///
/// It is close-on-exec and does not block. Each connection needs a way of its own.
#[derive(Debug)]
pub struct ProbeRoute {
    socket: OwnedFd,
    target: ProbeTarget,
    client: Option<SocketAddr>,
    /// What a path leads through.
    _held: Option<OwnedFd>,
}

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeTarget {
    /// The listener's address, with an IP address of this machine if it is a wildcard.
    Ip(SocketAddr),
    /// A name of the slot's unix socket that fits into the kernel's structure, good as long as the route lives.
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
                Err(io::Error::new(io::ErrorKind::Unsupported, "it takes datagrams, and no connections"))
            }
            ListenAddress::Unix(path) => {
                let name = unix::hold(path, slot)?;
                let target = ProbeTarget::Unix(format!("/proc/self/fd/{}", name.as_raw_fd()).into());
                let socket = open(AddressFamily::Unix)?;
                Ok(ProbeRoute { socket, target, client: None, _held: Some(name) })
            }
        }
    }

    /// To whatever slot gets new connections. That the client is bound does no harm.
    pub(super) fn in_place(address: &ListenAddress) -> io::Result<ProbeRoute> {
        match address {
            ListenAddress::Unix(path) => {
                let (socket, target) = (open(AddressFamily::Unix)?, ProbeTarget::Unix(path.clone()));
                Ok(ProbeRoute { socket, target, client: None, _held: None })
            }
            // The number of the slot does not matter.
            address => ProbeRoute::open(address, SlotId(0)),
        }
    }

    /// The client is bound to the IP address that it connects to: then nobody elsewhere can be taken for it. The kernel
    /// chooses the port, and gives it to nobody else.
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

    /// Where to connect to.
    pub fn target(&self) -> &ProbeTarget {
        &self.target
    }

    /// Begins to connect. The connection is there, or has failed (`SO_ERROR`), when the socket can be written to.
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

    /// The socket.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// What distinguishes the client in a group.
    pub(super) fn client(&self) -> Option<SocketAddr> {
        self.client
    }
}

fn open(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK)
}
