//! The sockets of an address, whatever its kind: opened, looked at, ended.

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

/// Where the path of a unix socket leads, to put it back should somebody remove it. There is none for other addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(SlotId);

impl Place {
    /// At this slot.
    pub(crate) fn at(slot: SlotId) -> Self {
        Self(slot)
    }

    /// Where it leads now.
    pub fn of(address: &ListenAddress) -> Option<Self> {
        match address {
            ListenAddress::Unix(path) => unix::in_place(path).map(Self),
            _ => None,
        }
    }

    /// Lets it lead there again.
    pub fn put_back(self, address: &ListenAddress) -> Result<(), SlotError> {
        match address {
            ListenAddress::Unix(path) => unix::put_in_place(path, self.0),
            _ => Ok(()),
        }
    }
}

/// Refuses an address that somebody has. Takes nothing.
pub fn check_free(address: &ListenAddress) -> Result<(), SlotError> {
    match kind(address) {
        Kind::Unix(path) => unix::check_free(path),
        Kind::Tcp(local, v6_only) => tcp::check_free(address, local, v6_only),
        Kind::Udp(local, v6_only) => udp::check_free(address, local, v6_only),
    }
}

/// Opens one more socket of an address. `access` is for those that have a path.
pub(super) fn open(address: &ListenAddress, slot: SlotId, access: &Access) -> Result<OwnedFd, SlotError> {
    match kind(address) {
        Kind::Unix(path) => unix::listen(path, slot, access),
        Kind::Tcp(local, v6_only) => tcp::listen(address, local, v6_only),
        Kind::Udp(local, v6_only) => udp::listen(address, local, v6_only),
    }
}

/// What is done with an address: a socket of one of these is bound there.
enum Kind<'a> {
    Unix(&'a Path),
    Tcp(SocketAddr, bool),
    Udp(SocketAddr, bool),
}

fn kind(address: &ListenAddress) -> Kind<'_> {
    let any = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match address {
        ListenAddress::Unix(path) => Kind::Unix(path),
        ListenAddress::Tcp(local) => Kind::Tcp(*local, true),
        ListenAddress::DualStack { port } => Kind::Tcp(any(*port), false),
        ListenAddress::Udp(local) | ListenAddress::Quic(local) => Kind::Udp(*local, true),
        ListenAddress::UdpDualStack { port } | ListenAddress::QuicDualStack { port } => {
            Kind::Udp(any(*port), false)
        }
    }
}

/// Whether a listener can still get what clients send. A program that has it can end that for all who have it.
pub fn is_alive(address: &ListenAddress, listener: impl AsFd) -> bool {
    match address {
        ListenAddress::Unix(_) => !is_shut_down(listener),
        // It would be read without end.
        address if address.is_datagram() => listens(&listener) == Ok(true) && !is_shut_down(listener),
        _ => listens(listener) == Ok(true),
    }
}

/// How many connections wait to be accepted at a listener of this address; for a unix socket, and for datagrams, 0 or 1.
pub fn waiting_at(address: &ListenAddress, listener: &OwnedFd) -> Result<u32, SlotError> {
    let asked = match address {
        ListenAddress::Unix(_) => unix::queue_len(listener.as_fd()),
        address if address.is_datagram() => udp::queue_len(listener),
        _ => steer::tcp_queue_len(listener),
    };
    asked.map_err(|error| SlotError::new(address, "examine", error))
}

/// How many datagrams have been lost at a slot of this address since it was opened, as its receive buffer was full. 0 for other
/// addresses.
pub fn dropped_at(address: &ListenAddress, listener: &OwnedFd) -> Result<u32, SlotError> {
    if !address.is_datagram() {
        return Ok(0);
    }
    udp::dropped(listener).map_err(|error| SlotError::new(address, "examine", error))
}

/// How much memory the datagrams take that wait at this socket; 0 if none waits.
pub fn unread_bytes(socket: impl AsFd) -> std::io::Result<u32> {
    if udp::queue_len(&socket)? == 0 { Ok(0) } else { udp::unread_bytes(socket) }
}

/// How many datagrams wait at this socket, which are dropped: for one whose reader is gone. 0 for a listener.
pub fn drop_unread(socket: impl AsFd) -> std::io::Result<u32> {
    match kind_of(&socket)? {
        Some(SockType::Datagram) => udp::empty(socket),
        _ => Ok(0),
    }
}

/// The slot that a unix listener says by its name that it is. `None` for other sockets.
pub fn slot_by_name(listener: &OwnedFd) -> Option<SlotId> {
    unix::slot_by_name(listener.as_fd())
}

/// The name of a slot's file that is there as long as the slot is, if it has one.
pub fn watched_name(address: &ListenAddress, slot: SlotId) -> Option<PathBuf> {
    match address {
        ListenAddress::Unix(path) => Some(unix::name_of(path, slot)),
        _ => None,
    }
}

/// Sees to it that a unix listener has its names: a program may have removed them, and may fail if it cannot do so again.
pub fn mend_names(address: &ListenAddress, listener: &OwnedFd) -> Result<(), SlotError> {
    match (address, slot_by_name(listener)) {
        (ListenAddress::Unix(path), Some(slot)) => unix::mend(path, slot),
        _ => Ok(()),
    }
}

/// Says who may connect to a unix listener. Nothing happens to others.
pub fn set_access(address: &ListenAddress, listener: &OwnedFd, access: &Access) -> Result<(), SlotError> {
    match (address, slot_by_name(listener)) {
        (ListenAddress::Unix(path), Some(slot)) => unix::set_access(path, slot, access),
        _ => Ok(()),
    }
}

/// Makes the queue of a listener as long as the kernel allows once more: whoever was given it may have called listen(2) with a
/// backlog of his own. What does not listen is left alone.
pub fn lengthen_queue(listener: impl AsFd) {
    if accepts(&listener) == Ok(true) {
        let lengthened = listen(&listener, LONGEST_BACKLOG);
        debug_assert_eq!(lengthened, Ok(()));
    }
}

/// Ends a listener, whoever holds it: connections are refused, and waiting ones are reset. A datagram socket gets nothing any
/// more; what waits can be read.
///
/// ENOTCONN: it does not listen any more, which is what is wanted.
pub fn stop_listening(listener: &OwnedFd) {
    if kind_of(listener) == Ok(Some(SockType::Datagram)) {
        // If its address is not there any more, nothing comes to it either, and it leaves when it is closed.
        let _ = udp::leave(listener);
        return;
    }
    let stopped = shutdown(listener, Shutdown::Read);
    debug_assert!(matches!(stopped, Ok(()) | Err(Errno::ENOTCONN)));
}
