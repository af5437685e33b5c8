//! Opens TCP listeners.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::SlotError;
use crate::config::ListenAddress;
use crate::sys::errno::Errno;
use crate::sys::owner::{self, Owner};
use crate::sys::socket::{
    self, AddressFamily, LONGEST_BACKLOG, SockFlag, SockType, bind, reuse_address, reuse_port, set_nodelay,
    set_v6_only, socket,
};

/// An error if another socket uses the address. A `SO_REUSEPORT` listener of the same user would let ours join silently
/// and take a part of the connections, so this binds without that option.
pub(super) fn check_free(address: &ListenAddress, local: SocketAddr, v6_only: bool) -> Result<(), SlotError> {
    let bound = open(local, v6_only).and_then(|socket| bind(&socket, local));
    bound.map_err(|error| explain(address, error, || owner::of_tcp(local)))
}

/// Opens one more listener of the address, next to existing ones of this user.
pub(super) fn listen(
    address: &ListenAddress,
    local: SocketAddr,
    v6_only: bool,
) -> Result<OwnedFd, SlotError> {
    let listener = || {
        let socket = open(local, v6_only)?;
        reuse_port(&socket)?;
        // Accepted sockets inherit it; servers that did not create their listener rarely set it.
        set_nodelay(&socket)?;
        bind(&socket, local)?;
        socket::listen(&socket, LONGEST_BACKLOG)?;
        Ok(socket)
    };
    listener().map_err(|error| explain(address, error, || owner::of_tcp(local)))
}

fn open(local: SocketAddr, v6_only: bool) -> Result<OwnedFd, Errno> {
    let family = if local.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(family, SockType::Stream, SockFlag::empty())?;
    // Allows connections of an earlier listener, live or in TIME_WAIT.
    reuse_address(&socket)?;
    if local.is_ipv6() {
        set_v6_only(&socket, v6_only)?;
    }
    Ok(socket)
}

/// Explains an error of `bind` or `listen`. `owner` finds the process that uses the address.
pub(super) fn explain(
    address: &ListenAddress,
    error: Errno,
    owner: impl FnOnce() -> Option<Owner>,
) -> SlotError {
    let address = address.clone();
    match error {
        Errno::EADDRINUSE => SlotError::InUse { address, owner: owner() },
        Errno::EADDRNOTAVAIL => SlotError::NotHere { address },
        Errno::EACCES => SlotError::Privileged { address },
        error => SlotError::System { address, action: "listen on", error: io::Error::from(error) },
    }
}
