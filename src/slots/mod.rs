//! The listeners of one address, and which of them gets new connections.
//!
//! A *slot* is one listener for one generation of a service. The slots of a TCP address form a `SO_REUSEPORT` group with
//! a program that sends every new connection to one of them; a switch is one system call. The program may make an
//! exception for a probe, which looks at a slot before it gets anything else, and for a share of the connections. It is
//! attached even to a lone slot, so that a stranger who joins the port gets nothing. The slots of a unix socket each have a name of their own
//! beside the path, and a switch renames a hard link over the path; see `unix.rs`. The slots of a UDP address form a group like those of TCP,
//! and what is steered is every datagram; see `udp.rs`.
//!
//! A slot is bound and listens with the longest backlog that the kernel allows before any process exists, is
//! close-on-exec, and has `TCP_NODELAY` set, which accepted sockets inherit. Its blocking mode is left as it is and must
//! be left so by every holder: `O_NONBLOCK` belongs to the listener, not to the descriptor.

mod access;
pub mod census;
mod diag;
mod error;
mod gate;
mod handshakes;
mod held_clock;
mod order;
mod others;
mod pair;
pub mod peers;
mod probe;
pub mod program;
mod socket;
pub mod tally;
mod tcp;
mod udp;
mod unix;
mod upkeep;
mod work;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

pub use access::Access;
pub use error::SlotError;
pub use handshakes::Handshakes;
use order::Order;
pub use others::Other;
pub use pair::{Both, Pair, PairState, Side};
pub use probe::{ProbeRoute, ProbeTarget};
use program::{Kept, Lot, Probe, Program, Share};
use socket::open;
pub use socket::{
    Place, check_free, drop_unread, dropped_at, is_alive, lengthen_queue, mend_names, set_access,
    slot_by_name, stop_listening, unread_bytes, waiting_at, watched_name,
};

use crate::config::ListenAddress;
use crate::sys::{
    listens::{listens, mark},
    steer,
};

/// Names a slot within its group; never used twice, and the later one has the greater number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId(pub u64);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All slots of one address. There is always one that gets the new connections.
///
/// Dropping a group closes this process's descriptors and nothing else: whoever holds duplicates goes on. The end of
/// the address is [`Group::close`].
#[derive(Debug)]
pub struct Group {
    address: ListenAddress,
    access: Access,
    slots: BTreeMap<SlotId, OwnedFd>,
    order: Order,
    steered: SlotId,
    share: Option<(SlotId, u32)>,
    probe: Option<(SlotId, SocketAddr)>,
    next: SlotId,
}

impl Group {
    /// Binds an address that nobody may have yet, and listens with a first slot that gets all connections. A stale unix
    /// socket, at which nobody answers, is replaced.
    pub fn open(address: &ListenAddress) -> Result<Group, SlotError> {
        Self::open_for(address, Access::default())
    }

    /// Likewise, and says who may connect over a unix socket.
    pub fn open_for(address: &ListenAddress, access: Access) -> Result<Group, SlotError> {
        check_free(address)?;
        let first = SlotId(1);
        let mut group = Group {
            address: address.clone(),
            access,
            slots: BTreeMap::new(),
            order: Order::default(),
            steered: first,
            share: None,
            probe: None,
            next: first,
        };
        group.add_slot()?;
        group.steer_to(first)?;
        Ok(group)
    }

    /// Puts a group together from descriptors that somebody kept. `members` are all slots that still listen, in the
    /// order of [`Group::order`]; `steered` is one of them, and gets all new connections from now on.
    pub fn restore(
        address: &ListenAddress,
        members: Vec<(SlotId, OwnedFd)>,
        steered: SlotId,
    ) -> Result<Group, SlotError> {
        for (slot, fd) in &members {
            if !listens(fd).map_err(|error| SlotError::new(address, "examine", error))? {
                return Err(SlotError::NotListening { address: address.clone(), slot: *slot });
            }
        }
        let mut group = Self::hold(address, members, steered);
        group.steer_to(steered)?;
        Ok(group)
    }

    /// Like [`Group::restore`], for slots that somebody else steers: nothing is changed or looked at. One that does not listen
    /// at this moment may do so again.
    pub fn hold(address: &ListenAddress, members: Vec<(SlotId, OwnedFd)>, steered: SlotId) -> Group {
        let mut order = Order::default();
        let mut slots = BTreeMap::new();
        for (slot, fd) in members {
            order.push(slot);
            slots.insert(slot, fd);
        }
        let next = SlotId(slots.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        let (address, access) = (address.clone(), Access::default());
        Group { address, access, slots, order, steered, share: None, probe: None, next }
    }

    /// The address.
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The slot that gets new connections.
    pub fn steered(&self) -> SlotId {
        self.steered
    }

    /// The slots in the order of the kernel's index, for [`Group::restore`]. It changes when one is retired.
    pub fn order(&self) -> Vec<SlotId> {
        self.order.slots()
    }

    /// The listener of a slot.
    pub fn fd(&self, slot: SlotId) -> Option<BorrowedFd<'_>> {
        self.slots.get(&slot).map(AsFd::as_fd)
    }

