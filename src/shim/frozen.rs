//! Processes of a starting program that are stopped, by a signal or a debugger. The shim gives its own signs of life, so
//! it must see that its program gives none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::config::format_duration_ms;
use crate::sys::clock::as_ms;
use crate::sys::process::name_of;

/// The stopped processes, and since when they were seen so.
#[derive(Debug, Default)]
pub(super) struct FrozenProcesses(BTreeMap<u32, Instant>);

impl FrozenProcesses {
    /// Records which processes are stopped now. Returns one that has been so for the whole lease.
    pub(super) fn look(&mut self, now: Instant, frozen: &[u32], lease: Duration) -> Option<u32> {
        self.0.retain(|pid, _| frozen.contains(pid));
        for pid in frozen {
            self.0.entry(*pid).or_insert(now);
        }
        let is_late = |(_, since): &(&u32, &Instant)| now.saturating_duration_since(**since) >= lease;
        self.0.iter().find(is_late).map(|(pid, _)| *pid)
    }
}

/// The clause for people.
pub(super) fn told(pid: u32, lease: Duration) -> String {
    format!(
        "the program does not get ready: its process {pid} ({}) is stopped, by a signal or a debugger, for longer than the \
         lease ({})",
        name_of(pid).unwrap_or_default(),
        format_duration_ms(as_ms(lease))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_late_that_was_stopped_for_the_whole_lease_without_a_pause() {
        let (begun, lease) = (Instant::now(), Duration::from_secs(5));
        let mut frozen = FrozenProcesses::default();
        let mut look = |after, pids: &[u32]| frozen.look(begun + Duration::from_secs(after), pids, lease);
        assert_eq!(look(0, &[7]), None);
        assert_eq!(look(4, &[7, 8]), None);
        // It was continued in between.
        assert_eq!(look(5, &[8]), None);
        assert_eq!(look(6, &[7, 8]), None);
        assert_eq!(look(9, &[7, 8]), Some(8));
        assert_eq!(look(11, &[7]), Some(7));
        assert_eq!(look(12, &[]), None);
    }
}
