//! Who still has connections to the addresses of a service, and whether requests are under way on them.
//!
//! A connection is a TCP socket at one of the addresses, or a unix socket accepted from one of the paths, that a
//! process of a tree has a descriptor of. That the client has ended its side changes nothing: it still waits for its
//! answer. What waits in an accept queue belongs to nobody.
//!
//! Whether a request is under way is told from outside, by what the kernel knows, so it is a guess:
//!
//! - Bytes that the process has not read, or that the client has not acknowledged, are work. That the client has not
//!   acknowledged what was sent to it tells, too, that it has asked nothing since.
//! - Data that was received after the last data was sent is a request that has no answer yet.
//! - The kernel's clock for the two ticks every 1 to 10 ms. If both are in the same tick, an acknowledgment that came
//!   later than the data tells that the client had the answer before it said anything more. Without one, it has come with
//!   the data: the answer was most likely to the request before, and the connection counts as busy for one second more.
//! - A connection that is younger than a second and has had no data yet is about to have some: clients connect to ask.
//! - An answer that is sent in parts with pauses between them looks finished in the pauses. A client that sends the
//!   first part of a request and no more looks busy.
//! - Of a unix connection only the bytes are known: a request that has been read is not seen.
//!
//! How long it has been so is at least the time since the last data was received, at least the time since consecutive
//! calls have seen it busy, and at most the time since the last data was sent.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use super::diag::{Cookie, Diag, Found, History, Key, family_of};
use crate::config::{ListenAddress, UNIX_PATH_MAX_BYTES};
use crate::sys::process::{HeldSocket, sockets_of};

/// For how long a connection counts as busy whose last request and last answer cannot be put in order, or that has had
/// neither yet.
const TIE_MS: u32 = 1000;

/// Counts the connections of a process tree at some addresses.
#[derive(Debug)]
pub struct Census {
    addresses: Vec<ListenAddress>,
    diag: Diag,
    /// Those of the last look that are not known to be gone.
    left: Vec<(Key, HeldSocket)>,
    /// Since when each call has found the connection busy.
    busy_since: HashMap<Cookie, Instant>,
}

impl Census {
    /// For the local addresses of these listeners.
    pub fn new(addresses: &[ListenAddress]) -> io::Result<Census> {
        let diag = Diag::open()?;
        Ok(Census { addresses: addresses.to_vec(), diag, left: Vec::new(), busy_since: HashMap::new() })
    }

