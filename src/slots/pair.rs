//! Two permanent listeners per address, one of which receives the new connections.
//!
//! For programs that cannot stop accepting on request: one program works on one side, and the connections for the next
//! one wait at the other side.
//!
//! Any holder of the descriptors can switch, and may die during the switch. So the wanted state is a value,
//! [`PairState`]. The caller records it before [`Pair::apply`] makes the kernel match, and records the returned state
//! again. Applying the same state again changes nothing, or completes an interrupted switch.
//!
//! Invariant: the order of each address gives the index of a side in its group. It changes only when a side that its
//! program has shut down leaves or rejoins, and is recorded before that ([`Pair::foresee`]). A reset changes no index.
//! Foreign sockets in the group (`foreign.rs`) follow both sides. One that existed when a side left may now be between
//! them: then the next change checks again. The idle side follows the active one, so the active side never takes the
//! index of a foreign socket that leaves.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::member_order::MemberOrder;
use super::steering_program::SteeringProgram;
use super::{SlotError, SlotId, dropped_at, foreign, socket, udp, unix, waiting_at};
use crate::config::ListenAddress;
use crate::sys::socket::{LONGEST_BACKLOG, listen};
use crate::sys::steer;

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The side that listened first.
    A,
    /// The other side.
    B,
}

impl Side {
    /// The opposite side.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

impl Side {
    /// Its slot, for the order of the kernel's indices.
    fn slot(self) -> SlotId {
        SlotId(match self {
            Side::A => 1,
            Side::B => 2,
        })
    }
}

/// Both sides, starting with `first`.
fn order_from(first: Side) -> MemberOrder {
    let mut order = MemberOrder::default();
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

/// The wanted and known state of a pair. Small; suited for storage on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairState {
    active: Side,
    reset: Option<Side>,
    order: Vec<MemberOrder>,
}

impl PairState {
    /// The state of newly opened listeners, A before B: A is active.
    pub fn new(addresses: usize) -> PairState {
        let order = vec![order_from(Side::A); addresses];
        PairState { active: Side::A, reset: None, order }
    }

    /// The side that receives new connections.
    pub fn active(&self) -> Side {
        self.active
    }

    /// The same state with another active side.
    pub fn switched_to(&self, side: Side) -> PairState {
        PairState { active: side, ..self.clone() }
    }

    /// The same state after a new socket of a side has joined the group of an address.
    pub fn joined(&self, at: usize, side: Side) -> PairState {
        let mut order = self.order_of(at);
        order.remove(side.slot());
        order.push(side.slot());
        self.clone().with_order(at, order)
    }

    /// Unknown addresses were opened as A before B.
    fn order_of(&self, at: usize) -> MemberOrder {
        self.order.get(at).cloned().unwrap_or_else(|| order_from(Side::A))
    }

    fn with_order(mut self, at: usize, order: MemberOrder) -> PairState {
        let length = self.order.len().max(at + 1);
        self.order.resize(length, order_from(Side::A));
        self.order[at] = order;
        self
    }

    /// Whether both states steer alike. Ignores a pending reset, which is detected again anyway.
    pub fn steers_like(&self, other: &PairState) -> bool {
        let addresses = self.order.len().max(other.order.len());
        self.active == other.active && (0..addresses).all(|at| self.order_of(at) == other.order_of(at))
    }

    /// The same state with a pending reset of a side: it resets queued connections, and makes a TCP listener that its
    /// program has shut down listen again. It drops queued datagrams. No program may be using the side.
    pub fn with_reset(&self, side: Side) -> PairState {
        PairState { reset: Some(side), ..self.clone() }
    }
}

/// The two listeners of one address. For a unix path they are bound to the names of their slots.
#[derive(Debug)]
pub struct ListenerPair {
    /// The address.
    pub address: ListenAddress,
    /// Side A.
    pub a: OwnedFd,
    /// Side B.
    pub b: OwnedFd,
}

/// The pairs of all addresses of a service. They switch together, one after the other.
#[derive(Debug)]
pub struct Pair {
    addresses: Vec<ListenerPair>,
    state: PairState,
}

impl Pair {
    /// Assembles a pair and changes nothing.
    pub fn hold(addresses: Vec<ListenerPair>, state: PairState) -> Pair {
        Pair { addresses, state }
    }

    /// Assembles a pair and applies a state.
    pub fn new(addresses: Vec<ListenerPair>, state: PairState) -> Result<Pair, SlotError> {
        let mut pair = Pair::hold(addresses, state.clone());
        pair.apply(state)?;
        Ok(pair)
    }

    /// The current state.
    pub fn state(&self) -> &PairState {
        &self.state
    }

