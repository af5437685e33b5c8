//! Foreign sockets at an address of this service.
//!
//! A process of the same user can join a `SO_REUSEPORT` group (it only has to set the option) and leave it. While the
//! slots do not change, this has no effect: the foreign socket is the last member, and the program chooses a slot. But
//! a slot added later comes after it, and when a slot leaves, the foreign socket may take its index. So every change of
//! the slots first counts the foreign sockets (see `member_order.rs`). Without changes there is nothing to check.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use super::diag::{AF_INET, AF_INET6, Diag, SocketInfo, family_of};
use crate::config::ListenAddress;
use crate::sys::descriptor::inode;
use crate::sys::owner::Owner;
use crate::sys::user::effective_user;

/// Identifies an open socket.
pub(super) type Inode = u32;

/// A foreign socket that receives, or may receive, traffic for this service's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignSocket {
    /// Its bound address.
    pub local: SocketAddr,
    /// Its process, if known.
    pub owner: Option<Owner>,
}

/// The foreign sockets in the group of an address, in the order in which they began to listen, as far as can be
/// determined. Empty for addresses without groups.
pub(super) fn in_group<'a>(
    address: &ListenAddress,
    ours: impl Iterator<Item = &'a OwnedFd>,
) -> io::Result<Vec<Inode>> {
    let Some((local, _)) = address.ip() else { return Ok(Vec::new()) };
    let mut others = others(address, ours, &[family_of(local.ip())])?;
    others.retain(|found| is_in_group(found, address));
    // The kernel lists the newest first, except for TCP over IPv6.
    let oldest_first = !address.is_datagram() && local.is_ipv6();
    if !oldest_first {
        others.reverse();
    }
    Ok(others.into_iter().map(|found| found.inode).collect())
}

/// All foreign sockets that could receive traffic for the address. Reads `/proc` if there are any.
pub(super) fn beside<'a>(
    address: &ListenAddress,
    ours: impl Iterator<Item = &'a OwnedFd>,
) -> io::Result<Vec<ForeignSocket>> {
    let others =
        others(address, ours, &[AF_INET, AF_INET6])?.into_iter().filter(|found| overlaps(found, address));
    let other = |found: SocketInfo| {
        Some(ForeignSocket { local: found.bound_to()?, owner: Owner::of_socket(found.inode.into()) })
    };
    Ok(others.filter_map(other).collect())
}

fn others<'a>(
    address: &ListenAddress,
    ours: impl Iterator<Item = &'a OwnedFd>,
    families: &[u8],
) -> io::Result<Vec<SocketInfo>> {
    let Some((local, _)) = address.ip() else { return Ok(Vec::new()) };
    let ours = ours.map(|fd| Ok(inode(fd)?)).collect::<io::Result<Vec<_>>>()?;
    let (mut diag, mut found) = (Diag::open()?, Vec::new());
    for family in families.iter().copied() {
        let _ = diag.open_to_all(address.is_datagram(), family, local.port(), |socket: SocketInfo| {
            if socket.inode != 0 && !ours.contains(&socket.inode.into()) {
                found.push(socket);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(found)
}

/// The kernel groups sockets of one user with the same bound address.
fn is_in_group(found: &SocketInfo, address: &ListenAddress) -> bool {
    let Some((local, v6_only)) = address.ip() else { return false };
    let same = found.bound_to().is_some_and(|bound| bound.ip() == local.ip() && bound.port() == local.port());
    same && found.user == effective_user() && (local.is_ipv4() || found.is_v6_only == v6_only)
}

fn overlaps(found: &SocketInfo, address: &ListenAddress) -> bool {
    let (Some(bound), Some((local, v6_only))) = (found.bound_to(), address.ip()) else { return false };
    let (theirs, ours) = (bound.ip().to_canonical(), local.ip());
    match (theirs.is_ipv4(), ours.is_ipv4()) {
        (true, true) | (false, false) => theirs == ours || theirs.is_unspecified() || ours.is_unspecified(),
        (true, false) => ours.is_unspecified() && !v6_only,
        (false, true) => theirs.is_unspecified() && !found.is_v6_only,
    }
}
