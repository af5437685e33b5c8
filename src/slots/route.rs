//! A way to one slot of an address, although new connections go to another one.
//!
//! For TCP the steering program makes an exception for a connection from a port that was chosen for it, whose source address is
//! its destination address: no other machine can make such a connection, and nobody else on this one has that port. A unix slot has a
//! name of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

use super::{SlotError, SlotId, unix};
use crate::config::ListenAddress;

/// A socket that reaches one slot, once it is connected.
#[derive(Debug)]
pub struct Route {
    /// Non-blocking and close-on-exec; bound where that matters.
    pub socket: OwnedFd,
    /// Where to connect it.
    pub to: RouteTo,
}

/// Where a [`Route`] leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteTo {
    /// Over TCP.
    Tcp(SocketAddr),
    /// To the slot's own name.
    Unix(PathBuf),
}

impl Route {
    /// The way that everybody takes.
    pub fn of_all(address: &ListenAddress) -> Result<Self, SlotError> {
        let failed = |error: io::Error| SlotError::new(address, "find a way to", error);
        match address {
            ListenAddress::Unix(path) => {
                let socket = open(AddressFamily::UNIX).map_err(failed)?;
                Ok(Self { socket, to: RouteTo::Unix(path.clone()) })
            }
            // That it is bound does no harm.
            address => Self::open(address, SlotId(0)).map(|(route, _)| route),
        }
    }

    /// The route, and the source port that is to lead to the slot.
    pub(super) fn open(address: &ListenAddress, slot: SlotId) -> Result<(Self, Option<u16>), SlotError> {
        let failed = |error: io::Error| SlotError::new(address, "find a way to", error);
        match address {
            ListenAddress::Unix(path) => {
                let socket = open(AddressFamily::UNIX).map_err(failed)?;
                Ok((Self { socket, to: RouteTo::Unix(unix::own_name(path, slot)) }, None))
            }
            ListenAddress::Tcp(local) => Self::from_port(*local).map_err(failed),
            ListenAddress::DualStack { port } => {
                Self::from_port(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), *port)).map_err(failed)
            }
        }
    }

    fn from_port(listener: SocketAddr) -> io::Result<(Self, Option<u16>)> {
        let ip = match listener.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let socket = open(if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 })?;
        let mut source = listener;
        source.set_ip(ip);
        source.set_port(0);
        bind(&socket, &source)?;
        let chosen = SocketAddr::try_from(getsockname(&socket)?)?;
        let mut to = source;
        to.set_port(listener.port());
        Ok((Self { socket, to: RouteTo::Tcp(to) }, Some(chosen.port())))
    }
}

fn open(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, None)?)
}
