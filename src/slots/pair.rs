//! Two listeners of each address for good, of which one gets the new connections.
//!
//! For programs that cannot be told to leave connections alone: one of them works on one side, and the connections for
//! the next one wait at the other side.
//!
//! Whoever holds the descriptors can switch, and may die in between. So what is wanted is a value, [`PairState`], which
//! the caller writes down before [`Pair::apply`] makes the kernel agree, and again with what that gives back. Applying
//! the same state again changes nothing, and completes what was interrupted.
//!
//! Invariant: the order of each address tells which index a side has in its group. It changes only when a side leaves or
//! joins again, which its program has shut down, and is written down before that ([`Pair::foresee`]). A reset changes no place.
//! Strangers in the group (`others.rs`) come behind both sides. One that was there when a side left may be between them: then it is
//! looked again at the next change. The side at rest is behind the active one, so the active one never takes the place of
//! a stranger that leaves.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::order::Order;
use super::program::Program;
use super::{SlotError, SlotId, dropped_at, others, socket, udp, unix, waiting_at};
use crate::config::ListenAddress;
use crate::sys::socket::{LONGEST_BACKLOG, listen};
use crate::sys::steer;

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one that listened first.
    A,
    /// The other one.
    B,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

impl Side {
    /// Its slot, for the book of the kernel's indices.
    fn slot(self) -> SlotId {
        SlotId(match self {
            Side::A => 1,
            Side::B => 2,
        })
    }
}

/// Both sides, this one before the other one.
fn order_from(first: Side) -> Order {
    let mut order = Order::default();
    [first, first.other()].into_iter().for_each(|side| order.push(side.slot()));
    order
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::A => "a",
            Side::B => "b",
        })
    }
}

/// What is wanted of a pair, and what is known of it. Small, and good on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairState {
    active: Side,
    reset: Option<Side>,
    order: Vec<Order>,
}

impl PairState {
    /// The state of listeners that were just opened, A before B: A is active.
    pub fn new(addresses: usize) -> PairState {
        let order = vec![order_from(Side::A); addresses];
        PairState { active: Side::A, reset: None, order }
    }

    /// The side that gets new connections.
    pub fn active(&self) -> Side {
        self.active
    }

    /// The same with another side active.
    pub fn switched_to(&self, side: Side) -> PairState {
        PairState { active: side, ..self.clone() }
    }

    /// The same after a new socket of a side has joined the group of an address.
    pub fn joined(&self, at: usize, side: Side) -> PairState {
        let mut order = self.order_of(at);
        order.remove(side.slot());
        order.push(side.slot());
        self.clone().with_order(at, order)
    }

    /// What is not known was opened as A before B.
    fn order_of(&self, at: usize) -> Order {
        self.order.get(at).cloned().unwrap_or_else(|| order_from(Side::A))
    }

    fn with_order(mut self, at: usize, order: Order) -> PairState {
        let length = self.order.len().max(at + 1);
        self.order.resize(length, order_from(Side::A));
        self.order[at] = order;
        self
    }

    /// Whether a process that reads the other one steers as one that reads this one. What is to be reset is found again in any case.
    pub fn steers_like(&self, other: &PairState) -> bool {
        let addresses = self.order.len().max(other.order.len());
        self.active == other.active && (0..addresses).all(|at| self.order_of(at) == other.order_of(at))
    }

    /// The same with a side to be reset: what waits there is reset, and a TCP listener listens again if its program has shut it
    /// down. Datagrams that wait are dropped. No program may be at work on it.
    pub fn with_reset(&self, side: Side) -> PairState {
        PairState { reset: Some(side), ..self.clone() }
    }
}

/// The two listeners of one address. Those of a unix path are bound to the names of their slots.
#[derive(Debug)]
pub struct Both {
    /// The address.
    pub address: ListenAddress,
    /// Side A.
    pub a: OwnedFd,
    /// Side B.
    pub b: OwnedFd,
}

/// The pairs of all addresses of a service. All are switched together, one after the other.
#[derive(Debug)]
pub struct Pair {
    addresses: Vec<Both>,
    state: PairState,
}

impl Pair {
    /// Puts a pair together, and leaves it as it is.
    pub fn hold(addresses: Vec<Both>, state: PairState) -> Pair {
        Pair { addresses, state }
    }

    /// Puts a pair together and applies what is wanted of it.
    pub fn new(addresses: Vec<Both>, state: PairState) -> Result<Pair, SlotError> {
        let mut pair = Pair::hold(addresses, state.clone());
        pair.apply(state)?;
        Ok(pair)
    }

    /// What the pair is in.
    pub fn state(&self) -> &PairState {
        &self.state
    }

