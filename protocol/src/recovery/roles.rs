//! Roles after a restart: assigns a role and a slot to each process in the journal, before any of them is asked.

use super::LastHandoff;
use crate::message::Mode;
use crate::record::{Current, Process, Standing};

/// The processes in the journal that still exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LivingProcesses<T> {
    /// The process of [`Standing::current`].
    pub current: Option<T>,
    /// The process of [`Standing::previous`].
    pub previous: Option<T>,
    /// The process of [`Standing::leaving`].
    pub leaving: Option<T>,
    /// The process of [`Standing::attempt`].
    pub attempt: Option<T>,
}

/// The remaining processes by the role that each has until it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Roles<T> {
    /// What the journal says about the last handoff.
    pub last_handoff: LastHandoff,
    /// The process that served before the last handoff.
    pub incumbent: Option<T>,
    /// The successor of that handoff.
    pub successor: Option<T>,
    /// A process that was replaced earlier.
    pub outgoing: Option<T>,
    /// Whether a handoff is in progress.
    is_attempt: bool,
    /// Whether that handoff is an upgrade that a user requested.
    is_upgrade: bool,
    /// Whether the current generation is older than the previous one, which was reverted.
    is_reverted: bool,
}

/// Assigns the roles.
pub fn roles<T>(standing: &Standing, living: LivingProcesses<T>) -> Roles<T> {
    let LivingProcesses { current, previous, leaving, attempt } = living;
    // One process has one role: it must not be asked twice or replaced by itself.
    let serving =
        current.as_ref().and(standing.current.as_ref()).and_then(|current| current.process.as_ref());
    let is_another = |process: Option<&Process>| serving.is_none() || process != serving;
    let of = |it: &Option<Current>| is_another(it.as_ref().and_then(|it| it.process.as_ref()));
    let (previous, leaving) =
        (previous.filter(|_| of(&standing.previous)), leaving.filter(|_| of(&standing.leaving)));
    let attempt =
        attempt.filter(|_| is_another(standing.attempt.as_ref().and_then(|it| it.process.as_ref())));
    // A restart after a crash is not an upgrade that a user requested.
    let is_upgrade = standing
        .attempt
        .as_ref()
        .zip(standing.current.as_ref())
        .is_some_and(|(attempt, current)| current.process.is_some() || attempt.binary != current.binary);
    let (written, incumbent, successor, outgoing) = match (&standing.attempt, previous) {
        (None, Some(previous)) => (LastHandoff::Committed, Some(previous), current, leaving),
        (_, previous) => (LastHandoff::Uncommitted, current, attempt, previous.or(leaving)),
    };
    Roles {
        last_handoff: written,
        incumbent,
        successor,
        outgoing,
        is_attempt: standing.attempt.is_some(),
        is_upgrade,
        is_reverted: standing.reverted,
    }
}

/// The slot of each process, inferred from their ages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slots {
    /// The slot of the incumbent.
    pub incumbent: u64,
    /// The slot of the successor.
    pub successor: u64,
    /// The slot of the outgoing process.
    pub outgoing: u64,
}

