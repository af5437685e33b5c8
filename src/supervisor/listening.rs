//! The listeners of a service: which slot each process accepts from.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use handoff_protocol::ids::ListenerName;
use handoff_protocol::message::Mode;

use super::keeping::Keeping;
use super::service::Service;
use crate::config::{self, ListenAddress};
use crate::control::{Error, Kind};
use crate::slots::{Group, SlotError, SlotId};

/// One slot of each address of a service, by a number that is never used twice.
#[derive(Debug)]
pub(super) struct Listening {
    names: Vec<ListenerName>,
    groups: Vec<Group>,
    slots: BTreeMap<u64, Vec<SlotId>>,
    /// The slot that gets new connections.
    steered: u64,
    steered_at: Instant,
    /// Whether a handshake can take time: some address is not of this machine alone.
    is_remote: bool,
    next: u64,
}

/// A handshake that has not ended after so long is not waited for: two SYN+ACK retransmits of a slow path.
const HANDSHAKE: Duration = Duration::from_secs(3);

impl Listening {
    /// Binds all addresses, or none.
    fn open(listeners: &[config::Listener]) -> Result<Self, SlotError> {
        let mut groups = Vec::with_capacity(listeners.len());
        for listener in listeners {
            match Group::open(&listener.address) {
                Ok(group) => groups.push(group),
                Err(error) => {
                    groups.into_iter().for_each(Group::close);
                    return Err(error);
                }
            }
        }
        let first = groups.iter().map(Group::steered).collect();
        let names = listeners.iter().map(|listener| listener.name.clone()).collect();
        let is_remote = listeners.iter().any(|listener| match &listener.address {
            ListenAddress::Tcp(address) => !address.ip().is_loopback(),
            ListenAddress::DualStack { .. } => true,
            ListenAddress::Unix(_) => false,
        });
        let slots = BTreeMap::from([(0, first)]);
        Ok(Self { names, groups, slots, steered: 0, steered_at: Instant::now(), is_remote, next: 1 })
    }

    pub(super) fn names(&self) -> Vec<ListenerName> {
        self.names.clone()
    }

    /// The descriptors of a slot, in the order of the names.
    pub(super) fn fds(&self, slot: u64) -> Vec<BorrowedFd<'_>> {
        let ids = self.slots.get(&slot).into_iter().flatten();
        self.groups.iter().zip(ids).filter_map(|(group, id)| group.fd(*id)).collect()
    }

    /// Adds a slot that gets no connection until it is steered to.
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
        let Some(ids) = self.slots.get(&slot) else { return Ok(()) };
        for (group, id) in self.groups.iter_mut().zip(ids) {
            group.steer_to(*id)?;
        }
        self.steered = slot;
        self.steered_at = Instant::now();
        Ok(())
    }

    /// Whether nothing waits at a slot and nothing can be on its way there. A connection whose handshake was under way at
    /// the switch belongs to the old slot, and the kernel does not count it.
    pub(super) fn is_quiet(&self, slot: u64) -> bool {
        if slot == self.steered {
            return true;
        }
        let Some(ids) = self.slots.get(&slot) else { return true };
        let settled = !self.is_remote || self.steered_at.elapsed() >= HANDSHAKE;
        settled
            && self
                .groups
                .iter()
                .zip(ids)
                .all(|(group, id)| group.queue_len(*id).is_ok_and(|waiting| waiting == 0))
    }

    /// Takes a slot out of use, unless it is the one that gets new connections.
    fn retire(&mut self, slot: u64) -> Result<(), SlotError> {
        if slot == self.steered {
            return Ok(());
        }
        let Some(ids) = self.slots.remove(&slot) else { return Ok(()) };
        self.groups.iter_mut().zip(ids).try_for_each(|(group, id)| group.retire(id))
    }

    /// How a slot is known to the keeper: the service, the listener, the number.
    fn keys(&self, service: &str, slot: u64) -> Vec<String> {
        self.names.iter().map(|name| format!("{service}/{name}/{slot}")).collect()
    }

    fn store(&self, keeper: &Keeping, service: &str, slot: u64) {
        for (key, fd) in self.keys(service, slot).iter().zip(self.fds(slot)) {
            keeper.store(key, fd);
        }
    }

    fn forget(&self, keeper: &Keeping, service: &str, slot: u64) {
        for key in self.keys(service, slot) {
            keeper.drop_key(&key);
        }
    }
}

impl Service {
    /// Binds the addresses of the service file, unless they are bound already.
    pub(super) fn open_listeners(&mut self) -> Result<(), Error> {
        if self.listening.is_some() {
            return Ok(());
        }
        let listening = Listening::open(&self.config.listeners).map_err(|error| {
            let message = format!("Service {:?} cannot listen: {error}.", self.name.as_str());
            Error::new(Kind::BindFailed, message, "Nothing was started.")
        })?;
        listening.store(&self.shared.keeper, self.name.as_str(), listening.steered);
        self.listening = Some(listening);
        Ok(())
    }

    /// From now on connections are refused.
    pub(super) fn close_listeners(&mut self) {
        let Some(listening) = self.listening.take() else { return };
        for slot in listening.slots.keys() {
            listening.forget(&self.shared.keeper, self.name.as_str(), *slot);
        }
        self.shared.keeper.forget_processes(&self.name);
        listening.groups.into_iter().for_each(Group::close);
    }

    /// Where the next process is to accept from: beside the incumbent if both may serve at once; otherwise where the
    /// connections are.
    pub(super) fn slot_for_successor(&mut self) -> Result<u64, SlotError> {
        let Some(listening) = &mut self.listening else { return Ok(0) };
        if self.config.mode == Mode::Exclusive || self.incumbent.is_none() {
            return Ok(listening.steered);
        }
        let slot = listening.add()?;
        listening.store(&self.shared.keeper, self.name.as_str(), slot);
        Ok(slot)
    }

    /// The successor is gone. What waits at a slot of its own was never meant to be there.
    pub(super) fn forget_successor(&mut self) {
        if let Some(party) = self.successor.take() {
            self.retire_slot(party.slot);
        }
    }

    /// The retiree is gone.
    pub(super) fn forget_retiree(&mut self) {
        if let Some(party) = self.retiree.take() {
            self.retire_slot(party.slot);
        }
    }

    pub(super) fn retire_slot(&mut self, slot: u64) {
        let Some(listening) = &mut self.listening else { return };
        if slot == listening.steered {
            return;
        }
        listening.forget(&self.shared.keeper, self.name.as_str(), slot);
        if let Err(error) = listening.retire(slot) {
            tracing::error!(service = %self.name, %error, "a slot could not be retired");
            self.problem = Some(error.to_string());
        }
    }
}
