//! How long a program has rested: one that rests and has not bound its listeners will hardly bind them any more. Some
//! binds are not seen, as those over io_uring.
//!
//! A program that works is never at rest, however long its start takes: it uses processor time, reads or writes a disk,
//! or starts and ends processes. Each process uses a little processor time even if it only waits, so a little does not
//! count.

use std::time::{Duration, Instant};

use crate::sys::process::{cpu_time_of, disk_bytes_of, is_waiting_for_disk};

/// Processor time that a resting program may use within [`RESTS_FOR`].
const CPU_AT_REST: Duration = Duration::from_millis(60);
/// A program that has rested for this long waits for clients, or for something that does not come.
pub(super) const RESTS_FOR: Duration = Duration::from_secs(60);

/// What a program has used so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ResourceUsage {
    /// Its processes.
    pids: Vec<u32>,
    /// Processor time.
    cpu: Duration,
    /// Bytes from and to disks, as far as they are visible.
    disk: u64,
    /// A process waits for a disk.
    waits_for_disk: bool,
}

impl ResourceUsage {
    /// Of these processes.
    pub(super) fn of(mut pids: Vec<u32>) -> Self {
        pids.sort_unstable();
        let cpu = pids.iter().filter_map(|pid| cpu_time_of(*pid)).sum();
        let disk = pids.iter().filter_map(|pid| disk_bytes_of(*pid)).sum();
        let waits = pids.iter().any(|pid| is_waiting_for_disk(*pid));
        Self { pids, cpu, disk, waits_for_disk: waits }
    }

    fn has_worked_since(&self, before: &Self) -> bool {
        self.waits_for_disk
            || self.pids != before.pids
            || self.disk != before.disk
            || self.cpu.saturating_sub(before.cpu) > CPU_AT_REST
    }
}

/// The start of the present rest.
#[derive(Debug)]
pub(super) struct IdlePeriod {
    since: Instant,
    usage: ResourceUsage,
}

impl IdlePeriod {
    /// It begins now.
    pub(super) fn begin(now: Instant) -> Self {
        Self { since: now, usage: ResourceUsage::default() }
    }

    /// Returns how long the program rests after this look. Work between two looks counts.
    pub(super) fn update(&mut self, now: Instant, used: ResourceUsage) -> Duration {
        if used.has_worked_since(&self.usage) {
            *self = Self { since: now, usage: used };
        }
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_rests_only_while_it_does_nothing() {
        let ms = Duration::from_millis;
        let idle = ResourceUsage { pids: vec![7], cpu: ms(1_000), disk: 4096, waits_for_disk: false };
        for (what, later, is_rest) in [
            ("nothing", idle.clone(), true),
            ("what a process uses that only waits", ResourceUsage { cpu: ms(1_060), ..idle.clone() }, true),
            ("processor time", ResourceUsage { cpu: ms(1_070), ..idle.clone() }, false),
            ("a disk", ResourceUsage { disk: 8192, ..idle.clone() }, false),
            ("a disk that does not answer", ResourceUsage { waits_for_disk: true, ..idle.clone() }, false),
            ("another process", ResourceUsage { pids: vec![7, 8], ..idle.clone() }, false),
            ("the end of a process", ResourceUsage { pids: vec![], cpu: ms(0), ..idle.clone() }, false),
        ] {
            let now = Instant::now();
            let mut rest = IdlePeriod::begin(now);
            assert_eq!(rest.update(now + ms(500), idle.clone()), Duration::ZERO, "it has begun");
            let rests = rest.update(now + ms(20_500), later.clone());
            assert_eq!(rests, if is_rest { ms(20_000) } else { Duration::ZERO }, "{what}");
            let rests = rest.update(now + ms(60_500), ResourceUsage { waits_for_disk: false, ..later });
            let wanted = if is_rest { ms(60_000) } else { ms(40_000) };
            assert_eq!(rests, wanted, "{what}");
        }
    }

    /// Little by little it is much.
    #[test]
    fn slow_work_is_work() {
        let (now, mut rest) = (Instant::now(), IdlePeriod::begin(Instant::now()));
        for second in 1..=600_u64 {
            let cpu = Duration::from_millis(5 * second);
            let used = ResourceUsage { pids: vec![7], cpu, ..ResourceUsage::default() };
            let rests = rest.update(now + Duration::from_secs(second), used);
            assert!(rests < Duration::from_secs(20), "{rests:?} after {second} s");
        }
    }

    #[test]
    fn this_process_uses_the_processor() {
        let own = || ResourceUsage::of(vec![std::process::id()]);
        let (before, until) = (own(), Instant::now() + Duration::from_secs(30));
        while !own().has_worked_since(&before) {
            assert!(Instant::now() < until, "{before:?} {:?}", own());
        }
    }
}