impl<T> Roles<T> {
    /// Whether there are no processes.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    fn count(&self) -> usize {
        [&self.incumbent, &self.successor, &self.outgoing].into_iter().flatten().count()
    }

    /// Whether an upgrade was in progress that a user may ask about: one not yet committed, or on probation.
    pub fn is_under_way(&self, has_probation: bool) -> bool {
        let stands_by = self.last_handoff == LastHandoff::Committed
            && self.incumbent.is_some()
            && self.successor.is_some();
        self.is_upgrade || stands_by && has_probation
    }

    /// Whether the newest slot belongs to the serving process, as far as can be inferred before any process is asked. A
    /// successor that is not committed may have received new connections; it is asked first, and steering happens after
    /// its answer.
    pub fn newest_slot_serves(&self) -> bool {
        !self.is_reverted
            && (self.last_handoff == LastHandoff::Committed || self.incumbent.is_none() || !self.is_attempt)
    }

    /// Assigns the slots, which are ordered from oldest to newest.
    pub fn slots(&self, mode: Mode, slots: &[u64]) -> Slots {
        let last = slots.last().copied().unwrap_or(0);
        let mut next = slots.iter().copied().skip(self.dead_and_older(slots.len()));
        let mut take = |process: &Option<T>| match (process, mode) {
            (Some(_), Mode::Overlap) => next.next().unwrap_or(last),
            (_, _) => last,
        };
        let (outgoing, older, newer) = (take(&self.outgoing), take(&self.incumbent), take(&self.successor));
        let (incumbent, successor) = match self.last_handoff {
            LastHandoff::Committed if self.is_reverted => (newer, older),
            LastHandoff::Committed | LastHandoff::Uncommitted => (older, newer),
        };
        Slots { incumbent, successor, outgoing }
    }

    /// Number of slots of dead processes that are older than all living ones. A handoff in progress may have left the
    /// newest slot to a dead successor.
    fn dead_and_older(&self, slots: usize) -> usize {
        match (self.last_handoff, self.is_attempt) {
            // The reverted process has the newest slot.
            _ if self.is_reverted => 0,
            (LastHandoff::Uncommitted, false) => slots.saturating_sub(self.count()),
            (LastHandoff::Uncommitted, true) | (LastHandoff::Committed, _) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, HandoffId};
    use crate::record::{Binary, Fact, Process, Record, fold};
    use alloc::vec::Vec;

    fn id(number: u8) -> HandoffId {
        HandoffId::from_bytes([number; 16])
    }

    fn started(number: u8, binary: u8) -> [Fact; 2] {
        let binary = Binary { path: "/bin/s3".into(), sha256: [binary; 32] };
        let process = Process { pid: number.into(), start_ticks: 0, boot_id: [0; 16] };
        [
            Fact::Intent { handoff: id(number), generation: Generation(number.into()), binary },
            Fact::Spawned { handoff: id(number), process },
        ]
    }

    fn committed(number: u8, binary: u8) -> Vec<Fact> {
        started(number, binary).into_iter().chain([Fact::Committed { handoff: id(number) }]).collect()
    }

    /// The roles of the processes with these numbers.
    fn left(facts: impl IntoIterator<Item = Fact>, living: &[u8]) -> Roles<u8> {
        let records: Vec<_> = facts.into_iter().map(|fact| Record { at_unix_ms: 0, fact }).collect();
        let standing = fold(&records);
        let lives = |process: Option<&Process>| {
            process.map(|process| process.pid as u8).filter(|number| living.contains(number))
        };
        let living = LivingProcesses {
            current: standing.current.as_ref().and_then(|it| lives(it.process.as_ref())),
            previous: standing.previous.as_ref().and_then(|it| lives(it.process.as_ref())),
            leaving: standing.leaving.as_ref().and_then(|it| lives(it.process.as_ref())),
            attempt: standing.attempt.as_ref().and_then(|it| lives(it.process.as_ref())),
        };
        roles(&standing, living)
    }

    fn parts(roles: &Roles<u8>) -> (LastHandoff, [Option<u8>; 3]) {
        (roles.last_handoff, [roles.incumbent, roles.successor, roles.outgoing])
    }

    #[test]
    fn a_handoff_that_is_not_committed_leaves_its_process_the_successor() {
        let facts = || committed(1, 1).into_iter().chain(committed(2, 2)).chain(started(3, 3));
        let all = left(facts(), &[1, 2, 3]);
        assert_eq!(parts(&all), (LastHandoff::Uncommitted, [Some(2), Some(3), Some(1)]));
        assert!(all.is_under_way(false));
        assert_eq!(parts(&left(facts(), &[3])), (LastHandoff::Uncommitted, [None, Some(3), None]));
    }

    #[test]
    fn a_handoff_that_is_committed_makes_the_process_before_it_the_incumbent() {
        let facts = || (1..4).flat_map(|number| committed(number, number));
        let all = left(facts(), &[1, 2, 3]);
        assert_eq!(parts(&all), (LastHandoff::Committed, [Some(2), Some(3), Some(1)]));
        assert_eq!(parts(&left(facts(), &[2])), (LastHandoff::Committed, [Some(2), None, None]));
        assert_eq!(parts(&left(facts(), &[1, 3])), (LastHandoff::Uncommitted, [Some(3), None, Some(1)]));
    }

    #[test]
    fn a_start_is_no_upgrade_and_a_probation_needs_both_processes() {
        assert!(!left(started(1, 1), &[1]).is_under_way(true), "a first start");
        let died = Fact::Exited { generation: Generation(1), exit: crate::reason::Exit::Unknown };
        let again = |binary| committed(1, 1).into_iter().chain([died.clone()]).chain(started(2, binary));
        assert!(!left(again(1), &[2]).is_under_way(true), "the restart of a process that ended");
        assert!(left(again(2), &[2]).is_under_way(true), "an upgrade of one that ended");
        let replaced = || committed(1, 1).into_iter().chain(committed(2, 2));
        assert!(left(replaced(), &[1, 2]).is_under_way(true));
        assert!(!left(replaced(), &[1, 2]).is_under_way(false));
        assert!(!left(replaced(), &[1]).is_under_way(true), "the new process is gone");
    }

    fn slots_of(roles: Roles<u8>, slots: &[u64]) -> Slots {
        roles.slots(Mode::Overlap, slots)
    }

    /// The replaced process is gone, and its slot was not retired yet: no process would accept there.
    #[test]
    fn new_connections_go_to_no_slot_of_a_process_that_was_replaced() {
        let replaced = left(committed(1, 1).into_iter().chain(committed(2, 2)), &[2]);
        assert!(replaced.newest_slot_serves());
        assert_eq!(slots_of(replaced, &[4, 5]).incumbent, 5, "the incumbent has the second of two");
        assert_eq!(slots_of(replaced, &[5]).incumbent, 5);
    }

    /// The newest slot belongs to a successor, living or dead.
    #[test]
    fn new_connections_go_to_no_slot_of_a_process_that_was_to_follow() {
        let facts = || committed(1, 1).into_iter().chain(started(2, 2));
        let dead = left(facts(), &[1]);
        assert!(!dead.newest_slot_serves());
        assert_eq!(slots_of(dead, &[4, 5]).incumbent, 4, "the incumbent has the first of two");
        let alive = left(facts(), &[1, 2]);
        assert!(!alive.newest_slot_serves());
        assert_eq!(slots_of(alive, &[4, 5]), Slots { incumbent: 4, successor: 5, outgoing: 5 });
        assert!(left(facts(), &[2]).newest_slot_serves(), "no other process is left");
        assert!(left(committed(1, 1).into_iter().chain(committed(2, 2)), &[1, 2]).newest_slot_serves());
    }

    /// The newest slot belongs to a reverted version, living or dead.
    #[test]
    fn new_connections_go_to_no_slot_of_a_process_that_was_taken_back() {
        let undone = [Fact::Reverted { handoff: id(2) }];
        let facts = || committed(1, 1).into_iter().chain(committed(2, 2)).chain(undone.clone());
        let both = left(facts(), &[1, 2]);
        assert_eq!(parts(&both), (LastHandoff::Committed, [Some(2), Some(1), None]));
        assert!(!both.newest_slot_serves());
        let Slots { incumbent, successor, .. } = slots_of(both, &[4, 5]);
        assert_eq!((incumbent, successor), (5, 4));
        let one = left(facts(), &[1]);
        assert!(!one.newest_slot_serves());
        assert_eq!(slots_of(one, &[4, 5]).incumbent, 4, "the one that serves has the first of two");
    }

    #[test]
    fn in_exclusive_mode_all_have_the_newest_slot() {
        let both = left(committed(1, 1).into_iter().chain(committed(2, 2)), &[1, 2]);
        let all = both.slots(Mode::Exclusive, &[4, 5]);
        assert_eq!(all, Slots { incumbent: 5, successor: 5, outgoing: 5 });
    }
}
