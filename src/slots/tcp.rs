//! Opens TCP listeners.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, listen as start_listening, socket_with, sockopt,
};

use super::SlotError;
use crate::config::ListenAddress;
use crate::sys::owner::{self, Owner};

/// The kernel cuts it to `net.core.somaxconn`.
pub(super) const LONGEST_BACKLOG: i32 = i32::MAX;

/// Refuses an address that somebody else has. A `SO_REUSEPORT` listener of the same user would let ours in silently and
/// take part of the connections, so the question is put without that option.
pub(super) fn check_free(address: &ListenAddress, local: SocketAddr, v6_only: bool) -> Result<(), SlotError> {
    let bound = open(local, v6_only).and_then(|socket| bind(&socket, &local));
    bound.map_err(|error| explain(address, error, || owner::of_tcp(local)))
}

/// Opens one more listener of the address, next to those of this user that there are.
pub(super) fn listen(
    address: &ListenAddress,
    local: SocketAddr,
    v6_only: bool,
) -> Result<OwnedFd, SlotError> {
    let listener = || {
        let socket = open(local, v6_only)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        // Accepted sockets inherit it; a server that did not make its listener seldom thinks of it.
        sockopt::set_tcp_nodelay(&socket, true)?;
        bind(&socket, &local)?;
        start_listening(&socket, LONGEST_BACKLOG)?;
        Ok(socket)
    };
    listener().map_err(|error| explain(address, error, || owner::of_tcp(local)))
}

fn open(local: SocketAddr, v6_only: bool) -> Result<OwnedFd, Errno> {
    let family = if local.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Connections of an earlier listener, living or in TIME_WAIT, do not stand in the way.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if local.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, v6_only)?;
    }
    Ok(socket)
}

/// What an error of `bind` or `listen` means. `owner` finds who has the address.
pub(super) fn explain(
    address: &ListenAddress,
    error: Errno,
    owner: impl FnOnce() -> Option<Owner>,
) -> SlotError {
    let address = address.clone();
    match error {
        Errno::ADDRINUSE => SlotError::InUse { address, owner: owner() },
        Errno::ADDRNOTAVAIL => SlotError::NotHere { address },
        Errno::ACCESS => SlotError::Privileged { address },
        error => SlotError::System { address, action: "listen on", error: io::Error::from(error) },
    }
}
