//! The listeners in the life of a service: bound, taken back, given to a process, retired, closed.

use handoff_protocol::message::Mode;

use super::Listening;
use crate::control::{Error, Kind};
use crate::slots::{Group, SlotError, stop_listening};
use crate::supervisor::service::Service;

impl Service {
    /// Binds the addresses of the service file, unless they are bound already.
    pub(in crate::supervisor) fn open_listeners(&mut self) -> Result<(), Error> {
        if self.is_as_running() {
            self.restore_listeners(true);
        } else {
            self.drop_held();
        }
        if self.listening.is_some() {
            return Ok(());
        }
        let listening = Listening::open(&self.config.listeners, self.is_paired()).map_err(|error| {
            let message = format!("Service {:?} cannot listen: {error}.", self.name.as_str());
            Error::new(Kind::BindFailed, message, "Nothing was started.")
        })?;
        listening.store(&self.shared.keeper, self.name.as_str(), listening.steered);
        self.listening = Some(listening);
        self.remember_running();
        Ok(())
    }

    /// Ends the listeners that only the keeper has.
    fn drop_held(&self) {
        let prefix = format!("{}/", self.name);
        for (_, fd) in self.shared.keeper.held(&prefix).unwrap_or_default() {
            stop_listening(&fd);
        }
        self.shared.keeper.drop_prefix(&prefix);
    }

    /// Takes back what the keeper holds for this service, if there is something. New connections go to the newest slot, or
    /// to the oldest.
    pub(in crate::supervisor) fn restore_listeners(&mut self, newest: bool) {
        if self.listening.is_some() {
            return;
        }
        let held = match self.shared.keeper.held(&format!("{}/", self.name)) {
            Ok(held) => held,
            Err(error) => {
                tracing::error!(service = %self.name, %error, "what the keeper holds cannot be used");
                return;
            }
        };
        let is_paired = self.is_paired();
        match Listening::restore(&self.config.listeners, self.name.as_str(), held, newest, is_paired) {
            Ok(listening) => self.listening = listening,
            Err(error) => {
                tracing::error!(service = %self.name, %error, "what the keeper holds cannot be used");
                self.problem = Some(error.to_string());
            }
        }
    }

    /// Whether all processes share both slots of each address, and decide themselves where new connections go: a process that
    /// cannot stop accepting is not to share a slot with the one that follows, and only one at a time is at work.
    pub(in crate::supervisor) fn is_paired(&self) -> bool {
        self.config.adapter.is_foreign() && self.config.mode == Mode::Exclusive
    }

    /// From now on connections are refused.
    pub(in crate::supervisor) fn close_listeners(&mut self) {
        self.forget_running();
        let Some(listening) = self.listening.take() else { return };
        for slot in listening.slots.keys() {
            listening.forget(&self.shared.keeper, self.name.as_str(), *slot);
        }
        self.shared.keeper.forget_processes(&self.name);
        listening.groups.into_iter().for_each(Group::close);
    }

    /// Where the next process is to accept from: beside the incumbent if both may serve at once; otherwise where the
    /// connections are.
    pub(in crate::supervisor) fn slot_for_successor(&mut self) -> Result<u64, SlotError> {
        let Some(listening) = &mut self.listening else { return Ok(0) };
        if self.config.mode == Mode::Exclusive || self.incumbent.is_none() {
            return Ok(listening.steered);
        }
        let slot = listening.add()?;
        listening.store(&self.shared.keeper, self.name.as_str(), slot);
        Ok(slot)
    }

    /// The successor is gone. What waits at a slot of its own was never meant to be there.
    pub(in crate::supervisor) fn forget_successor(&mut self) {
        if let Some(party) = self.successor.take() {
            self.retire_slot(party.slot);
        }
    }

    /// The retiree is gone.
    pub(in crate::supervisor) fn forget_retiree(&mut self) {
        if let Some(party) = self.retiree.take() {
            self.retire_slot(party.slot);
        }
    }

    /// Takes the slots of the dead out of use.
    pub(in crate::supervisor) fn retire_unused_slots(&mut self) {
        let parties = [&self.incumbent, &self.successor, &self.retiree].into_iter().flatten();
        let used: Vec<u64> = parties.map(|party| party.slot).collect();
        let slots = self.listening.as_ref().map(Listening::slots).unwrap_or_default();
        for slot in slots.into_iter().filter(|slot| !used.contains(slot)) {
            self.retire_slot(slot);
        }
    }

    pub(in crate::supervisor) fn retire_slot(&mut self, slot: u64) {
        let Some(listening) = &mut self.listening else { return };
        if slot == listening.steered || listening.is_paired {
            return;
        }
        let keys = listening.keys(self.name.as_str(), slot);
        for (address, waits, dropped) in listening.unread(slot) {
            tracing::warn!(service = %self.name, %address, waits, dropped, "the process that is gone has not read all datagrams");
        }
        if let Err(error) = listening.retire(slot) {
            tracing::error!(service = %self.name, %error, "a slot could not be retired");
            self.problem = Some(error.to_string());
        }
        // Not before: what the keeper holds no more, nobody could ever take out of the group.
        for key in keys {
            self.shared.keeper.drop_key(&key);
        }
    }
}