    /// Checks for foreign sockets, which matter when a side leaves. Call it while no client waits.
    pub fn update_order(&mut self) {
        for (at, pair) in self.addresses.iter().enumerate().filter(|(_, pair)| pair.is_tcp()) {
            if let Ok(others) = foreign::in_group(&pair.address, [&pair.a, &pair.b].into_iter()) {
                let mut order = self.state.order_of(at);
                order.observe(&others);
                self.state = self.state.clone().with_order(at, order);
            }
        }
    }

    /// Whether the last check found foreign sockets.
    pub fn has_foreign_sockets(&self) -> bool {
        self.state.order.iter().any(|order| order.foreign().next().is_some())
    }

    /// The live TCP listeners of a side.
    pub fn alive_listeners(&self, side: Side) -> impl Iterator<Item = &OwnedFd> {
        self.addresses
            .iter()
            .filter(move |pair| pair.is_tcp() && pair.is_alive(side))
            .map(move |pair| pair.side(side))
    }

    /// The state after [`Pair::apply`]: a side that its program has shut down rejoins its group after the other side.
    /// Record it before the apply, which leaves no trace of the order if it is interrupted.
    pub fn foresee(&self, state: &PairState) -> PairState {
        let orders = self.addresses.iter().enumerate();
        orders.fold(state.clone(), |state, (at, pair)| {
            let order = pair.order_after(state.active, state.reset, state.order_of(at));
            state.with_order(at, order)
        })
    }

    /// Makes the kernel match the wanted state. Returns the resulting state, with the reset done, which the caller must
    /// also record.
    ///
    /// If a program has shut down the active TCP listener, it listens again; no program may be using it. Other sockets
    /// may have been replaced by a new one that this process does not have: that one receives the traffic. After an
    /// error, the previous side receives everything it can; [`Pair::state`] is then the state to record, and the same
    /// state can be applied again.
    pub fn apply(&mut self, state: PairState) -> Result<&PairState, SlotError> {
        let (before, state) = (self.state.active, self.foresee(&state));
        let applied = self.apply_foreseen(&state);
        // Also for addresses that were not reached: a side that was shut down is the last of its order in any case.
        self.state = PairState { reset: None, ..state };
        if let Err(error) = applied {
            self.state.active = before;
            let _ = self.steer_again();
            return Err(error);
        }
        Ok(&self.state)
    }

    fn apply_foreseen(&self, state: &PairState) -> Result<(), SlotError> {
        for (at, pair) in self.addresses.iter().enumerate() {
            let order = state.order_of(at);
            if let Some(side) = state.reset {
                pair.check_reset(side, state.active)?;
                pair.reset(side, state.active, &order)?;
            }
            pair.steer(state.active, &order)?;
        }
        Ok(())
    }

    /// Steers all new connections to the active side where it is alive, and changes nothing else. Continues after an
    /// error, and returns one of the errors.
    pub fn steer_again(&self) -> Result<(), SlotError> {
        let active = self.state.active;
        let alive = self.addresses.iter().enumerate().filter(|(_, pair)| pair.is_alive(active));
        let steered = alive.map(|(at, pair)| pair.steer(active, &self.state.order_of(at)));
        steered.fold(Ok(()), Result::and)
    }

    /// Whether a TCP listener of this side receives no connections because its program has shut it down: they wait at
    /// the other side.
    pub fn is_left(&self, side: Side) -> bool {
        let is_tcp = |pair: &&ListenerPair| pair.is_tcp();
        self.addresses.iter().filter(is_tcp).any(|pair| !pair.is_alive(side) && pair.is_alive(side.other()))
    }

    /// The addresses that prevent starting a program on this side: this process's socket is dead, and a new one may
    /// have replaced it.
    pub fn replaced(&self, side: Side) -> impl Iterator<Item = &ListenAddress> {
        self.addresses
            .iter()
            .filter(move |pair| !pair.is_tcp() && !pair.is_alive(side))
            .map(|pair| &pair.address)
    }

    /// Whether a unix listener of this side was shut down. Clients wait at its replacement under the same name.
    pub fn has_ended_path(&self, side: Side) -> bool {
        let is_unix = |pair: &&ListenerPair| matches!(pair.address, ListenAddress::Unix(_));
        self.addresses.iter().filter(is_unix).any(|pair| !pair.is_alive(side))
    }

    /// Makes the paths of unix sockets point to the active side again.
    pub fn restore_paths(&self) -> Result<(), SlotError> {
        let unix = self.addresses.iter().filter(|pair| matches!(pair.address, ListenAddress::Unix(_)));
        unix.into_iter().try_for_each(|pair| pair.steer(self.state.active, &MemberOrder::default()))
    }

