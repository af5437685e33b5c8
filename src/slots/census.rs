//! Who still has connections to the addresses of a service, and whether requests are under way on them.
//!
//! A connection is a TCP socket at one of the addresses, or a unix socket accepted from one of the paths, that a
//! process of a tree has a descriptor of. That the client has ended its side changes nothing: it still waits for its
//! answer. What waits in an accept queue belongs to nobody.

mod address;
mod inner;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

pub(super) use address::{family_and_port, is_at};

use super::diag::{ANY_COOKIE, Cookie, Diag, Found, Key};
use super::gate::{Gate, STARVED};
use super::held_clock::HeldClock;
use super::work::Account;
use crate::config::ListenAddress;
use crate::sys::held::{HeldSocket, sockets_of};
use crate::sys::tcp::{ends_with_acknowledgment, may_ask};

/// Counts the connections of a process tree at some addresses.
///
/// While a process is waited for, one connection that it still has is enough to know. So a look for any ends at the first
/// one, and the next look begins with that one: it costs the same however many others there are. A survey looks at all.
#[derive(Debug)]
pub struct Census {
    addresses: Vec<ListenAddress>,
    diag: Diag,
    /// The connection for which the last look said no.
    last: Option<Held>,
    /// What the last survey found.
    accounts: HashMap<Cookie, Known>,
    /// The connections of which what comes next is held back.
    held_back: HashMap<Cookie, Gate>,
    /// The connections that were let in, as what was held back was the rest of a request: how often, and when last.
    spared: HashMap<Cookie, (u8, Instant)>,
    /// Whether the kernel tells what came last on a connection.
    may_ask: bool,
    /// How long an answer may pause.
    pause: Duration,
    /// The time in which the tree could do something.
    clock: HeldClock,
    /// Which connections a process of the tree has with itself.
    inner: HashMap<Cookie, bool>,
}

/// How far a connection has come at the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// For the server, its handshake is not over. A listener with `TCP_DEFER_ACCEPT` ends it when data comes.
    Handshake,
    /// It waits in the queue of the listener.
    Queued,
    /// A process has accepted it, and still has it.
    Accepted,
    /// The server's end is closed.
    Gone,
}

/// What a look at all connections found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Survey {
    /// The connections.
    pub open: usize,
    /// Those on which a request is under way or is about to come, as far as that can be told.
    pub work: usize,
    /// Those of them of which the times do not tell whether there is one, and the kernel may.
    pub unsure: usize,
    /// Those on which a request waits that nobody has begun.
    pub waiting: usize,
    /// Those on which the rest of a request may be held back: see [`Census::hold_back`].
    pub stuck: usize,
    /// Those on which nothing is under way at this moment, and on which an answer may go on after a pause.
    pub paused: usize,
    /// Those of which the same is true long after the last request.
    pub streams: usize,
    /// For how long nothing has been read or written on any.
    pub still: Duration,
    /// For how long the oldest request is under way that was begun, in milliseconds.
    pub longest_ms: Option<u64>,
    /// The same with those that wait, or are about to come.
    pub oldest_ms: Option<u64>,
}

/// A connection in a survey.
#[derive(Debug)]
struct Known {
    key: Key,
    holder: HeldSocket,
    account: Account,
}

/// A connection that was used within so long is in use.
const IN_USE: Duration = Duration::from_millis(30);

/// A client that sends its request in pieces is waited for so often. One that sends several requests at once has always another one.
const SPARED: u8 = 3;

/// A connection, and who has it.
type Held = (Key, HeldSocket);

impl Census {
    /// For the local addresses of these listeners.
    pub fn new(addresses: &[ListenAddress]) -> io::Result<Census> {
        let diag = Diag::open()?;
        let (accounts, held_back) = (HashMap::new(), HashMap::new());
        Ok(Census {
            addresses: addresses.to_vec(),
            diag,
            last: None,
            accounts,
            held_back,
            spared: HashMap::new(),
            may_ask: may_ask(),
            pause: Duration::ZERO,
            clock: HeldClock::default(),
            inner: HashMap::new(),
        })
    }

    /// The same, where an answer that is written in parts may pause for so long between them.
    pub fn with_pauses(self, pause: Duration) -> Census {
        Census { pause, ..self }
    }

    /// Nothing of the tree runs from now on, until [`Census::resume_clock`]: that time does not count.
    pub fn pause_clock(&mut self) {
        self.clock.stop(Instant::now());
    }

