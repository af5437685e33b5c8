//! The listeners of one address, and which of them receives new connections.
//!
//! A *slot* is one listener for one generation of a service. The slots of a TCP address form a `SO_REUSEPORT` group
//! with a BPF program that sends every new connection to one of them; a switch is one system call. The program can make
//! an exception for a probe, which reaches a slot that receives nothing else yet, and for a share of the connections.
//! It is attached even to a single slot, so that a foreign socket that joins the port receives nothing. Each slot of a
//! unix socket has its own name next to the path, and a switch renames a hard link over the path; see `unix.rs`. The
//! slots of a UDP address form a group like those of TCP, but every datagram is steered; see `udp.rs`.
//!
//! A slot is bound and listens before any process exists. It has the longest backlog that the kernel allows, is
//! close-on-exec, and has `TCP_NODELAY`, which accepted sockets inherit. No holder may change its blocking mode:
//! `O_NONBLOCK` belongs to the listener, not to the descriptor.

mod access;
pub mod census;
pub mod connection_counter;
mod diag;
mod error;
mod foreign;
mod gate;
mod handshakes;
mod member_order;
mod pair;
pub mod peers;
mod probe;
mod socket;
pub mod steering_program;
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
pub use foreign::ForeignSocket;
pub use handshakes::Handshakes;
use member_order::MemberOrder;
pub use pair::{ListenerPair, Pair, PairState, Side};
pub use probe::{ProbeRoute, ProbeTarget};
use socket::open;
pub use socket::{
    UnixPathTarget, check_free, drop_unread, dropped_at, is_alive, lengthen_queue, restore_names, set_access,
    slot_by_name, stop_listening, unread_bytes, waiting_at, watched_name,
};
use steering_program::{ProbeRule, QuicAffinity, ShareRule, ShareSelection, SteeringProgram};

use crate::config::ListenAddress;
use crate::sys::{
    listens::{listens, mark},
    steer,
};

/// Identifies a slot within its group. Never reused; later slots have greater numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId(pub u64);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All slots of one address. One of them always receives the new connections.
///
/// Dropping a group only closes this process's descriptors: holders of duplicates are unaffected. [`Group::close`]
/// closes the address.
#[derive(Debug)]
pub struct Group {
    address: ListenAddress,
    access: Access,
    slots: BTreeMap<SlotId, OwnedFd>,
    order: MemberOrder,
    steered: SlotId,
    share: Option<(SlotId, u32)>,
    probe: Option<(SlotId, SocketAddr)>,
    next: SlotId,
}

impl Group {
    /// Binds a free address, and listens with a first slot that receives all connections. Replaces a stale unix socket
    /// without a listener.
    pub fn open(address: &ListenAddress) -> Result<Group, SlotError> {
        Self::open_for(address, Access::default())
    }

    /// Like [`Group::open`], and sets which users may connect over a unix socket.
    pub fn open_for(address: &ListenAddress, access: Access) -> Result<Group, SlotError> {
        check_free(address)?;
        let first = SlotId(1);
        let mut group = Group {
            address: address.clone(),
            access,
            slots: BTreeMap::new(),
            order: MemberOrder::default(),
            steered: first,
            share: None,
            probe: None,
            next: first,
        };
        group.add_slot()?;
        group.steer_to(first)?;
        Ok(group)
    }

    /// Reassembles a group from kept descriptors. `members` are all slots that still listen, in the order of
    /// [`Group::order`]; `steered` is one of them, and receives all new connections from now on.
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

    /// Like [`Group::restore`], for slots that another process steers: checks and changes nothing. A member may be
    /// temporarily not listening.
    pub fn hold(address: &ListenAddress, members: Vec<(SlotId, OwnedFd)>, steered: SlotId) -> Group {
        let mut order = MemberOrder::default();
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

    /// The slot that receives new connections.
    pub fn steered(&self) -> SlotId {
        self.steered
    }

    /// The slots in the order of the kernel's index, for [`Group::restore`]. Retiring a slot changes it.
    pub fn order(&self) -> Vec<SlotId> {
        self.order.slots()
    }

    /// The listener of a slot; `None` if the group lacks the slot.
    pub fn fd(&self, slot: SlotId) -> Option<BorrowedFd<'_>> {
        self.slots.get(&slot).map(AsFd::as_fd)
    }

