//! How far the server has taken the connection of one client.

use std::io;
use std::net::SocketAddr;

use super::Census;
use crate::slots::diag::{ANY_COOKIE, Diag, Key};

/// How far the server has taken a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptStage {
    /// For the server the handshake is incomplete. With `TCP_DEFER_ACCEPT` it completes when data arrives.
    Handshake,
    /// It is in the listener's accept queue.
    Queued,
    /// A process has accepted it and still holds it.
    Accepted,
    /// The server's end is closed.
    Gone,
}

impl Census {
    /// Whether a process has accepted the connection of a client with this local address and still holds it.
    pub fn is_accepted(client_local: SocketAddr, server: SocketAddr) -> io::Result<bool> {
        Ok(Self::stage(client_local, server)? == AcceptStage::Accepted)
    }

    /// How far the server has taken the connection of a client with this local address.
    pub fn stage(client_local: SocketAddr, server: SocketAddr) -> io::Result<AcceptStage> {
        let found = Diag::open()?.look_up(&Key::tcp(server, client_local), false)?;
        // If there is no such connection, the kernel returns the listener.
        Ok(match found.filter(|found| !found.listens()) {
            None => AcceptStage::Gone,
            Some(found) if found.inode != 0 => AcceptStage::Accepted,
            Some(found) if found.is_handshake() => AcceptStage::Handshake,
            Some(found) if found.is_connection() => AcceptStage::Queued,
            Some(_) => AcceptStage::Gone,
        })
    }

    /// The same for a unix socket, by the inode of the client's end.
    pub fn stage_of_unix(client: u32) -> io::Result<AcceptStage> {
        let own = Diag::open()?.look_up(&Key::Unix { inode: client, cookie: ANY_COOKIE }, false)?;
        Ok(match own.and_then(|own| own.other_inode) {
            None => AcceptStage::Gone,
            Some(0) => AcceptStage::Queued,
            Some(_) => AcceptStage::Accepted,
        })
    }

    /// Whether a process has accepted the connection of such a client and has read everything it sent.
    pub fn has_read(client_local: SocketAddr, server: SocketAddr) -> io::Result<bool> {
        let found = Diag::open()?.look_up(&Key::tcp(server, client_local), false)?;
        Ok(found.is_some_and(|found| found.inode != 0 && found.is_connection() && found.unread == 0))
    }
}
