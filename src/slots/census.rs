//! Who still has connections to the addresses of a service, and whether requests are under way on them.
//!
//! A connection is a TCP socket at one of the addresses, or a unix socket accepted from one of the paths, that a
//! process of a tree has a descriptor of. That the client has ended its side changes nothing: it still waits for its
//! answer. What waits in an accept queue belongs to nobody.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use super::diag::{Cookie, Diag, Found, Key, family_of};
use super::work::work;
use crate::config::{ListenAddress, UNIX_PATH_MAX_BYTES};
use crate::sys::held::{HeldSocket, sockets_of};

/// Counts the connections of a process tree at some addresses.
///
/// While a process is waited for, one connection that it still has, or that is still at work, is enough to know. So a look
/// ends at the first one, and the next look begins with that one: it costs the same however many others there are.
#[derive(Debug)]
pub struct Census {
    addresses: Vec<ListenAddress>,
    diag: Diag,
    /// The connection for which the last look said no.
    last: Option<Held>,
    /// Since when each call has found the connection busy.
    busy_since: HashMap<Cookie, Instant>,
}

/// A connection, and who has it.
type Held = (Key, HeldSocket);

impl Census {
    /// For the local addresses of these listeners.
    pub fn new(addresses: &[ListenAddress]) -> io::Result<Census> {
        let diag = Diag::open()?;
        Ok(Census { addresses: addresses.to_vec(), diag, last: None, busy_since: HashMap::new() })
    }