    /// Adds a slot. It receives no connections until they are steered to it.
    pub fn add_slot(&mut self) -> Result<SlotId, SlotError> {
        let slot = self.next;
        let listener = self.open_last(slot)?;
        self.next = SlotId(slot.0 + 1);
        self.order.push(slot);
        self.slots.insert(slot, listener);
        Ok(slot)
    }

    /// Opens a slot that is certainly the last in the group: retries if a foreign socket has joined in the meantime.
    fn open_last(&mut self, slot: SlotId) -> Result<OwnedFd, SlotError> {
        const TRIES: usize = 8;
        self.update_order();
        let mut listener = self.open_slot(slot)?;
        for _ in 0..TRIES {
            let ours = self.slots.values().chain([&listener]);
            let now = foreign::in_group(&self.address, ours).unwrap_or_default();
            let known: Vec<_> = self.order.foreign().collect();
            if now.iter().all(|socket| known.contains(socket)) {
                break;
            }
            stop_listening(&listener);
            drop(listener);
            self.update_order();
            listener = self.open_slot(slot)?;
        }
        Ok(listener)
    }

    /// Opens a slot with a unique mark, if the address needs marks.
    fn open_slot(&self, slot: SlotId) -> Result<OwnedFd, SlotError> {
        const TRIES: usize = 64;
        let mut listener = open(&self.address, slot, &self.access)?;
        if self.address.is_quic() {
            let known: Vec<u8> = self.marks().map(|(_, mark)| mark).collect();
            for _ in 0..TRIES {
                if mark(&listener).is_ok_and(|mark| !known.contains(&mark)) {
                    break;
                }
                // It is the last in the order, so no other slot changes its index.
                drop(std::mem::replace(&mut listener, open(&self.address, slot, &self.access)?));
            }
        }
        Ok(listener)
    }

    fn marks(&self) -> impl Iterator<Item = (SlotId, u8)> {
        self.slots.iter().filter_map(|(slot, listener)| Some((*slot, mark(listener).ok()?)))
    }

    /// Adds a listening slot that this group has not opened. `first`: it began to listen before all others; otherwise
    /// after them.
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

    /// Steers all new connections to `slot`, atomically. Connections already queued elsewhere stay there. Ends a share.
    pub fn steer_to(&mut self, slot: SlotId) -> Result<(), SlotError> {
        self.known(slot)?;
        let before = (self.steered, self.share);
        (self.steered, self.share) = (slot, None);
        self.apply().inspect_err(|_| (self.steered, self.share) = before)
    }

    /// Steers `parts` of 10,000 new connections to `slot`, at random, and the rest as before. A connection never
    /// changes its slot; for UDP the share applies to clients, by their ports. [`Group::steer_to`] ends it.
    pub fn steer_share(&mut self, slot: SlotId, parts: u32) -> Result<(), SlotError> {
        self.known(slot)?;
        if let ListenAddress::Unix(_) = &self.address {
            return Err(SlotError::NoShare { address: self.address.clone() });
        }
        let before = self.share.replace((slot, parts));
        self.apply().inspect_err(|_| self.share = before)
    }

    /// Opens a route for one client of this machine to `slot`, whichever slot receives other clients. It ends with
    /// [`Group::end_probe`] or the next probe.
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

    /// A route to the slot that receives new connections, like that of any client.
    pub fn probe_in_place(&self) -> Result<ProbeRoute, SlotError> {
        ProbeRoute::in_place(&self.address)
            .map_err(|error| SlotError::new(&self.address, "open a probe of", error))
    }

    /// Closes the route of the last probe. Its existing connection stays.
    pub fn end_probe(&mut self) -> Result<(), SlotError> {
        if self.probe.take().is_some() { self.apply() } else { Ok(()) }
    }

