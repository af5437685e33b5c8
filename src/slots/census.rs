//! Which processes still have connections to the addresses of a service, and whether requests are in progress on them.
//!
//! A connection is a TCP socket at one of the addresses, or a unix socket accepted from one of the paths, that a
//! process of a tree holds. A client that has closed its sending side still waits for a response, so its connection
//! counts. Connections in an accept queue belong to no process.

mod address;
mod inner;
mod stage;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

pub(super) use address::{family_and_port, is_at};
pub use stage::AcceptStage;

use super::diag::{Cookie, Diag, Key, SocketInfo};
use super::gate::{InputGate, STARVED};
use super::work::ConnectionWork;
use crate::config::ListenAddress;
use crate::sys::held::{HeldSocket, sockets_of};
use crate::sys::tcp::{ends_with_acknowledgment, may_ask};

/// Counts the connections of a process tree at some addresses.
///
/// To wait for a process, one remaining connection is enough information. So [`Census::is_empty`] stops at the first
/// connection and checks that one first at the next call: its cost does not depend on the number of connections. A
/// survey examines all of them.
#[derive(Debug)]
pub struct Census {
    addresses: Vec<ListenAddress>,
    diag: Diag,
    /// The connection that made the last [`Census::is_empty`] return `false`.
    last: Option<HeldConnection>,
    /// The connections of the last survey.
    tracked: HashMap<Cookie, TrackedConnection>,
    /// The connections whose further input is held back.
    held_back: HashMap<Cookie, InputGate>,
    /// Connections that were released because the held-back data was the rest of a request: how often, and when last.
    spared: HashMap<Cookie, (u8, Instant)>,
    /// Whether the kernel reports the last segment of a connection.
    may_ask: bool,
    /// Whether unsure states are left to [`Census::survey_of_stopped`], if that can ask.
    asks: bool,
    /// Maximum pause within a response.
    pause: Duration,
    /// Whether a connection's client is a process of the tree.
    inner: HashMap<Cookie, bool>,
}

/// The result of a survey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Survey {
    /// The connections.
    pub open: usize,
    /// Connections with a request in progress or about to arrive, as far as can be determined.
    pub work: usize,
    /// Those of them whose timestamps leave this open, while the kernel may know.
    pub uncertain: usize,
    /// Connections with a request that no process has begun to read.
    pub waiting: usize,
    /// Other connections without a request in progress on which data of the client was dropped because it is held back:
    /// see [`Census::hold_back`]. The client's kernel sends it again.
    pub dropped: usize,
    /// Connections where the rest of a request may be held back: see [`Census::hold_back`].
    pub stuck: usize,
    /// Connections without work at this moment, on which a response may continue after a pause.
    pub paused: usize,
    /// Such connections long after their last request.
    pub streams: usize,
    /// How long no data has been read or written on any connection.
    pub still: Duration,
    /// Age of the oldest request in progress, in milliseconds.
    pub longest_ms: Option<u64>,
    /// The same without those of which the timestamps leave open whether they are answered.
    pub longest_sure_ms: Option<u64>,
    /// The first, including requests that are unread or about to arrive.
    pub oldest_ms: Option<u64>,
}

/// A request in progress, as far as can be determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongRequest {
    /// Its client; `None` at a unix socket.
    pub client: Option<SocketAddr>,
    /// How long ago it began, at most.
    pub age: Duration,
    /// How long no data has been read or written on its connection.
    pub still: Duration,
}

/// A connection in a survey.
#[derive(Debug)]
struct TrackedConnection {
    key: Key,
    holder: HeldSocket,
    work: ConnectionWork,
}

/// A connection used within this time counts as in use.
const IN_USE: Duration = Duration::from_millis(30);

/// How often a client that sends a request in pieces is waited for. A client that pipelines requests would always have
/// another one.
const SPARED: u8 = 3;

/// A connection and its holder.
type HeldConnection = (Key, HeldSocket);

