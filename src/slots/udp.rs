//! Opens datagram sockets, and ends them.
//!
//! What differs from listeners: a socket is a member of its group from `bind` on, and the program of the group runs for
//! every datagram. What waits is in the receive buffer of the slot, and what does not fit there is dropped by the kernel.
//! A socket leaves its group, whoever holds it, when it is connected; and nobody can bring it back.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, connect, getsockname, recv, socket_with, sockopt,
};

use super::SlotError;
use crate::config::ListenAddress;
use crate::sys::owner;
use crate::sys::seccomp::{get_option, set_option};

/// What datagrams that wait may take, as far as `net.core.rmem_max` or CAP_NET_ADMIN allow. It is used only while they wait.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

/// Refuses an address that somebody else has; see `tcp.rs`. A socket that is connected to a client is not in the way, nor
/// is one that was ended and that somebody still holds.
pub(super) fn check_free(address: &ListenAddress, local: SocketAddr, v6_only: bool) -> Result<(), SlotError> {
    match open(local, v6_only).and_then(|socket| bind(&socket, &local)) {
        Err(Errno::ADDRINUSE) if owner::is_open_to_none(local) => Ok(()),
        bound => bound.map_err(|error| explain(address, local, error)),
    }
}

/// Opens one more socket of the address, next to those of this user that there are.
pub(super) fn listen(
    address: &ListenAddress,
    local: SocketAddr,
    v6_only: bool,
) -> Result<OwnedFd, SlotError> {
    let socket = || {
        let socket = open(local, v6_only)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        // Without privilege the kernel gives as much as it may.
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES))?;
        bind(&socket, &local)?;
        Ok(socket)
    };
    socket().map_err(|error| explain(address, local, error))
}

/// Takes a socket out of its group, whoever holds it. What it has received can still be read. It is not shut down: who still
/// reads from it would find an empty datagram without end.
///
/// It is connected to itself. Older kernels leave such a socket in its group if it was bound to one address, but none does
/// when it is bound to a device after that.
pub(super) fn leave(socket: impl AsFd) -> io::Result<()> {
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTODEVICE: i32 = 25;
    let mut own = SocketAddr::try_from(getsockname(&socket)?)?;
    own.set_ip(match own.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    });
    connect(&socket, &own)?;
    // One that is bound to a device already has left by that.
    let _ = set_option(&socket, SOL_SOCKET, SO_BINDTODEVICE, b"lo\0");
    Ok(())
}

/// 1 if a datagram waits, else 0. One whose checksum is wrong does not count.
pub(super) fn queue_len(socket: impl AsFd) -> io::Result<u32> {
    let mut asked = [PollFd::new(&socket, PollFlags::IN | PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    retry_on_intr(|| poll(&mut asked, Some(&at_once)))?;
    let found = asked[0].revents();
    // One that a program has shut down can always be "read".
    let waits = match found.contains(PollFlags::RDHUP) {
        true => rustix::io::ioctl_fionread(&socket)? > 0,
        false => found.contains(PollFlags::IN),
    };
    Ok(u32::from(waits))
}

/// Drops what waits, and tells how many datagrams that were.
pub(super) fn empty(socket: impl AsFd) -> io::Result<u32> {
    let mut dropped = 0;
    while queue_len(&socket)? > 0 {
        match retry_on_intr(|| recv(&socket, &mut [0_u8; 1], RecvFlags::DONTWAIT | RecvFlags::TRUNC)) {
            Ok(_) => dropped += 1,
            Err(Errno::AGAIN) => break,
            // An answer that this socket has sent could not be delivered.
            Err(Errno::CONNREFUSED) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(dropped)
}

/// How many datagrams the kernel has dropped since the socket was opened, as the receive buffer was full.
pub(super) fn dropped(socket: impl AsFd) -> io::Result<u32> {
    const SOL_SOCKET: i32 = 1;
    const SO_MEMINFO: i32 = 55;
    const SK_MEMINFO_DROPS: usize = 8;
    let mut info = [0; 4 * (SK_MEMINFO_DROPS + 1)];
    get_option(socket, SOL_SOCKET, SO_MEMINFO, &mut info)?;
    let [.., a, b, c, d] = info;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

fn open(local: SocketAddr, v6_only: bool) -> Result<OwnedFd, Errno> {
    let family = if local.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    if local.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, v6_only)?;
    }
    Ok(socket)
}

fn explain(address: &ListenAddress, local: SocketAddr, error: Errno) -> SlotError {
    super::tcp::explain(address, error, || owner::of_udp(local))
}