    /// Makes the kernel match this group's state.
    fn apply(&mut self) -> Result<(), SlotError> {
        self.update_order();
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

    /// `None` if its program has ended the slot that receives new connections: there is nothing to steer.
    fn program(&self) -> Option<SteeringProgram> {
        let mut program = SteeringProgram::constant(self.order.index_of(self.steered)?);
        let index_of = |slot| self.order.index_of(slot);
        program.share = self.share.and_then(|(slot, parts)| {
            Some(ShareRule { index: index_of(slot)?, parts, selection: self.lot() })
        });
        if self.address.is_quic() {
            let others = self.marks().filter(|(slot, _)| *slot != self.steered);
            let kept = |(slot, mark)| Some(QuicAffinity { mark, index: index_of(slot)? });
            program.affinities = others.filter_map(kept).collect();
        }
        program.probe =
            self.probe.and_then(|(slot, client)| Some(ProbeRule { client, index: index_of(slot)? }));
        Some(program)
    }

    /// A connection is drawn once; all datagrams of a flow need the same draw.
    fn lot(&self) -> ShareSelection {
        if self.address.is_datagram() { ShareSelection::Flow } else { ShareSelection::Random }
    }

    fn known(&self, slot: SlotId) -> Result<&OwnedFd, SlotError> {
        self.slots.get(&slot).ok_or_else(|| SlotError::Unknown { address: self.address.clone(), slot })
    }

    /// Removes a slot from the group permanently, even if other processes hold it. Resets the connections in its queue:
    /// let its process serve them first, see [`Group::queue_len`]. An error for the slot that receives new connections
    /// or a share of them. Ends a probe of the slot.
    ///
    /// With three or more slots, retire one before you add the next: between the two system calls of this function the
    /// kernel may choose any remaining slot.
    pub fn retire(&mut self, slot: SlotId) -> Result<(), SlotError> {
        if slot == self.steered || self.share.is_some_and(|(shared, _)| shared == slot) {
            return Err(SlotError::Steered { address: self.address.clone(), slot });
        }
        let Some(listener) = self.slots.remove(&slot) else {
            return Err(SlotError::Unknown { address: self.address.clone(), slot });
        };
        // The last member, possibly a foreign socket, takes its index.
        self.update_order();
        // After a plain close, a duplicate in another process would stay in the group and shift the indices.
        stop_listening(&listener);
        drop(listener);
        self.order.remove(slot);
        self.probe.take_if(|(probed, _)| *probed == slot);
        if let ListenAddress::Unix(path) = &self.address {
            unix::forget(path, slot);
        }
        self.apply()
    }

    /// Number of connections in a slot's accept queue. Excludes incomplete handshakes: over a slow network, trust a 0
    /// only two seconds after a switch. For unix sockets and datagrams the kernel only reports whether any waits: 0 or
    /// 1.
    pub fn queue_len(&self, slot: SlotId) -> Result<u32, SlotError> {
        waiting_at(&self.address, self.known(slot)?)
    }

    /// Number of datagrams lost at a slot since it was opened, because its receive buffer was full.
    pub fn dropped(&self, slot: SlotId) -> Result<u32, SlotError> {
        dropped_at(&self.address, self.known(slot)?)
    }

    /// Closes the address: from now on connections are refused even if other processes hold duplicates, and queued ones
    /// are reset. Removes the path of a unix socket if it still belongs to this group.
    pub fn close(self) {
        // Removed first, so that no client finds a path that refuses connections.
        let (address, slots) = (self.address.clone(), self.slots.keys().copied().collect::<Vec<_>>());
        forget_path(&address, &slots);
        self.slots.values().for_each(stop_listening);
    }

    /// Like [`Group::close`], but returns a closure that removes the path of a unix socket: that may block on the file
    /// system, and needs no descriptor.
    pub fn close_but_for_path(self) -> impl FnOnce() + Send + 'static {
        self.slots.values().for_each(stop_listening);
        let (address, slots) = (self.address.clone(), self.slots.keys().copied().collect::<Vec<_>>());
        move || forget_path(&address, &slots)
    }
}

fn forget_path(address: &ListenAddress, slots: &[SlotId]) {
    let ListenAddress::Unix(path) = address else { return };
    for slot in slots {
        // Remove the slot that is in place, whichever process put it there.
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
