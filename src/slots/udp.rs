//! Opens and ends datagram sockets.
//!
//! Differences from listeners: a socket joins its group at `bind`, and the group's program runs for every datagram.
//! Unread datagrams are in the slot's receive buffer; the kernel drops what does not fit. Connecting a socket removes
//! it from its group for all holders, permanently.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::SlotError;
use crate::config::ListenAddress;
use crate::sys::descriptor::unread;
use crate::sys::errno::{Errno, retry};
use crate::sys::owner;
use crate::sys::poll::ends_of;
use crate::sys::seccomp::{get_option, set_option};
use crate::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, bind, connect, local_address, recv, reuse_port,
    set_receive_buffer, set_v6_only, socket,
};

/// Receive buffer in bytes, as far as `net.core.rmem_max` or CAP_NET_ADMIN allow. Memory is used only for queued
/// datagrams.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

/// An error if another socket uses the address; see `tcp.rs`. Sockets that are connected to a client do not conflict,
/// nor do ended ones that a process still holds.
pub(super) fn check_free(address: &ListenAddress, local: SocketAddr, v6_only: bool) -> Result<(), SlotError> {
    match open(local, v6_only).and_then(|socket| bind(&socket, local)) {
        Err(Errno::EADDRINUSE) if owner::is_open_to_none(local) => Ok(()),
        bound => bound.map_err(|error| explain(address, local, error)),
    }
}

/// Opens one more socket of the address, next to existing ones of this user.
pub(super) fn listen(
    address: &ListenAddress,
    local: SocketAddr,
    v6_only: bool,
) -> Result<OwnedFd, SlotError> {
    let socket = || {
        let socket = open(local, v6_only)?;
        reuse_port(&socket)?;
        // Without privilege the kernel caps the size.
        set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
        // If a family lacks the option, no program asks for it either.
        let _ = report_destination(&socket, local.is_ipv6());
        bind(&socket, local)?;
        Ok(socket)
    };
    socket().map_err(|error| explain(address, local, error))
}

/// Makes the kernel record the destination address and interface of each datagram on arrival. It does so only on
/// request: a program that requests it later (IP_PKTINFO) would find none for queued datagrams, and could not answer
/// them. Other information comes from the datagram itself.
fn report_destination(socket: impl AsFd, v6: bool) -> io::Result<()> {
    const IPPROTO_IP: i32 = 0;
    const IP_PKTINFO: i32 = 8;
    const IPPROTO_IPV6: i32 = 41;
    const IPV6_RECVPKTINFO: i32 = 49;
    let yes = 1_i32.to_ne_bytes();
    match v6 {
        true => set_option(socket, IPPROTO_IPV6, IPV6_RECVPKTINFO, &yes),
        false => set_option(socket, IPPROTO_IP, IP_PKTINFO, &yes),
    }
}

/// Removes a socket from its group for all holders. Received datagrams can still be read. It is not shut down: a reader
/// would get empty datagrams without end.
///
/// Connects it to itself. Older kernels keep such a socket in its group if it was bound to a specific address, but none
/// does once it is bound to a device after that.
pub(super) fn leave(socket: impl AsFd) -> io::Result<()> {
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTODEVICE: i32 = 25;
    let mut own = local_address(&socket)?;
    own.set_ip(match own.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    });
    connect(&socket, own)?;
    // If it is bound to a device already, the connect was enough.
    let _ = set_option(&socket, SOL_SOCKET, SO_BINDTODEVICE, b"lo\0");
    Ok(())
}

/// 1 if a datagram is queued, else 0. Datagrams with a wrong checksum do not count.
pub(super) fn queue_len(socket: impl AsFd) -> io::Result<u32> {
    let found = ends_of(&socket)?;
    // A socket that was shut down is always "readable".
    let waits = if found.is_shut { unread(&socket)? > 0 } else { found.is_readable };
    Ok(u32::from(waits))
}

/// Drops the queued datagrams. Returns their number.
pub(super) fn empty(socket: impl AsFd) -> io::Result<u32> {
    let mut dropped = 0;
    while queue_len(&socket)? > 0 {
        match retry(|| recv(&socket, &mut [0_u8; 1], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC)) {
            Ok(_) => dropped += 1,
            Err(Errno::EAGAIN) => break,
            // A response of this socket could not be delivered.
            Err(Errno::ECONNREFUSED) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(dropped)
}

/// Number of datagrams that the kernel has dropped since the socket was opened, because the receive buffer was full.
pub(super) fn dropped(socket: impl AsFd) -> io::Result<u32> {
    const SK_MEMINFO_DROPS: usize = 8;
    Ok(memory(socket)?[SK_MEMINFO_DROPS])
}

/// Used bytes of its receive buffer.
pub(super) fn unread_bytes(socket: impl AsFd) -> io::Result<u32> {
    const SK_MEMINFO_RMEM_ALLOC: usize = 0;
    Ok(memory(socket)?[SK_MEMINFO_RMEM_ALLOC])
}

fn memory(socket: impl AsFd) -> io::Result<[u32; 9]> {
    const SOL_SOCKET: i32 = 1;
    const SO_MEMINFO: i32 = 55;
    let mut info = [0; 4 * 9];
    get_option(socket, SOL_SOCKET, SO_MEMINFO, &mut info)?;
    let (values, _) = info.as_chunks::<4>();
    Ok(std::array::from_fn(|at| u32::from_ne_bytes(values[at])))
}

fn open(local: SocketAddr, v6_only: bool) -> Result<OwnedFd, Errno> {
    let family = if local.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(family, SockType::Datagram, SockFlag::empty())?;
    if local.is_ipv6() {
        set_v6_only(&socket, v6_only)?;
    }
    Ok(socket)
}

fn explain(address: &ListenAddress, local: SocketAddr, error: Errno) -> SlotError {
    super::tcp::explain(address, error, || owner::of_udp(local))
}