    /// The datagram sockets: of this side, and of the other side, where the next datagrams will wait.
    pub fn datagram_sockets(&self, side: Side) -> impl Iterator<Item = (&OwnedFd, &OwnedFd)> {
        let datagrams = self.addresses.iter().filter(|pair| pair.address.is_datagram());
        datagrams.map(move |pair| (pair.side(side), pair.side(side.other())))
    }

    /// Number of connections queued at a side, over all addresses. For unix sockets and datagrams only whether any
    /// waits is known: 0 or 1 each.
    pub fn queue_len(&self, side: Side) -> Result<u32, SlotError> {
        self.addresses.iter().map(|pair| pair.queue_len(side)).sum()
    }

    /// Like [`Pair::queue_len`], for live listeners only: a listener that was shut down always appears to have
    /// connections.
    pub fn left_waiting(&self, side: Side) -> Result<u32, SlotError> {
        let alive = self.addresses.iter().filter(|pair| pair.is_alive(side));
        alive.map(|pair| pair.queue_len(side)).sum()
    }

    /// Number of datagrams lost at a side since it was opened, because its receive buffer was full.
    pub fn dropped(&self, side: Side) -> Result<u32, SlotError> {
        self.addresses.iter().map(|pair| dropped_at(&pair.address, pair.side(side))).sum()
    }

    /// The listeners of a side, in the order of the addresses.
    pub fn listeners(&self, side: Side) -> impl Iterator<Item = &OwnedFd> {
        self.addresses.iter().map(move |pair| pair.side(side))
    }
}

impl ListenerPair {
    fn side(&self, side: Side) -> &OwnedFd {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    fn is_tcp(&self) -> bool {
        self.address.ip().is_some() && !self.address.is_datagram()
    }

    /// Whether this process's socket of a side can receive traffic.
    fn is_alive(&self, side: Side) -> bool {
        socket::is_alive(&self.address, self.side(side))
    }

    /// The order of the group after a reset and a repair of the active side. Queries the kernel only if something has
    /// changed, because this runs in the gap between two programs.
    fn order_after(&self, active: Side, reset: Option<Side>, mut order: MemberOrder) -> MemberOrder {
        let dead: Vec<Side> = [Side::A, Side::B].into_iter().filter(|side| !self.is_alive(*side)).collect();
        dead.iter().for_each(|side| order.remove(side.slot()));
        if self.is_tcp() && (!dead.is_empty() || order.is_displaced()) {
            let others = foreign::in_group(&self.address, [&self.a, &self.b].into_iter());
            order.observe(&others.unwrap_or_default());
        }
        // A side that joins follows the other side, and so does its replacement.
        for side in reset.into_iter().chain([active]) {
            if order.index_of(side.slot()).is_none() {
                order.push(side.slot());
            }
        }
        order
    }

    /// Refuses to reset the side that receives new connections, unless it is dead.
    fn check_reset(&self, side: Side, active: Side) -> Result<(), SlotError> {
        if side == active && self.is_alive(side) {
            return Err(SlotError::ActiveSide { address: self.address.clone(), side });
        }
        Ok(())
    }

    fn steer(&self, active: Side, order: &MemberOrder) -> Result<(), SlotError> {
        if let ListenAddress::Unix(path) = &self.address {
            // By its name, which a replacement socket may have by now.
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

    /// Whether another socket has replaced one that a program has ended.
    fn is_replaced(&self) -> bool {
        foreign::in_group(&self.address, [&self.a, &self.b].into_iter())
            .is_ok_and(|others| !others.is_empty())
    }

    fn reset(&self, side: Side, active: Side, order: &MemberOrder) -> Result<(), SlotError> {
        let listener = self.side(side);
        if self.address.is_datagram() {
            return udp::empty(listener).map(drop).map_err(|error| self.failed("reset", error));
        }
        if !self.is_tcp() || self.is_alive(side) {
            return unix::end_waiting(listener.as_fd()).map_err(|error| self.failed("reset", error));
        }
        let other = side.other();
        if let (true, Some(index)) = (other == active && self.is_alive(other), order.index_of(other.slot())) {
            // Steers before the side rejoins, or the side would receive connections.
            self.attach(other, index)?;
        }
        self.listen_again(side)
    }

    fn listen_again(&self, side: Side) -> Result<(), SlotError> {
        listen(self.side(side), LONGEST_BACKLOG).map_err(|error| self.failed("listen again on", error))
    }

    fn attach(&self, member: Side, index: u32) -> Result<(), SlotError> {
        steer::attach(self.side(member), &SteeringProgram::constant(index).instructions())
            .map_err(|error| self.failed("steer", error))
    }

    fn queue_len(&self, side: Side) -> Result<u32, SlotError> {
        waiting_at(&self.address, self.side(side))
    }

    fn failed(&self, action: &'static str, error: impl Into<std::io::Error>) -> SlotError {
        SlotError::new(&self.address, action, error)
    }
}