    /// Looks for strangers, who count when a side leaves. For a moment at which no client waits.
    pub fn look(&mut self) {
        for (at, both) in self.addresses.iter().enumerate().filter(|(_, both)| both.is_tcp()) {
            if let Ok(others) = others::in_group(&both.address, [&both.a, &both.b].into_iter()) {
                let mut order = self.state.order_of(at);
                order.observe(&others);
                self.state = self.state.clone().with_order(at, order);
            }
        }
    }

    /// Whether there were any at the last look.
    pub fn has_strangers(&self) -> bool {
        self.state.order.iter().any(|order| order.strangers().next().is_some())
    }

    /// The TCP listeners of a side that are alive.
    pub fn alive_listeners(&self, side: Side) -> impl Iterator<Item = &OwnedFd> {
        self.addresses
            .iter()
            .filter(move |both| both.is_tcp() && both.is_alive(side))
            .map(move |both| both.side(side))
    }

    /// What will be so once the kernel agrees: a side whose program has shut it down joins its group again, behind the other one.
    /// To be written down before [`Pair::apply`], which finds no trace of that if it was interrupted.
    pub fn foresee(&self, state: &PairState) -> PairState {
        let orders = self.addresses.iter().enumerate();
        orders.fold(state.clone(), |state, (at, both)| {
            let order = both.order_after(state.active, state.reset, state.order_of(at));
            state.with_order(at, order)
        })
    }

    /// Makes the kernel agree with what is wanted. Gives what is so then, also to be written down: a reset is done.
    ///
    /// An active TCP side that does not listen any more, as its program has shut it down, listens again; nobody may be at work at
    /// it. In the place of another one there may be a new socket, which this process does not have: it gets what clients
    /// send. After an error all that can get connections at the side that was active before gets them there; [`Pair::state`] is
    /// what is so then, to be written down, and the same state can be applied again.
    pub fn apply(&mut self, state: PairState) -> Result<&PairState, SlotError> {
        let (before, state) = (self.state.active, self.foresee(&state));
        let applied = self.apply_foreseen(&state);
        // Also of an address that was not come to: a side that is shut down is the last of its order in any case.
        self.state = PairState { reset: None, ..state };
        if let Err(error) = applied {
            self.state.active = before;
            let _ = self.steer_again();
            return Err(error);
        }
        Ok(&self.state)
    }

    fn apply_foreseen(&self, state: &PairState) -> Result<(), SlotError> {
        for (at, both) in self.addresses.iter().enumerate() {
            let order = state.order_of(at);
            if let Some(side) = state.reset {
                both.check_reset(side, state.active)?;
                both.reset(side, state.active, &order)?;
            }
            both.steer(state.active, &order)?;
        }
        Ok(())
    }

    /// Lets the active side have all new connections that it can get, and changes nothing else. An error is about one address; the
    /// others are seen to.
    pub fn steer_again(&self) -> Result<(), SlotError> {
        let active = self.state.active;
        let alive = self.addresses.iter().enumerate().filter(|(_, both)| both.is_alive(active));
        let steered = alive.map(|(at, both)| both.steer(active, &self.state.order_of(at)));
        steered.fold(Ok(()), Result::and)
    }

    /// Whether new connections cannot come to a TCP listener of this side, as its program has shut it down: then they wait at the
    /// other one.
    pub fn is_left(&self, side: Side) -> bool {
        let is_tcp = |both: &&Both| both.is_tcp();
        self.addresses.iter().filter(is_tcp).any(|both| !both.is_alive(side) && both.is_alive(side.other()))
    }

    /// The addresses at which a program could not be started on this side: in the place of what this process has there may be a
    /// new socket.
    pub fn replaced(&self, side: Side) -> impl Iterator<Item = &ListenAddress> {
        self.addresses
            .iter()
            .filter(move |both| !both.is_tcp() && !both.is_alive(side))
            .map(|both| &both.address)
    }

    /// Whether this side of a path was shut down. Clients wait at what is in its place, under the same name.
    pub fn has_ended_path(&self, side: Side) -> bool {
        let is_unix = |both: &&Both| matches!(both.address, ListenAddress::Unix(_));
        self.addresses.iter().filter(is_unix).any(|both| !both.is_alive(side))
    }

    /// Lets the paths of unix sockets lead to the active side again.
    pub fn put_back(&self) -> Result<(), SlotError> {
        let unix = self.addresses.iter().filter(|both| matches!(both.address, ListenAddress::Unix(_)));
        unix.into_iter().try_for_each(|both| both.steer(self.state.active, &Order::default()))
    }

    /// The sockets of both sides that take datagrams: what is there, and where the next ones will wait.
    pub fn datagram_sockets(&self, side: Side) -> impl Iterator<Item = (&OwnedFd, &OwnedFd)> {
        let datagrams = self.addresses.iter().filter(|both| both.address.is_datagram());
        datagrams.map(move |both| (both.side(side), both.side(side.other())))
    }

    /// How many connections wait at a side, over all addresses. For a unix socket, and for datagrams, it is only known whether any
    /// waits.
    pub fn queue_len(&self, side: Side) -> Result<u32, SlotError> {
        self.addresses.iter().map(|both| both.queue_len(side)).sum()
    }

