//! The listeners of a service, and the slot from which each process accepts.

mod conflicts;
mod datagrams;
mod ended;
mod paths;
mod service;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use handoff_protocol::ids::ListenerName;

pub(super) use upkeep::Upkeep;

use super::keeper::KeeperHandle;
use crate::config::{self, ListenAddress};
use crate::slots::steering_program::WHOLE;
use crate::slots::{
    Access, Group, Handshakes, ProbeRoute, SlotError, SlotId, lengthen_queue, slot_by_name, stop_listening,
};
use crate::sys::socket::cookie_of;
use crate::sys::{held::is_among, listens::listens};

/// The listeners of a service. A slot has one listener per address, and a number that is never reused.
#[derive(Debug)]
pub(super) struct Listening {
    names: Vec<ListenerName>,
    groups: Vec<Group>,
    slots: BTreeMap<u64, Vec<SlotId>>,
    /// The slot that gets new connections.
    steered: u64,
    /// The slot that gets a share of them.
    shared: Option<u64>,
    /// The handshakes that were in progress at the last switch.
    handshakes: Handshakes,
    /// A slot, and how many datagrams it had lost for lack of room, per address, when new ones were steered
    /// elsewhere.
    without_room: (u64, Vec<u32>),
    /// Whether all processes share both slots of each address, and steer by themselves.
    is_paired: bool,
    /// Whether no process has served at them since they were opened.
    is_new: bool,
    next: u64,
}

/// The result of [`Listening::admit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// The listeners belong to this slot.
    Known(u64),
    /// They form a slot that was no longer known.
    New(u64),
}

/// The slot of a process whose listeners are already closed.
const NO_SLOT: u64 = u64::MAX;

/// The first slot of an address.
const FIRST: SlotId = SlotId(1);

/// The slots of an address that all processes share.
const PAIR: [SlotId; 2] = [FIRST, SlotId(2)];

/// The mode of a unix socket until the program binds it.
const UNTIL_BOUND: u32 = 0o600;

/// A handshake that takes longer is not waited for. This allows for two SYN+ACK retransmits on a slow path.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// How long a process has to answer a datagram, unless the service file sets it (`answer_grace`): nothing shows
/// whether a datagram that was read has been answered.
pub(super) const ANSWER_MS: u64 = 1_000;

impl Listening {
    /// Binds all addresses, or none.
    fn open(
        listeners: &[config::Listener],
        is_paired: bool,
        is_bound_by_program: bool,
    ) -> Result<Self, SlotError> {
        let mut groups = Vec::with_capacity(listeners.len());
        let open = |listener| {
            let mut group = open_group(listener, is_bound_by_program)?;
            match is_paired.then(|| group.add_slot()) {
                Some(Err(error)) => {
                    group.close();
                    Err(error)
                }
                Some(Ok(_)) | None => Ok(group),
            }
        };
        for listener in listeners {
            match open(listener) {
                Ok(group) => groups.push(group),
                Err(error) => {
                    groups.into_iter().for_each(Group::close);
                    return Err(error);
                }
            }
        }
        let names = listeners.iter().map(|listener| listener.name.clone()).collect();
        let listening = Self::of(names, groups, if is_paired { &PAIR } else { &PAIR[..1] }, FIRST, is_paired);
        Ok(Self { is_new: true, ..listening })
    }

    /// Restores the listeners of an earlier daemon from what the keeper holds: every slot of which it holds all
    /// listeners. `None` if there is none.
    fn restore(
        listeners: &[config::Listener],
        service: &str,
        held: Vec<(String, OwnedFd)>,
        newest: bool,
        is_paired: bool,
    ) -> Result<Option<Self>, SlotError> {
        let mut by_name: Vec<BTreeMap<SlotId, OwnedFd>> = listeners.iter().map(|_| BTreeMap::new()).collect();
        for (key, fd) in held {
            let Some((name, slot)) = parse_key(service, &key) else { continue };
            let known = listeners.iter().position(|listener| listener.name.as_str() == name);
            if let Some(at) = known {
                by_name[at].insert(slot, fd);
            }
        }
        let Some(first) = by_name.first() else { return Ok(None) };
        let is_whole = |slot: &SlotId| by_name.iter().all(|slots| slots.contains_key(slot));
        let listens = |slot: &SlotId| by_name.iter().all(|slots| listens(&slots[slot]) == Ok(true));
        let mut whole: Vec<SlotId> = first.keys().copied().filter(is_whole).collect();
        // A slot that a program has shut down is revived when a process is to get it. If another slot listens, this
        // one was being retired.
        let is_dead = !whole.iter().any(listens);
        whole.retain(|slot| is_paired || is_dead || listens(slot));
        let steered = if newest && !is_paired { whole.last() } else { whole.first() };
        let Some(steered) = steered.copied() else { return Ok(None) };
        if is_paired && whole != PAIR {
            return Ok(None);
        }
        let mut groups = Vec::with_capacity(listeners.len());
        for (listener, slots) in listeners.iter().zip(by_name) {
            // The kernel counts them in the order in which they began to listen, and a later one has never left
            // before an earlier one that still exists.
            let (members, torn): (Vec<_>, Vec<_>) =
                slots.into_iter().partition(|(slot, _)| whole.contains(slot));
            torn.iter().for_each(|(_, fd)| stop_listening(fd));
            groups.push(match is_paired || is_dead {
                true => Group::hold(&listener.address, members, steered),
                false => Group::restore(&listener.address, members, steered)?,
            });
        }
        let names = listeners.iter().map(|listener| listener.name.clone()).collect();
        Ok(Some(Self::of(names, groups, &whole, steered, is_paired)))
    }