    /// Whether no process of the tree has a connection to one of the addresses any more. Made for a tree that gets no new ones.
    pub fn is_empty(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<bool> {
        if self.still_there(false)?.is_some() {
            return Ok(false);
        }
        // One look can miss a socket or a process while others vanish: nothing has to be seen twice.
        for _ in 0..2 {
            self.last = self.find(false, &tree(), |_| true)?;
            if self.last.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a process of the tree is at work on a request, as far as that can be told. Unlike for
    /// [`Census::oldest_busy_ms`], an answer that is all sent is done: the kernel delivers it, whatever becomes of the process.
    /// For the moment at which a process is told to end.
    pub fn is_at_work(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<bool> {
        let unfinished = |found: &Found| work(found).is_some_and(|work| !work.is_sent);
        if self.still_there(true)?.is_some_and(|found| unfinished(&found)) {
            return Ok(true);
        }
        self.last = self.find(true, &tree(), unfinished)?;
        Ok(self.last.is_some())
    }

    /// Whether a process of the tree has had a request for at least so many milliseconds: see [`Census::oldest_busy_ms`].
    pub fn is_busy_for(&mut self, limit_ms: u64, tree: impl Fn() -> Vec<u32>) -> io::Result<bool> {
        if let Some(found) = self.still_there(true)? {
            let cookie = found.key.cookie();
            // What the others were meanwhile is not known.
            self.busy_since.retain(|of, _| *of == cookie);
            if self.busy_ms(&found, Instant::now()).is_some_and(|ms| ms >= limit_ms) {
                return Ok(true);
            }
        }
        let oldest = self.oldest_busy(&tree())?;
        self.last = oldest.filter(|(ms, _)| *ms >= limit_ms).map(|(_, held)| held);
        Ok(self.last.is_some())
    }

    /// For how long the oldest request is under way that a process of the tree has; `None` if every connection is at
    /// rest. Milliseconds, as far as it can be told: see `work.rs`.
    pub fn oldest_busy_ms(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<Option<u64>> {
        Ok(self.oldest_busy(&tree())?.map(|(ms, _)| ms))
    }

    fn oldest_busy(&mut self, tree: &[u32]) -> io::Result<Option<(u64, Held)>> {
        let mut found = self.look(true)?;
        found.retain(|found| work(found).is_some());
        let busy = held_by(found, tree)?;
        let now = Instant::now();
        let before = std::mem::take(&mut self.busy_since);
        let mut oldest: Option<(u64, Held)> = None;
        for (found, holder) in busy {
            // One that is about to ask has not asked yet.
            if work(&found).is_some_and(|work| work.at_most_ms != Some(0)) {
                let cookie = found.key.cookie();
                self.busy_since.insert(cookie, before.get(&cookie).copied().unwrap_or(now));
            }
            let ms = self.busy_ms(&found, now);
            if ms > oldest.as_ref().map(|(oldest, _)| *oldest) {
                oldest = ms.map(|ms| (ms, (found.key, holder)));
            }
        }
        Ok(oldest)
    }

    fn busy_ms(&self, found: &Found, now: Instant) -> Option<u64> {
        let since = self.busy_since.get(&found.key.cookie()).copied().unwrap_or(now);
        work(found).map(|work| work.age_ms(now - since))
    }

    /// Whether the connection of a client at this local address (seen from the client: peer) has been accepted by a
    /// process that still has it.
    pub fn is_accepted(client_local: SocketAddr, server: SocketAddr) -> io::Result<bool> {
        let found = Diag::open()?.look_up(&Key::tcp(server, client_local), false)?;
        // Where there is no such connection, the kernel tells of the listener.
        Ok(found.is_some_and(|found| !found.listens() && found.inode != 0))
    }

    /// All accepted connections at the addresses, whoever has them.
    pub(super) fn look(&mut self, with_history: bool) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        self.each(with_history, |found| {
            all.push(found);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// The connection for which the last look said no, if it is still held.
    fn still_there(&mut self, with_history: bool) -> io::Result<Option<Found>> {
        let Some((key, holder)) = &self.last else { return Ok(None) };
        let found = if holder.is_held() { self.diag.look_up(key, with_history)? } else { None };
        Ok(found.filter(|found| found.inode == holder.inode && found.is_connection()))
    }

    /// A connection that a process of the tree has and that is `wanted`.
    fn find(
        &mut self,
        with_history: bool,
        tree: &[u32],
        wanted: impl Fn(&Found) -> bool,
    ) -> io::Result<Option<Held>> {
        let mut descriptors = descriptors_of(tree);
        let (mut sockets, mut holders) = (HashMap::new(), HashMap::new());
        let mut met = None;
        // With each socket one more descriptor: if the tree has most of the sockets, two that belong together are met soon.
        self.each(with_history, |found| {
            if wanted(&found) {
                let holder = descriptors.next().and_then(Result::ok);
                holders.extend(holder.map(|holder| (holder.inode, holder)));
                sockets.insert(found.inode, found.key);
                let inodes = [Some(found.inode), holder.map(|holder| holder.inode)];
                met = inodes
                    .into_iter()
                    .flatten()
                    .find(|inode| sockets.contains_key(inode) && holders.contains_key(inode));
            }
            if met.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(inode) = met {
            return Ok(sockets.remove(&inode).zip(holders.remove(&inode)));
        }
        if sockets.is_empty() {
            return Ok(None);
        }
        // A process may have come to a socket after its descriptors were read.
        for holder in descriptors_of(tree) {
            let holder = holder?;
            if let Some(key) = sockets.remove(&holder.inode) {
                return Ok(Some((key, holder)));
            }
        }
        Ok(None)
    }

    /// Tells the accepted connections at the addresses one after the other, until `each` breaks off.
    fn each(&mut self, with_history: bool, mut each: impl FnMut(Found) -> ControlFlow<()>) -> io::Result<()> {
        let addresses = &self.addresses;
        let mut each = |found: Found| {
            let is_wanted = found.inode != 0 && addresses.iter().any(|address| is_at(&found, address));
            if is_wanted { each(found) } else { ControlFlow::Continue(()) }
        };
        let ports: BTreeSet<(u8, u16)> = addresses.iter().filter_map(family_and_port).collect();
        for (family, port) in ports {
            let asked = self.diag.tcp(family, port, with_history, &mut each);
            if asked.map_err(|error| cannot("TCP", error))?.is_break() {
                return Ok(());
            }
        }
        if addresses.iter().any(|address| matches!(address, ListenAddress::Unix(_))) {
            let _ = self.diag.unix(&mut each).map_err(|error| cannot("unix", error))?;
        }
        Ok(())
    }
}

/// The sockets that a process of the tree has, with one that has it.
pub(super) fn held_by(found: Vec<Found>, tree: &[u32]) -> io::Result<Vec<(Found, HeldSocket)>> {
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let holders = descriptors_of(tree).map(|held| held.map(|held| (held.inode, held)));
    let holders = holders.collect::<io::Result<HashMap<_, _>>>()?;
    Ok(found.into_iter().filter_map(|found| holders.get(&found.inode).map(|held| (found, *held))).collect())
}

/// All sockets that the processes have.
fn descriptors_of(tree: &[u32]) -> impl Iterator<Item = io::Result<HeldSocket>> {
    tree.iter().flat_map(|pid| {
        let (sockets, error) = match sockets_of(*pid) {
            Ok(sockets) => (Some(sockets), None),
            Err(error) => (None, Some(Err(error))),
        };
        sockets.into_iter().flatten().map(Ok).chain(error)
    })
}

pub(super) fn family_and_port(address: &ListenAddress) -> Option<(u8, u16)> {
    match address {
        ListenAddress::Tcp(local) => Some((family_of(local.ip()), local.port())),
        ListenAddress::DualStack { port } => Some((family_of(Ipv6Addr::UNSPECIFIED.into()), *port)),
        // Which of the datagrams belong together nobody but the server knows.
        _ => None,
    }
}

pub(super) fn is_at(found: &Found, address: &ListenAddress) -> bool {
    match (address, found.local(), &found.name) {
        (ListenAddress::Tcp(wanted), Some(local), _) => {
            let any = wanted.ip().is_unspecified() && wanted.is_ipv4() == local.is_ipv4();
            wanted.port() == local.port() && (any || wanted.ip() == local.ip())
        }
        (ListenAddress::DualStack { port }, Some(local), _) => *port == local.port(),
        (ListenAddress::Unix(path), _, Some(name)) => is_name_of(path, name),
        _ => false,
    }
}

/// Whether a listener of the path may be bound to `name`, which an accepted socket has from its listener: the path
/// itself, a slot's own name `.NAME.SLOT`, or, when that is too long for the kernel, the short one that it had for a
/// moment.
fn is_name_of(path: &Path, name: &OsStr) -> bool {
    let (own, bound) = (path.file_name().unwrap_or_default().as_encoded_bytes(), Path::new(name));
    let slot_name = |name: &OsStr| {
        let slot = name.as_encoded_bytes().strip_prefix(b".").and_then(|name| name.strip_prefix(own));
        slot.and_then(|rest| rest.strip_prefix(b".")).is_some_and(is_number)
    };
    let short_name = |name: &OsStr| {
        let pid_and_slot = name.to_str().and_then(|name| name.strip_prefix(".handoff-")?.split_once('.'));
        pid_and_slot.is_some_and(|(pid, slot)| is_number(pid.as_bytes()) && is_number(slot.as_bytes()))
    };
    let may_be_short = path.as_os_str().len() + "..1".len() > UNIX_PATH_MAX_BYTES;
    bound == path
        || bound.parent() == path.parent() && bound.file_name().is_some_and(slot_name)
        || may_be_short && bound.starts_with("/proc/self/fd") && bound.file_name().is_some_and(short_name)
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

fn cannot(kind: &str, error: io::Error) -> io::Error {
    let why = "is the kernel built with INET_TCP_DIAG and UNIX_DIAG?";
    io::Error::new(error.kind(), format!("cannot ask the kernel for the {kind} connections: {error}; {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_listener_is_known_by_its_names() {
        let is = |path: &str, name: &str| is_name_of(Path::new(path), OsStr::new(name));
        assert!(is("/run/s.sock", "/run/s.sock"));
        assert!(is("/run/s.sock", "/run/.s.sock.12"));
        for other in
            ["/run/.s.sock.new", "/run/.s.sock.", "/tmp/.s.sock.1", "/run/s.sock.1", "/run/.t.sock.1", ""]
        {
            assert!(!is("/run/s.sock", other), "{other}");
        }
        let short = "/proc/self/fd/7/.handoff-4711.2";
        assert!(!is("/run/s.sock", short));
        let longest = format!("/{}", "l".repeat(UNIX_PATH_MAX_BYTES - 1));
        assert!(is(&longest, short));
        assert!(!is(&longest, "/proc/self/fd/7/.other-4711"));
    }
}
