//! Sockets of others at an address of this service.
//!
//! A process of the same user can join a `SO_REUSEPORT` group (it only has to ask for that), and leave it. While the slots stay what they
//! are that changes nothing for them: it comes behind them, and gets nothing, as the program chooses a slot. But a slot that is
//! added meanwhile comes behind the stranger, and when one leaves a stranger may take its index. So whoever adds or ends a
//! slot looks first, and counts the others (see `order.rs`). There is nothing to look at while nothing changes.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use super::diag::{AF_INET, AF_INET6, Diag, Found, family_of};
use crate::config::ListenAddress;
use crate::sys::descriptor::inode;
use crate::sys::owner::Owner;
use crate::sys::user::effective_user;

/// Names a socket, as long as it is open.
pub(super) type Inode = u32;

/// A socket of somebody else that takes, or may take, what is sent to an address of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// What it is bound to.
    pub local: SocketAddr,
    /// Who has it, if that can be known.
    pub owner: Option<Owner>,
}

/// The others in the group of an address, in the order in which they began to listen, as far as that can be told. Those of
/// an address without groups are none.
pub(super) fn in_group<'a>(
    address: &ListenAddress,
    ours: impl Iterator<Item = &'a OwnedFd>,
) -> io::Result<Vec<Inode>> {
    let Some((local, _)) = address.ip() else { return Ok(Vec::new()) };
    let mut others = others(address, ours, &[family_of(local.ip())])?;
    others.retain(|found| is_in_group(found, address));
    // The kernel puts the newest first, except where TCP over v6 is concerned.
    let oldest_first = !address.is_datagram() && local.is_ipv6();
    if !oldest_first {
        others.reverse();
    }
    Ok(others.into_iter().map(|found| found.inode).collect())
}

/// All others that are open to what is sent to the address. Reads `/proc` if there are any.
pub(super) fn beside<'a>(
    address: &ListenAddress,
    ours: impl Iterator<Item = &'a OwnedFd>,
) -> io::Result<Vec<Other>> {
    let others =
        others(address, ours, &[AF_INET, AF_INET6])?.into_iter().filter(|found| overlaps(found, address));
    let other =
        |found: Found| Some(Other { local: found.bound_to()?, owner: Owner::of_socket(found.inode.into()) });
    Ok(others.filter_map(other).collect())
}

fn others<'a>(
    address: &ListenAddress,
    ours: impl Iterator<Item = &'a OwnedFd>,
    families: &[u8],
) -> io::Result<Vec<Found>> {
    let Some((local, _)) = address.ip() else { return Ok(Vec::new()) };
    let ours = ours.map(|fd| Ok(inode(fd)?)).collect::<io::Result<Vec<_>>>()?;
    let (mut diag, mut found) = (Diag::open()?, Vec::new());
    for family in families.iter().copied() {
        let _ = diag.open_to_all(address.is_datagram(), family, local.port(), |socket: Found| {
            if socket.inode != 0 && !ours.contains(&socket.inode.into()) {
                found.push(socket);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(found)
}

/// The kernel makes a group of the sockets of one user that are bound to the same.
fn is_in_group(found: &Found, address: &ListenAddress) -> bool {
    let Some((local, v6_only)) = address.ip() else { return false };
    let same = found.bound_to().is_some_and(|bound| bound.ip() == local.ip() && bound.port() == local.port());
    same && found.user == effective_user() && (local.is_ipv4() || found.is_v6_only == v6_only)
}

fn overlaps(found: &Found, address: &ListenAddress) -> bool {
    let (Some(bound), Some((local, v6_only))) = (found.bound_to(), address.ip()) else { return false };
    let (theirs, ours) = (bound.ip().to_canonical(), local.ip());
    match (theirs.is_ipv4(), ours.is_ipv4()) {
        (true, true) | (false, false) => theirs == ours || theirs.is_unspecified() || ours.is_unspecified(),
        (true, false) => ours.is_unspecified() && !v6_only,
        (false, true) => theirs.is_unspecified() && !found.is_v6_only,
    }
}
