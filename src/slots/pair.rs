//! Two listeners of each address for good, of which one gets the new connections.
//!
//! For programs that cannot be told to leave connections alone: one of them works on one side, and the connections for
//! the next one wait at the other side.
//!
//! Whoever holds the descriptors can switch, and may die in between. So what is wanted is a value, [`PairState`], which
//! the caller writes down before [`Pair::apply`] makes the kernel agree, and again with what that gives back. Applying
//! the same state again changes nothing, and completes what was interrupted.
//!
//! Invariant: `first` of each address tells which side has index 0 in its group while both listen. Only a reset changes
//! it, in one direction, whether it is carried out once or twice. The two sockets of a UDP address never leave their group, so
//! for them it stays as it is.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::listen;
use serde::{Deserialize, Serialize};

use super::program::Program;
use super::tcp::LONGEST_BACKLOG;
use super::{SlotError, dropped_at, stop_listening, udp, unix, waiting_at};
use crate::config::ListenAddress;
use crate::sys::{listens::listens, steer};

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
    first: Vec<Side>,
}

impl PairState {
    /// The state of listeners that were just opened, A before B: A is active.
    pub fn new(addresses: usize) -> PairState {
        PairState { active: Side::A, reset: None, first: vec![Side::A; addresses] }
    }

    /// The side that gets new connections.
    pub fn active(&self) -> Side {
        self.active
    }

    /// The same with another side active.
    pub fn switched_to(&self, side: Side) -> PairState {
        PairState { active: side, ..self.clone() }
    }

    /// The same with a side to be reset: what waits there is reset (or moved to the other side, with
    /// `net.ipv4.tcp_migrate_req`), and it listens anew if it does not listen any more. Datagrams that wait are dropped; a
    /// datagram socket that a program has connected to a client stays lost. No program may be at work on it.
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
    /// Puts a pair together and applies what is wanted of it.
    pub fn new(addresses: Vec<Both>, state: PairState) -> Result<Pair, SlotError> {
        let mut pair = Pair { addresses, state: state.clone() };
        pair.apply(state)?;
        Ok(pair)
    }

    /// What the pair is in.
    pub fn state(&self) -> &PairState {
        &self.state
    }

    /// Makes the kernel agree with what is wanted. Gives what is so then, also to be written down: a reset is done.
    ///
    /// An active side that does not listen any more, as its program has shut it down, is an error that a reset heals, except for
    /// datagrams. After an error the same state can be applied again.
    pub fn apply(&mut self, state: PairState) -> Result<&PairState, SlotError> {
        let PairState { active, reset, mut first } = state;
        // What is not known was opened as A before B.
        first.resize(self.addresses.len(), Side::A);
        self.state.first = first;
        for (at, both) in self.addresses.iter().enumerate() {
            if let Some(side) = reset {
                both.check_reset(side, active)?;
                self.state.first[at] = both.reset(side, active)?.unwrap_or(self.state.first[at]);
            }
            both.steer(active, self.state.first[at])?;
        }
        (self.state.active, self.state.reset) = (active, None);
        Ok(&self.state)
    }

    /// How many connections wait at a side, over all addresses. For a unix socket, and for datagrams, it is only known whether any
    /// waits.
    pub fn queue_len(&self, side: Side) -> Result<u32, SlotError> {
        self.addresses.iter().map(|both| both.queue_len(side)).sum()
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

    fn listens(&self, side: Side) -> Result<bool, SlotError> {
        listens(self.side(side)).map_err(|error| self.failed("examine", error))
    }

    /// What gets new connections keeps them, unless it could not get any.
    fn check_reset(&self, side: Side, active: Side) -> Result<(), SlotError> {
        if side == active && self.listens(side)? {
            return Err(SlotError::ActiveSide { address: self.address.clone(), side });
        }
        Ok(())
    }

    fn steer(&self, active: Side, first: Side) -> Result<(), SlotError> {
        if !self.listens(active)? {
            return Err(SlotError::SideNotListening { address: self.address.clone(), side: active });
        }
        if let ListenAddress::Unix(path) = &self.address {
            let named = unix::slot_by_name(self.side(active).as_fd());
            let slot = named.ok_or_else(|| SlotError::OtherPair { address: self.address.clone() })?;
            return unix::put_in_place(path, slot);
        }
        // One that listens alone has the index 0.
        let alone = !self.listens(active.other())?;
        self.attach(active, if alone || first == active { 0 } else { 1 })
    }

    /// Gives which side is the first afterwards, if there is an order.
    fn reset(&self, side: Side, active: Side) -> Result<Option<Side>, SlotError> {
        let listener = self.side(side);
        if self.address.is_datagram() {
            udp::empty(listener).map_err(|error| self.failed("reset", error))?;
            return Ok(None);
        }
        if let ListenAddress::Unix(_) = self.address {
            unix::end_waiting(listener.as_fd()).map_err(|error| self.failed("reset", error))?;
            return Ok(None);
        }
        stop_listening(listener);
        let other = side.other();
        if other == active && self.listens(other)? {
            // It is alone now. Told before the side joins again, or the side would get connections.
            self.attach(other, 0)?;
        }
        listen(listener, LONGEST_BACKLOG).map_err(|error| self.failed("listen again on", error))?;
        // One that does not listen will come behind, when it listens again.
        Ok(Some(if self.listens(other)? { other } else { side }))
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