    /// Builds the listeners from what a process has, if nothing else holds any.
    pub(super) fn from_service(
        listeners: &[config::Listener],
        mut offered: Vec<(ListenerName, OwnedFd)>,
        is_paired: bool,
    ) -> Result<Self, SlotError> {
        let slot = offered.iter().find_map(|(_, fd)| slot_by_name(fd)).unwrap_or(FIRST);
        let slots = if is_paired { PAIR.to_vec() } else { vec![slot] };
        let (mut names, mut groups) = (Vec::new(), Vec::new());
        for listener in listeners {
            let mut members = Vec::new();
            for slot in &slots {
                // The first listener with a name belongs to the first slot.
                if let Some(at) = offered.iter().position(|(name, _)| *name == listener.name) {
                    members.push((*slot, offered.remove(at).1));
                }
            }
            groups.push(match (members.len() == slots.len(), is_paired) {
                (true, true) => Group::hold(&listener.address, members, FIRST),
                (true, false) => Group::restore(&listener.address, members, slot)?,
                // The service file did not have it when the process was started.
                (false, _) => Group::open(&listener.address)?,
            });
            names.push(listener.name.clone());
        }
        Ok(Self::of(names, groups, &slots, slots[0], is_paired))
    }

    /// A slot has the same id in all groups. Its number here is one less.
    fn of(
        names: Vec<ListenerName>,
        groups: Vec<Group>,
        slots: &[SlotId],
        steered: SlotId,
        is_paired: bool,
    ) -> Self {
        let slots: BTreeMap<u64, Vec<SlotId>> =
            slots.iter().map(|slot| (number(*slot), vec![*slot; groups.len()])).collect();
        let next = slots.last_key_value().map_or(0, |(last, _)| last + 1);
        let steered = number(steered);
        Self {
            names,
            groups,
            slots,
            steered,
            shared: None,
            handshakes: Handshakes::at_switch(),
            without_room: (NO_SLOT, Vec::new()),
            is_paired,
            is_new: false,
            next,
        }
    }

    /// All slots, oldest first.
    pub(super) fn slots(&self) -> Vec<u64> {
        self.slots.keys().copied().collect()
    }

    /// The slot that gets new connections.
    pub(super) fn steered(&self) -> u64 {
        self.steered
    }

    /// The slot to which the listeners of a process belong. If the slot is unknown, because the processes that knew
    /// it are gone, it is added: in front of the others if its process is the oldest.
    pub(super) fn admit(&mut self, fds: Vec<OwnedFd>, oldest: bool) -> Result<Admission, SlotError> {
        let Some(cookie) = fds.first().and_then(|fd| cookie_of(fd).ok()) else {
            return Ok(Admission::Known(self.steered));
        };
        let known = self.slots.keys().copied().find(|slot| {
            self.fds(*slot).first().is_some_and(|fd| cookie_of(fd).is_ok_and(|other| other == cookie))
        });
        if let Some(slot) = known {
            return Ok(Admission::Known(slot));
        }
        if fds.len() != self.groups.len() || !fds.iter().all(|fd| listens(fd) == Ok(true)) {
            return Ok(Admission::Known(NO_SLOT));
        }
        let slot = match (fds.iter().find_map(slot_by_name), self.slots.first_key_value()) {
            (Some(slot), _) => slot,
            (None, Some((first, _))) if oldest && *first > 0 => SlotId(*first),
            (None, _) => SlotId(self.next + 1),
        };
        for (group, fd) in self.groups.iter_mut().zip(fds) {
            group.admit(slot, fd, oldest)?;
        }
        self.slots.insert(number(slot), vec![slot; self.groups.len()]);
        self.next = self.next.max(number(slot) + 1);
        Ok(Admission::New(number(slot)))
    }

