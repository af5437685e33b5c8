//! A clock that nobody can set.

use nix::time::{ClockId, clock_gettime};

/// How much time this machine has run since its boot, less what it was suspended for, as the timers of a process count it.
pub fn monotonic_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        let (seconds, nanoseconds) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
        seconds.saturating_mul(1_000).saturating_add(nanoseconds / 1_000_000)
    })
}
