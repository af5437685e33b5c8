//! The index that the kernel gives each member of a `SO_REUSEPORT` group.

use serde::{Deserialize, Serialize};

use super::SlotId;
use super::others::Inode;

/// One that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Member {
    Slot(SlotId),
    /// The socket of a process that has nothing to do with the service.
    Stranger(Inode),
}

/// Members are counted in the order in which they began to listen; when one leaves, the last one takes its index.
///
/// Strangers come and go unseen. Those who came since the last look are behind all that were there, as long as no slot has come or
/// gone in between; so it is looked before that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order(Vec<Member>);

impl Order {
    /// A slot began to listen.
    pub(super) fn push(&mut self, slot: SlotId) {
        self.0.push(Member::Slot(slot));
    }

    /// A slot is found that began to listen before all others.
    pub(super) fn push_first(&mut self, slot: SlotId) {
        self.0.insert(0, Member::Slot(slot));
    }

    /// A slot stopped listening. One that is unknown changes nothing.
    pub(super) fn remove(&mut self, slot: SlotId) {
        self.leave(Member::Slot(slot));
    }

    /// These strangers are there, in the order in which they came, and no others.
    pub(super) fn observe(&mut self, strangers: &[Inode]) {
        for gone in self.strangers().filter(|known| !strangers.contains(known)).collect::<Vec<_>>() {
            self.leave(Member::Stranger(gone));
        }
        for stranger in strangers {
            if !self.0.contains(&Member::Stranger(*stranger)) {
                self.0.push(Member::Stranger(*stranger));
            }
        }
    }

    /// The strangers that were there at the last look.
    pub(super) fn strangers(&self) -> impl Iterator<Item = Inode> {
        self.0.iter().filter_map(|member| match member {
            Member::Stranger(inode) => Some(*inode),
            Member::Slot(_) => None,
        })
    }

    /// Whether a slot has a stranger before it: when that leaves, the slot's index may change.
    pub(super) fn is_displaced(&self) -> bool {
        let strangers = |member: &&Member| matches!(member, Member::Stranger(_));
        self.0.iter().skip_while(|member| !strangers(member)).any(|member| !strangers(&member))
    }

    /// The kernel's index of a slot.
    pub(super) fn index_of(&self, slot: SlotId) -> Option<u32> {
        self.position(Member::Slot(slot)).map(|index| index as u32)
    }

    /// All slots by their index.
    pub(super) fn slots(&self) -> Vec<SlotId> {
        let slots = self.0.iter().filter_map(|member| match member {
            Member::Slot(slot) => Some(*slot),
            Member::Stranger(_) => None,
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
        let mut order = Order::default();
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
    fn strangers_are_counted_where_they_came() {
        let mut order = Order::default();
        order.push(SlotId(1));
        order.observe(&[70]);
        assert!(!order.is_displaced(), "it is behind");
        order.push(SlotId(2));
        assert_eq!((order.index_of(SlotId(2)), order.is_displaced()), (Some(2), true));
        order.observe(&[70, 71]);
        order.remove(SlotId(1));
        assert_eq!(order.index_of(SlotId(2)), Some(2), "the newest stranger has taken the first place");
        order.observe(&[70]);
        assert_eq!((order.index_of(SlotId(2)), order.is_displaced()), (Some(0), false));
        order.observe(&[]);
        assert_eq!(order.slots(), [SlotId(2)]);
    }

    /// The rule, said the other way around: a table from slot to index, as the kernel's text puts it.
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
            let (mut order, mut model) = (Order::default(), Model::default());
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
