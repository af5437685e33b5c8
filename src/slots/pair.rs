//! Two slots of each address that the processes of a service share, one of which gets new connections.
//!
//! For programs that cannot stop accepting, of which only one may run at a time: while one finishes what it has, new connections
//! wait at the other slot, where the next one starts. Nothing is opened or closed for that, so the kernel's numbers of the
//! slots stay as they are, except by [`Pair::reset`], which swaps them.
//!
//! Whoever holds the pair alone decides; it keeps the [`Turn`] where the next one finds it. To apply a turn again changes nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{Shutdown, listen, shutdown};
use serde::{Deserialize, Serialize};

use super::tcp::LONGEST_BACKLOG;
use super::{SlotError, SlotId, unix, waiting_at};
use crate::config::ListenAddress;
use crate::sys::steer::{self, Program};

/// One of the two slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one that was opened first.
    #[default]
    First,
    /// The other one.
    Second,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    fn slot(self) -> SlotId {
        match self {
            Self::First => SlotId(1),
            Self::Second => SlotId(2),
        }
    }
}

/// Whose turn it is, and what else is to be remembered of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Turn {
    /// The slot that gets new connections.
    pub active: Side,
    /// The slot that the kernel counts as the first of its group.
    pub leading: Side,
}

/// The listeners of both slots, of all addresses.
#[derive(Debug)]
pub struct Pair {
    addresses: Vec<ListenAddress>,
    first: Vec<OwnedFd>,
    second: Vec<OwnedFd>,
    turn: Turn,
}

impl Pair {
    /// Of the listeners of the first and the second slot of each address, in the order in which they were opened. Changes
    /// nothing yet: see [`Pair::apply`].
    pub fn new(addresses: Vec<ListenAddress>, first: Vec<OwnedFd>, second: Vec<OwnedFd>) -> Self {
        Self { addresses, first, second, turn: Turn::default() }
    }

    /// Whose turn it is.
    pub fn turn(&self) -> Turn {
        self.turn
    }

    /// The listeners of a slot, in the order of the addresses.
    pub fn listeners(&self, side: Side) -> &[OwnedFd] {
        match side {
            Side::First => &self.first,
            Side::Second => &self.second,
        }
    }

    /// Sends new connections where this turn says.
    pub fn apply(&mut self, turn: Turn) -> Result<(), SlotError> {
        let index = u32::from(turn.active != turn.leading);
        for (address, listener) in self.addresses.iter().zip(self.listeners(turn.active)) {
            match address {
                ListenAddress::Unix(path) => unix::put_in_place(path, turn.active.slot())?,
                address => steer::attach(listener, Program::to(index))
                    .map_err(|error| SlotError::new(address, "steer", error))?,
            }
        }
        self.turn = turn;
        Ok(())
    }

    /// How many connections wait to be accepted at a slot; for a unix socket 0 or 1.
    pub fn waiting(&self, side: Side) -> Result<u32, SlotError> {
        self.addresses
            .iter()
            .zip(self.listeners(side))
            .map(|(address, listener)| waiting_at(address, listener))
            .sum()
    }

    /// Resets what waits at the slot that does not get new connections, and would never be accepted there. The kernel
    /// then counts the other one first: gives the turn that is to be remembered.
    pub fn reset_resting(&mut self) -> Result<Turn, SlotError> {
        let resting = self.turn.active.other();
        let both = self.listeners(resting).iter().zip(self.listeners(self.turn.active));
        for (address, (left, stays)) in self.addresses.iter().zip(both) {
            let again = || -> io::Result<()> {
                shutdown(left, Shutdown::Read)?;
                // Before the other one is back: there must be no moment at which its index is that of new connections.
                steer::attach(stays, Program::to(0))?;
                Ok(listen(left, LONGEST_BACKLOG)?)
            };
            let reset = match address {
                // One that was shut down would never listen again.
                ListenAddress::Unix(_) => unix::dismiss(left.as_fd()),
                _ => again(),
            };
            reset.map_err(|error| SlotError::new(address, "reset", error))?;
        }
        let turn = Turn { leading: self.turn.active, ..self.turn };
        self.turn = turn;
        Ok(turn)
    }
}
