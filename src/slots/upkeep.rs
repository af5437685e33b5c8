//! Reacts to external changes of the slots: programs that shut their listeners down, and foreign sockets that join the
//! group.

use std::io;

use super::steering_program::SteeringProgram;
use super::{ForeignSocket, Group, SlotError, SlotId, foreign, is_alive, stop_listening, unix};
use crate::config::ListenAddress;
use crate::sys::socket::{LONGEST_BACKLOG, listen};
use crate::sys::{listens::listens, steer};

impl Group {
    /// Updates the order: slots that a program has ended, and foreign sockets that have joined or left. Without an
    /// answer from the kernel it stays as it is.
    pub(super) fn update_order(&mut self) {
        if let ListenAddress::Unix(_) = self.address {
            return;
        }
        for (slot, listener) in &self.slots {
            if listens(listener) == Ok(false) {
                self.order.remove(*slot);
            }
        }
        if let Ok(foreign) = foreign::in_group(&self.address, self.slots.values()) {
            self.order.observe(&foreign);
        }
    }

    /// Whether foreign sockets precede slots, so that one that leaves may redirect connections. Call [`Group::repair`]
    /// while this is so.
    pub fn is_displaced(&self) -> bool {
        self.order.is_displaced()
    }

    /// Restores the steering after a member has left.
    pub fn repair(&mut self) -> Result<(), SlotError> {
        let before = self.order.clone();
        self.update_order();
        if self.order == before { Ok(()) } else { self.attach() }
    }

    /// The foreign sockets that receive, or could receive, traffic for this address. Queries the kernel.
    pub fn others(&self) -> io::Result<Vec<ForeignSocket>> {
        foreign::beside(&self.address, self.slots.values())
    }

    /// Whether a slot can still receive traffic. Its program may have shut it down, or connected it to one client.
    pub fn is_alive(&self, slot: SlotId) -> bool {
        self.fd(slot).is_some_and(|listener| is_alive(&self.address, listener))
    }

    /// Revives a dead slot. No process may be using it. A TCP listener listens again for all holders; any other socket
    /// is replaced by a new one, which the holders of the old one must get. Returns whether there is a new one. Does
    /// not change the steering, see [`Group::steer_anew`].
    pub fn revive(&mut self, slot: SlotId) -> Result<bool, SlotError> {
        let listener = self.known(slot)?;
        match &self.address {
            ListenAddress::Unix(path) => {
                let listener = unix::renew(path, slot)?;
                self.slots.insert(slot, listener);
                return Ok(true);
            }
            address if address.is_datagram() => stop_listening(listener),
            address => listen(listener, LONGEST_BACKLOG)
                .map_err(|error| SlotError::new(address, "listen again on", error))?,
        }
        if self.address.is_datagram() {
            return self.replace(slot).map(|()| true);
        }
        self.order.remove(slot);
        self.update_order();
        self.order.push(slot);
        Ok(false)
    }

    /// Replaces a dead socket by a new one while a process may still use the old one: that process gets the errors that
    /// it expects. The new one is for the next process. Does not change the steering, see [`Group::steer_anew`].
    pub fn renew(&mut self, slot: SlotId) -> Result<(), SlotError> {
        let listener = self.known(slot)?;
        match &self.address {
            ListenAddress::Unix(_) => return self.revive(slot).map(drop),
            // A socket that was shut down stays in its group until it leaves explicitly.
            address if address.is_datagram() => stop_listening(listener),
            _ => {}
        }
        self.replace(slot)
    }

    /// The new socket joins the group when it is opened, and receives nothing by that.
    fn replace(&mut self, slot: SlotId) -> Result<(), SlotError> {
        self.order.remove(slot);
        self.update_order();
        if let [other] = self.order.slots()[..]
            && let (Some(index), Some(listener)) = (self.order.index_of(other), self.slots.get(&other))
        {
            steer::attach(listener, &SteeringProgram::constant(index).instructions())
                .map_err(|error| SlotError::new(&self.address, "steer", error))?;
        }
        let listener = self.open_last(slot)?;
        self.order.push(slot);
        self.slots.insert(slot, listener);
        Ok(())
    }

    /// Steers new connections to their slot again after it was revived.
    pub fn steer_anew(&mut self) -> Result<(), SlotError> {
        self.apply()
    }
}