impl Census {
    /// Creates a census for the local addresses of these listeners.
    pub fn new(addresses: &[ListenAddress]) -> io::Result<Census> {
        let diag = Diag::open()?;
        let (accounts, held_back) = (HashMap::new(), HashMap::new());
        Ok(Census {
            addresses: addresses.to_vec(),
            diag,
            last: None,
            tracked: accounts,
            held_back,
            spared: HashMap::new(),
            may_ask: may_ask(),
            asks: false,
            pause: Duration::ZERO,
            inner: HashMap::new(),
        })
    }

    /// Sets how long a response that is written in parts may pause.
    pub fn with_pauses(self, pause: Duration) -> Census {
        Census { pause, ..self }
    }

    /// Leaves unsure states to [`Census::survey_of_stopped`], if that can ask.
    pub fn asking(self) -> Census {
        Census { asks: true, ..self }
    }

    /// Whether no process of the tree has a connection to one of the addresses. For a tree that gets no new
    /// connections.
    pub fn is_empty(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<bool> {
        if self.still_there()?.is_some() {
            return Ok(false);
        }
        // One pass can miss a socket or process while others disappear, so nothing must be found twice.
        for _ in 0..2 {
            self.last = self.find(&tree())?;
            if self.last.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The current connections of the tree. Compare two results to find new ones.
    pub(crate) fn accepted(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<HashSet<Cookie>> {
        let held = held_by(self.list(false)?, &tree())?;
        Ok(held.into_iter().map(|(found, _)| found.key.cookie()).collect())
    }

    /// Examines all connections of the tree. Repeated surveys at short intervals yield more than a single one: see
    /// `work.rs`.
    pub fn survey(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<Survey> {
        let found = held_by(self.list(true)?, &tree())?;
        let found = self.outer(found, &tree)?;
        let (now, asks) = (Instant::now(), self.asks && self.may_ask);
        let mut before = std::mem::take(&mut self.tracked);
        for (found, holder) in found {
            let cookie = found.key.cookie();
            let known = before.remove(&cookie).map(|known| known.work);
            let account = ConnectionWork::next(known.as_ref(), &found, asks, now);
            self.tracked.insert(cookie, TrackedConnection { key: found.key, holder, work: account });
        }
        // One pass can miss a socket while others disappear.
        for (cookie, known) in before.into_iter().filter(|(_, known)| known.holder.is_held()) {
            let found = self.diag.look_up(&known.key, true)?;
            if let Some(found) =
                found.filter(|found| found.inode == known.holder.inode && found.is_connection())
            {
                let account = ConnectionWork::next(Some(&known.work), &found, asks, now);
                self.tracked.insert(cookie, TrackedConnection { work: account, ..known });
            }
        }
        Ok(self.summary(now))
    }

    /// A survey of a tree in which all processes are stopped. Where the timestamps do not show what came last on a
    /// connection, it asks the kernel, if that answers (CAP_NET_ADMIN).
    pub fn survey_of_stopped(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<Survey> {
        self.survey(tree)?;
        for known in self.tracked.values_mut().filter(|known| known.work.is_open_question()) {
            if !self.may_ask {
                break;
            }
            let asked =
                known.holder.duplicate().and_then(|socket| socket.map(ends_with_acknowledgment).transpose());
            match asked {
                Ok(Some(is_answered)) => known.work.settle(is_answered),
                Ok(None) => {}
                Err(_) => self.may_ask = false,
            }
        }
        Ok(self.summary(Instant::now()))
    }

    /// Whether [`Census::survey_of_stopped`] can ask the kernel.
    pub fn may_ask(&self) -> bool {
        self.may_ask
    }

    /// Holds back what clients send next on used connections, so that the tree gets no new requests: on `all` of them,
    /// or only on those in use now. Lets through what a process needs to finish a request. Call it only while the tree
    /// is stopped, and repeat it until it returns that everything is held back.
    pub fn hold_back(&mut self, all: bool) -> io::Result<bool> {
        let now = Instant::now();
        let is_used = |account: &ConnectionWork| {
            account.is_work() || account.waits() || now.saturating_duration_since(account.moved_at) < IN_USE
        };
        let mut is_all = all;
        for (cookie, TrackedConnection { holder, work: account, .. }) in
            self.tracked.iter().filter(|(_, known)| matches!(known.key, Key::Tcp { .. }))
        {
            match self.held_back.get(cookie) {
                Some(gate) if gate.is_in_the_way(account, now) && self.may_be_spared(cookie) => {
                    gate.open(holder)?;
                    self.held_back.remove(cookie);
                    let times = self.spared.get(cookie).map_or(0, |(times, _)| *times);
                    self.spared.insert(*cookie, (times + 1, now));
                    is_all = false;
                }
                Some(_) => {}
                // The rest of its request is in transit.
                None if account.is_begun() && !self.has_come(cookie, account, now) => is_all = false,
                None if !all && !is_used(account) => {}
                None if account.may_be_held_back() => {
                    self.held_back.extend(InputGate::close(holder, account)?.map(|gate| (*cookie, gate)));
                }
                None => is_all = false,
            }
        }
        Ok(is_all)
    }

    /// Whether [`Census::hold_back`] could hold back the connections of the last survey: those of a unix socket cannot be.
    pub fn may_hold_back(&self) -> bool {
        self.tracked.values().all(|known| {
            matches!(known.key, Key::Tcp { .. }) && InputGate::may_be_closed(&known.holder, self.may_ask)
        })
    }

    /// The requests in progress at the last survey that are at least this old.
    pub fn long_requests(&self, at_least: Duration) -> Vec<LongRequest> {
        let now = Instant::now();
        let begun = self.tracked.values().filter(|known| known.work.is_begun());
        let all = begun.map(|TrackedConnection { key, work: account, .. }| LongRequest {
            client: key.peer(),
            age: account.age(now),
            still: now.saturating_duration_since(account.moved_at),
        });
        all.filter(|request| request.age >= at_least).collect()
    }

    /// Releases everything that is held back.
    pub fn release_held_back(&mut self) {
        for (cookie, gate) in std::mem::take(&mut self.held_back) {
            if let Some(known) = self.tracked.get(&cookie) {
                // Failure means that the connection or its process is gone.
                let _ = gate.open(&known.holder);
            }
        }
    }

    fn may_be_spared(&self, cookie: &Cookie) -> bool {
        self.spared.get(cookie).is_none_or(|(times, _)| *times < SPARED)
    }

    /// Whether the rest of a released request has arrived, as far as can be determined.
    fn has_come(&self, cookie: &Cookie, account: &ConnectionWork, now: Instant) -> bool {
        let has_come =
            |(_, since): &(u8, Instant)| account.moved_at > *since && account.is_begun_for(STARVED, now);
        self.spared.get(cookie).is_none_or(has_come)
    }

    fn summary(&self, now: Instant) -> Survey {
        let mut survey = Survey { still: Duration::MAX, ..Survey::default() };
        for (cookie, TrackedConnection { work: account, .. }) in &self.tracked {
            let gate = self.held_back.get(cookie);
            let is_counted = account.waits() || account.is_work() && !account.is_open_question();
            survey.dropped += usize::from(!is_counted && gate.is_some_and(|gate| gate.has_dropped(account)));
            let gate = gate.filter(|_| self.may_be_spared(cookie));
            survey.stuck += usize::from(gate.is_some_and(|gate| gate.is_in_the_way(account, now)));
            survey.open += 1;
            survey.work += usize::from(account.is_work());
            survey.uncertain += usize::from(account.is_open_question());
            survey.waiting += usize::from(account.waits());
            survey.paused += usize::from(account.answers(now, self.pause));
            survey.streams += usize::from(account.streams(now, self.pause));
            survey.still = survey.still.min(now.saturating_duration_since(account.moved_at));
            let age_ms = account.age(now).as_millis() as u64;
            if account.is_begun() {
                survey.longest_ms = survey.longest_ms.max(Some(age_ms));
            }
            if account.is_begun() && !account.is_open_question() {
                survey.longest_sure_ms = survey.longest_sure_ms.max(Some(age_ms));
            }
            if account.is_work() || account.waits() {
                survey.oldest_ms = survey.oldest_ms.max(Some(age_ms));
            }
        }
        survey
    }

    /// All accepted connections at the addresses, whichever process holds them.
    pub(super) fn list(&mut self, with_history: bool) -> io::Result<Vec<SocketInfo>> {
        let mut all = Vec::new();
        self.each(with_history, |found| {
            all.push(found);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// The connection of the last `false`, if it is still held.
    fn still_there(&mut self) -> io::Result<Option<SocketInfo>> {
        let Some((key, holder)) = &self.last else { return Ok(None) };
        let found = if holder.is_held() { self.diag.look_up(key, false)? } else { None };
        Ok(found.filter(|found| found.inode == holder.inode && found.is_connection()))
    }

    /// Finds one connection that a process of the tree holds.
    fn find(&mut self, tree: &[u32]) -> io::Result<Option<HeldConnection>> {
        let mut descriptors = descriptors_of(tree);
        let (mut sockets, mut holders) = (HashMap::new(), HashMap::new());
        let mut met = None;
        // Reads one more descriptor per socket: if the tree holds most of the sockets, a match appears soon.
        self.each(false, |found| {
            let holder = descriptors.next().and_then(Result::ok);
            holders.extend(holder.map(|holder| (holder.inode, holder)));
            sockets.insert(found.inode, found.key);
            let inodes = [Some(found.inode), holder.map(|holder| holder.inode)];
            met = inodes
                .into_iter()
                .flatten()
                .find(|inode| sockets.contains_key(inode) && holders.contains_key(inode));
            if met.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(inode) = met {
            return Ok(sockets.remove(&inode).zip(holders.remove(&inode)));
        }
        if sockets.is_empty() {
            return Ok(None);
        }
        // A process may have received a socket after its descriptors were read.
        for holder in descriptors_of(tree) {
            let holder = holder?;
            if let Some(key) = sockets.remove(&holder.inode) {
                return Ok(Some((key, holder)));
            }
        }
        Ok(None)
    }

    /// Passes each accepted connection at the addresses to `each`, until it breaks.
    fn each(&mut self, history: bool, mut each: impl FnMut(SocketInfo) -> ControlFlow<()>) -> io::Result<()> {
        let addresses = &self.addresses;
        let mut each = |found: SocketInfo| {
            let is_wanted = found.inode != 0 && addresses.iter().any(|address| is_at(&found, address));
            if is_wanted { each(found) } else { ControlFlow::Continue(()) }
        };
        let ports: BTreeSet<(u8, u16)> = addresses.iter().filter_map(family_and_port).collect();
        for (family, port) in ports {
            let asked = self.diag.tcp(family, port, history, &mut each);
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

/// The sockets that a process of the tree holds, each with one holder.
pub(super) fn held_by(found: Vec<SocketInfo>, tree: &[u32]) -> io::Result<Vec<(SocketInfo, HeldSocket)>> {
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let holders = descriptors_of(tree).map(|held| held.map(|held| (held.inode, held)));
    let holders = holders.collect::<io::Result<HashMap<_, _>>>()?;
    Ok(found.into_iter().filter_map(|found| holders.get(&found.inode).map(|held| (found, *held))).collect())
}

/// All sockets of the processes.
fn descriptors_of(tree: &[u32]) -> impl Iterator<Item = io::Result<HeldSocket>> {
    tree.iter().flat_map(|pid| {
        let (sockets, error) = match sockets_of(*pid) {
            Ok(sockets) => (Some(sockets), None),
            Err(error) => (None, Some(Err(error))),
        };
        sockets.into_iter().flatten().map(Ok).chain(error)
    })
}

fn cannot(kind: &str, error: io::Error) -> io::Error {
    let why = "is the kernel built with INET_TCP_DIAG and UNIX_DIAG?";
    io::Error::new(error.kind(), format!("cannot ask the kernel for the {kind} connections: {error}; {why}"))
}