    /// Whether no process of the tree has a connection to one of the addresses any more.
    ///
    /// It is made for a tree that gets no new connections: it looks at all sockets once, and then asks for one of the
    /// connections found at a time, until all of them are gone and it looks again.
    pub fn is_empty(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<bool> {
        while let Some((key, holder)) = self.left.last() {
            if holder.is_held() && is_still(self.diag.look_up(key)?, holder.inode) {
                return Ok(false);
            }
            self.left.pop();
        }
        // One look can miss a socket or a process while others vanish: nothing has to be seen twice.
        for _ in 0..2 {
            let found = self.look(false)?;
            self.left =
                held_by(found, &tree())?.into_iter().map(|(found, holder)| (found.key, holder)).collect();
            if !self.left.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// For how long the oldest request is under way that a process of the tree has; `None` if every connection is at
    /// rest. Milliseconds, as far as it can be told: see the head of this module.
    pub fn oldest_busy_ms(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<Option<u64>> {
        let mut found = self.look(true)?;
        found.retain(|found| work(found).is_some());
        let busy = if found.is_empty() { Vec::new() } else { held_by(found, &tree())? };
        let now = Instant::now();
        let before = std::mem::take(&mut self.busy_since);
        let mut oldest = None;
        for (found, _) in busy {
            let Some(work) = work(&found) else { continue };
            let cookie = found.key.cookie();
            let since = before.get(&cookie).copied().unwrap_or(now);
            // One that is about to ask has not asked yet.
            if work.at_most_ms != Some(0) {
                self.busy_since.insert(cookie, since);
            }
            oldest = oldest.max(Some(work.age_ms(now - since)));
        }
        Ok(oldest)
    }

    /// Whether a process of the tree is at work on a request, as far as that can be told. Unlike for
    /// [`Census::oldest_busy_ms`], an answer that is all sent is done: the kernel delivers it, whatever becomes of the process. For
    /// the moment at which a process is told to end.
    pub fn is_at_work(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<bool> {
        let mut found = self.look(true)?;
        found.retain(|found| work(found).is_some_and(|work| !work.is_sent));
        Ok(!found.is_empty() && !held_by(found, &tree())?.is_empty())
    }

    /// Whether the connection of a client at this local address (seen from the client: peer) has been accepted by a
    /// process that still has it.
    pub fn is_accepted(client_local: SocketAddr, server: SocketAddr) -> io::Result<bool> {
        let found = Diag::open()?.look_up(&Key::tcp(server, client_local))?;
        // Where there is no such connection, the kernel tells of the listener.
        Ok(found.is_some_and(|found| !found.listens() && found.inode != 0))
    }

    /// All accepted connections at the addresses, whoever has them.
    pub(super) fn look(&mut self, with_history: bool) -> io::Result<Vec<Found>> {
        let ports: BTreeSet<(u8, u16)> = self.addresses.iter().filter_map(family_and_port).collect();
        let mut found = Vec::new();
        for (family, port) in ports {
            found.extend(self.diag.tcp(family, port, with_history).map_err(|error| cannot("TCP", error))?);
        }
        if self.addresses.iter().any(|address| matches!(address, ListenAddress::Unix(_))) {
            found.extend(self.diag.unix().map_err(|error| cannot("unix", error))?);
        }
        found.retain(|found| found.inode != 0 && self.addresses.iter().any(|address| is_at(found, address)));
        Ok(found)
    }
}

fn is_still(found: Option<Found>, inode: u32) -> bool {
    found.is_some_and(|found| found.inode == inode && found.is_connection())
}

/// The sockets that a process of the tree has, with one that has it.
pub(super) fn held_by(found: Vec<Found>, tree: &[u32]) -> io::Result<Vec<(Found, HeldSocket)>> {
    let mut holders = HashMap::new();
    if !found.is_empty() {
        for pid in tree {
            holders.extend(sockets_of(*pid)?.into_iter().map(|held| (held.inode, held)));
        }
    }
    Ok(found.into_iter().filter_map(|found| holders.get(&found.inode).map(|held| (found, *held))).collect())
}

fn family_and_port(address: &ListenAddress) -> Option<(u8, u16)> {
    match address {
        ListenAddress::Tcp(local) => Some((family_of(local.ip()), local.port())),
        ListenAddress::DualStack { port } => Some((family_of(Ipv6Addr::UNSPECIFIED.into()), *port)),
        // Which of the datagrams belong together nobody but the server knows.
        _ => None,
    }
}

fn is_at(found: &Found, address: &ListenAddress) -> bool {
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

/// A request under way, as old as can be told from one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    at_least_ms: u32,
    at_most_ms: Option<u32>,
    /// Whether the answer is all sent, and only its acknowledgment is missing.
    is_sent: bool,
}

impl Work {
    fn age_ms(self, seen_for: Duration) -> u64 {
        let age = u64::from(self.at_least_ms).max(seen_for.as_millis() as u64);
        age.min(self.at_most_ms.map_or(u64::MAX, u64::from))
    }
}

fn work(found: &Found) -> Option<Work> {
    classify(found.unread, found.unsent, found.is_half_closed(), found.history)
}

/// The work that a connection is at, `None` if it is at rest.
fn classify(unread: u32, unsent: u32, half_closed: bool, history: Option<History>) -> Option<Work> {
    // The kernel counts the end of the client's data as one byte.
    let end = u32::from(half_closed);
    let unread = unread.saturating_sub(end) > 0;
    let Some(history) = history else {
        return (unread || unsent > 0).then_some(Work { at_least_ms: 0, at_most_ms: None, is_sent: false });
    };
    let History { last_sent_ms, last_received_ms, last_ack_ms, bytes_received, not_sent, segments_sent } =
        history;
    if unread {
        return Some(Work { at_least_ms: last_received_ms, at_most_ms: None, is_sent: false });
    }
    let received_any = bytes_received > u64::from(end);
    let unanswered = received_any && (last_received_ms < last_sent_ms || segments_sent == 0);
    if unsent > 0 {
        return Some(Work { at_least_ms: 0, at_most_ms: None, is_sent: not_sent == 0 && !unanswered });
    }
    // Since the handshake.
    if !half_closed && !received_any && segments_sent == 0 && last_sent_ms < TIE_MS {
        return Some(Work { at_least_ms: 0, at_most_ms: Some(0), is_sent: false });
    }
    let tie =
        last_received_ms == last_sent_ms && last_ack_ms >= last_received_ms && last_received_ms < TIE_MS;
    let busy = unanswered || received_any && tie;
    busy.then_some(Work { at_least_ms: last_received_ms, at_most_ms: Some(last_sent_ms), is_sent: false })
}

fn cannot(kind: &str, error: io::Error) -> io::Error {
    let why = "is the kernel built with INET_TCP_DIAG and UNIX_DIAG?";
    io::Error::new(error.kind(), format!("cannot ask the kernel for the {kind} connections: {error}; {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that has had a request and an answer, at rest.
    const AT_REST: History = History {
        last_sent_ms: 40,
        last_received_ms: 80,
        last_ack_ms: 40,
        bytes_received: 100,
        not_sent: 0,
        segments_sent: 3,
    };

    #[test]
    fn work_is_told_from_rest() {
        const OPEN: bool = false;
        const ENDED: bool = true;
        let busy = |at_least_ms, at_most_ms| Some(Work { at_least_ms, at_most_ms, is_sent: false });
        let on_its_way = |at_least_ms, at_most_ms| Some(Work { at_least_ms, at_most_ms, is_sent: true });
        let fresh =
            History { last_sent_ms: 500, last_received_ms: 500, last_ack_ms: 500, ..History::default() };
        let stale = History { last_sent_ms: 1000, last_received_ms: 1000, ..fresh };
        let asked = History { last_received_ms: 20, ..AT_REST };
        let first = History { bytes_received: 1, ..fresh };
        let tie = History { last_sent_ms: 80, last_ack_ms: 80, ..AT_REST };
        let long_ago = History { last_sent_ms: 1000, last_received_ms: 1000, last_ack_ms: 1000, ..AT_REST };
        for (what, unread, unsent, end, history, expected) in [
            ("answered", 0, 0, OPEN, AT_REST, None),
            ("answered, and the client has ended", 0, 0, ENDED, AT_REST, None),
            ("answered, and the end is not read", 1, 0, ENDED, AT_REST, None),
            ("nothing was sent or received yet", 0, 0, OPEN, fresh, busy(0, Some(0))),
            ("nothing was ever sent or received", 0, 0, OPEN, stale, None),
            ("the end came without a request", 0, 0, ENDED, fresh, None),
            ("only the end was received", 1, 0, ENDED, first, None),
            ("unread", 1, 0, OPEN, AT_REST, busy(80, None)),
            ("unread before the end", 2, 0, ENDED, AT_REST, busy(80, None)),
            ("sent, and not acknowledged", 0, 1, OPEN, AT_REST, on_its_way(0, None)),
            ("the same in the tick of the request", 0, 1, OPEN, tie, on_its_way(0, None)),
            ("the same to a client that has ended", 1, 1, ENDED, AT_REST, on_its_way(0, None)),
            ("not sent", 0, 1, OPEN, History { not_sent: 1, ..AT_REST }, busy(0, None)),
            ("asked before it has acknowledged", 0, 1, OPEN, asked, busy(0, None)),
            ("unread and unsent", 1, 1, OPEN, AT_REST, busy(80, None)),
            ("asked after the answer", 0, 0, OPEN, asked, busy(20, Some(40))),
            ("asked after the answer, then ended", 1, 0, ENDED, asked, busy(20, Some(40))),
            (
                "asked for the first time, in the tick of the handshake",
                0,
                0,
                OPEN,
                first,
                busy(500, Some(500)),
            ),
            (
                "asked and answered in a tick, acknowledged later",
                0,
                0,
                OPEN,
                History { last_ack_ms: 40, ..tie },
                None,
            ),
            ("asked and answered in a tick, in which order?", 0, 0, OPEN, tie, busy(80, Some(80))),
            ("the same, but it is long ago", 0, 0, OPEN, long_ago, None),
        ] {
            assert_eq!(classify(unread, unsent, end, Some(history)), expected, "{what}");
        }
        assert_eq!(classify(0, 0, OPEN, None), None);
        assert_eq!(classify(1, 0, OPEN, None), busy(0, None));
        assert_eq!(classify(0, 1, OPEN, None), busy(0, None));
    }

    #[test]
    fn the_age_is_what_was_seen_within_what_is_possible() {
        let age = |at_least_ms, at_most_ms, seen| {
            Work { at_least_ms, at_most_ms, is_sent: false }.age_ms(Duration::from_millis(seen))
        };
        assert_eq!(age(20, Some(40), 0), 20);
        assert_eq!(age(20, Some(40), 30), 30);
        assert_eq!(age(20, Some(40), 5000), 40, "there was an answer in between");
        assert_eq!(age(20, None, 5000), 5000);
    }

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
