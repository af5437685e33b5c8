//! A monotonic clock.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, without suspended time (`CLOCK_MONOTONIC`), as the timers of a process count them.
pub fn monotonic_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        let (seconds, nanoseconds) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
        seconds.saturating_mul(1_000).saturating_add(nanoseconds / 1_000_000)
    })
}