    /// The slot whose first listener is among these sockets.
    pub(super) fn slot_among(&self, sockets: &BTreeSet<u32>) -> Option<u64> {
        let is_there = |slot: &u64| self.fds(*slot).first().is_some_and(|fd| is_among(fd, sockets));
        self.slots.keys().copied().find(is_there)
    }

    /// The names of what a process gets; see [`Listening::given`].
    pub(super) fn names(&self) -> Vec<ListenerName> {
        if self.is_paired { [&self.names[..], &self.names[..]].concat() } else { self.names.clone() }
    }

    /// What a process of this slot gets: its listeners, or, for a pair, both of each address, those of the first side
    /// first.
    pub(super) fn given(&self, slot: u64) -> Vec<BorrowedFd<'_>> {
        match self.is_paired {
            true => self.slots.keys().flat_map(|slot| self.fds(*slot)).collect(),
            false => self.fds(slot),
        }
    }

    /// The descriptors of a slot, in the order of the names.
    pub(super) fn fds(&self, slot: u64) -> Vec<BorrowedFd<'_>> {
        let ids = self.slots.get(&slot).into_iter().flatten();
        self.groups.iter().zip(ids).filter_map(|(group, id)| group.fd(*id)).collect()
    }

    /// Restores the queue lengths of a slot: a process that got its listeners may have shortened them. For a pair the
    /// shim does this, because it ends and revives those slots.
    pub(super) fn lengthen_queues(&self, slot: u64) {
        if !self.is_paired {
            self.fds(slot).into_iter().for_each(lengthen_queue);
        }
    }

    /// The listeners for which the program's first bind decides which users may connect.
    pub(super) fn first_binds(&self, listeners: &[config::Listener]) -> Vec<ListenerName> {
        let unsaid = listeners.iter().filter(|listener| listener.mode.is_none() && self.is_new);
        unsaid.map(|listener| listener.name.clone()).collect()
    }

    /// Records that a process serves at them.
    pub(super) fn serve(&mut self) {
        self.is_new = false;
    }

    /// Adds a slot that gets no connections until it is steered to.
    fn add(&mut self) -> Result<u64, SlotError> {
        let mut ids = Vec::with_capacity(self.groups.len());
        for at in 0..self.groups.len() {
            match self.groups[at].add_slot() {
                Ok(id) => ids.push(id),
                Err(error) => {
                    for (group, id) in self.groups.iter_mut().zip(ids) {
                        group.retire(id)?;
                    }
                    return Err(error);
                }
            }
        }
        let slot = self.next;
        self.next += 1;
        self.slots.insert(slot, ids);
        Ok(slot)
    }

    pub(super) fn steer(&mut self, slot: u64) -> Result<(), SlotError> {
        if self.is_paired {
            return Ok(());
        }
        if slot != self.steered {
            self.note_without_room(self.steered);
        }
        let Some(ids) = self.slots.get(&slot) else { return Ok(()) };
        // A group that cannot be steered must not keep the others from the process that serves from now on.
        let steered = self.groups.iter_mut().zip(ids).map(|(group, id)| group.steer_to(*id));
        steered.fold(Ok(()), Result::and)?;
        (self.steered, self.shared) = (slot, None);
        self.handshakes = Handshakes::at_switch();
        Ok(())
    }

    /// Sends `permille` of 1,000 new connections to `slot`, and the others where they go now. Unix sockets have no
    /// shares: theirs go there with the next [`Listening::steer`], which ends the share.
    pub(super) fn steer_share(&mut self, slot: u64, permille: u16) -> Result<(), SlotError> {
        let Some(ids) = self.slots.get(&slot).filter(|_| !self.is_paired) else { return Ok(()) };
        self.shared = Some(slot);
        for (group, id) in self.groups.iter_mut().zip(ids) {
            if !matches!(group.address(), ListenAddress::Unix(_)) {
                group.steer_share(*id, u32::from(permille) * (WHOLE / 1_000))?;
            }
        }
        Ok(())
    }

    /// A route to the listener of a slot that no client can take. If processes share their slots, the route of all
    /// clients.
    pub(super) fn route_to(&mut self, listener: &str, slot: u64) -> io::Result<ProbeRoute> {
        let Some(at) = self.names.iter().position(|name| name.as_str() == listener) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such listener"));
        };
        let id = self.slots.get(&slot).and_then(|ids| ids.get(at));
        let group = &mut self.groups[at];
        let route = match id {
            Some(id) if *id != group.steered() && !self.is_paired => group.probe(*id),
            _ => group.probe_in_place(),
        };
        route.map_err(io::Error::other)
    }

    /// Whether the listener of a slot still listens. If processes share their slots, whether any of them does.
    pub(super) fn is_open(&self, listener: &str, slot: u64) -> bool {
        let Some(at) = self.names.iter().position(|name| name.as_str() == listener) else { return false };
        let group = &self.groups[at];
        let own = self.slots.get(&slot).and_then(|ids| ids.get(at)).filter(|_| !self.is_paired);
        let ids = own.map_or_else(|| group.order(), |id| vec![*id]);
        ids.into_iter().any(|id| group.is_alive(id))
    }

    /// Ends a route that is no longer needed.
    pub(super) fn end_route(&mut self, listener: &str) -> io::Result<()> {
        let at = self.names.iter().position(|name| name.as_str() == listener);
        at.map_or(Ok(()), |at| self.groups[at].end_probe().map_err(io::Error::other))
    }

    /// Whether nothing waits at a slot and nothing can be on its way there. A connection whose handshake was in
    /// progress at the switch belongs to the old slot, and the kernel does not count it. The kernel does not see
    /// answers to datagrams either.
    pub(super) fn is_quiet(&mut self, slot: u64, answer_grace: Duration) -> bool {
        if slot == self.steered || self.is_paired {
            return true;
        }
        let Some(ids) = self.slots.get(&slot) else { return true };
        let addresses: Vec<ListenAddress> = self.groups.iter().map(|group| group.address().clone()).collect();
        let takes_datagrams = addresses.iter().any(ListenAddress::is_datagram);
        if takes_datagrams && self.handshakes.age() < answer_grace
            || !self.handshakes.are_over(&addresses, HANDSHAKE)
        {
            return false;
        }
        let mut slots = self.groups.iter().zip(ids);
        slots.all(|(group, id)| group.queue_len(*id).is_ok_and(|waiting| waiting == 0))
    }

    /// Takes a slot out of use, unless new connections go to it.
    fn retire(&mut self, slot: u64) -> Result<(), SlotError> {
        if slot == self.steered || self.is_paired {
            return Ok(());
        }
        if self.shared == Some(slot) {
            self.steer(self.steered)?;
        }
        let Some(ids) = self.slots.remove(&slot) else { return Ok(()) };
        self.groups.iter_mut().zip(ids).try_for_each(|(group, id)| group.retire(id))
    }

    /// The keys of a slot at the keeper: service, listener, slot.
    fn keys(&self, service: &str, slot: u64) -> Vec<String> {
        let ids = self.slots.get(&slot).into_iter().flatten();
        self.names.iter().zip(ids).map(|(name, id)| format!("{service}/{name}/{id}")).collect()
    }

    /// Has the keeper hold a slot.
    pub(super) fn store(&self, keeper: &KeeperHandle, service: &str, slot: u64) {
        let slots = if self.is_paired { self.slots() } else { vec![slot] };
        for slot in slots {
            for (key, fd) in self.keys(service, slot).iter().zip(self.fds(slot)) {
                keeper.store(key, fd);
            }
        }
    }

    fn forget(&self, keeper: &KeeperHandle, service: &str, slot: u64) {
        for key in self.keys(service, slot) {
            keeper.drop_key(&key);
        }
    }
}

/// Opens an address for the users that may connect. If the program binds its sockets itself, it decides which users
/// those are, unless the service file does. Until it binds, only the daemon's user may connect.
fn open_group(listener: &config::Listener, is_bound_by_program: bool) -> Result<Group, SlotError> {
    let (user, group) = listener
        .owner
        .ids()
        .map_err(|error| SlotError::Owner { address: listener.address.clone(), error: error.to_string() })?;
    let mode = listener.mode.or(is_bound_by_program.then_some(UNTIL_BOUND));
    Group::open_for(&listener.address, Access { mode, user, group })
}

fn number(slot: SlotId) -> u64 {
    slot.0.saturating_sub(1)
}

fn parse_key<'a>(service: &str, key: &'a str) -> Option<(&'a str, SlotId)> {
    let (name, slot) = key.strip_prefix(service)?.strip_prefix('/')?.split_once('/')?;
    Some((name, SlotId(slot.parse().ok()?)))
}
