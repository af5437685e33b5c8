//! What others do to the slots: programs that shut their listeners down, and strangers that join the group.

use std::io;

use super::program::Program;
use super::{Group, Other, SlotError, SlotId, is_alive, others, stop_listening, unix};
use crate::config::ListenAddress;
use crate::sys::socket::{LONGEST_BACKLOG, listen};
use crate::sys::{listens::listens, steer};

impl Group {
    /// Brings the book up to date: slots that a program has ended, and strangers that have come or gone. Where the kernel does
    /// not tell, the book stays as it is.
    pub(super) fn look(&mut self) {
        if let ListenAddress::Unix(_) = self.address {
            return;
        }
        for (slot, listener) in &self.slots {
            if listens(listener) == Ok(false) {
                self.order.remove(*slot);
            }
        }
        if let Ok(strangers) = others::in_group(&self.address, self.slots.values()) {
            self.order.observe(&strangers);
        }
    }

    /// Whether strangers have come between the slots, so that one that leaves may take the connections elsewhere:
    /// [`Group::repair`] as long as it is so.
    pub fn is_displaced(&self) -> bool {
        self.order.is_displaced()
    }

    /// Sends new connections where they are to go, whoever has left.
    pub fn repair(&mut self) -> Result<(), SlotError> {
        let before = self.order.clone();
        self.look();
        if self.order == before { Ok(()) } else { self.attach() }
    }

    /// The sockets of others that take what is sent to this address, or could. Asks the kernel.
    pub fn others(&self) -> io::Result<Vec<Other>> {
        others::beside(&self.address, self.slots.values())
    }

    /// Whether a slot can still get what clients send. Its program may have shut it down, or connected it to one client.
    pub fn is_alive(&self, slot: SlotId) -> bool {
        self.fd(slot).is_some_and(|listener| is_alive(&self.address, listener))
    }

    /// Lets a slot that is not alive get connections again. No process may be at work at it. A TCP listener listens again,
    /// whoever holds it; in the place of another one there is a new socket, which is to be given to whoever holds the old
    /// one. Says whether there is. What is steered stays as it is, see [`Group::steer_anew`].
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
        self.look();
        self.order.push(slot);
        Ok(false)
    }

    /// Opens another socket in the place of one that is not alive, while the process that has the old one may still be at work at it: that
    /// one gets the errors that it expects. The new one is for the process that follows. What is steered stays as it is, see
    /// [`Group::steer_anew`].
    pub fn renew(&mut self, slot: SlotId) -> Result<(), SlotError> {
        let listener = self.known(slot)?;
        match &self.address {
            ListenAddress::Unix(_) => return self.revive(slot).map(drop),
            // One that was shut down is a member of its group until it leaves.
            address if address.is_datagram() => stop_listening(listener),
            _ => {}
        }
        self.replace(slot)
    }

    /// The new one joins the group when it is opened, and gets nothing by that.
    fn replace(&mut self, slot: SlotId) -> Result<(), SlotError> {
        self.order.remove(slot);
        self.look();
        if let [other] = self.order.slots()[..]
            && let (Some(index), Some(listener)) = (self.order.index_of(other), self.slots.get(&other))
        {
            steer::attach(listener, &Program::constant(index).instructions())
                .map_err(|error| SlotError::new(&self.address, "steer", error))?;
        }
        let listener = self.open_last(slot)?;
        self.order.push(slot);
        self.slots.insert(slot, listener);
        Ok(())
    }

    /// Sends new connections to the slot that gets them once more: it was revived.
    pub fn steer_anew(&mut self) -> Result<(), SlotError> {
        self.apply()
    }
}