    /// Adds a slot that gets no connection until it is steered to.
    pub fn add_slot(&mut self) -> Result<SlotId, SlotError> {
        let slot = self.next;
        let listener = self.open_last(slot)?;
        self.next = SlotId(slot.0 + 1);
        self.order.push(slot);
        self.slots.insert(slot, listener);
        Ok(slot)
    }

    /// One that is known to be the last: no stranger has come while it was opened.
    fn open_last(&mut self, slot: SlotId) -> Result<OwnedFd, SlotError> {
        const TRIES: usize = 8;
        self.look();
        let mut listener = self.open_slot(slot)?;
        for _ in 0..TRIES {
            let ours = self.slots.values().chain([&listener]);
            let now = others::in_group(&self.address, ours).unwrap_or_default();
            let known: Vec<_> = self.order.strangers().collect();
            if now.iter().all(|stranger| known.contains(stranger)) {
                break;
            }
            stop_listening(&listener);
            drop(listener);
            self.look();
            listener = self.open_slot(slot)?;
        }
        Ok(listener)
    }

    /// One whose mark no other slot has, if the address needs marks.
    fn open_slot(&self, slot: SlotId) -> Result<OwnedFd, SlotError> {
        const TRIES: usize = 64;
        let mut listener = open(&self.address, slot, &self.access)?;
        if self.address.is_quic() {
            let known: Vec<u8> = self.marks().map(|(_, mark)| mark).collect();
            for _ in 0..TRIES {
                if mark(&listener).is_ok_and(|mark| !known.contains(&mark)) {
                    break;
                }
                // It is the last in the order, so no other changes its place.
                drop(std::mem::replace(&mut listener, open(&self.address, slot, &self.access)?));
            }
        }
        Ok(listener)
    }

    fn marks(&self) -> impl Iterator<Item = (SlotId, u8)> {
        self.slots.iter().filter_map(|(slot, listener)| Some((*slot, mark(listener).ok()?)))
    }

    /// Takes in a slot that listens already, and that this group has not opened: at the front if it began to listen before
    /// all others, else at the end.
    pub fn admit(&mut self, slot: SlotId, listener: OwnedFd, first: bool) -> Result<(), SlotError> {
        if self.slots.contains_key(&slot) {
            return Err(SlotError::Unknown { address: self.address.clone(), slot });
        }
        if first {
            self.order.push_first(slot);
        } else {
            self.order.push(slot);
        }
        self.slots.insert(slot, listener);
        self.next = self.next.max(SlotId(slot.0 + 1));
        self.apply()
    }

    /// Sends all new connections to `slot`, atomically. Those that wait elsewhere stay where they are. Ends a share.
    pub fn steer_to(&mut self, slot: SlotId) -> Result<(), SlotError> {
        self.known(slot)?;
        let before = (self.steered, self.share);
        (self.steered, self.share) = (slot, None);
        self.apply().inspect_err(|_| (self.steered, self.share) = before)
    }

    /// Sends `parts` of 10,000 new connections to `slot`, by chance, and the others where they go now. A connection never
    /// changes its slot; of UDP it is the datagrams of so many clients, by their ports. [`Group::steer_to`] ends it.
    pub fn steer_share(&mut self, slot: SlotId, parts: u32) -> Result<(), SlotError> {
        self.known(slot)?;
        if let ListenAddress::Unix(_) = &self.address {
            return Err(SlotError::NoShare { address: self.address.clone() });
        }
        let before = self.share.replace((slot, parts));
        self.apply().inspect_err(|_| self.share = before)
    }

    /// Opens a way for one client of this machine to `slot`, whatever slot gets the others. It is there until
    /// [`Group::end_probe`], or until the next one is opened.
    pub fn probe(&mut self, slot: SlotId) -> Result<ProbeRoute, SlotError> {
        self.known(slot)?;
        let route = ProbeRoute::open(&self.address, slot)
            .map_err(|error| SlotError::new(&self.address, "open a probe of", error))?;
        if let Some(client) = route.client() {
            let before = self.probe.replace((slot, client));
            self.apply().inspect_err(|_| self.probe = before)?;
        }
        Ok(route)
    }

    /// The way that everybody takes, to whatever slot gets new connections.
    pub fn probe_in_place(&self) -> Result<ProbeRoute, SlotError> {
        ProbeRoute::in_place(&self.address)
            .map_err(|error| SlotError::new(&self.address, "open a probe of", error))
    }

    /// Closes the way of the last probe. What it has connected goes on.
    pub fn end_probe(&mut self) -> Result<(), SlotError> {
        if self.probe.take().is_some() { self.apply() } else { Ok(()) }
    }

