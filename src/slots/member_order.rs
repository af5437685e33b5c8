//! The kernel's index of each member of a `SO_REUSEPORT` group.

use serde::{Deserialize, Serialize};

use super::SlotId;
use super::foreign::Inode;

/// A member of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Member {
    Slot(SlotId),
    /// The socket of an unrelated process.
    Foreign(Inode),
}

/// The kernel numbers members in the order in which they began to listen; when one leaves, the last one takes its
/// index.
///
/// Foreign sockets come and go unnoticed. New ones since the last check follow all earlier members only if no slot has
/// joined or left in between. So check before every change of a slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberOrder(Vec<Member>);

impl MemberOrder {
    /// Records a slot that begins to listen.
    pub(super) fn push(&mut self, slot: SlotId) {
        self.0.push(Member::Slot(slot));
    }

    /// Records a slot that began to listen before all others.
    pub(super) fn push_first(&mut self, slot: SlotId) {
        self.0.insert(0, Member::Slot(slot));
    }

    /// Records a slot that stops listening. No effect for unknown slots.
    pub(super) fn remove(&mut self, slot: SlotId) {
        self.leave(Member::Slot(slot));
    }

    /// Records the foreign sockets that exist now, in the order in which they joined.
    pub(super) fn observe(&mut self, foreign: &[Inode]) {
        for gone in self.foreign().filter(|known| !foreign.contains(known)).collect::<Vec<_>>() {
            self.leave(Member::Foreign(gone));
        }
        for socket in foreign {
            if !self.0.contains(&Member::Foreign(*socket)) {
                self.0.push(Member::Foreign(*socket));
            }
        }
    }

    /// The foreign sockets of the last check.
    pub(super) fn foreign(&self) -> impl Iterator<Item = Inode> {
        self.0.iter().filter_map(|member| match member {
            Member::Foreign(inode) => Some(*inode),
            Member::Slot(_) => None,
        })
    }

    /// Whether a foreign socket precedes a slot: when it leaves, the slot's index may change.
    pub(super) fn is_displaced(&self) -> bool {
        let foreign = |member: &&Member| matches!(member, Member::Foreign(_));
        self.0.iter().skip_while(|member| !foreign(member)).any(|member| !foreign(&member))
    }

    /// The kernel's index of a slot.
    pub(super) fn index_of(&self, slot: SlotId) -> Option<u32> {
        self.position(Member::Slot(slot)).map(|index| index as u32)
    }

    /// All slots by index.
    pub(super) fn slots(&self) -> Vec<SlotId> {
        let slots = self.0.iter().filter_map(|member| match member {
            Member::Slot(slot) => Some(*slot),
            Member::Foreign(_) => None,
        });
        slots.collect()
    }

    fn leave(&mut self, member: Member) {
        if let Some(index) = self.position(member) {
            self.0.swap_remove(index);
        }
    }

    fn position(&self, member: Member) -> Option<usize> {
        self.0.iter().position(|known| *known == member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_last_takes_the_place_of_the_one_that_leaves() {
        let mut order = MemberOrder::default();
        (1..=4).map(SlotId).for_each(|slot| order.push(slot));
        order.remove(SlotId(2));
        assert_eq!(order.slots(), [1, 4, 3].map(SlotId));
        order.remove(SlotId(3));
        assert_eq!(order.slots(), [1, 4].map(SlotId));
        order.remove(SlotId(9));
        assert_eq!(order.index_of(SlotId(4)), Some(1));
        assert_eq!(order.index_of(SlotId(3)), None);
    }

    #[test]
    fn foreign_sockets_are_counted_in_order_of_arrival() {
        let mut order = MemberOrder::default();
        order.push(SlotId(1));
        order.observe(&[70]);
        assert!(!order.is_displaced(), "it is behind");
        order.push(SlotId(2));
        assert_eq!((order.index_of(SlotId(2)), order.is_displaced()), (Some(2), true));
        order.observe(&[70, 71]);
        order.remove(SlotId(1));
        assert_eq!(order.index_of(SlotId(2)), Some(2), "the newest foreign socket has taken the first place");
        order.observe(&[70]);
        assert_eq!((order.index_of(SlotId(2)), order.is_displaced()), (Some(0), false));
        order.observe(&[]);
        assert_eq!(order.slots(), [SlotId(2)]);
    }

    /// The same rule differently: a table from slot to index, as in the kernel's documentation.
    #[derive(Default)]
    struct Model(BTreeMap<SlotId, u32>);

    impl Model {
        fn push(&mut self, slot: SlotId) {
            let count = self.0.len() as u32;
            self.0.insert(slot, count);
        }
        fn remove(&mut self, slot: SlotId) {
            let Some(freed) = self.0.remove(&slot) else { return };
            let last = self.0.len() as u32;
            self.0.values_mut().filter(|index| **index == last).for_each(|index| *index = freed);
        }
    }

    proptest! {
        #[test]
        fn indices_are_those_of_the_model(steps in proptest::collection::vec((0..3, 0_u64..12), 0..60)) {
            let (mut order, mut model) = (MemberOrder::default(), Model::default());
            for (next, (kind, pick)) in steps.into_iter().enumerate() {
                if kind == 0 {
                    order.push(SlotId(next as u64));
                    model.push(SlotId(next as u64));
                } else if let Some(slot) = order.slots().get(pick as usize).copied() {
                    order.remove(slot);
                    model.remove(slot);
                    if kind == 1 {
                        // It was shut down, and listens again.
                        order.push(slot);
                        model.push(slot);
                    }
                }
                prop_assert_eq!(order.slots().len(), model.0.len());
                for (slot, index) in &model.0 {
                    prop_assert_eq!(order.index_of(*slot), Some(*index));
                }
            }
        }
    }
}
