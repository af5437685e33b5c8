//! Datagrams that no process will ever read.

use super::Listening;
use crate::config::ListenAddress;
use crate::slots::{SlotId, drop_unread};

/// The datagrams that were lost at one address of an abandoned slot.
pub(super) struct LostDatagrams<'a> {
    pub(super) address: &'a ListenAddress,
    /// How many waited, and were dropped.
    pub(super) unread: u32,
    /// How many found no room after new ones had been steered elsewhere.
    pub(super) no_room: u32,
}

impl Listening {
    /// How many datagrams found no room at a slot since it was opened, for each address.
    fn without_room(&self, slot: u64) -> Vec<u32> {
        let ids: &[SlotId] = self.slots.get(&slot).map_or(&[], Vec::as_slice);
        self.groups.iter().zip(ids).map(|(group, id)| group.dropped(*id).unwrap_or(0)).collect()
    }

    /// The sum over all addresses.
    pub(in crate::supervisor) fn all_without_room(&self, slot: u64) -> u64 {
        self.without_room(slot).into_iter().map(u64::from).sum()
    }

    /// Call this before new datagrams are steered elsewhere.
    pub(super) fn note_without_room(&mut self, slot: u64) {
        self.without_room = (slot, self.without_room(slot));
    }

    /// Drops and counts the datagrams of a slot that no process reads any more.
    pub(super) fn drop_unread(&self, slot: u64) -> Vec<LostDatagrams<'_>> {
        let (of, before) = &self.without_room;
        let ids: &[SlotId] = self.slots.get(&slot).map_or(&[], Vec::as_slice);
        let mut lost = Vec::new();
        for (at, (group, id)) in self.groups.iter().zip(ids).enumerate() {
            let before = before.get(at).filter(|_| *of == slot).copied().unwrap_or(0);
            let unread = group.fd(*id).map_or(0, |socket| drop_unread(socket).unwrap_or(0));
            let no_room = group.dropped(*id).unwrap_or(0).saturating_sub(before);
            if unread > 0 || no_room > 0 {
                lost.push(LostDatagrams { address: group.address(), unread, no_room });
            }
        }
        lost
    }
}
