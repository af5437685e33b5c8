//! The index that the kernel gives each member of a `SO_REUSEPORT` group.

use super::SlotId;

/// Members are counted in the order in which they began to listen; when one leaves, the last one takes its index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Order(Vec<SlotId>);

impl Order {
    /// A slot began to listen.
    pub(super) fn push(&mut self, slot: SlotId) {
        self.0.push(slot);
    }

    /// A slot is found that began to listen before all others.
    pub(super) fn push_first(&mut self, slot: SlotId) {
        self.0.insert(0, slot);
    }

    /// A slot stopped listening. One that is unknown changes nothing.
    pub(super) fn remove(&mut self, slot: SlotId) {
        if let Some(index) = self.position(slot) {
            self.0.swap_remove(index);
        }
    }

    /// The kernel's index of a slot.
    pub(super) fn index_of(&self, slot: SlotId) -> Option<u32> {
        self.position(slot).map(|index| index as u32)
    }

    /// All slots by their index.
    pub(super) fn members(&self) -> &[SlotId] {
        &self.0
    }

    fn position(&self, slot: SlotId) -> Option<usize> {
        self.0.iter().position(|member| *member == slot)
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
        assert_eq!(order.members(), [1, 4, 3].map(SlotId));
        order.remove(SlotId(3));
        assert_eq!(order.members(), [1, 4].map(SlotId));
        order.remove(SlotId(9));
        assert_eq!(order.index_of(SlotId(4)), Some(1));
        assert_eq!(order.index_of(SlotId(3)), None);
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
                } else if let Some(slot) = order.members().get(pick as usize).copied() {
                    order.remove(slot);
                    model.remove(slot);
                    if kind == 1 {
                        // It was shut down, and listens again.
                        order.push(slot);
                        model.push(slot);
                    }
                }
                prop_assert_eq!(order.members().len(), model.0.len());
                for (slot, index) in &model.0 {
                    prop_assert_eq!(order.index_of(*slot), Some(*index));
                }
            }
        }
    }
}