    /// The tree goes on.
    pub fn resume_clock(&mut self) {
        self.clock.go_on(Instant::now());
    }

    /// Whether no process of the tree has a connection to one of the addresses any more. Made for a tree that gets no new ones.
    pub fn is_empty(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<bool> {
        if self.still_there()?.is_some() {
            return Ok(false);
        }
        // One look can miss a socket or a process while others vanish: nothing has to be seen twice.
        for _ in 0..2 {
            self.last = self.find(&tree())?;
            if self.last.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The connections that the tree has now. One that it has not had before was accepted meanwhile.
    pub(crate) fn accepted(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<HashSet<Cookie>> {
        let held = held_by(self.look(false)?, &tree())?;
        Ok(held.into_iter().map(|(found, _)| found.key.cookie()).collect())
    }

    /// Looks at all connections of the tree. Looks that follow each other soon tell more than one alone: see `work.rs`.
    pub fn survey(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<Survey> {
        let found = held_by(self.look(true)?, &tree())?;
        let found = self.outer(found, &tree)?;
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.accounts);
        for (found, holder) in found {
            let cookie = found.key.cookie();
            let known = before.remove(&cookie).map(|known| known.account);
            let account = Account::next(known.as_ref(), &found, now, &self.clock);
            self.accounts.insert(cookie, Known { key: found.key, holder, account });
        }
        // One look can miss a socket while others vanish.
        for (cookie, known) in before.into_iter().filter(|(_, known)| known.holder.is_held()) {
            let found = self.diag.look_up(&known.key, true)?;
            if let Some(found) =
                found.filter(|found| found.inode == known.holder.inode && found.is_connection())
            {
                let account = Account::next(Some(&known.account), &found, now, &self.clock);
                self.accounts.insert(cookie, Known { account, ..known });
            }
        }
        Ok(self.summary(self.clock.at(now)))
    }

    /// The same of a tree of which nothing runs. Where the times do not tell what came last on a connection, the kernel is
    /// asked, if it answers (CAP_NET_ADMIN).
    pub fn survey_of_stopped(&mut self, tree: impl Fn() -> Vec<u32>) -> io::Result<Survey> {
        self.survey(tree)?;
        for known in self.accounts.values_mut().filter(|known| known.account.is_open_question()) {
            if !self.may_ask {
                break;
            }
            let asked =
                known.holder.duplicate().and_then(|socket| socket.map(ends_with_acknowledgment).transpose());
            match asked {
                Ok(Some(is_answered)) => known.account.settle(is_answered),
                Ok(None) => {}
                Err(_) => self.may_ask = false,
            }
        }
        Ok(self.summary(self.clock.at(Instant::now())))
    }

    /// Whether [`Census::survey_of_stopped`] can tell what times do not.
    pub fn may_ask(&self) -> bool {
        self.may_ask
    }

    /// Holds back what clients send next on connections that they have used before, so that the tree gets nothing new to
    /// do on them: of `all`, or of those that are in use at this moment. Call it again for those that could not be held back
    /// yet, and while nothing of the tree runs. What a process needs to finish what it has begun is let in. Gives whether
    /// everything is held back.
    pub fn hold_back(&mut self, all: bool) -> io::Result<bool> {
        let now = self.clock.at(Instant::now());
        let is_used = |account: &Account| {
            account.is_work() || account.waits() || now.saturating_duration_since(account.moved) < IN_USE
        };
        let mut is_all = all;
        for (cookie, Known { holder, account, .. }) in
            self.accounts.iter().filter(|(_, known)| matches!(known.key, Key::Tcp { .. }))
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
                // Its rest is on the way.
                None if account.is_begun() && !self.has_come(cookie, account, now) => is_all = false,
                None if !all && !is_used(account) => {}
                None if account.may_be_held_back() => {
                    self.held_back.extend(Gate::close(holder, account)?.map(|gate| (*cookie, gate)));
                }
                None => is_all = false,
            }
        }
        Ok(is_all)
    }

    /// Lets in what was held back.
    pub fn let_in(&mut self) {
        for (cookie, gate) in std::mem::take(&mut self.held_back) {
            if let Some(known) = self.accounts.get(&cookie) {
                // It is gone, or its process is: nothing is to be let in.
                let _ = gate.open(&known.holder);
            }
        }
    }

    fn may_be_spared(&self, cookie: &Cookie) -> bool {
        self.spared.get(cookie).is_none_or(|(times, _)| *times < SPARED)
    }

    /// Whether the rest of a request that was let in has come, as far as that can be told.
    fn has_come(&self, cookie: &Cookie, account: &Account, now: Instant) -> bool {
        let has_come =
            |(_, since): &(u8, Instant)| account.moved > *since && account.is_begun_for(STARVED, now);
        self.spared.get(cookie).is_none_or(has_come)
    }

    fn summary(&self, now: Instant) -> Survey {
        let mut survey = Survey { still: Duration::MAX, ..Survey::default() };
        for (cookie, Known { account, .. }) in &self.accounts {
            let gate = self.held_back.get(cookie).filter(|_| self.may_be_spared(cookie));
            survey.stuck += usize::from(gate.is_some_and(|gate| gate.is_in_the_way(account, now)));
            survey.open += 1;
            survey.work += usize::from(account.is_work());
            survey.unsure += usize::from(account.is_open_question());
            survey.waiting += usize::from(account.waits());
            survey.paused += usize::from(account.answers(now, self.pause));
            survey.streams += usize::from(account.streams(now, self.pause));
            survey.still = survey.still.min(now.saturating_duration_since(account.moved));
            let age_ms = account.age(now).as_millis() as u64;
            if account.is_begun() {
                survey.longest_ms = survey.longest_ms.max(Some(age_ms));
            }
            if account.is_work() || account.waits() {
                survey.oldest_ms = survey.oldest_ms.max(Some(age_ms));
            }
        }
        survey
    }

    /// Whether the connection of a client at this local address (seen from the client: peer) has been accepted by a
    /// process that still has it.
    pub fn is_accepted(client_local: SocketAddr, server: SocketAddr) -> io::Result<bool> {
        Ok(Self::stage(client_local, server)? == Stage::Accepted)
    }

    /// How far the connection of such a client has come at the server.
    pub fn stage(client_local: SocketAddr, server: SocketAddr) -> io::Result<Stage> {
        let found = Diag::open()?.look_up(&Key::tcp(server, client_local), false)?;
        // Where there is no such connection, the kernel tells of the listener.
        Ok(match found.filter(|found| !found.listens()) {
            None => Stage::Gone,
            Some(found) if found.inode != 0 => Stage::Accepted,
            Some(found) if found.is_handshake() => Stage::Handshake,
            Some(found) if found.is_connection() => Stage::Queued,
            Some(_) => Stage::Gone,
        })
    }

    /// The same of a connection over a unix socket, by the inode of the client's end.
    pub fn stage_of_unix(client: u32) -> io::Result<Stage> {
        let own = Diag::open()?.look_up(&Key::Unix { inode: client, cookie: ANY_COOKIE }, false)?;
        Ok(match own.and_then(|own| own.other_inode) {
            None => Stage::Gone,
            Some(0) => Stage::Queued,
            Some(_) => Stage::Accepted,
        })
    }

    /// Whether a process has accepted the connection of such a client, and has read all that it sent.
    pub fn has_read(client_local: SocketAddr, server: SocketAddr) -> io::Result<bool> {
        let found = Diag::open()?.look_up(&Key::tcp(server, client_local), false)?;
        Ok(found.is_some_and(|found| found.inode != 0 && found.is_connection() && found.unread == 0))
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
    fn still_there(&mut self) -> io::Result<Option<Found>> {
        let Some((key, holder)) = &self.last else { return Ok(None) };
        let found = if holder.is_held() { self.diag.look_up(key, false)? } else { None };
        Ok(found.filter(|found| found.inode == holder.inode && found.is_connection()))
    }

    /// A connection that a process of the tree has.
    fn find(&mut self, tree: &[u32]) -> io::Result<Option<Held>> {
        let mut descriptors = descriptors_of(tree);
        let (mut sockets, mut holders) = (HashMap::new(), HashMap::new());
        let mut met = None;
        // With each socket one more descriptor: if the tree has most of the sockets, two that belong together are met soon.
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

fn cannot(kind: &str, error: io::Error) -> io::Error {
    let why = "is the kernel built with INET_TCP_DIAG and UNIX_DIAG?";
    io::Error::new(error.kind(), format!("cannot ask the kernel for the {kind} connections: {error}; {why}"))
}
