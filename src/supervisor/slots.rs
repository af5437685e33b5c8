//! Whose the slots are that an earlier daemon has left, before anybody was asked.

use handoff_protocol::recovery::Written;

/// What the journal and the processes tell of the slots that were left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slots {
    pub(super) written: Written,
    /// Whether a handoff was under way.
    pub(super) attempt: bool,
    /// Whether the process that served before the last handoff is there.
    pub(super) incumbent: bool,
    /// Whether the current generation is older than the one before it, which was taken back.
    pub(super) reverted: bool,
}

impl Slots {
    /// Whether the newest slot is that of the process that serves, as far as can be known before anybody is asked. A
    /// successor that is not committed may have got new connections; it is asked first, and they are steered then.
    pub(super) fn newest_serves(self) -> bool {
        !self.reverted && (self.written == Written::Committed || !self.incumbent || !self.attempt)
    }

    /// How many of the slots belonged to processes that are gone and were older than all that live. A handoff that was
    /// under way may have left the slot of a dead successor, which is the newest.
    pub(super) fn dead_and_older(self, slots: usize, living: usize) -> usize {
        match (self.written, self.attempt) {
            // Who was taken back has the newest.
            _ if self.reverted => 0,
            (Written::Uncommitted, false) => slots.saturating_sub(living),
            (Written::Uncommitted, true) | (Written::Committed, _) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who was replaced is gone, and its slot was not retired yet: nobody would accept there.
    #[test]
    fn new_connections_go_to_no_slot_of_a_process_that_was_replaced() {
        let slots = Slots { written: Written::Uncommitted, attempt: false, incumbent: true, reverted: false };
        assert!(slots.newest_serves());
        assert_eq!(slots.dead_and_older(2, 1), 1, "the incumbent has the second of two");
        assert_eq!(slots.dead_and_older(1, 1), 0);
    }

    /// The newest slot is that of a successor, living or dead.
    #[test]
    fn new_connections_go_to_no_slot_of_a_process_that_was_to_follow() {
        let slots = Slots { written: Written::Uncommitted, attempt: true, incumbent: true, reverted: false };
        assert!(!slots.newest_serves());
        assert_eq!(slots.dead_and_older(2, 1), 0, "the incumbent has the first of two");
        assert!(Slots { incumbent: false, ..slots }.newest_serves(), "nobody else is left");
        assert!(Slots { written: Written::Committed, ..slots }.newest_serves());
    }

    /// The newest slot is that of a version that was taken back, living or dead.
    #[test]
    fn new_connections_go_to_no_slot_of_a_process_that_was_taken_back() {
        let slots = Slots { written: Written::Committed, attempt: false, incumbent: true, reverted: true };
        assert!(!slots.newest_serves());
        let slots = Slots { written: Written::Uncommitted, ..slots };
        assert!(!slots.newest_serves());
        assert_eq!(slots.dead_and_older(2, 1), 0, "the one that serves has the first of two");
    }
}