    /// Likewise of those that a program can still accept: one that was shut down seems to have some for ever.
    pub fn left_waiting(&self, side: Side) -> Result<u32, SlotError> {
        let alive = self.addresses.iter().filter(|both| both.is_alive(side));
        alive.map(|both| both.queue_len(side)).sum()
    }

    /// How many datagrams have been lost at a side since it was opened, as its receive buffer was full.
    pub fn dropped(&self, side: Side) -> Result<u32, SlotError> {
        self.addresses.iter().map(|both| dropped_at(&both.address, both.side(side))).sum()
    }

    /// The listeners of a side, in the order of the addresses.
    pub fn listeners(&self, side: Side) -> impl Iterator<Item = &OwnedFd> {
        self.addresses.iter().map(move |both| both.side(side))
    }
}

impl Both {
    fn side(&self, side: Side) -> &OwnedFd {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    fn is_tcp(&self) -> bool {
        self.address.ip().is_some() && !self.address.is_datagram()
    }

    /// Whether what this process has of a side can get what clients send.
    fn is_alive(&self, side: Side) -> bool {
        socket::is_alive(&self.address, self.side(side))
    }

    /// The order of its group after a reset and after the active side is seen to. The kernel is asked only if something has
    /// changed: this is in the gap between two programs.
    fn order_after(&self, active: Side, reset: Option<Side>, mut order: Order) -> Order {
        let dead: Vec<Side> = [Side::A, Side::B].into_iter().filter(|side| !self.is_alive(*side)).collect();
        dead.iter().for_each(|side| order.remove(side.slot()));
        if self.is_tcp() && (!dead.is_empty() || order.is_displaced()) {
            let others = others::in_group(&self.address, [&self.a, &self.b].into_iter());
            order.observe(&others.unwrap_or_default());
        }
        // One that joins comes behind the other one, and so does what has replaced it.
        for side in reset.into_iter().chain([active]) {
            if order.index_of(side.slot()).is_none() {
                order.push(side.slot());
            }
        }
        order
    }

    /// What gets new connections keeps them, unless it could not get any.
    fn check_reset(&self, side: Side, active: Side) -> Result<(), SlotError> {
        if side == active && self.is_alive(side) {
            return Err(SlotError::ActiveSide { address: self.address.clone(), side });
        }
        Ok(())
    }

    fn steer(&self, active: Side, order: &Order) -> Result<(), SlotError> {
        if let ListenAddress::Unix(path) = &self.address {
            // By its name, which another socket may have by now.
            let named = unix::slot_by_name(self.side(active).as_fd());
            let slot = named.ok_or_else(|| SlotError::OtherPair { address: self.address.clone() })?;
            return unix::put_in_place(path, slot);
        }
        if self.is_tcp() && !self.is_alive(active) {
            self.listen_again(active)?;
        }
        let (index, other) = (order.index_of(active.slot()).unwrap_or(0), active.other());
        match (self.is_alive(active), self.is_alive(other)) {
            (true, _) => self.attach(active, index),
            (false, true) if self.is_replaced() => self.attach(other, index),
            (false, _) => Err(SlotError::SideNotListening { address: self.address.clone(), side: active }),
        }
    }

    /// Whether there is another socket in the place of one that a program has ended.
    fn is_replaced(&self) -> bool {
        others::in_group(&self.address, [&self.a, &self.b].into_iter()).is_ok_and(|others| !others.is_empty())
    }

    fn reset(&self, side: Side, active: Side, order: &Order) -> Result<(), SlotError> {
        let listener = self.side(side);
        if self.address.is_datagram() {
            return udp::empty(listener).map(drop).map_err(|error| self.failed("reset", error));
        }
        if !self.is_tcp() || self.is_alive(side) {
            return unix::end_waiting(listener.as_fd()).map_err(|error| self.failed("reset", error));
        }
        let other = side.other();
        if let (true, Some(index)) = (other == active && self.is_alive(other), order.index_of(other.slot())) {
            // Told before the side joins again, or the side would get connections.
            self.attach(other, index)?;
        }
        self.listen_again(side)
    }

    fn listen_again(&self, side: Side) -> Result<(), SlotError> {
        listen(self.side(side), LONGEST_BACKLOG).map_err(|error| self.failed("listen again on", error))
    }

    fn attach(&self, member: Side, index: u32) -> Result<(), SlotError> {
        steer::attach(self.side(member), &Program::constant(index).instructions())
            .map_err(|error| self.failed("steer", error))
    }

    fn queue_len(&self, side: Side) -> Result<u32, SlotError> {
        waiting_at(&self.address, self.side(side))
    }

    fn failed(&self, action: &'static str, error: impl Into<std::io::Error>) -> SlotError {
        SlotError::new(&self.address, action, error)
    }
}
