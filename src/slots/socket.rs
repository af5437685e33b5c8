//! Opens, examines and ends the sockets of an address of any kind.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::access::Access;
use super::{SlotError, SlotId, tcp, udp, unix};
use crate::config::ListenAddress;
use crate::sys::errno::Errno;
use crate::sys::listens::{is_shut_down, listens};
use crate::sys::socket::{LONGEST_BACKLOG, Shutdown, SockType, accepts, kind_of, listen, shutdown};
use crate::sys::steer;

/// The slot that the path of a unix socket points to, to restore it after a removal. Other addresses have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixPathTarget(SlotId);

impl UnixPathTarget {
    /// A path that points to this slot.
    pub(crate) fn at(slot: SlotId) -> Self {
        Self(slot)
    }

    /// The current slot of the path.
    pub fn of(address: &ListenAddress) -> Option<Self> {
        match address {
            ListenAddress::Unix(path) => unix::in_place(path).map(Self),
            _ => None,
        }
    }

    /// Makes the path point to the slot again.
    pub fn restore(self, address: &ListenAddress) -> Result<(), SlotError> {
        match address {
            ListenAddress::Unix(path) => unix::put_in_place(path, self.0),
            _ => Ok(()),
        }
    }
}

/// An error if another socket uses the address. Changes nothing.
pub fn check_free(address: &ListenAddress) -> Result<(), SlotError> {
    match kind(address) {
        BoundSocket::Unix(path) => unix::check_free(path),
        BoundSocket::Tcp(local, v6_only) => tcp::check_free(address, local, v6_only),
        BoundSocket::Udp(local, v6_only) => udp::check_free(address, local, v6_only),
    }
}

/// Opens one more socket of an address. `access` applies to unix sockets.
pub(super) fn open(address: &ListenAddress, slot: SlotId, access: &Access) -> Result<OwnedFd, SlotError> {
    match kind(address) {
        BoundSocket::Unix(path) => unix::listen(path, slot, access),
        BoundSocket::Tcp(local, v6_only) => tcp::listen(address, local, v6_only),
        BoundSocket::Udp(local, v6_only) => udp::listen(address, local, v6_only),
    }
}

/// The bound socket behind an address.
enum BoundSocket<'a> {
    Unix(&'a Path),
    Tcp(SocketAddr, bool),
    Udp(SocketAddr, bool),
}

fn kind(address: &ListenAddress) -> BoundSocket<'_> {
    let any = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match address {
        ListenAddress::Unix(path) => BoundSocket::Unix(path),
        ListenAddress::Tcp(local) => BoundSocket::Tcp(*local, true),
        ListenAddress::DualStack { port } => BoundSocket::Tcp(any(*port), false),
        ListenAddress::Udp(local) | ListenAddress::Quic(local) => BoundSocket::Udp(*local, true),
        ListenAddress::UdpDualStack { port } | ListenAddress::QuicDualStack { port } => {
            BoundSocket::Udp(any(*port), false)
        }
    }
}

/// Whether a listener can still receive traffic. Any program that holds it can end that for all holders.
pub fn is_alive(address: &ListenAddress, listener: impl AsFd) -> bool {
    match address {
        ListenAddress::Unix(_) => !is_shut_down(listener),
        // A socket that was shut down would read as empty without end.
        address if address.is_datagram() => listens(&listener) == Ok(true) && !is_shut_down(listener),
        _ => listens(listener) == Ok(true),
    }
}

/// Number of connections queued at a listener of this address; for unix sockets and datagrams 0 or 1.
pub fn waiting_at(address: &ListenAddress, listener: &OwnedFd) -> Result<u32, SlotError> {
    let asked = match address {
        ListenAddress::Unix(_) => unix::queue_len(listener.as_fd()),
        address if address.is_datagram() => udp::queue_len(listener),
        _ => steer::tcp_queue_len(listener),
    };
    asked.map_err(|error| SlotError::new(address, "examine", error))
}

/// Number of datagrams lost at a slot of this address since it was opened, because its receive buffer was full. 0 for
/// other addresses.
pub fn dropped_at(address: &ListenAddress, listener: &OwnedFd) -> Result<u32, SlotError> {
    if !address.is_datagram() {
        return Ok(0);
    }
    udp::dropped(listener).map_err(|error| SlotError::new(address, "examine", error))
}

/// Memory of the datagrams queued at this socket, in bytes; 0 if there are none.
pub fn unread_bytes(socket: impl AsFd) -> std::io::Result<u32> {
    if udp::queue_len(&socket)? == 0 { Ok(0) } else { udp::unread_bytes(socket) }
}

/// Drops the datagrams queued at this socket, for a socket whose reader is gone. Returns their number; 0 for a
/// listener.
pub fn drop_unread(socket: impl AsFd) -> std::io::Result<u32> {
    match kind_of(&socket)? {
        Some(SockType::Datagram) => udp::empty(socket),
        _ => Ok(0),
    }
}

/// The slot in the name of a unix listener. `None` for other sockets.
pub fn slot_by_name(listener: &OwnedFd) -> Option<SlotId> {
    unix::slot_by_name(listener.as_fd())
}

/// The name of a slot's file that exists as long as the slot, if it has one.
pub fn watched_name(address: &ListenAddress, slot: SlotId) -> Option<PathBuf> {
    match address {
        ListenAddress::Unix(path) => Some(unix::name_of(path, slot)),
        _ => None,
    }
}

/// Restores the names of a unix listener. A program may have removed them, and may fail if it cannot remove them again.
pub fn restore_names(address: &ListenAddress, listener: &OwnedFd) -> Result<(), SlotError> {
    match (address, slot_by_name(listener)) {
        (ListenAddress::Unix(path), Some(slot)) => unix::restore_names(path, slot),
        _ => Ok(()),
    }
}

/// Sets which users may connect to a unix listener. No effect on other sockets.
pub fn set_access(address: &ListenAddress, listener: &OwnedFd, access: &Access) -> Result<(), SlotError> {
    match (address, slot_by_name(listener)) {
        (ListenAddress::Unix(path), Some(slot)) => unix::set_access(path, slot, access),
        _ => Ok(()),
    }
}

/// Restores the longest backlog of a listener: a program that had it may have called listen(2) with another backlog. No
/// effect on sockets that do not listen.
pub fn lengthen_queue(listener: impl AsFd) {
    if accepts(&listener) == Ok(true) {
        let lengthened = listen(&listener, LONGEST_BACKLOG);
        debug_assert_eq!(lengthened, Ok(()));
    }
}

/// Ends a listener for all holders: connections are refused, and queued ones are reset. A datagram socket receives
/// nothing more; queued datagrams can be read.
///
/// ENOTCONN is ignored: it does not listen anymore.
pub fn stop_listening(listener: &OwnedFd) {
    if kind_of(listener) == Ok(Some(SockType::Datagram)) {
        // If this fails because its address is gone, it receives nothing either, and leaves the group on close.
        let _ = udp::leave(listener);
        return;
    }
    let stopped = shutdown(listener, Shutdown::Read);
    debug_assert!(matches!(stopped, Ok(()) | Err(Errno::ENOTCONN)));
}
