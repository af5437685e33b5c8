//! Who gets how many of the new connections of some addresses.
//!
//! The kernel counts nobody's connections, so they are looked at again and again: each that is seen for the first time
//! counts for the process tree that has it. One that begins and ends between two looks is missed. Of processes that keep
//! their connections equally long the shares are right all the same.

use std::collections::HashSet;
use std::io;

use super::census::{Census, held_by};
use super::diag::Cookie;
use crate::config::ListenAddress;

/// Counts from its beginning on.
#[derive(Debug)]
pub struct Tally {
    census: Census,
    known: HashSet<Cookie>,
    counts: [u64; 2],
}

impl Tally {
    /// Begins to count: what is connected already does not count. Blocks on the kernel.
    pub fn begin(addresses: &[ListenAddress]) -> io::Result<Tally> {
        let mut census = Census::new(addresses)?;
        let known = census.look(false)?.iter().map(|found| found.key.cookie()).collect();
        Ok(Tally { census, known, counts: [0, 0] })
    }

    /// Looks once more at the connections of two process trees, and tells how many new ones each of them has had. Blocks on the
    /// kernel, for some ten microseconds a connection.
    pub fn look(&mut self, trees: [&[u32]; 2]) -> io::Result<[u64; 2]> {
        let found = self.census.look(false)?;
        let is_known = |cookie: &Cookie| self.known.contains(cookie);
        let (old, new): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| is_known(&found.key.cookie()));
        // A cookie is never used twice, so what is gone need not be known any more.
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
        let mut tally = Tally::begin(&[ListenAddress::Tcp(address)]).unwrap();
        let own = [std::process::id()];
        assert_eq!(tally.look([&[], &own]).unwrap(), [0, 0]);
        let connections = [connect(), connect()];
        assert_eq!(tally.look([&[], &own]).unwrap(), [0, 2]);
        assert_eq!(tally.look([&own, &[]]).unwrap(), [0, 2], "they are known");
        drop(connections);
        let _waiting = TcpStream::connect(address).unwrap();
        assert_eq!(tally.look([&own, &[]]).unwrap(), [0, 2], "it was not accepted yet");
        let _accepted = listener.accept().unwrap();
        assert_eq!(tally.look([&own, &[]]).unwrap(), [1, 2]);
    }
}
