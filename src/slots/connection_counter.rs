//! Counts how many new connections each process tree gets.
//!
//! The kernel does not count connections per process, so this polls them: each new connection counts for the tree that
//! holds it. It misses connections that begin and end between two polls. The proportions are still right if both trees
//! keep their connections equally long.

use std::collections::HashSet;
use std::io;

use super::census::{Census, held_by};
use super::diag::Cookie;
use crate::config::ListenAddress;

/// Counts from its creation on.
#[derive(Debug)]
pub struct ConnectionCounter {
    census: Census,
    known: HashSet<Cookie>,
    counts: [u64; 2],
}

impl ConnectionCounter {
    /// Starts counting; existing connections do not count. Blocks on the kernel.
    pub fn begin(addresses: &[ListenAddress]) -> io::Result<ConnectionCounter> {
        let mut census = Census::new(addresses)?;
        let known = census.list(false)?.iter().map(|found| found.key.cookie()).collect();
        Ok(ConnectionCounter { census, known, counts: [0, 0] })
    }

    /// Polls the connections of two process trees. Returns the number of new connections of each so far. Blocks on the
    /// kernel, about ten microseconds per connection.
    pub fn poll(&mut self, trees: [&[u32]; 2]) -> io::Result<[u64; 2]> {
        let found = self.census.list(false)?;
        let is_known = |cookie: &Cookie| self.known.contains(cookie);
        let (old, new): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| is_known(&found.key.cookie()));
        // Cookies are never reused, so closed connections can be forgotten.
        self.known = old.iter().map(|found| found.key.cookie()).collect();
        for (tree, count) in trees.into_iter().zip(&mut self.counts) {
            for (found, _) in held_by(new.clone(), tree)? {
                *count += u64::from(self.known.insert(found.key.cookie()));
            }
        }
        Ok(self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn each_new_connection_counts_once_for_who_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || (TcpStream::connect(address).unwrap(), listener.accept().unwrap());
        let _before = connect();
        let mut counter = ConnectionCounter::begin(&[ListenAddress::Tcp(address)]).unwrap();
        let own = [std::process::id()];
        assert_eq!(counter.poll([&[], &own]).unwrap(), [0, 0]);
        let connections = [connect(), connect()];
        assert_eq!(counter.poll([&[], &own]).unwrap(), [0, 2]);
        assert_eq!(counter.poll([&own, &[]]).unwrap(), [0, 2], "they are known");
        drop(connections);
        let _waiting = TcpStream::connect(address).unwrap();
        assert_eq!(counter.poll([&own, &[]]).unwrap(), [0, 2], "it was not accepted yet");
        let _accepted = listener.accept().unwrap();
        assert_eq!(counter.poll([&own, &[]]).unwrap(), [1, 2]);
    }
}
