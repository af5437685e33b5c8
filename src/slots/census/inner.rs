//! Connections that a program has with itself, as a server with a gateway in it has that dials its own port.

use std::collections::HashSet;
use std::io;

use super::{Census, descriptors_of};
use crate::slots::diag::{Found, Key};
use crate::sys::held::HeldSocket;

impl Census {
    /// Those of whose clients none is a process of the tree. What a program asks itself is a part of what others have asked it: who
    /// keeps that from it keeps its answers from them.
    pub(super) fn outer(
        &mut self,
        held: Vec<(Found, HeldSocket)>,
        tree: impl Fn() -> Vec<u32>,
    ) -> io::Result<Vec<(Found, HeldSocket)>> {
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

    /// The socket of the client of a connection, if it is one of this machine. It is of the same network namespace, so its address is
    /// that of the listener or one of the loopback.
    fn client_end(&mut self, found: &Found) -> io::Result<Option<u32>> {
        let Some((local, peer)) = found.local().zip(found.peer()) else { return Ok(None) };
        if peer.ip() != local.ip() && !peer.ip().is_loopback() {
            return Ok(None);
        }
        let client = self.diag.look_up(&Key::tcp(peer, local), false)?;
        Ok(client.filter(|client| client.inode != 0 && !client.listens()).map(|client| client.inode))
    }
}
