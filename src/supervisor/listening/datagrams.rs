//! Datagrams that no process will ever read.

use super::Listening;
use crate::config::ListenAddress;
use crate::slots::{SlotId, drop_unread};

/// At one address of a slot that is not used any more.
pub(super) struct LostDatagrams<'a> {
    pub(super) address: &'a ListenAddress,
    /// They waited, and were dropped.
    pub(super) unread: u32,
    /// They found no room since new ones went elsewhere.
    pub(super) no_room: u32,
}

impl Listening {
    /// How many found no room at a slot since it was opened, by the address.
    fn without_room(&self, slot: u64) -> Vec<u32> {
        let ids: &[SlotId] = self.slots.get(&slot).map_or(&[], Vec::as_slice);
        self.groups.iter().zip(ids).map(|(group, id)| group.dropped(*id).unwrap_or(0)).collect()
    }

    /// The same of all addresses together.
    pub(in crate::supervisor) fn all_without_room(&self, slot: u64) -> u64 {
        self.without_room(slot).into_iter().map(u64::from).sum()
    }

    /// New ones are about to go elsewhere.
    pub(super) fn note_without_room(&mut self, slot: u64) {
        self.without_room = (slot, self.without_room(slot));
    }

    /// What is lost with a slot that nobody reads any more. It is dropped.
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
