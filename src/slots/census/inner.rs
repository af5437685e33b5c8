//! Connections of a program to itself, such as a server with a built-in gateway that dials its own port.

use std::collections::HashSet;
use std::io;

use super::{Census, descriptors_of};
use crate::slots::diag::{Key, SocketInfo};
use crate::sys::held::HeldSocket;

impl Census {
    /// The connections without those whose client is a process of the tree. A program's request to itself is part of a
    /// client's request: holding it back would hold back the client's response.
    pub(super) fn outer(
        &mut self,
        held: Vec<(SocketInfo, HeldSocket)>,
        tree: impl Fn() -> Vec<u32>,
    ) -> io::Result<Vec<(SocketInfo, HeldSocket)>> {
        let mut before = std::mem::take(&mut self.inner);
        let mut sockets: Option<HashSet<u32>> = None;
        let mut outer = Vec::new();
        for (found, holder) in held {
            let cookie = found.key.cookie();
            let is_inner = match before.remove(&cookie) {
                Some(known) => known,
                None => match self.client_end(&found)? {
                    None => false,
                    Some(client) => match &sockets {
                        Some(sockets) => sockets.contains(&client),
                        None => {
                            let tree = tree();
                            let all = descriptors_of(&tree).map(|held| held.map(|held| held.inode));
                            sockets.insert(all.collect::<io::Result<_>>()?).contains(&client)
                        }
                    },
                },
            };
            self.inner.insert(cookie, is_inner);
            if !is_inner {
                outer.push((found, holder));
            }
        }
        Ok(outer)
    }

    /// The client's socket of a connection from this machine. It is in the same network namespace, so its address is
    /// the listener's or a loopback address.
    fn client_end(&mut self, found: &SocketInfo) -> io::Result<Option<u32>> {
        let Some((local, peer)) = found.local().zip(found.peer()) else { return Ok(None) };
        if peer.ip() != local.ip() && !peer.ip().is_loopback() {
            return Ok(None);
        }
        let client = self.diag.look_up(&Key::tcp(peer, local), false)?;
        Ok(client.filter(|client| client.inode != 0 && !client.listens()).map(|client| client.inode))
    }
}