    /// Makes the kernel do what the book says.
    fn apply(&mut self) -> Result<(), SlotError> {
        self.look();
        self.attach()
    }

    fn attach(&self) -> Result<(), SlotError> {
        let listener = self.known(self.steered)?;
        match &self.address {
            ListenAddress::Unix(path) => unix::put_in_place(path, self.steered),
            address => match self.program() {
                Some(program) => steer::attach(listener, &program.instructions())
                    .map_err(|error| SlotError::new(address, "steer", error)),
                None => Ok(()),
            },
        }
    }

    /// `None` if the slot that gets new connections was ended by its program: there is nothing to choose.
    fn program(&self) -> Option<Program> {
        let mut program = Program::constant(self.order.index_of(self.steered)?);
        let index_of = |slot| self.order.index_of(slot);
        program.share = self
            .share
            .and_then(|(slot, parts)| Some(Share { index: index_of(slot)?, parts, by: self.lot() }));
        if self.address.is_quic() {
            let others = self.marks().filter(|(slot, _)| *slot != self.steered);
            let kept = |(slot, mark)| Some(Kept { mark, index: index_of(slot)? });
            program.kept = others.filter_map(kept).collect();
        }
        program.probe = self.probe.and_then(|(slot, client)| Some(Probe { client, index: index_of(slot)? }));
        Some(program)
    }

    /// A connection has one draw; each datagram of a flow has to have the same.
    fn lot(&self) -> Lot {
        if self.address.is_datagram() { Lot::Flow } else { Lot::Random }
    }

    fn known(&self, slot: SlotId) -> Result<&OwnedFd, SlotError> {
        self.slots.get(&slot).ok_or_else(|| SlotError::Unknown { address: self.address.clone(), slot })
    }

    /// Takes a slot out of the group for good, whoever else holds it. Connections that still wait in its queue are reset:
    /// let its process serve them first, see [`Group::queue_len`]. The slot that gets new connections, or a share of them,
    /// cannot be retired. A probe of the slot is over.
    ///
    /// With three slots or more, retire one before the next is added: between the two system calls of this function the
    /// kernel may choose among all that remain.
    pub fn retire(&mut self, slot: SlotId) -> Result<(), SlotError> {
        if slot == self.steered || self.share.is_some_and(|(shared, _)| shared == slot) {
            return Err(SlotError::Steered { address: self.address.clone(), slot });
        }
        let Some(listener) = self.slots.remove(&slot) else {
            return Err(SlotError::Unknown { address: self.address.clone(), slot });
        };
        // The last one takes its place, which may be a stranger.
        self.look();
        // A duplicate in another process would keep a merely closed one in the group, and the indices wrong.
        stop_listening(&listener);
        drop(listener);
        self.order.remove(slot);
        self.probe.take_if(|(probed, _)| *probed == slot);
        if let ListenAddress::Unix(path) = &self.address {
            unix::forget(path, slot);
        }
        self.apply()
    }

    /// How many connections wait to be accepted at a slot. Those whose handshake is still going on are not counted, so at
    /// a long distance wait two seconds after a switch before a 0 is believed. For a unix socket, and for datagrams, the kernel
    /// tells only whether any waits: 0 or 1.
    pub fn queue_len(&self, slot: SlotId) -> Result<u32, SlotError> {
        waiting_at(&self.address, self.known(slot)?)
    }

    /// How many datagrams have been lost at a slot since it was opened, as its receive buffer was full.
    pub fn dropped(&self, slot: SlotId) -> Result<u32, SlotError> {
        dropped_at(&self.address, self.known(slot)?)
    }

    /// Ends the address: from now on connections are refused, whoever holds duplicates, and waiting ones are reset. The
    /// path of a unix socket is removed if it is still this group's.
    pub fn close(self) {
        // Nobody finds the path of a socket that refuses.
        let (address, slots) = (self.address.clone(), self.slots.keys().copied().collect::<Vec<_>>());
        forget_path(&address, &slots);
        self.slots.values().for_each(stop_listening);
    }

    /// Likewise, but leaves the path of a unix socket to what is given: it waits for the file system, and needs no descriptor.
    pub fn close_but_for_path(self) -> impl FnOnce() + Send + 'static {
        self.slots.values().for_each(stop_listening);
        let (address, slots) = (self.address.clone(), self.slots.keys().copied().collect::<Vec<_>>());
        move || forget_path(&address, &slots)
    }
}

fn forget_path(address: &ListenAddress, slots: &[SlotId]) {
    let ListenAddress::Unix(path) = address else { return };
    for slot in slots {
        // The one that is in place, whoever has put it there.
        unix::remove(path, *slot);
        unix::forget(path, *slot);
    }
    unix::forget_links(path);
}

impl SlotError {
    fn new(address: &ListenAddress, action: &'static str, error: impl Into<io::Error>) -> SlotError {
        SlotError::System { address: address.clone(), action, error: error.into() }
    }
}
